"""A tree under construction.

Calls replace nodes one after the other, and a parent has to see its children as the
calls left them. Rebuilding the tree from its root for every call would cost the square
of the number of nodes; a draft rebuilds a container only when somebody looks at it, and
each of its levels once.

The leaves of a draft are `Ref`s, names for values that may not have been computed yet.
"""

from collections.abc import Iterator
from typing import Any

import jax.tree_util as jtu

from .._text._places import Key, Path
from ._paths import open_level


class Ref:
    """A leaf of a draft: the name of a value."""

    __slots__ = ("name",)

    def __init__(self, name: int) -> None:
        self.name = name


class Slot:
    """One place of a draft, with what stands there.

    `author` is the path of the call that put it there, `None` for the original.
    """

    __slots__ = ("author", "children", "parent", "shell", "stale", "value")

    def __init__(self, value: Any, parent: "Slot | None", author: Path | None) -> None:
        self.value = value
        self.parent = parent
        self.author = author
        self.stale = False
        self.children: dict[Key, Slot] | None = None
        self.shell: jtu.PyTreeDef | None = None

    def open(self) -> dict[Key, "Slot"]:
        """The places one level below; none for a leaf."""
        if self.children is None:
            self.children = {}
            level = None if isinstance(self.value, Ref) else open_level(self.value)
            if level is not None:
                self.shell = level.shell
                for key, child in zip(level.keys, level.children, strict=True):
                    self.children[key] = Slot(child, self, self.author)
        return self.children

    def assign(self, value: Any, author: Path) -> None:
        """Puts a new value here; everything below is forgotten."""
        self.value, self.author = value, author
        self.stale, self.children, self.shell = False, None, None
        above = self.parent
        while above is not None and not above.stale:
            above.stale = True
            above = above.parent

    def restate(self, value: Any) -> None:
        """Puts a container here that differs in static parts only.

        What is below stays, and has been assigned to, so that all from here up to the
        root is to be rebuilt anyway.
        """
        level = open_level(value)
        assert self.stale
        assert level is not None
        self.value, self.shell = value, level.shell

    def current(self) -> Any:
        """What stands here now, with everything below it up to date."""
        pending: list[Slot] = [self]
        while pending:
            slot = pending[-1]
            below = slot.children.values() if slot.children and slot.stale else ()
            stale = [child for child in below if child.stale]
            pending.extend(stale)
            if not stale:
                if slot.stale and slot.shell is not None:
                    parts = [child.value for child in below]
                    slot.value, slot.stale = (
                        jtu.tree_unflatten(slot.shell, parts),
                        False,
                    )
                pending.pop()
        return self.value

    def find(self, path: Path) -> tuple["Slot", bool]:
        """The place at a path; or the last one on the way there, and `False`."""
        slot = self
        for key in path:
            child = slot.open().get(key)
            if child is None:
                return slot, False
            slot = child
        return slot, True

    def walk(self) -> Iterator[tuple[Path, "Slot"]]:
        """Every place at and below this one, parents first."""
        pending: list[tuple[Path, Slot]] = [((), self)]
        while pending:
            path, slot = pending.pop()
            yield path, slot
            below = [((*path, key), child) for key, child in slot.open().items()]
            pending.extend(reversed(below))
