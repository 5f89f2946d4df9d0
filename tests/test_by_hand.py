"""Collective calls against what one writes without them: each node called in turn, put
back by `eqx.tree_at`, all of it under `eqx.filter_vmap`, or in plain loops."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import chorax
import oracle
from chorax import filters, lanes, replace
from chorax.lanes import Ensemble
from rows import quick


LANES = 4


class Cell(eqx.Module):
    w: Any
    h: Any = None
    n: Any = None

    def make(self, *, key):
        h = self.w * jax.random.uniform(key, self.w.shape)
        return replace(self, h=h, n=jnp.zeros((), jnp.int32))

    def step(self, x, *, gain=1.0):
        total = sum(jtu.tree_leaves(x))
        return replace(self, h=jnp.tanh(self.w * self.h + total * gain))

    def noise(self, scale=1.0, *, key):
        h = self.h + scale * jax.random.uniform(key, self.h.shape)
        return replace(self, h=h, n=self.n + 1)

    def count(self):
        return replace(self, n=self.n + 1)

    def begin(self):
        return replace(self, h=jnp.zeros_like(self.h))

    def shared(self):
        return replace(self, h=self.h * 2, n=jnp.asarray(7, jnp.int32))

    def report(self, x):
        return self.step(x), {"h": self.h, "w": self.w, "x": x}

    def centre(self):
        return replace(self, h=self.h - jax.lax.pmean(self.h, "lanes"))

    def total(self):
        return replace(self, h=jax.lax.psum(self.h * self.w, "lanes"))

    def gather(self):
        return replace(self, h=jax.lax.all_gather(self.h, "lanes"))

    def index(self):
        return replace(self, n=self.n + jax.lax.axis_index("lanes"))

    def pass_on(self):
        ring = [(i, (i + 1) % LANES) for i in range(LANES)]
        return replace(self, h=jax.lax.ppermute(self.h, "lanes", ring))


class Net(eqx.Module):
    """Reads the states of its cells."""

    cells: list
    readout: dict
    seen: Any = None

    def make(self, *, key):
        return self._see(jax.random.uniform(key, ()))

    def noise(self, scale=1.0, *, key):
        return self._see(scale * jax.random.uniform(key, ()))

    def step(self, x, *, gain=1.0):
        return self._see(jnp.zeros(()))

    def report(self, x):
        net = self._see(jnp.zeros(()))
        return net, net.seen

    def _see(self, start):
        return replace(self, seen=start + sum(jnp.sum(cell.h) for cell in self.cells))


# Children before parents, in the order of fields.
PLACES = (
    (lambda net: net.cells[0], ("cells", 0)),
    (lambda net: net.cells[1], ("cells", 1)),
    (lambda net: net.readout["out"], ("readout", "out")),
    (lambda net: net, ()),
)


def fresh() -> Any:
    w = [jnp.arange(3.0) + 1, jnp.ones(3), jnp.arange(3.0)]
    return Net([Cell(w[0]), Cell(w[1])], {"out": Cell(w[2])})


def one_lane(net, name, key, args=(), kwargs=None, has_aux=False) -> Any:
    """One lane as it is written without the library."""
    aux = {}
    for at, path in PLACES:
        method = getattr(at(net), name, None)
        if method is not None:
            own = {} if key is None else {"key": oracle.node_key(key, path)}
            new = method(*args, **(kwargs or {}), **own)
            if has_aux:
                new, aux[".".join(map(str, path))] = new
            net = eqx.tree_at(at, net, new)
    return (net, aux) if has_aux else net


def axes_of(net, **axes) -> Any:
    """A tree of axes: those of the fields that are named, `None` elsewhere."""
    return jtu.tree_map_with_path(lambda path, _: axes.get(path[-1].name), net)


def made(axis=0) -> Any:
    """A net whose cells' states `h` have lanes along an axis, and the lane axes."""
    draw = np.random.default_rng(3)

    def start(cell):
        h = jnp.asarray(draw.normal(size=(LANES, 3)), float)
        n = jnp.arange(LANES, dtype=jnp.int32)
        return replace(cell, h=jnp.moveaxis(h, 0, axis), n=n)

    net = fresh()
    readout = {"out": start(net.readout["out"])}
    net = Net([start(cell) for cell in net.cells], readout, jnp.zeros(LANES))
    return net, axes_of(net, h=axis, n=0, seen=0)


class Case(NamedTuple):
    """A call; `args_in_axes` and `kwargs_in_axes` are what `eqx.filter_vmap` takes for
    the tuple and for the dictionary."""

    method: str
    args: tuple = ()
    kwargs: dict | None = None
    args_in_axes: Any = None
    kwargs_in_axes: Any = None
    has_key: bool = False
    axis_name: str | None = None
    writes: tuple = ("h", "seen")


ROW, TABLE = jnp.linspace(-1.0, 1.0, LANES), jnp.arange(12.0).reshape(3, LANES) / 12
CASES = {
    "no argument": Case("count", writes=("n",)),
    "keys": Case("noise", has_key=True, writes=("h", "n", "seen")),
    "keys and an argument": Case(
        "noise", (ROW,), None, 0, has_key=True, writes=("h", "n", "seen")
    ),
    "an argument for all": Case("step", (jnp.ones(()),)),
    "an argument that is no array": Case("step", (0.5,)),
    "an argument a lane": Case("step", (ROW,), None, 0),
    "axes as a tuple": Case("step", (ROW,), None, (0,)),
    "axes as a function": Case("step", (ROW,), None, eqx.if_array(0)),
    "other axes": Case("step", (TABLE,), {"gain": TABLE}, -1, {"gain": 1}),
    "a tree": Case("step", ([ROW, {"a": jnp.ones(())}],), None, ([0, {"a": None}],)),
    "a tree of one axis": Case("step", ((ROW, ROW * 2),), None, 0),
    "a keyword for all": Case("step", (ROW,), {"gain": jnp.asarray(0.5)}, 0),
    "a keyword a lane": Case("step", (0.5,), {"gain": ROW}, None, {"gain": 0}),
    "all by keyword": Case(
        "step", (), {"x": ROW, "gain": 2.0}, None, {"x": 0, "gain": None}
    ),
    "a mean over lanes": Case("centre", axis_name="lanes", writes=("h",)),
    "a sum over lanes": Case("total", axis_name="lanes", writes=("h",)),
    "all lanes in each": Case("gather", axis_name="lanes", writes=("h",)),
    "the index of a lane": Case("index", axis_name="lanes", writes=("n",)),
    "lanes that pass on": Case("pass_on", axis_name="lanes", writes=("h",)),
}


def call_by_hand(case: Case, net, axes, keys):
    def lane(net, key, args, kwargs):
        return one_lane(net, case.method, key, args, kwargs)

    in_axes = (axes, 0, case.args_in_axes, case.kwargs_in_axes)
    out_axes = eqx.combine(axes_of(net, **dict.fromkeys(case.writes, 0)), axes)
    return out_axes, eqx.filter_vmap(
        lane,
        in_axes=in_axes,
        out_axes=out_axes,
        axis_name=case.axis_name,
        axis_size=LANES,
    )(net, keys, case.args, case.kwargs)


def call(case: Case, net, axes, keys, **options):
    return chorax.vmap_call_all_fns(
        net,
        case.method,
        case.args,
        case.kwargs,
        LANES,
        key=keys,
        in_axes=axes,
        args_in_axes=case.args_in_axes,
        kwargs_in_axes=case.kwargs_in_axes,
        axis_name=case.axis_name,
        fn_if_not_exist="pass",
        **options,
    )


def lane_keys(case: Case, key):
    return jax.random.split(key, LANES) if case.has_key else None


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", CASES)
def test_a_call_is_what_one_writes_by_hand(name, axis, lane_key):
    case, (net, axes) = CASES[name], made(axis)
    keys = lane_keys(case, lane_key)
    out_axes, expected = call_by_hand(case, net, axes, keys)
    batched, delta = call(case, net, axes, keys)
    oracle.assert_same(batched, expected, exact=False)
    assert eqx.tree_equal(delta.in_axes, out_axes)
    assert {path.split(".")[-1] for path in delta.paths} == set(case.writes)


def lane_inputs(case: Case, net, axes, keys):
    """What each lane gets, all of it with lanes in front."""
    in_axes = (axes, 0, case.args_in_axes, case.kwargs_in_axes)
    stack = eqx.filter_vmap(lambda *parts: parts, in_axes=in_axes, axis_size=LANES)
    return eqx.partition(stack(net, keys, case.args, case.kwargs), eqx.is_array)


LOOPS = ["keys and an argument", "an argument for all", "other axes", "a tree"]


@pytest.mark.parametrize("name", LOOPS)
def test_a_call_is_what_plain_loops_do(name, lane_key):
    case, (net, axes) = CASES[name], made()
    keys = lane_keys(case, lane_key)
    arrays, rest = lane_inputs(case, net, axes, keys)
    alone = []
    for lane in range(LANES):
        own = jtu.tree_map(lambda x, lane=lane: x[lane], arrays)
        net_, key, args, kwargs = eqx.combine(own, rest)
        alone.append(one_lane(net_, case.method, key, args, kwargs))
    expected, _ = lanes.stack(alone, share=filters.PathContains("w"))
    batched, delta = call(case, net, axes, keys)
    oracle.assert_same(batched, expected, exact=False)
    for one, other in zip(lanes.unstack(batched, delta), alone, strict=True):
        oracle.assert_same(one, other, exact=False)


def test_states_are_made_as_by_hand(lane_key):
    keys = jax.random.split(lane_key, LANES)
    batched, delta = chorax.vmap_call_all_fns(
        fresh(), "make", axis_size=LANES, key=lane_key
    )
    expected = eqx.filter_vmap(
        lambda net, key: one_lane(net, "make", key),
        in_axes=(None, 0),
        out_axes=delta.in_axes,
    )(fresh(), keys)
    oracle.assert_same(batched, expected, exact=False)
    assert eqx.tree_equal(delta.in_axes, axes_of(batched, h=0, n=0, seen=0))


@pytest.mark.parametrize("name", ["a mean over lanes", "other axes"])
def test_a_call_under_jit(name):
    case, (net, axes) = CASES[name], made()
    expected = eqx.filter_jit(call_by_hand)(case, net, axes, None)[1]
    batched = eqx.filter_jit(call)(case, net, axes, None)[0]
    oracle.assert_same(batched, expected, exact=False)


# Chunks: what `jax.lax.map` with a batch size does


@pytest.mark.parametrize(
    ("name", "size"),
    quick(
        [("keys and an argument", 3), ("a keyword a lane", 1), ("other axes", 4)],
        [("other axes", 4)],
    ),
)
def test_chunks(name, size, lane_key):
    case, (net, axes) = CASES[name], made()
    keys = lane_keys(case, lane_key)
    arrays, rest = lane_inputs(case, net, axes, keys)
    whole, delta = call(case, net, axes, keys)

    def one(own):
        net, key, args, kwargs = eqx.combine(own, rest)
        after = one_lane(net, case.method, key, args, kwargs)
        return eqx.filter(after, delta.filter_spec)

    expected = jax.lax.map(one, arrays, batch_size=size)
    parts, same = call(case, net, axes, keys, chunk_size=size)
    oracle.assert_same(parts, eqx.combine(expected, net), exact=False)
    oracle.assert_same(parts, whole, exact=False)
    assert same.paths == delta.paths


# Some lanes, shared leaves, further results


@pytest.mark.parametrize("mask", ["1010", "0000", "1111"])
@pytest.mark.parametrize("method", ["begin", "step"])
def test_where_is_a_choice_between_old_and_new(method, mask, lane_key):
    net, axes = made(-1)
    case = Case(method, (ROW,) if method == "step" else (), None, 0)
    chosen = jnp.asarray([digit == "1" for digit in mask])
    _, every = call_by_hand(case, net, axes, None)
    batched, delta = call(case, net, axes, None, where=chosen)
    for place in (lambda net: net.cells[0], lambda net: net.readout["out"]):
        expected = jnp.where(chosen[:, None], place(every).h, place(net).h.T)
        np.testing.assert_allclose(place(batched).h, expected, rtol=1e-6)
        assert place(batched).n is place(net).n
    seen = jnp.where(chosen, every.seen, net.seen)
    np.testing.assert_allclose(batched.seen, seen, rtol=1e-6)


def test_what_is_excluded_has_no_axis():
    net, axes = made()
    # A count for all lanes.
    net = jtu.tree_map_with_path(
        lambda path, x: x[0] if path[-1].name == "n" else x, net
    )
    axes = axes_of(net, h=0, seen=0)
    expected = eqx.filter_vmap(
        lambda net: one_lane(net, "shared", None), in_axes=(axes,), out_axes=axes
    )(net)
    batched, delta = chorax.vmap_call_all_fns(
        net,
        "shared",
        axis_size=LANES,
        in_axes=axes,
        state_to_exclude=filters.PathContains("n"),
        fn_if_not_exist="pass",
    )
    oracle.assert_same(batched, expected)
    assert eqx.tree_equal(delta.in_axes, axes)


def test_what_methods_return_besides():
    net, axes = made()
    expected, reports = eqx.filter_vmap(
        lambda net, x: one_lane(net, "report", None, (x,), has_aux=True),
        in_axes=(axes, 0),
        out_axes=(axes, 0),
    )(net, ROW)
    batched, _, aux = chorax.vmap_call_all_fns(
        net,
        "report",
        ROW,
        axis_size=LANES,
        in_axes=axes,
        args_in_axes=0,
        has_aux=True,
    )
    oracle.assert_same(batched, expected, exact=False)
    oracle.assert_same(aux, reports, exact=False)
    assert list(aux) == ["cells.0", "cells.1", "readout.out", ""]


def test_lanes_along_an_axis_of_a_mesh():
    mesh = jax.make_mesh((1,), ("data",))
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    class Laid(eqx.Module):
        x: Any

        def step(self):
            return replace(self, x=jax.lax.with_sharding_constraint(self.x, layout))

    def ours(x):
        return chorax.vmap_call_all_fns(
            Laid(x), "step", axis_size=2, in_axes=0, spmd_axis_name="data"
        )[0].x

    def by_hand(x):
        options: Any = {"spmd_axis_name": "data"}
        step = eqx.filter_vmap(lambda node: node.step(), **options)
        return step(Laid(x)).x

    x = jnp.ones((2, 3))
    layouts = [
        [
            eqn.params["sharding"].spec
            for eqn in equations(jax.make_jaxpr(function)(x).jaxpr)
            if eqn.primitive.name == "sharding_constraint"
        ]
        for function in (ours, by_hand)
    ]
    assert layouts[0] == layouts[1]
    assert layouts[0][0][0] == "data"
    np.testing.assert_array_equal(ours(x), by_hand(x))


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from equations(inner.jaxpr)


def is_jaxpr(x):
    return hasattr(x, "jaxpr") and hasattr(x.jaxpr, "eqns")


# Inside of what users write around it


@pytest.mark.slow
def test_lanes_of_lanes(lane_key):
    keys = jax.random.split(lane_key, (2, LANES))

    @eqx.filter_vmap
    def ours(keys):
        return chorax.vmap_call_all_fns(fresh(), "make", axis_size=LANES, key=keys)[0]

    @eqx.filter_vmap
    @eqx.filter_vmap
    def by_hand(key):
        return one_lane(fresh(), "make", key)

    def states(net):
        return [(cell.h, cell.n) for cell in net.cells], net.seen

    oracle.assert_same(states(ours(keys)), states(by_hand(keys)), exact=False)


def test_time_and_lanes_in_scans_and_in_loops(lane_key):
    net, axes = made()
    xs = jnp.sin(jnp.arange(6.0 * LANES)).reshape(6, LANES)
    is_state = filters.to_filter_spec(net, filters.Not(filters.PathContains("w")))
    states, shared = eqx.partition(net, is_state)

    def step(states, x):
        net, _ = chorax.vmap_call_all_fns(
            eqx.combine(states, shared),
            "step",
            x,
            axis_size=LANES,
            in_axes=axes,
            args_in_axes=0,
        )
        return eqx.filter(net, is_state), net.seen

    _, seen = jax.lax.scan(step, states, xs)
    for lane, own in enumerate(lanes.unstack(net, axes)):
        one = own
        for t, row in enumerate(xs):
            one = one_lane(one, "step", None, (row[lane],))
            np.testing.assert_allclose(seen[t, lane], one.seen, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", quick(["reverse", "forward"], ["reverse"]))
def test_derivatives_are_those_by_hand(mode):
    net, axes = made()
    is_weight = filters.to_filter_spec(net, filters.PathContains("w"))
    weights, rest = eqx.partition(net, is_weight)

    def loss(function):
        def run(weights):
            net = eqx.combine(weights, rest)
            return jnp.sum(jnp.cos(function(net).seen))

        return run

    def ours(net):
        case = CASES["an argument a lane"]
        return call(case, net, axes, None)[0]

    def by_hand(net):
        return call_by_hand(CASES["an argument a lane"], net, axes, None)[1]

    def derivative(function):
        if mode == "reverse":
            return eqx.filter_grad(loss(function))(weights)
        return eqx.filter_jvp(loss(function), (weights,), (weights,))

    oracle.assert_same(derivative(ours), derivative(by_hand), exact=False)


# Forward passes of ensembles


def _gru(cell, xs):
    def step(h, x):
        return cell(x, h), None

    return jax.lax.scan(step, jnp.zeros(cell.hidden_size), xs)[0]


def _vector(n):
    return jnp.linspace(-1.0, 1.0, n)


MODELS: dict[str, tuple[Any, Any, Any]] = {
    "MLP": (
        lambda key: eqx.nn.MLP(3, 2, 4, 1, key=key),
        lambda model, x: model(x),
        _vector(3),
    ),
    "GRU": (
        lambda key: eqx.nn.GRUCell(2, 3, key=key),
        _gru,
        _vector(8).reshape(4, 2),
    ),
    "layers with a function between": (
        lambda key: eqx.nn.Sequential(
            [
                eqx.nn.Linear(3, 4, key=key),
                eqx.nn.LayerNorm(4),
                eqx.nn.Lambda(jax.nn.gelu),
                eqx.nn.Linear(4, 1, key=key),
            ]
        ),
        lambda model, x: model(x),
        _vector(3),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_ensemble_of_five_answers_as_by_hand_and_one_by_one(name, lane_key):
    make, run, x = MODELS[name]
    model = make(lane_key)
    batched, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, axis_size=5, key=lane_key
    )
    answers = Ensemble(batched, delta).vmap(run)(x)
    by_hand = eqx.filter_vmap(run, in_axes=(delta.in_axes, None))(batched, x)
    oracle.assert_same(answers, by_hand, exact=False)
    one_by_one = [run(member, x) for member in lanes.unstack(batched, delta)]
    np.testing.assert_allclose(answers, jnp.stack(one_by_one), rtol=1e-5, atol=1e-6)
    rows = np.asarray(answers).reshape(5, -1)
    assert len(np.unique(rows, axis=0)) == 5
    # A new member is none of the old model's.
    assert not np.allclose(rows, np.asarray(run(model, x)).reshape(1, -1))
