"""Examples on which a law once did not hold."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import chorax
import oracle
from chorax import call_all_fns, replace, vmap_call_all_fns
from trees import Bag


class Keeps(eqx.Module):
    """Writes a typed key, which has no weak type to ask for."""

    k: Any = None

    def step(self, *, key):
        return replace(self, k=key)


def test_a_key_is_written_without_jit(lane_key):
    with jax.disable_jit():
        model, _ = call_all_fns(Keeps(), "step", key=lane_key)
        batched, _ = vmap_call_all_fns(Keeps(), "step", axis_size=2, key=lane_key)
    oracle.assert_same(model.k, oracle.node_key(lane_key, ()))
    for key, k in zip(jax.random.split(lane_key, 2), batched.k, strict=True):
        oracle.assert_same(k, oracle.node_key(key, ()))


class Grows(eqx.Module):
    """Reads an array, and draws."""

    x: jax.Array

    def step(self, *, key):
        drawn = jax.random.uniform(key, self.x.shape)
        return replace(self, x=2 * self.x + drawn)


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
def test_equal_nodes_read_empty_arrays_with_lanes(shape, lane_key):
    net = [Grows(jnp.zeros((3, *shape))) for _ in range(2)]
    keys = jax.random.split(lane_key, 3)
    batched, _ = vmap_call_all_fns(net, "step", axis_size=3, key=keys, in_axes=0)
    for node in batched:
        oracle.assert_same(node.x, jnp.zeros((3, *shape)))


class Shifts(eqx.Module):
    """Gets a leaf in front of those that stay."""

    below: Any
    first: Any = None

    def __init__(self, below):
        self.below = {"z": below}

    def step(self):
        return replace(self, below={"a": 0.5, **self.below})


def test_one_array_at_two_places_stays_without_jit():
    shared = jnp.ones(2)
    net = Shifts([shared, {"b": shared}])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The same object stands at")
        batched, delta = vmap_call_all_fns(net, "step", axis_size=3)
        with jax.disable_jit():
            plainly, same = vmap_call_all_fns(net, "step", axis_size=3)
    assert same.paths == delta.paths == ("below.a",)
    oracle.assert_same(plainly, batched)


class Wraps(eqx.Module):
    """Holds a function in one of Equinox's wrappers, which has its annotations."""

    function: Any
    other: Any
    x: Any

    def step(self):
        traced.append(self)
        return replace(self, x=self.x + 1)


traced: list[Any] = []


@pytest.mark.usefixtures("needs_jit")
@pytest.mark.parametrize("other", [None, Bag(1)])
def test_wrapped_functions_are_traced_once(other):
    for wrap in (eqx.filter_jit, eqx.filter_vmap, eqx.filter_checkpoint):
        function = wrap(eqx.Partial(jnp.add, jnp.ones(2)))
        net = [Wraps(function, other, jnp.ones(3) * i) for i in range(4)]
        traced.clear()
        for _ in range(3):
            model, _ = call_all_fns(net, "step")
            assert model[2].x.tolist() == [3.0, 3.0, 3.0]
        assert len(traced) == 1


class Bumped(eqx.Module):
    """A late node, in one that writes into it before."""

    x: Any

    @chorax.call_order(1)
    def step(self):
        traced.append(self)
        return replace(self, x=self.x * 2)


class Bumps(eqx.Module):
    below: Any

    def step(self):
        return replace(self, below=replace(self.below, x=self.below.x + 1))


@pytest.mark.usefixtures("needs_jit")
def test_nodes_with_lanes_and_without_are_of_one_kind():
    net = [Bumped(jnp.ones(2)), Bumps(Bumped(jnp.ones(2)))]
    traced.clear()
    batched, delta = vmap_call_all_fns(net, "step", axis_size=3)
    assert len(traced) == 1
    assert batched[0].x.tolist() == [[2.0, 2.0]] * 3
    assert batched[1].below.x.tolist() == [[4.0, 4.0]] * 3
    again, _ = vmap_call_all_fns(batched, "step", axis_size=3, in_axes=delta)
    assert len(traced) == 1
    assert again[1].below.x.tolist() == [[10.0, 10.0]] * 3


def test_nodes_with_lanes_and_without_side_by_side():
    net = [Bumped(jnp.ones((3, 2))), Bumped(jnp.ones(2)), Bumped(jnp.ones((2, 3)))]
    axes = [Bumped(0), Bumped(None), Bumped(1)]
    batched, _ = vmap_call_all_fns(net, "step", axis_size=3, in_axes=axes)
    assert [node.x.tolist() for node in batched] == [[[2.0, 2.0]] * 3] * 3


class Writes(eqx.Module):
    x: Any

    def step(self):
        return replace(self, x=self.x + 1)


@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_array_at_three_places_is_warned_of_wherever_it_is_written(written):
    shared = jnp.ones(2)
    net: list[Any] = [{"x": shared} for _ in range(3)]
    net[written] = Writes(shared)
    other = f"`{max(written, 1)}.x`"
    text = f"The same object stands at `0.x` and at {other}, and was written"
    with pytest.warns(UserWarning, match=text) as caught:
        call_all_fns(net, "step")
    assert len(caught) == 1
