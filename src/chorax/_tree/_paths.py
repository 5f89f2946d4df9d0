"""Places in a PyTree: paths, and walks along them.

A path is a tuple of plain `str` and `int` keys from the root to a node or a leaf. It
appears in errors, filters are asked about it, and a node's random key is derived from
it, so it depends on nothing but the place. JAX's key paths consist of objects whose
type depends on the container; here they are reduced to the plain keys.
"""

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Iterator
from typing import Any, cast, NamedTuple

import equinox as eqx
import jax.tree_util as jtu
import numpy as np

from .._text._places import Key, Path
from .._text._show import short, with_article


class Ref:
    """A leaf that stands for a value, which it names."""

    __slots__ = ("name",)

    def __init__(self, name: int) -> None:
        self.name = name

    def __repr__(self) -> str:
        return "a leaf"


class Level(NamedTuple):
    """One level of a container; `shell` is the structure above the children."""

    keys: tuple[Key, ...]
    children: list[Any]
    shell: jtu.PyTreeDef


_LEAF = Ref(-1)
_NOTHING = Level((), [], jtu.tree_structure(None))


def path_words(path: Path) -> tuple[int, int]:
    """The first 64 bits of the SHA-256 of a path, as two 32-bit words."""
    digest = hashlib.sha256(repr(path).encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def open_level(tree: Any) -> Level | None:
    """One level of a container; `None` for a leaf."""
    # Shortcuts for the most frequent cases.
    if tree is None:
        return _NOTHING
    if type(tree) is Ref:
        return None
    is_below = functools.partial(operator.is_not, tree)
    pairs, shell = cast(
        "tuple[list[tuple[tuple[Any, ...], Any]], jtu.PyTreeDef]",
        # JAX types the keys of a path by a type variable that nothing binds.
        jtu.tree_flatten_with_path(tree, is_leaf=is_below),  # pyright: ignore[reportUnknownMemberType]
    )
    if len(pairs) == 1 and not pairs[0][0]:
        return None
    keys = tuple(_plain(entry) for (entry,), _ in pairs)
    if len(set(keys)) != len(keys):
        raise ValueError(
            f"Two children of {with_article(type(tree).__name__)} have the same key in "
            f"a path: {keys}. A key that is neither `str` nor `int` is named by "
            "`str(key)`; rename one of them."
        )
    return Level(keys, [child for _, child in pairs], shell)


def walk(tree: Any) -> Iterator[tuple[Path, Any, bool]]:
    """Every container and leaf as `(path, object, is_leaf)`, parents first.

    Iterative, so that depth is not limited by Python's call stack.
    """
    pending: list[tuple[Path, Any]] = [((), tree)]
    while pending:
        path, item = pending.pop()
        level = open_level(item)
        yield path, item, level is None
        if level is not None:
            pairs = zip(level.keys, level.children, strict=True)
            pending.extend(reversed([((*path, key), child) for key, child in pairs]))


def leaf_paths(structure: jtu.PyTreeDef) -> tuple[Path, ...]:
    """The paths of a structure's leaves, in the order of `jax.tree.flatten`."""
    return tuple(path for path, _, is_leaf in walk(_skeleton(structure)) if is_leaf)


def _skeleton(structure: jtu.PyTreeDef) -> Any:
    return jtu.tree_unflatten(structure, [_LEAF] * structure.num_leaves)


def same_structure(left: jtu.PyTreeDef, right: jtu.PyTreeDef) -> bool:
    """Whether two structures are equal, including static NumPy arrays."""
    try:
        return left == right
    except Exception:  # NumPy compares arrays element by element.
        return first_difference(left, right) is None


def first_difference(
    left: jtu.PyTreeDef, right: jtu.PyTreeDef
) -> tuple[Path, str, str] | None:
    """The first path at which two structures differ, and what each has there."""
    pending: list[tuple[Path, Any, Any]] = [((), _skeleton(left), _skeleton(right))]
    while pending:
        path, a, b = pending.pop()
        level_a, level_b = open_level(a), open_level(b)
        if level_a is None and level_b is None:
            continue
        if level_a is None or level_b is None or type(a) is not type(b):
            return path, _describe(a), _describe(b)
        for key in (*level_a.keys, *level_b.keys):
            if (key in level_a.keys) != (key in level_b.keys):
                has, lacks = "has it", "lacks it"
                of_a, of_b = (has, lacks) if key in level_a.keys else (lacks, has)
                return (*path, key), of_a, of_b
        if not _same_static(level_a.shell, level_b.shell):
            return _static_difference(path, a, b)
        rows = zip(level_a.keys, level_a.children, level_b.children, strict=True)
        pending.extend(reversed([((*path, key), x, y) for key, x, y in rows]))
    return None


def _describe(item: Any) -> str:
    is_plain = item is _LEAF or item is None
    return repr(item) if is_plain else with_article(type(item).__name__)


def _static_difference(path: Path, a: Any, b: Any) -> tuple[Path, str, str]:
    if isinstance(a, eqx.Module):
        for field in dataclasses.fields(a):
            if field.metadata.get("static", False):
                x, y = getattr(a, field.name, None), getattr(b, field.name, None)
                if not _same_static((x,), (y,)):
                    one, other = short(x), short(y)
                    other = f"another {other}" if one == other else other
                    return (*path, field.name), one, other
    return path, _describe(a), f"another {type(b).__name__}"


def _same_static(x: Any, y: Any) -> bool:
    try:
        return bool(x == y)
    except Exception:
        pass
    if isinstance(x, jtu.PyTreeDef):
        x, y = x.node_data(), y.node_data()
    if all(isinstance(each, np.ndarray) for each in (x, y)):
        return x.dtype == y.dtype and np.array_equal(x, y)
    if jtu.all_leaves([x]):
        return False  # Its own comparison fails.
    xs, one = jtu.tree_flatten(x)
    ys, other = jtu.tree_flatten(y)
    return same_structure(one, other) and all(map(_same_static, xs, ys))


def _plain(entry: Any) -> Key:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            entry = getattr(entry, attribute)
            break
    if isinstance(entry, str):
        return str.__str__(entry)
    if isinstance(entry, int | np.integer) and not isinstance(entry, bool):
        return int(cast(int, entry))
    return str(entry)
