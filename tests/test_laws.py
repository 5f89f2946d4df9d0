"""The laws, over random trees: each eagerly and under `eqx.filter_jit`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from hypothesis import given, HealthCheck, settings, strategies as st

import chorax
import oracle
from models import (
    Add,
    Constant,
    Draw,
    Drop,
    Early,
    Keys,
    Late,
    Numpy,
    Pair,
    Parent,
    Pass,
    Plain,
    Retype,
    Rewrite,
    Swap,
)


LANES = 3
laws = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def vector(i: int) -> jax.Array:
    return jnp.arange(2.0) + i


LEAVES = {
    "draw": lambda i: Draw(2),
    "long draw": lambda i: Draw(3),
    "drawn": lambda i: Draw(2, vector(i)),
    "constant": lambda i: Constant(),
    "add": lambda i: Add(vector(i), vector(-i)),
    "numpy": lambda i: Numpy(np.arange(3, dtype=np.int32) + i),
    "swap": lambda i: Swap(vector(i), vector(i + 1)),
    "drop": lambda i: Drop(vector(i), vector(i)),
    "retype": lambda i: Retype(0.5),
    "retype int": lambda i: Retype(1),
    "retype bool": lambda i: Retype(True),
    "pass": lambda i: Pass(vector(i)),
    "keys": lambda i: Keys(),
    "early": lambda i: Early(vector(i)),
    "rewrite": lambda i: Rewrite(Add(vector(i), vector(2 * i))),
    "array": vector,
    "none": lambda i: None,
    "text": lambda i: "text",
}
AROUND = {
    "parent": lambda i, below: Parent(below),
    "late": lambda i, below: Late(below),
    "plain": lambda i, below: Plain(below, vector(i)),
    "early": lambda i, below: Early(vector(i), below),
    "list": lambda i, below: list(below),
    "tuple": lambda i, below: tuple(below),
    "dict": lambda i, below: {f"k{j}": x for j, x in enumerate(below)},
    "int dict": lambda i, below: {j + 3: x for j, x in enumerate(below)},
    "pair": lambda i, below: Pair(below[0], below[1:]),
}
shapes = st.recursive(
    st.sampled_from(sorted(LEAVES)),
    lambda inner: st.tuples(
        st.sampled_from(sorted(AROUND)), st.lists(inner, min_size=1, max_size=4)
    ),
    max_leaves=8,
)


def build(shape):
    """The tree of a drawn shape; every array in it is an object of its own."""
    counter = iter(range(1000))

    def make(part):
        if isinstance(part, str):
            return LEAVES[part](next(counter))
        name, below = part
        return AROUND[name](next(counter), [make(x) for x in below])

    # A node to call, whatever was drawn.
    return [make(shape), Draw(1)]


def lane_call(tree, keys):
    return chorax.vmap_call_all_fns(
        tree, "step", axis_size=LANES, key=keys, fn_if_not_exist="pass"
    )


def keys_of(seed):
    return jax.random.split(jax.random.key(seed), LANES)


@pytest.mark.parametrize("jit", [False, True])
@given(shape=shapes, seed=st.integers(0, 3))
@laws
def test_equals_one_by_one(jit, shape, seed):
    tree, keys = build(shape), keys_of(seed)
    expected = oracle.vmap_call(tree, "step", keys)
    run = eqx.filter_jit(lane_call) if jit else lane_call
    batched, _ = run(tree, keys)
    oracle.assert_same(batched, expected, exact=False)


@given(shape=shapes, seed=st.integers(0, 3))
@laws
def test_lane_law(shape, seed):
    tree, keys = build(shape), keys_of(seed)
    batched, delta = lane_call(tree, keys)
    axes = jtu.tree_leaves(delta.in_axes, is_leaf=lambda x: x is None)
    leaves = jtu.tree_leaves(batched, is_leaf=lambda x: x is None)
    for i in range(LANES):
        lane = [x if a is None else x[i] for x, a in zip(leaves, axes, strict=True)]
        lane = jtu.tree_unflatten(
            jtu.tree_structure(batched, is_leaf=lambda x: x is None), lane
        )
        alone, _ = chorax.call_all_fns(
            tree, "step", key=keys[i], fn_if_not_exist="pass"
        )
        oracle.assert_same(lane, alone)


@pytest.mark.parametrize("jit", [False, True])
@given(shape=shapes, seed=st.integers(0, 3))
@laws
def test_delta_law(jit, shape, seed):
    tree, keys = build(shape), keys_of(seed)

    def check(tree, keys):
        batched, delta = lane_call(tree, keys)
        alone, plain = chorax.call_all_fns(
            tree, "step", key=keys[0], fn_if_not_exist="pass"
        )
        found = chorax.diff(tree, alone)
        assert found.paths == plain.paths
        same = eqx.tree_equal(found.values, plain.values)
        return chorax.apply_delta(tree, delta), batched, same

    applied, batched, same = (eqx.filter_jit(check) if jit else check)(tree, keys)
    oracle.assert_same(applied, batched)
    assert same


@given(shape=shapes, seed=st.integers(0, 3))
@laws
def test_purity(shape, seed):
    tree, keys = build(shape), keys_of(seed)
    leaves, structure = jtu.tree_flatten(tree)
    copies = [np.array(x) if eqx.is_array(x) else x for x in leaves]
    batched, delta = lane_call(tree, keys)
    after, same_structure = jtu.tree_flatten(tree)
    assert same_structure == structure
    assert all(x is y for x, y in zip(leaves, after, strict=True))
    for x, y in zip(after, copies, strict=True):
        assert np.array_equal(x, y)
    old, new = oracle.leaves_by_path(tree), oracle.leaves_by_path(batched)
    written = set(delta.paths)
    for path, value in new.items():
        if ".".join(map(str, path)) not in written:
            assert value is old[path]


@given(shape=shapes, other=shapes, seed=st.integers(0, 3))
@laws
def test_path_law(shape, other, seed):
    keys = keys_of(seed)
    subject = build(shape)
    one, _ = lane_call({"a": subject, "b": build(other)}, keys)
    two, _ = lane_call({"a": subject, "c": [build(other)] * 0, "d": Draw(2)}, keys)
    oracle.assert_same(one["a"], two["a"])


def test_order_law():
    calls = []

    class Node(eqx.Module):
        name: str
        below: list

        def visit(self):
            calls.append(self.name)
            return self

    class Marked(Node):
        @chorax.call_order(2)
        def visit(self):
            calls.append(self.name)
            return self

    class First(Node):
        @chorax.call_order(-1, check_order_boundary=False)
        def visit(self):
            calls.append(self.name)
            return self

    tree = Node(
        "root",
        [
            Marked("late", [Node("inner", [])]),
            First("first", []),
            Node("b", [Marked("late b", []), Node("c", [])]),
        ],
    )
    with pytest.warns(UserWarning, match="wrote nothing"):
        chorax.call_all_fns(tree, "visit")
    assert calls == ["inner", "c", "b", "root", "first", "late", "late b"]


def test_a_node_sees_what_earlier_calls_left():
    class Child(eqx.Module):
        x: jax.Array

        def step(self):
            return chorax.replace(self, x=self.x + 1)

    class Reader(eqx.Module):
        child: Child
        seen: jax.Array

        def step(self):
            new = chorax.replace(self.child, x=self.child.x * 10)
            return chorax.replace(self, seen=self.child.x, child=new)

    class After(eqx.Module):
        reader: Reader
        seen: jax.Array

        @chorax.call_order(3)
        def step(self):
            return chorax.replace(self, seen=self.reader.child.x)

    zero = jnp.zeros(())
    tree = After(Reader(Child(zero + 1), zero + 2), zero + 3)
    model, _ = chorax.call_all_fns(tree, "step")
    assert (model.reader.seen, model.reader.child.x, model.seen) == (2.0, 20.0, 20.0)


def test_calls_of_one_kind_wait_for_what_each_of_them_reads():
    class Child(eqx.Module):
        x: jax.Array

        def step(self):
            return chorax.replace(self, x=self.x + 1)

    class Reader(eqx.Module):
        child: Child
        seen: jax.Array

        def step(self):
            return chorax.replace(self, seen=self.child.x * 2)

    zero = jnp.zeros(())
    net = [Reader(Child(zero + i), zero - i) for i in range(1, 4)]
    model, _ = chorax.call_all_fns(
        net, "step", node_to_exclude=lambda path, _: path == (0, "child")
    )
    assert [reader.seen for reader in model] == [2, 6, 8]


class Leaky(eqx.Module):
    w: jax.Array
    v: jax.Array | None = None

    def init_state(self, scale, *, key):
        v = scale * jnp.tanh(self.w) + jax.random.normal(key, self.w.shape)
        return chorax.replace(self, v=v)


def leaky_loss(net, scale, key):
    net, _ = chorax.vmap_init_all_states(net, scale, axis_size=4, key=key)
    return sum(jnp.sum(leaf.v**2) for leaf in net)


def leaky_loss_by_hand(net, scale, key):
    keys = jax.random.split(key, 4)

    def lane(leaf, path, k):
        return leaf.init_state(scale, key=oracle.node_key(k, path)).v

    total = jnp.zeros(())
    for i, leaf in enumerate(net):
        vs = jax.vmap(lambda k, i=i, leaf=leaf: lane(leaf, (i,), k))(keys)
        total = total + jnp.sum(vs**2)
    return total


def test_composition_with_grad(key):
    net = [Leaky(vector(i)) for i in range(3)]
    scale = jnp.asarray(0.3)
    for wrap in (lambda f: f, eqx.filter_jit, eqx.filter_checkpoint):
        ours = eqx.filter_grad(wrap(leaky_loss))(net, scale, key)
        by_hand = eqx.filter_grad(leaky_loss_by_hand)(net, scale, key)
        oracle.assert_same(ours, by_hand, exact=False)
        ours = jax.grad(wrap(leaky_loss), argnums=1)(net, scale, key)
        by_hand = jax.grad(leaky_loss_by_hand, argnums=1)(net, scale, key)
        np.testing.assert_allclose(ours, by_hand, rtol=1e-5)


def test_composition_with_vmap_and_scan(key):
    net = [Leaky(vector(i)) for i in range(2)]
    scales = jnp.array([0.1, 0.2, 0.3])
    losses = jax.vmap(lambda s: leaky_loss(net, s, key))(scales)
    expected = [leaky_loss_by_hand(net, s, key) for s in scales]
    np.testing.assert_allclose(losses, jnp.stack(expected), rtol=1e-5)

    def body(carry, scale):
        return carry + leaky_loss(net, scale, key), None

    total, _ = jax.lax.scan(body, jnp.zeros(()), scales)
    np.testing.assert_allclose(total, sum(expected), rtol=1e-5)


def test_composition_with_eval_shape(key):
    net = [Leaky(vector(0))]
    scale = jnp.asarray(1.0)

    def init(net, key):
        return chorax.vmap_init_all_states(net, scale, axis_size=4, key=key)

    model, delta = eqx.filter_eval_shape(init, net, key)
    assert model[0].v == jax.ShapeDtypeStruct((4, 2), jnp.float32)
    assert delta.paths == ("0.v",)
    assert "float32" in repr(delta)
