"""Noise for each lane and leaf, against keys that are folded by hand."""

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import chorax
import oracle
from chorax import lanes
from chorax.filters import PathContains


def noise(key, x):
    return x + jax.random.normal(key, x.shape, x.dtype)


def by_hand(batched, axes, keys, fn=noise, keep=lambda path: True):
    """Lane by lane and leaf by leaf; `axes` has an entry for each path."""
    leaves = oracle.leaves_by_path(batched)
    for path, x in leaves.items():
        axis = axes.get(path)
        if axis is None or not eqx.is_inexact_array(x) or not keep(path):
            continue
        rows = [
            fn(oracle.node_key(key, path), oracle.lane_of(x, axis, i))
            for i, key in enumerate(keys)
        ]
        leaves[path] = jnp.moveaxis(jnp.stack(rows), 0, axis)
    return jtu.tree_unflatten(jtu.tree_structure(batched), leaves.values())


def net():
    batched = {
        "a": [jnp.arange(6.0).reshape(3, 2), jnp.zeros((3, 2))],
        "behind": jnp.zeros((2, 3)),
        "shared": jnp.ones(2),
        "n": jnp.arange(3),
        "text": "x",
    }
    axes = {"a": 0, "behind": -1, "shared": None, "n": 0, "text": None}
    by_path = {("a", 0): 0, ("a", 1): 0, ("behind",): 1, ("n",): 0}
    return batched, axes, by_path


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_a_key_for_each_lane_and_leaf(jit, many, lane_key):
    batched, axes, by_path = net()
    keys = jax.random.split(lane_key, 3)

    def run(batched, key):
        return lanes.perturb(batched, axes, key, noise)

    found = (eqx.filter_jit(run) if jit else run)(batched, keys if many else lane_key)
    expected = by_hand(batched, by_path, keys)
    oracle.assert_same(found, expected, exact=False)
    drawn = found["a"][1], found["behind"].T
    assert len({float(x) for each in drawn for x in each.ravel()}) == 12
    if not jit:
        assert all(found[name] is batched[name] for name in ("shared", "n", "text"))


def test_legacy_keys(legacy_lane_key):
    batched, axes, by_path = net()
    found = lanes.perturb(batched, axes, legacy_lane_key, noise)
    expected = by_hand(batched, by_path, jax.random.split(legacy_lane_key, 3))
    oracle.assert_same(found, expected, exact=False)


def test_a_function_on_nodes_that_folds_paths_by_hand(lane_key):
    """The root's key is the lane's, folded with the empty path: here it is given to
    the function without that."""
    linear = eqx.nn.Linear(2, 3, key=lane_key)
    batched, axes = lanes.broadcast(linear, 4)
    keys = jax.random.split(lane_key, 4)

    def node(linear, key):
        def own(name):
            x = getattr(linear, name)
            return noise(oracle.node_key(key, (name,)), x)

        return chorax.replace(linear, weight=own("weight"), bias=own("bias"))

    expected, _ = chorax.vmap_call_all_fns(
        batched, node, keys, args_in_axes=0, in_axes=axes
    )
    found = lanes.perturb(batched, axes, lane_key, noise)
    oracle.assert_same(found, expected, exact=False)


def test_other_leaves_change_no_draw(lane_key):
    batched, axes, _ = net()
    found = lanes.perturb(batched, axes, lane_key, noise)
    more = {"0": jnp.ones((3, 4)), **batched, "z": jnp.ones((3, 2))}
    fewer = {"a": batched["a"], "text": "y"}
    turned = dict(reversed(batched.items()))
    for other in (more, fewer, turned):
        own = dict.fromkeys(other, 0) | {name: axes.get(name, 0) for name in other}
        again = lanes.perturb(other, own, lane_key, noise)
        assert (again["a"][0] == found["a"][0]).all()
        assert (again["a"][1] == found["a"][1]).all()
    only = lanes.perturb(batched, axes, lane_key, noise, PathContains(1))
    assert (only["a"][1] == found["a"][1]).all()
    assert only["a"][0] is batched["a"][0]


class Member(eqx.Module):
    w: jax.Array
    rate: Any = None

    def set_rate(self, rate):
        return chorax.replace(self, rate=rate)


def swept():
    batched, axes = lanes.broadcast(Member(jnp.ones(2)), 4)
    return chorax.vmap_call_all_fns(
        batched,
        "set_rate",
        jnp.array([0.1, 0.2, 0.3, 0.4]),
        in_axes=axes,
        args_in_axes=0,
        state_tag="hyper",
    )


def test_explore_in_some_lanes(lane_key):
    """As population-based training does with the swept values of its worst members."""
    batched, delta = swept()

    def explore(key, rate):
        return rate * jax.random.uniform(key, (), rate.dtype, 0.8, 1.2)

    tried = lanes.perturb(batched, delta, lane_key, explore, "hyper")
    assert tried.w is batched.w
    keys = jax.random.split(lane_key, 4)
    expected = by_hand(batched, {("rate",): 0}, keys, explore)
    oracle.assert_same(tried, expected, exact=False)
    assert len(set((tried.rate / batched.rate).tolist())) == 4
    worst = jnp.array([False, True, False, True])
    mixed = lanes.where(worst, tried, batched, delta)
    expected = jnp.where(worst, tried.rate, batched.rate)
    assert (mixed.rate == expected).all()


def test_only_what_is_trained(lane_key):
    """The part of a model that `partition` gives has the paths and axes of all."""
    batched, delta = swept()
    params, rest = lanes.partition(batched, delta)
    found = eqx.combine(lanes.perturb(params, delta, lane_key, noise), rest)
    assert found.rate is batched.rate
    oracle.assert_same(found.w, lanes.perturb(batched, delta, lane_key, noise).w)


def test_inside_scan_and_grad(lane_key):
    """An evolution strategy: noise in every step, and a gradient through it."""
    batched, axes = {"w": jnp.zeros((4, 2))}, {"w": 0}

    def step(batched, key):
        return lanes.perturb(batched, axes, key, noise), None

    keys = jax.random.split(lane_key, 3)
    found, _ = jax.lax.scan(step, batched, keys)
    expected = batched
    for key in keys:
        expected = by_hand(expected, {("w",): 0}, jax.random.split(key, 4))
    oracle.assert_same(found, expected, exact=False)

    def spread(size):
        def scaled(key, x):
            return x + size * jax.random.normal(key, x.shape, x.dtype)

        made = lanes.perturb(batched, axes, lane_key, scaled)
        return jnp.sum(made["w"])

    drawn = lanes.perturb(batched, axes, lane_key, noise)["w"].sum()
    np.testing.assert_allclose(jax.grad(spread)(2.0), drawn, rtol=1e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason="there are fewer than 8 devices")
@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("jit", [False, True])
def test_lanes_on_many_devices(jit, types, lane_key):
    mesh = jax.make_mesh((8,), ("lanes",), axis_types=(types,))
    where = NamedSharding(mesh, P("lanes"))
    batched = {"a": jnp.ones((16, 3)), "shared": jnp.ones(2), "b": jnp.ones((3, 16))}
    axes = {"a": 0, "shared": None, "b": 1}

    def run(batched):
        return lanes.perturb(batched, axes, lane_key, noise)

    expected = run(batched)
    spread = lanes.shard(batched, axes, where)
    enter: Any = vars(jax.sharding).get("use_mesh") or jax.set_mesh
    with enter(mesh) if jit else contextlib.nullcontext():
        found = (eqx.filter_jit(run) if jit else run)(spread)
    assert {x.data.shape for x in found["a"].addressable_shards} == {(2, 3)}
    assert {x.data.shape for x in found["b"].addressable_shards} == {(3, 2)}
    oracle.assert_same(found, expected, exact=False)


def test_what_the_function_returns():
    batched, axes = {"a": jnp.ones((3, 2)), "b": [jnp.ones((3, 2))]}, 0
    key = jax.random.key(0)
    text = (
        r"`fn` of `perturb` must return an array of the shape and dtype of the leaf, "
        r"float\d\d\[2\], but at `b.0` it returned "
    )
    wrong = [
        (lambda x: x.sum(), r"a traced array of dtype float\d\d and shape \(\)\."),
        (lambda x: x.astype(jnp.bfloat16), r"a traced array of dtype bfloat16 and .*"),
        (lambda x: None, r"`None`\."),
        (lambda x: [x], r"\[.*"),
    ]
    for change, found in wrong:
        with pytest.raises(ValueError, match=text + found):
            lanes.perturb(
                batched, axes, key, lambda _, x, f=change: f(x), PathContains("b")
            )


def test_bad_use(lane_key):
    batched = {"a": jnp.ones((3, 2))}

    def broken(key, x):
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing") as caught:
        lanes.perturb(batched, 0, lane_key, broken)
    assert caught.value.__notes__ == ["Raised by `fn` of `perturb` at `a`."]
    perturb: Any = lanes.perturb
    with pytest.raises(TypeError, match="`key` of `perturb` must be a PRNG key"):
        perturb(batched, 0, None, noise)
    with pytest.raises(TypeError, match=r"`fn` of `perturb` must be a function `\(key"):
        perturb(batched, 0, lane_key, 0.1)
    with pytest.raises(ValueError, match=r"expected shape \(3,\), got \(2,\)"):
        perturb(batched, 0, jax.random.split(lane_key, 2), noise)
    # Nothing to draw, and nothing drawn.
    assert perturb(batched, 0, lane_key, broken, None)["a"] is batched["a"]
