"""Whether the values of fields fit their annotations.

jaxtyping decides about each array; trees, containers, unions and generic classes are
taken apart here, down to every element. What is known of names is a value that is
passed on, so that whatever one member of a union binds is gone if that member fails.
"""

import contextlib
import dataclasses
import re
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast, TypeAlias

import equinox as eqx
import jax.tree_util as jtu
import jaxtyping

from .._text._places import Key, Path
from .._tree._nodes import is_tied
from .._tree._paths import leaf_paths
from ._hints import (
    bare,
    hinted_fields,
    HintedField,
    is_array_hint,
    is_record,
    is_tree_hint,
    is_union,
)
from ._scope import is_instance, lane_hints, Scope, Unresolved


# A value, its hint, its path, and the leaf of a tree that it is in, as in `lane_hints`.
_Task: TypeAlias = tuple[Any, Any, Path, str | None]
_CONTAINERS = ("builtins", "collections", "collections.abc")


class Misfit(Exception):  # noqa: N818
    """A value does not fit its hint.

    `path` leads to it from the module that is checked, `scope` is what was known then,
    and `field` is the field whose annotation it does not fit.
    """

    def __init__(self, task: _Task, scope: Scope) -> None:
        super().__init__()
        self.value, self._hint, self.path, self._leaf = task
        self.scope = scope
        self.field: HintedField | None = None

    def accepts(self, value: Any) -> bool:
        """Whether another value would fit there."""
        return _fits((value, self._hint, self.path, self._leaf), self.scope)


def check_fields(
    owner: Any, fields: Sequence[HintedField], around: tuple[int, ...] = ()
) -> None:
    """Raises `Misfit` for the first field that does not fit; names hold across all.

    `around` has the identities of the objects that contain this one.
    """
    there = {field.name: field for field in fields if hasattr(owner, field.name)}
    tasks = [(getattr(owner, name), x.hint, (name,), None) for name, x in there.items()]
    # What an axis of the form `{self.size}` or `{size}` may use.
    variables = {**getattr(owner, "__dict__", {}), "self": owner}
    scope = Scope(({}, {}, {}, variables), (*around, id(owner)), {})
    try:
        with contextlib.suppress(Unresolved):  # What can't be told is not an error.
            _fit_all(tasks, scope)
    except Misfit as misfit:
        if misfit.field is None:
            misfit.field = there[cast(str, misfit.path[0])]
        raise


def _fit_all(tasks: Sequence[_Task], scope: Scope) -> Scope:
    """The scope with what the values bind."""
    while tasks:
        count, unresolved = scope.count, list[_Task]()
        pending = [*reversed(tasks)]
        while pending:
            task = pending.pop()
            try:
                scope, parts = _fit(task, scope)
                pending += reversed(parts)
            except Unresolved as error:
                scope = error.scope
                unresolved.append(task)
        if unresolved and scope.count == count:
            raise Unresolved(scope)
        tasks = unresolved  # The names that they use may be bound by now.
    return scope


def _fit(task: _Task, scope: Scope) -> tuple[Scope, list[_Task]]:
    """The scope with what a value binds, and its parts that are still to be checked."""
    value, hint, path, leaf = task
    hint = bare(hint)
    if is_tied(value):
        return scope, []
    if is_array_hint(hint):
        found = scope.bind(value, lane_hints(hint, leaf, scope.is_loose), path)
        if found is None:
            raise Misfit(task, scope)
        return found, []
    if is_tree_hint(hint):
        return _fit_tree(value, hint, task, scope), []
    if is_union(hint):
        return _fit_union(typing.get_args(hint), task, scope), []
    items = _items(value, hint) if _admits(value, hint, leaf) else None
    if items is None:
        raise Misfit(task, scope)
    kind = typing.get_origin(hint) or hint
    if is_record(kind) and id(value) not in scope.around:
        # Its fields have names of their own, except where its parameters speak.
        own = [x for x in hinted_fields(kind) if kind is hint or not x.is_open]
        try:
            check_fields(value, own, scope.around)
        except Misfit as misfit:
            misfit.path = (*path, *misfit.path)
            raise
    return scope, [(x, part, (*path, key), leaf) for key, x, part in items]


def _fit_tree(tree: Any, hint: Any, task: _Task, scope: Scope) -> Scope:
    if tree is None:
        return scope  # Not made yet: jaxtyping does not compare its structure either.
    _, _, path, outer = task
    item, name = bare(hint.leaftype), hint.structure
    loose = dataclasses.replace(scope, is_loose=True)

    def is_leaf(x: Any) -> bool:
        # Where a tree ends depends on the types of its values, not on their shapes.
        return item is not Any and _fits((x, item, path, ""), loose)

    try:
        leaves, structure = jtu.tree_flatten(tree, is_leaf=is_leaf)
        below = leaf_paths(structure)
    except Exception as error:  # The keys of a dictionary can't be sorted, say.
        raise Unresolved(scope) from error
    for index, (x, rest) in enumerate(zip(leaves, below, strict=True)):
        leaf = outer or ""
        if name is not None:
            leaf = re.sub(r"\W", "_", f"{index} of {name}")
        scope = _fit_all([(x, item, (*path, *rest), leaf)], scope)
    if name is None:
        return scope
    skeleton = jtu.tree_unflatten(structure, [0] * len(leaves))
    of_any = cast(Any, jaxtyping).PyTree[Any, name]
    found = scope.bind(skeleton, (of_any,), path)
    if found is None:
        raise Misfit(task, scope)
    return found


def _fit_union(members: Sequence[Any], task: _Task, scope: Scope) -> Scope:
    value, _, path, leaf = task
    misfits: list[Misfit] = []
    for member in members:
        try:
            return _fit_all([(value, member, path, leaf)], scope)
        except Misfit as misfit:
            misfits.append(misfit)
        except Unresolved as error:
            # The choice is put off, and what this member has bound is dropped.
            raise Unresolved(scope) from error
    # If one member fits from outside, what does not fit inside is the fault.
    inside = [misfit for misfit in misfits if len(misfit.path) > len(path)]
    if len(inside) == 1:
        raise inside[0]
    raise Misfit(task, scope)


def _admits(value: Any, hint: Any, leaf: str | None) -> bool:
    """Whether a hint that is not jaxtyping's lets a value pass, from outside."""
    kind = typing.get_origin(hint) or hint
    if kind is typing.Literal:
        return not eqx.is_array(value) and value in typing.get_args(hint)
    if not isinstance(kind, type):
        return True
    try:
        return is_instance(value, lane_hints(kind, leaf))
    except Exception:
        return True  # A class whose own instance check fails.


def _fits(task: _Task, scope: Scope) -> bool:
    try:
        _fit_all([task], scope)
    except (Misfit, Unresolved):
        return False
    return True


def _items(value: Any, hint: Any) -> Iterable[tuple[Key, Any, Any]] | None:
    """The parts of a value of a generic class: key, part and its hint; `None` if it has
    another number of them.

    What the parameters of somebody's own class mean is unknown, unless it is a
    dataclass, a `NamedTuple` or a module.
    """
    kind: Any = typing.get_origin(hint)
    parts = typing.get_args(hint)
    if is_record(kind) or (isinstance(kind, type) and issubclass(kind, eqx.Module)):
        # A module's other fields are checked when it is called itself.
        names = {x.name: x.hint for x in hinted_fields(hint) if x.is_open}
        return [
            (k, getattr(value, k), x) for k, x in names.items() if hasattr(value, k)
        ]
    if kind is None or kind.__module__ not in _CONTAINERS:
        return []
    if issubclass(kind, tuple):
        if parts[1:] == (...,):
            parts = parts[:1] * len(value)
        if any(typing.get_origin(part) is typing.Unpack for part in parts):
            return []
        rows = zip(range(len(value)), value, parts, strict=False)
        return rows if len(parts) == len(value) else None
    if issubclass(kind, Mapping):
        pairs = value.items() if len(parts) == 2 else ()
        return [
            (k if isinstance(k, str | int) else str(k), x, parts[1]) for k, x in pairs
        ]
    # An iterator that is not a collection, such as a generator, would be used up.
    if len(parts) != 1 or not isinstance(value, Collection) or eqx.is_array(value):
        return []
    return [(i, x, parts[0]) for i, x in enumerate(cast(Collection[Any], value))]
