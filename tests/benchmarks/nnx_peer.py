"""The same work in Flax NNX: `split_rngs` and `vmap`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Neuron(nnx.Module):
    """Three small arrays, two of them drawn."""

    def __init__(self, size: int, rngs: nnx.Rngs) -> None:
        self.size = size
        self.v = nnx.Variable(jax.random.normal(rngs(), (size,)))
        self.g = nnx.Variable(jax.random.uniform(rngs(), (size,)))
        self.spikes = nnx.Variable(jnp.zeros(size))

    def reset(self, rngs: nnx.Rngs, *, all_of_it: bool) -> None:
        """Draws the states afresh, or but for one of them."""
        self.v.set_value(jax.random.normal(rngs(), (self.size,)))
        if all_of_it:
            self.g.set_value(jax.random.uniform(rngs(), (self.size,)))
        self.spikes.set_value(jnp.zeros(self.size))


class Net(nnx.Module):
    """Neurons side by side."""

    def __init__(self, sizes: list[int], rngs: nnx.Rngs) -> None:
        self.neurons = nnx.List([Neuron(size, rngs) for size in sizes])


def nnx_vmap(task: str, nodes: int, lanes: int) -> Callable[[], Any] | None:
    """`nnx.vmap` of the constructor, or of a loop of resets."""

    many = task.startswith("six kinds")
    sizes = [8 + 4 * (i % 6) * many for i in range(nodes)]

    @nnx.split_rngs(splits=lanes)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> Net:
        return Net(sizes, rngs)

    @nnx.split_rngs(splits=lanes)
    @nnx.vmap
    def reset(net: Net, rngs: nnx.Rngs) -> None:
        for neuron in net.neurons:
            neuron.reset(rngs, all_of_it=task == "reset")

    if task in ("create", "six kinds"):
        return lambda: nnx.state(create(nnx.Rngs(0)))
    if task in ("reset", "six kinds reset"):
        net, rngs = create(nnx.Rngs(0)), nnx.Rngs(1)

        def again() -> Any:
            reset(net, rngs)
            return nnx.state(net)

        return again
    return None
