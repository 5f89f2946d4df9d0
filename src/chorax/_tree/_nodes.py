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
    """A module that a call may be made on, as the structure of the target shows it.

    `index` is its index among all modules of the target, and `ensembles` are the paths
    of the ensembles around it, the outermost first.
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
    """A target taken apart: its leaves, and every module, parents first.

    `exact` tells apart structures that JAX takes to be equal; it is `None` where
    nothing can, and then nothing about the target may be remembered.
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
        return _draft(self.structure)


def walk_nodes(target: Any) -> Tree:
    """Takes a target apart; the walk that everything after it relies on."""
    parts: list[Any] = []
    # It is asked about every container and leaf, and says no each time.
    leaves, structure = jtu.tree_flatten(target, is_leaf=cast(Any, parts.append))
    try:
        modules, exact = _read_parts(parts, structure)
        survey = _survey(structure, exact)
    except TypeError:
        # Something static can't be hashed.
        modules, exact = _modules(parts), None
        survey = _survey.__wrapped__(structure, None)
    return Tree(target, tuple(leaves), modules, structure, exact, survey)


def _read_parts(
    parts: list[Any], structure: jtu.PyTreeDef
) -> tuple[tuple[eqx.Module, ...], Hashable]:
    """The modules among containers and leaves, and the types of all static parts."""
    # For each type the names of static fields, or what else there is to be done.
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
            # With the keys themselves, which may stand in any order.
            keys = [key for key in x if type(key) is not str]
            types.extend((exact_type(key), key) for key in keys)
            continue
        if rule is object:
            return _modules(parts), exact_structure(structure)
        modules.append(x)
        for name in rule:
            try:
                # Past the lookup of methods, which Equinox makes slow for modules.
                value = object.__getattribute__(x, name)
            except AttributeError:
                continue  # A field that was never set, which the structure says.
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


def _draft(structure: jtu.PyTreeDef) -> Slot:
    refs = [Ref(i) for i in range(structure.num_leaves)]
    return Slot(jtu.tree_unflatten(structure, refs), None, None)


@functools.lru_cache(maxsize=128)
def _survey(structure: jtu.PyTreeDef, exact: Hashable) -> Survey:
    del exact
    # A draft has the same modules as the target, met in the same order, but `Ref`s for
    # leaves: the walk can tell leaves from containers by a look at their class.
    found: list[tuple[Path, eqx.Module]] = []
    leaf_paths: list[Path] = []
    for path, slot in _draft(structure).walk():
        if isinstance(slot.value, Ref):
            leaf_paths.append(path)
        elif isinstance(slot.value, eqx.Module):
            found.append((path, slot.value))
    around = {path for path, m in found if isinstance(m, LaneHolder)}
    nodes = [
        Node(path, type(module), index, _around(path, around))
        for index, (path, module) in enumerate(found)
        if is_node(module)
    ]
    paths = tuple(path for path, _ in found)
    classes = dict.fromkeys(node.cls for node in nodes)
    return Survey(_children_first(nodes), tuple(leaf_paths), paths, tuple(classes))


def _around(path: Path, ensembles: set[Path]) -> tuple[Path, ...]:
    if not ensembles:
        return ()
    # Only what is below its field `model` has the lanes of an ensemble.
    return tuple(
        path[:i]
        for i in range(len(path))
        if path[:i] in ensembles and path[i] == "model"
    )


def is_node(module: eqx.Module) -> bool:
    """Whether a module is called; plumbing, Equinox's and ours, is only walked
    through."""
    kind = type(module)
    if isinstance(module, AxesHolder | LaneHolder | Wrapper):
        return False
    return kind.__module__.partition(".")[0] != "equinox" or kind in _layers()


def is_tied(value: Any) -> bool:
    """Whether `eqx.nn.Shared` has taken a value away, and its mark stands there.

    The mark's class has no public name. Should it get another one, what is tied would
    count as a value of the wrong kind.
    """
    kind = cast("type[Any]", type(value))
    return kind.__name__ == "SharedNode" and kind.__module__.startswith("equinox.")


@functools.lru_cache(maxsize=1)
def _layers() -> frozenset[type]:
    public = (getattr(eqx.nn, name) for name in dir(eqx.nn))
    layers = (x for x in public if isinstance(x, type) and issubclass(x, eqx.Module))
    return frozenset(layers) - {eqx.nn.StateIndex}


def _children_first(found: list[Node]) -> tuple[Node, ...]:
    """Turns parents-first into children-first, siblings in the order they had."""
    nodes: list[Node] = []
    around: list[Node] = []
    for node in found:
        while around and node.path[: len(around[-1].path)] != around[-1].path:
            nodes.append(around.pop())
        around.append(node)
    return (*nodes, *reversed(around))
