"""Where a law holds to rounding only, and how far: see `docs/pages/laws.md`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chorax
from chorax import lanes
from rows import quick


LANES = 5


class Product(eqx.Module):
    """A sum of many rounded products."""

    weight: Any
    x: Any
    y: Any = None

    def step(self):
        return chorax.replace(self, y=self.weight @ self.x)


@pytest.mark.parametrize("size", [3, 64, 1000])
def test_products_differ_by_the_order_of_their_sums(size):
    values = np.random.default_rng(size)
    weight = jnp.asarray(values.normal(size=(7, size)), jnp.float32)
    x = jnp.asarray(values.normal(size=(LANES, size)), jnp.float32)
    batched, delta = chorax.vmap_call_all_fns(
        Product(weight, x), "step", axis_size=LANES, in_axes=Product(None, 0)
    )
    unit = size * np.finfo(np.float32).eps / 2
    bound = 2 * unit / (1 - unit) * np.abs(weight) @ np.abs(x).T
    for i, model in enumerate(lanes.unstack(batched, delta)):
        alone, _ = chorax.call_all_fns(Product(weight, x[i]), "step")
        assert (np.abs(model.y - alone.y) <= bound[:, i]).all()


class Draw(eqx.Module):
    draw: str
    x: Any = None

    def step(self, *, key):
        return chorax.replace(self, x=getattr(jax.random, self.draw)(key, (37,)))


@pytest.mark.parametrize(
    "name",
    quick(["normal", "exponential", "gumbel", "uniform", "bits"], ["normal"]),
)
def test_draws_differ_in_the_last_bits_at_most(name):
    keys = jax.random.split(jax.random.key(3, impl="threefry2x32"), LANES)
    net = [Draw(name) for _ in range(9)]
    batched, delta = chorax.vmap_call_all_fns(net, "step", axis_size=LANES, key=keys)
    for model, key in zip(lanes.unstack(batched, delta), keys, strict=True):
        alone, _ = chorax.call_all_fns(net, "step", key=key)
        for one, other in zip(model, alone, strict=True):
            if name in ("uniform", "bits"):
                assert one.x.tolist() == other.x.tolist()
            else:
                np.testing.assert_array_max_ulp(
                    np.asarray(one.x), np.asarray(other.x), maxulp=4
                )
