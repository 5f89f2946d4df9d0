"""Keys that draw otherwise in a batch than alone, and which laws hold for them.

A batch of `rbg` keys draws by the first of them, so its lanes are not what each key
draws alone. All else holds: they are what `jax.vmap` makes of the same draws by hand,
without lanes there is no difference at all, and nobody's draws depend on other nodes.
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import oracle
from chorax import call_all_fns, replace, vmap_call_all_fns
from rows import quick


class Toss(eqx.Module):
    """Draws twice what no compiler rounds."""

    size: int = eqx.field(static=True)
    x: Any = None
    n: Any = None

    def step(self, *, key):
        one, two = jax.random.split(key)
        x = jax.random.uniform(one, (self.size,))
        return replace(self, x=x, n=jax.random.bits(two, (), jnp.uint32))


IMPLS = pytest.mark.parametrize("impl", quick(["rbg", "unsafe_rbg"], ["unsafe_rbg"]))
WAYS = [lambda f: f, eqx.filter_jit]
JITS = pytest.mark.parametrize("jit", quick(WAYS, WAYS[:1]))
MANY = 3


def net():
    return {"a": [Toss(3) for _ in range(MANY)], "b": (Toss(2), [Toss(3)])}


def lanes_of(net, key, **options):
    return vmap_call_all_fns(net, "step", axis_size=2, key=key, **options)[0]


@pytest.mark.slow
@IMPLS
@JITS
def test_without_lanes_draws_go_by_path_alone(impl, jit):
    key = jax.random.key(1, impl=impl)
    run = jit(lambda net, key: call_all_fns(net, "step", key=key)[0])
    oracle.assert_same(run(net(), key), oracle.call(net(), "step", key=key))


@pytest.mark.slow
@IMPLS
@JITS
def test_lanes_draw_what_vmap_by_hand_draws(impl, jit):
    key = jax.random.key(1, impl=impl)
    by_hand = eqx.filter_vmap(lambda key: oracle.call(net(), "step", key=key))
    expected = by_hand(jax.random.split(key, 2))
    oracle.assert_same(jit(lanes_of)(net(), key), expected)
    oracle.assert_same(jit(lanes_of)(net(), jax.random.split(key, 2)), expected)
    for node in jax.tree.leaves(expected, is_leaf=lambda x: isinstance(x, Toss)):
        assert node.x[0].tolist() != node.x[1].tolist()


@IMPLS
@pytest.mark.parametrize(
    ("sizes", "jit"),
    quick(
        itertools.product([(3, 3, 3), (1, 2, 3), (2, 2, 1, 3)], WAYS),
        [((3, 3, 3), WAYS[0])],
    ),
)
def test_other_nodes_change_no_draws(sizes, impl, jit):
    key = jax.random.key(1, impl=impl)
    net = [Toss(size) for size in sizes]
    for call in (lanes_of, lambda net, key: call_all_fns(net, "step", key=key)[0]):
        many = jit(call)(net, key)
        for index, node in enumerate(net):
            alone = jit(call)([None] * index + [node], key)
            oracle.assert_same(many[index], alone[index])


@pytest.mark.slow
@pytest.mark.usefixtures("needs_jit")
@IMPLS
def test_chunks_draw_each_for_themselves(impl):
    """Chunks are batches of their own: of `rbg` keys each draws by its own first."""
    keys = jax.random.split(jax.random.key(1, impl=impl), 4)
    whole, _ = vmap_call_all_fns([Toss(3)], "step", axis_size=4, key=keys, chunk_size=2)
    for first in (0, 2):
        chunk = lanes_of([Toss(3)], keys[first : first + 2])
        oracle.assert_same(whole[0].x[first : first + 2], chunk[0].x)
