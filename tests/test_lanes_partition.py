"""What each lane trains, and the rest; with optax, against one run per lane."""

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
from chorax.filters import PathContains, WithTag


class Leaky(eqx.Module):
    """A layer with a time constant, which a sweep writes."""

    linear: eqx.nn.Linear
    tau: Any
    activation: Any = jnp.tanh
    steps: Any = None

    def set_tau(self, tau):
        return chorax.replace(self, tau=tau)

    def __call__(self, x):
        return self.activation(self.linear(x)) / self.tau


def net(key):
    one, two = jax.random.split(key)
    return [
        Leaky(eqx.nn.Linear(2, 3, key=one), jnp.ones(()), steps=jnp.zeros((), int)),
        Leaky(eqx.nn.Linear(3, 1, key=two), jnp.ones(())),
    ]


TAUS = jnp.array([1.0, 2.0, 4.0, 8.0])


def swept(key, tag: str | None = "hyper"):
    """Four lanes that begin alike, each with a time constant of its own."""
    batched, axes = lanes.broadcast(net(key), 4)
    return chorax.vmap_call_all_fns(
        batched,
        "set_tau",
        TAUS,
        in_axes=axes,
        args_in_axes=0,
        fn_if_not_exist="pass",
        state_tag=tag,
    )


def here(tree):
    """The paths of the leaves that are there."""
    return list(oracle.leaves_by_path(tree))


WEIGHTS = [(i, "linear", name) for i in (0, 1) for name in ("weight", "bias")]
HYPERS = [(0, "tau"), (1, "tau")]


def test_the_rest_and_what_is_trained_are_the_model(key):
    batched, delta = swept(key)
    params, rest = lanes.partition(batched, delta)
    assert here(params) == WEIGHTS
    both = eqx.combine(params, rest)
    assert jtu.tree_structure(both) == jtu.tree_structure(batched)
    old = oracle.leaves_by_path(batched)
    assert here(rest) == [path for path in old if path not in WEIGHTS]
    assert all(x is old[path] for path, x in oracle.leaves_by_path(both).items())


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (..., WEIGHTS),
        (None, []),
        (eqx.is_inexact_array, WEIGHTS),
        (PathContains("bias"), [WEIGHTS[1], WEIGHTS[3]]),
        (lambda path, x: path[0] == 0, WEIGHTS[:2]),
        (~WithTag("hyper"), WEIGHTS),
        # Whatever the filter says.
        ("hyper", []),
        (PathContains("tau"), []),
    ],
)
def test_swept_values_are_never_trained(filter, expected, key):
    assert here(lanes.partition(*swept(key), filter)[0]) == expected


def test_the_filter_sees_the_tags_of_the_delta(key):
    batched, delta = swept(key, tag="tau")
    assert sorted(here(lanes.partition(batched, delta)[0])) == sorted(WEIGHTS + HYPERS)
    assert here(lanes.partition(batched, delta, "tau")[0]) == HYPERS
    assert here(lanes.partition(batched, delta, ~WithTag("tau"))[0]) == WEIGHTS
    # A tree of axes has none.
    assert here(lanes.partition(batched, delta.in_axes, "tau")[0]) == []


def test_a_delta_inside_a_tree_of_axes(key):
    batched, delta = swept(key)
    tree, axes = {"net": batched, "x": jnp.ones((2, 4))}, {"net": delta, "x": 1}
    params, rest = lanes.partition(tree, axes)
    assert here(params) == [*(("net", *path) for path in WEIGHTS), ("x",)]
    assert rest["net"][0].tau is batched[0].tau


class Mixed(eqx.Module):
    mapped: Any
    behind: Any
    shared: Any
    whole: Any
    key: Any
    host: Any
    text: str = "x"


def test_only_inexact_arrays_with_lanes(key):
    model = Mixed(
        mapped=jnp.ones((3, 2)),
        behind=jnp.ones((2, 3), jnp.complex64),
        shared=jnp.ones(3),
        whole=jnp.arange(3),
        key=jax.random.split(key, 3),
        host=np.ones(3, np.float32),
    )
    axes: Any = Mixed(0, 1, None, 0, 0, 0, None)  # pyright: ignore[reportArgumentType]
    params, _ = lanes.partition(model, axes)
    assert here(params) == [("mapped",), ("behind",), ("host",)]


def test_inside_jit_and_for_shapes(key):
    batched, delta = swept(key)

    @eqx.filter_jit
    def split(batched):
        return lanes.partition(batched, delta)

    oracle.assert_same(split(batched), lanes.partition(batched, delta))
    like = eqx.filter_eval_shape(split, batched)
    assert here(like[0]) == WEIGHTS


def test_abstract_arrays(key):
    like, delta = eqx.filter_eval_shape(swept, key)
    params, rest = lanes.partition(like, delta)
    assert here(params) == WEIGHTS
    shape = params[0].linear.weight.shape
    assert (shape, type(rest[0].tau)) == ((4, 3, 2), jax.ShapeDtypeStruct)
    assert here(lanes.partition(like, delta, lambda x: x.ndim == 2)[0]) == [
        WEIGHTS[1],
        WEIGHTS[3],
    ]


def test_bad_use(key):
    batched, delta = swept(key)
    with pytest.raises(TypeError, match="Not a filter: 3") as caught:
        lanes.partition(batched, delta, 3)  # pyright: ignore[reportArgumentType]
    assert caught.value.__notes__ == ["Given as `filter`."]
    with pytest.raises(ValueError, match="No leaf has a lane axis"):
        lanes.partition(batched, None)


# With optax: the same as one run for each lane.

RATES = jnp.array([0.1, 0.03, 0.01, 0.0])


def loss(model, x, y):
    first, second = model
    return jnp.mean((jax.vmap(lambda x: second(first(x)))(x) - y) ** 2)


def data(key):
    x = jax.random.normal(key, (8, 2))
    return x, x[:, :1] * x[:, 1:]


def by_hand(model, rate, x, y):
    """Three steps of one lane, with the weights taken out by their names."""

    def weights(model):
        linears = [each.linear for each in model]
        return [x for each in linears for x in (each.weight, each.bias)]

    def put(params):
        return eqx.tree_at(weights, model, params)

    optimiser = optax.adamw(rate, weight_decay=0.1)
    params = weights(model)
    state = optimiser.init(params)
    for _ in range(3):
        grads = jax.grad(lambda params: loss(put(params), x, y))(params)
        updates, state = optimiser.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return put(params)


def injected(params):
    """One optimiser, whose state has a rate for each lane."""
    optimiser = optax.inject_hyperparams(optax.adamw)(0.0, weight_decay=0.1)
    state = eqx.filter_vmap(optimiser.init)(params)
    state.hyperparams["learning_rate"] = RATES

    def update(grads, state, params):
        return optimiser.update(grads, state, params)

    return state, update


def made_in_the_lane(params):
    """An optimiser of each lane, made from its rate."""
    init = lambda params, rate: optax.adamw(rate, weight_decay=0.1).init(params)  # noqa: E731
    state = RATES, eqx.filter_vmap(init)(params, RATES)

    def update(grads, state, params):
        rate, own = state
        updates, own = optax.adamw(rate, weight_decay=0.1).update(grads, own, params)
        return updates, (rate, own)

    return state, update


def scaled(params):
    """Updates scaled by an array of the lanes."""
    optimiser = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1))
    state = RATES, eqx.filter_vmap(optimiser.init)(params)

    def update(grads, state, params):
        rate, own = state
        updates, own = optimiser.update(grads, own, params)
        return jtu.tree_map(lambda u: -rate * u, updates), (rate, own)

    return state, update


@pytest.mark.parametrize("make", [injected, made_in_the_lane, scaled])
def test_a_learning_rate_for_each_member(make, key):
    batched, delta = swept(key)
    x, y = data(key)
    params, rest = lanes.partition(batched, delta)
    with jax.numpy_dtype_promotion("standard"):
        state, update = make(params)

        def step(params, rest, state):
            grads = jax.grad(lambda p: loss(eqx.combine(p, rest), x, y))(params)
            updates, state = update(grads, state, params)
            return eqx.apply_updates(params, updates), state

        axes = (eqx.if_array(0), delta.in_axes, eqx.if_array(0))
        steps = eqx.filter_jit(eqx.filter_vmap(step, in_axes=axes))
        for _ in range(3):
            params, state = steps(params, rest, state)
        expected = [
            by_hand(model, rate, x, y)
            for model, rate in zip(lanes.unstack(batched, delta), RATES, strict=True)
        ]
    trained = eqx.combine(params, rest)
    # Weight decay would have moved these.
    assert trained[0].tau is batched[0].tau
    assert (trained[0].linear.weight[3] == batched[0].linear.weight[3]).all()
    for found, model in zip(lanes.unstack(trained, delta), expected, strict=True):
        pairs = zip(jtu.tree_leaves(found), jtu.tree_leaves(model), strict=True)
        for a, b in pairs:
            if eqx.is_array(a):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    moved = trained[0].linear.weight - batched[0].linear.weight
    assert len(set(np.abs(np.asarray(moved)).sum((1, 2)).tolist())) == 4
