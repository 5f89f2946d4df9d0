"""Checking the modules of a model, as one lane sees them, against annotations."""

from collections.abc import Sequence
from typing import Any, cast

import equinox as eqx
import jax.tree_util as jtu

from .._annotations._check import check_module, CheckContext, LaneArray
from .._annotations._hints import is_annotated
from .._lanes._axes import plain_axes, resolve_axes
from .._lanes._lane_axes import agreed_count
from .._text._show import named
from .._tree._draft import Ref, Slot
from .._tree._nodes import Node, walk_nodes
from ._kind import ArraySpec, Spec, spec_of
from ._levels import in_levels, levels_of


# How to declare a lane axis, with `in_axes` and without.
BATCHED = "declare it with `in_axes`"
UNBATCHED = "call `vmap_call_all_fns` with `in_axes`"


def check_annotations(model: Any, in_axes: Any = None) -> None:
    """Checks every module of a model against its jaxtyping annotations.

    Each collective call does the same for the modules that it calls. Every field with
    an annotation such as `Float[Array, "n"]` has to fit it, also inside unions,
    containers and generic classes, and a named dimension has one size across the fields
    of a module. Nothing is computed. An annotation that can't be resolved is skipped,
    and NumPy arrays are checked as the arrays that lanes make of them.

    **Arguments:**

    - `model`: a module, or any PyTree of modules.
    - `in_axes`: which leaves have a lane axis, as in `vmap_call_all_fns`; those are
        checked as one lane sees them. `None`: no leaf has one.

    **Raises:** `AnnotationError` for the first field that does not fit, children before
    parents; `ValueError` if the model has no module, or if leaves disagree on the
    number of lanes.

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
            "There is nothing to check: the model does not contain an `eqx.Module`, "
            f"but is {named(model)}."
        )
    axes = resolve_axes(model, plain_axes(in_axes), "in_axes")
    size = agreed_count(walked.leaves, walked.structure, axes, "in_axes")
    specs = [spec_of(x, axis) for x, axis in zip(walked.leaves, axes, strict=True)]
    draft = walked.draft()
    for node in walked.nodes:
        check_in_draft(draft, node, specs, CheckContext(size, BATCHED))


def check_in_draft(
    draft: Slot, node: Node, specs: Sequence[Spec], context: CheckContext
) -> None:
    """Checks a node as it is now in a draft, if it is still there.

    `specs` has one entry for each value that the draft refers to.
    """
    if not is_annotated(node.cls):
        return
    slot, found = draft.find(node.path)
    if not found or not isinstance(slot.value, eqx.Module):
        return
    refs, structure = jtu.tree_flatten(slot.current())
    own = [specs[cast(Ref, ref).name] for ref in refs]
    if node.ensembles:
        own = in_levels(own, levels_of(draft, node, structure, specs))
    leaves = [
        LaneArray(spec.struct, spec.host) if isinstance(spec, ArraySpec) else spec.value
        for spec in own
    ]
    check_module(structure, leaves, node.path, context)
