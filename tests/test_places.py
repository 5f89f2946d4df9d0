"""Models whose arrays live on several devices: nodes run where their arrays are."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import oracle
from chorax import call_all_fns, lanes, replace, vmap_call_all_fns
from rows import quick


pytestmark = [
    pytest.mark.skipif(
        jax.device_count() < 8, reason="XLA_FLAGS ask for fewer than 8 devices"
    ),
    pytest.mark.usefixtures("needs_jit"),
]


class Layer(eqx.Module):
    w: jax.Array
    x: Any = None

    def step(self, *, key=None):
        noise = 0.0 if key is None else jax.random.uniform(key, ())
        return replace(self, x=self.w * 2 + noise)


class Shift(eqx.Module):
    w: jax.Array
    x: Any = None

    def step(self, *, key=None):
        return replace(self, x=self.w - 1)


class Around(eqx.Module):
    part: Any
    x: Any = None

    def step(self, *, key=None):
        return replace(self, x=self.part.x.sum(0))


def devices_of(x):
    return {device.id for device in x.devices()}


def on(device, value=1.0):
    return jax.device_put(jnp.full((4, 2), value), jax.devices()[device])


NETS = {
    "one kind": lambda: [Layer(on(0)), Layer(on(1)), Layer(on(0)), Layer(on(1))],
    "two kinds": lambda: [Layer(on(0)), Shift(on(1)), Layer(on(1)), Shift(on(0))],
    "what was made there": lambda: [Around(Layer(on(i % 2, i))) for i in range(4)],
    "where JAX puts it": lambda: [Layer(jnp.ones((4, 2))), Layer(on(1)), Shift(on(2))],
    "many": lambda: [Layer(on(i % 4, i)) for i in range(40)],
}


@pytest.mark.parametrize(
    ("net", "has_lanes"),
    quick(
        itertools.product(NETS, [False, True]),
        [("one kind", False), ("two kinds", True), ("what was made there", False)],
    ),
)
def test_nodes_on_several_devices(net, has_lanes, lane_key):
    """As in pipeline parallelism: each stage has a device of its own."""
    net = NETS[net]()
    for _ in range(2):
        if has_lanes:
            keys = jax.random.split(lane_key, 3)
            model, _ = vmap_call_all_fns(net, "step", axis_size=3, key=lane_key)
            oracle.assert_same(model, oracle.vmap_call(net, "step", keys), exact=False)
        else:
            model, _ = call_all_fns(net, "step", key=lane_key)
            expected = oracle.call(net, "step", key=lane_key)
            oracle.assert_same(model, expected, exact=False)
        for old, new in zip(net, model, strict=True):
            inner = old.part if isinstance(old, Around) else old
            assert devices_of(new.x) == devices_of(inner.w)


def test_a_mesh_and_a_device_in_one_model():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, P("d")))
    model, _ = call_all_fns([Layer(spread), Layer(on(5)), Shift(spread)], "step")
    assert model[0].x.sharding.is_equivalent_to(spread.sharding, 2)
    assert devices_of(model[1].x) == {5}
    assert model[2].x.sharding.is_equivalent_to(spread.sharding, 2)


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("jit", [False, True])
def test_layouts_of_one_shape(types, jit):
    """Nodes that lie differently are not stacked, and each result lies as its node."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(types,))
    value = jnp.arange(8.0).reshape(2, 4)
    specs = [P("d", None), P(None, "d"), P("d"), P(None, "d")]
    net = [
        Layer(jax.device_put(value + i, NamedSharding(mesh, s)))
        for i, s in enumerate(specs)
    ]

    def run(net):
        return call_all_fns(net, "step")[0]

    for _ in range(2):
        model = (eqx.filter_jit(run) if jit else run)(net)
        for i, node in enumerate(model):
            assert np.array_equal(node.x, (np.arange(8.0).reshape(2, 4) + i) * 2)
            if not jit or types == AxisType.Explicit:
                wanted = net[i].w.sharding
                assert node.x.sharding.is_equivalent_to(wanted, 2), i


def test_nodes_that_lie_alike_still_run_as_one():
    """A place tells nodes apart; what was said of none of them does not."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    layouts = [NamedSharding(mesh, P("d", None)), NamedSharding(mesh, P(None, "d"))]
    net = [Layer(jax.device_put(jnp.ones((2, 4)), layouts[i % 2])) for i in range(8)]
    text = str(jax.make_jaxpr(lambda net: call_all_fns(net, "step")[0])(net))
    assert text.count("mul") <= 4


def test_lanes_of_stages_on_several_devices(lane_key):
    """Made, reset where they are done, and taken apart."""
    net = [Layer(on(0)), Layer(on(1))]
    model, delta = vmap_call_all_fns(net, "step", axis_size=4, key=lane_key)
    done = jnp.array([True, False, False, True])
    again, _ = vmap_call_all_fns(
        model, "step", axis_size=4, in_axes=delta, where=done, key=lane_key
    )
    for i, node in enumerate(again):
        assert devices_of(node.x) == {i}
    one = lanes.take(again, delta, 1)
    assert [devices_of(node.x) for node in one] == [{0}, {1}]
