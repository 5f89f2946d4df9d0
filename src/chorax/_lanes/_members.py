"""What `vmap`, `scan` and `fold` share: models whose members a function is given."""

from collections.abc import Callable
from typing import Any, cast, TypeGuard

import equinox as eqx
import jax
import jax.tree_util as jtu

from .._text._places import place
from .._text._show import named
from .._tree._holder import AxesHolder, LaneHolder
from .._tree._paths import first_difference, same_structure
from .._tree._replace import replace
from ._axes import is_foreign, plain_axes
from ._lane_axes import ensemble_lanes, lane_axes, LaneAxes


def array_axes(in_axes: Any) -> Any:
    """Axes with trees for deltas, and with integers for arrays only."""

    def of_arrays(axis: Any) -> Any:
        is_plain = isinstance(axis, int) and not isinstance(axis, bool)
        return eqx.if_array(axis) if is_plain else axis

    return jtu.tree_map(of_arrays, plain_axes(in_axes))


def open_lanes(batched: Any, axes: Any) -> tuple[LaneAxes, Callable[[Any], Any]]:
    """Takes a batched model apart, and says how to put a new one in its place. An
    `Ensemble` without axes has its own."""
    if isinstance(batched, LaneHolder) and axes is None:
        return ensemble_lanes(batched), lambda model: replace(batched, model=model)
    axes = axes if isinstance(axes, AxesHolder) else array_axes(axes)
    return lane_axes(batched, axes), lambda model: model


def split(tree: Any, spec: Any = None) -> tuple[Any, Any]:
    """A tree of the arrays, or of what `spec` says, and one of the rest."""
    return cast(Any, eqx).partition(tree, is_mappable if spec is None else spec)


def join(*trees: Any) -> Any:
    """What `split` took apart."""
    return cast(Any, eqx).combine(*trees)


def recomputed(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of a loop that gradients recompute."""
    # Within a loop XLA can't merge what is computed twice.
    return cast(Any, jax).checkpoint(step, prevent_cse=False)


def is_mappable(x: Any) -> bool:
    """Whether it is an array that JAX takes; all else is part of the program."""
    return eqx.is_array(x) and not is_foreign(x)


def is_number(x: Any) -> bool:
    """Whether it is a number of Python's, which JAX takes for an array."""
    return isinstance(x, bool | int | float | complex)


def one_of(x: Any, axis: int | None = 0) -> jax.ShapeDtypeStruct:
    """What one entry along an axis of an array looks like."""
    shape = [size for i, size in enumerate(x.shape) if i != axis]
    weak_type = getattr(x, "weak_type", False)
    return jax.ShapeDtypeStruct(shape, x.dtype, weak_type=weak_type)


def check_pair(result: Any, caller: str, pair: str) -> tuple[Any, Any]:
    """Raises unless a function returned two things."""
    if _is_pair(result):
        return result
    raise TypeError(
        f"The function given to `{caller}` must return `{pair}`, but returned "
        f"{named(result)}."
    )


def check_returned(
    new: jtu.PyTreeDef, old: jtu.PyTreeDef, caller: str, what: str
) -> None:
    """Raises unless a function returned a tree of the structure that it was given."""
    if same_structure(new, old):
        return
    path, given, returned = first_difference(old, new) or ((), "one", "another")
    raise ValueError(
        f"The function given to `{caller}` changed the structure of {what} at "
        f"{place(path)}: it was given {given} and returned {returned}. What goes "
        "around a loop keeps its structure: create it before the loop."
    )


def _is_pair(x: Any) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(x, tuple) and len(cast("tuple[Any, ...]", x)) == 2
