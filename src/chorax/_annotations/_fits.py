"""Whether the values of fields fit their annotations.

jaxtyping decides about each array; trees, containers, unions and generic classes are
taken apart here, every element of them. The names that bind are a value that is handed
on, so that what an alternative of a union has bound is gone with it.
"""

import contextlib
import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, cast, NoReturn, TypeAlias

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
from ._names import Names, of_any_kind, Unresolved


# A value, the hint that speaks of it, and where it stands.
_Task: TypeAlias = tuple[Any, Any, Path]
_CONTAINERS = ("builtins", "collections", "collections.abc")


@dataclasses.dataclass(eq=False)
class Misfit(Exception):  # noqa: N818
    """A value does not fit.

    `path` leads to it from the module that is checked; `names` are what had been bound
    before; `accepts` tells whether another value would fit there; `field` is the field
    whose annotation it is that does not fit.
    """

    path: Path
    value: Any
    names: Names
    accepts: Callable[[Any], bool]
    field: HintedField | None = None


def check_fields(
    owner: Any, fields: Sequence[HintedField], around: tuple[int, ...] = ()
) -> None:
    """Raises `Misfit` for the first field that does not fit; names hold across all.

    `around` are the identities of the objects that this one is a part of.
    """
    there = {field.name: field for field in fields if hasattr(owner, field.name)}
    tasks = [(getattr(owner, name), x.form, (name,)) for name, x in there.items()]
    # What an axis of the form `{self.size}` or `{size}` may speak of.
    given = {**getattr(owner, "__dict__", {}), "self": owner}
    try:
        with contextlib.suppress(Unresolved):  # What can't be told is no fault.
            _Scope(given, (*around, id(owner))).fit_all(tasks, Names())
    except Misfit as misfit:
        if misfit.field is None:
            misfit.field = there[cast(str, misfit.path[0])]
        raise


@dataclasses.dataclass(frozen=True, eq=False)
class _Scope:
    """Where names hold: the fields of one object.

    `leaf` and `is_loose` are as `of_any_kind` takes them.
    """

    given: Mapping[str, Any]
    around: tuple[int, ...]
    leaf: str | None = None
    is_loose: bool = False

    def fit_all(self, tasks: Sequence[_Task], names: Names) -> Names:
        """The names with those that the values bind."""
        while True:
            later: list[_Task] = []
            count = names.count
            for task in tasks:
                try:
                    names = self._fit(*task, names)
                except Unresolved as error:
                    names = error.names
                    later.append(task)
            if not later:
                return names
            if names.count == count:
                raise Unresolved(names)
            tasks = later  # What they speak of may be bound by now.

    def _fit(self, value: Any, form: Any, path: Path, names: Names) -> Names:
        form = bare(form)
        if is_tied(value):
            return names
        if is_array_hint(form):
            forms = of_any_kind(form, self.leaf, self.is_loose)
            found = names.ask(value, forms, self.given, path)
            return found or self._raise(value, form, path, names)
        if is_tree_hint(form):
            return self._fit_tree(value, form, path, names)
        if is_union(form):
            return self._fit_union(value, form, path, names)
        items = _items(value, form) if self._admits(value, form) else None
        if items is None:
            self._raise(value, form, path, names)
        kind = typing.get_origin(form) or form
        if is_record(kind) and id(value) not in self.around:
            # The names of its fields are its own, but for what its parameters say.
            fields = hinted_fields(kind)
            own = [field for field in fields if kind is form or not field.is_open]
            try:
                check_fields(value, own, self.around)
            except Misfit as misfit:
                misfit.path = (*path, *misfit.path)
                raise
        return self.fit_all([(x, part, (*path, key)) for key, x, part in items], names)

    def _fit_tree(self, value: Any, form: Any, path: Path, names: Names) -> Names:
        if value is None:
            return names  # Not made so far: jaxtyping does not take it for a structure.
        leaf, tree = bare(form.leaftype), cast(Any, jaxtyping).PyTree
        # What ends where is for the kinds of values to say, and not for their shapes.
        loose = dataclasses.replace(self, leaf="", is_loose=True)
        accepts = functools.partial(loose._accepts, leaf, path, names)
        try:
            is_leaf = None if leaf is Any else accepts
            leaves, structure = jtu.tree_flatten(value, is_leaf=is_leaf)
            below = leaf_paths(structure)
        except Exception as error:  # The keys of a dictionary can't be sorted, say.
            raise Unresolved(names) from error
        for index, (x, at) in enumerate(zip(leaves, below, strict=True)):
            name = self.leaf or ""
            if form.structure is not None:
                name = re.sub(r"\W", "_", f"{index} of {form.structure}")
            scope = dataclasses.replace(self, leaf=name)
            names = scope._fit(x, leaf, (*path, *at), names)
        if form.structure is None:
            return names
        skeleton = jtu.tree_unflatten(structure, [0] * len(leaves))
        found = names.ask(skeleton, tree[Any, form.structure], self.given, path)
        return found or self._raise(value, form, path, names)

    def _fit_union(self, value: Any, form: Any, path: Path, names: Names) -> Names:
        misfits: list[Misfit] = []
        for arm in typing.get_args(form):
            try:
                return self._fit(value, arm, path, names)
            except Misfit as misfit:
                misfits.append(misfit)
            except Unresolved as error:
                # The choice is put off, and with it what this alternative has bound.
                raise Unresolved(names) from error
        # An alternative that fits from outside is to blame for what is within.
        deep = [misfit for misfit in misfits if len(misfit.path) > len(path)]
        if len(deep) == 1:
            raise deep[0]
        self._raise(value, form, path, names)

    def _admits(self, value: Any, form: Any) -> bool:
        """Whether a hint that is not jaxtyping's lets a value pass, from outside."""
        kind = typing.get_origin(form) or form
        if kind is typing.Literal:
            return not eqx.is_array(value) and value in typing.get_args(form)
        if not isinstance(kind, type):
            return True
        try:
            return isinstance(value, of_any_kind(kind, self.leaf))
        except Exception:
            return True  # Its author's class can't be asked.

    def _raise(self, value: Any, form: Any, path: Path, names: Names) -> NoReturn:
        accepts = functools.partial(self._accepts, form, path, names)
        raise Misfit(path, value, names, accepts)

    def _accepts(self, form: Any, path: Path, names: Names, value: Any) -> bool:
        try:
            self._fit(value, form, path, names)
        except (Misfit, Unresolved):
            return False
        return True


def _items(value: Any, form: Any) -> Iterable[tuple[Key, Any, Any]] | None:
    """What a value of a generic class holds: where, what, and the hint that speaks of
    it; `None` if it does not hold so many.

    Nothing is known of what the parameters of somebody's own class mean, unless it is a
    dataclass, a `NamedTuple` or a module.
    """
    kind: Any = typing.get_origin(form)
    parts = typing.get_args(form)
    if is_record(kind) or (isinstance(kind, type) and issubclass(kind, eqx.Module)):
        # A module's other fields are checked when it is called itself.
        fields = [x for x in hinted_fields(kind, parts) if x.is_open]
        held = [x for x in fields if hasattr(value, x.name)]
        return [(x.name, getattr(value, x.name), x.form) for x in held]
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
    # What is no collection, a generator say, would be used up by a look.
    if len(parts) != 1 or not isinstance(value, Collection) or eqx.is_array(value):
        return []
    return [(i, x, parts[0]) for i, x in enumerate(cast(Collection[Any], value))]
