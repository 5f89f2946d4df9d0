"""The methods of nodes: how they are found, and whether they get a key."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from types import FunctionType
from typing import Any

import equinox as eqx

from .._text._places import Path, place
from .._text._show import named
from .._tree._memo import code_token, kind_cell
from ._order import level_of


# Why a key can't be passed, and the cure.
_BY_POSITION = "its `key` is positional-only. Drop the `/`"
_AMONG = (
    "it takes `**{}`. Name it (`*, key`), put `functools.wraps` on the decorator that "
    "hides it"
)


@dataclasses.dataclass(frozen=True)
class Signature:
    """The part of a function's signature that decides how it is called.

    `key_position` is the position of the key, `None` if it is keyword-only. `hides_key`
    says why a function that may want a key can't be passed one, and the cure.
    """

    level: int | None
    takes_key: bool = False
    needs_key: bool = False
    key_position: int | None = None
    hides_key: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A node's method, its level, and whether it gets a key.

    `definition` is what the class holds under the name, so that nodes are of another
    kind once the class has another method.
    """

    definition: Any
    level: int | None
    gets_key: bool


def find_method(
    node: eqx.Module, path: Path, name: str
) -> tuple[Any, Signature] | None:
    """A node's attribute `name` as its class defines it; `None` if there is none."""
    definition = vars(node).get(name, _definition(type(node), name))
    if isinstance(definition, FunctionType) and name not in vars(node):
        return definition, _method_signature(definition)
    # Fields that hold a callable, wrapped methods, properties, `__getattr__`.
    try:
        value = getattr(node, name)
    except Exception as error:
        if definition is None and isinstance(error, AttributeError):
            return None
        error.add_note(
            f"Raised by the property `{name}` of {type(node).__name__} at "
            f"{place(path)}, in a collective call of chorax."
        )
        raise
    if not callable(value):
        raise TypeError(
            f"`{name}` of {type(node).__name__} at {place(path)} is not callable, but "
            f"{named(value)}. Give the name of a method, or exclude the node."
        )
    if name not in vars(node) and _binds_itself(definition):
        # The bound object may hide the signature and the mark of what it wraps.
        return definition, read_signature(definition, bound=False)
    return definition, read_signature(value, bound=True)


def definition_token(cls: type, name: str) -> Hashable:
    """What is equal as long as the nodes of a class have the same method; `TypeError`
    where each node has to be asked."""
    definition = _definition(cls, name)
    is_function = isinstance(definition, FunctionType)
    if name in _fields(cls) or not (is_function or definition is None):
        raise TypeError(f"`{name}` of {cls.__name__} is no plain method.")
    if definition is None and hasattr(cls, "__getattr__"):
        raise TypeError(f"{cls.__name__} finds `{name}` by `__getattr__`.")
    return code_token(definition)


@functools.lru_cache(maxsize=1024)
def _fields(cls: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls))


def _definition(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _binds_itself(definition: Any) -> bool:
    return callable(definition) and type(definition) not in (staticmethod, classmethod)


def decide_key(
    signature: Signature,
    label: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    key_given: bool,
) -> bool:
    """Whether a call passes a key on; errors where it is missing or given twice."""
    position = signature.key_position
    given = "key" in kwargs or (position is not None and len(args) > position)
    if key_given and given:
        raise TypeError(
            f"`key` is given twice to {label}: by `key=` of the collective call and in "
            "its own arguments. Keep one: `key=` gives every node and lane a key of "
            "its own, an argument gives all of them the same."
        )
    if key_given and signature.hides_key:
        raise TypeError(
            f"`key=` was given, but {label} shows no parameter `key` to pass it as: "
            f"{signature.hides_key}, or call it without `key=`; `node_to_exclude` "
            "leaves nodes out."
        )
    if signature.needs_key and not key_given and not given:
        raise ValueError(
            f"{label} needs a `key`, and none was given: pass `key=jax.random.key(0)` "
            "to the collective call."
        )
    return signature.takes_key and key_given


def read_signature(function: Callable[..., Any], bound: bool) -> Signature:
    """Reads a signature; `bound` if the node is not among the parameters."""
    level = level_of(function)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return Signature(level)  # Some built-ins have no signature.
    key = parameters.get("key")
    if key is None or key.kind in (key.VAR_POSITIONAL, key.VAR_KEYWORD):
        rest = [p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD]
        return Signature(level, hides_key=_AMONG.format(*rest) if rest else None)
    position = None
    if key.kind is not key.KEYWORD_ONLY:
        position = list(parameters).index("key") - (not bound)
    if key.kind is key.POSITIONAL_ONLY:
        return Signature(level, key_position=position, hides_key=_BY_POSITION)
    return Signature(level, True, key.default is key.empty, position)


def _method_signature(definition: FunctionType) -> Signature:
    cell = kind_cell((_method_signature, code_token(definition)))
    signature: Signature | None = cell.value
    if signature is None:
        signature = cell.value = read_signature(definition, bound=False)
    return signature
