"""Which nodes a collective call is about, and what it calls on them."""

import dataclasses
from collections.abc import Iterator, Mapping, Set as AbstractSet
from typing import Any, cast

from .._lanes._arguments import unmatched
from .._text._places import dotted, place
from .._tree._nodes import Walked
from ..filters import Nothing
from ._methods import decide_key, find_method, Method, read_signature
from ._request import Request


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """The methods to call, by index of node, and what to warn about."""

    methods: Mapping[int, Method]
    warnings: tuple[str, ...]


def excluded_nodes(walked: Walked, request: Request) -> frozenset[int]:
    """The indices of the nodes that are not to be called; asks the filter of each."""
    if not walked.survey.nodes:
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
            for index, node in enumerate(walked.nodes)
            if request.node_to_exclude(node.path, node.module)
        ]
    )


def select_nodes(
    walked: Walked, request: Request, excluded: AbstractSet[int]
) -> Selection:
    """Selects the nodes to call; errors for those that can't be."""
    has_key = request.key is not None
    arguments, kwargs = request.arguments, request.kwargs
    methods: dict[int, Method] = {}
    warnings = list(_unmatched(walked, request, excluded))
    shared = None
    if not isinstance(request.fn_name, str):
        signature = read_signature(request.fn_name, bound=False)
        label = f"`{request.label}`"
        gets_key = decide_key(signature, label, arguments, kwargs, has_key)
        shared = Method(None, signature.level, gets_key)
    for index, node in enumerate(walked.nodes):
        if index in excluded:
            continue
        if shared is not None:
            methods[index] = shared
            continue
        where = f"{type(node.module).__name__} at {place(node.path)}"
        found = find_method(node.module, node.path, request.label)
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
        _check_names(walked, methods)
    return Selection(methods, tuple(warnings))


def _unmatched(
    walked: Walked, request: Request, excluded: AbstractSet[int]
) -> Iterator[str]:
    """What to say where no node matches `node_to_exclude`."""
    entries = request.bare_filters["node_to_exclude"]
    if excluded or not entries:
        return
    modules = [node.module for node in walked.nodes]
    known: list[str] = []
    for module in modules:
        tag: Any = getattr(module, "tag", None)
        known += [tag] if isinstance(tag, str) else []
        if isinstance(tag, list | tuple | set | frozenset):
            known += map(str, cast("list[Any]", tag))
    classes = [type(module).__name__ for module in modules]
    yield unmatched("node_to_exclude", entries, "node", known, classes)


def _check_names(walked: Walked, methods: Mapping[int, Method]) -> None:
    names: dict[str, int] = {}
    for index in methods:
        name = dotted(walked.nodes[index].path)
        if name in names:
            pair = walked.nodes[names[name]].path, walked.nodes[index].path
            raise ValueError(
                f"Two nodes have the dotted path {place(pair[0])}, under which "
                f"`has_aux` would file both: {pair[0]} and {pair[1]}. Rename the "
                "dictionary key that has a dot in it."
            )
        names[name] = index
