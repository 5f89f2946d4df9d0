"""A collective call's arguments, in the form that planning needs them."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast, Literal, TypeAlias

import jax
import jax.tree_util as jtu

from .._deltas._delta import known_axes, StateDelta, tags_by_path
from .._lanes._axes import (
    argument_axes,
    Axes,
    check_lengths,
    in_front,
    keyword_axes,
    plain_axes,
    resolve_axes,
)
from .._lanes._spread import without_mesh
from .._layers._reset import reset_parameters
from .._tree._keys import LaneKeys
from .._tree._memo import code_token
from .._tree._nodes import Walked
from ..filters import Nothing, Predicate
from ._excludes import Excludes
from ._kind import ArraySpec, Call, Lanes, spec_of


# The options that say what lanes there are.
LANE_OPTIONS = ("axis_size", "axis_name", "spmd_axis_name", "chunk_size", "sharding")
IfNotExist: TypeAlias = Literal["raise", "pass", "none", "warn"]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A collective call's arguments, checked, under the names that users know; those
    that say what `lanes` there are stand for them, `None` without lanes."""

    fn_name: str | Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    lanes: Lanes | None
    key: Any
    node_to_exclude: Predicate
    state_to_exclude: Predicate
    state_tag: str | None
    fn_if_not_exist: IfNotExist
    has_aux: bool
    # Of filters that are nothing but tags and classes, these.
    bare_filters: Mapping[str, tuple[str | type, ...]]
    where: jax.Array | None = None
    in_axes: Any = None
    args_in_axes: Any = None
    kwargs_in_axes: Any = None

    @property
    def label(self) -> str:
        """The function's name, for messages."""
        if isinstance(self.fn_name, str):
            return self.fn_name
        return getattr(self.fn_name, "__name__", type(self.fn_name).__name__)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments; what is no tuple is one argument."""
        args = self.args
        return cast(tuple[Any, ...], args) if isinstance(args, tuple) else (args,)

    @property
    def size(self) -> int | None:
        return None if self.lanes is None else self.lanes.size

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """In which to trace and run it."""
        is_plain = cast(Any, jax.config).jax_disable_jit
        if is_plain or self.lanes is None or not self.lanes.is_apart:
            return contextlib.nullcontext()
        return without_mesh()


def target_axes(target: Any, walked: Walked, request: Request) -> Axes:
    """The lane axis of every leaf of the target, before its length is checked."""
    if request.lanes is None or request.in_axes is None:
        return (None,) * len(walked.leaves)
    axes = known_axes(request.in_axes, walked.structure)
    if axes is None:
        axes = resolve_axes(target, plain_axes(request.in_axes), "in_axes")
    return axes


def make_call(request: Request, keys: LaneKeys | None) -> tuple[Call, list[Any]]:
    """What all nodes share, and the arrays among the arguments, lanes in front."""
    args, kwargs = request.arguments, request.kwargs
    function = None if isinstance(request.fn_name, str) else request.fn_name
    tree = (function, args, kwargs)
    leaves, structure = jtu.tree_flatten(tree)
    axes: Axes = (None,) * len(leaves)
    if request.lanes is not None:
        size = request.lanes.size
        own = named = ()
        if request.args_in_axes is not None:
            args_axes = argument_axes(request.args, plain_axes(request.args_in_axes))
            own = resolve_axes(args, args_axes, "args_in_axes")
            check_lengths(args, own, size, "args_in_axes")
        if request.kwargs_in_axes is not None:
            kwargs_axes = keyword_axes(kwargs, plain_axes(request.kwargs_in_axes))
            named = resolve_axes(kwargs, kwargs_axes, "kwargs_in_axes")
            check_lengths(kwargs, named, size, "kwargs_in_axes")
        own = own or (None,) * len(jtu.tree_leaves(args))
        named = named or (None,) * len(jtu.tree_leaves(kwargs))
        axes = (None,) * (len(leaves) - len(own) - len(named)) + own + named
    specs = tuple(spec_of(x, axis) for x, axis in zip(leaves, axes, strict=True))
    call = Call(
        label=request.label,
        name=request.fn_name if isinstance(request.fn_name, str) else None,
        arguments=structure,
        specs=specs,
        key=None if keys is None else keys.struct,
        has_aux=request.has_aux,
        lanes=request.lanes,
        admits_stacks=function is reset_parameters,
        extra=code_token(function),
    )
    rows = zip(leaves, axes, specs, strict=True)
    arrays = [in_front(x, axis) for x, axis, s in rows if isinstance(s, ArraySpec)]
    return call, arrays


def excluded_leaves(request: Request) -> Excludes | None:
    """Which leaves get no lane axis; `None` if there is nothing to ask."""
    if request.lanes is None or isinstance(request.state_to_exclude, Nothing):
        return None
    known = request.in_axes
    is_delta = isinstance(known, StateDelta)
    tags = tags_by_path(cast(StateDelta[Any], known)) if is_delta else {}
    return Excludes(request.state_to_exclude, tags, request.state_tag)
