"""`lanes.fold`: one lane after the other, against a Python loop over the members."""

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


DEPTH = 5


class Block(eqx.Module):
    """A residual block, with leaves that are not arrays."""

    linear: eqx.nn.Linear
    scale: Any
    act: Any = jnp.tanh
    gain: float = 0.5

    def __call__(self, x):
        return x + self.gain * self.scale * self.act(self.linear(x))


@pytest.fixture
def blocks(lane_key):
    keys = jax.random.split(lane_key, DEPTH)
    scale = jnp.ones(())
    return [Block(eqx.nn.Linear(3, 3, key=key), scale) for key in keys]


def forward(block, x):
    x = block(x)
    return x, x.sum()


def loop(blocks, x):
    sums = []
    for block in blocks:
        x, total = forward(block, x)
        sums.append(total)
    return x, jnp.stack(sums)


def test_the_signature_is_as_written():
    parameters = inspect.signature(lanes.fold).parameters
    names = ["fn", "batched", "axes", "carry", "xs", "checkpoint"]
    assert list(parameters) == names
    assert parameters["xs"].default is None
    assert parameters["checkpoint"].default is False
    assert parameters["checkpoint"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["xs"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


@pytest.mark.parametrize("checkpoint", [False, True])
def test_it_is_the_python_loop(blocks, checkpoint):
    x = jnp.arange(3.0)
    out = lanes.fold(forward, *lanes.stack(blocks), x, checkpoint=checkpoint)
    assert out[1].shape == (DEPTH,)
    oracle.assert_same(out, loop(blocks, x), exact=False)


@pytest.mark.usefixtures("needs_jit")
@pytest.mark.parametrize("checkpoint", [False, True])
def test_checkpoint_is_that_of_jax(blocks, checkpoint):
    batched, axes = lanes.stack(blocks)
    out = jax.make_jaxpr(
        lambda x: lanes.fold(forward, batched, axes, x, checkpoint=checkpoint)[0]
    )(jnp.ones(3))
    assert bool(re.search(r"\b(checkpoint|remat2?)\[", str(out))) == checkpoint


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_are_those_of_the_loop(blocks, checkpoint):
    def folded(blocks, x):
        out = lanes.fold(forward, *lanes.stack(blocks), x, checkpoint=checkpoint)
        return out[0].sum() + (out[1] ** 2).sum()

    def looped(blocks, x):
        out = loop(blocks, x)
        return out[0].sum() + (out[1] ** 2).sum()

    x = jnp.arange(3.0)
    one, two = (eqx.filter_jit(eqx.filter_grad(f))(blocks, x) for f in (folded, looped))
    oracle.assert_same(one, two, exact=False)
    batched, axes = lanes.stack(blocks)

    def of_stack(batched):
        return lanes.fold(forward, batched, axes, x, checkpoint=checkpoint)[0].sum()

    def of_list(blocks):
        return loop(blocks, x)[0].sum()

    stacked, _ = lanes.stack(eqx.filter_grad(of_list)(blocks))
    oracle.assert_same(eqx.filter_grad(of_stack)(batched), stacked, exact=False)


@pytest.mark.usefixtures("needs_jit")
def test_python_and_the_program_do_not_grow_with_depth(lane_key):
    runs = []

    def counted(block, x):
        runs.append(block)
        return forward(block, x)

    def size(depth):
        keys = jax.random.split(lane_key, depth)
        blocks = [Block(eqx.nn.Linear(3, 3, key=key), jnp.ones(())) for key in keys]
        batched, axes = lanes.stack(blocks)
        arrays, static = eqx.partition(batched, eqx.is_array)

        def run(arrays, x):
            return lanes.fold(counted, eqx.combine(arrays, static), axes, x)

        return len(jax.jit(run).lower(arrays, jnp.ones(3)).as_text().splitlines())

    one = size(3)
    assert len(runs) == 1
    assert size(30) == one
    assert runs[0].linear.weight.shape == (3, 3)


def test_inputs_for_each_member(blocks, lane_key):
    keys = jax.random.split(lane_key, DEPTH)
    xs = {"key": keys, "shift": jnp.arange(DEPTH * 3.0).reshape(DEPTH, 3), "name": "s"}

    def shifted(block, x, given):
        assert given["name"] == "s"
        x = block(x) + given["shift"] + jax.random.normal(given["key"], (3,))
        return x, None

    x = jnp.zeros(3)
    for block, key, shift in zip(blocks, keys, xs["shift"], strict=True):
        x, _ = shifted(block, x, {"key": key, "shift": shift, "name": "s"})
    out, none = lanes.fold(shifted, *lanes.stack(blocks), jnp.zeros(3), xs)
    np.testing.assert_allclose(out, x, rtol=1e-5)
    assert none is None
    out, _ = lanes.fold(lambda w, x, y: (x + w * y, None), jnp.arange(4.0), 0, 0.0, 2.0)
    np.testing.assert_allclose(out, 12.0)


def test_leaves_without_lanes_are_shared(blocks):
    batched, axes = lanes.stack(blocks, share=lambda path, x: path[-1] == "scale")
    assert axes.scale is None
    seen = []

    def look(block, x):
        seen.append(block.scale)
        return forward(block, x)

    out = lanes.fold(look, batched, axes, jnp.ones(3))
    assert all(scale is batched.scale for scale in seen)
    oracle.assert_same(out, loop(blocks, jnp.ones(3)), exact=False)
    delta = chorax.vmap_call_all_fns(
        blocks[0],
        chorax.reset_parameters,
        axis_size=4,
        key=jax.random.key(0),
        node_to_exclude=Block,
    )
    out = lanes.fold(forward, *delta, jnp.ones(3))
    expected = loop(lanes.unstack(*delta), jnp.ones(3))
    oracle.assert_same(out, expected, exact=False)


def test_lanes_elsewhere_than_in_front_and_an_ensemble(blocks):
    w = jnp.arange(6.0).reshape(2, 3)
    out, ys = lanes.fold(lambda w, x: (x + w, w), w, -1, jnp.zeros(2))
    np.testing.assert_array_equal(out, w.sum(1))
    np.testing.assert_array_equal(ys, w.T)
    ensemble = lanes.Ensemble(*lanes.stack(blocks))
    out = lanes.fold(forward, ensemble, None, jnp.ones(3))
    oracle.assert_same(out, loop(blocks, jnp.ones(3)), exact=False)


def test_the_carry_may_be_any_tree(blocks):
    carry = {"x": jnp.ones(3), "act": jnp.tanh, "n": 3, "total": 0.0, "key": None}

    def fn(block, carry):
        x = block(carry["act"](carry["x"]))
        return {**carry, "x": x, "total": carry["total"] + x.sum()}, x

    expected: Any = carry
    for block in blocks:
        expected, _ = fn(block, expected)
    out, ys = lanes.fold(fn, *lanes.stack(blocks), carry)
    assert ys.shape == (DEPTH, 3)
    assert out["act"] is jnp.tanh
    assert type(out["n"]) is int
    np.testing.assert_allclose(out["x"], expected["x"], rtol=1e-5)
    np.testing.assert_allclose(out["total"], expected["total"], rtol=1e-5)


def test_numbers_in_the_carry_that_hang_on_one_another(blocks):
    def fn(block, carry):
        a, b, c = carry
        return (a + 1, b + a, c), None

    out, _ = lanes.fold(fn, *lanes.stack(blocks), (0, 0, 7))
    assert [int(x) for x in out] == [5, 10, 7]
    assert type(out[2]) is int


def test_a_module_in_the_carry_keeps_its_static_parts(blocks):
    state = Block(eqx.nn.Linear(3, 3, key=jax.random.key(1)), jnp.zeros(()))

    def fn(block, state):
        return chorax.replace(state, scale=state.scale + block.scale), state

    out, states = lanes.fold(fn, *lanes.stack(blocks), state)
    assert (out.gain, out.act, float(out.scale)) == (0.5, jnp.tanh, DEPTH)
    np.testing.assert_array_equal(states.scale, jnp.arange(DEPTH * 1.0))
    assert states.act is jnp.tanh


def test_in_jit_and_vmap(blocks):
    xs = jnp.arange(12.0).reshape(4, 3)
    batched, axes = lanes.stack(blocks)
    found = eqx.filter_jit(
        jax.vmap(lambda x: lanes.fold(forward, batched, axes, x)[0])
    )(xs)
    expected = jnp.stack([loop(blocks, x)[0] for x in xs])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def keeps(**changes):
    return lambda block, carry: ({**carry, **changes}, None)


@pytest.mark.parametrize(
    ("fn", "error", "match"),
    [
        (keeps(name="b"), ValueError, "returned 'b' .* at `name` .* given 'a'"),
        (keeps(name=jnp.ones(3)), ValueError, "an array .* at `name` of `carry`"),
        (keeps(x=None), ValueError, "structure of `carry` at `x`: .* a leaf .* None"),
        (keeps(x="b"), ValueError, "'b' of type str at `x` of `carry`"),
        (lambda block, carry: carry, TypeError, r"`\(carry, y\)`, but returned a dict"),
    ],
)
def test_what_may_not_change_is_named(blocks, fn, error, match):
    with pytest.raises(error, match=match):
        lanes.fold(fn, *lanes.stack(blocks), {"x": jnp.ones(3), "name": "a"})


@pytest.mark.usefixtures("needs_jit")
@pytest.mark.parametrize("x", [jnp.ones(2), jnp.ones(3, jnp.int32)])
def test_arrays_that_change_shape_or_dtype_are_named(blocks, x):
    with pytest.raises(TypeError, match=r"\['x'\]"):
        lanes.fold(keeps(x=x), *lanes.stack(blocks), {"x": jnp.ones(3), "name": "a"})


def test_other_misuses_are_named(blocks):
    batched, axes = lanes.stack(blocks)
    xs = {"a": jnp.ones((DEPTH, 2)), "b": jnp.ones((4, 2))}
    with pytest.raises(ValueError, match=r"`b` of `xs` must have 5 lanes .* \(4, 2\)"):
        lanes.fold(lambda b, x, y: (x, y), batched, axes, 0.0, xs)
    with pytest.raises(ValueError, match="No leaf has a lane axis"):
        lanes.fold(forward, batched, None, jnp.ones(3))
    with pytest.raises(TypeError, match="`fn` of `fold` must be a function"):
        lanes.fold(0, batched, axes, 0.0)  # pyright: ignore[reportArgumentType]
