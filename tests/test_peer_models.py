"""Recurrent nets and ensembles, here and in brainstate and Flax NNX: the same weights,
so the same results."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import chorax
from chorax import replace
from chorax.lanes import Ensemble
from peers import as_list, brainstate, dotted, lenient, nnx, normals


class OurGru(eqx.Module):
    """As `brainstate.nn.GRUCell` has it."""

    wrz: jax.Array
    brz: jax.Array
    wh: jax.Array
    bh: jax.Array
    h: Any = None

    def init_state(self, *, key):
        return replace(self, h=jax.random.normal(key, self.bh.shape))

    def update(self, x):
        gates = jnp.concatenate([x, self.h]) @ self.wrz + self.brz
        r, z = jnp.split(jax.nn.sigmoid(gates), 2)
        new = jnp.tanh(jnp.concatenate([x, r * self.h]) @ self.wh + self.bh)
        return replace(self, h=(1 - z) * self.h + z * new)


@pytest.mark.parametrize("natural", [False, True])
def test_a_gru_runs_alike_from_the_same_states(natural, key):
    wrz, brz, wh, bh = normals((5, 6), (6,), (5, 3), (3,))
    net, delta = chorax.vmap_init_all_states(
        OurGru(wrz, brz, wh, bh), axis_size=4, key=key, state_tag="new"
    )
    peer = brainstate.nn.GRUCell(2, 3, w_init=jnp.zeros)
    brainstate.nn.vmap_init_all_states(peer, axis_size=4, state_tag="new")
    peer.Wrz.weight.value = {"weight": wrz, "bias": brz}
    peer.Wh.weight.value = {"weight": wh, "bias": bh}
    found = {dotted(path) for path in peer.states("new")}
    assert set(delta.select("new").paths) == found == {"h"}
    assert net.h.shape == peer.h.value.shape
    peer.h.value = net.h

    step = eqx.filter_jit(
        eqx.filter_vmap(
            lambda net, x: net.update(x),
            in_axes=(delta.in_axes, 0),
            out_axes=delta.in_axes,
        )
    )
    new = peer.states("new")
    their_step = brainstate.transform.vmap(peer.update, in_states=new, out_states=new)
    for x in normals((5, 4, 2))[0]:
        net = step(net, x)
        with lenient():
            # Its layers also take a batch as it is.
            (peer.update if natural else their_step)(x)
        np.testing.assert_allclose(net.h, peer.h.value, rtol=1e-5, atol=1e-6)


def linear(weight, bias):
    made = nnx.Linear(*weight.shape[::-1], kernel_init=zeros, rngs=nnx.Rngs(0))
    made.kernel[...], made.bias[...] = weight.T, bias
    return made


def zeros(key, shape, dtype=jnp.float32, **_):
    # Draws would be thrown away.
    return jnp.zeros(shape, dtype)


class NnxMlp(nnx.Module):
    def __init__(self, weights, biases):
        pairs = zip(weights, biases, strict=True)
        self.layers = as_list([linear(*pair) for pair in pairs])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


@pytest.fixture(scope="module")
def mlps():
    """An ensemble of five, and the peer with its weights."""
    mlp = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
    batched, delta = chorax.vmap_call_all_fns(
        mlp, chorax.reset_parameters, axis_size=5, key=jax.random.key(1)
    )
    weights = [layer.weight for layer in batched.layers]
    peer = nnx.vmap(NnxMlp)(weights, [layer.bias for layer in batched.layers])
    return batched, delta, peer


@pytest.mark.parametrize("in_axes", [None, 0])
def test_an_ensemble_of_five_answers_alike(in_axes, mlps):
    batched, delta, peer = mlps
    (x,) = normals((5, 3) if in_axes == 0 else (3,))
    expected = nnx.vmap(lambda peer, x: peer(x), in_axes=(0, in_axes))(peer, x)
    answers = Ensemble(batched, delta)(x, in_axes=in_axes)
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)
    by_hand = eqx.filter_vmap(lambda m, x: m(x), in_axes=(delta.in_axes, in_axes))
    np.testing.assert_allclose(answers, by_hand(batched, x), rtol=1e-6)


def test_an_ensemble_trains_alike(mlps):
    batched, delta, peer = mlps
    peer = nnx.clone(peer)
    x, y = normals((3,), (2,))

    def loss(model, x):
        return jnp.mean((model(x) - y) ** 2)

    @nnx.vmap(in_axes=(0, None))
    def their_step(peer, x):
        grads = nnx.grad(loss)(peer, x)
        weights = nnx.state(peer, nnx.Param)
        nnx.update(peer, jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads))

    @eqx.filter_jit
    def step(batched):
        def one(model):
            grads = eqx.filter_grad(loss)(model, x)
            return eqx.apply_updates(model, jtu.tree_map(lambda g: -0.1 * g, grads))

        axes = delta.in_axes
        return eqx.filter_vmap(one, in_axes=(axes,), out_axes=axes)(batched)

    trained = batched
    for _ in range(3):
        their_step(peer, x)
        trained = step(trained)
    rows = zip(batched.layers, trained.layers, peer.layers, strict=True)
    for old, ours, theirs in rows:
        assert not np.allclose(ours.bias, old.bias, atol=1e-4)
        np.testing.assert_allclose(ours.weight.mT, theirs.kernel[...], 1e-5, 1e-6)
        np.testing.assert_allclose(ours.bias, theirs.bias[...], 1e-5, 1e-6)


class Gru(eqx.Module):
    cell: eqx.nn.GRUCell
    h: Any = None

    def init_state(self, *, key):
        return replace(self, h=jax.random.normal(key, (self.cell.hidden_size,)))

    def reset_state(self):
        return replace(self, h=jnp.zeros_like(self.h))

    def __call__(self, x):
        return replace(self, h=self.cell(x, self.h))


class NnxGru(nnx.Module):
    def __init__(self, cell, h):
        self.cell, self.h = cell, nnx.Variable(h)

    def __call__(self, x):
        self.h[...], _ = self.cell(self.h[...], x)


def test_a_gru_with_lanes_of_states_that_end_apart(key):
    weights = normals((9, 2), (9, 3), (9,))
    eqx_cell = eqx.filter_eval_shape(eqx.nn.GRUCell, 2, 3, key=key)
    names = ("weight_ih", "weight_hh", "bias")
    own = dict(zip(names, weights, strict=True))
    # What NNX has no parameter for.
    eqx_cell = replace(eqx_cell, **own, bias_n=jnp.zeros(3))
    inits = {"kernel_init": zeros, "recurrent_kernel_init": zeros}
    cell = nnx.GRUCell(2, 3, **inits, rngs=nnx.Rngs(0))
    cell.dense_i.kernel[...], cell.dense_h.kernel[...] = weights[0].T, weights[1].T
    cell.dense_i.bias[...] = weights[2]
    net, delta = chorax.vmap_init_all_states(Gru(eqx_cell), axis_size=4, key=key)
    peer = NnxGru(cell, net.h)
    axes = nnx.StateAxes({nnx.Param: None, ...: 0})
    their_step = nnx.vmap(lambda peer, x: peer(x), in_axes=(axes, 0))

    @jax.jit
    def run(h, xs, dones):
        def step(net, inputs):
            x, done = inputs
            net = eqx.filter_vmap(
                lambda net, x: net(x),
                in_axes=(delta.in_axes, 0),
                out_axes=delta.in_axes,
            )(net, x)
            net, _ = chorax.vmap_reset_all_states(
                net, axis_size=4, in_axes=delta, where=done
            )
            return net, net.h

        return jax.lax.scan(step, replace(net, h=h), (xs, dones))[1]

    (xs,) = normals((5, 4, 2))
    dones = np.random.default_rng(1).random((5, 4)) < 0.3
    got = run(net.h, xs, jnp.asarray(dones))
    for h, x, done in zip(got, xs, dones, strict=True):
        their_step(peer, x)
        peer.h[...] = jnp.where(done[:, None], 0.0, peer.h[...])
        np.testing.assert_allclose(h, peer.h[...], rtol=1e-5, atol=1e-6)


class ConvLstm(eqx.Module):
    conv: eqx.nn.Conv2d
    h: Any = None
    c: Any = None

    def init_state(self, size, *, key):
        channels = self.conv.out_channels // 4
        h, c = jax.random.normal(key, (2, channels, size, size))
        return replace(self, h=h, c=c)

    def __call__(self, x):
        gates = self.conv(jnp.concatenate([x, self.h]))
        h, c = lstm(jnp.split(gates, 4), self.c)
        return replace(self, h=h, c=c)


class NnxConvLstm(nnx.Module):
    def __init__(self, conv, h, c):
        self.conv, self.h, self.c = conv, nnx.Variable(h), nnx.Variable(c)

    def __call__(self, x):
        gates = self.conv(jnp.concatenate([x, self.h[...]], -1))
        self.h[...], self.c[...] = lstm(jnp.split(gates, 4, -1), self.c[...])


def lstm(gates, c):
    i, f, g, o = gates
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def test_an_ensemble_of_conv_lstms(key):
    def channels_last(x):
        return jnp.moveaxis(x, -3, -1)

    conv = eqx.filter_eval_shape(eqx.nn.Conv2d, 3, 8, 3, padding=1, key=key)
    nets = []
    for seed in range(5):
        weight, bias = normals((8, 3, 3, 3), (8, 1, 1), seed=seed)
        nets.append(ConvLstm(replace(conv, weight=weight, bias=bias)))
    net, weights = chorax.lanes.stack(nets)
    net, delta = chorax.vmap_init_all_states(
        net, 4, axis_size=5, in_axes=weights, key=key
    )
    step = eqx.filter_vmap(
        lambda net, x: net(x), in_axes=(delta.in_axes, None), out_axes=delta.in_axes
    )

    @nnx.vmap
    def make(h, c, kernel, bias):
        conv = nnx.Conv(3, 8, (3, 3), kernel_init=zeros, rngs=nnx.Rngs(0))
        conv.kernel[...], conv.bias[...] = kernel, bias
        return NnxConvLstm(conv, h, c)

    kernel = jnp.transpose(net.conv.weight, (0, 3, 4, 2, 1))
    bias = net.conv.bias[:, :, 0, 0]
    peer = make(channels_last(net.h), channels_last(net.c), kernel, bias)
    their_step = nnx.vmap(lambda peer, x: peer(x), in_axes=(0, None))
    for x in normals((2, 1, 4, 4))[0]:
        net = step(net, x)
        their_step(peer, channels_last(x))
    for ours, theirs in ((net.h, peer.h), (net.c, peer.c)):
        expected = jnp.moveaxis(theirs[...], -1, -3)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
