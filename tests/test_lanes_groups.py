"""Models of several structures as one list, against a loop over the list."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import chorax
import oracle
from chorax import lanes
from test_annotated_models import flow


def mlp(width, depth, seed, activation=jax.nn.relu):
    key = jax.random.key(seed)
    return eqx.nn.MLP(2, 1, width, depth, activation, key=key)


class Rnn(eqx.Module):
    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear
    h: Any = None

    def __init__(self, seed):
        one, two = jax.random.split(jax.random.key(seed))
        self.cell = eqx.nn.GRUCell(2, 3, key=one)
        self.readout = eqx.nn.Linear(3, 1, key=two)

    def __call__(self, x):
        return self.readout(self.cell(x, jnp.zeros(3)))

    def init_state(self, *, key):
        return chorax.replace(self, h=jax.random.normal(key, (3,)))


def models():
    return [
        mlp(4, 1, 0),
        mlp(8, 1, 1),
        Rnn(2),
        mlp(4, 1, 3),
        mlp(4, 2, 4),
        Rnn(5),
        mlp(4, 1, 6, jnp.tanh),
        mlp(4, 1, 7),
    ]


PLACES = ((0, 3, 7), (1,), (2, 5), (4,), (6,))


def assert_close(found, expected):
    assert jtu.tree_structure(found) == jtu.tree_structure(expected)
    pairs = zip(jtu.tree_leaves(found), jtu.tree_leaves(expected), strict=True)
    for a, b in pairs:
        if eqx.is_array(a):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        else:
            assert a is b


def test_stacked_by_structure_and_given_back_in_order():
    before = models()
    groups = lanes.groups(before)
    assert groups.places == PLACES
    assert len(groups) == 8
    sizes = [len(places) for places in PLACES]
    assert [each.axis_size for each in groups.ensembles] == sizes
    weight = groups.ensembles[0].model.layers[0].weight
    assert weight.shape == (3, 4, 2)
    after = list(groups)
    assert len(after) == 8
    for old, new in zip(before, after, strict=True):
        oracle.assert_same(old, new)
    for index in (*range(8), -1, np.int32(3)):
        oracle.assert_same(groups[index], before[index])
    with pytest.raises(IndexError, match="out of range"):
        groups[8]
    # An iterator serves once, and that is enough.
    assert lanes.groups(iter(before)).places == PLACES


def test_what_stack_takes_is_one_group():
    key = jax.random.key(0)
    # Each has functions of its own, of the same code.
    alike = [flow(key), flow(jax.random.key(1))]
    assert lanes.groups(alike).places == ((0, 1),)
    other = [
        {"w": jnp.ones(2), "n": 1, "f": None},
        {"w": jnp.ones(2), "n": 1, "f": None},
        {"w": jnp.ones(3), "n": 1, "f": None},
        {"w": jnp.ones(2, jnp.bfloat16), "n": 1, "f": None},
        {"w": jnp.ones(2), "n": 2, "f": None},
        {"w": jnp.ones(2), "n": True, "f": None},
        {"w": jnp.ones(2), "n": 1, "f": jnp.ones(2)},
        {"w": jnp.ones(2), "n": 1},
    ]
    assert lanes.groups(other).places == ((0, 1), *((i,) for i in range(2, 8)))


@pytest.mark.parametrize("jit", [False, True])
def test_called_as_one_list(jit):
    x = jnp.array([0.5, -1.0])

    def call(groups, x):
        return groups(x)

    found = (eqx.filter_jit(call) if jit else call)(lanes.groups(models()), x)
    assert_close(found, [model(x) for model in models()])


def test_mapped_as_one_list():
    xs = jnp.arange(16.0).reshape(8, 2)
    scales = [{"s": jnp.array(float(i))} for i in range(8)]

    def fn(model, x, scale, batch):
        y = jax.vmap(model)(batch) * scale["s"] + x.sum()
        return {"y": y, "name": "same"}

    # One batch for all, by closure; an argument for each, as rows or as a list.
    batch = jnp.ones((4, 2))
    groups = lanes.groups(models())
    found = groups.map(lambda model, x, s: fn(model, x, s, batch), xs, scales)
    rows = zip(models(), xs, scales, strict=True)
    assert_close(found, [fn(model, x, scale, batch) for model, x, scale in rows])
    # Without any array in the result.
    kinds = groups.map(lambda model: type(model).__name__)
    assert kinds == [type(model).__name__ for model in models()]


def test_a_group_is_one_program():
    traced = []

    def fn(model):
        traced.append(type(model))
        return jnp.zeros(())

    lanes.groups(models()).map(fn)
    assert len(traced) == len(PLACES)


def data():
    x = jax.random.normal(jax.random.key(8), (16, 2))
    return x, x[:, :1] * x[:, 1:]


def loss(model, x, y):
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def test_trained_as_one_list():
    x, y = data()
    optimiser = optax.adam(1e-2)
    groups = lanes.groups(models())

    @eqx.filter_jit
    def step(groups, state):
        def total(groups):
            return sum(groups.map(lambda model: loss(model, x, y)))

        grads = eqx.filter_grad(total)(groups)
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(groups, updates), state

    with jax.numpy_dtype_promotion("standard"):
        state = optimiser.init(eqx.filter(groups, eqx.is_inexact_array))
        for _ in range(5):
            groups, state = step(groups, state)
        expected = []
        for model in models():
            own = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
            for _ in range(5):
                grads = eqx.filter_grad(loss)(model, x, y)
                updates, own = optimiser.update(grads, own)
                model = eqx.apply_updates(model, updates)
            expected.append(model)
    for found, model in zip(groups, expected, strict=True):
        pairs = zip(jtu.tree_leaves(found), jtu.tree_leaves(model), strict=True)
        for a, b in pairs:
            if eqx.is_array(a):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_it_prints_its_groups():
    groups = lanes.groups([mlp(4, 1, 0), mlp(8, 1, 1), mlp(4, 1, 2)])
    first, one, two = repr(groups).splitlines()
    assert first == "Groups: 3 models in 2 groups"
    assert one.startswith("0, 2: Ensemble: 2 lanes of MLP, 4 leaves with lanes")
    assert two.startswith("1: Ensemble: 1 lane of MLP")


def test_collective_calls_see_the_members():
    key = jax.random.key(0)
    groups, delta = chorax.init_all_states(lanes.groups(models()), key=key)
    states = [model.h for model in groups if isinstance(model, Rnn)]
    assert [h.shape for h in states] == [(3,), (3,)]
    assert (states[0] != states[1]).all()
    assert delta.paths == ("ensembles.2.model.h",)


def test_groups_are_walked_through_and_not_called():
    groups = lanes.groups(models())
    called: list[str] = []

    def note(node):
        called.append(type(node).__name__)
        return node, None

    chorax.call_all_fns(groups, note, has_aux=True)
    assert called
    assert not {"Groups", "Ensemble"}.intersection(called)


def test_groups_have_lanes_as_other_trees_do(key):
    groups = lanes.groups(models())
    batched, axes = lanes.stack([groups, groups])
    for one in (lanes.take(batched, axes, 1), *lanes.unstack(batched, axes)):
        oracle.assert_same(one, groups)
    drawn, delta = chorax.vmap_call_all_fns(
        groups, chorax.reset_parameters, axis_size=3, key=key
    )
    x = jnp.ones(2)
    out = lanes.vmap(lambda groups: groups(x), in_axes=(delta,))(drawn)
    expected = [each(x) for each in lanes.unstack(drawn, delta)]
    for index, columns in enumerate(zip(*expected, strict=True)):
        np.testing.assert_allclose(out[index], jnp.stack(columns), rtol=1e-5, atol=1e-6)


def test_bad_use():
    with pytest.raises(ValueError, match="nothing to group: no models were given"):
        lanes.groups([])
    text = r"`groups` must have an array, but model 1 has none: an Identity"
    with pytest.raises(ValueError, match=text):
        lanes.groups([mlp(4, 1, 0), eqx.nn.Identity()])
    wrong: Any = 3
    with pytest.raises(TypeError, match="must be an iterable of models, but got 3"):
        lanes.groups(wrong)
    text = "must be an iterable of models, but got .*the `.values"
    with pytest.raises(TypeError, match=text):
        lanes.groups({"a": mlp(4, 1, 0)})
    groups = lanes.groups([mlp(4, 1, 0), mlp(8, 1, 1)])
    text = "must have an entry for each of 2 models, but one of them has 3"
    with pytest.raises(ValueError, match=text):
        groups.map(lambda model, x: x, [1, 2, 3])
    with pytest.raises(TypeError, match=r"`fn` of `map` must be a function `\(model"):
        groups.map(wrong)
    alike = lanes.groups([mlp(4, 1, 0), mlp(4, 1, 1)])
    with pytest.raises(ValueError, match="model 0 and model 1 differ: 1 against 2"):
        alike.map(lambda model, x: x, [1, 2])
