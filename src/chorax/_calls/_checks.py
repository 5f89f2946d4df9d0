"""Checks of the arguments of collective calls, made before all work."""

from collections.abc import Mapping
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
    """Checks the arguments of a collective call.

    `options` has all of them by name: only signatures list them.
    """
    rest = dict(options)
    named = {name: rest.pop(name, None) for name in LANE_OPTIONS}
    lanes, where = None, rest.pop("where", None)
    if has_lanes:
        if rest["in_axes"] is not None:
            named["axis_size"] = _size_of(target, rest["in_axes"], named["axis_size"])
        if named["axis_size"] is None and is_one_size(rest["args"]):
            raise ValueError(
                "`axis_size` must be a positive integer, the number of lanes, but it "
                f"is missing. {size_question(rest['args'])}"
            )
        lanes = _check_lanes(named)
    bare = {name: bare_entries(rest[name]) for name in _FILTERS}
    _check_types(rest)
    rest["kwargs"] = dict[str, Any](rest["kwargs"] or {})
    for name in _FILTERS:
        rest[name] = check_filter(rest[name], name)
    if lanes is not None and where is not None:
        rest["where"] = check_mask(where, lanes.size, "where")
    return Request(lanes=lanes, bare_filters=bare, **rest)


def _size_of(target: Any, in_axes: Any, given: Any) -> Any:
    """The number of lanes: as given, or that of the leaves that `in_axes` maps, or of a
    delta that maps none."""
    of_delta = in_axes.axis_size if isinstance(in_axes, AxesHolder) else None
    if given is not None:
        kind = cast("type[Any]", type(given))
        is_integer = issubclass(kind, int | np.integer)
        if of_delta is None or not is_integer or of_delta == given:
            return given
    leaves, structure = jtu.tree_flatten(target)
    axes = resolve_axes(target, plain_axes(in_axes), "in_axes")
    size = agreed_count(leaves, structure, axes, "in_axes")
    if given is not None and size is None:
        raise ValueError(
            f"`axis_size` is {short(given)}, but the `StateDelta` that was given as "
            f"`in_axes` has {of_delta} lanes. Leave `axis_size` out, or give the delta "
            "of the call that made these lanes."
        )
    return of_delta if size is None else size if given is None else given


def _check_types(options: Mapping[str, Any]) -> None:
    """Checks the options that do not depend on the number of lanes."""

    def require(is_right: bool, expected: str, name: str) -> None:
        if not is_right:
            got = shown(options[name])
            raise TypeError(f"`{name}` must be {expected}, but got {got}.")

    function, kwargs, tag = (options[x] for x in ("fn_name", "kwargs", "state_tag"))
    expected = "the name of a method or a callable `(node, *args, **kwargs) -> node`"
    require(isinstance(function, str) or callable(function), expected, "fn_name")
    is_mapping = kwargs is None or isinstance(kwargs, Mapping)
    require(is_mapping, "a mapping or `None`", "kwargs")
    given = cast("Mapping[Any, Any]", kwargs or {})
    names = [name for name in given if not isinstance(name, str)]
    if names:
        raise TypeError(f"`kwargs` must have `str` keys, but has {short(names)}.")
    is_tag = tag is None or isinstance(tag, str)
    require(is_tag, "a `str` or `None`", "state_tag")
    mode, modes = options["fn_if_not_exist"], get_args(IfNotExist)
    if not isinstance(mode, str) or mode not in modes:
        raise ValueError(
            f"`fn_if_not_exist` must be one of {', '.join(map(repr, modes))}, but got "
            f"{short(mode)}."
        )
    require(isinstance(options["has_aux"], bool), "`True` or `False`", "has_aux")


def _check_lanes(options: Mapping[str, Any]) -> Lanes:
    """The lanes of a batched call, checked."""
    axis_size, axis_name, spmd_axis_name, chunk_size, sharding = (
        options[name] for name in LANE_OPTIONS
    )
    size = check_positive(axis_size, "axis_size", "the number of lanes")
    names = {"axis_name": axis_name, "spmd_axis_name": spmd_axis_name}
    for option, name in names.items():
        try:
            hash(name)
        except Exception:
            raise TypeError(
                f"`{option}` must be the name of an axis, as `jax.vmap` takes, which "
                f"can be hashed, but got {shown(name)}."
            ) from None
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
