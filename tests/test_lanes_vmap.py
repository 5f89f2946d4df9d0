"""`lanes.vmap`: `eqx.filter_vmap` that takes deltas, plain integers and ensembles."""

import inspect
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chorax
import oracle
from chorax import lanes


class Cell(eqx.Module):
    """Shared weights, a state for each lane, and leaves that are not arrays."""

    w: Any
    v: Any
    gain: float = 2.0
    act: Any = jnp.tanh

    def __call__(self, x):
        return self.gain * self.act(self.w @ x + self.v)


def start(node, key):
    return chorax.replace(node, v=jax.random.normal(key, (2,)))


@pytest.fixture
def cells(lane_key):
    model = Cell(jax.random.normal(lane_key, (2, 3)), jnp.zeros(2))
    return chorax.vmap_call_all_fns(model, start, axis_size=4, key=lane_key)


@pytest.fixture
def xs(lane_key):
    return jax.random.normal(lane_key, (4, 3))


def apply(model, x):
    return model(x)


def program(function, *args):
    """What it is lowered and compiled to, without places in the source."""
    arrays, static = eqx.partition(args, eqx.is_array)

    def call(arrays):
        return function(*eqx.combine(arrays, static))

    lowered = jax.jit(call).lower(arrays)
    text = re.sub(r", metadata=\{[^}]*\}", "", lowered.compile().as_text())
    tables = r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*"
    return lowered.as_text(), re.sub(tables, "", text, flags=re.MULTILINE)


def test_the_signature_is_that_of_filter_vmap():
    parameters = inspect.signature(lanes.vmap).parameters
    assert list(parameters)[:3] == ["fn", "in_axes", "out_axes"]
    assert parameters["in_axes"].default == eqx.if_array(0)
    assert parameters["out_axes"].default == eqx.if_array(0)


def test_a_delta_is_its_axes_and_the_program_is_the_one_by_hand(cells, xs):
    batched, delta = cells
    by_hand = eqx.filter_vmap(apply, in_axes=(delta.in_axes, 0))
    ours = lanes.vmap(apply, in_axes=(delta, 0))
    oracle.assert_same(ours(batched, xs), by_hand(batched, xs))
    assert program(ours, batched, xs) == program(by_hand, batched, xs)
    other = eqx.filter_vmap(lambda m, x: m(x) + 1, in_axes=(delta.in_axes, 0))
    assert program(other, batched, xs) != program(by_hand, batched, xs)


def test_an_ensemble_brings_its_axes_and_the_program_is_the_one_by_hand(cells, xs):
    batched, delta = cells
    by_hand = eqx.filter_vmap(apply, in_axes=(delta.in_axes, 0))
    ours = lanes.vmap(lambda m, x: m(x))

    def unwrapped(batched, xs):
        # Of the same inputs, which is all that can differ.
        return ours(lanes.Ensemble(batched, delta), xs)

    oracle.assert_same(unwrapped(batched, xs), by_hand(batched, xs))
    assert program(unwrapped, batched, xs) == program(by_hand, batched, xs)


def test_out_axes_take_a_delta_too(cells, xs):
    batched, delta = cells

    def step(model, x):
        return chorax.replace(model, v=model(x)), x.sum()

    axes = delta.in_axes
    by_hand = eqx.filter_vmap(step, in_axes=(axes, 0), out_axes=(axes, 0))
    out, sums = lanes.vmap(step, (delta, 0), (delta, 0))(batched, xs)
    oracle.assert_same((out, sums), by_hand(batched, xs))
    assert out.w.shape == (2, 3)


def test_deltas_inside_other_trees_of_axes(cells, xs):
    batched, delta = cells

    def both(pair, x):
        return pair["cells"][0](x) + pair["shift"]

    pair = {"cells": [batched], "shift": jnp.ones(2)}
    axes = {"cells": [delta], "shift": None}
    by_hand = eqx.filter_vmap(apply, in_axes=(delta.in_axes, 0))(batched, xs) + 1
    out = lanes.vmap(both, in_axes=(axes, 0))(pair, xs)
    oracle.assert_same(out, by_hand)
    oracle.assert_same(lanes.vmap(both, in_axes={"pair": axes})(pair, xs), by_hand)


def test_a_delta_alone_is_that_of_the_one_argument(cells):
    batched, delta = cells
    sums = lanes.vmap(lambda m: m.v.sum(), in_axes=delta)(batched)
    np.testing.assert_allclose(sums, batched.v.sum(1), rtol=1e-6)


def test_a_plain_integer_speaks_of_arrays_only(lane_key, xs):
    models = [Cell(jnp.full((2, 3), i / 2), jnp.zeros(2)) for i in range(4)]
    batched, _ = lanes.stack(models)
    expected = jnp.stack([model(x) for model, x in zip(models, xs, strict=True)])
    with pytest.raises((TypeError, ValueError), match=r"valid JAX type|its rank"):
        eqx.filter_vmap(apply, in_axes=0)(batched, xs)
    np.testing.assert_allclose(lanes.vmap(apply, in_axes=0)(batched, xs), expected)
    turned = lanes.vmap(apply, (0, 1), 1)(batched, xs.T)
    np.testing.assert_allclose(turned, expected.T)
    # On the way out, too.
    again, act = lanes.vmap(lambda m: (m, m.act), 0, 0)(batched)
    assert (again.gain, act) == (2.0, jnp.tanh)
    oracle.assert_same(again, batched)


@pytest.mark.parametrize("axis", [..., 0, 1, eqx.if_array(1)])
def test_an_ensembles_axes_are_its_own_whatever_is_said(cells, xs, axis):
    batched, delta = cells
    ensemble = lanes.Ensemble(batched, delta)
    options: Any = {} if axis is ... else {"in_axes": (axis, 0)}
    seen = []

    def look(member, x):
        seen.append(member)
        return member(x)

    out = lanes.vmap(look, **options)(ensemble, xs)
    expected = [member(x) for member, x in zip(ensemble, xs, strict=True)]
    np.testing.assert_allclose(out, jnp.stack(expected), rtol=1e-6)
    assert type(seen[0]) is Cell
    assert (seen[0].w.shape, seen[0].v.shape) == ((2, 3), (2,))


def test_an_ensemble_with_none_is_shared_whole(cells, xs):
    ensemble = lanes.Ensemble(*cells)
    out = lanes.vmap(apply, in_axes=(None, 0))(ensemble, xs)
    expected = jnp.stack([ensemble(x) for x in xs])
    assert out.shape == (4, 4, 2)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_ensembles_in_containers_are_members_and_in_modules_are_whole(cells, xs):
    class Mean(eqx.Module):
        members: lanes.Ensemble

        def __call__(self, x):
            return self.members(x).mean(0)

    ensemble = lanes.Ensemble(*cells)
    expected = lanes.vmap(apply)(ensemble, xs)
    inside = {"models": [ensemble, None], "scale": jnp.arange(4.0)}

    def scaled(inside, x):
        return inside["scale"] * inside["models"][0](x)

    out = lanes.vmap(scaled)(inside, xs)
    np.testing.assert_allclose(out, expected * jnp.arange(4.0)[:, None], rtol=1e-6)
    axes = ({"models": 0, "scale": None}, 0)
    out = lanes.vmap(lambda inside, x: inside["models"][0](x), axes)(inside, xs)
    np.testing.assert_allclose(out, expected, rtol=1e-6)

    means = lanes.vmap(apply, in_axes=(None, 0))(Mean(ensemble), xs)
    np.testing.assert_allclose(means, jnp.stack([Mean(ensemble)(x) for x in xs]))


def test_lanes_around_those_of_an_ensemble(cells, xs, lane_key):
    ensemble = lanes.Ensemble(*cells)
    outer, delta = chorax.vmap_call_all_fns(ensemble, start, axis_size=3, key=lane_key)
    out = lanes.vmap(lambda e, x: e(x), in_axes=(delta, None))(outer, xs[0])
    expected = [e(xs[0]) for e in lanes.unstack(outer, delta)]
    np.testing.assert_allclose(out, jnp.stack(expected), rtol=1e-6)


def test_an_ensembles_model_may_have_its_axes_written_out(cells, xs):
    batched, delta = cells
    ensemble = lanes.Ensemble(batched, delta)
    out = lanes.vmap(apply, in_axes=(delta, 0))(ensemble, xs)
    oracle.assert_same(out, lanes.vmap(apply)(ensemble, xs))
    shared = chorax.replace(delta.in_axes, v=None)
    shapes = lanes.vmap(lambda m, x: m.v + x[0], in_axes=(shared, 0))(ensemble, xs)
    assert shapes.shape == (4, 4, 2)


def test_what_stands_in_for_an_ensembles_arrays_has_no_lanes(cells, xs):
    ensemble = lanes.Ensemble(*cells)
    spec = jax.tree.map(eqx.is_inexact_array, ensemble)

    def parts(spec, model, x):
        params, static = eqx.partition(model, spec)
        return eqx.combine(params, static)(x)

    out = lanes.vmap(parts)(spec, ensemble, xs)
    oracle.assert_same(out, lanes.vmap(apply)(ensemble, xs))


def test_nested_in_itself_and_in_filter_vmap(cells, xs):
    batched, delta = cells
    ensemble = lanes.Ensemble(batched, delta)
    expected = jnp.stack([jnp.stack([m(x) for x in xs]) for m in ensemble])
    ours = lanes.vmap(lambda m, xs: lanes.vmap(m)(xs), in_axes=(0, None))
    np.testing.assert_allclose(ours(ensemble, xs), expected, rtol=1e-6)
    mixed = eqx.filter_vmap(
        lambda x: lanes.vmap(apply, in_axes=(0, None))(ensemble, x), out_axes=1
    )
    np.testing.assert_allclose(mixed(xs), expected, rtol=1e-6)


def test_gradients_and_jit_are_those_by_hand(cells, xs):
    batched, delta = cells
    axes = (delta.in_axes, 0)

    def ours(model, xs):
        return (lanes.vmap(apply, in_axes=(delta, 0))(model, xs) ** 2).sum()

    def by_hand(model, xs):
        return (eqx.filter_vmap(apply, in_axes=axes)(model, xs) ** 2).sum()

    one, two = (
        eqx.filter_jit(eqx.filter_grad(f))(batched, xs) for f in (ours, by_hand)
    )
    oracle.assert_same(one, two)

    def of_ensemble(ensemble):
        return (lanes.vmap(apply)(ensemble, xs) ** 2).sum()

    grads = eqx.filter_grad(of_ensemble)(lanes.Ensemble(batched, delta))
    oracle.assert_same(grads.model, two, exact=False)


def test_it_is_a_pytree_a_decorator_and_a_method(cells, xs):
    batched, delta = cells

    class Net(eqx.Module):
        cell: Cell

        @lanes.vmap(in_axes=(None, 0))
        def run(self, x):
            return self.cell(x)

    model = lanes.take(batched, delta, 0)
    expected = jnp.stack([model(x) for x in xs])
    np.testing.assert_allclose(Net(model).run(xs), expected, rtol=1e-6)
    mapped = lanes.vmap(model, in_axes=0)
    assert mapped.__wrapped__.w is model.w
    assert any(x is model.w for x in jax.tree.leaves(mapped))
    np.testing.assert_allclose(eqx.filter_jit(mapped)(xs), expected, rtol=1e-6)
    assert lanes.vmap(apply).__name__ == "apply"


def test_a_collective_call_walks_through_it(cells, lane_key):
    batched, _ = cells
    model, delta = chorax.call_all_fns(lanes.vmap(batched), start, key=lane_key)
    assert delta.paths == ("fn.v",)


def test_options_of_filter_vmap(cells, xs):
    def centred(model, x):
        return x - jax.lax.pmean(x, "lanes")

    batched, delta = cells
    out = lanes.vmap(centred, (delta, 0), axis_name="lanes")(batched, xs)
    np.testing.assert_allclose(out, xs - xs.mean(0, keepdims=True), rtol=1e-6)
    ones = lanes.vmap(lambda: jnp.ones(2), axis_size=3)()
    assert ones.shape == (3, 2)
    with pytest.raises(RuntimeError, match="no keyword arguments"):
        lanes.vmap(apply)(batched, x=xs)


def test_keys_and_numpy_arrays_have_lanes(lane_key):
    keys = jax.random.split(lane_key, 3)
    numbers = np.arange(3.0)
    out = lanes.vmap(lambda key, x: jax.random.normal(key) + x, in_axes=0)(
        keys, numbers
    )
    expected = [
        jax.random.normal(key) + x for key, x in zip(keys, numbers, strict=True)
    ]
    np.testing.assert_allclose(out, jnp.stack(expected), rtol=1e-6)


def test_what_is_wrong_is_named(cells, xs):
    batched, delta = cells
    ensemble = lanes.Ensemble(batched, delta)
    with pytest.raises(ValueError, match=r"differ at `0\.1`: a tuple of .* a Cell"):
        lanes.vmap(apply, in_axes=([delta, ()], 0))([batched] * 2, xs)
    wrong = chorax.diff({"a": 1}, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"differ at `0`: a dict of .* against a Cell"):
        lanes.vmap(apply, in_axes=(wrong, 0))(batched, xs)
    with pytest.raises(
        ValueError, match=r"`out_axes` .* differ at the root .* a dict of"
    ):
        lanes.vmap(apply, (delta, 0), wrong)(batched, xs)
    with pytest.raises(
        ValueError, match=r"maps `1` along axis 0, .* must be 4 long.* has 3"
    ):
        lanes.vmap(apply)(ensemble, xs[:3])
    with pytest.raises(ValueError, match=r"maps `1` along axis 0, .* no such axis"):
        lanes.vmap(apply)(ensemble, jnp.ones(()))
    with pytest.raises(ValueError, match=r"maps `0.v` along axis 0, .* = 5 long"):
        lanes.vmap(apply, (delta, None), axis_size=5)(batched, xs[0])
    with pytest.raises(ValueError, match=r"names \['z'\], but .* \['model', 'x'\]"):
        lanes.vmap(apply, in_axes={"z": 0})(batched, xs)
    with pytest.raises(TypeError, match="has 'a' at `1`"):
        lanes.vmap(apply, in_axes=(0, "a"))(batched, xs)
    with pytest.raises(TypeError, match=r"`fn` of `vmap` must be a function.* got 3"):
        lanes.vmap(3)  # pyright: ignore[reportArgumentType]
