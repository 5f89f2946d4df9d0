"""One module against its annotations, and what is said where it does not fit."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import equinox as eqx
import jax
import jax.tree_util as jtu

from .._text._places import dotted, Path, place
from .._text._show import short, with_article
from .._tree._memo import Cell, exact_structure, fingerprint, kind_cell
from .._tree._paths import walk
from ._fits import check_fields, Misfit
from ._hints import hinted_fields
from ._names import narrowed


class AnnotationError(TypeError):
    """A field of a module does not fit its jaxtyping annotation.

    Raised while tracing, by collective calls and by `check_annotations`.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> from jaxtyping import Array, Float
    >>> class Neuron(eqx.Module):
    ...     v: Float[Array, "n"]
    >>> try:
    ...     chorax.check_annotations(Neuron(jnp.zeros((2, 3))))
    ... except chorax.AnnotationError as error:
    ...     print(str(error).splitlines()[0])
    The field `v` of the Neuron at the root `()` does not fit its annotation.

    ```
    """


@dataclasses.dataclass(frozen=True)
class Seen:
    """An array as one lane sees it.

    `host` is the type of a NumPy scalar, and the dtype of a NumPy array that JAX would
    change.
    """

    struct: jax.ShapeDtypeStruct
    host: Any = None

    def without_axes(self, count: int) -> "Seen":
        """The same without some leading axes."""
        shape, dtype = self.struct.shape[count:], self.struct.dtype
        return Seen(jax.ShapeDtypeStruct(shape, dtype), self.host)

    def stand_in(self, array: jax.Array) -> Any:
        """What the owner of the leaf has there, given what a lane has."""
        if self.host is None:
            return array
        is_scalar = isinstance(self.host, type)
        return self.host() if is_scalar else narrowed(self.host, array.shape)


@dataclasses.dataclass(frozen=True)
class Sight:
    """How a module came to be looked at, for messages.

    `size` is the number of lanes, where there are lanes; `cure` says how to declare a
    lane axis that was not declared; `after` names the call that the module comes from.
    `admits_stacks` lets a stack of modules pass, as `eqx.filter_vmap` builds it, all of
    whose arrays have the same leading axes, if each module of the stack would pass.
    """

    size: int | None
    cure: str
    after: Callable[[], str] = str
    admits_stacks: bool = False


def check_module(
    structure: jtu.PyTreeDef, leaves: Sequence[Any], path: Path, sight: Sight
) -> None:
    """Checks a module, unless one of its kind was found to fit before.

    Its arrays are given as `Seen`, its other leaves as they are.
    """
    try:
        tokens = [x if isinstance(x, Seen) else fingerprint(x) for x in leaves]
        kind = exact_structure(structure), tuple(tokens), sight.admits_stacks
        cell = kind_cell((check_module, kind))
    except TypeError:
        cell = Cell()  # Something static can't be a key: nothing is remembered.
    if cell.value:
        return
    message = _fault_of(structure, leaves, path, sight)
    stacks = _slices(leaves) if message and sight.admits_stacks else ()
    if message and all(_fault_of(structure, x, path, sight) for x in stacks):
        raise AnnotationError(message)
    cell.value = True


def _fault_of(
    structure: jtu.PyTreeDef, leaves: Sequence[Any], path: Path, sight: Sight
) -> str | None:
    """What to say of the first field that does not fit; `None` if all do."""
    message = None

    def look(*arrays: jax.Array) -> None:
        nonlocal message
        rest = iter(arrays)
        values = [x.stand_in(next(rest)) if isinstance(x, Seen) else x for x in leaves]
        node = jtu.tree_unflatten(structure, values)
        try:
            check_fields(node, hinted_fields(cast("type[Any]", type(node))))
        except Misfit as misfit:
            message = _message(node, path, misfit, sight)

    jax.eval_shape(look, *[x.struct for x in leaves if isinstance(x, Seen)])
    return message


def _slices(leaves: Sequence[Any]) -> Iterator[list[Any]]:
    """The leaves without one leading axis, two, and so on, while all arrays agree."""
    shapes = [x.struct.shape for x in leaves if isinstance(x, Seen)]
    depth = 1
    while len({shape[:depth] for shape in shapes}) == 1 and len(shapes[0]) >= depth:
        yield [x.without_axes(depth) if isinstance(x, Seen) else x for x in leaves]
        depth += 1


def _message(node: Any, path: Path, misfit: Misfit, sight: Sight) -> str:
    """Which field of which module, what it holds, and what it was to hold."""
    field, kind = misfit.field, cast("type[Any]", type(node))
    assert field is not None
    seen = "" if sight.size is None else ", as one lane sees it"
    rows = [
        f"The field `{misfit.path[0]}` of the {kind.__name__} at {place(path)} "
        f"does not fit its annotation{sight.after()}{seen}.",
        f"  annotated: {field.name}: {field.written()}",
        f"  found: {_describe(misfit.value)}",
    ]
    if field.owner is not kind:
        rows[1] += f" (in {field.owner.__name__})"
    if len(misfit.path) > 1:
        rows[2] += f", at `{dotted((*path, *misfit.path))}`"
    names = misfit.names.bound.items()
    bound = [f"{name} = {size} by `{dotted(at)}`" for name, (size, at) in names]
    if bound:
        rows.append(f"  bound: {', '.join(bound)}")
    value, size = misfit.value, sight.size
    # A first axis of any length may be one of lanes, but for an empty one.
    length = value.shape[0] if eqx.is_array(value) and value.shape else 0
    if length and size in (None, length) and misfit.accepts(value[0]):
        first = (
            "its first axis"
            if size is None
            else f"a first axis of `axis_size` = {size}"
        )
        rows.append(
            f"The shape fits but for {first}. If that is a lane axis, {sight.cure}."
        )
    return "\n".join(rows)


def _describe(value: Any) -> str:
    if eqx.is_array(value):
        return f"{value.dtype} of shape {value.shape}"
    if value is None:
        return "None"
    name = type(value).__name__
    kind = with_article(name)
    if isinstance(value, int | float | complex | str):
        return f"{kind}, {short(value)}"
    if not isinstance(value, list | tuple | dict):
        return kind
    rows = [(path, x) for path, x, is_leaf in walk(value) if is_leaf]
    shown = [f"`{dotted(path)}`: {_describe(x)}" for path, x in rows[:4]]
    more = [] if len(rows) <= 4 else [f"and {len(rows) - 4} more"]
    return f"{kind} of {', '.join([*shown, *more])}" if rows else f"an empty {name}"
