"""Order and composition, on models small enough to be done by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chorax
import oracle


def vector(i: int) -> jax.Array:
    return jnp.arange(2.0) + i


def test_children_come_before_parents_and_marked_methods_last():
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert model[0].v == jax.ShapeDtypeStruct((4, 2), jnp.result_type(float))
    assert delta.paths == ("0.v",)
    assert jnp.result_type(float).name in repr(delta)
