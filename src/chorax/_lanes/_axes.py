"""Which leaves have a lane axis.

The forms are those of `eqx.filter_vmap`: `None`, an `int`, or a function of a leaf,
one for all leaves or a PyTree of them that is a prefix of the tree.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._text._places import Path, place
from .._text._show import short, shown, with_article
from .._tree._holder import AxesHolder
from .._tree._paths import leaf_paths, Level, open_level, same_structure


Axes = tuple[int | None, ...]


def resolve_axes(tree: Any, in_axes: Any, name: str) -> Axes:
    """The lane axis of every leaf of a tree, in order; `None` for a shared leaf."""
    axes: list[int | None] = []
    pending: list[tuple[Path, Any, Any]] = [((), in_axes, tree)]
    while pending:
        path, axis, part = pending.pop()
        if axis is None or isinstance(axis, int) or _is_rule(axis):
            leaves = jtu.tree_leaves(part)
            if callable(axis):
                axes += [_axis_by(axis, leaf, name, path) for leaf in leaves]
            else:
                axes += [_checked(axis, name, path)] * len(leaves)
            continue
        above, below = open_level(axis), open_level(part)
        if above is None:
            _checked(axis, name, path)
        if not above or not below or not same_structure(above.shell, below.shell):
            raise ValueError(
                f"`{name}` must be a prefix of the tree it describes, but they differ "
                f"at {place(path)}: {_show(axis, above)} against {_show(part, below)}."
            )
        rows = zip(above.keys, above.children, below.children, strict=True)
        pending.extend(reversed([((*path, key), a, b) for key, a, b in rows]))
    return tuple(axes)


def plain_axes(in_axes: Any) -> Any:
    """A tree of axes in which every delta is replaced by its axes."""

    def plain(x: Any) -> Any:
        return x.in_axes if isinstance(x, AxesHolder) else x

    return jtu.tree_map(plain, in_axes, is_leaf=lambda x: isinstance(x, AxesHolder))


def argument_axes(args: Any, in_axes: Any) -> Any:
    """`args_in_axes` as a prefix of the tuple of arguments."""
    if not any(isinstance(x, tuple) for x in (args, in_axes)):
        return (in_axes,)
    return in_axes


def keyword_axes(kwargs: Mapping[str, Any], in_axes: Any) -> Any:
    """`kwargs_in_axes` as a prefix of the keyword arguments, `None` if left out."""
    if not isinstance(in_axes, Mapping):
        return in_axes
    axes = cast(Mapping[str, Any], in_axes)
    unknown = [name for name in axes if name not in kwargs]
    if unknown:
        raise ValueError(
            f"`kwargs_in_axes` names {unknown}, but `kwargs` has only {list(kwargs)}."
        )
    return {name: axes.get(name) for name in kwargs}


def check_lengths(tree: Any, axes: Axes, size: int, name: str) -> None:
    """Raises unless every mapped leaf is an array with `size` lanes on its axis."""
    leaves, structure = jtu.tree_flatten(tree)
    check_leaf_lengths(leaves, structure, axes, size, name)


def check_leaf_lengths(
    leaves: Sequence[Any],
    structure: jtu.PyTreeDef,
    axes: Axes,
    size: int,
    name: str,
    is_given: bool = True,
) -> None:
    """As `check_lengths`, for a flattened tree; `is_given` is whether somebody passed
    the size as `axis_size`."""
    told = f"`axis_size` = {size}" if is_given else f"{size}"
    for index, (leaf, axis) in enumerate(zip(leaves, axes, strict=True)):
        if axis is None:
            continue
        shape = leaf.shape if eqx.is_array(leaf) else ()
        in_range = -len(shape) <= axis < len(shape)
        if in_range and shape[axis] == size and not is_foreign(leaf):
            continue
        if not eqx.is_array(leaf):
            problem = (
                f"but it is not an array: {shown(leaf)}. Use `None` there, or "
                "`eqx.if_array(0)` to map the arrays only."
            )
        elif is_foreign(leaf):
            problem = f"but {not_taken(leaf)}. Use `None` there to share it."
        else:
            problem = "but it has no such axis"
            if in_range:
                problem = f"which must be {told} long, but it has {shape[axis]} there"
            problem += (
                f": its shape is {shape}. Map it along its lane axis, or use `None` to "
                "share it."
            )
        where = place(leaf_paths(structure)[index])
        raise ValueError(f"`{name}` maps {where} along axis {axis}, {problem}")


def in_front(x: Any, axis: int | None) -> Any:
    """An array with its lane axis moved to the front; itself if there is none."""
    return jnp.moveaxis(x, axis, 0) if axis else x


def is_foreign(leaf: Any) -> bool:
    """Whether it is a NumPy array of a dtype that JAX does not take: strings, say."""
    if not isinstance(leaf, np.ndarray | np.generic):
        return False
    dtype: Any = cast(Any, leaf).dtype
    is_number = jnp.issubdtype(dtype, np.number) and dtype.kind != "m"
    return not is_number and dtype != np.bool_


def not_taken(leaf: Any) -> str:
    """How an error describes such an array."""
    return f"JAX does not take its dtype, {leaf.dtype}"


def _show(tree: Any, level: Level | None) -> str:
    if level is None:
        return short(tree) if not eqx.is_array(tree) else "an array"
    return f"{with_article(type(tree).__name__)} of {short(list(level.keys))}"


def _is_rule(axis: Any) -> bool:
    # As in `eqx.filter_vmap`, a function applies to every leaf below it. A module is
    # part of the tree of axes, even if it is callable.
    return callable(axis) and not isinstance(axis, eqx.Module)


def _axis_by(rule: Any, leaf: Any, name: str, path: Path) -> int | None:
    try:
        axis = rule(leaf)
    except Exception as error:
        error.add_note(f"Raised by the function in `{name}` at {place(path)}.")
        raise
    return _checked(axis, name, path)


def _checked(axis: Any, name: str, path: Path) -> int | None:
    if axis is None or (isinstance(axis, int) and not isinstance(axis, bool)):
        return axis
    raise TypeError(
        f"`{name}` must hold `None`, integers and functions of a leaf, as in "
        f"`eqx.filter_vmap`, but has {short(axis)} at {place(path)}."
    )
