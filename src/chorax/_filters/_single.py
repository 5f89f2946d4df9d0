"""Filters that ask one question about a node or leaf and its path."""

import abc
import dataclasses
import typing
from typing import TYPE_CHECKING, TypeAlias

from .._text._places import Path, place
from .._text._show import short, shown
from ._predicates import NO_TAGS, Predicate, Tags


if TYPE_CHECKING:
    _Types: TypeAlias = type | tuple[type, ...]
    _Key: TypeAlias = str | int
    _Tag: TypeAlias = str
else:
    # Anything else is to get chorax's own error, not that of a runtime type checker.
    _Types = _Key = _Tag = typing.Any


class Test(Predicate, abc.ABC):
    """Runs user code, and adds the filter and the path to its exceptions."""

    def __call__(self, path: Path, x: object, tags: Tags = NO_TAGS) -> bool:
        try:
            return self._keeps(path, x, tags)
        except Exception as error:
            given = next(iter(vars(self).values()))
            error.add_note(f"Raised by the filter {short(given)} at {place(path)}.")
            raise

    @abc.abstractmethod
    def _keeps(self, path: Path, x: object, tags: Tags) -> bool:
        """Whether the filter keeps a leaf or a node."""


@dataclasses.dataclass(frozen=True)
class OfType(Test):
    """Keeps the instances of a type, or of any of a tuple of types.

    ```python
    >>> from chorax.filters import OfType
    >>> OfType(int)(("n",), 3), OfType((int, str))(("n",), 0.5)
    (True, False)

    ```
    """

    type: _Types

    def __post_init__(self) -> None:
        kinds = self.type if isinstance(self.type, tuple) else (self.type,)
        words = "`OfType` takes a type or a tuple of types"
        _check(all(map(is_type, kinds)), words, self.type)

    def _keeps(self, path: Path, x: object, tags: Tags) -> bool:
        return isinstance(x, self.type)


@dataclasses.dataclass(frozen=True)
class PathContains(Predicate):
    """Keeps what is at or below a key: `key in path`.

    ```python
    >>> from chorax.filters import PathContains
    >>> PathContains("encoder")(("encoder", 0, "weight"), None)
    True

    ```
    """

    key: _Key

    def __post_init__(self) -> None:
        key = typing.cast(object, self.key)
        is_key = isinstance(key, str | int) and not isinstance(key, bool)
        words = "`PathContains` takes one key of a path, a `str` or an `int`"
        _check(is_key, words, key)

    def __call__(self, path: Path, x: object, tags: Tags = NO_TAGS) -> bool:
        return self.key in path


@dataclasses.dataclass(frozen=True)
class WithTag(Test):
    """Keeps what has a tag.

    A leaf that was written has the tags of its delta (`state_tag`); any object may have
    an attribute `tag`, a `str` or a collection of them.

    ```python
    >>> from chorax.filters import WithTag
    >>> WithTag("hidden")(("v",), None, frozenset({"hidden"}))
    True

    ```
    """

    tag: _Tag

    def __post_init__(self) -> None:
        tag = typing.cast(object, self.tag)
        _check(isinstance(tag, str), "`WithTag` takes a `str`", tag)

    def _keeps(self, path: Path, x: object, tags: Tags) -> bool:
        found: typing.Any = getattr(x, "tag", None)
        if isinstance(found, str):
            return self.tag in tags or found == self.tag
        is_collection = isinstance(found, list | tuple | set | frozenset)
        return self.tag in tags or (is_collection and self.tag in found)


def is_type(x: object) -> bool:
    """Whether it is a class; `list[int]` is not."""
    return isinstance(x, type) and typing.get_origin(x) is None


def _check(is_fine: bool, words: str, got: object) -> None:
    if not is_fine:
        raise TypeError(f"{words}, but got {shown(got)}.")
