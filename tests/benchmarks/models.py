"""The Equinox models that are measured, and how they are made for each task."""

import importlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import chorax


class Neuron(eqx.Module):
    """Three small arrays, two of them drawn, as neurons of many libraries have them."""

    size: int = eqx.field(static=True)
    v: jax.Array | None = None
    g: jax.Array | None = None
    spikes: jax.Array | None = None

    def init_state(self, *, key: jax.Array) -> "Neuron":
        """Draws the states afresh."""
        of_v, of_g = jax.random.split(key)
        v = jax.random.normal(of_v, (self.size,))
        g = jax.random.uniform(of_g, (self.size,))
        return chorax.replace(self, v=v, g=g, spikes=jnp.zeros(self.size))

    def reset_state(self, *, key: jax.Array) -> "Neuron":
        """Draws one of them afresh, and keeps another."""
        v = jax.random.normal(key, (self.size,))
        return chorax.replace(self, v=v, spikes=jnp.zeros(self.size))


class Block(eqx.Module):
    """A big matrix, and a state that goes through it."""

    weight: jax.Array
    v: jax.Array

    def step(self) -> "Block":
        """One step of a network without input."""
        return chorax.replace(self, v=jnp.tanh(self.weight @ self.v))


class Link(eqx.Module):
    """A node of a tree, with the nodes below it."""

    below: list["Link"]
    v: jax.Array | None = None

    def init_state(self, *, key: jax.Array) -> "Link":
        """Draws the node's own state."""
        return chorax.replace(self, v=jax.random.normal(key, (4,)))


class Mostly(eqx.Module):
    """Weights that all lanes share, and a small part that each lane has."""

    weight: jax.Array
    v: jax.Array

    def init_state(self, *, key: jax.Array) -> "Mostly":
        """Draws the small part afresh."""
        return chorax.replace(self, v=jax.random.uniform(key, self.v.shape))


class Cell(eqx.Module):
    """Two arrays, and methods of hardly any work."""

    v: jax.Array
    w: jax.Array

    def zeros(self) -> "Cell":
        """Both are zeros."""
        return chorax.replace(self, v=jnp.zeros(8), w=jnp.zeros((8, 8)))

    def add(self) -> "Cell":
        """One of them is more by one."""
        return chorax.replace(self, v=self.v + 1)


class Recurrent(eqx.Module):
    """Six cells and six layers to read them out, all of other sizes."""

    cells: list[eqx.nn.GRUCell]
    outs: list[eqx.nn.Linear]

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 12)
        self.cells = [eqx.nn.GRUCell(4 + i, 8 + i, key=keys[i]) for i in range(6)]
        self.outs = [eqx.nn.Linear(8 + i, 3, key=keys[6 + i]) for i in range(6)]


def _vision(key: jax.Array) -> Any:
    models: Any = importlib.import_module("equimo.models")
    return models.VisionTransformer(
        img_size=32,
        in_channels=3,
        dim=48,
        patch_size=8,
        num_heads=[3],
        depths=[4],
        num_classes=10,
        key=key,
    )


# Models of which each lane is a member with parameters of its own.
MEMBERS: dict[str, Callable[[jax.Array], Any]] = {
    "MLP": lambda key: eqx.nn.MLP(7, 3, 32, 7, key=key),
    "recurrent": Recurrent,
    "vision": _vision,
}


def kinds_of(task: str, nodes: int) -> int:
    """How many kinds the nodes of a task are of, where all are called."""
    known = {"six kinds": 6, "six kinds reset": 6, "MLP": 4, "recurrent": 12}
    by_node = {"kinds by shape", "kinds by class", "chain", "tree"}
    return known.get(task, nodes if task in by_node else 1)


def make_model(task: str, nodes: int) -> Any:
    """The model of a task; `nodes` are the links of a chain, the levels of a tree."""
    if task in MEMBERS:
        return MEMBERS[task](jax.random.key(0))
    match task:
        case "six kinds" | "six kinds reset":
            return [Neuron(8 + 4 * (i % 6)) for i in range(nodes)]
        case "zeros" | "add":
            return [Cell(jnp.ones(8), jnp.ones((8, 8))) for _ in range(nodes)]
        case "kinds by shape":
            return [Neuron(1 + i) for i in range(nodes)]
        case "kinds by class":
            return [type(f"Neuron{i}", (Neuron,), {})(8) for i in range(nodes)]
        case "blocks":
            return [
                Block(jnp.full((1024, 1024), 1e-3 * i), jnp.ones(1024))
                for i in range(nodes)
            ]
        case "shared":
            part = (1 << 20) // nodes
            return [Mostly(jnp.ones((9, part)), jnp.ones(part)) for _ in range(nodes)]
        case "chain":
            link = Link([])
            for _ in range(nodes - 1):
                link = Link([link])
            return link
        case "tree":
            return binary_tree(nodes)
        case _:
            return [Neuron(8) for _ in range(nodes)]


def binary_tree(levels: int) -> Link:
    """A full binary tree."""
    below = [binary_tree(levels - 1) for _ in range(2)] if levels > 1 else []
    return Link(below)
