"""Which modules of a tree are nodes, and in which order they are called."""

import dataclasses
import functools
from typing import Any, cast

import equinox as eqx
import jax.tree_util as jtu

from ._delta import StateDelta
from ._draft import Ref, Slot
from ._ensemble import Ensemble
from ._paths import Path


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A module to be called: where it stands and what it was at the start."""

    path: Path
    module: eqx.Module
    # The paths of the ensembles around it, the outermost first.
    ensembles: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Walked:
    """A target taken apart: nodes with children before parents, leaves in order."""

    nodes: tuple[Node, ...]
    leaves: tuple[Any, ...]
    leaf_paths: tuple[Path, ...]
    structure: jtu.PyTreeDef
    draft: Slot
    # Every module by its path, nodes and plumbing; parents first.
    modules: tuple[tuple[Path, eqx.Module], ...]


def walk_nodes(target: Any) -> Walked:
    """Takes a target apart; the walk that everything after it relies on."""
    modules: list[eqx.Module] = []

    def see(x: Any) -> bool:
        if isinstance(x, eqx.Module):
            modules.append(x)
        return False

    leaves, structure = jtu.tree_flatten(target, is_leaf=see)
    refs = [Ref(i) for i in range(len(leaves))]
    draft = Slot(jtu.tree_unflatten(structure, refs), None, None)

    # The draft has the same modules as the target, met in the same order, but `Ref`s
    # for leaves: the walk can tell leaves from containers by a look at their class.
    originals = iter(modules)
    found: list[tuple[Path, eqx.Module]] = []
    leaf_paths: list[Path] = []
    for path, slot in draft.walk():
        if isinstance(slot.value, Ref):
            leaf_paths.append(path)
        elif isinstance(slot.value, eqx.Module):
            found.append((path, next(originals)))
    around = {path for path, m in found if isinstance(m, Ensemble)}
    nodes = [Node(path, m, _around(path, around)) for path, m in found if is_node(m)]
    return Walked(
        _children_first(nodes),
        tuple(leaves),
        tuple(leaf_paths),
        structure,
        draft,
        tuple(found),
    )


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
    if isinstance(module, Ensemble | StateDelta):
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
