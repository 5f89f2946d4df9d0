"""What the fields of a class are annotated with.

Annotations are resolved one by one, each in the namespace of the class that wrote it,
so that one that can't be resolved (its import stands under `TYPE_CHECKING`, say) takes
no other with it. Type variables are replaced by what they stand for right away.
"""

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, cast

import equinox as eqx
import jaxtyping


# No annotation has more aliases of aliases, but for those that end in themselves.
_DEEPEST = 64
# What speaks of other things than the values of a field.
_NO_VALUES = (cast(Any, collections.abc).Callable, type, typing.Literal)


@dataclasses.dataclass(frozen=True, eq=False)
class HintedField:
    """A field of a class; `owner` is the class that annotates it.

    `is_open` is whether its hint speaks of type parameters of that class, so that it is
    for whoever names the class to say what the field holds.
    """

    name: str
    form: Any
    owner: type
    is_open: bool

    def written(self) -> str:
        """The annotation, as Python shows it."""
        raw = inspect.get_annotations(self.owner)[self.name]
        text = raw if isinstance(raw, str) else inspect.formatannotation(raw)
        # Without the modules of names, but for what is in quotes.
        quoted = r"""('[^']*'|"[^"]*")"""
        text = re.sub(quoted + r"|(?:\w+\.)+", lambda match: match[1] or "", text)
        return text.replace("'", '"')


def hinted_fields(cls: type, arguments: Sequence[Any] = ()) -> list[HintedField]:
    """The fields of a class that jaxtyping has something to say on.

    `arguments` are what the parameters of a generic class stand for.
    """
    return [x for x in _fields(cls, arguments) if _speaks(x.form)]


@functools.lru_cache(maxsize=1024)
def is_annotated(cls: type) -> bool:
    """Whether it is a module's class that jaxtyping has something to say on."""
    return issubclass(cls, eqx.Module) and bool(hinted_fields(cls))


def bare(form: Any) -> Any:
    """The hint without what only wraps it: aliases, `Annotated`, type variables."""
    # What `type X = ...` stands for is evaluated when it is looked into, and may speak
    # of names that are there for type checkers only, or of itself.
    with contextlib.suppress(Exception):
        for _ in range(_DEEPEST):
            inner = _unwrapped(form)
            if inner is form:
                return form
            form = inner
    return Any


def is_record(cls: Any) -> bool:
    """Whether it is a class: a dataclass or a `NamedTuple`, but no module."""
    if not isinstance(cls, type) or issubclass(cls, eqx.Module):
        return False
    return bool(_field_names(cast("type[Any]", cls)))


def is_array_hint(form: Any) -> bool:
    """Whether it is jaxtyping's annotation of an array: `Float[Array, "n"]`."""
    return isinstance(form, type) and issubclass(form, jaxtyping.AbstractArray)


def is_tree_hint(form: Any) -> bool:
    """Whether it is jaxtyping's annotation of a tree: `PyTree[Float[Array, "n"]]`."""
    tree = cast(Any, jaxtyping).PyTree
    return isinstance(form, type) and issubclass(form, tree) and form is not tree


def is_union(form: Any) -> bool:
    """Whether it is a union, in either spelling."""
    return typing.get_origin(form) in (typing.Union, types.UnionType)


def _field_names(cls: type[Any]) -> list[str]:
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(getattr(cls, "_fields", ())) if tuple in cls.__mro__ else []


def _fields(cls: type, arguments: Sequence[Any] = ()) -> list[HintedField]:
    meanings = _meanings(cls, arguments)
    found: list[HintedField] = []
    for name in _field_names(cls):
        owners = (x for x in cls.__mro__ if name in inspect.get_annotations(x))
        # What a string evaluates to is its author's; if it can't be read, it can't be
        # checked.
        with contextlib.suppress(Exception):
            owner = next(owners)
            raw = _resolved(inspect.get_annotations(owner)[name], owner)
            form = _filled(raw, meanings.get(owner, {}))
            found.append(HintedField(name, form, owner, form is not raw))
    return found


def _resolved(annotation: Any, owner: type) -> Any:
    module = sys.modules.get(owner.__module__)
    parameters = {p.__name__: p for p in getattr(owner, "__type_params__", ())}
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    hints = typing.get_type_hints(
        holder,
        globalns={} if module is None else vars(module),
        localns={owner.__name__: owner, **vars(owner), **parameters},
        include_extras=True,
    )
    return hints["it"]


def _meanings(cls: type, arguments: Sequence[Any]) -> dict[type, Mapping[Any, Any]]:
    """For each class above a class, what its type parameters stand for."""
    found: dict[type, Mapping[Any, Any]] = {}
    pending: list[tuple[Any, Sequence[Any]]] = [(cls, arguments)]
    while pending:
        kind, given = pending.pop()
        if found.get(kind):
            continue
        names = getattr(kind, "__parameters__", ())
        known = dict(zip(names, given, strict=True)) if len(names) == len(given) else {}
        found[kind] = known
        bases: Any = cast(Any, vars(kind)).get("__orig_bases__", kind.__bases__)
        for base in bases:
            parts = tuple(_filled(part, known) for part in typing.get_args(base))
            origin = typing.get_origin(base) or base
            if isinstance(origin, type):
                pending.append((origin, parts))
    return found


def _filled(form: Any, known: Mapping[Any, Any]) -> Any:
    """The hint with what its type variables stand for in their place."""
    if isinstance(form, typing.TypeVar):
        return _meaning(form, known)
    # A class has parameters as well, which nobody has filled.
    names: Any = () if isinstance(form, type) else getattr(form, "__parameters__", ())
    if not names or not all(isinstance(name, typing.TypeVar) for name in names):
        return form
    return cast(Any, form)[tuple(_meaning(name, known) for name in names)]


def _meaning(variable: typing.TypeVar, known: Mapping[Any, Any]) -> Any:
    if variable in known:
        return known[variable]
    if getattr(variable, "has_default", bool)():
        return _filled(cast(Any, variable).__default__, known)
    if variable.__constraints__:
        return typing.Union[variable.__constraints__]  # noqa: UP007
    return Any if variable.__bound__ is None else variable.__bound__


def _unwrapped(form: Any) -> Any:
    origin, parts = typing.get_origin(form), typing.get_args(form)
    if isinstance(form, typing.TypeVar):
        return _meaning(form, {})
    if isinstance(form, typing.NewType):
        return form.__supertype__
    if origin in (typing.Annotated, typing.Final):
        return parts[0]
    # The aliases of `type X = ...`, a statement of Python 3.12.
    alias = origin or form
    if type(alias).__name__ == "TypeAliasType":
        # Parameters that are left out have defaults, which their variables know.
        return _filled(
            alias.__value__, dict(zip(alias.__type_params__, parts, strict=False))
        )
    return form


def _speaks(form: Any, around: tuple[Any, ...] = ()) -> bool:
    """Whether jaxtyping says something anywhere in it."""
    form = bare(form)
    if is_array_hint(form) or is_tree_hint(form):
        return True
    kind, parts = typing.get_origin(form) or form, typing.get_args(form)
    # What holds others of its kind is looked at once.
    if form in around or kind in _NO_VALUES:
        return False
    own = [field.form for field in _fields(kind, parts)] if is_record(kind) else []
    return any(_speaks(part, (*around, form)) for part in (*own, *parts))
