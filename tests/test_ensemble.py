"""`lanes.Ensemble`: a batched model as a part of a larger one."""

import copy
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from jax import Array
from jaxtyping import Float

import chorax
import oracle
from chorax import lanes


def mlps(count=4):
    return [eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(i)) for i in range(count)]


def ensemble(count=4):
    return lanes.Ensemble(*lanes.stack(mlps(count)))


@pytest.mark.slow
def test_calling_it_calls_every_member():
    x, xs = jnp.ones(2), jnp.arange(8.0).reshape(4, 2)
    out = ensemble()(x)
    np.testing.assert_allclose(out, jnp.stack([m(x) for m in mlps()]), rtol=1e-6)
    out = ensemble()(xs, in_axes=0)
    expected = jnp.stack([m(x) for m, x in zip(mlps(), xs, strict=True)])
    np.testing.assert_allclose(out, expected, rtol=1e-6)


class Scaled(eqx.Module):
    w: Array

    def __call__(self, x, y, *, scale=1.0, key=None):
        noise = 0.0 if key is None else jax.random.normal(key)
        return self.w * x + y, scale + noise


def test_in_axes_for_every_argument():
    scaled = lanes.Ensemble(Scaled(jnp.arange(3.0)), 0)
    out, scale = scaled(jnp.ones(()), jnp.arange(3.0), in_axes=(None, 0))
    assert out.tolist() == [0.0, 2.0, 4.0]
    assert scale == 1.0
    _, scale = scaled(1.0, 2.0, scale=jnp.arange(3.0), kwargs_in_axes={"scale": 0})
    assert scale.tolist() == [0.0, 1.0, 2.0]
    keys = jax.random.split(jax.random.key(0), 3)
    _, noise = scaled(1.0, 2.0, key=keys, kwargs_in_axes=0)
    assert len(set(noise.tolist())) == 3
    _, noise = scaled(1.0, 2.0, key=keys[0])
    assert len(set(noise.tolist())) == 1


def test_vmap_maps_any_function():
    made = ensemble()
    norm = made.vmap(lambda m, p: jnp.linalg.norm(m.layers[0].weight, p))
    np.testing.assert_allclose(
        norm(2), [jnp.linalg.norm(m.layers[0].weight, 2) for m in mlps()], rtol=1e-6
    )
    mean = made.vmap(
        lambda m, x: jax.lax.pmean(m(x), "lanes"), axis_name="lanes", out_axes=None
    )(jnp.ones(2))
    np.testing.assert_allclose(mean, made(jnp.ones(2)).mean(0), rtol=1e-5)
    assert made.vmap(lambda m, x: (m(x), "name"))(jnp.ones(2))[1] == "name"


def test_members():
    made = ensemble()
    assert len(made) == 4
    for index, (member, model) in enumerate(zip(made, mlps(), strict=True)):
        oracle.assert_same(member, model)
        oracle.assert_same(made[index], model)
    oracle.assert_same(made[-1], mlps()[3])
    some = made[jnp.array([True, False, False, True])]
    assert isinstance(some, lanes.Ensemble)
    assert len(some) == 2
    oracle.assert_same(some[1], mlps()[3])
    assert isinstance(made[1:], lanes.Ensemble)
    assert made[1:].axis_size == 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(IndexError, match="none at index 4"):
        made[4]
    assert jax.jit(lambda e, i: e[i].layers[0].bias, static_argnums=())(
        eqx.filter(made, eqx.is_array), 2
    ).shape == (4,)


def test_shared_leaves():
    linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    batched, delta = chorax.vmap_call_all_fns(
        linear,
        lambda node, key: chorax.replace(node, bias=jax.random.normal(key, (3,))),
        axis_size=4,
        key=jax.random.key(1),
    )
    made = lanes.Ensemble(batched, delta)
    assert made.model.weight is linear.weight
    assert made.axes.weight is None
    assert made.axes.bias == 0
    out = made(jnp.ones(2))
    by_hand = eqx.filter_vmap(lambda m, x: m(x), in_axes=(delta.in_axes, None))
    oracle.assert_same(out, by_hand(batched, jnp.ones(2)))


def test_its_program_is_the_one_written_by_hand():
    made = ensemble()
    arrays, static = eqx.partition(made, eqx.is_array)

    def ours(arrays, x):
        return eqx.combine(arrays, static)(x)

    def by_hand(arrays, x):
        model = eqx.combine(arrays, static).model
        call = eqx.filter_vmap(lambda m, x: m(x), in_axes=(made.axes, None))
        return call(model, x)

    programs = [jax.make_jaxpr(f)(arrays, jnp.ones(2)) for f in (ours, by_hand)]
    assert str(programs[0].jaxpr) == str(programs[1].jaxpr)


def test_repr_marks_the_lane_axis():
    linear = eqx.nn.Linear(2, 3, dtype=jnp.float32, key=jax.random.key(0))
    shared, axes = lanes.stack(
        [linear, linear], share=lambda path, x: path == ("bias",)
    )
    ensemble = lanes.Ensemble(shared, axes)
    assert repr(ensemble) == (
        "Ensemble: 2 lanes of Linear, 1 leaf with lanes, 1 shared, 60 B\n"
        "path    type     shape            bytes\n"
        "weight  float32  (2 lanes, 3, 2)   48 B\n"
        "bias    float32  (3,)              12 B"
    )
    assert "<td>(2 lanes, 3, 2)</td>" in ensemble._repr_html_()
    # Also if a transformation has put something else in place of arrays.
    assert repr(eqx.filter(ensemble, False)) == (
        "Ensemble: 2 lanes of Linear, 0 leaves with lanes, 0 shared, 0 B"
    )


@pytest.mark.parametrize(
    ("model", "axes", "text"),
    [
        ({"v": jnp.ones(3)}, None, "No leaf has a lane axis"),
        ({"v": jnp.ones(3), "w": jnp.ones(2)}, 0, "`axes` maps `w` along axis 0"),
    ],
)
def test_it_wants_lanes(model, axes, text):
    with pytest.raises(ValueError, match=text):
        lanes.Ensemble(model, axes)


@pytest.mark.slow
def test_gradients_and_optax(key):
    made = ensemble()
    x = jnp.ones(2)

    @eqx.filter_value_and_grad
    def loss(made):
        return (made(x) ** 2).sum()

    optimiser = optax.adam(1e-2)
    state = optimiser.init(eqx.filter(made, eqx.is_inexact_array))
    before, grads = loss(made)
    with jax.numpy_dtype_promotion("standard"):  # Its code is less strict.
        updates, state = optimiser.update(grads, state)
    after, _ = loss(eqx.apply_updates(made, updates))
    assert after < before
    # As if every member had been trained by itself.
    alone = optimiser.init(eqx.filter(mlps()[2], eqx.is_inexact_array))
    grad = eqx.filter_grad(lambda m: (m(x) ** 2).sum())(mlps()[2])
    with jax.numpy_dtype_promotion("standard"):
        update, _ = optimiser.update(grad, alone)
    member = eqx.apply_updates(made, updates)[2]
    for a, b in zip(
        jtu.tree_leaves(eqx.filter(member, eqx.is_array)),
        jtu.tree_leaves(eqx.filter(eqx.apply_updates(mlps()[2], update), eqx.is_array)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_serialisation(tmp_path):
    made = ensemble()
    eqx.tree_serialise_leaves(tmp_path / "made.eqx", made)
    other = jtu.tree_map(lambda x: x * 0 if eqx.is_array(x) else x, made)
    back = eqx.tree_deserialise_leaves(tmp_path / "made.eqx", other)
    oracle.assert_same(back, made)


# An ensemble inside a larger model, and collective calls.


class Neuron(eqx.Module):
    w: Float[Array, "n"]
    v: Any = None
    count: Any = 0

    def init_state(self, *, key):
        # A sum that rounds once, however the compiler fuses it with the draw.
        noise = jax.random.uniform(key, self.w.shape)
        return chorax.replace(self, v=self.w + noise)

    def reset_state(self):
        return chorax.replace(self, v=jnp.zeros_like(self.w))

    def scale(self, by):
        return chorax.replace(self, w=self.w * by)


class Pair(eqx.Module):
    first: Neuron
    second: Neuron

    def init_state(self, *, key):
        # A parent sees its children as the earlier calls left them.
        assert self.first.v is not None
        return chorax.replace(self, first=chorax.replace(self.first, count=1))


class Net(eqx.Module):
    members: lanes.Ensemble
    head: Neuron


def neuron(value, size=3):
    return Neuron(jnp.full(size, float(value)))


def net():
    pairs = [Pair(neuron(i), neuron(10 + i)) for i in range(4)]
    return Net(lanes.Ensemble(*lanes.stack(pairs)), neuron(7, 2))


def member_keys(key, path, size):
    return jax.random.split(oracle.node_key(key, path), size)


def test_nodes_inside_are_called_once_for_each_lane(lane_key):
    model, delta = chorax.init_all_states(net(), key=lane_key)
    assert delta.paths == (
        "members.model.first.v",
        "members.model.first.count",
        "members.model.second.v",
        "head.v",
    )
    for name in ("first", "second"):
        keys = member_keys(lane_key, ("members", "model", name), 4)
        old = [getattr(member, name) for member in net().members]
        new = [getattr(member, name) for member in model.members]
        for one, other, k in zip(old, new, keys, strict=True):
            expected = one.init_state(key=k).v
            np.testing.assert_allclose(other.v, expected, rtol=1e-6)
            assert other.w.shape == (3,)
    head = net().head.init_state(key=oracle.node_key(lane_key, ("head",)))
    np.testing.assert_allclose(model.head.v, head.v, rtol=1e-6)
    assert [m.first.count for m in model.members] == [1] * 4


def test_the_ensemble_knows_the_new_lanes(key):
    model, delta = chorax.init_all_states(net(), key=key)
    assert model.members.axes.first.v == 0
    assert model.members.axes.second.w == 0
    oracle.assert_same(chorax.apply_delta(net(), delta), model)
    old = net()
    model, delta = chorax.init_all_states(old, key=key)
    assert chorax.diff(old, model).paths == delta.paths
    reset, _ = chorax.reset_all_states(model)
    assert reset.members.model.first.v.shape == (4, 3)
    assert not reset.members.model.first.v.any()
    assert jtu.tree_structure(reset) == jtu.tree_structure(model)


def test_lanes_around_an_ensemble(lane_key):
    batched, delta = chorax.vmap_init_all_states(net(), axis_size=5, key=lane_key)
    assert batched.members.model.first.v.shape == (5, 4, 3)
    assert batched.members.model.first.w.shape == (4, 3)
    chorax.check_annotations(batched, in_axes=delta)
    for k, member in zip(
        jax.random.split(lane_key, 5), lanes.unstack(batched, delta), strict=True
    ):
        oracle.assert_same(member, chorax.init_all_states(net(), key=k)[0])
    done = jnp.array([True, False, False, True, False])
    again, _ = chorax.vmap_reset_all_states(
        batched, axis_size=5, in_axes=delta, where=done
    )
    kept = batched.members.model.first.v
    oracle.assert_same(
        again.members.model.first.v, jnp.where(done[:, None, None], 0.0, kept)
    )
    jitted = eqx.filter_jit(
        lambda m, k: chorax.vmap_init_all_states(m, axis_size=5, key=k)[0]
    )
    oracle.assert_same(jitted(net(), lane_key), batched)


def test_an_ensemble_in_an_ensemble(lane_key):
    inner = [lanes.Ensemble(*lanes.stack([neuron(i), neuron(i + 1)])) for i in range(3)]
    outer = {"o": lanes.Ensemble(*lanes.stack(inner))}
    model, _ = chorax.init_all_states(outer, key=lane_key)
    assert model["o"].model.model.v.shape == (3, 2, 3)
    keys = member_keys(lane_key, ("o", "model", "model"), 3)
    for i, (one, k) in enumerate(zip(model["o"], keys, strict=True)):
        for j, (each, own) in enumerate(zip(one, jax.random.split(k, 2), strict=True)):
            expected = neuron(i + j).init_state(key=own).v
            np.testing.assert_allclose(each.v, expected, rtol=1e-6)
    batched, delta = chorax.vmap_init_all_states(outer, axis_size=4, key=lane_key)
    assert batched["o"].model.model.v.shape == (4, 3, 2, 3)
    chorax.check_annotations(batched, in_axes=delta)


def test_shared_leaves_inside_get_lanes_when_written(key):
    pairs = [neuron(0), neuron(0)]
    batched, axes = lanes.stack(pairs, share=lambda path, x: path == ("w",))
    del key
    # Only what this call writes is mapped.
    batched = chorax.replace(batched, v=jnp.zeros((2, 3)))
    axes = chorax.replace(axes, v=0)
    made = lanes.Ensemble(batched, axes)
    assert made.axes.w is None
    new, delta = chorax.call_all_fns([made], "scale", 2.0)
    assert new[0].model.w.shape == (2, 3)
    assert new[0].axes.w == 0
    assert delta.paths == ("0.model.w",)


def test_a_lane_axis_that_is_not_the_first(key):
    model = Neuron(jnp.arange(12.0).reshape(3, 4))
    made = lanes.Ensemble(model, Neuron(1, None, None))  # pyright: ignore[reportArgumentType]
    new, _ = chorax.init_all_states({"m": made}, key=key)
    assert new["m"].model.v.shape == (4, 3)
    for index, member in enumerate(new["m"]):
        oracle.assert_same(member.w, model.w[:, index])
    with jax.disable_jit():
        plain, _ = chorax.init_all_states({"m": made}, key=key)
    np.testing.assert_allclose(plain["m"].model.v, new["m"].model.v, rtol=1e-6)


def test_aux_and_function_and_exclusion(key):
    def fn(node, key):
        return chorax.replace(node, v=node.w), jax.random.key_data(key)

    model, _, aux = chorax.call_all_fns(
        net(), fn, key=key, has_aux=True, node_to_exclude=(Pair, Net)
    )
    assert set(aux) == {"members.model.first", "members.model.second", "head"}
    assert len({tuple(k) for k in aux["members.model.first"].tolist()}) == 4
    assert model.members.model.first.v.shape == (4, 3)


def test_the_ensemble_itself_is_not_a_node(key):
    seen = []

    def fn(node):
        seen.append(type(node).__name__)
        return chorax.replace(node, w=node.w * 1) if hasattr(node, "w") else node

    chorax.call_all_fns(net(), fn)
    assert set(seen) == {"Neuron", "Pair", "Net"}
    if not jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        # A known function is not traced again.
        assert seen.count("Neuron") == 2


@pytest.mark.usefixtures("needs_jit")
def test_one_trace_for_lanes_and_nodes_of_a_kind():
    calls = []

    def fn(node):
        calls.append(node.w.shape)
        return chorax.replace(node, w=node.w + 1)

    made = [lanes.Ensemble(*lanes.stack([neuron(i) for i in range(6)])) for _ in "abc"]
    chorax.vmap_call_all_fns(made, fn, axis_size=2)
    assert calls == [(3,)]


def test_reset_parameters_inside_an_ensemble(lane_key):
    made = {"e": lanes.Ensemble(*lanes.stack(mlps(3)))}
    new, _ = chorax.vmap_call_all_fns(
        made, chorax.reset_parameters, axis_size=2, key=lane_key
    )
    assert new["e"].model.layers[0].weight.shape == (2, 3, 4, 2)
    for i, k in enumerate(jax.random.split(lane_key, 2)):
        for j, own in enumerate(member_keys(k, ("e", "model"), 3)):
            built = eqx.nn.MLP(2, 3, 4, 1, key=own)
            found = new["e"].model.layers[1].weight[i, j]
            oracle.assert_same(found, built.layers[1].weight)


@pytest.mark.slow
def test_gradients_flow_through_calls_inside(key):
    def loss(w):
        made = lanes.Ensemble(Neuron(w), eqx.if_array(0))
        model, _ = chorax.vmap_init_all_states([made], axis_size=2, key=key)
        return (model[0].model.v ** 2).sum()

    w = jnp.arange(12.0).reshape(4, 3)
    grads = jax.grad(loss)(w)
    assert grads.shape == w.shape
    eps = 1e-2
    step = jnp.zeros_like(w).at[1, 2].set(eps)
    slope = (loss(w + step) - loss(w - step)) / (2 * eps)
    np.testing.assert_allclose(grads[1, 2], slope, rtol=1e-2)


def test_a_fault_inside_is_found_where_a_lane_sees_it(key):
    made = {"e": lanes.Ensemble(Neuron(jnp.ones((4, 3, 2))), eqx.if_array(0))}
    text = r"`w` of the Neuron at `e\.model`"
    with pytest.raises(chorax.AnnotationError, match=text):
        chorax.init_all_states(made, key=key)
    with pytest.raises(chorax.AnnotationError, match=text):
        chorax.check_annotations(made)
    chorax.check_annotations(
        {"e": lanes.Ensemble(Neuron(jnp.ones((4, 3))), eqx.if_array(0))}
    )


def test_a_parent_that_calls_its_ensemble(key):
    class Mean(eqx.Module):
        members: lanes.Ensemble
        mean: Any = None

        def init_state(self, *, key):
            del key
            v = self.members.vmap(lambda m: m.v)()
            return chorax.replace(self, mean=v.mean(0))

    made = Mean(lanes.Ensemble(*lanes.stack([neuron(i) for i in range(4)])))
    model, _ = chorax.vmap_init_all_states(made, axis_size=2, key=key)
    np.testing.assert_allclose(model.mean, model.members.model.v.mean(1), rtol=1e-6)


def test_a_parent_that_replaces_its_ensemble(key):
    class Grow(eqx.Module):
        members: Any

        def init_state(self, *, key):
            del key
            more = [*self.members, *self.members]
            return chorax.replace(self, members=lanes.Ensemble(*lanes.stack(more)))

    made = Grow(lanes.Ensemble(*lanes.stack([neuron(i) for i in range(2)])))
    model, delta = chorax.vmap_init_all_states(made, axis_size=3, key=key)
    assert model.members.model.v.shape == (3, 4, 3)
    assert [len(m.members) for m in lanes.unstack(model, delta)] == [4] * 3


# The lanes that an ensemble records have to agree with its leaves.


class Both(eqx.Module):
    v: Any
    w: Any

    def go(self):
        return chorax.replace(self, v=self.v + 1, w=self.w + 1)

    def draw(self, *, key):
        return chorax.replace(self, v=jax.random.normal(key, self.v.shape))

    def same(self):
        return self

    def drop(self):
        return chorax.replace(self, v=None)


def both(**axes):
    model = Both(jnp.zeros((2, 2)), jnp.array([10.0, 20.0]))
    return lanes.Ensemble(model, Both(**{"v": 0, "w": None, **axes}))


def test_a_part_of_a_delta_leaves_the_rest_as_it_was():
    model = [both()]
    new, delta = chorax.call_all_fns(model, "go")
    part = delta.select(lambda path, x: path[-1] == "v")
    out = chorax.apply_delta(model, part)[0]
    assert out.axes.w is None
    assert out.model.w is model[0].model.w
    oracle.assert_same(out.model.v, new[0].model.v)
    assert out[0].w.tolist() == [10.0, 20.0]
    whole = chorax.apply_delta(model, delta.select(...))
    oracle.assert_same(whole, new)


def test_what_is_not_there_for_the_moment_keeps_its_lanes():
    made = eqx.tree_at(lambda e: e.model.v, both(w=0), None)
    structure = jtu.tree_structure(made)
    assert jtu.tree_structure(made[:]) == structure
    with pytest.warns(UserWarning, match="wrote nothing"):
        out, _ = chorax.call_all_fns({"e": made}, "same")
    assert jtu.tree_structure(out["e"]) == structure


@pytest.mark.parametrize("axes", [None, "where"])
def test_batchnorm_without_its_state(axes, key):
    norm = eqx.nn.BatchNorm(3, "batch", mode="ema")
    reset = chorax.reset_parameters
    batched = chorax.vmap_call_all_fns(norm, reset, axis_size=4, key=key)
    model = eqx.nn.delete_init_state({"e": lanes.Ensemble(*batched)})
    if axes is None:
        out, _ = chorax.call_all_fns(model, reset, key=key)
        assert jtu.tree_structure(out) == jtu.tree_structure(model)
        return
    outer, outer_axes = lanes.broadcast(model, 2)
    out, _ = chorax.vmap_call_all_fns(
        outer,
        reset,
        axis_size=2,
        key=key,
        in_axes=outer_axes,
        where=jnp.array([True, False]),
    )
    assert jtu.tree_structure(out) == jtu.tree_structure(outer)


def test_a_lane_axis_stays_where_it_was(lane_key):
    model = {"e": lanes.Ensemble(Both(jnp.zeros((5, 3)), None), Both(1, None))}
    new, _ = chorax.call_all_fns(model, "draw", key=lane_key)
    assert jtu.tree_structure(new) == jtu.tree_structure(model)
    assert new["e"].model.v.shape == (5, 3)
    for own, member in zip(
        member_keys(lane_key, ("e", "model"), 3), new["e"], strict=True
    ):
        oracle.assert_same(member.v, jax.random.normal(own, (5,)))
    outer, axes = lanes.broadcast(model, 4)
    mask = jnp.array([True, False, True, False])
    out, _ = chorax.vmap_call_all_fns(
        outer, "draw", axis_size=4, key=lane_key, in_axes=axes, where=mask
    )
    v = out["e"].model.v
    assert v.shape == (4, 5, 3)
    assert not v[1].any()
    assert v[0].all()
    jax.lax.scan(
        lambda m, k: (chorax.call_all_fns(m, "draw", key=k)[0], None),
        model,
        jax.random.split(lane_key, 3),
    )


def test_nested_lane_axes_stay_where_they_were(lane_key):
    v = jnp.zeros((5, 2, 3))
    inner = lanes.Ensemble(Both(jnp.zeros((5, 3)), None), Both(1, None))
    batched = eqx.tree_at(lambda e: e.model.v, inner, v)
    axes = eqx.tree_at(lambda e: e.model.v, inner, 1)
    model = [lanes.Ensemble(batched, axes)]
    new, _ = chorax.call_all_fns(model, "draw", key=lane_key)
    assert new[0].model.model.v.shape == (5, 2, 3)
    assert jtu.tree_structure(new) == jtu.tree_structure(model)
    for i, own in enumerate(member_keys(lane_key, (0, "model", "model"), 2)):
        for j, k in enumerate(jax.random.split(own, 3)):
            found = new[0].model.model.v[:, i, j]
            oracle.assert_same(found, jax.random.normal(k, (5,)))


def test_other_fields_of_a_subclass_have_no_lanes():
    class Headed(lanes.Ensemble):
        head: Any

        def __init__(self, model, axes, head):
            super().__init__(model, axes)
            self.head = head

    class Centred(eqx.Module):
        v: Any

        def go(self):
            return chorax.replace(self, v=self.v - self.v.mean())

    made = Headed(Centred(jnp.arange(6.0).reshape(3, 2)), 0, Centred(jnp.arange(3.0)))
    (new,), _ = chorax.call_all_fns([made], "go")
    assert new.head.v.tolist() == [-1.0, 0.0, 1.0]
    assert new.model.v.tolist() == [[-0.5, 0.5]] * 3


def test_aux_has_lanes_in_front():
    class Telling(eqx.Module):
        v: Any
        w: Any

        def go(self):
            return chorax.replace(self, v=self.v + 1), (self.v, self.v * 1, self.w)

    made = lanes.Ensemble(Telling(jnp.zeros((2, 3)), jnp.ones(5)), Telling(1, None))
    _, _, aux = chorax.call_all_fns({"e": made}, "go", has_aux=True)
    assert [x.shape for x in aux["e.model"]] == [(3, 2), (3, 2), (3, 5)]


def test_an_ensemble_without_arrays():
    made = ensemble()
    _, static = eqx.partition(made, eqx.is_array)
    assert len(static) == 4
    assert len(list(static)) == 4
    assert static[0].layers[0].weight is None
    assert len(static[jnp.array([True, False, True, False])]) == 2
    new, _ = chorax.call_all_fns([both()], "drop")
    assert len(list(new[0])) == 2


def test_the_lane_law_where_no_leaf_has_lanes():
    class Counter(eqx.Module):
        n: int

        def go(self):
            return chorax.replace(self, n=self.n + 1)

    batched, delta = chorax.vmap_call_all_fns(Counter(1), "go", axis_size=3)
    assert [member.n for member in lanes.unstack(batched, delta)] == [2, 2, 2]
    assert len(lanes.Ensemble(batched, delta)) == 3


def test_nodes_inside_of_which_nothing_has_lanes():
    class Counter(eqx.Module):
        n: int
        w: Any

        def go(self):
            return chorax.replace(self, n=self.n + 1)

        def grow(self):
            return chorax.replace(self, w=self.w + 1)

    model = {"a": Counter(1, jnp.ones(2)), "b": jnp.zeros(3)}
    made = [lanes.Ensemble(model, {"a": None, "b": 0})]
    assert chorax.call_all_fns(made, "go")[0][0].model["a"].n == 2
    (new,), _ = chorax.call_all_fns(made, "grow")
    assert new.model["a"].w.shape == (3, 2)
    assert new.axes["a"].w == 0


class Sums(eqx.Module):
    """Writes an array with fewer axes than before."""

    v: jax.Array

    def sum(self):
        return chorax.replace(self, v=jnp.sum(self.v))


def test_what_is_left_out_of_a_delta_has_its_old_axis():
    model = {"e": lanes.Ensemble(Sums(jnp.ones((3, 4))), 1)}
    new, delta = chorax.call_all_fns(model, "sum")
    assert new["e"].axes.v == 0
    out = chorax.apply_delta(model, delta.select(None))
    assert out["e"].axes.v == 1
    assert jtu.tree_structure(out) == jtu.tree_structure(model)


def test_legacy_keys_inside_an_ensemble(legacy_lane_key):
    class Drawn(eqx.Module):
        v: jax.Array

        def draw(self, *, key):
            return chorax.replace(self, v=jax.random.uniform(key, (2,)))

    model = {"e": lanes.Ensemble(Drawn(jnp.ones((2, 2))), 0)}
    new, _ = chorax.call_all_fns(model, "draw", key=legacy_lane_key)
    for own, member in zip(
        member_keys(legacy_lane_key, ("e", "model"), 2), new["e"], strict=True
    ):
        oracle.assert_same(member.v, jax.random.uniform(own, (2,)))


# Its length is the number of lanes of its leaves, however it was made.


def axes_of(made):
    return chorax.replace(made, model=made.axes)


def doubled(made):
    return lanes.concatenate([made, made], axes_of(made))


def test_it_has_as_many_members_as_its_leaves_have_lanes():
    made = ensemble()
    two: Any = doubled(made)
    assert len(two) == two.axis_size == 8
    assert type(two.axis_size) is int
    assert "8 lanes of MLP" in repr(two)
    for one, other in zip(two, [*mlps(), *mlps()], strict=True):
        oracle.assert_same(one, other)
    oracle.assert_same(two[-1], mlps()[3])
    assert len(two[2:]) == 6
    np.testing.assert_allclose(two(jnp.ones(2))[4:], made(jnp.ones(2)), rtol=1e-6)
    with pytest.raises(IndexError, match="There are 8 lanes"):
        two[8]
    assert len(jtu.tree_map(lambda x: x[:3] if eqx.is_array(x) else x, made)) == 3


def test_structures_of_other_sizes_are_equal():
    made: Any = ensemble()
    two: Any = doubled(made)
    structure = jtu.tree_structure(made)
    assert structure == jtu.tree_structure(two) == jtu.tree_structure(two[:3])
    assert hash(structure) == hash(jtu.tree_structure(two[:3]))
    joined = lanes.concatenate([made, two[:3]], eqx.if_array(0))
    assert len(joined) == 7
    traces = []

    @eqx.filter_jit
    def count(made):
        traces.append(None)
        return len(made), made[1:]

    for size in (4, 8, 3):
        found, rest = count(two[:size])
        assert (found, len(rest)) == (size, size - 1)
    assert len(traces) == 3 or jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
    sizes: Any = [eqx.filter_eval_shape(lambda m: m, two[:size]) for size in (2, 8)]
    assert list(map(len, sizes)) == [2, 8]


def test_what_has_no_leaf_with_lanes_keeps_its_number():
    static = [eqx.filter(ensemble(size), False) for size in (4, 2)]
    assert list(map(len, static)) == [4, 2]
    assert jtu.tree_structure(static[0]) == jtu.tree_structure(static[1])
    arrays, rest = eqx.partition(doubled(ensemble()), eqx.is_array)
    assert len(arrays) == len(eqx.combine(arrays, rest)) == 8
    asked = jtu.tree_map(eqx.is_array, ensemble())
    assert len(asked) == 4
    assert asked[0].layers[0].weight is True

    class Counter(eqx.Module):
        n: int

        def go(self):
            return chorax.replace(self, n=self.n + 1)

    made = {}
    for size in (2, 3):
        parts = chorax.vmap_call_all_fns(Counter(1), "go", axis_size=size)
        made[size] = lanes.Ensemble(*parts)
    # Only the number distinguishes two traces here.
    call = eqx.filter_jit(lambda e: e.vmap(lambda m: jnp.ones(m.n))())
    assert [call(made[size]).shape for size in (2, 3)] == [(2, 2), (3, 2)]


def test_leaves_that_disagree(lane_key):
    made = eqx.tree_at(lambda e: e.model.layers[0].bias, ensemble(), jnp.ones((5, 4)))
    text = r"`axes` maps `layers\.0\.bias` along axis 0, which must be 4 long"
    uses: list[Any] = [len, list, lambda e: e[0], lambda e: e(jnp.ones(2))]
    for use in uses:
        with pytest.raises(ValueError, match=text) as caught:
            use(made)
        assert caught.value.__notes__ == ["`layers.0.weight` has 4 lanes."]
    assert "4 lanes of MLP" in repr(made)
    text = (
        r"ensemble at `e\.0` disagree on its lanes: `.*` has 4 along its lane axis, "
        r"and `e\.0\.model\.layers\.0\.bias` has 5\."
    )
    with pytest.raises(ValueError, match=text):
        chorax.call_all_fns({"e": [made]}, chorax.reset_parameters, key=lane_key)
    outer = lanes.broadcast({"e": [made]}, 3)
    with pytest.raises(ValueError, match=text):
        chorax.vmap_call_all_fns(
            outer[0],
            chorax.reset_parameters,
            axis_size=3,
            in_axes=outer[1],
            key=lane_key,
        )


@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy", "leaves"])
def test_copies_have_the_same_length(how, tmp_path):
    made = {"e": both(w=0)}

    def through_a_file(x):
        eqx.tree_serialise_leaves(tmp_path / "x.eqx", x)
        return eqx.tree_deserialise_leaves(tmp_path / "x.eqx", x)

    copied: Any = {
        "pickle": lambda x: pickle.loads(pickle.dumps(x)),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "leaves": through_a_file,
    }[how]
    for each in (made, eqx.filter(made, False)):
        oracle.assert_same(copied(each), each)
        assert len(copied(each)["e"]) == 2


def test_calls_inside_have_as_many_lanes_as_the_leaves(lane_key):
    # More lanes than originally, and a node without lanes among the others.
    model: Any = {"a": Both(jnp.ones(2), jnp.ones(2)), "b": jnp.zeros(3)}
    two: Any = doubled(lanes.Ensemble(model, {"a": None, "b": 0}))
    (new,), _ = chorax.call_all_fns([two], "draw", key=lane_key)
    assert new.model["a"].v.shape == (6, 2)
    keys = member_keys(lane_key, (0, "model", "a"), 6)
    for one, k in zip(new, keys, strict=True):
        oracle.assert_same(one["a"].v, jax.random.normal(k, (2,)))
    # A remembered call is not used for another number of lanes.
    for size in (2, 4):
        (some,), _ = chorax.call_all_fns([two[:size]], "draw", key=lane_key)
        assert some.model["a"].v.shape == (size, 2)
    # Nor if only the number differs.
    for size in (2, 3):
        none = eqx.tree_at(lambda e: e.model["b"], two[:size], None)
        (some,), _ = chorax.call_all_fns([none], "draw", key=lane_key)
        assert some.model["a"].v.shape == (size, 2)
    batched, delta = chorax.vmap_call_all_fns([two], "go", axis_size=5)
    assert batched[0].model["a"].v.shape == (5, 6, 2)
    chorax.check_annotations(batched, in_axes=delta)


def test_lengths_one_inside_another(lane_key):
    inner = lanes.Ensemble(Both(jnp.zeros((5, 3)), jnp.zeros(3)), Both(1, 0))
    outer = lanes.Ensemble(*lanes.stack([inner] * 2, share=lambda p, x: p[-1] == "w"))
    outer = doubled(outer)
    assert [len(one) for one in outer] == [3] * 4
    grown = lanes.Ensemble(outer.vmap(doubled)(), eqx.if_array(0))
    assert [len(one) for one in grown] == [6] * 4
    (new,), _ = chorax.call_all_fns([grown], "draw", key=lane_key)
    assert new.model.model.v.shape == (4, 5, 6)
    for i, own in enumerate(member_keys(lane_key, (0, "model", "model"), 4)):
        for j, k in enumerate(jax.random.split(own, 6)):
            oracle.assert_same(new[i][j].v, jax.random.normal(k, (5,)))
    with jax.disable_jit():
        plain, _ = chorax.call_all_fns([grown], "draw", key=lane_key)
    oracle.assert_same(plain, [new])


def test_arguments_have_as_many_lanes():
    made = lanes.Ensemble(Scaled(jnp.arange(3.0)), 0)
    for axis in (0, -1):
        text = f"`in_axes` maps `1` along axis {axis}, which must be `axis_size` = 3"
        with pytest.raises(ValueError, match=text):
            made(1.0, jnp.ones(2), in_axes=(None, axis))
    text = "`kwargs_in_axes` maps `scale` along axis 0, but it is not an array: 2.0"
    with pytest.raises(ValueError, match=text):
        made(1.0, 2.0, scale=2.0, kwargs_in_axes=0)
