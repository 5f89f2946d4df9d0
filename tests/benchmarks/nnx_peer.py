"""The same work in Flax NNX: `split_rngs` and `vmap`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Neuron(nnx.Module):
    """Three small arrays, two of them drawn."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.v = nnx.Variable(jax.random.normal(rngs(), (8,)))
        self.g = nnx.Variable(jax.random.uniform(rngs(), (8,)))
        self.spikes = nnx.Variable(jnp.zeros(8))

    def reset(self, rngs: nnx.Rngs) -> None:
        """Draws the states afresh."""
        self.v.set_value(jax.random.normal(rngs(), (8,)))
        self.g.set_value(jax.random.uniform(rngs(), (8,)))
        self.spikes.set_value(jnp.zeros(8))


class Net(nnx.Module):
    """Neurons side by side."""

    def __init__(self, nodes: int, rngs: nnx.Rngs) -> None:
        self.neurons = nnx.List([Neuron(rngs) for _ in range(nodes)])


def nnx_vmap(task: str, nodes: int, lanes: int) -> Callable[[], Any] | None:
    """`nnx.vmap` of the constructor, or of a loop of resets."""

    @nnx.split_rngs(splits=lanes)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> Net:
        return Net(nodes, rngs)

    @nnx.split_rngs(splits=lanes)
    @nnx.vmap
    def reset(net: Net, rngs: nnx.Rngs) -> None:
        for neuron in net.neurons:
            neuron.reset(rngs)

    if task == "create":
        return lambda: nnx.state(create(nnx.Rngs(0)))
    if task == "reset":
        net, rngs = create(nnx.Rngs(0)), nnx.Rngs(1)

        def again() -> Any:
            reset(net, rngs)
            return nnx.state(net)

        return again
    return None
