"""Times a warm call on modules with shape annotations against the same without.

Run as `python tests/benchmarks/annotations.py`. Both calls take turns, so that what
else the machine does falls on both; the ratio of their times is to be 1.
"""

import argparse
import statistics
import timeit
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

import chorax


def make_class(vector: Any, matrix: Any, count: Any) -> Any:
    """A neuron whose fields are annotated so."""

    class Neuron(eqx.Module):
        w: matrix  # pyright: ignore[reportInvalidTypeForm]
        v: vector  # pyright: ignore[reportInvalidTypeForm]
        trace: vector  # pyright: ignore[reportInvalidTypeForm]
        spikes: count  # pyright: ignore[reportInvalidTypeForm]

        def init_state(self, key):
            v = jax.random.normal(key, self.w.shape[:1])
            spikes = jnp.zeros(v.shape, jnp.int32)
            return chorax.replace(self, v=v, trace=0.1 * v, spikes=spikes)

    return Neuron


def make_call(cls: Any, nodes: int, lanes: int) -> Any:
    """A call that makes states, ready to be repeated."""
    model = [cls(jnp.ones((8, 4)), None, None, None) for _ in range(nodes)]
    key = jax.random.key(0)

    def call() -> None:
        net, _ = chorax.vmap_init_all_states(model, axis_size=lanes, key=key)
        jax.block_until_ready(eqx.filter(net, eqx.is_array))

    return call


def main() -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    checked = make_class(Float[Array, "n"], Float[Array, "n m"], Int[Array, "n"])
    calls = {
        name: make_call(cls, args.nodes, args.lanes)
        for name, cls in {"with": checked, "without": make_class(Any, Any, Any)}.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(args.rounds):
        for name, call in calls.items():
            times[name].append(timeit.timeit(call, number=1))
    for name, found in times.items():
        median, best = statistics.median(found) * 1e3, min(found) * 1e3
        print(f"{name:>8} annotations: median {median:.3f} ms, best {best:.3f} ms")
    pairs = zip(times["with"], times["without"], strict=True)
    ratios = sorted(a / b for a, b in pairs)
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    middle = statistics.median(ratios)
    print(f"ratio: median {middle:.3f}, middle half {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
