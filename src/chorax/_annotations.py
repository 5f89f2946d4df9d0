"""Checking modules against the shapes and dtypes that their authors annotated."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.tree_util as jtu
import numpy as np

from ._axes import plain_axes, resolve_axes
from ._draft import Ref
from ._fits import Misfit, Scope
from ._hints import hinted_fields
from ._kind import (
    ArraySpec,
    Call,
    Constant,
    innermost,
    Kept,
    Kind,
    New,
    Origin,
    Outcome,
    Spec,
    spec_of,
    StaticSpec,
)
from ._lane_axes import agreed_count
from ._levels import in_levels, levels_of
from ._memo import Cell, exact_structure, kind_cell
from ._misfits import misfit_message, Sight
from ._nodes import walk_nodes
from ._places import Path
from ._show import named


class AnnotationError(TypeError):
    """A field of a module does not fit its jaxtyping annotation.

    Raised while tracing, by collective calls and by `check_annotations`.
    """


_BATCHED = "say so by `in_axes`"
_UNBATCHED = "call `vmap_call_all_fns` with `in_axes`"


def check_annotations(model: Any, in_axes: Any = None) -> None:
    """Checks every module of a model against its jaxtyping annotations.

    What each collective call does for the modules that it calls: every field annotated
    as `Float[Array, "n"]` and the like, also inside unions, containers and generic
    classes, has to fit, and a name of a dimension has one size across the fields of a
    module. Nothing is computed. An annotation that can't be resolved is skipped, and
    what a lane sees of a NumPy array is an array like any other.

    **Arguments:**

    - `model`: a module, or any PyTree of modules.
    - `in_axes`: which leaves have a lane axis, as in `vmap_call_all_fns`; those are
        checked as one lane sees them. `None`: none has.

    **Raises:** `AnnotationError` for the first field that does not fit, children before
    parents; `ValueError` if there is no module, or if lanes disagree.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> from jaxtyping import Array, Float
    >>> class Neuron(eqx.Module):
    ...     v: Float[Array, "n"]
    ...     w: Float[Array, "n n"]
    >>> chorax.check_annotations(Neuron(jnp.zeros(3), jnp.zeros((3, 3))))
    >>> batched = Neuron(jnp.zeros((8, 3)), jnp.zeros((3, 3)))
    >>> chorax.check_annotations(batched, in_axes=Neuron(0, None))

    ```
    """
    walked = walk_nodes(model)
    if not walked.nodes:
        raise ValueError(
            "There is nothing to check: the model has no `eqx.Module` in it, but is "
            f"{named(model)}."
        )
    axes = resolve_axes(model, plain_axes(in_axes), "in_axes")
    size = agreed_count(walked.leaves, walked.structure, axes, "in_axes")
    specs = [spec_of(x, axis) for x, axis in zip(walked.leaves, axes, strict=True)]
    sight = Sight("", size, _BATCHED)
    draft = walked.draft()
    for node in walked.nodes:
        slot, _ = draft.find(node.path)
        refs, structure = jtu.tree_flatten(slot.current())
        own = [specs[cast(Ref, ref).name] for ref in refs]
        seen = in_levels(own, levels_of(draft, node, structure, specs))
        check_node_once(structure, seen, node.path, sight)


def check_result(
    kind: Kind,
    call: Call,
    outcome: Outcome,
    outputs: Sequence[jax.ShapeDtypeStruct],
    path: Path,
) -> None:
    """Checks a module that a call has returned, given its new arrays."""

    def spec(origin: Origin) -> Spec:
        match origin:
            case Kept(index):
                return kind.specs[index]
            case New(index):
                return ArraySpec(outputs[index], False)
            case Constant(value):
                return StaticSpec(value)

    specs = [spec(origin) for origin in outcome.origins]
    if outcome.levels:
        pairs = zip(specs, outcome.levels, strict=True)
        specs = [innermost(each, axes) for each, axes in pairs]
    sight = sight_after(call, f" after `{call.label}`")
    check_node(outcome.structure, specs, path, sight)


def sight_after(call: Call, after: str) -> Sight:
    """How a module that a collective call has changed is looked at."""
    if call.lanes is None:
        return Sight(after, None, _UNBATCHED, call.admits_stacks)
    return Sight(after, call.lanes.size, _BATCHED, call.admits_stacks)


def check_node(
    structure: jtu.PyTreeDef, specs: Sequence[Spec], path: Path, sight: Sight
) -> None:
    """Checks one module, given as one lane sees its leaves."""
    message = _misfit_of(structure, specs, path, sight)
    if message is None:
        return
    if sight.admits_stacks:
        each = (_misfit_of(structure, part, path, sight) for part in _slices(specs))
        if any(found is None for found in each):
            return
    raise AnnotationError(message)


def _misfit_of(
    structure: jtu.PyTreeDef, specs: Sequence[Spec], path: Path, sight: Sight
) -> str | None:
    """What to say of the first field that does not fit; `None` if all do."""
    data = structure.node_data()
    fields = [] if data is None else hinted_fields(data[0])
    found: list[str] = []

    def look(*arrays: Any) -> None:
        rest = iter(arrays)
        leaves: list[Any] = []
        twins: dict[int, Any] = {}
        for spec in specs:
            leaf = next(rest) if isinstance(spec, ArraySpec) else spec.value
            if isinstance(spec, ArraySpec) and spec.host is not None:
                twin, leaf = leaf, _on_host(spec)
                twins[id(leaf)] = twin
            leaves.append(leaf)
        node = jtu.tree_unflatten(structure, leaves)
        try:
            Scope(node, fields, twins).bind()
        except Misfit as misfit:
            found.append(misfit_message(node, path, misfit, sight))

    if fields:
        jax.eval_shape(look, *[s.struct for s in specs if isinstance(s, ArraySpec)])
    return found[0] if found else None


def _on_host(spec: ArraySpec) -> Any:
    """A stand-in for a NumPy leaf, which no lane has changed."""
    host: Any = spec.host
    if isinstance(host, type) and not spec.struct.shape:
        return host()
    dtype = host(0).dtype if isinstance(host, type) else host
    return np.broadcast_to(np.zeros((), dtype), spec.struct.shape)


def check_node_once(
    structure: jtu.PyTreeDef, specs: Sequence[Spec], path: Path, sight: Sight
) -> None:
    """Checks one module, unless one of its kind was found to fit before."""
    try:
        kind = exact_structure(structure), tuple(spec.token for spec in specs)
        cell = kind_cell((check_node_once, kind, sight.admits_stacks))
    except TypeError:
        cell = Cell()  # Something static can't be a key: nothing is remembered.
    if cell.value is None:
        check_node(structure, specs, path, sight)
        cell.value = True


def _slices(specs: Sequence[Spec]) -> Iterator[list[Spec]]:
    """The specs without one leading axis, two, and so on, while all arrays agree."""
    arrays = [spec.struct for spec in specs if isinstance(spec, ArraySpec)]
    depth = 0
    while arrays and len({x.shape[: depth + 1] for x in arrays}) == 1:
        depth += 1
        if any(len(x.shape) < depth for x in arrays):
            return
        yield [_without_axes(spec, depth) for spec in specs]


def _without_axes(spec: Spec, depth: int) -> Spec:
    if not isinstance(spec, ArraySpec):
        return spec
    struct = jax.ShapeDtypeStruct(spec.struct.shape[depth:], spec.struct.dtype)
    return ArraySpec(struct, False, spec.host)
