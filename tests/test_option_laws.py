"""What deltas, options and lanes promise, over random models: see `trees.py`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest
from hypothesis import given, strategies as st

import chorax
import oracle
import trees
from calls import (
    build,
    call,
    jits,
    masks,
    maybe_jit,
    quiet,
    seeds,
    written_paths,
)
from chorax import filters, lanes
from trees import (
    axis_choices,
    bump,
    fresh,
    keys_of,
    LANES,
    Node,
    Plain,
    shapes,
    steady_shapes,
    total,
)


@given(shape=shapes, choices=axis_choices, seed=seeds)
def test_what_a_delta_says(shape, choices, seed):
    tree, in_axes, axes = trees.with_lanes(build(shape), choices)
    batched, delta = call(tree, keys_of(seed), in_axes=in_axes, state_tag="now")
    written = written_paths(tree, batched)
    new = oracle.leaves_by_path(batched)
    names = tuple(".".join(map(str, path)) for path in written)
    assert delta.paths == names
    assert delta.tags == dict.fromkeys(names, frozenset({"now"}))
    assert delta.axis_size == LANES
    if len(set(names)) == len(names):
        state = delta.to_dict()
        assert list(state) == list(names)
        assert all(state[".".join(map(str, p))] is new[p] for p in written)
    assert oracle.leaves_by_path(delta.filter_spec) == {p: p in written for p in new}
    old_axes = dict(zip(oracle.leaves_by_path(tree), axes, strict=True))
    expected = {
        path: (0 if eqx.is_array(x) else None) if path in written else old_axes[path]
        for path, x in new.items()
    }
    known = {path: axis for path, axis in expected.items() if axis is not None}
    assert oracle.leaves_by_path(delta.in_axes) == known
    # Fits `eqx.filter_vmap`, and `eqx.partition`, as it is.
    same = eqx.filter_vmap(
        lambda model: model,
        in_axes=(delta.in_axes,),
        out_axes=delta.in_axes,
        axis_size=LANES,
    )
    arrays = eqx.filter(batched, eqx.is_array)
    oracle.assert_same(same(arrays), arrays)
    states, shared = eqx.partition(batched, delta.filter_spec)
    oracle.assert_same(states, delta.values)
    assert set(oracle.leaves_by_path(shared)).isdisjoint(written)


@given(shape=shapes, choices=axis_choices, seed=seeds, jit=jits)
def test_deltas_of_two_calls(shape, choices, seed, jit):
    tree, in_axes, _ = trees.with_lanes(build(shape, jit), choices)
    keys = keys_of(seed)

    def run(tree, keys):
        one, first = call(tree, keys, in_axes=in_axes, state_tag="a")
        two, second = call(one, jax.vmap(bump)(keys), in_axes=first, state_tag="b")
        both = first | second
        return two, chorax.apply_delta(tree, both), both

    two, applied, both = maybe_jit(run, jit)(tree, keys)
    oracle.assert_same(applied, two)
    assert set(both.paths) >= set(both.select("b").paths)
    halves = (
        both.select(lambda x: eqx.is_array(x)),
        both.select(filters.Not(eqx.is_array)),
    )
    assert sorted((*halves[0].paths, *halves[1].paths)) == sorted(both.paths)


@given(shape=steady_shapes, seed=seeds, mask=masks, jit=jits)
def test_where(shape, seed, mask, jit):
    tree, keys = build(shape, jit), keys_of(seed)
    old, delta = call(tree, keys)
    again = jax.vmap(bump)(keys)
    new, _ = call(old, again, in_axes=delta)

    def run(old, mask):
        return call(old, again, in_axes=delta, where=mask)[0]

    chosen = maybe_jit(run, jit)(old, mask)
    for path, x in oracle.leaves_by_path(chosen).items():
        a, b = oracle.get(new, path), oracle.get(old, path)
        if a is not b and eqx.is_array(x):
            for i in range(LANES):
                oracle.assert_same(x[i], a[i] if mask[i] else b[i])
        else:
            assert jit or x is b
    oracle.assert_same(lanes.where(mask, new, old, delta), chosen)


@given(shape=shapes, choices=axis_choices, seed=seeds, size=st.integers(1, 4))
def test_chunks_change_nothing(shape, choices, seed, size):
    tree, in_axes, _ = trees.with_lanes(build(shape), choices)
    keys = keys_of(seed)
    batched, delta = call(tree, keys, in_axes=in_axes)
    chunked, same = call(tree, keys, in_axes=in_axes, chunk_size=size)
    oracle.assert_same(chunked, batched)
    assert same.paths == delta.paths


class Tagged(Node):
    tag: str = "red"

    def step(self, *, key=None):
        return chorax.replace(self, x=jnp.ones(3))


def isinstance_of(kind):
    return kind, lambda path, x: isinstance(x, kind)


def made(described):
    """A filter and what it means, put together from a description.

    Not while drawing: the type checks that run in tests pick elements by `random`.
    """
    how, parts = described
    if how == "one":
        return parts
    if how == "not":
        a, means = made(parts)
        return filters.Not(a), lambda path, x: not means(path, x)
    (a, a_means), (b, b_means) = map(made, parts)
    if how == "all":
        both = filters.All(a, b)
        return both, lambda path, x: a_means(path, x) and b_means(path, x)
    either = filters.Any(a, b) if how == "any" else [a, (b,)]
    return either, lambda path, x: a_means(path, x) or b_means(path, x)


# Filters, each with what it means as a plain function of path and object.
single_filters = st.sampled_from(
    [
        (None, lambda path, x: False),
        (False, lambda path, x: False),
        (True, lambda path, x: True),
        (..., lambda path, x: True),
        ("red", lambda path, x: isinstance(x, Tagged)),
        isinstance_of(trees.Typed),
        isinstance_of((Plain, Tagged)),
        isinstance_of(jax.Array),
        (eqx.is_inexact_array, lambda path, x: eqx.is_inexact_array(x)),
        (lambda x: hasattr(x, "child"), lambda path, x: hasattr(x, "child")),
        (lambda path, x: len(path) % 2 == 0, lambda path, x: len(path) % 2 == 0),
        (lambda path, x, more=1: path[-1:] == ("x",), lambda p, x: p[-1:] == ("x",)),
        (filters.PathContains("below"), lambda path, x: "below" in path),
        (filters.PathContains(0), lambda path, x: 0 in path),
        (filters.OfType(Node), lambda path, x: isinstance(x, Node)),
        (filters.Nothing(), lambda path, x: False),
        (filters.Everything(), lambda path, x: True),
    ]
)
any_filters = st.recursive(
    st.tuples(st.just("one"), single_filters),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["any", "all", "list"]), st.tuples(inner, inner)),
        st.tuples(st.just("not"), inner),
    ),
    max_leaves=4,
)


@given(shape=shapes, filter=any_filters, seed=seeds)
def test_excluded_nodes(shape, filter, seed):
    tree, keys = [build(shape), Tagged(label=None)], keys_of(seed)
    excluded, means = made(filter)
    expected = oracle.vmap_call(tree, "step", keys, skip=means)
    is_same = jtu.tree_structure(expected) == jtu.tree_structure(tree)
    is_written = not is_same or written_paths(tree, expected)
    if is_written or not means((1,), tree[1]):
        batched, _ = call(tree, keys, node_to_exclude=excluded)
    else:
        with pytest.warns(UserWarning, match="wrote nothing at all"):
            batched, _ = call(tree, keys, node_to_exclude=excluded)
    oracle.assert_same(batched, expected)


@given(shape=shapes, filter=any_filters)
def test_filter_specs(shape, filter):
    tree = build(shape)
    given_filter, means = made(filter)
    spec = filters.to_filter_spec(tree, given_filter)
    expected = {p: means(p, x) for p, x in oracle.leaves_by_path(tree).items()}
    assert oracle.leaves_by_path(spec) == expected
    keep = filters.to_predicate(given_filter)
    assert {p: keep(p, x) for p, x in oracle.leaves_by_path(tree).items()} == expected


@given(shape=shapes, choices=axis_choices, filter=any_filters, seed=seeds, jit=jits)
def test_excluded_leaves(shape, choices, filter, seed, jit):
    tree, in_axes, axes = trees.with_lanes(build(shape, jit), choices)
    excluded, means = made(filter)
    keys = keys_of(seed)
    each = oracle.one_by_one(tree, "step", keys, axes=axes)
    expected = oracle.vmap_call(tree, "step", keys, axes=axes)
    written = set(written_paths(tree, expected))
    after = [oracle.leaves_by_path(model) for _, model in each]

    def run(tree, keys):
        return call(tree, keys, in_axes=in_axes, state_to_exclude=excluded)[0]

    without = {
        p for p in written if eqx.is_array(after[0][p]) and means(p, after[0][p])
    }
    names = ["`" + ".".join(map(str, path)) + "` is excluded" for path in without]
    try:
        batched = maybe_jit(run, jit)(tree, keys)
    except ValueError as error:
        if not any(name in str(error) for name in names):
            raise
        return
    for path, x in oracle.leaves_by_path(batched).items():
        if path in without:
            for lane in after:
                oracle.assert_same(x, lane[path])
        else:
            oracle.assert_same(x, oracle.get(expected, path))


def shift(node, by, *, key, times=None):
    """Does something to any module: its own arrays, and what it holds beside."""
    if not isinstance(node, Node):
        return node
    x = fresh(node.w, key) if node.x is None else bump(node.x)
    w = total((node.w, by, times))
    return chorax.replace(node, x=x, w=w)


def shift_and_tell(node, by, *, key):
    new = shift(node, by, key=key)
    return new, {"before": total(node), "class": type(node).__name__}


@given(
    shape=shapes,
    seed=seeds,
    jit=jits,
    axis=st.sampled_from([None, 0, 1, -1]),
    times_axis=st.sampled_from([None, 0]),
)
def test_arguments(shape, seed, jit, axis, times_axis):
    tree, keys = build(shape, jit), keys_of(seed)
    by = jnp.arange(float(LANES * LANES)).reshape(LANES, LANES)
    times = jnp.arange(LANES)

    def run(tree, keys, by, times):
        return call(
            tree,
            keys,
            shift,
            args=(by,),
            kwargs={"times": times},
            args_in_axes=axis,
            kwargs_in_axes=times_axis,
        )[0]

    def by_hand(node, i, *, key):
        own = by if axis is None else oracle.lane_of(by, axis, i)
        many = times if times_axis is None else times[i]
        return shift(node, own, key=key, times=many)

    batched = maybe_jit(run, jit)(tree, keys, by, times)
    expected = oracle.vmap_call(tree, by_hand, keys, args=lambda i: (i,))
    oracle.assert_same(batched, expected)


@given(shape=shapes, seed=seeds, jit=jits)
def test_aux(shape, seed, jit):
    tree, keys = build(shape, jit), keys_of(seed)

    def run(tree, keys):
        options: Any = {"args": 1, "has_aux": True}
        with quiet():
            return chorax.vmap_call_all_fns(
                tree, shift_and_tell, axis_size=LANES, key=keys, **options
            )

    paths = [p for p, x in oracle.children_first(tree) if oracle.is_node(x)]
    names = [".".join(map(str, path)) for path in paths]
    if len(set(names)) < len(names):
        with pytest.raises(ValueError, match="have the dotted path"):
            maybe_jit(run, jit)(tree, keys)
        return
    batched, _, aux = maybe_jit(run, jit)(tree, keys)
    expected = oracle.vmap_call(tree, shift, keys, args=lambda i: (1,))
    oracle.assert_same(batched, expected)
    # What goes through a `jit` comes back with its keys sorted.
    assert list(aux) == (sorted(names) if jit else names)
    for i, key in enumerate(keys):
        # A node inside of an ensemble has an entry for each of its members.
        told_of = {name: iter(aux[name]["before"][i].reshape(-1)) for name in names}
        rest = iter([name for name, found in told_of.items() for _ in list(found)])
        told_of = {name: iter(aux[name]["before"][i].reshape(-1)) for name in names}

        def compare(node, *, key, told_of=told_of, rest=rest):
            new, told = shift_and_tell(node, 1, key=key)
            name = next(rest)
            assert aux[name]["class"] == told["class"]
            oracle.assert_same(next(told_of[name]), told["before"])
            return new

        oracle.call(tree, compare, key=key)


@given(shape=shapes, choices=axis_choices, seed=seeds, jit=jits)
def test_lanes_taken_apart_and_put_together(shape, choices, seed, jit):
    tree, in_axes, _ = trees.with_lanes(build(shape, jit), choices)
    batched, delta = call(tree, keys_of(seed), in_axes=in_axes)

    def run(batched):
        each = lanes.unstack(batched, delta)
        picked = lanes.take(batched, delta, jnp.array([2, 0]))
        halves = [
            lanes.take(batched, delta, slice(0, 2)),
            lanes.take(batched, delta, slice(2, None)),
        ]
        whole = lanes.concatenate(halves, delta)
        mask = jnp.array([True, False, True])
        return each, picked, whole, lanes.where(mask, batched, batched, delta)

    each, picked, whole, same = maybe_jit(run, jit)(batched)
    oracle.assert_same(same, batched)
    oracle.assert_same(whole, batched)
    assert len(each) == LANES
    axes = oracle.leaves_by_path(delta.in_axes)
    for path, x in oracle.leaves_by_path(batched).items():
        for i, model in enumerate(each):
            own = oracle.lane_of(x, axes[path], i) if path in axes else x
            oracle.assert_same(oracle.get(model, path), own)
        if path in axes:
            for j, i in enumerate([2, 0]):
                own = oracle.lane_of(oracle.get(picked, path), axes[path], j)
                oracle.assert_same(own, oracle.lane_of(x, axes[path], i))
    assert set(oracle.leaves_by_path(picked)) == set(oracle.leaves_by_path(batched))


@given(shape=shapes, seed=seeds)
def test_what_is_shared_is_warned_of(shape, seed):
    tree, key = trees.build(shape), keys_of(seed)[0]
    after = oracle.call(tree, "step", key=key)
    places: dict[int, list[Any]] = {}
    for path, x in oracle.leaves_by_path(tree).items():
        if eqx.is_array(x):
            places.setdefault(id(x), []).append(path)
    twice = {p for paths in places.values() if len(paths) > 1 for p in paths}
    if twice.isdisjoint(written_paths(tree, after)):
        chorax.call_all_fns(tree, "step", key=key, fn_if_not_exist="pass")
    else:
        with pytest.warns(UserWarning, match="same object stands at .*Shared"):
            chorax.call_all_fns(tree, "step", key=key, fn_if_not_exist="pass")
