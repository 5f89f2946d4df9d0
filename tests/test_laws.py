"""The laws, over random models: see `trees.py` for what those are made of.

`pytest tests/test_laws.py --hypothesis-profile=thorough` tries each law 2,000 times.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from hypothesis import given, strategies as st

import chorax
import oracle
import trees
from calls import build, call, call_one, jits, maybe_jit, seeds
from chorax import lanes
from trees import axis_choices, keys_of, LANES, shapes, steady_shapes, total


@given(shape=shapes, choices=axis_choices, seed=seeds, jit=jits)
def test_equals_one_by_one(shape, choices, seed, jit):
    tree, in_axes, axes = trees.with_lanes(build(shape, jit), choices)
    keys = keys_of(seed)
    expected = oracle.vmap_call(tree, "step", keys, axes=axes)

    def run(tree, keys):
        return call(tree, keys, in_axes=in_axes)

    batched, _ = maybe_jit(run, jit)(tree, keys)
    oracle.assert_same(batched, expected)


@given(shape=shapes, choices=axis_choices, seed=seeds, jit=jits)
def test_lane_law(shape, choices, seed, jit):
    tree, in_axes, _ = trees.with_lanes(build(shape, jit), choices)
    keys = keys_of(seed)

    def run(tree, keys):
        return lanes.unstack(*call(tree, keys, in_axes=in_axes))

    def alone(model, key):
        return call_one(model, key)[0]

    each = maybe_jit(run, jit)(tree, keys)
    if jtu.tree_leaves(in_axes):
        before = lanes.unstack(tree, in_axes)
    else:
        before = [tree] * LANES
    for model, one, key in zip(each, before, keys, strict=True):
        oracle.assert_same(model, maybe_jit(alone, jit)(one, key))


@given(shape=shapes, choices=axis_choices, seed=seeds, jit=jits)
def test_delta_law(shape, choices, seed, jit):
    one = build(shape, jit)
    tree, in_axes, _ = trees.with_lanes(one, choices)

    def run(tree, one, keys):
        batched, delta = call(tree, keys, in_axes=in_axes)
        alone, plain = call_one(one, keys[0])
        found = chorax.diff(one, alone)
        assert found.paths == plain.paths
        assert jtu.tree_structure(found.values) == jtu.tree_structure(plain.values)
        leaves = jtu.tree_leaves(found.values), jtu.tree_leaves(plain.values)
        assert all(x is y for x, y in zip(*leaves, strict=True))
        applied = chorax.apply_delta(tree, delta), chorax.apply_delta(batched, delta)
        return batched, applied, chorax.apply_delta(one, plain), alone

    batched, applied, again, alone = maybe_jit(run, jit)(tree, one, keys_of(seed))
    oracle.assert_same(applied[0], batched)
    oracle.assert_same(applied[1], batched)
    oracle.assert_same(again, alone)


@given(shape=shapes, choices=axis_choices, seed=seeds, jit=jits)
def test_purity(shape, choices, seed, jit):
    tree, in_axes, _ = trees.with_lanes(build(shape, jit), choices)
    keys = keys_of(seed)
    leaves, structure = jtu.tree_flatten(tree)
    copies = [
        np.array(jax.random.key_data(x) if trees.is_key(x) else x)
        if eqx.is_array(x)
        else x
        for x in leaves
    ]
    batched, delta = maybe_jit(call, jit)(tree, keys, in_axes=in_axes)
    after, same_structure = jtu.tree_flatten(tree)
    assert same_structure == structure
    assert all(x is y for x, y in zip(leaves, after, strict=True))
    for x, y in zip(after, copies, strict=True):
        x = jax.random.key_data(x) if trees.is_key(x) else x
        assert np.array_equal(x, y)
    if not jit:
        # Untouched leaves are the very same objects.
        old = oracle.leaves_by_path(tree)
        new = oracle.leaves_by_path(eqx.combine(delta.values, batched))
        untouched = eqx.filter(batched, delta.filter_spec, inverse=True)
        for path, value in oracle.leaves_by_path(untouched).items():
            assert value is old[path]
            assert new[path] is value


@given(shape=shapes, other=shapes, third=shapes, seed=seeds, jit=jits)
def test_path_law(shape, other, third, seed, jit):
    keys = keys_of(seed)
    subject, other, third = build(shape, jit), build(other, jit), build(third, jit)
    run = maybe_jit(call, jit)
    one, _ = run({"a": subject, "b": other}, keys)
    two, _ = run({"0": third, "a": subject, "c": [other], "d": 1}, keys)
    alone, _ = run({"a": subject}, keys)
    oracle.assert_same(one["a"], two["a"])
    oracle.assert_same(one["a"], alone["a"])


@given(shape=shapes, seed=seeds)
def test_order_law(shape, seed):
    tree, key = trees.build(shape, with_labels=True), keys_of(seed)[0]
    trees.visits.clear()
    oracle.call(tree, "step", key=key)
    # Inside of an ensemble a node is called for one member after the other.
    expected = list(dict.fromkeys(trees.visits))
    trees.visits.clear()
    with jax.disable_jit():
        call_one(tree, key)
    assert trees.visits == expected
    trees.visits.clear()
    with jax.disable_jit():
        call(tree, keys_of(seed))
    assert trees.visits == expected


@given(shape=shapes, choices=axis_choices, seed=seeds)
def test_disabling_jit_changes_nothing(shape, choices, seed):
    tree, in_axes, _ = trees.with_lanes(build(shape), choices)
    keys = keys_of(seed)
    batched, delta = call(tree, keys, in_axes=in_axes)
    with jax.disable_jit():
        plainly, same = call(tree, keys, in_axes=in_axes)
    oracle.assert_same(plainly, batched)
    assert same.paths == delta.paths


def kinds_of(tree, key):
    """What a call on one lane meets: classes, structures, shapes and dtypes, and the
    lanes of ensembles around."""
    met = []

    def remember(node, levels):
        leaves, structure = jtu.tree_flatten(node)
        arrays = [(x.shape, x.dtype) if eqx.is_array(x) else x for x in leaves]
        # Told apart without hashes, which not everything static has.
        kind = (type(node), structure, arrays, levels)
        if not any(kind == other for other in met):
            met.append(kind)

    oracle.call(tree, "step", key=key, watch=remember)
    return met


@pytest.mark.usefixtures("needs_jit")
@given(shape=shapes, seed=seeds)
def test_methods_run_once_a_kind(shape, seed):
    tree, keys = trees.build(shape, with_labels=True), keys_of(seed)

    # Equal labels, so that nodes can be of one kind, and of a class of this run, so
    # that nothing is known of them.
    label = object()

    def relabel(x):
        return label if isinstance(x, str) and x.startswith("node") else x

    tree = jtu.tree_map(relabel, tree)
    kinds = len(kinds_of(tree, keys[0]))
    trees.visits.clear()
    call(tree, keys)
    assert 0 < len(trees.visits) <= kinds
    trees.visits.clear()
    call(tree, keys)
    # Of what is static and can't be hashed nothing is remembered.
    if "unhashable" not in str(shape):
        assert not trees.visits


def numbers_of(model):
    """One number that depends on every leaf that has a gradient."""
    return total(eqx.filter(model, eqx.is_inexact_array))


def as_arrays(model):
    return jtu.tree_leaves(eqx.filter(model, eqx.is_array))


def in_scan(run, keys):
    return jax.lax.scan(lambda carry, key: (carry + 1, run(key)), 0, keys)[1]


loops = st.sampled_from(
    [
        in_scan,
        jax.lax.map,
        lambda run, keys: jax.vmap(run)(keys),
        lambda run, keys: jax.jit(jax.vmap(run))(keys),
        lambda run, keys: jax.lax.map(jax.jit(run), keys),
        lambda run, keys: jax.lax.map(jax.checkpoint(run), keys),
    ]
)


@given(shape=shapes, seed=seeds, loop=loops)
def test_composition_with_loops(shape, seed, loop):
    tree, keys = trees.build(shape), keys_of(seed)
    found = loop(lambda k: as_arrays(call(tree, jax.random.split(k, LANES))[0]), keys)
    for i, key in enumerate(keys):
        expected = oracle.vmap_call(tree, "step", jax.random.split(key, LANES))
        oracle.assert_same([x[i] for x in found], as_arrays(expected))


wraps = st.sampled_from(
    [lambda f: f, eqx.filter_jit, eqx.filter_checkpoint, jax.named_call]
)


@given(shape=shapes, choices=axis_choices, seed=seeds, wrap=wraps)
def test_composition_with_grad(shape, choices, seed, wrap):
    tree, in_axes, axes = trees.with_lanes(build(shape, True), choices)
    keys = keys_of(seed)

    def ours(tree):
        return numbers_of(call(tree, keys, in_axes=in_axes)[0])

    def by_hand(tree):
        return numbers_of(oracle.vmap_call(tree, "step", keys, axes=axes))

    found = eqx.filter_grad(wrap(ours))(tree)
    oracle.assert_same(found, eqx.filter_grad(by_hand)(tree))


@given(shape=shapes, choices=axis_choices, seed=seeds)
def test_composition_with_eval_shape(shape, choices, seed):
    tree, in_axes, axes = trees.with_lanes(build(shape, True), choices)
    keys = keys_of(seed)

    def run(tree, keys):
        return call(tree, keys, in_axes=in_axes)[0]

    found = eqx.filter_eval_shape(run, tree, keys)
    expected = oracle.vmap_call(tree, "step", keys, axes=axes)
    pairs = zip(jtu.tree_leaves(found), jtu.tree_leaves(expected), strict=True)
    for x, y in pairs:
        if eqx.is_array(y):
            assert (x.shape, x.dtype) == (y.shape, jnp.asarray(y).dtype)


@given(shape=steady_shapes, choices=axis_choices, seed=seeds)
def test_a_loop_over_the_states(shape, choices, seed):
    tree, in_axes, axes = trees.with_lanes(build(shape), choices)
    keys = keys_of(seed)
    net, delta = call(tree, keys, in_axes=in_axes)
    states, rest = eqx.partition(net, delta.filter_spec)
    arrays, static = eqx.partition(states, eqx.is_array)

    def body(arrays, key):
        net = eqx.combine(arrays, static, rest)
        keys = jax.random.split(key, LANES)
        net, _ = call(net, keys, in_axes=delta)
        return eqx.filter(eqx.filter(net, delta.filter_spec), eqx.is_array), None

    arrays, _ = jax.lax.scan(body, arrays, keys)
    expected = oracle.vmap_call(tree, "step", keys, axes=axes)
    known = oracle.leaves_by_path(delta.in_axes)
    for key in keys:
        now = [known.get(path) for path in oracle.leaves_by_path(expected)]
        split = jax.random.split(key, LANES)
        expected = oracle.vmap_call(expected, "step", split, axes=now)
    # What is squared again and again outgrows the whole numbers that a float can be.
    numbers = jtu.tree_leaves(eqx.filter(expected, eqx.is_inexact_array))
    sizes = [jnp.abs(x).max(initial=0).astype(jnp.float32) for x in numbers]
    exact = all(size < 2**20 for size in sizes)
    oracle.assert_same(eqx.combine(arrays, static, rest), expected, exact=exact)
