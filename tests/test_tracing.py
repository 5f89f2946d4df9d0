"""What is traced when: once per kind, and not again for the same call."""

import dataclasses
import decimal
import functools
import gc
import re
import threading
import warnings
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import chorax
import oracle
from chorax import call_all_fns, replace, vmap_call_all_fns
from counts import compiled
from models import Draw, Late, Parent


@pytest.fixture
def runs(needs_jit):
    return []


def counting(runs):
    """A class whose method counts its runs, and that no other test has traced."""

    class Node(eqx.Module):
        v: Any
        tau: Any = 0.5
        n: Any = eqx.field(static=True, default=0)
        below: Any = None

        def step(self, *, key=None):
            runs.append(type(self.tau))
            drawn = 0 if key is None else jax.random.normal(key, (3,))
            return replace(self, v=jnp.zeros(3) + drawn)

        def read(self):
            runs.append(type(self.tau))
            return replace(self, v=self.v + 1)

    return Node


def test_once_per_kind_and_not_again(runs, key):
    Node = counting(runs)
    net = [Node(jnp.arange(3.0) + i) for i in range(400)]
    one, delta = vmap_call_all_fns(net, "step", axis_size=8, key=key)
    assert len(runs) == 1
    two, _ = vmap_call_all_fns(net, "step", axis_size=8, key=key)
    assert len(runs) == 1
    oracle.assert_same(one, two)
    # The same kind in another model, with other values, keys and lanes.
    other = jax.random.fold_in(key, 9)
    vmap_call_all_fns(net[:7], "step", axis_size=5, key=other)
    vmap_call_all_fns({"a": [Node(jnp.zeros(3))]}, "step", axis_size=2, key=key)
    assert len(runs) == 1
    # An un-batched call and a reset of the batched model are traced in lanes too.
    vmap_call_all_fns(one, "read", axis_size=8, in_axes=delta)
    assert len(runs) == 2


@pytest.mark.slow
def test_once_per_kind_inside_jit(runs, key):
    Node = counting(runs)
    net = [Node(jnp.zeros(3) + i) for i in range(20)]
    run = eqx.filter_jit(
        lambda net, key: vmap_call_all_fns(net, "step", axis_size=8, key=key)[0]
    )
    # Inside a larger program the compiler fuses in its own way.
    eagerly, _ = vmap_call_all_fns(net, "step", axis_size=8, key=key)
    oracle.assert_same(run(net, key), eagerly, exact=False)
    assert len(runs) == 1


def test_nested_nodes_of_one_kind_are_traced_once(runs, key):
    Node = counting(runs)
    net = [Node(jnp.zeros(3), below=Node(jnp.zeros(3) + i)) for i in range(5)]
    call_all_fns(net, "step", key=key)
    assert len(runs) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"tau": 0.25},
        {"tau": 1},
        {"tau": True},
        {"tau": -0.0},
        {"tau": 0.0},
        {"tau": "a"},
        {"tau": None},
        {"tau": jnp.zeros(())},
        {"tau": np.zeros(2)},
        {"tau": jnp.tanh},
        {"n": 1},
        {"n": True},
        {"n": 1.0},
        {"n": (0,)},
        {"n": (False,)},
        {"n": [0]},
        {"n": {0: 1}},
        {"n": {0: True}},
        {"n": frozenset({1})},
        {"n": frozenset({True})},
        {"n": float("nan")},
        {"n": decimal.Decimal("1.0")},
        {"n": decimal.Decimal("1.00")},
        {"v": jnp.zeros(3, jnp.int32)},
        {"v": jnp.zeros((3, 1))},
        {"v": jnp.asarray(0.0)},
        {"v": 0.0},
        {"below": []},
        {"below": {}},
        {"below": ()},
        {"below": {1: 0.0}},
        {"below": {True: 0.0}},
    ],
)
def test_what_counts_as_a_kind(runs, other):
    Node = counting(runs)
    options = {"v": jnp.ones(3), "tau": 1.0}

    def make(**fields):
        # Every array an object of its own: sharing is another matter.
        return jtu.tree_map(lambda x: x + 0 if eqx.is_array(x) else x, Node(**fields))

    first, second = make(**options), make(**{**options, **other})
    again = make(**{**options, **other})
    expected = 2
    model, _ = call_all_fns([first, second, again], "step")
    assert len(runs) == (3 if _unhashable(second) else expected)
    # The result does not show the grouping: each keeps what is its own.
    for before, after in zip((first, second, again), model, strict=True):
        assert type(after.tau) is type(before.tau)
        assert type(after.n) is type(before.n)
        assert repr(after.n) == repr(before.n)
        assert repr(after.below) == repr(before.below)


def _unhashable(node):
    try:
        hash(node.n)
    except TypeError:
        return True
    return False


@dataclasses.dataclass(frozen=True)
class Box:
    value: Any


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (1, True),
        (1, 1.0),
        (0, False),
        (0.0, -0.0),
        (0j, complex(0.0, -0.0)),
        (decimal.Decimal("0.0"), decimal.Decimal("-0.0")),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        ((0.0,), (-0.0,)),
        ((1,), (True,)),
        (frozenset({1}), frozenset({True})),
        (Box(1), Box(1.0)),
        (Box((0.0,)), Box((-0.0,))),
    ],
)
@pytest.mark.parametrize("field", ["n", "tau"])
def test_what_is_equal_and_can_be_told_apart(runs, field, one, two):
    Node = counting(runs)
    net = [Node(jnp.zeros(3), **{field: x}) for x in (one, two)]
    model, _ = call_all_fns(net, "step")
    assert len(runs) == 2
    assert [repr(getattr(node, field)) for node in model] == [repr(one), repr(two)]


def test_lane_axes_are_part_of_a_kind(runs):
    Node = counting(runs)
    net = [Node(jnp.zeros((4, 3))), Node(jnp.zeros((4, 3)) + 1)]
    axes = [Node(0, None), Node(None, None)]
    model, _ = vmap_call_all_fns(net, "read", axis_size=4, in_axes=axes)
    assert len(runs) == 2
    assert model[0].v.shape == (4, 3)
    assert model[1].v.shape == (4, 4, 3)


def test_arguments_are_part_of_what_is_remembered(runs):
    class Node(eqx.Module):
        v: Any

        def step(self, by, *, name="a"):
            runs.append((type(by), name))
            return replace(self, v=by)

    net = Node(0)
    for by in (1, 1.0, True, "1", jnp.ones(()), jnp.ones(2), jnp.zeros(2)):
        model, _ = call_all_fns(net, "step", by)
        assert np.array_equal(np.asarray(model.v), np.asarray(by))
        assert type(model.v) is type(by)
    assert len(runs) == 6
    call_all_fns(net, "step", 1, {"name": "b"})
    assert len(runs) == 7


def test_equal_floats_are_one_kind_and_stay_their_own_objects(runs):
    Node = counting(runs)
    taus = [float(str(x)) for x in (0.3, 0.3, 0.3)]
    net = [Node(jnp.zeros(3), tau) for tau in taus]
    model, delta = call_all_fns(net, "step")
    assert len(runs) == 1
    assert all(a.tau is b for a, b in zip(model, taus, strict=True))
    assert delta.paths == ("0.v", "1.v", "2.v")


def test_settings_of_jax_are_part_of_what_is_remembered(runs):
    Node = counting(runs)
    net = Node(jnp.zeros(3))
    call_all_fns(net, "step")
    with jax.numpy_dtype_promotion("standard"):
        call_all_fns(net, "step")
    assert len(runs) == 2
    call_all_fns(net, "step")
    assert len(runs) == 2


@pytest.mark.usefixtures("in_32_bits")
def test_x64_is_part_of_what_is_remembered():
    class Node(eqx.Module):
        v: Any = None

        def step(self):
            return replace(self, v=jnp.zeros(3))

    assert call_all_fns(Node(), "step")[0].v.dtype == jnp.float32
    jax.config.update("jax_enable_x64", True)
    assert call_all_fns(Node(), "step")[0].v.dtype == jnp.float64
    jax.config.update("jax_enable_x64", False)
    assert call_all_fns(Node(), "step")[0].v.dtype == jnp.float32


def test_weak_types_are_part_of_a_kind_and_stay():
    class Node(eqx.Module):
        v: Any

        def step(self):
            return replace(self, v=self.v + 1)

    strong, weak = jnp.asarray(1.0, jnp.float32), jnp.asarray(1.0)
    assert weak.weak_type
    model, _ = call_all_fns([Node(strong), Node(weak)], "step")
    assert [node.v.weak_type for node in model] == [False, True]
    model, _ = vmap_call_all_fns([Node(strong), Node(weak)], "step", axis_size=2)
    assert [node.v.weak_type for node in model] == [False, True]


def test_an_exchanged_method_is_another_kind():
    class Node(eqx.Module):
        v: Any = 0

        def step(self):
            return replace(self, v=jnp.zeros(()))

    assert call_all_fns(Node(), "step")[0].v == 0
    Node.step = lambda self: replace(self, v=jnp.ones(()))
    assert call_all_fns(Node(), "step")[0].v == 1


def test_a_rule_that_is_added_is_used(key):
    class Layer(eqx.Module):
        w: Any

    with pytest.warns(UserWarning, match="wrote nothing"):
        call_all_fns(Layer(0), chorax.reset_parameters, key=key)

    @chorax.reset_parameters.register(Layer)
    def rule(node, *, key):
        return replace(node, w=jnp.ones(()))

    model, _ = call_all_fns(Layer(0), chorax.reset_parameters, key=key)
    assert model.w == 1


def test_unhashable_parts_still_work():
    class Node(eqx.Module):
        v: Any
        table: Any = eqx.field(static=True)

        def step(self):
            return replace(self, v=jnp.asarray(self.table["a"][0]))

    class Odd:
        __hash__: Any = None

    net = [Node(0, {"a": [1]}), Node(0, {"a": [2]}), Node(Odd(), {"a": [3]})]
    for _ in range(2):
        model, _ = vmap_call_all_fns(net, "step", axis_size=2)
        assert [node.v.tolist() for node in model] == [[1, 1], [2, 2], [3, 3]]


def test_functions_are_remembered_while_they_live(runs):
    Node = counting(runs)

    def double(node):
        runs.append("double")
        return replace(node, v=node.v * 2)

    for _ in range(3):
        call_all_fns(Node(jnp.ones(3)), double)
    assert runs == ["double"]


def test_nothing_keeps_arrays_alive(key):
    class Node(eqx.Module):
        v: jax.Array

        def step(self, by, *, key):
            return replace(self, v=self.v + by + jax.random.normal(key, ()))

    def add(x, node):
        return replace(node, v=node.v + x)

    def use():
        v, by, closed, bound = (jnp.ones(5) for _ in range(4))
        vmap_call_all_fns([Node(v)], "step", by, axis_size=2, key=key)
        call_all_fns([Node(v)], lambda node: replace(node, v=node.v + closed))
        call_all_fns([Node(v)], functools.partial(add, bound))
        return [weakref.ref(x) for x in (v, by, closed, bound)]

    refs = use()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4


@pytest.mark.slow
def test_nothing_keeps_tracers_alive(key):
    outer = []

    class Node(eqx.Module):
        v: jax.Array

        def step(self):
            return replace(self, v=self.v + outer[0])

    def run(x):
        # The method closes over a value of the transformation around it.
        outer[:] = [x]
        model, _ = vmap_call_all_fns(Node(x), "step", axis_size=2)
        outer.clear()
        return model.v.sum()

    with jax.checking_leaks():
        for x in (1.0, 2.0):
            value, grad = jax.value_and_grad(run)(jnp.asarray(x))
            assert (value, grad) == (4 * x, 4.0)
            assert jax.jit(run)(jnp.asarray(x)) == 4 * x


@pytest.mark.slow
def test_disable_jit_runs_methods_plainly(key):
    seen = []

    class Node(eqx.Module):
        v: jax.Array
        w: jax.Array

        def step(self, *, key):
            seen.append(self.w)
            return replace(self, v=self.v + self.w + jax.random.uniform(key, (2,)))

    net = [Node(jnp.ones(2) + i, jnp.ones(2)) for i in range(3)]
    tree = [net, Late(Parent([Draw(2), jnp.ones(2)]))]
    for lanes in (None, 3):

        def run(lanes=lanes):
            options = {"key": key, "fn_if_not_exist": "pass"}
            if lanes is None:
                return call_all_fns(tree, "step", **options)
            return vmap_call_all_fns(tree, "step", axis_size=lanes, **options)

        model, delta = run()
        seen.clear()
        with jax.disable_jit():
            plain, plain_delta = run()
        assert len(seen) == 3
        assert not any(isinstance(x, jax.core.Tracer) for x in seen)
        oracle.assert_same(model, plain, exact=False)
        assert delta.paths == plain_delta.paths
        assert plain[0][0].w is net[0].w


def test_disable_jit_knows_the_keywords(key):
    class Node(eqx.Module):
        v: Any
        n: Any = None

        def step(self, by):
            return replace(self, v=self.v + by, n=jnp.ones(2)), self.v

        def mean(self):
            return replace(self, v=self.v - jax.lax.pmean(self.v, "i")), 0

    def run():
        one = vmap_call_all_fns(
            [Node(jnp.arange(4.0)), Node(jnp.ones(4))],
            "step",
            jnp.arange(4.0),
            axis_size=4,
            in_axes=0,
            args_in_axes=0,
            has_aux=True,
            chunk_size=2,
            state_to_exclude=lambda path, x: "n" in path,
        )
        two = vmap_call_all_fns(
            Node(jnp.arange(4.0)),
            "mean",
            axis_size=4,
            in_axes=0,
            has_aux=True,
            axis_name="i",
            where=jnp.arange(4) > 1,
        )
        return one, two

    expected = run()
    with jax.disable_jit():
        plain = run()
        with pytest.raises(ValueError, match="from lane to lane"):
            vmap_call_all_fns(
                Node(jnp.arange(4.0)),
                "step",
                1.0,
                axis_size=4,
                in_axes=0,
                has_aux=True,
                state_to_exclude=True,
            )
    for (a, da, xa), (b, db, xb) in zip(expected, plain, strict=True):
        oracle.assert_same(a, b)
        oracle.assert_same(xa, xb)
        assert da.paths == db.paths
        assert jtu.tree_leaves(da.in_axes) == jtu.tree_leaves(db.in_axes)
    assert plain[0][0][0].n.shape == (2,)


def test_disable_jit_and_gradients():
    class Node(eqx.Module):
        a: jax.Array

        def step(self):
            return replace(self, a=self.a * 2)

    def loss(x):
        return vmap_call_all_fns([Node(x)], "step", axis_size=2)[0][0].a.sum()

    with jax.disable_jit():
        assert jax.grad(loss)(jnp.ones(1)) == 4


def test_static_arrays_are_never_remembered():
    class Node(eqx.Module):
        w: jax.Array
        t: Any = eqx.field(static=True)

        def step(self):
            return replace(self, w=self.w + self.t.sum())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = [Node(jnp.ones(2, int), np.arange(i + 2)) for i in (0, 0, 1)]
    for _ in range(2):
        model, _ = call_all_fns(net[:2], "step")
        assert [node.w[0] for node in model] == [2, 2]
        assert call_all_fns(net[2], "step")[0].w[0] == 4
        assert call_all_fns({"a": net[0]}, "step")[0]["a"].w[0] == 2


def test_only_what_is_read_is_touched():
    class Node(eqx.Module):
        weights: jax.Array
        other: Any
        v: Any = None

        def step(self):
            shape = self.weights.shape
            return replace(self, v=jnp.zeros(shape[:1]))

    net = [Node(jnp.ones((50, 50)), np.ones(3)) for _ in range(3)]
    run = eqx.filter_make_jaxpr(
        lambda net: vmap_call_all_fns(net, "step", axis_size=2)[0]
    )
    jaxpr, _, _ = run(net)
    assert not any("50,50" in str(eqn) for eqn in jaxpr.jaxpr.eqns)
    model, _ = vmap_call_all_fns(net, "step", axis_size=2)
    for new, old in zip(model, net, strict=True):
        assert new.weights is old.weights
        assert new.other is old.other


@pytest.mark.usefixtures("needs_jit")
def test_a_call_whose_result_nobody_reads_costs_nothing():
    class Child(eqx.Module):
        v: jax.Array

        def step(self):
            return replace(self, v=jnp.sort(self.v))

    class Owner(eqx.Module):
        child: Child

        def step(self):
            return replace(self, child=replace(self.child, v=jnp.zeros(3)))

    run = eqx.filter_make_jaxpr(lambda net: call_all_fns(net, "step")[0])
    jaxpr, _, _ = run(Owner(Child(jnp.ones(3))))
    assert "sort" not in str(jaxpr)


def test_effects_happen_even_so(capfd):
    class Node(eqx.Module):
        v: jax.Array

        def step(self):
            jax.debug.print("v={v}", v=self.v)
            return self

    with pytest.warns(UserWarning, match="wrote nothing"):
        call_all_fns([Node(jnp.ones(())), Node(jnp.zeros(()))], "step")
    jax.effects_barrier()
    assert sorted(capfd.readouterr().out.split()) == ["v=0.0", "v=1.0"]


@pytest.mark.usefixtures("needs_jit")
def test_compiled_once_per_kind_outside_of_jit():
    class Node(eqx.Module):
        v: jax.Array

        def step(self):
            return replace(self, v=jnp.sin(self.v) * 3)

    def programs(count):
        net = [Node(jnp.ones(7) + i) for i in range(count)]
        with compiled() as found:
            vmap_call_all_fns(net, "step", axis_size=5)
        return len(found)

    few = programs(3)
    assert 0 < programs(60) <= few
    assert programs(90) == 0


@pytest.mark.usefixtures("needs_jit")
@pytest.mark.parametrize("reads", [False, True])
def test_lowering_grows_with_kinds_not_with_nodes(reads, lane_key):
    class Reads(eqx.Module):
        x: jax.Array

        def step(self, *, key):
            drawn = jax.random.normal(key, (3,))
            return replace(self, x=jnp.sin(self.x) + jnp.tanh(drawn))

    def computed(count):
        net = [Reads(jnp.ones(3) + i) if reads else Draw(3) for i in range(count)]

        def run(net, key):
            return vmap_call_all_fns(net, "step", axis_size=2, key=key)[0]

        arrays, static = eqx.partition(net, eqx.is_array)
        jitted = jax.jit(lambda arrays, key: run(eqx.combine(arrays, static), key))
        text = jitted.lower(arrays, lane_key).as_text()
        ops = ("sine", "tanh", "log", "multiply", "xor", "slice", "while")
        return {op: len(re.findall(rf"\b{op}\b", text)) for op in ops}

    assert computed(40) == computed(4)


def test_threads(key):
    class Node(eqx.Module):
        v: Any = None

        def step(self, *, key):
            return replace(self, v=jax.random.normal(key, (3,)))

    net = [Node() for _ in range(5)]
    results = []

    def run():
        results.append(vmap_call_all_fns(net, "step", axis_size=2, key=key)[0])

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        oracle.assert_same(result, results[0])


class Link(eqx.Module):
    v: jax.Array
    below: Any = None

    def step(self):
        seen = jnp.zeros(()) if self.below is None else self.below.v
        return replace(self, v=self.v + seen)


class Ring(eqx.Module):
    below: Any


def test_chains_of_nodes(key):
    chain: Any = None
    for i in range(40):
        chain = Link(jnp.ones(()) * i, chain)
    model, delta = call_all_fns(chain, "step")
    assert model.v == sum(range(40))
    assert len(delta.paths) == 40


@pytest.mark.slow
def test_deep_trees_need_no_recursion():
    tree = Link(jnp.ones(()))
    for _ in range(900):
        tree = Ring(tree)
    tree = Link(jnp.ones(()), [tree])
    run = {"fn_if_not_exist": "pass", "node_to_exclude": lambda path, _: not path}
    model, delta = vmap_call_all_fns(tree, "step", axis_size=2, **run)
    assert jtu.tree_leaves(delta.in_axes) == [0]
    assert chorax.apply_delta(tree, delta).v is tree.v
    assert len(delta.paths[0].split(".")) == 903
    repr(delta)
