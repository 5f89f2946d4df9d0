"""Every keyword of the collective calls, against what one would write by hand."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import chorax
import oracle
from chorax import call_all_fns, call_order, replace, vmap_call_all_fns
from chorax.filters import PathContains, WithTag
from models import Constant, Draw, Plain


class Cell(eqx.Module):
    w: Any
    v: Any = None
    n: Any = None

    def init(self, *, key):
        v = self.w + jax.random.normal(key, self.w.shape)
        return replace(self, v=v, n=jnp.zeros((), jnp.int32))

    def grow(self, by, *, twice=1.0):
        return replace(self, v=self.v + by * twice)

    def constant(self):
        return replace(self, v=jnp.ones_like(self.v))

    def draw(self, *, key):
        return replace(self, v=jax.random.normal(key, self.v.shape))

    def count(self):
        return replace(self, n=self.n + 1)

    def share(self):
        return replace(self, v=self.v + 1, n=jnp.array(5, jnp.int32))

    def mean(self):
        return replace(self, v=self.v - jax.lax.pmean(self.v, "lanes"))

    def index(self):
        return replace(self, n=jax.lax.axis_index("lanes"))

    def norm(self):
        aux = {"norm": jnp.sum(self.v**2), "w": self.w, "name": "cell"}
        return replace(self, v=self.v * 2), aux


def cells(n=2):
    return [Cell(jnp.arange(3.0) + i) for i in range(n)]


def made(key, n=2, lanes=4):
    return vmap_call_all_fns(cells(n), "init", axis_size=lanes, key=key)


# Keys


def test_one_key_is_split_over_lanes(key):
    one, _ = vmap_call_all_fns(cells(), "init", axis_size=4, key=key)
    keys = jax.random.split(key, 4)
    many, _ = vmap_call_all_fns(cells(), "init", axis_size=4, key=keys)
    oracle.assert_same(one, many)


@pytest.mark.slow
def test_typed_and_legacy_keys_draw_the_same(legacy_key):
    key = jax.random.key(0)
    one, _ = call_all_fns(cells(), "init", key=key)
    for other in (legacy_key, np.asarray(legacy_key)):
        two, _ = call_all_fns(cells(), "init", key=other)
        oracle.assert_same(one, two)
    keys = jax.random.split(legacy_key, 4)
    three, _ = vmap_call_all_fns(cells(), "init", axis_size=4, key=keys)
    four, _ = vmap_call_all_fns(cells(), "init", axis_size=4, key=key)
    oracle.assert_same(three, four)


def test_a_legacy_key_reaches_the_method_as_one(legacy_key):
    class Sees(eqx.Module):
        k: Any = None

        def step(self, key):
            return replace(self, k=key)

    model, _ = vmap_call_all_fns(Sees(), "step", axis_size=3, key=legacy_key)
    assert model.k.shape == (3, *legacy_key.shape)
    assert model.k.dtype == jnp.uint32


def test_every_node_and_lane_has_its_own_key(key):
    model, _ = vmap_call_all_fns(
        [Draw(2), {"a": Draw(2), "b": [Draw(2)]}, Draw(2)], "step", axis_size=4, key=key
    )
    rows = np.concatenate([x.reshape(-1) for x in jtu.tree_leaves(model)])
    assert len(np.unique(rows)) == rows.size


def test_a_method_may_do_without_the_key(key):
    class Optional(eqx.Module):
        x: Any = None

        def step(self, key=None):
            drawn = jnp.zeros(()) if key is None else jax.random.normal(key, ())
            return replace(self, x=drawn)

    assert call_all_fns(Optional(), "step")[0].x == 0.0
    assert call_all_fns(Optional(), "step", key=key)[0].x != 0.0
    # A key among the arguments is the method's own business: the same for all nodes.
    pair, _ = call_all_fns([Optional(), Optional()], "step", kwargs={"key": key})
    assert pair[0].x == pair[1].x == jax.random.normal(key, ())


# Arguments


def test_what_is_no_tuple_is_one_argument(key):
    net, delta = made(key)
    by = jnp.ones(3)
    one, _ = vmap_call_all_fns(net, "grow", by, axis_size=4, in_axes=delta)
    two, _ = vmap_call_all_fns(net, "grow", (by,), axis_size=4, in_axes=delta)
    oracle.assert_same(one, two)


@pytest.mark.parametrize("args_in_axes", [0, (0,), eqx.if_array(0)])
def test_args_in_axes(key, args_in_axes):
    net, delta = made(key)
    by = jnp.arange(4.0)
    got, _ = vmap_call_all_fns(
        net, "grow", by, axis_size=4, in_axes=delta, args_in_axes=args_in_axes
    )
    np.testing.assert_array_equal(got[0].v, net[0].v + by[:, None])


@pytest.mark.parametrize("args_in_axes", [[0, None], ([0, None],)])
def test_args_in_axes_of_one_argument_that_is_a_tree(args_in_axes):
    class Sum(eqx.Module):
        v: Any = None

        def step(self, pair):
            return replace(self, v=jnp.broadcast_to(pair[0], (4,)) + pair[1])

    pair = [jnp.arange(4.0), jnp.ones(4)]
    got, _ = vmap_call_all_fns(
        Sum(), "step", pair, axis_size=4, args_in_axes=args_in_axes
    )
    assert got.v.shape == (4, 4)
    np.testing.assert_array_equal(got.v[2], np.full(4, 3.0))


@pytest.mark.parametrize("kwargs_in_axes", [1, {"twice": 1}, {"twice": -1}])
def test_kwargs_in_axes(key, kwargs_in_axes):
    net, delta = made(key)
    twice = jnp.arange(12.0).reshape(3, 4)
    got, _ = vmap_call_all_fns(
        net,
        "grow",
        jnp.ones(()),
        {"twice": twice},
        4,
        in_axes=delta,
        kwargs_in_axes=kwargs_in_axes,
    )
    np.testing.assert_array_equal(got[1].v, net[1].v + twice.T)


def test_kwargs_left_out_of_kwargs_in_axes_are_shared(key):
    net, delta = made(key)
    kwargs = {"by": jnp.ones(()), "twice": jnp.arange(4.0)}
    got, _ = vmap_call_all_fns(
        net, "grow", (), kwargs, 4, in_axes=delta, kwargs_in_axes={"twice": 0}
    )
    expected = net[0].v + jnp.arange(4.0)[:, None]
    np.testing.assert_array_equal(got[0].v, expected)


def test_arguments_without_axes_are_whole(key):
    class Whole(eqx.Module):
        shape: tuple = eqx.field(static=True, default=())

        def step(self, x):
            return replace(self, shape=x.shape)

    model, _ = vmap_call_all_fns(Whole(), "step", jnp.zeros((4, 2)), axis_size=4)
    assert model.shape == (4, 2)


def test_a_function_is_applied_to_every_node(key):
    tree = Plain([Constant(), Draw(2)], jnp.ones(2))

    def double(node, by, *, key):
        def change(x):
            return x * by + jax.random.normal(key, ()) if eqx.is_array(x) else x

        return jtu.tree_map(change, node) if type(node) is Plain else node

    model, delta = vmap_call_all_fns(
        tree, double, jnp.asarray(2.0), axis_size=3, key=key
    )
    assert delta.paths == ("x",)
    assert model.x.shape == (3, 2)


def test_a_function_that_is_a_module_brings_its_arrays(key):
    class Scale(eqx.Module):
        by: jax.Array

        def __call__(self, node):
            return replace(node, x=node.x * self.by)

    class Box(eqx.Module):
        x: Any

    def run(by):
        return call_all_fns(Box(jnp.ones(2)), Scale(by))[0].x.sum()

    assert run(jnp.asarray(3.0)) == 6.0
    assert jax.grad(run)(jnp.asarray(3.0)) == 2.0


# Axes of the target


@pytest.mark.parametrize("name", ["constant", "grow", "draw"])
def test_a_reset_keeps_the_lane_axis(key, name):
    net, delta = made(key)
    args = (jnp.ones(()),) if name == "grow" else ()
    new_key = key if name == "draw" else None
    got, later = vmap_call_all_fns(
        net, name, args, axis_size=4, in_axes=delta, key=new_key
    )
    assert got[0].v.shape == net[0].v.shape == (4, 3)
    assert got[0].n is net[0].n
    assert jtu.tree_leaves(later.in_axes) == [0, 0, 0, 0]
    assert later.paths == ("0.v", "1.v")
    if name == "draw":
        rows = np.asarray(got[0].v).reshape(-1)
        assert len(np.unique(rows)) == rows.size


def test_without_in_axes_a_method_sees_the_whole_stack(key):
    net, _ = made(key)
    with pytest.warns(UserWarning, match="called without `in_axes`"):
        got, _ = vmap_call_all_fns(net, "grow", jnp.ones(()), axis_size=4)
    assert got[0].v.shape == (4, 4, 3)


def test_in_axes_takes_the_forms_of_filter_vmap(key):
    net, delta = made(key)
    forms = [
        delta,
        delta.in_axes,
        [Cell(None, 0, 0), Cell(None, 0, 0)],
        jtu.tree_map(lambda x: None if x.shape == (3,) else 0, net),
    ]
    for form in forms:
        got, _ = vmap_call_all_fns(net, "constant", axis_size=4, in_axes=form)
        assert got[0].v.shape == (4, 3)
    stack = eqx.filter_vmap(lambda k: Draw(2).step(key=k))(jax.random.split(key, 4))
    for form in (0, eqx.if_array(0), Draw(2, 0)):
        got, _ = vmap_call_all_fns(stack, "step", axis_size=4, in_axes=form, key=key)
        assert got.x.shape == (4, 2)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_lane_axis_need_not_be_the_first(key, axis):
    net = [Cell(jnp.ones(3), jnp.arange(12.0).reshape(3, 4), jnp.arange(4))] * 1
    axes = [Cell(None, axis, 0)]
    got, delta = vmap_call_all_fns(net, "grow", jnp.ones(()), axis_size=4, in_axes=axes)
    np.testing.assert_array_equal(got[0].v, net[0].v.T + 1)
    assert delta.in_axes[0].v == 0
    got, delta = vmap_call_all_fns(net, "count", axis_size=4, in_axes=axes)
    assert got[0].v is net[0].v
    assert delta.in_axes[0].v == axis


def test_a_moved_leaf_has_its_lanes_in_front():
    class Move(eqx.Module):
        a: Any
        b: Any

        def step(self):
            return replace(self, a=self.b, b=self.a)

    a, b = jnp.arange(6.0).reshape(3, 2), jnp.arange(3.0)
    model, delta = vmap_call_all_fns(
        Move(a, b), "step", axis_size=2, in_axes=Move(1, None)
    )
    np.testing.assert_array_equal(model.b, a.T)
    np.testing.assert_array_equal(model.a, np.stack([b, b]))
    assert delta.in_axes.a == delta.in_axes.b == 0


# Selection


def test_excluding_a_node_does_not_exclude_those_inside():
    tree = Plain([Constant(), Plain([Constant()], jnp.ones(1))], jnp.ones(1))
    model, delta = vmap_call_all_fns(
        tree, "step", axis_size=2, node_to_exclude=(Plain,)
    )
    assert delta.paths == ("child.0.x", "child.0.n", "child.1.child.0.x") + (
        "child.1.child.0.n",
    )


def test_node_filters_see_path_and_node():
    tree = {"a": Constant(), "b": Constant(n=7)}
    _, delta = call_all_fns(
        tree, "step", node_to_exclude=lambda path, node: path == ("a",)
    )
    assert delta.paths == ("b.x", "b.n")
    _, delta = call_all_fns(tree, "step", node_to_exclude=lambda node: node.n == 7)
    assert delta.paths == ("a.x", "a.n")


@pytest.mark.parametrize("mode", ["pass", "none"])
def test_nodes_without_the_method_are_skipped(mode):
    tree = Plain(Constant(), jnp.ones(1))
    model, delta = call_all_fns(tree, "step", fn_if_not_exist=mode)
    assert delta.paths == ("child.x", "child.n")


# Excluded leaves


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_an_excluded_leaf_is_written_once_for_all_lanes(key, chunk_size):
    net, delta = made(key)
    net = [replace(x, n=jnp.zeros((), jnp.int32)) for x in net]
    axes = [Cell(None, 0, None)] * 2
    got, later = vmap_call_all_fns(
        net,
        "share",
        axis_size=4,
        in_axes=axes,
        state_to_exclude=chorax.filters.PathContains("n"),
        chunk_size=chunk_size,
    )
    assert got[0].n.shape == ()
    assert got[0].n == 5
    assert got[1].v.shape == (4, 3)
    assert later.in_axes[0].n is None
    assert later.in_axes[0].v == 0
    assert later.filter_spec[0].n is True


def test_exclusion_may_differ_between_nodes_of_a_kind(key):
    got, _ = vmap_call_all_fns(
        [Constant(), Constant(), Constant()],
        "step",
        axis_size=2,
        state_to_exclude=lambda path, x: path == (1, "x"),
    )
    assert [node.x.shape for node in got] == [(2, 3), (3,), (2, 3)]


def test_excluded_by_type_shape_and_tag(key):
    def shapes(exclude, **options):
        got, _ = vmap_call_all_fns(
            cells(1), "init", axis_size=2, key=key, state_to_exclude=exclude, **options
        )
        return got[0].v.shape, got[0].n.shape

    assert shapes(lambda x: jnp.issubdtype(x.dtype, jnp.integer)) == ((2, 3), ())
    assert shapes(lambda x: x.ndim == 0) == ((2, 3), ())
    assert shapes(lambda x: not eqx.is_inexact_array(x)) == ((2, 3), ())
    assert shapes(WithTag("other"), state_tag="state") == ((2, 3), (2,))


def test_excluded_by_the_tag_of_the_delta_in_in_axes(key):
    net, first = vmap_call_all_fns(
        Constant(),
        "step",
        axis_size=2,
        state_tag="shared",
        state_to_exclude=True,
    )
    assert net.x.shape == (3,)
    got, _ = vmap_call_all_fns(
        net, "step", axis_size=2, in_axes=first, state_to_exclude="shared"
    )
    assert got.x.shape == (3,)


def test_an_excluded_leaf_that_varies_is_named(key):
    with pytest.raises(ValueError, match=r"`0\.v` is excluded .* from lane to lane"):
        vmap_call_all_fns(
            cells(),
            "init",
            axis_size=2,
            key=key,
            state_to_exclude=lambda p, x: "v" in p,
        )


def test_a_mean_over_lanes_can_be_excluded(key):
    class Mean(eqx.Module):
        x: Any

        def step(self):
            return replace(self, x=jax.lax.pmean(self.x, "lanes"))

    got, delta = vmap_call_all_fns(
        Mean(jnp.arange(4.0)),
        "step",
        axis_size=4,
        in_axes=0,
        axis_name="lanes",
        state_to_exclude=True,
    )
    assert got.x.shape == ()
    assert got.x == 1.5


# Where


@pytest.mark.parametrize("jit", [False, True])
def test_where_keeps_the_other_lanes(key, jit):
    net, delta = made(key)

    def reset(net, done):
        return vmap_call_all_fns(
            net, "constant", axis_size=4, in_axes=delta, where=done
        )

    done = jnp.array([True, False, False, True])
    got, later = (eqx.filter_jit(reset) if jit else reset)(net, done)
    for new, old in zip(got, net, strict=True):
        np.testing.assert_array_equal(
            new.v, jnp.where(done[:, None], jnp.ones(()), old.v)
        )
    assert later.paths == ("0.v", "1.v")
    if not jit:
        assert got[0].n is net[0].n


def test_where_keeps_a_shared_leaf_in_its_lanes():
    class Shared(eqx.Module):
        v: Any

        def step(self):
            return replace(self, v=self.v + 1)

    model, delta = vmap_call_all_fns(
        Shared(jnp.zeros(2)), "step", axis_size=2, where=[True, False]
    )
    np.testing.assert_array_equal(model.v, [[1, 1], [0, 0]])
    assert delta.in_axes.v == 0


def test_where_with_lanes_on_another_axis():
    class Other(eqx.Module):
        v: Any

        def step(self):
            return replace(self, v=self.v + 1)

    v = jnp.arange(6.0).reshape(3, 2)
    model, _ = vmap_call_all_fns(
        Other(v), "step", axis_size=2, in_axes=Other(1), where=np.array([True, False])
    )
    np.testing.assert_array_equal(model.v, (v + jnp.array([[1.0, 0.0]])).T)


def test_where_keeps_keys():
    class State(eqx.Module):
        k: jax.Array

        def step(self):
            return replace(self, k=jax.random.fold_in(self.k, 1))

    keys = jax.random.split(jax.random.key(0), 3)
    where = jnp.array([False, True, False])
    model, _ = vmap_call_all_fns(
        State(keys), "step", axis_size=3, in_axes=0, where=where
    )
    same = jax.random.key_data(model.k) == jax.random.key_data(keys)
    assert same.all(axis=1).tolist() == [True, False, True]


def test_where_inside_scan(key):
    net, delta = made(key)

    def body(net, done):
        net, _ = vmap_call_all_fns(
            net, "grow", jnp.ones(()), axis_size=4, in_axes=delta
        )
        net, _ = vmap_call_all_fns(
            net, "constant", axis_size=4, in_axes=delta, where=done
        )
        return net, net[0].v[:, 0]

    dones = jnp.eye(4, dtype=bool)
    states, shared = eqx.partition(net, delta.filter_spec)

    def step(states, done):
        net, out = body(eqx.combine(states, shared), done)
        return eqx.filter(net, delta.filter_spec), out

    _, rows = jax.lax.scan(step, states, dones)
    v = net[0].v[:, 0]
    for t in range(4):
        v = jnp.where(dones[t], 1.0, v + 1)
        np.testing.assert_allclose(rows[t], v, rtol=1e-6)


# Aux


def test_has_aux_has_a_lane_axis(key):
    net, delta = made(key)
    got, _, aux = vmap_call_all_fns(
        net, "norm", axis_size=4, in_axes=delta, has_aux=True
    )
    assert list(aux) == ["0", "1"]
    np.testing.assert_allclose(aux["0"]["norm"], (net[0].v ** 2).sum(1), rtol=1e-6)
    np.testing.assert_array_equal(aux["1"]["w"], jnp.stack([net[1].w] * 4))
    assert aux["0"]["name"] == "cell"
    np.testing.assert_array_equal(got[0].v, net[0].v * 2)


def test_has_aux_without_lanes(key):
    net, _ = call_all_fns(cells(), "init", key=key)
    _, _, aux = call_all_fns({"a.b": net[0]}, "norm", has_aux=True)
    assert list(aux) == ["a.b"]
    assert aux["a.b"]["norm"].shape == ()
    assert aux["a.b"]["w"] is net[0].w


def test_has_aux_at_the_root(key):
    cell, _ = call_all_fns(cells(1)[0], "init", key=key)
    _, _, aux = call_all_fns(cell, "norm", has_aux=True)
    assert list(aux) == [""]


# Lanes


def test_axis_name_lets_lanes_meet(key):
    net, delta = made(key)
    got, _ = vmap_call_all_fns(
        net, "mean", axis_size=4, in_axes=delta, axis_name="lanes"
    )
    np.testing.assert_allclose(
        got[0].v, net[0].v - net[0].v.mean(0, keepdims=True), atol=1e-6
    )
    for lanes in (4, 6):
        got, _ = vmap_call_all_fns(cells(), "index", axis_size=lanes, axis_name="lanes")
        assert got[1].n.tolist() == list(range(lanes))


def test_an_outer_axis_is_in_scope():
    class Outer(eqx.Module):
        x: Any

        def step(self):
            return replace(self, x=self.x - jax.lax.pmean(self.x, "outer"))

    def run(x):
        return vmap_call_all_fns(Outer(x), "step", axis_size=2)[0].x

    for rows in (3, 5):
        x = jnp.arange(float(rows))
        got = jax.vmap(run, axis_name="outer")(x)
        np.testing.assert_allclose(got, jnp.stack([x - x.mean()] * 2, 1))


def test_spmd_axis_name_lays_lanes_along_a_mesh_axis(key):
    devices = np.array(jax.devices()[:1])
    mesh = jax.sharding.Mesh(devices, ("data",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    class Constrain(eqx.Module):
        x: Any

        def step(self):
            x = jax.lax.with_sharding_constraint(self.x + 1, spec)
            return replace(self, x=x)

    def run(x):
        return vmap_call_all_fns(
            Constrain(x), "step", axis_size=2, in_axes=0, spmd_axis_name="data"
        )[0].x

    # Without the name the lanes' axis would be unconstrained.
    assert "('data',)" in str(jax.make_jaxpr(run)(jnp.ones((2, 3))))
    assert run(jnp.ones((2, 3))).shape == (2, 3)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 9])
def test_chunks_give_the_same_result(lane_key, chunk_size):
    net, delta = made(lane_key)
    for name in ("init", "draw"):
        whole, _ = vmap_call_all_fns(
            net, name, axis_size=4, in_axes=delta, key=lane_key, has_aux=False
        )
        parts, _ = vmap_call_all_fns(
            net, name, axis_size=4, in_axes=delta, key=lane_key, chunk_size=chunk_size
        )
        # The compiler vectorises a loop's body in its own way.
        oracle.assert_same(whole, parts, exact=False)
    parts, _ = vmap_call_all_fns(
        [Constant()], "step", axis_size=4, chunk_size=chunk_size
    )
    assert parts[0].x.shape == (4, 3)


@pytest.mark.parametrize("shape", [(5, 0), (0,), (0, 3)])
def test_chunks_of_nothing(shape):
    class Node(eqx.Module):
        x: Any

        def step(self):
            return replace(self, x=jnp.zeros(shape))

    model, _ = vmap_call_all_fns(
        Node(jnp.ones(shape)), "step", axis_size=3, chunk_size=2
    )
    assert model.x.shape == (3, *shape)


def test_a_chunk_runs_effects_once_a_lane(capfd):
    class Node(eqx.Module):
        x: Any

        def step(self):
            jax.debug.print("x={x}", x=self.x)
            return replace(self, x=self.x + 1)

    model, _ = vmap_call_all_fns(
        Node(jnp.arange(5)), "step", axis_size=5, in_axes=0, chunk_size=2
    )
    jax.effects_barrier()
    assert sorted(capfd.readouterr().out.split()) == [f"x={i}" for i in range(5)]
    assert model.x.tolist() == [1, 2, 3, 4, 5]


def test_a_delta_says_which_axes_arguments_have(key):
    class Take(eqx.Module):
        v: Any = None

        def step(self, net):
            return replace(self, v=net[0].v.sum())

    net, delta = made(key)
    for args, axes in (((net,), (delta,)), (net, delta), (net, delta.in_axes)):
        got, _ = vmap_call_all_fns(Take(), "step", args, axis_size=4, args_in_axes=axes)
        assert got.v.shape == (4,)


@pytest.mark.usefixtures("needs_jit")
def test_a_chunk_bounds_what_is_alive():
    class Wide(eqx.Module):
        x: Any

        def step(self):
            big = jnp.broadcast_to(self.x, (1000, 1000)) * jnp.arange(1000.0)[None]
            return replace(self, x=jnp.sort(big, axis=0).sum())

    def temporary(chunk_size):
        def run(x):
            return vmap_call_all_fns(
                Wide(x), "step", axis_size=8, in_axes=0, chunk_size=chunk_size
            )[0].x

        compiled = jax.jit(run).lower(jnp.arange(8.0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1) < temporary(None) / 4


def test_numpy_integers_are_sizes(key):
    model, delta = vmap_call_all_fns(Draw(2), "step", axis_size=np.int64(3), key=key)
    assert model.x.shape == (3, 2)
    assert delta.axis_size == 3
    assert type(delta.axis_size) is int


def test_call_order_within_one_call(key):
    class Base(eqx.Module):
        log: Any = None

        def step(self, total):
            return replace(self, log=total)

    class Reader(eqx.Module):
        child: Base
        seen: Any = None

        @call_order(2)
        def step(self, total):
            return replace(self, seen=self.child.log)

    model, _ = vmap_call_all_fns(Reader(Base()), "step", jnp.asarray(4.0), axis_size=2)
    assert model.seen.tolist() == [4.0, 4.0]


def test_a_key_among_positional_parameters(key):
    class Node(eqx.Module):
        x: Any = None

        def step(self, size, key):
            return replace(self, x=jax.random.uniform(key, (size,)))

    model, _ = call_all_fns(Node(), "step", 3, key=key)
    assert model.x.shape == (3,)
    assert call_all_fns(Node(), "step", (3, key))[0].x.shape == (3,)
    with pytest.raises(TypeError, match="`key` is given twice"):
        call_all_fns(Node(), "step", (3, key), key=key)

    class Holds(eqx.Module):
        step: Any
        x: Any = None

    def held(key):
        raise RuntimeError(f"with {key.shape}")

    with pytest.raises(RuntimeError, match="with"):
        call_all_fns(Holds(held), "step", key=key)
    with pytest.raises(TypeError, match="`key` is given twice"):
        call_all_fns(Holds(held), "step", (key,), key=key)


class Cube(eqx.Module):
    w: Any
    x: Any = None

    def step(self):
        return replace(self, w=self.w + 1, x=jnp.ones(3))


@pytest.mark.parametrize("axis", [2, -1, 1, -2, 0, -3])
@pytest.mark.parametrize("excluded", [None, "x"])
def test_any_lane_axis_under_where(axis, excluded):
    """Lanes are cut along it, keep what they had along it, and lie in front then."""
    shape = [2, 3, 4]
    w = jnp.arange(24.0).reshape(shape)
    rows = jnp.moveaxis(w, axis, 0)
    done = jnp.arange(len(rows)) % 2 == 0
    options: Any = {"axis_size": len(rows), "in_axes": Cube(axis, None)}
    if excluded:
        model, delta = vmap_call_all_fns(
            Cube(w), "step", state_to_exclude=PathContains("x"), **options
        )
        assert model.x.shape == (3,)
        assert model.w.tolist() == (rows + 1).tolist()
        assert (delta.in_axes.w, delta.in_axes.x) == (0, None)
        return
    model, _ = vmap_call_all_fns(Cube(w, jnp.zeros(3)), "step", where=done, **options)
    kept = jnp.where(done[:, None, None], rows + 1, rows)
    assert model.w.tolist() == kept.tolist()
    assert model.x.tolist() == [[float(is_done)] * 3 for is_done in done]


@pytest.mark.parametrize("outer", [jax.vmap, jax.jit])
def test_a_mask_that_is_traced_where_nothing_else_is(outer):
    w = jnp.arange(4.0)

    def run(mask):
        model, _ = vmap_call_all_fns(
            Cube(w, jnp.zeros(3)),
            "step",
            axis_size=4,
            in_axes=Cube(0, None),
            where=mask,
        )
        return model.w

    masks = jnp.array([[True, False, True, False], [False, False, True, True]])
    if outer is jax.jit:
        assert jax.jit(run)(masks[0]).tolist() == [1.0, 1.0, 3.0, 3.0]
        return
    expected = [jnp.where(mask, w + 1, w).tolist() for mask in masks]
    assert jax.vmap(run)(masks).tolist() == expected
