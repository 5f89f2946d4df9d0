"""Which modules of a tree are nodes, and in which order they are called."""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any, cast

import equinox as eqx
import jax
import jax.tree_util as jtu

from .._text._places import Path
from ._draft import Ref, Slot
from ._holder import AxesHolder, LaneHolder, Wrapper
from ._memo import exact_structure, exact_type, static_fields


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A module that may be called, as the structure of the target shows it.

    `index` is its index among all modules of the target, and `ensembles` are the paths
    of the ensembles that contain it, outermost first.
    """

    path: Path
    cls: type[eqx.Module]
    index: int
    ensembles: tuple[Path, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """What the structure of a target shows.

    `nodes` are children before parents, `classes` are their classes, and `module_paths`
    are the paths of all modules, parents first.
    """

    nodes: tuple[Node, ...]
    leaf_paths: tuple[Path, ...]
    module_paths: tuple[Path, ...]
    classes: tuple[type[eqx.Module], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """A target, its leaves, and every module in it, parents first.

    `exact` tells apart structures that JAX considers equal; it is `None` if a part
    can't be hashed, so that nothing may be remembered about the target.
    """

    target: Any
    leaves: tuple[Any, ...]
    modules: tuple[eqx.Module, ...]
    structure: jtu.PyTreeDef
    exact: Hashable
    survey: Survey

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, children before parents."""
        return self.survey.nodes

    @property
    def leaf_paths(self) -> tuple[Path, ...]:
        """The path of each leaf."""
        return self.survey.leaf_paths

    def draft(self) -> Slot:
        """The target as a draft, its leaves named by their indices."""
        return Slot.of(self.structure)


def walk_nodes(target: Any) -> Tree:
    """Finds the leaves, modules and nodes of a target."""
    parts: list[Any] = []
    # `append` is asked about every container and leaf, and returns `None`: no leaf.
    leaves, structure = jtu.tree_flatten(target, is_leaf=cast(Any, parts.append))
    try:
        modules, exact = _read_parts(parts, structure)
        survey = _survey(structure, exact)
    except TypeError:
        # A static part can't be hashed.
        modules, exact = _modules(parts), None
        survey = _survey.__wrapped__(structure, None)
    return Tree(target, tuple(leaves), modules, structure, exact, survey)


def _read_parts(
    parts: list[Any], structure: jtu.PyTreeDef
) -> tuple[tuple[eqx.Module, ...], Hashable]:
    """The modules among containers and leaves, and the types of all static parts.

    A faster `exact_structure` for modules and the containers that are met most.
    """
    # For each type: the names of static fields, or how to treat it.
    rules: dict[type, Any] = {list: None, tuple: None, type(None): None}
    modules: list[eqx.Module] = []
    types: list[Hashable] = []
    for x in parts:
        kind = cast("type[Any]", type(x))
        if kind not in rules:
            rules[kind] = _rule(x)
        rule = rules[kind]
        if rule is None:
            continue
        if rule is dict:
            # With the keys themselves, which may come in any order.
            keys = [key for key in x if type(key) is not str]
            types.extend((exact_type(key), key) for key in keys)
            continue
        if rule is object:
            return _modules(parts), exact_structure(structure)
        modules.append(x)
        for name in rule:
            try:
                # Equinox makes the usual lookup slow for modules, to bind methods.
                value = object.__getattribute__(x, name)
            except AttributeError:
                continue  # Never set, which the structure shows.
            types.append(exact_type(value))
    return tuple(modules), tuple(types)


def _rule(x: Any) -> Any:
    if isinstance(x, jax.Array):
        return None
    if isinstance(x, eqx.Module):
        return static_fields(type(x))
    if isinstance(x, dict):
        return dict
    is_named_tuple = isinstance(x, tuple) and hasattr(cast(Any, x), "_fields")
    return None if is_named_tuple or jtu.all_leaves([x]) else object


def _modules(parts: list[Any]) -> tuple[eqx.Module, ...]:
    return tuple(x for x in parts if isinstance(x, eqx.Module))


@functools.lru_cache(maxsize=128)
def _survey(structure: jtu.PyTreeDef, exact: Hashable) -> Survey:
    del exact
    nodes: list[Node] = []
    leaf_paths: list[Path] = []
    module_paths: list[Path] = []
    classes: dict[type[eqx.Module], None] = {}
    # A draft has the same modules as the target in the same order, and `Ref`s as
    # leaves, which are cheap to tell from containers.
    pending: list[Node | tuple[Path, Slot, tuple[Path, ...]]]
    pending = [((), Slot.of(structure), ())]
    while pending:
        row = pending.pop()
        if isinstance(row, Node):  # Its children have been visited.
            nodes.append(row)
            continue
        path, slot, ensembles = row
        if isinstance(slot.value, Ref):
            leaf_paths.append(path)
            continue
        if isinstance(slot.value, eqx.Module):
            cls = type(slot.value)
            if is_node(slot.value):
                pending.append(Node(path, cls, len(module_paths), ensembles))
                classes.setdefault(cls)
            module_paths.append(path)
        is_ensemble = isinstance(slot.value, LaneHolder)
        for key, child in reversed(slot.open().items()):
            # An ensemble has lanes below its field `model` only.
            has_lanes = is_ensemble and key == "model"
            inside = (*ensembles, path) if has_lanes else ensembles
            pending.append(((*path, key), child, inside))
    return Survey(tuple(nodes), tuple(leaf_paths), tuple(module_paths), tuple(classes))


def is_node(module: eqx.Module) -> bool:
    """Whether a module is called; plumbing of Equinox and of chorax is only walked
    through."""
    kind = type(module)
    if isinstance(module, AxesHolder | LaneHolder | Wrapper):
        return False
    return kind.__module__.partition(".")[0] != "equinox" or kind in _layers()


def is_tied(value: Any) -> bool:
    """Whether it is the marker that `eqx.nn.Shared` leaves in place of a value.

    The marker's class has no public name. If that changed, tied values would count as
    values of a wrong type.
    """
    kind = cast("type[Any]", type(value))
    return kind.__name__ == "SharedNode" and kind.__module__.startswith("equinox.")


@functools.lru_cache(maxsize=1)
def _layers() -> frozenset[type]:
    public = (getattr(eqx.nn, name) for name in dir(eqx.nn))
    layers = (x for x in public if isinstance(x, type) and issubclass(x, eqx.Module))
    return frozenset(layers) - {eqx.nn.StateIndex}
