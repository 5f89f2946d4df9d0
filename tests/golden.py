"""Draws that stay what they are: recorded once, compared ever after.

python tests/golden.py      # Records them anew, which only a new promise asks for.
"""

import contextlib
import functools
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

import chorax
from chorax import lanes
from layers import LAYERS


RECORD = Path(__file__).with_name("golden.npz")
IMPLS = ["threefry2x32", "rbg", "unsafe_rbg", "legacy"]
LANES = 3


class Toss(eqx.Module):
    """Draws words and numbers, and keeps its key."""

    size: int = eqx.field(static=True)
    words: Any = None
    uniform: Any = None
    key: Any = None

    def step(self, *, key):
        one, two = jax.random.split(key)
        return chorax.replace(
            self,
            words=jax.random.bits(one, (self.size,), jnp.uint32),
            uniform=jax.random.uniform(two, (self.size,), jnp.float32),
            key=key,
        )


class Box(eqx.Module):
    """Draws around another node, and after it."""

    inner: Any
    words: Any = None

    @chorax.call_order(1)
    def step(self, *, key):
        return chorax.replace(self, words=jax.random.bits(key, (), jnp.uint32))


def net():
    members = lanes.Ensemble(
        {"m": Toss(3), "v": jnp.zeros(2, jnp.float32)}, eqx.if_array(0)
    )
    return {
        "alike": [Toss(3) for _ in range(3)],
        "box": Box(Box(Toss(3))),
        "ensemble": members,
    }


@contextlib.contextmanager
def key_of(impl):
    if impl != "legacy":
        yield jax.random.key(7, impl=impl)
        return
    with jax.enable_custom_prng(False), jax.default_prng_impl("threefry2x32"):
        yield jax.random.PRNGKey(7)


def flat(arrays: Any, dtype: Any) -> np.ndarray:
    parts = [np.asarray(x).reshape(-1).astype(dtype) for x in arrays]
    return np.concatenate([np.zeros(0, dtype), *parts])


def drawn(models: Any) -> dict[str, np.ndarray]:
    """The words and the numbers of models, in the order of their leaves."""
    leaves = jtu.tree_leaves(eqx.filter(models, eqx.is_array))
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in leaves
    ]
    numbers = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    words = [x for x in leaves if not jnp.issubdtype(x.dtype, jnp.inexact)]
    parts = (part for x in numbers for part in (jnp.real(x), jnp.imag(x)))
    return {"words": flat(words, np.int64), "numbers": flat(parts, np.float32)}


def draws_of_nodes(impl):
    """Without lanes, with lanes of one key, and with a key for each."""
    with key_of(impl) as key:
        options: Any = {"axis_size": LANES}
        return drawn(
            [
                chorax.call_all_fns(net(), "step", key=key)[0],
                chorax.vmap_call_all_fns(net(), "step", key=key, **options)[0],
                chorax.vmap_call_all_fns(
                    net(), "step", key=jax.random.split(key, LANES), **options
                )[0],
            ]
        )


def draws_of_layer(name):
    """In lanes."""
    old, new = (jax.random.key(i, impl="threefry2x32") for i in range(2))
    layer = LAYERS[name](old)
    if not jtu.tree_leaves(eqx.filter(layer, eqx.is_array)):
        return drawn(())
    return drawn(
        chorax.vmap_call_all_fns(layer, chorax.reset_parameters, axis_size=2, key=new)[
            0
        ]
    )


CASES = {f"nodes, {impl}": functools.partial(draws_of_nodes, impl) for impl in IMPLS}
CASES |= {name: functools.partial(draws_of_layer, name) for name in LAYERS}


if __name__ == "__main__":
    found = {
        f"{name}, {what}": x
        for name, draw in CASES.items()
        for what, x in draw().items()
    }
    savez: Any = np.savez_compressed
    savez(RECORD, **found)
    print(f"{RECORD.stat().st_size} bytes")
