"""What is called on a node, and what it asks for."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from types import FunctionType
from typing import Any

import equinox as eqx

from ._memo import fingerprint, kind_cell
from ._order import level_of
from ._paths import Path, place
from ._show import named


@dataclasses.dataclass(frozen=True)
class Signature:
    """The part of a function's signature that decides how it is called.

    `key_position` is where a positional argument would be the key, `None` if it is a
    keyword only.
    """

    level: int | None
    takes_key: bool
    needs_key: bool
    key_position: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A node's method: the function that defines it, and whether it gets a key.

    `definition` is what the class holds under the name, so that a class whose method
    was exchanged is another kind.
    """

    definition: Any
    level: int | None
    gets_key: bool


def find_method(
    node: eqx.Module, path: Path, name: str
) -> tuple[Any, Signature] | None:
    """A node's attribute `name` as its class defines it; `None` if there is none."""
    definition = _definition(type(node), name)
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
    if _binds_itself(definition) and name not in vars(node):
        # What binds a wrapped method to its node may hide signature and mark.
        return definition, read_signature(definition, bound=False)
    return definition, read_signature(value, bound=True)


def definition_token(cls: type, name: str) -> Hashable:
    """What tells whether the nodes of a class still have the same method; `TypeError`
    where each node has to be asked."""
    definition = _definition(cls, name)
    is_function = isinstance(definition, FunctionType)
    if name in _fields(cls) or not (is_function or definition is None):
        raise TypeError(f"`{name}` of {cls.__name__} is no plain method.")
    if definition is None and hasattr(cls, "__getattr__"):
        raise TypeError(f"{cls.__name__} finds `{name}` by `__getattr__`.")
    return fingerprint(definition)


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
        return Signature(level, False, False, None)  # Some built-ins have none.
    parameter = parameters.get("key")
    if parameter is None or parameter.kind not in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    ):
        return Signature(level, False, False, None)
    position = None
    if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        position = list(parameters).index("key") - (not bound)
    required = parameter.default is inspect.Parameter.empty
    return Signature(level, True, required, position)


def _method_signature(definition: FunctionType) -> Signature:
    cell = kind_cell((_method_signature, fingerprint(definition)))
    signature: Signature | None = cell.value
    if signature is None:
        signature = cell.value = read_signature(definition, bound=False)
    return signature
