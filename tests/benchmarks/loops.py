"""`lanes.scan` against the scan by hand, and `lanes.fold` against the Python loop.

Run as `python -m tests.benchmarks.loops`: prints a line of JSON for each program. The
programs take turns; `compile` (with tracing and lowering) and `run` are medians in
seconds, `temp` are the bytes that XLA sets aside for intermediate values.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import chorax
from chorax import lanes


LANES, STEPS, DEPTH = 32, 200, 24


class Spiking(eqx.Module):
    """Leaky integrate-and-fire neurons; a surrogate gradient stands in for the step."""

    weight: jax.Array
    v: jax.Array | None = None

    def init_state(self) -> "Spiking":
        return chorax.replace(self, v=jnp.zeros(self.weight.shape[0]))

    def __call__(self, x: jax.Array) -> tuple["Spiking", jax.Array]:
        assert self.v is not None
        v = 0.9 * self.v + self.weight @ x
        soft = jax.nn.sigmoid(5 * (v - 1))
        spikes = soft + jax.lax.stop_gradient((v > 1) - soft)
        return chorax.replace(self, v=v - spikes), spikes


class Block(eqx.Module):
    """A block of a transformer, pre-norm."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __init__(self, width: int, key: jax.Array) -> None:
        one, two = jax.random.split(key)
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]
        self.attention = eqx.nn.MultiheadAttention(4, width, key=one)
        self.mlp = eqx.nn.MLP(width, width, 4 * width, 1, jax.nn.gelu, key=two)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


def call(net: list[Spiking], x: jax.Array) -> tuple[list[Spiking], jax.Array]:
    layers: list[Spiking] = []
    for layer in net:
        layer, x = layer(x)
        layers.append(layer)
    return layers, x


def time_programs(checkpoint: bool) -> tuple[dict[str, Any], Any, Any]:
    """The mean activity of a spiking net over time, in both forms."""
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = zip((128, 128, 128), (64, 128, 128), keys, strict=True)
    net = [Spiking(jax.random.normal(k, (m, n)) / n**0.5) for m, n, k in sizes]
    xs = jax.random.normal(jax.random.key(1), (STEPS, LANES, 64))

    def ours(net: Any, xs: Any) -> Any:
        net, delta = chorax.vmap_init_all_states(net, axis_size=LANES)
        _, ys = lanes.scan(call, net, delta, xs, checkpoint=checkpoint)
        return (ys**2).mean()

    def by_hand(net: Any, xs: Any) -> Any:
        net, delta = chorax.vmap_init_all_states(net, axis_size=LANES)
        axes = delta.in_axes
        run = eqx.filter_vmap(call, in_axes=(axes, 0), out_axes=(axes, 0))
        states, shared = eqx.partition(net, delta.filter_spec)

        def tick(states: Any, x: Any) -> Any:
            net, y = run(eqx.combine(states, shared), x)
            return eqx.filter(net, delta.filter_spec), y

        step = jax.checkpoint(tick) if checkpoint else tick
        return (jax.lax.scan(step, states, xs)[1] ** 2).mean()

    return {"lanes.scan": ours, "by hand": by_hand}, net, xs


def depth_programs(checkpoint: bool) -> tuple[dict[str, Any], Any, Any]:
    """The forward pass of a transformer of 24 blocks, in both forms."""
    keys = jax.random.split(jax.random.key(0), DEPTH)
    blocks = [Block(64, key) for key in keys]
    xs = jax.random.normal(jax.random.key(1), (8, 64, 64))

    def block(block: Any, x: Any) -> Any:
        return jax.vmap(block)(x)

    def folded(stacked: Any, x: Any) -> Any:
        axes = eqx.if_array(0)

        def step(member: Any, x: Any) -> Any:
            return block(member, x), None

        x, _ = lanes.fold(step, stacked, axes, x, checkpoint=checkpoint)
        return (x**2).mean()

    def looped(blocks: Any, x: Any) -> Any:
        step = eqx.filter_checkpoint(block) if checkpoint else block
        for each in blocks:
            x = step(each, x)
        return (x**2).mean()

    stacked, _ = lanes.stack(blocks)
    return {"lanes.fold": (folded, stacked), "Python loop": (looped, blocks)}, None, xs


def measure(programs: dict[str, tuple[Callable[..., Any], Any]], x: Any) -> Any:
    """Medians of programs that take turns."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"compile": [], "run": [], "temp": []} for name in programs
    }
    for _ in range(3):
        for name, (function, model) in programs.items():
            jax.clear_caches()
            start = time.perf_counter()
            compiled = eqx.filter_jit(function).lower(model, x).compile()
            found[name]["compile"].append(time.perf_counter() - start)
            memory = compiled.compiled.memory_analysis()
            found[name]["temp"].append(memory.temp_size_in_bytes)
            jax.block_until_ready(compiled(model, x))
            for _ in range(10):
                start = time.perf_counter()
                jax.block_until_ready(compiled(model, x))
                found[name]["run"].append(time.perf_counter() - start)
    return {
        name: {key: statistics.median(values) for key, values in row.items()}
        for name, row in found.items()
    }


def figures() -> Iterator[dict[str, Any]]:
    """One row for each program."""
    for make in (time_programs, depth_programs):
        for kind in ("forward", "gradient", "gradient, checkpoint"):
            programs, model, x = make(kind.endswith("checkpoint"))
            wrap: Any = eqx.filter_jit if kind == "forward" else eqx.filter_grad
            pairs = {
                name: entry if model is None else (entry, model)
                for name, entry in programs.items()
            }
            pairs = {name: (wrap(f), m) for name, (f, m) in pairs.items()}
            for name, row in measure(pairs, x).items():
                yield {"what": kind, "program": name, **row}


if __name__ == "__main__":
    for row in figures():
        print(json.dumps(row), flush=True)
