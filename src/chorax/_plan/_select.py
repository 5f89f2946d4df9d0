"""Which nodes a collective call is about, and what it calls on them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax.tree_util as jtu

from .._deltas._delta import known_axes
from .._lanes._arguments import unmatched
from .._lanes._axes import (
    argument_axes,
    Axes,
    check_leaf_lengths,
    check_lengths,
    in_front,
    keyword_axes,
    plain_axes,
    resolve_axes,
)
from .._layers._reset import reset_parameters
from .._text._places import dotted, place
from .._tree._holder import AxesHolder
from .._tree._keys import lane_keys, LaneKeys
from .._tree._memo import code_token
from .._tree._nodes import Tree
from ..filters import Nothing
from ._excludes import Excludes
from ._kind import ArraySpec, Call, spec_of
from ._methods import decide_key, find_method, Method, read_signature
from ._request import Request


@dataclasses.dataclass(frozen=True, eq=False)
class Calls:
    """What is called on which nodes of a target.

    `axes` are the lane axes of the target's leaves. `call` is what all nodes share, and
    `arrays` are the arrays among the arguments, lanes in front. `excluded` are the
    indices of the nodes that `node_to_exclude` keeps out; `excludes` decides which
    leaves get no lane axis, and is `None` if there is nothing to decide.
    """

    tree: Tree
    request: Request
    keys: LaneKeys | None
    axes: Axes
    call: Call
    arrays: tuple[Any, ...]
    excluded: frozenset[int]
    excludes: Excludes | None


def select(tree: Tree, request: Request) -> Calls:
    """Brings a target and the arguments of a call together.

    The methods of nodes are looked up by `find_methods`: a call that was made before
    does without.
    """
    keys = lane_keys(request.key, request.size)
    axes = _target_axes(tree, request)
    call, arrays = _shared(request, keys)
    excluded = _excluded_nodes(tree, request)
    return Calls(tree, request, keys, axes, call, arrays, excluded, _excludes(request))


def find_methods(calls: Calls) -> tuple[Mapping[int, Method], tuple[str, ...]]:
    """The methods to call, by index of node, and what to warn about; errors for nodes
    that can't be called."""
    tree, request = calls.tree, calls.request
    if request.lanes is not None:
        size = request.lanes.size
        check_leaf_lengths(tree.leaves, tree.structure, calls.axes, size, "in_axes")
    has_key = request.key is not None
    arguments, kwargs = request.arguments, request.kwargs
    methods: dict[int, Method] = {}
    warnings = list(_unmatched(calls))
    shared = None
    if not isinstance(request.fn_name, str):
        signature = read_signature(request.fn_name, bound=False)
        label = f"`{request.label}`"
        gets_key = decide_key(signature, label, arguments, kwargs, has_key)
        shared = Method(None, signature.level, gets_key)
    for index, node in enumerate(tree.nodes):
        if index in calls.excluded:
            continue
        if shared is not None:
            methods[index] = shared
            continue
        where = f"{node.cls.__name__} at {place(node.path)}"
        found = find_method(tree.modules[node.index], node.path, request.label)
        if found is None:
            message = f"{where} has no method `{request.label}`"
            if request.fn_if_not_exist == "raise":
                raise AttributeError(
                    f"{message}. Define it, exclude the node by `node_to_exclude`, or "
                    "pass `fn_if_not_exist='pass'` to skip such nodes."
                )
            if request.fn_if_not_exist == "warn":
                warnings.append(f"{message}; it is skipped.")
            continue
        definition, signature = found
        label = f"`{request.label}` of {where}"
        gets_key = decide_key(signature, label, arguments, kwargs, has_key)
        methods[index] = Method(definition, signature.level, gets_key)
    if request.has_aux:
        _check_names(tree, methods)
    return methods, tuple(warnings)


def _target_axes(tree: Tree, request: Request) -> Axes:
    """The lane axis of every leaf of the target, before its length is checked."""
    if request.lanes is None or request.in_axes is None:
        return (None,) * len(tree.leaves)
    axes = known_axes(request.in_axes, tree.structure)
    if axes is None:
        axes = resolve_axes(tree.target, plain_axes(request.in_axes), "in_axes")
    return axes


def _shared(request: Request, keys: LaneKeys | None) -> tuple[Call, tuple[Any, ...]]:
    """What all nodes share, and the arrays among the arguments, lanes in front."""
    args, kwargs = request.arguments, request.kwargs
    function = None if isinstance(request.fn_name, str) else request.fn_name
    leaves, structure = jtu.tree_flatten((function, args, kwargs))
    own: Axes = (None,) * len(jtu.tree_leaves(args))
    named: Axes = (None,) * len(jtu.tree_leaves(kwargs))
    if request.lanes is not None and request.args_in_axes is not None:
        in_axes = argument_axes(request.args, plain_axes(request.args_in_axes))
        own = _checked_axes(args, in_axes, request.lanes.size, "args_in_axes")
    if request.lanes is not None and request.kwargs_in_axes is not None:
        in_axes = keyword_axes(kwargs, plain_axes(request.kwargs_in_axes))
        named = _checked_axes(kwargs, in_axes, request.lanes.size, "kwargs_in_axes")
    axes = (*[None] * (len(leaves) - len(own) - len(named)), *own, *named)
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
    return call, tuple(arrays)


def _checked_axes(tree: Any, in_axes: Any, size: int, name: str) -> Axes:
    axes = resolve_axes(tree, in_axes, name)
    check_lengths(tree, axes, size, name)
    return axes


def _excluded_nodes(tree: Tree, request: Request) -> frozenset[int]:
    """The indices of the nodes that are not called; asks the filter about each."""
    if not tree.nodes:
        raise ValueError(
            "The target holds no `eqx.Module` to call anything on. Pass a module, or a "
            "PyTree of modules."
        )
    if isinstance(request.node_to_exclude, Nothing):
        return frozenset()
    # A list: in a generator a filter's `StopIteration` would become another error.
    return frozenset(
        [
            index
            for index, node in enumerate(tree.nodes)
            if request.node_to_exclude(node.path, tree.modules[node.index])
        ]
    )


def _excludes(request: Request) -> Excludes | None:
    if request.lanes is None or isinstance(request.state_to_exclude, Nothing):
        return None
    known = request.in_axes
    tags = dict(known.path_tags) if isinstance(known, AxesHolder) else {}
    return Excludes(request.state_to_exclude, tags, request.state_tag)


def _unmatched(calls: Calls) -> Iterator[str]:
    """What to say where no node matches `node_to_exclude`."""
    entries = calls.request.bare_filters["node_to_exclude"]
    if calls.excluded or not entries:
        return
    known: list[str] = []
    for node in calls.tree.nodes:
        tag: Any = getattr(calls.tree.modules[node.index], "tag", None)
        known += [tag] if isinstance(tag, str) else []
        if isinstance(tag, list | tuple | set | frozenset):
            known += map(str, cast("list[Any]", tag))
    classes = [node.cls.__name__ for node in calls.tree.nodes]
    yield unmatched("node_to_exclude", entries, "node", known, classes)


def _check_names(tree: Tree, methods: Mapping[int, Method]) -> None:
    names: dict[str, int] = {}
    for index in methods:
        name = dotted(tree.nodes[index].path)
        if name in names:
            pair = tree.nodes[names[name]].path, tree.nodes[index].path
            raise ValueError(
                f"Two nodes have the dotted path {place(pair[0])}, under which "
                f"`has_aux` would file both: {pair[0]} and {pair[1]}. Rename the "
                "dictionary key that has a dot in it."
            )
        names[name] = index
