"""Whether the values of fields fit jaxtyping's annotations, and the names that bind.

jaxtyping itself decides on each array and each `PyTree`; this file takes containers,
unions and generic classes apart, every element of them. Names bind across a `Trail` of
what has fit so far: jaxtyping is asked anew about the trail for each further value,
because a name that an alternative of a union bound must not outlive it.
"""

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, TypeAlias

import jax.tree_util as jtu
import jaxtyping

from ._containers import admits, is_set, items_of
from ._hints import (
    Hint,
    hinted_fields,
    HintedField,
    is_array_hint,
    is_record,
    is_tree_hint,
    is_union,
    mentions_variable,
)
from ._nodes import is_tied
from ._paths import walk
from ._places import Path
from ._widened import names_of, widened


@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """A value that has fit, where it stands, and so may have bound names.

    `asked` is the hint that jaxtyping was asked about, see `widened`.
    """

    path: Path
    value: Any
    form: Any
    asked: Any
    names: frozenset[str]


Trail: TypeAlias = tuple[Bound, ...]
# A name that no field has.
_QUESTION = "_question_for_jaxtyping"


class Misfit(Exception):  # noqa: N818
    """A value does not fit.

    `path` leads to it from the module that is checked, `field` is the field whose
    annotation it is that does not fit, and `trail` what had fit before.
    """

    def __init__(self, path: Path, value: Any, hint: Hint, trail: Trail) -> None:
        super().__init__(path)
        self.path = path
        self.value = value
        self.hint = hint
        self.trail = trail
        self.scope: Scope | None = None
        self.field: HintedField | None = None


class _Unresolved(Exception):  # noqa: N818
    """jaxtyping can't tell: a symbolic axis speaks of names that nothing has bound."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    field: HintedField
    value: Any
    hint: Hint
    path: Path


class Scope:
    """Where names of dimensions hold: the fields of one object.

    `twins` maps the identity of a value to another one that may stand for it. `around`
    are the identities of the objects that this one is a part of.
    """

    def __init__(
        self,
        owner: Any,
        fields: Sequence[HintedField],
        twins: Mapping[int, Any],
        around: tuple[int, ...] = (),
    ) -> None:
        self._twins = twins
        self._around = (*around, id(owner))
        self._tasks = [
            _Task(field, getattr(owner, field.name), field.hint, (field.name,))
            for field in fields
            if is_set(owner, field.name)
        ]
        self._later: list[_Task] = []
        self._task: _Task | None = None
        self._atomic = 0
        self._asked: dict[int, tuple[Any, Any]] = {}
        # What an axis of the form `{self.size}` or `{size}` may speak of: jaxtyping
        # takes it from the parameters of the function that it decorates.
        values = {name: getattr(owner, name, None) for name in _field_names(owner)}
        self._values = {**values, "self": owner}
        # Lambdas, here and in `_ask`: a hook that decorates every function on import
        # would give each a scope of its own.
        run = cast(Any, lambda **values: values[_QUESTION]())  # pyright: ignore[reportUnknownLambdaType]
        kind = inspect.Parameter.KEYWORD_ONLY
        names = [*self._values, _QUESTION]
        parameters = [inspect.Parameter(name, kind) for name in names]
        run.__signature__ = inspect.Signature(parameters)
        self._run = cast(Any, jaxtyping).jaxtyped(run, typechecker=None)

    def bind(self) -> Trail:
        """Checks every field; raises `Misfit`."""
        trail: Trail = ()
        waiting = self._tasks
        while waiting:
            self._later = []
            for task in waiting:
                self._task = task
                try:
                    trail = self.fit(task.value, task.hint, trail, task.path)
                except _Unresolved:
                    self._later.append(task)  # What it speaks of may be bound later.
                except Misfit as misfit:
                    if misfit.scope is None:
                        misfit.scope, misfit.field = self, task.field
                    raise
            if [task.path for task in self._later] == [task.path for task in waiting]:
                break
            waiting = self._later
        return trail

    def fit(self, value: Any, hint: Hint, trail: Trail, path: Path) -> Trail:
        """The trail with what the value binds; raises `Misfit`."""
        if is_tied(value):
            return trail
        hint = hint.bare()
        form = hint.form
        if is_array_hint(form) or is_tree_hint(form):
            return self._fit_arrays(value, hint, trail, path)
        if is_union(form):
            return self._fit_union(value, hint, trail, path)
        if is_record(form):
            if not isinstance(value, form):
                raise Misfit(path, value, hint, trail)
            self._fit_within(value, hinted_fields(form), path)
            return trail
        if isinstance(typing.get_origin(form), type):
            return self._fit_generic(value, hint, trail, path)
        if not admits(form, value):
            raise Misfit(path, value, hint, trail)
        return trail

    def accepts(self, value: Any, hint: Hint, trail: Trail) -> bool:
        """Whether a value would fit."""
        try:
            self.fit(value, hint, trail, ("",))
        except (Misfit, _Unresolved):
            return False
        return True

    def _fit_arrays(self, value: Any, hint: Hint, trail: Trail, path: Path) -> Trail:
        form = hint.form
        if id(form) not in self._asked:
            self._asked[id(form)] = (form, widened(form))
        _, asked = self._asked[id(form)]
        names = names_of(form)
        for seen in _views(value, self._twins):
            if self._ask(seen, asked, names, trail):
                new = Bound(path, seen, form, asked, names)
                return trail if _adds_nothing(new, trail) else (*trail, new)
        if is_tree_hint(form):
            if any(map(is_tied, jtu.tree_leaves(value))):
                return trail
            self._raise_within_tree(value, hint, trail, path)
        raise Misfit(path, value, hint, trail)

    def _raise_within_tree(
        self, value: Any, hint: Hint, trail: Trail, path: Path
    ) -> None:
        """Names the first leaf that is to blame, if leaves are arrays."""
        inner = Hint(hint.form.leaftype, hint.variables).bare()
        if not is_array_hint(inner.form) and not is_union(inner.form):
            return
        for below, leaf, is_leaf in walk(value):
            if is_leaf:
                try:
                    trail = self.fit(leaf, inner, trail, (*path, *below))
                except _Unresolved:
                    return

    def _fit_union(self, value: Any, hint: Hint, trail: Trail, path: Path) -> Trail:
        misfits: list[Misfit] = []
        self._atomic += 1  # What can't be told yet puts off the choice as a whole.
        try:
            for arm in hint.parts():
                try:
                    return self.fit(value, arm, trail, path)
                except Misfit as misfit:
                    misfits.append(misfit)
        finally:
            self._atomic -= 1
        # An alternative that fits from outside is to blame for what is within.
        deep = [misfit for misfit in misfits if len(misfit.path) > len(path)]
        raise deep[0] if len(deep) == 1 else Misfit(path, value, hint, trail)

    def _fit_generic(self, value: Any, hint: Hint, trail: Trail, path: Path) -> Trail:
        origin: Any = typing.get_origin(hint.form)
        if not admits(origin, value):
            raise Misfit(path, value, hint, trail)
        items = items_of(value, hint)
        if items is None:
            raise Misfit(path, value, hint, trail)
        for key, item, part in items:
            try:
                trail = self.fit(item, part, trail, (*path, key))
            except _Unresolved:
                if self._atomic or self._task is None:
                    raise
                task = _Task(self._task.field, item, part, (*path, key))
                self._later.append(task)
        if is_record(origin):
            own = [f for f in hinted_fields(origin) if not mentions_variable(f.hint)]
            self._fit_within(value, own, path)
        return trail

    def _fit_within(self, value: Any, own: Sequence[HintedField], path: Path) -> None:
        """Checks an object whose names are its own."""
        if id(value) in self._around:
            return
        try:
            Scope(value, own, self._twins, self._around).bind()
        except Misfit as misfit:
            misfit.path = (*path, *misfit.path)
            raise

    def _ask(self, value: Any, form: Any, names: frozenset[str], trail: Trail) -> bool:
        earlier = [(each.value, each.asked) for each in trail if each.names & names]
        pairs = [*earlier, (value, form)]
        question = lambda: all([isinstance(x, known) for x, known in pairs])  # noqa: C419, E731
        try:
            return self._run(**self._values, **{_QUESTION: question})
        except Exception as error:
            raise _Unresolved from error


def _views(value: Any, twins: Mapping[int, Any]) -> Iterator[Any]:
    """The value; and with others in place of what has a twin."""
    yield value
    try:
        leaves, structure = jtu.tree_flatten(value)
    except Exception:
        return  # A dictionary whose keys can't be sorted, say.
    if any(id(x) in twins for x in leaves):
        yield jtu.tree_unflatten(structure, [twins.get(id(x), x) for x in leaves])


def _adds_nothing(new: Bound, trail: Trail) -> bool:
    if not new.names:
        return True
    shapes = _shapes(new.value)
    return any(x.form is new.form and _shapes(x.value) == shapes for x in trail)


def _shapes(value: Any) -> Any:
    leaves, structure = jtu.tree_flatten(value)
    return structure, [getattr(x, "shape", None) for x in leaves]


def _field_names(owner: Any) -> list[str]:
    is_record = dataclasses.is_dataclass(owner)
    names = [field.name for field in dataclasses.fields(owner)] if is_record else []
    return [name for name in names if name != "self"]
