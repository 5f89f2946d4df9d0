"""`lanes.scan`: time and lanes at once, against `jax.lax.scan` of `eqx.filter_vmap`."""

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


LANES, TIME = 4, 5


class Leaky(eqx.Module):
    """Leaky neurons: weights that lanes share, a state for each, and a float."""

    weight: Any
    v: Any = None
    decay: float = 0.9
    act: Any = jnp.tanh

    def init_state(self, *, key):
        return chorax.replace(self, v=jax.random.normal(key, self.weight.shape[:1]))

    def __call__(self, x):
        v = self.decay * self.v + self.weight @ x
        return chorax.replace(self, v=v), self.act(v)


class Net(eqx.Module):
    layers: list
    bias: Any

    def __call__(self, x):
        layers = []
        for layer in self.layers:
            layer, x = layer(x)
            layers.append(layer)
        return chorax.replace(self, layers=layers), x + self.bias


@pytest.fixture
def batch(lane_key):
    keys = jax.random.split(lane_key, 2)
    layers = [
        Leaky(jax.random.normal(keys[0], (3, 2))),
        Leaky(jax.random.normal(keys[1], (3, 3))),
    ]
    net = Net(layers, jnp.ones(3))
    return chorax.vmap_init_all_states(net, axis_size=LANES, key=lane_key)


@pytest.fixture
def xs(lane_key):
    return jax.random.normal(lane_key, (TIME, LANES, 2))


def step(model, x):
    return model(x)


def by_hand(fn, net, delta, xs, x_axis: Any = 0, wrap=lambda tick: tick):
    axes = delta.in_axes
    run = eqx.filter_vmap(fn, in_axes=(axes, x_axis), out_axes=(axes, 0))
    states, shared = eqx.partition(net, delta.filter_spec)

    def tick(states, x):
        net, y = run(eqx.combine(states, shared), x)
        return eqx.filter(net, delta.filter_spec), y

    states, ys = jax.lax.scan(wrap(tick), states, xs)
    return eqx.combine(states, shared), ys


def test_the_signature_is_as_written():
    assert str(inspect.signature(lanes.scan)).startswith("(fn")
    parameters = inspect.signature(lanes.scan).parameters
    positional = ["fn", "batched", "axes", "xs"]
    assert list(parameters) == [*positional, "xs_in_axes", "length", "checkpoint"]
    rest = list(parameters.values())[4:]
    assert [p.default for p in rest] == [0, None, False]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in rest)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_it_is_the_scan_by_hand(batch, xs, checkpoint):
    net, delta = batch
    out, ys = lanes.scan(step, net, delta, xs, checkpoint=checkpoint)
    assert ys.shape == (TIME, LANES, 3)
    oracle.assert_same((out, ys), by_hand(step, net, delta, xs), exact=False)
    # What is not written is the very same.
    assert out.bias is net.bias
    assert out.layers[0].weight is net.layers[0].weight
    assert out.layers[1].v.shape == (LANES, 3)


def test_it_is_the_python_loop_over_time_and_lanes(batch, xs):
    net, delta = batch
    members = lanes.unstack(net, delta)
    rows = []
    for x in xs:
        pairs = [member(each) for member, each in zip(members, x, strict=True)]
        members = [member for member, _ in pairs]
        rows.append(jnp.stack([y for _, y in pairs]))
    out, ys = lanes.scan(step, net, delta, xs)
    np.testing.assert_allclose(ys, jnp.stack(rows), rtol=1e-5, atol=1e-6)
    found = lanes.unstack(out, delta)
    oracle.assert_same(found, members, exact=False)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_are_those_by_hand(batch, xs, checkpoint):
    net, delta = batch
    wrap = jax.checkpoint if checkpoint else lambda tick: tick

    def ours(net, xs):
        out, ys = lanes.scan(step, net, delta, xs, checkpoint=checkpoint)
        return (ys**2).sum() + out.layers[0].v.sum()

    def theirs(net, xs):
        out, ys = by_hand(step, net, delta, xs, wrap=wrap)
        return (ys**2).sum() + out.layers[0].v.sum()

    one, two = (eqx.filter_jit(eqx.filter_grad(f))(net, xs) for f in (ours, theirs))
    oracle.assert_same(one, two, exact=False)
    assert jnp.abs(one.layers[0].weight).sum() > 0


def memory(function, *args):
    compiled = eqx.filter_jit(function).lower(*args).compile().compiled
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures("needs_jit")
def test_memory_and_work_are_those_by_hand(batch, lane_key):
    net, delta = batch
    xs = jax.random.normal(lane_key, (100, LANES, 2))

    def ours(net, xs):
        return (lanes.scan(step, net, delta, xs)[1] ** 2).sum()

    def theirs(net, xs):
        return (by_hand(step, net, delta, xs)[1] ** 2).sum()

    def flops(function):
        lowered = eqx.filter_jit(function).lower(net, xs)
        return lowered.compile().compiled.cost_analysis()["flops"]

    for wrap in (lambda f: f, eqx.filter_grad):
        assert memory(wrap(ours), net, xs) <= 1.05 * memory(wrap(theirs), net, xs)
        assert flops(wrap(ours)) == pytest.approx(flops(wrap(theirs)), rel=0.02)


@pytest.mark.usefixtures("needs_jit")
def test_only_what_is_written_goes_around_the_loop(batch, xs):
    net, delta = batch
    jaxpr = jax.make_jaxpr(lambda xs: lanes.scan(step, net, delta, xs)[1])(xs)
    (eqn,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert eqn.params["num_carry"] == len(delta.paths) == 2


@pytest.mark.usefixtures("needs_jit")
@pytest.mark.parametrize("checkpoint", [False, True])
def test_checkpoint_is_that_of_jax(batch, xs, checkpoint):
    net, delta = batch
    out = jax.make_jaxpr(
        lambda xs: lanes.scan(step, net, delta, xs, checkpoint=checkpoint)[1]
    )(xs)
    assert bool(re.search(r"\b(checkpoint|remat2?)\[", str(out))) == checkpoint


@pytest.mark.parametrize("checkpoint", [False, True])
def test_python_runs_once(batch, xs, checkpoint):
    runs = []

    def counted(model, x):
        runs.append(x)
        return model(x)

    net, delta = batch
    out = lanes.scan(counted, net, delta, xs, checkpoint=checkpoint)
    assert len(runs) == 1
    assert runs[0].shape == (2,)
    jax.block_until_ready(out)


def test_inputs_that_lanes_share_and_none(batch, xs):
    net, delta = batch
    one = xs[:, 0]
    expected = by_hand(step, net, delta, one, x_axis=None)
    out = lanes.scan(step, net, delta, one, xs_in_axes=None)
    oracle.assert_same(out, expected, exact=False)

    def alone(model, x):
        assert x is None
        return model(jnp.ones(2))

    expected = by_hand(lambda m, x: m(x), net, delta, jnp.ones((3, LANES, 2)))
    out = lanes.scan(alone, net, delta, None, length=3)
    oracle.assert_same(out, expected, exact=False)
    after, ys = lanes.scan(alone, net, delta, None, length=0)
    oracle.assert_same(after, net)
    assert [y.shape[0] for y in jax.tree.leaves(ys)] == [0] * len(jax.tree.leaves(ys))


def test_the_axes_of_inputs_count_after_time_and_may_be_a_tree(batch, xs):
    net, delta = batch

    def both(model, x):
        model, y = model(x["a"] + x["b"])
        return model, (y, x["b"])

    b = jnp.arange(TIME * 2.0).reshape(TIME, 2)
    wide = jnp.broadcast_to(b[:, None], xs.shape)
    expected = by_hand(both, net, delta, {"a": xs, "b": wide})
    for axis in (1, -1):
        inputs = {"a": jnp.moveaxis(xs, 1, 2), "b": b}
        axes = {"a": axis, "b": None}
        out = lanes.scan(both, net, delta, inputs, xs_in_axes=axes)
        oracle.assert_same(out, expected, exact=False)
    for axis in (0, eqx.if_array(0)):
        out = lanes.scan(both, net, delta, {"a": xs, "b": wide}, xs_in_axes=axis)
        oracle.assert_same(out, expected, exact=False)


def test_keys_among_the_inputs(batch, xs, lane_key):
    net, delta = batch
    keys = jax.random.split(lane_key, (TIME, LANES))

    def noisy(model, x):
        x, key = x
        return model(x + jax.random.normal(key, (2,)))

    expected = by_hand(noisy, net, delta, (xs, keys))
    oracle.assert_same(lanes.scan(noisy, net, delta, (xs, keys)), expected, exact=False)


def test_what_is_not_an_array_is_given_to_each_step_and_returned_as_it_is(batch, xs):
    net, delta = batch

    def named(model, x):
        assert x["name"] == "x"
        model, y = model(x["x"])
        return model, (model, y, x["name"], None)

    _, (models, ys, name, none) = lanes.scan(named, net, delta, {"x": xs, "name": "x"})
    assert (name, none) == ("x", None)
    last, expected = by_hand(step, net, delta, xs)
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)
    assert models.layers[0].act is jnp.tanh
    assert models.layers[0].v.shape == (TIME, LANES, 3)
    np.testing.assert_allclose(models.layers[0].v[-1], last.layers[0].v, rtol=1e-5)


def test_in_jit_grad_and_vmap(batch, xs):
    net, delta = batch
    more = jnp.stack([xs, xs + 1, xs - 1])

    def total(bias, xs):
        out, ys = lanes.scan(step, chorax.replace(net, bias=bias), delta, xs)
        return (ys**2).sum()

    bias = jnp.arange(3.0)
    expected = []
    for x in more:

        def plain(bias, x=x):
            model = chorax.replace(net, bias=bias)
            return (by_hand(step, model, delta, x)[1] ** 2).sum()

        expected.append(jax.grad(plain)(bias))
    found = jax.jit(jax.vmap(jax.grad(total), (None, 0)))(bias, more)
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-5)


def test_axes_elsewhere_than_in_front(lane_key):
    def accumulate(model, x):
        new = {"w": model["w"], "v": model["v"] + model["w"] * x}
        return new, new["v"].sum()

    w = jax.random.normal(lane_key, (3, LANES))
    model = {"w": w, "v": jnp.zeros((3, LANES))}
    xs = jnp.arange(TIME * LANES * 1.0).reshape(TIME, LANES)
    out, ys = lanes.scan(accumulate, model, -1, xs)
    np.testing.assert_allclose(out["v"], w * xs.sum(0, keepdims=True), rtol=1e-5)
    sums = w.sum(0, keepdims=True) * xs.cumsum(0)
    np.testing.assert_allclose(ys, sums, rtol=1e-5, atol=1e-5)


def test_an_ensemble_without_axes_has_its_own(batch, xs):
    net, delta = batch
    ensemble = lanes.Ensemble(net, delta)
    out, ys = lanes.scan(step, ensemble, None, xs)
    assert isinstance(out, lanes.Ensemble)
    oracle.assert_same((out.model, ys), lanes.scan(step, net, delta, xs))
    assert len(out) == LANES


def test_members_with_weights_of_their_own(lane_key, xs):
    net = Net([Leaky(jnp.ones((3, 2)), jnp.zeros(3))], jnp.zeros(3))
    nets = [
        eqx.tree_at(lambda n: n.layers[0].weight, net, jnp.full((3, 2), i / 4))
        for i in range(LANES)
    ]
    batched, axes = lanes.stack(nets)
    out, ys = lanes.scan(step, batched, axes, xs)
    assert out.layers[0].weight is batched.layers[0].weight
    for i, net in enumerate(nets):
        for t in range(TIME):
            net, y = net(xs[t, i])
            np.testing.assert_allclose(ys[t, i], y, rtol=1e-5, atol=1e-6)


def test_what_a_jit_or_a_checkpoint_inside_returns_as_it_was_is_not_written(batch, xs):
    net, delta = batch
    expected = by_hand(step, net, delta, xs)
    nested = eqx.filter_jit(lambda m, x: eqx.filter_jit(step)(m, x))
    for inside in (eqx.filter_jit(step), eqx.filter_checkpoint(step), nested):
        out = lanes.scan(inside, net, delta, xs)
        oracle.assert_same(out, expected, exact=False)
        assert out[0].bias is net.bias


def test_a_state_may_take_over_what_was_somewhere_else():
    # Inputs that are kept, and leaves that change places, are written.
    def shift(model, x):
        return {"a": x, "b": model["a"], "c": model["b"], "d": model["d"]}, model["c"]

    zeros = jnp.zeros(LANES)
    model = {"a": zeros, "b": zeros, "c": zeros, "d": zeros}
    xs = 1 + jnp.arange(TIME * LANES * 1.0).reshape(TIME, LANES)
    for fn in (shift, jax.jit(shift)):
        out, ys = lanes.scan(fn, model, 0, xs)
        np.testing.assert_array_equal(ys[:3], jnp.zeros((3, LANES)))
        np.testing.assert_array_equal(ys[3:], xs[:2])
        np.testing.assert_array_equal(out["a"], xs[-1])
        assert out["d"] is zeros


def test_values_that_all_lanes_write_alike_and_weak_types():
    def reset(model, x):
        return chorax.replace(model, v=1.0, weight=jnp.zeros(2)), x

    model = Leaky(jnp.ones((LANES, 2)), jnp.asarray(0.5) + jnp.zeros(LANES))
    out, _ = lanes.scan(reset, model, 0, jnp.ones((TIME, LANES)))
    np.testing.assert_array_equal(out.v, jnp.ones(LANES))
    np.testing.assert_array_equal(out.weight, jnp.zeros((LANES, 2)))
    assert out.v.dtype == model.v.dtype
    weak, _ = lanes.broadcast({"v": jnp.asarray(0.5)}, LANES)
    out, _ = lanes.scan(
        lambda m, x: ({"v": m["v"] + x}, None), weak, 0, jnp.ones((TIME, LANES))
    )
    np.testing.assert_allclose(out["v"], jnp.full(LANES, 5.5))


def test_keys_in_the_state_and_numpy_arrays(lane_key):
    def draw(model, x):
        key, own = jax.random.split(model["key"])
        return {**model, "key": key}, model["w"] * x + jax.random.normal(own)

    w, xs = np.arange(LANES * 1.0), np.ones((TIME, LANES))
    model = {"key": jax.random.split(lane_key, LANES), "w": w}
    out, ys = lanes.scan(draw, model, 0, xs)
    assert out["w"] is w
    for i, key in enumerate(model["key"]):
        for t in range(TIME):
            key, own = jax.random.split(key)
            expected = float(w[i]) + jax.random.normal(own)
            np.testing.assert_allclose(ys[t, i], expected, rtol=1e-6)
        assert (jax.random.key_data(out["key"][i]) == jax.random.key_data(key)).all()


@pytest.mark.usefixtures("needs_jit")
def test_no_time_at_all(batch, xs):
    net, delta = batch
    out, ys = lanes.scan(step, net, delta, xs[:0])
    assert ys.shape == (0, LANES, 3)
    oracle.assert_same(out, net)


def test_nothing_written_is_a_map():
    out, ys = lanes.scan(lambda m, x: (m, m * x), jnp.arange(4.0), 0, jnp.ones((2, 4)))
    np.testing.assert_array_equal(ys, jnp.stack([jnp.arange(4.0)] * 2))


def wrote(**fields):
    def fn(model, x):
        layer = chorax.replace(model.layers[0], **fields)
        return chorax.replace(model, layers=[layer, model.layers[1]]), x

    return fn


@pytest.mark.parametrize(
    ("fn", "error", "match"),
    [
        (
            wrote(weight=jnp.ones((3, 2))),
            ValueError,
            r"`layers.*weight`.* no lane axis",
        ),
        (
            wrote(v=jnp.ones(2)),
            ValueError,
            r"`layers\.0\.v`.* float.*\[3\], as .*\[2\]",
        ),
        (
            wrote(v=jnp.ones(3, jnp.int32)),
            ValueError,
            r"`layers\.0\.v`.* float.* as int",
        ),
        (
            wrote(v=None),
            ValueError,
            r"structure .* at `layers\.0\.v`: .* a leaf .* None",
        ),
        (wrote(v="a"), ValueError, r"`layers\.0\.v`.* as 'a'"),
        (wrote(decay=0.5), ValueError, r"`layers\.0\.decay`.* 0\.9 .* 0\.5.*an array"),
        (wrote(decay=jnp.ones(())), ValueError, r"`layers\.0\.decay`.* 0\.9 of type"),
        (lambda m, x: m, TypeError, r"return `\(model, y\)`, but returned a Net"),
        (lambda m, x: (x, m), ValueError, "structure of the model at the root"),
    ],
)
def test_what_can_not_go_around_is_named(batch, xs, fn, error, match):
    net, delta = batch
    with pytest.raises(error, match=match):
        lanes.scan(fn, net, delta, xs)


def test_a_leaf_from_none_is_named(batch, xs):
    net, delta = batch
    net = eqx.tree_at(lambda n: n.layers[0].v, net, None)
    axes = eqx.tree_at(lambda n: n.layers[0].v, delta.in_axes, None)

    def start(model, x):
        layer = chorax.replace(model.layers[0], v=jnp.ones(3))
        return chorax.replace(model, layers=[layer, model.layers[1]]), x

    with pytest.raises(ValueError, match=r"`layers\.0\.v`: it was given None and"):
        lanes.scan(start, net, axes, xs)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"xs_in_axes": 1}, r"`xs_in_axes` is 1 at `0` of `xs`.* 4 lanes.* has 2"),
        ({"xs_in_axes": -3}, "`xs_in_axes` is -3 at .* no such axis"),
        ({"xs_in_axes": ({}, 0)}, "`xs_in_axes` must be a prefix"),
        ({"length": 4}, "`length` has 4, and `0` of `xs` has 5"),
        ({"length": -1}, "`length` must be an integer from 0 on"),
        ({"length": 2.5}, r"`length` must be .* got 2\.5 of type float"),
        ({"xs": None}, "`length` is missing"),
        ({"xs": (1.0, "a")}, "`length` is missing"),
        ({"xs": jnp.ones(()), "xs_in_axes": None}, "no axis of time"),
        (
            {"xs": (jnp.ones(5), jnp.ones(4)), "xs_in_axes": None},
            "`0` .* 5, and `1` .*4",
        ),
        ({"axes": None}, "No leaf has a lane axis"),
        ({"axes": eqx.if_array(0)}, "`layers.0.v` along axis 0.* it has 4"),
    ],
)
def test_lengths_and_axes_that_disagree_are_named(batch, xs, change, match):
    net, delta = batch
    given = {"axes": delta, "xs": (xs,), **change}
    with pytest.raises(ValueError, match=match):
        lanes.scan(
            lambda m, x: m(x[0]), net, given.pop("axes"), given.pop("xs"), **given
        )


def test_it_must_be_a_function(batch, xs):
    with pytest.raises(TypeError, match="`fn` of `scan` must be a function"):
        lanes.scan(None, batch[0], batch[1], xs)  # pyright: ignore[reportArgumentType]
