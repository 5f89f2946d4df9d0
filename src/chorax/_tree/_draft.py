"""A tree under construction.

Calls replace nodes one after the other, and a parent has to see its children as the
calls left them. To rebuild the whole tree for every call would take quadratic time. A
draft rebuilds a container only when it is looked at, and each level once.

The leaves of a draft are `Ref`s, names for values that may not have been computed yet.
"""

from collections.abc import Iterator
from typing import Any

import jax.tree_util as jtu

from .._text._places import Key, Path
from ._paths import open_level, Ref as Ref


class Slot:
    """One place in a draft, and its value.

    `author` is the path of the call that assigned the value, `None` for the original.
    """

    __slots__ = ("author", "children", "parent", "shell", "stale", "value")

    def __init__(self, value: Any, parent: "Slot | None", author: Path | None) -> None:
        self.value = value
        self.parent = parent
        self.author = author
        self.stale = False
        self.children: dict[Key, Slot] | None = None
        self.shell: jtu.PyTreeDef | None = None

    @staticmethod
    def of(structure: jtu.PyTreeDef) -> "Slot":
        """A draft of this structure, its leaves named by their indices."""
        refs = map(Ref, range(structure.num_leaves))
        return Slot(jtu.tree_unflatten(structure, refs), None, None)

    def open(self) -> dict[Key, "Slot"]:
        """The places one level below; none for a leaf."""
        if self.children is None:
            self.children = {}
            level = open_level(self.value)
            if level is not None:
                self.shell = level.shell
                for key, child in zip(level.keys, level.children, strict=True):
                    self.children[key] = Slot(child, self, self.author)
        return self.children

    def assign(self, value: Any, author: Path) -> None:
        """Assigns a new value; the places below are forgotten."""
        self.value, self.author = value, author
        self.stale, self.children, self.shell = False, None, None
        above = self.parent
        while above is not None and not above.stale:
            above.stale = True
            above = above.parent

    def restate(self, value: Any) -> None:
        """Assigns a container that differs in static parts only.

        The places below are kept. One of them was assigned to, so everything from here
        up to the root is rebuilt anyway.
        """
        level = open_level(value)
        assert self.stale
        assert level is not None
        self.value, self.shell = value, level.shell

    def current(self) -> Any:
        """The value, with everything below it up to date."""
        pending: list[Slot] = [self]
        while pending:
            slot = pending[-1]
            below = slot.children.values() if slot.children and slot.stale else ()
            stale = [child for child in below if child.stale]
            pending.extend(stale)
            if not stale:
                if slot.stale and slot.shell is not None:
                    parts = [child.value for child in below]
                    slot.value = jtu.tree_unflatten(slot.shell, parts)
                    slot.stale = False
                pending.pop()
        return self.value

    def find(self, path: Path) -> tuple["Slot", bool]:
        """The place at a path and `True`, or the last one on the way and `False`."""
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
