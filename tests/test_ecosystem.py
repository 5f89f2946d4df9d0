"""Deltas in the hands of other libraries, and ensembles of others' models."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
import safetensors.numpy
import treescope

import chorax
import oracle
from chorax import lanes
from test_annotated_models import flow, vision_transformer


class Neuron(eqx.Module):
    w: Any
    v: Any = None
    key: Any = None
    name: str = eqx.field(static=True, default="neuron")

    def init_state(self, *, key):
        v = jax.random.normal(key, (3,)).astype(jnp.bfloat16)
        return chorax.replace(self, v=v, key=key)


def net():
    return {"a": [Neuron(jnp.ones(3)), Neuron(jnp.zeros(2))], "b": Neuron(jnp.ones(1))}


def called(seed=0):
    key = jax.random.key(seed)
    return chorax.vmap_init_all_states(net(), axis_size=4, key=key, state_tag="hidden")


def test_serialise_leaves(tmp_path):
    # Equinox has no way to write typed keys.
    def keyless(seed):
        return called(seed)[1].select(lambda path, x: path[-1] == "v")

    delta = keyless(0)
    eqx.tree_serialise_leaves(tmp_path / "delta.eqx", delta)
    like = eqx.filter_eval_shape(keyless, 1)
    back = eqx.tree_deserialise_leaves(tmp_path / "delta.eqx", like)
    assert back.paths == delta.paths
    assert back.tags == delta.tags
    oracle.assert_same(back, delta)


def test_orbax(tmp_path):
    import orbax.checkpoint as ocp

    model, delta = called()
    saved = {
        path: jax.random.key_data(x) if path.endswith("key") else x
        for path, x in delta.to_dict().items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
        checkpointer.wait_until_finished()
        like = jtu.tree_map(jnp.zeros_like, saved)
        back = checkpointer.restore(tmp_path / "state", like)
    values = {
        path: jax.random.wrap_key_data(x) if path.endswith("key") else x
        for path, x in back.items()
    }
    loaded, unexpected, missing = chorax.assign_state_values(called(1)[0], values)
    assert not unexpected
    assert missing == ["a.0.w", "a.1.w", "b.w"]
    oracle.assert_same(loaded, model)


def test_orbax_keeps_a_delta_as_the_tree_it_is(tmp_path):
    import orbax.checkpoint as ocp

    _, delta = called()
    delta = delta.select(lambda path, x: path[-1] == "v")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "delta", jtu.tree_leaves(delta))
        checkpointer.wait_until_finished()
        like = [jnp.zeros_like(x) for x in jtu.tree_leaves(delta)]
        leaves = checkpointer.restore(tmp_path / "delta", like)
    back = jtu.tree_unflatten(jtu.tree_structure(delta), leaves)
    oracle.assert_same(back, delta)
    assert back.paths == delta.paths


def test_safetensors(tmp_path):
    model, delta = called()
    saved = {
        path: np.asarray(jax.random.key_data(x) if path.endswith("key") else x)
        for path, x in delta.to_dict().items()
    }
    saved = {
        path: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x
        for path, x in saved.items()
    }
    safetensors.numpy.save_file(saved, tmp_path / "delta.safetensors")
    back: dict[str, Any] = safetensors.numpy.load_file(tmp_path / "delta.safetensors")
    assert sorted(back) == sorted(delta.paths)
    for path, x in back.items():
        is_key = path.endswith("key")
        back[path] = jax.random.wrap_key_data(x) if is_key else x.astype(jnp.bfloat16)
    loaded, unexpected, _ = chorax.assign_state_values(called(1)[0], back)
    assert not unexpected
    oracle.assert_same(loaded, model)


def trainable():
    model, delta = chorax.vmap_call_all_fns(
        {"a": eqx.nn.Linear(2, 2, key=jax.random.key(0)), "shared": jnp.ones(2)},
        chorax.reset_parameters,
        axis_size=3,
        key=jax.random.key(1),
    )
    params = eqx.filter(model, eqx.is_inexact_array)
    grads = jtu.tree_map(jnp.ones_like, params)
    return model, delta, params, grads


def test_optax_masked():
    _, delta, params, grads = trainable()
    spec = eqx.filter(delta.filter_spec, eqx.is_array, inverse=True)
    optimiser = optax.masked(optax.sgd(0.5), spec)
    updates: Any = optimiser.update(grads, optimiser.init(params), params)[0]
    assert (updates["a"].weight == -0.5).all()
    assert (updates["shared"] == 1.0).all()  # Passed through as it came.


def test_optax_multi_transform():
    _, delta, params, grads = trainable()
    labels = jtu.tree_map(lambda w: "lanes" if w else "shared", delta.filter_spec)
    optimiser = optax.multi_transform(
        {"lanes": optax.sgd(0.5), "shared": optax.set_to_zero()}, labels
    )
    updates, _ = optimiser.update(grads, optimiser.init(params), params)
    after = eqx.apply_updates(params, updates)
    oracle.assert_same(after["shared"], params["shared"])
    np.testing.assert_allclose(after["a"].bias, params["a"].bias - 0.5, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")
def test_treescope():
    model, delta = called()
    for shown in (delta, lanes.Ensemble(model, delta), model):
        text = treescope.render_to_text(shown)
        assert "Neuron" in text
        assert "bfloat16(4, 3)" in text
        html = treescope.render_to_html(shown)
        assert "<" in html


# Ensembles of others' models.


def resnet(key):
    import pdequinox

    return pdequinox.arch.ClassicResNet(
        1, 2, 1, hidden_channels=4, num_blocks=2, activation=jax.nn.relu, key=key
    )


def made_by_reset(build, key):
    with pytest.warns(UserWarning, match="There is no rule for LearnedPosEmbed"):
        return chorax.vmap_call_all_fns(
            build(jax.random.key(0)), chorax.reset_parameters, axis_size=3, key=key
        )


def made_by_stack(build, key):
    return lanes.stack([build(k) for k in jax.random.split(key, 3)])


def see(model, x):
    return model(x, key=jax.random.key(0), inference=True)


# How to build it, how to make an ensemble, how to run it, and on what.
OTHERS = {
    "equimo vision transformer": (
        vision_transformer,
        made_by_reset,
        see,
        jnp.ones((1, 8, 8)),
    ),
    "flowjax flow": (flow, made_by_stack, lambda m, x: m.log_prob(x), jnp.ones(3)),
    "pdequinox network": (resnet, made_by_stack, lambda m, x: m(x), jnp.ones((2, 8))),
}


@pytest.mark.slow
@pytest.mark.parametrize(("build", "make", "run", "x"), OTHERS.values(), ids=OTHERS)
def test_ensembles_of_models_that_others_wrote(build, make, run, x, key):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        batched, axes = make(build, key)
        made = lanes.Ensemble(batched, axes)
        out = eqx.filter_jit(lambda made: made.vmap(run)(x))(made)

        @eqx.filter_jit
        @eqx.filter_grad
        def gradient(made):
            return (made.vmap(run)(x) ** 2).sum()

        @eqx.filter_jit
        def alone(member):
            loss = lambda m: (run(m, x) ** 2).sum()  # noqa: E731
            return run(member, x), eqx.filter_grad(loss)(member)

        gradients = gradient(made)
        for index, member in enumerate(lanes.unstack(batched, axes)):
            value, own = alone(member)
            np.testing.assert_allclose(out[index], value, rtol=1e-4, atol=1e-5)
            here, there = map(oracle.leaves_by_path, (gradients.model, own))
            rows = [(path, axis) for path, axis in made.mapped if path in there]
            assert rows
            for path, axis in rows:
                a = jnp.take(here[path], index, axis)
                np.testing.assert_allclose(a, there[path], rtol=1e-3, atol=1e-4)
    assert len({np.asarray(row).tobytes() for row in out}) == 3
