"""What the fields of a class are annotated with.

Annotations are resolved one by one, each in the namespace of the class that wrote it,
so that one that can't be resolved (its import stands under `TYPE_CHECKING`, say) takes
no other with it.
"""

import ast
import collections.abc
import contextlib
import dataclasses
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, cast

import equinox as eqx
import jaxtyping


# No annotation has more aliases of aliases, but for those that end in themselves.
_DEEPEST = 64


def _none_known() -> Mapping[Any, "Hint"]:
    return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Hint:
    """A type hint, and what the type variables in it stand for."""

    form: Any
    variables: Mapping[Any, "Hint"] = dataclasses.field(default_factory=_none_known)

    def parts(self) -> list["Hint"]:
        """The hints that this one is made of."""
        return [Hint(part, self.variables) for part in typing.get_args(self.form)]

    def bare(self) -> "Hint":
        """The hint without what only wraps it: aliases, `Annotated`, type variables."""
        hint = self
        for _ in range(_DEEPEST):
            inner = _unwrap(hint)
            if inner is None:
                return hint
            hint = inner
        return Hint(Any)  # An alias of itself.


@dataclasses.dataclass(frozen=True, eq=False)
class HintedField:
    """A field of a class; `owner` is the class that annotates it."""

    name: str
    hint: Hint
    owner: type

    def written(self) -> str:
        """The annotation as it stands in the source; as Python shows it without one."""
        raw = inspect.get_annotations(self.owner)[self.name]
        return _in_source(self.owner, self.name, raw) or _shown(raw)


def hinted_fields(cls: type, arguments: Sequence[Hint] = ()) -> list[HintedField]:
    """The fields of a class that jaxtyping has something to say on.

    `arguments` are what the parameters of a generic class stand for.
    """
    variables = _variables(cls, arguments)
    fields: list[HintedField] = []
    for name, form, owner in _resolved(cls):
        hint = Hint(form, variables.get(owner, {}))
        # An alias is evaluated when it is looked into, and may speak of names that are
        # there for type checkers only.
        with contextlib.suppress(Exception):
            if _speaks(hint, frozenset()):
                fields.append(HintedField(name, hint, owner))
    return fields


def is_record(cls: Any) -> bool:
    """Whether it is a class: a dataclass or a `NamedTuple`, but no module."""
    if not isinstance(cls, type) or issubclass(cls, eqx.Module):
        return False
    kind = cast("type[Any]", cls)
    return dataclasses.is_dataclass(kind) or _is_named_tuple(kind)


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


def mentions_variable(hint: Hint) -> bool:
    """Whether a type variable stands anywhere in it."""
    if isinstance(hint.form, typing.TypeVar):
        return True
    return any(mentions_variable(part) for part in hint.parts())


def _is_named_tuple(cls: type[Any]) -> bool:
    return tuple in cls.__mro__ and hasattr(cls, "_fields")


def _field_names(cls: type[Any]) -> list[str]:
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(cls._fields) if _is_named_tuple(cls) else []


def _resolved(cls: type) -> list[tuple[str, Any, type]]:
    found: list[tuple[str, Any, type]] = []
    for name in _field_names(cls):
        for owner in cls.__mro__:
            annotations = inspect.get_annotations(owner)
            if name in annotations:
                # What a string evaluates to is its author's; if it can't be read, it
                # can't be checked.
                with contextlib.suppress(Exception):
                    found.append((name, _resolve(annotations[name], owner), owner))
                break
    return found


def _resolve(annotation: Any, owner: type) -> Any:
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


def _variables(cls: type, arguments: Sequence[Hint]) -> dict[type, Mapping[Any, Hint]]:
    """For each class above a class, what its type parameters stand for."""
    found: dict[type, Mapping[Any, Hint]] = {}
    pending: list[tuple[Any, Sequence[Hint]]] = [(cls, arguments)]
    while pending:
        kind, given = pending.pop()
        if found.get(kind):
            continue
        names = getattr(kind, "__parameters__", ())
        known = dict(zip(names, given, strict=True)) if len(names) == len(given) else {}
        found[kind] = known
        for base in cast(dict[str, Any], vars(kind)).get(
            "__orig_bases__", kind.__bases__
        ):
            origin = typing.get_origin(base)
            if isinstance(base, type):
                pending.append((base, ()))
            elif isinstance(origin, type):
                pending.append((origin, Hint(base, known).parts()))
    return found


def _unwrap(hint: Hint) -> Hint | None:
    form, origin = hint.form, typing.get_origin(hint.form)
    if isinstance(form, typing.TypeVar):
        return _meaning(form, hint.variables)
    if isinstance(form, typing.NewType):
        return Hint(form.__supertype__, hint.variables)
    if origin in (typing.Annotated, typing.Final):
        return hint.parts()[0]
    # The aliases of `type X = ...`, a statement of Python 3.12.
    alias = origin or form
    if type(alias).__name__ == "TypeAliasType":
        # Parameters that are left out have defaults, which their variables know.
        names = zip(alias.__type_params__, hint.parts(), strict=False)
        return Hint(alias.__value__, dict(names))
    return None


def _meaning(variable: typing.TypeVar, variables: Mapping[Any, Hint]) -> Hint:
    known = variables.get(variable)
    if known is not None:
        return known
    default = getattr(variable, "__default__", None)
    if default is not None and cast(Any, variable).has_default():
        return Hint(default, variables)
    if variable.__bound__ is not None:
        return Hint(variable.__bound__)
    if variable.__constraints__:
        return Hint(typing.Union[variable.__constraints__])  # noqa: UP007
    return Hint(Any)


def _speaks(hint: Hint, seen: frozenset[type]) -> bool:
    """Whether jaxtyping says something anywhere in it."""
    hint = hint.bare()
    form, origin = hint.form, typing.get_origin(hint.form)
    if is_array_hint(form) or is_tree_hint(form):
        return True
    for record in filter(is_record, (form, origin)):
        # Its own fields; a class that holds others of its kind is looked at once.
        below = () if record in seen else _resolved(record)
        if any(_speaks(Hint(x), seen | {record}) for _, x, _ in below):
            return True
    if origin in (cast(Any, collections.abc).Callable, type, typing.Literal):
        return False
    return any(_speaks(part, seen) for part in hint.parts())


def _in_source(owner: type, name: str, raw: Any) -> str | None:
    try:
        source = textwrap.dedent(inspect.getsource(owner))
        body = cast(ast.ClassDef, ast.parse(source).body[0]).body
    except Exception:
        return None  # There is none, or not any more: files change while we run.
    for statement in body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=found), annotation=annotation):
                if found == name and _is_same(annotation, raw, owner):
                    if isinstance(annotation, ast.Constant):
                        return None  # A string, which is more legible as it is.
                    text = ast.get_source_segment(source, annotation)
                    return None if text is None else _on_one_line(text)
            case _:
                pass
    return None


def _on_one_line(text: str) -> str:
    text = re.sub(r"([\[(])\s+", r"\1", " ".join(text.split()))
    return re.sub(r",?\s+([\])])", r"\1", text)


def _is_same(annotation: ast.expr, raw: Any, owner: type) -> bool:
    # Python finds the source by the name of the class, of which a file may have two.
    text = ast.unparse(annotation)
    if isinstance(raw, str):
        return text == raw or repr(raw) == text
    try:
        return _shown(_resolve(text, owner)) == _shown(raw)
    except Exception:
        return True  # It speaks of names that are gone by now.


def _shown(raw: Any) -> str:
    if isinstance(raw, str):
        return raw
    if isinstance(raw, type) and not typing.get_args(raw):
        return raw.__name__
    return repr(raw).replace("jaxtyping.", "").replace("typing.", "")
