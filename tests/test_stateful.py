"""Layers that keep an `eqx.nn.State`, in ensembles."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import batchnorm_net
import chorax
import oracle
from chorax import lanes
from rows import quick


MEMBERS = 5


def data():
    from sklearn.datasets import load_digits  # Takes seconds to import.

    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray((images / 16.0).reshape(-1, 1, 8, 8))
    labels = jnp.asarray(labels)
    return images[:512], labels[:512], images[512:1024], labels[512:1024]


def forward(model, state, x):
    """A batch through one network; running statistics in, and out."""
    axes = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
    return jax.vmap(model, **axes)(x, state)


def make(key):
    net, state = batchnorm_net.build(jax.random.key(0))
    batched, delta = chorax.vmap_call_all_fns(
        net, chorax.reset_parameters, axis_size=MEMBERS, key=key
    )
    states, state_axes = lanes.broadcast(state, MEMBERS)
    return net, batched, delta, states, state_axes


def train(batched, delta, states, images, labels, steps):
    optimiser = optax.adam(3e-3)
    params, static = eqx.partition(batched, delta.filter_spec)
    opt_state = optimiser.init(params)

    def loss(params, states, x, y):
        model = eqx.combine(params, static)
        call = eqx.filter_vmap(forward, in_axes=(delta.in_axes, 0, 0))
        logits, states = call(model, states, x)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return each.mean(1).sum(), states

    @eqx.filter_jit
    def step(params, states, opt_state, key):
        index = jax.random.randint(key, (MEMBERS, 64), 0, len(images))
        grads, states = eqx.filter_grad(loss, has_aux=True)(
            params, states, images[index], labels[index]
        )
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimiser.update(grads, opt_state)
        return eqx.apply_updates(params, updates), states, opt_state

    for key in jax.random.split(jax.random.key(7), steps):
        params, states, opt_state = step(params, states, opt_state, key)
    return eqx.combine(params, static), states


def predict(batched, delta, states, x):
    call = eqx.filter_vmap(forward, in_axes=(delta.in_axes, 0, None))
    logits, _ = call(eqx.nn.inference_mode(batched), states, x)
    return jax.nn.softmax(logits)


LOADS = """
import sys
sys.path.insert(0, sys.argv[2])
import equinox as eqx, jax, numpy as np
import batchnorm_net, chorax

net, state = batchnorm_net.build(jax.random.key(123))
# The delta of the same call, whatever it drew, is the form to load into.
like = eqx.filter_eval_shape(
    lambda: chorax.vmap_call_all_fns(
        net, chorax.reset_parameters, axis_size=5, key=jax.random.key(9)
    )[1]
)
states = eqx.filter_eval_shape(lambda: chorax.lanes.broadcast(state, 5)[0])
x = np.load(sys.argv[1] + "/x.npy")
delta = eqx.tree_deserialise_leaves(sys.argv[1] + "/delta.eqx", like)
states = eqx.tree_deserialise_leaves(sys.argv[1] + "/states.eqx", states)
model = eqx.nn.inference_mode(chorax.apply_delta(net, delta))

def forward(model, state, x):
    axes = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
    return jax.vmap(model, **axes)(x, state)

call = eqx.filter_vmap(forward, in_axes=(delta.in_axes, 0, None))
np.save(sys.argv[1] + "/out.npy", jax.nn.softmax(call(model, states, x)[0]))
"""


@pytest.mark.slow
def test_an_ensemble_trains_and_is_loaded_in_another_process(key, tmp_path):
    images, labels, test_images, test_labels = data()
    _, batched, delta, states, _ = make(key)
    assert batched.conv.weight.shape == (MEMBERS, 8, 1, 3, 3)
    trained, states = train(batched, delta, states, images, labels, 120)

    # Each lane has running statistics of its own.
    for leaf in jtu.tree_leaves(states):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert len({np.asarray(row).tobytes() for row in leaf}) == MEMBERS

    probabilities = predict(trained, delta, states, test_images)
    hits = probabilities.argmax(-1) == test_labels[None]
    together = (probabilities.mean(0).argmax(-1) == test_labels).mean()
    assert float(together) > 0.85
    assert together > hits.mean()
    by_label = jnp.arange(len(test_labels))
    score = -jnp.log(probabilities[:, by_label, test_labels]).mean()
    assert -jnp.log(probabilities.mean(0)[by_label, test_labels]).mean() < score

    # The delta alone goes to a file, and into a freshly built model elsewhere.
    values = jtu.tree_leaves(eqx.filter(trained, delta.filter_spec))
    saved = jtu.tree_unflatten(jtu.tree_structure(delta), values)
    oracle.assert_same(chorax.apply_delta(batched, saved), trained)
    eqx.tree_serialise_leaves(tmp_path / "delta.eqx", saved)
    eqx.tree_serialise_leaves(tmp_path / "states.eqx", states)
    np.save(tmp_path / "x.npy", test_images)
    here = str(Path(__file__).parent)
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    subprocess.run(
        [sys.executable, "-c", LOADS, str(tmp_path), here],
        check=True,
        env={**os.environ, "JAX_ENABLE_X64": str(int(x64))},
    )
    oracle.assert_same(jnp.asarray(np.load(tmp_path / "out.npy")), probabilities)


@pytest.mark.slow
def test_every_member_is_the_network_alone(key):
    images, labels, test_images, _ = data()
    _, batched, delta, states, state_axes = make(key)
    trained, states = train(batched, delta, states, images, labels, 3)
    out = predict(trained, delta, states, test_images)
    members = lanes.unstack(trained, delta)
    alone = lanes.unstack(states, state_axes)
    for member, state, expected in zip(members, alone, out, strict=True):
        logits, _ = forward(eqx.nn.inference_mode(member), state, test_images)
        np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-5)


@pytest.mark.slow
def test_inference_mode_of_an_ensemble(key):
    images, *_ = data()
    _, batched, delta, states, state_axes = make(key)
    made = lanes.Ensemble(batched, delta)
    quiet = eqx.nn.inference_mode(made)
    assert quiet.model.norm.inference is True
    assert made.model.norm.inference is False
    axes = (state_axes, None)
    _, after = made.vmap(forward, in_axes=axes)(states, images[:16])
    _, same = quiet.vmap(forward, in_axes=axes)(states, images[:16])
    oracle.assert_same(jtu.tree_leaves(same), jtu.tree_leaves(states))
    pairs = zip(jtu.tree_leaves(after), jtu.tree_leaves(states), strict=True)
    assert any(bool((a != b).any()) for a, b in pairs)


@pytest.mark.parametrize("mode", quick(["batch", "ema"], ["ema"]))
def test_states_made_from_the_ensemble(mode, key):
    # While the statistics are a part of the layers they are drawn with them, so the
    # state of the ensemble has lanes as it is.
    def build() -> Any:
        norm = eqx.nn.BatchNorm(3, "batch", mode=mode)
        linear = eqx.nn.Linear(4, 3, key=jax.random.key(0))
        spectral = eqx.nn.SpectralNorm(linear, "weight", key=jax.random.key(1))
        return [spectral, norm]

    batched, _ = chorax.vmap_call_all_fns(
        build(), chorax.reset_parameters, axis_size=4, key=key
    )
    model, states = eqx.nn.make_with_state(lambda: batched)()
    for leaf in jtu.tree_leaves(states):
        assert leaf.shape[0] == 4

    def call(model, state, xs):
        def one(x):
            y, after = model[0](x, state)
            return model[1](y, after)

        return jax.vmap(one, axis_name="batch", out_axes=(0, None))(xs)

    run = eqx.filter_vmap(call, in_axes=(eqx.if_array(0), 0, None))
    out, states = run(model, states, jax.random.normal(key, (6, 4)))
    assert out.shape == (4, 6, 3)
    assert len({np.asarray(row).tobytes() for row in out}) == 4
