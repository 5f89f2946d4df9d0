"""The same work in brainstate."""

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp


class Neuron(brainstate.nn.Module):
    """Three small arrays, two of them drawn."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def init_state(self) -> None:
        """Makes the states."""
        self.v = brainstate.ShortTermState(brainstate.random.normal(size=(self.size,)))
        self.g = brainstate.ShortTermState(brainstate.random.uniform(size=(self.size,)))
        self.spikes = brainstate.ShortTermState(jnp.zeros(self.size))


class Net(brainstate.nn.Module):
    """Neurons side by side."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.neurons = [Neuron(size) for size in sizes]


def vmap_call_all_fns(task: str, nodes: int, lanes: int) -> Callable[[], Any] | None:
    """brainstate's function of that name."""
    # Resetting drops the lanes of states that are there, so that is other work.
    if task not in ("create", "six kinds"):
        return None
    many = task == "six kinds"
    net = Net([8 + 4 * (i % 6) * many for i in range(nodes)])

    def run() -> Any:
        brainstate.nn.vmap_call_all_fns(
            net, "init_state", axis_size=lanes, fn_if_not_exist="pass"
        )
        states: Any = net.states()
        return [jax.tree.leaves(state.value) for state in states.values()]

    return run
