"""Checks of the arguments of collective calls, made before anything else is done."""

from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

import jax.tree_util as jtu
import numpy as np

from .._lanes._arguments import bare_entries, check_filter, check_mask, check_positive
from .._lanes._axes import plain_axes, resolve_axes
from .._lanes._lane_axes import agreed_count
from .._lanes._spread import check_sharding
from .._plan._advice import is_one_size, size_question
from .._plan._kind import Lanes
from .._plan._request import IfNotExist, LANE_OPTIONS, Request
from .._text._show import short, shown
from .._tree._holder import AxesHolder


_FILTERS = ("node_to_exclude", "state_to_exclude")


def check_request(target: Any, options: Mapping[str, Any], has_lanes: bool) -> Request:
    """The arguments of a collective call as users give them, checked.

    `options` has all of them by name: what a signature says is said in no second place.
    """
    rest = dict(options)
    named = {name: rest.pop(name, None) for name in LANE_OPTIONS}
    if has_lanes and rest["in_axes"] is not None:
        named["axis_size"] = _size_of(target, rest["in_axes"], named["axis_size"])
    if has_lanes and named["axis_size"] is None and is_one_size(rest["args"]):
        raise ValueError(
            "`axis_size` must be a positive integer, the number of lanes, but it is "
            f"missing. {size_question(rest['args'])}"
        )
    lanes = check_lanes(**named) if has_lanes else None
    bare = {name: bare_entries(rest[name]) for name in _FILTERS}
    checked = {name: _CHECKS[name](rest.pop(name)) for name in _CHECKS}
    for name in _FILTERS:
        checked[name] = check_filter(rest.pop(name), name)
    where = rest.pop("where", None)
    if lanes is not None and where is not None:
        checked["where"] = check_mask(where, lanes.size, "where")
    return Request(lanes=lanes, bare_filters=bare, **checked, **rest)


def _size_of(target: Any, in_axes: Any, given: Any) -> Any:
    """The number of lanes: as given, or as the leaves that `in_axes` maps tell it;
    where it maps none, as a delta does."""
    told = in_axes.axis_size if isinstance(in_axes, AxesHolder) else None
    if given is not None:
        kind = cast("type[Any]", type(given))
        is_integer = issubclass(kind, int | np.integer)
        if told is None or not is_integer or told == given:
            return given
    leaves, structure = jtu.tree_flatten(target)
    axes = resolve_axes(target, plain_axes(in_axes), "in_axes")
    size = agreed_count(leaves, structure, axes, "in_axes")
    if given is not None and size is None:
        raise ValueError(
            f"`axis_size` is {short(given)}, but the `StateDelta` that was given as "
            f"`in_axes` has {told} lanes. Leave `axis_size` out, or give the delta of "
            "the call that made these lanes."
        )
    return told if size is None else size if given is None else given


def check_function(fn_name: Any) -> str | Callable[..., Any]:
    """What to call on nodes: a method's name, or a function."""
    if not isinstance(fn_name, str) and not callable(fn_name):
        raise TypeError(
            "`fn_name` must be the name of a method or a callable `(node, *args, "
            f"**kwargs) -> node`, but got {shown(fn_name)}."
        )
    return fn_name


def check_kwargs(kwargs: Any) -> dict[str, Any]:
    """The keyword arguments as a dictionary."""
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        raise TypeError(
            f"`kwargs` must be a mapping or `None`, but got {shown(kwargs)}."
        )
    given = cast(Mapping[Any, Any], kwargs)
    names = [name for name in given if not isinstance(name, str)]
    if names:
        raise TypeError(f"`kwargs` must have `str` keys, but has {short(names)}.")
    return dict(given)


def check_mode(fn_if_not_exist: Any) -> IfNotExist:
    """What to do about nodes without the method."""
    modes = get_args(IfNotExist)
    if not isinstance(fn_if_not_exist, str) or fn_if_not_exist not in modes:
        raise ValueError(
            f"`fn_if_not_exist` must be one of {', '.join(map(repr, modes))}, but got "
            f"{short(fn_if_not_exist)}."
        )
    return cast(IfNotExist, fn_if_not_exist)


def check_tag(state_tag: Any) -> str | None:
    """The tag of written leaves."""
    if state_tag is not None and not isinstance(state_tag, str):
        raise TypeError(
            f"`state_tag` must be a `str` or `None`, but got {shown(state_tag)}."
        )
    return state_tag


def check_lanes(
    axis_size: Any,
    axis_name: Any = None,
    spmd_axis_name: Any = None,
    chunk_size: Any = None,
    sharding: Any = None,
) -> Lanes:
    """The lanes that a batched call asks for."""
    size = check_positive(axis_size, "axis_size", "the number of lanes")
    _check_name(axis_name, "axis_name")
    _check_name(spmd_axis_name, "spmd_axis_name")
    if chunk_size is not None:
        if axis_name is not None:
            raise ValueError(
                "`chunk_size` and `axis_name` do not go together: lanes of different "
                "chunks can't meet. Drop one of them."
            )
        chunk_size = check_positive(chunk_size, "chunk_size", "lanes at a time")
    where = None if sharding is None else check_sharding(sharding, size)
    named = axis_name is not None or spmd_axis_name is not None
    if where is not None and named and not where.is_auto:
        raise ValueError(
            "`sharding` on a mesh of explicit axes does not go together with "
            "`axis_name` or `spmd_axis_name`. Make the mesh with `axis_types` of "
            "`jax.sharding.AxisType.Auto`."
        )
    return Lanes(size, axis_name, spmd_axis_name, chunk_size, where)


def check_has_aux(value: Any) -> bool:
    """A `bool`, and nothing that passes for one."""
    if not isinstance(value, bool):
        raise TypeError(f"`has_aux` must be `True` or `False`, but got {shown(value)}.")
    return value


def _check_name(name: Any, parameter: str) -> None:
    try:
        hash(name)
    except Exception:
        raise TypeError(
            f"`{parameter}` must be the name of an axis, as `jax.vmap` takes, which "
            f"can be hashed, but got {shown(name)}."
        ) from None


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "fn_name": check_function,
    "kwargs": check_kwargs,
    "state_tag": check_tag,
    "fn_if_not_exist": check_mode,
    "has_aux": check_has_aux,
}
