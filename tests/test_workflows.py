"""What people do with it, from end to end, against the same written by hand."""

import inspect
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


class Leaky(eqx.Module):
    """A leaky recurrent cell: shared weights, a state for each sample of a batch."""

    w_in: jax.Array
    w_rec: jax.Array
    decay: float = eqx.field(static=True)
    v: Any = None

    def __init__(self, inputs, size, *, key):
        one, two = jax.random.split(key)
        self.w_in = jax.random.normal(one, (size, inputs)) / inputs**0.5
        self.w_rec = jax.random.normal(two, (size, size)) / size**0.5
        self.decay = 0.8

    def init_state(self, *, key):
        noise = jax.random.normal(key, (self.w_rec.shape[0],))
        return chorax.replace(self, v=0.1 * noise)

    def reset_state(self):
        return chorax.replace(self, v=jnp.zeros_like(self.v))

    def __call__(self, x):
        drive = self.w_in @ x + self.w_rec @ jnp.tanh(self.v)
        return chorax.replace(self, v=self.decay * self.v + drive)


class Net(eqx.Module):
    cells: list
    readout: eqx.nn.Linear

    def __init__(self, *, key):
        a, b, c = jax.random.split(key, 3)
        self.cells = [Leaky(8, 16, key=a), Leaky(16, 16, key=b)]
        self.readout = eqx.nn.Linear(16, 10, key=c)

    def __call__(self, x):
        cells = []
        for cell in self.cells:
            cell = cell(x)
            cells.append(cell)
            x = jnp.tanh(cell.v)
        return chorax.replace(self, cells=cells), self.readout(x)


def digits():
    from sklearn.datasets import load_digits  # Takes seconds to import.

    x, y = load_digits(return_X_y=True)
    # Eight rows of eight pixels: a sequence in time.
    return jnp.asarray(x[:32].reshape(32, 8, 8) / 16.0), jnp.asarray(y[:32])


def loss_with_chorax(net, x, y, key):
    net, delta = chorax.vmap_init_all_states(net, axis_size=32, key=key)
    states, shared = eqx.partition(net, delta.filter_spec)

    def step(states, x):
        net = eqx.combine(states, shared)
        net, out = eqx.filter_vmap(
            lambda net, x: net(x),
            in_axes=(delta.in_axes, 0),
            out_axes=(delta.in_axes, 0),
        )(net, x)
        return eqx.filter(net, delta.filter_spec), out

    _, outs = jax.lax.scan(step, states, jnp.swapaxes(x, 0, 1))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outs[-1], y))


def loss_by_hand(net, x, y, key):
    noise = []
    for i, cell in enumerate(net.cells):
        keys = jax.vmap(lambda k, i=i: oracle.node_key(k, ("cells", i)))(
            jax.random.split(key, 32)
        )
        size = cell.w_rec.shape[0]
        noise.append(jax.vmap(lambda k, n=size: 0.1 * jax.random.normal(k, (n,)))(keys))

    def step(vs, x):
        new = []
        for cell, v in zip(net.cells, vs, strict=True):
            drive = x @ cell.w_in.T + jnp.tanh(v) @ cell.w_rec.T
            v = cell.decay * v + drive
            new.append(v)
            x = jnp.tanh(v)
        bias = jnp.broadcast_to(net.readout.bias, (32, 10))
        return new, x @ net.readout.weight.T + bias

    _, outs = jax.lax.scan(step, noise, jnp.swapaxes(x, 0, 1))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outs[-1], y))


@pytest.fixture
def lenient():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_batched_states_over_shared_weights_train():
    """States made inside jit at every step, a time loop over the states alone, inside
    grad, all in one `eqx.filter_jit`."""
    x, y = digits()
    net = Net(key=jax.random.key(0))
    optimiser = optax.adam(1e-2)

    def train(loss_fn):
        @eqx.filter_jit
        def update(net, state, key):
            loss, grads = eqx.filter_value_and_grad(loss_fn)(net, x, y, key)
            updates, state = optimiser.update(grads, state)
            return eqx.apply_updates(net, updates), state, loss

        model, state = net, optimiser.init(eqx.filter(net, eqx.is_inexact_array))
        losses = []
        for i in range(15):
            model, state, loss = update(model, state, jax.random.key(i))
            losses.append(float(loss))
        return model, losses

    ours, our_losses = train(loss_with_chorax)
    _, losses = train(loss_by_hand)
    assert ours.cells[0].v is None
    assert our_losses[-1] < 0.8 * our_losses[0]
    np.testing.assert_allclose(our_losses[:5], losses[:5], rtol=1e-3)


@pytest.mark.slow
def test_gradients_of_the_shared_weights():
    x, y = digits()
    net, key = Net(key=jax.random.key(0)), jax.random.key(5)
    ours = eqx.filter_jit(eqx.filter_grad(loss_with_chorax))(net, x, y, key)
    by_hand = eqx.filter_jit(eqx.filter_grad(loss_by_hand))(net, x, y, key)
    for a, b in zip(jtu.tree_leaves(ours), jtu.tree_leaves(by_hand), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("given", ["delta", "in_axes"])
def test_finished_episodes_reset_inside_scan(given):
    """Like as many separate roll-outs, each reset when its own episode ends."""
    lanes, steps = 5, 7
    cell = Leaky(3, 4, key=jax.random.key(0))
    batch, delta = chorax.vmap_init_all_states(
        cell, axis_size=lanes, key=jax.random.key(1)
    )
    axes = delta if given == "delta" else delta.in_axes
    x = jax.random.normal(jax.random.key(2), (steps, lanes, 3))
    done = jax.random.bernoulli(jax.random.key(3), 0.3, (steps, lanes))
    states, shared = eqx.partition(batch, delta.filter_spec)

    def step(states, inputs):
        x, done = inputs
        cell = eqx.combine(states, shared)
        cell = eqx.filter_vmap(
            lambda cell, x: cell(x), in_axes=(delta.in_axes, 0), out_axes=delta.in_axes
        )(cell, x)
        cell, _ = chorax.vmap_reset_all_states(
            cell, axis_size=lanes, in_axes=axes, where=done
        )
        return eqx.filter(cell, delta.filter_spec), cell.v

    _, vs = jax.jit(lambda s: jax.lax.scan(step, s, (x, done)))(states)
    for i in range(lanes):
        one = chorax.replace(cell, v=batch.v[i])
        for t in range(steps):
            one = one(x[t, i])
            if done[t, i]:
                one, _ = chorax.reset_all_states(one)
            np.testing.assert_allclose(vs[t, i], one.v, rtol=1e-4, atol=1e-5)


def test_a_sweep_over_a_hyper_parameter():
    class Decay(eqx.Module):
        tau: jax.Array
        v: Any = None

        def init_state(self, tau):
            return chorax.replace(self, tau=tau, v=jnp.ones(()))

    taus = jnp.array([0.1, 0.5, 0.9])
    net, delta = chorax.vmap_init_all_states(
        Decay(jnp.zeros(())), taus, axis_size=3, args_in_axes=0
    )
    out = eqx.filter_vmap(lambda n: n.v * n.tau**3, in_axes=(delta.in_axes,))(net)
    np.testing.assert_allclose(out, taus**3, rtol=1e-6)


@pytest.mark.parametrize(
    ("wrapper", "under"),
    [
        (chorax.init_all_states, chorax.call_all_fns),
        (chorax.reset_all_states, chorax.call_all_fns),
        (chorax.vmap_init_all_states, chorax.vmap_call_all_fns),
        (chorax.vmap_reset_all_states, chorax.vmap_call_all_fns),
    ],
)
def test_help_lists_the_options_of_wrappers(wrapper, under):
    found = inspect.signature(wrapper).parameters
    options = {
        name: each.default
        for name, each in inspect.signature(under).parameters.items()
        if name not in ("target", "fn_name", "args", "kwargs")
    }
    options["fn_if_not_exist"] = "pass"
    assert list(found)[:2] == ["target", "args"]
    assert list(found)[-1] == "kwargs"
    keywords = {
        name: each.default
        for name, each in found.items()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert keywords == options


@pytest.mark.parametrize(
    ("name", "call", "batched"),
    [
        ("init_state", chorax.init_all_states, False),
        ("reset_state", chorax.reset_all_states, False),
        ("init_state", chorax.vmap_init_all_states, True),
        ("reset_state", chorax.vmap_reset_all_states, True),
    ],
)
def test_wrappers_are_the_calls_under_their_names(name, call, batched):
    class Node(eqx.Module):
        x: Any = None

        def init_state(self, a, *, b, key):
            return chorax.replace(self, x=a + b + jax.random.normal(key, ()))

        reset_state = init_state

    class Other(eqx.Module):
        pass

    tree = [Node(), Other(), {"n": Node()}]
    a, b, key = jnp.asarray(1.0), jnp.asarray(2.0), jax.random.key(0)
    options: dict[str, Any] = {
        "key": key,
        "node_to_exclude": lambda path, _: path == (0,),
        "state_tag": "t",
        "state_to_exclude": None,
    }
    if batched:
        options |= {"axis_size": 3, "axis_name": "i"}
    model, delta = call(tree, a, b=b, **options)
    under = chorax.vmap_call_all_fns if batched else chorax.call_all_fns
    expected, _ = under(tree, name, (a,), {"b": b}, fn_if_not_exist="pass", **options)
    np.testing.assert_array_equal(model[2]["n"].x, expected[2]["n"].x)
    assert delta.paths == ("2.n.x",)
    assert delta.tags["2.n.x"] == {"t"}
    with pytest.raises(AttributeError, match="Other at `1` has no method"):
        call(tree, a, b=b, **options, fn_if_not_exist="raise")
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        call(tree, a, b=b, c=1, **options)


@pytest.mark.slow
def test_a_method_may_make_a_collective_call_itself():
    class Inner(eqx.Module):
        x: Any = None

        def init_state(self, *, key):
            return chorax.replace(self, x=jax.random.normal(key, (2,)))

        def reset_state(self):
            return chorax.replace(self, x=jnp.zeros_like(self.x))

    class Colony(eqx.Module):
        members: Any = eqx.field(static=True)
        batch: Any = None

        def init_state(self, *, key):
            batch, _ = chorax.vmap_init_all_states(self.members, axis_size=3, key=key)
            return chorax.replace(self, batch=batch)

        def reset_state(self):
            batch, _ = chorax.reset_all_states(self.batch)
            return chorax.replace(self, batch=batch)

    tree = [Colony((Inner(), Inner())), Colony((Inner(), Inner()))]
    for jit in (False, True):
        init = chorax.vmap_init_all_states
        init = eqx.filter_jit(init) if jit else init
        model, delta = init(tree, axis_size=4, key=jax.random.key(0))
        assert [x.shape for x in jtu.tree_leaves(model)] == [(4, 3, 2)] * 4
        rows = np.concatenate([np.ravel(x) for x in jtu.tree_leaves(model)])
        assert len(np.unique(rows)) == rows.size
        zeros, _ = chorax.vmap_reset_all_states(model, axis_size=4, in_axes=delta)
        assert all(not x.any() for x in jtu.tree_leaves(zeros))
