"""Whether the values of fields fit jaxtyping's annotations, and the names that bind.

jaxtyping itself decides on each array and each `PyTree`; this file takes containers,
unions and generic classes apart, every element of them. Names bind across a `Trail` of
what has fit so far: jaxtyping is asked anew about the trail for each further value,
because a name that an alternative of a union bound must not outlive it.
"""

import dataclasses
import inspect
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import jaxtyping
import numpy as np

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
from ._paths import Key, Path, walk


@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """A value that has fit, where it stands, and so may have bound names."""

    path: Path
    value: Any
    form: Any


Trail: TypeAlias = tuple[Bound, ...]


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


class Scope:
    """Where names of dimensions hold: the fields of one object."""

    def __init__(self, owner: Any, fields: Sequence[HintedField]) -> None:
        self.owner = owner
        self.fields = tuple(field for field in fields if _is_set(owner, field.name))
        # What an axis of the form `{self.size}` or `{size}` may speak of: jaxtyping
        # takes it from the parameters of the function that it decorates.
        values = {
            field.name: getattr(owner, field.name, None) for field in _all_fields(owner)
        }
        self._values = {"self": owner, **values}

        # Lambdas, here and in `_ask`: a hook that decorates every function on import
        # would give each a scope of its own.
        run = cast(Any, lambda **values: values["_question"]())  # pyright: ignore[reportUnknownLambdaType]
        names = [*self._values, "_question"]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(name, kind) for name in names]
        run.__signature__ = inspect.Signature(parameters)
        self._run = cast(Any, jaxtyping).jaxtyped(run, typechecker=None)

    def bind(self) -> Trail:
        """Checks every field; raises `Misfit`."""
        trail: Trail = ()
        waiting = self.fields
        while waiting:
            later: list[HintedField] = []
            for field in waiting:
                value = getattr(self.owner, field.name)
                try:
                    trail = self.fit(value, field.hint, trail, (field.name,))
                except _Unresolved:
                    later.append(field)  # A later field may bind what it speaks of.
                except Misfit as misfit:
                    if misfit.scope is None:
                        misfit.scope, misfit.field = self, field
                    raise
            if len(later) == len(waiting):
                break
            waiting = tuple(later)
        return trail

    def fit(self, value: Any, hint: Hint, trail: Trail, path: Path) -> Trail:
        """The trail with what the value binds; raises `Misfit`."""
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
        if not _admits(form, value):
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
        for seen in _views(value):
            if self._ask(seen, form, trail):
                new = Bound(path, seen, form)
                return trail if _adds_nothing(new, trail) else (*trail, new)
        if is_tree_hint(form):
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
        for arm in hint.parts():
            try:
                return self.fit(value, arm, trail, path)
            except Misfit as misfit:
                misfits.append(misfit)
        # An alternative that fits from outside is to blame for what is within.
        deep = [misfit for misfit in misfits if len(misfit.path) > len(path)]
        raise deep[0] if len(deep) == 1 else Misfit(path, value, hint, trail)

    def _fit_generic(self, value: Any, hint: Hint, trail: Trail, path: Path) -> Trail:
        origin: Any = typing.get_origin(hint.form)
        if not _admits(origin, value):
            raise Misfit(path, value, hint, trail)
        for key, item, part in _items(value, hint, trail, path):
            trail = self.fit(item, part, trail, (*path, key))
        if is_record(origin):
            own = [f for f in hinted_fields(origin) if not mentions_variable(f.hint)]
            self._fit_within(value, own, path)
        return trail

    def _fit_within(self, value: Any, own: Sequence[HintedField], path: Path) -> None:
        """Checks an object whose names are its own."""
        try:
            Scope(value, own).bind()
        except Misfit as misfit:
            misfit.path = (*path, *misfit.path)
            raise

    def _ask(self, value: Any, form: Any, trail: Trail) -> bool:
        pairs = [*((each.value, each.form) for each in trail), (value, form)]
        question = lambda: all([isinstance(x, known) for x, known in pairs])  # noqa: C419, E731
        try:
            return self._run(**self._values, _question=question)
        except Exception as error:
            raise _Unresolved from error


def _items(
    value: Any, hint: Hint, trail: Trail, path: Path
) -> Iterator[tuple[Key, Any, Hint]]:
    """What a value of a generic class holds, and the hint of each item."""
    origin: Any = typing.get_origin(hint.form)
    parts = hint.parts()
    if issubclass(origin, tuple) and not is_record(origin):
        if len(parts) == 2 and parts[1].form is ...:
            parts = parts[:1] * len(value)
        if any(typing.get_origin(part.form) is typing.Unpack for part in parts):
            return
        if len(parts) != len(value):
            raise Misfit(path, value, hint, trail)
        rows = enumerate(zip(value, parts, strict=True))
        yield from ((index, item, part) for index, (item, part) in rows)
    elif issubclass(origin, Mapping):
        for key, item in value.items():
            yield _plain(key), item, parts[-1]
    elif is_record(origin) or issubclass(origin, eqx.Module):
        # A module's other fields are checked when it is called itself.
        for field in hinted_fields(cast("type[Any]", origin), parts):
            if mentions_variable(field.hint) and _is_set(value, field.name):
                yield field.name, getattr(value, field.name), field.hint
    elif len(parts) == 1 and isinstance(value, Collection):
        # What is no collection, a generator say, would be used up by a look.
        items = cast(Collection[Any], value)
        yield from ((index, item, parts[0]) for index, item in enumerate(items))


def _plain(key: Any) -> Key:
    return key if isinstance(key, str | int) else str(key)


def _admits(form: Any, value: Any) -> bool:
    """Whether a hint that is none of jaxtyping's lets a value pass."""
    if form is None:
        form = type(None)
    if typing.get_origin(form) is typing.Literal:
        return value in typing.get_args(form)
    if not isinstance(form, type) or form is object:
        return True
    if eqx.is_array(value) and issubclass(form, jax.Array | np.ndarray):
        return True  # A lane does not tell one kind of array from another.
    try:
        return isinstance(value, form)
    except TypeError:
        return True  # A protocol that can't be asked.


def _views(value: Any) -> Iterator[Any]:
    """The value; and with its arrays as NumPy's, which a trace makes JAX's."""
    yield value
    leaves, structure = jtu.tree_flatten(value)
    if any(isinstance(x, jax.Array) for x in leaves):
        yield jtu.tree_unflatten(structure, [_as_numpy(x) for x in leaves])


def _as_numpy(x: Any) -> Any:
    if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)


def _adds_nothing(new: Bound, trail: Trail) -> bool:
    if not is_array_hint(new.form):
        return False
    shape = getattr(new.value, "shape", None)
    return not any(map(str.isalpha, new.form.dim_str)) or any(
        each.form is new.form and getattr(each.value, "shape", None) == shape
        for each in trail
    )


def _all_fields(owner: Any) -> tuple[Any, ...]:
    if not dataclasses.is_dataclass(owner):
        return ()
    names = dataclasses.fields(owner)
    return tuple(field for field in names if field.name != "self")


def _is_set(owner: Any, name: str) -> bool:
    try:
        value = getattr(owner, name)
    except AttributeError:
        return False
    return not is_tied(value)
