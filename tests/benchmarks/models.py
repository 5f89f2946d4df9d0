"""The Equinox models that are measured, and how they are made for each task."""

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


def make_model(task: str, nodes: int) -> Any:
    """The model of a task; `nodes` are the links of a chain, the levels of a tree."""
    match task:
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
