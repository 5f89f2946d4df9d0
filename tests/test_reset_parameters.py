"""`reset_parameters`: draw for draw what the constructor makes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

import chorax
import oracle


LINEAR = {
    "plain": (3, 4),
    "no bias": (3, 4, False),
    "scalar in": ("scalar", 4),
    "scalar out": (3, "scalar"),
    "no input": (0, 2),
    "half": (3, 4, True, jnp.float16),
    "bfloat": (3, 4, True, jnp.bfloat16),
    "complex": (3, 4, True, jnp.complex64),
}
MLP = {
    "plain": {"depth": 2},
    "shallow": {"depth": 0},
    "one": {"depth": 1},
    "scan": {"depth": 3, "scan": True},
    "no bias": {"depth": 2, "use_bias": False},
    "no final bias": {"depth": 2, "use_final_bias": False},
    "half": {"depth": 2, "dtype": jnp.float16},
}


def keys():
    return jax.random.key(0), jax.random.key(1)


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_linear(name):
    old, new = keys()
    layer = eqx.nn.Linear(*LINEAR[name], key=old)
    built = eqx.nn.Linear(*LINEAR[name], key=new)
    oracle.assert_same(chorax.reset_parameters(layer, key=new), built)


@pytest.mark.parametrize("name", sorted(MLP))
def test_mlp(name):
    old, new = keys()
    layer = eqx.nn.MLP(2, 3, 4, **MLP[name], key=old)
    built = eqx.nn.MLP(2, 3, 4, **MLP[name], key=new)
    oracle.assert_same(chorax.reset_parameters(layer, key=new), built)


def test_an_ensemble_is_what_the_constructor_makes_in_every_lane():
    old, new = keys()
    mlp = eqx.nn.MLP(2, 3, 4, 2, key=old)
    ensemble, delta = chorax.vmap_call_all_fns(
        mlp, chorax.reset_parameters, axis_size=3, key=new
    )
    assert len(delta.paths) == 6
    lanes = [oracle.node_key(k, ()) for k in jax.random.split(new, 3)]
    built = eqx.filter_vmap(lambda k: eqx.nn.MLP(2, 3, 4, 2, key=k))(jnp.stack(lanes))
    oracle.assert_same(ensemble, built)
    x = jnp.ones(2)
    out = eqx.filter_vmap(lambda m, x: m(x), in_axes=(delta.in_axes, None))(ensemble, x)
    assert out.shape == (3, 3)


def test_leading_axes_are_kept_with_draws_of_their_own():
    old, new = keys()
    stack = eqx.filter_vmap(lambda k: eqx.nn.Linear(2, 2, key=k))(
        jax.random.split(old, 5)
    )
    fresh = chorax.reset_parameters(stack, key=new)
    built = eqx.filter_vmap(lambda k: eqx.nn.Linear(2, 2, key=k))(
        jax.random.split(new, 5)
    )
    oracle.assert_same(fresh, built)
    grid = eqx.filter_vmap(eqx.filter_vmap(lambda k: eqx.nn.MLP(2, 2, 2, 1, key=k)))(
        jax.random.split(old, (2, 3))
    )
    fresh = chorax.reset_parameters(grid, key=new)
    assert fresh.layers[0].weight.shape == (2, 3, 2, 2)
    assert len({float(x) for x in fresh.layers[0].weight.reshape(-1)}) == 24


def test_activations_are_left_alone():
    old, new = keys()
    mlp = eqx.nn.MLP(2, 2, 4, 2, activation=eqx.nn.PReLU(0.3), key=old)
    fresh = chorax.reset_parameters(mlp, key=new)
    assert fresh.activation.negative_slope is mlp.activation.negative_slope


def test_an_mlp_with_other_layers_is_left_to_them():
    class Scaled(eqx.nn.Linear):
        pass

    make: Any = Scaled
    old, new = keys()
    mlp = eqx.nn.MLP(2, 2, 4, 1, key=old)
    other = chorax.replace(mlp, layers=(make(2, 4, key=old), mlp.layers[1]))
    assert chorax.reset_parameters(other, key=new) is other


def test_an_mlp_with_changed_layers_is_left_to_them():
    old, new = keys()
    mlp = eqx.nn.MLP(2, 1, 4, 2, key=old)
    head = eqx.tree_at(lambda m: m.layers[-1], mlp, eqx.nn.Linear(4, 5, key=old))
    half = eqx.tree_at(
        lambda m: m.layers[1].weight, mlp, jnp.ones((4, 4), jnp.bfloat16)
    )
    longer = eqx.tree_at(lambda m: m.layers, mlp, (*mlp.layers, mlp.layers[1]))
    for model in (head, half, longer):
        assert chorax.reset_parameters(model, key=new) is model
    fresh, _ = chorax.call_all_fns(head, chorax.reset_parameters, key=new)
    built = eqx.nn.Linear(4, 5, key=oracle.node_key(new, ("layers", 2)))
    oracle.assert_same(fresh.layers[-1], built)


def test_other_modules_come_back_unchanged():
    class Mine(eqx.Module):
        w: jax.Array

    mine = Mine(jnp.ones(2))
    assert chorax.reset_parameters(mine, key=jax.random.key(0)) is mine
    model = {"mine": mine, "linear": eqx.nn.Linear(1, 1, key=jax.random.key(0))}
    fresh, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, axis_size=2, key=jax.random.key(1)
    )
    assert delta.paths == ("linear.weight", "linear.bias")
    assert fresh["mine"].w is mine.w


def test_a_parameter_that_is_no_array_is_named():
    linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    wrapped = eqx.tree_at(lambda x: x.weight, linear, eqx.nn.Lambda(jnp.tanh))
    with pytest.raises(TypeError, match="`weight` of Linear is no array, but a Lambda"):
        chorax.reset_parameters(wrapped, key=jax.random.key(0))
    with pytest.raises(TypeError, match="Register a rule") as info:
        chorax.vmap_call_all_fns(
            [wrapped], chorax.reset_parameters, axis_size=2, key=jax.random.key(0)
        )
    assert "of Linear at `0`" in info.value.__notes__[0]


def test_tied_layers_stay_tied():
    old, new = keys()
    pair = (eqx.nn.Linear(2, 2, key=old), eqx.nn.Linear(2, 2, key=old))
    shared = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)
    fresh, _ = chorax.vmap_call_all_fns(
        shared,
        chorax.reset_parameters,
        axis_size=2,
        key=new,
        node_to_exclude=lambda path, _: path == ("pytree", 1),
    )
    one, two = fresh()
    assert one.weight is two.weight
    assert one.weight.shape == (2, 2, 2)
    assert jtu.tree_structure(fresh) == jtu.tree_structure(shared)
