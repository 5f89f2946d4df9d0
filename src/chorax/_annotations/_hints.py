"""The annotations of a class's fields.

Each annotation is resolved by itself, in the namespace of the class that wrote it, so
that one that can't be resolved (because of an import under `TYPE_CHECKING`, say) does
not affect the others. Type variables are replaced by what they stand for.
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
from collections.abc import Mapping
from typing import Any, cast

import equinox as eqx
import jaxtyping


# No annotation has more aliases of aliases, except an alias of itself.
_DEEPEST = 64
# Hints whose arguments do not describe values that a field holds.
_NOT_VALUES = (cast(Any, collections.abc).Callable, type, typing.Literal)


@dataclasses.dataclass(frozen=True, eq=False)
class HintedField:
    """A field of a class; `owner` is the class that annotates it.

    `is_open` is whether its annotation uses type parameters of that class, so that what
    it holds depends on their arguments.
    """

    name: str
    hint: Any
    owner: type
    is_open: bool

    def written(self) -> str:
        """The annotation, as Python shows it."""
        raw = inspect.get_annotations(self.owner)[self.name]
        text = raw if isinstance(raw, str) else inspect.formatannotation(raw)
        # Without module prefixes, except inside quotes.
        quoted = r"""('[^']*'|"[^"]*")"""
        text = re.sub(quoted + r"|(?:\w+\.)+", lambda match: match[1] or "", text)
        return text.replace("'", '"')


def hinted_fields(cls: Any) -> list[HintedField]:
    """The fields of a class with a jaxtyping annotation anywhere in their hints; `cls`
    may be a generic class with its arguments."""
    return [x for x in _fields(cls) if _has_jaxtyping(x.hint)]


@functools.lru_cache(maxsize=1024)
def is_annotated(cls: type) -> bool:
    """Whether it is a class of modules with a jaxtyping annotation."""
    return issubclass(cls, eqx.Module) and bool(hinted_fields(cls))


def bare(hint: Any) -> Any:
    """The hint without what only wraps it: aliases, `Annotated`, type variables."""
    # The value of `type X = ...` is evaluated on access, and may use names that exist
    # for type checkers only, or itself.
    with contextlib.suppress(Exception):
        for _ in range(_DEEPEST):
            inner = _unwrapped(hint)
            if inner is hint:
                return hint
            hint = inner
    return Any


def is_record(cls: Any) -> bool:
    """Whether it is a dataclass or a `NamedTuple`, but not a module."""
    if not isinstance(cls, type) or issubclass(cls, eqx.Module):
        return False
    return bool(_field_names(cast("type[Any]", cls)))


def is_array_hint(hint: Any) -> bool:
    """Whether it is jaxtyping's annotation of an array: `Float[Array, "n"]`."""
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def is_tree_hint(hint: Any) -> bool:
    """Whether it is jaxtyping's annotation of a tree: `PyTree[Float[Array, "n"]]`."""
    tree = cast(Any, jaxtyping).PyTree
    return isinstance(hint, type) and issubclass(hint, tree) and hint is not tree


def is_union(hint: Any) -> bool:
    """Whether it is a union, in either spelling."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _field_names(cls: type[Any]) -> list[str]:
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(getattr(cls, "_fields", ())) if tuple in cls.__mro__ else []


def _fields(cls: Any) -> list[HintedField]:
    meanings = _meanings(cls)
    kind: Any = typing.get_origin(cls) or cls
    found: list[HintedField] = []
    for name in _field_names(kind):
        owners = (x for x in kind.__mro__ if name in inspect.get_annotations(x))
        # Evaluating a string may raise anything; such a field can't be checked.
        with contextlib.suppress(Exception):
            owner = next(owners)
            raw = _resolved(inspect.get_annotations(owner)[name], owner)
            hint = _filled(raw, meanings.get(owner, {}))
            found.append(HintedField(name, hint, owner, hint is not raw))
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


def _meanings(cls: Any) -> dict[type, Mapping[Any, Any]]:
    """For a class and each of its bases, what its type parameters stand for."""
    found: dict[type, Mapping[Any, Any]] = {}
    pending = [(typing.get_origin(cls) or cls, typing.get_args(cls))]
    while pending:
        kind, given = pending.pop()
        if not isinstance(kind, type) or found.get(kind):
            continue
        names = getattr(kind, "__parameters__", ())
        known = dict(zip(names, given, strict=True)) if len(names) == len(given) else {}
        found[kind] = known
        bases: Any = vars(kind).get("__orig_bases__", kind.__bases__)
        for base in bases:
            parts = tuple(_filled(part, known) for part in typing.get_args(base))
            pending.append((typing.get_origin(base) or base, parts))
    return found


def _filled(hint: Any, known: Mapping[Any, Any]) -> Any:
    """The hint with its type variables replaced by what they stand for."""
    if isinstance(hint, typing.TypeVar):
        if hint in known:
            return known[hint]
        if getattr(hint, "has_default", bool)():
            return _filled(cast(Any, hint).__default__, known)
        if hint.__constraints__:
            return typing.Union[hint.__constraints__]  # noqa: UP007
        return Any if hint.__bound__ is None else hint.__bound__
    # A bare generic class has parameters too, but no arguments.
    names: Any = () if isinstance(hint, type) else getattr(hint, "__parameters__", ())
    if not names or not all(isinstance(name, typing.TypeVar) for name in names):
        return hint
    return cast(Any, hint)[tuple(_filled(name, known) for name in names)]


def _unwrapped(hint: Any) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.TypeVar):
        return _filled(hint, {})
    if isinstance(hint, typing.NewType):
        return hint.__supertype__
    if origin in (typing.Annotated, typing.Final):
        return parts[0]
    # An alias made by `type X = ...`, a statement of Python 3.12.
    alias = origin or hint
    if type(alias).__name__ == "TypeAliasType":
        # Parameters without an argument have defaults.
        return _filled(
            alias.__value__, dict(zip(alias.__type_params__, parts, strict=False))
        )
    return hint


def _has_jaxtyping(hint: Any, around: tuple[Any, ...] = ()) -> bool:
    """Whether a jaxtyping annotation is anywhere in a hint."""
    hint = bare(hint)
    if is_array_hint(hint) or is_tree_hint(hint):
        return True
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    # A class that contains itself is looked at once.
    if hint in around or kind in _NOT_VALUES:
        return False
    own = [field.hint for field in _fields(hint)] if is_record(kind) else []
    return any(_has_jaxtyping(part, (*around, hint)) for part in (*own, *parts))
