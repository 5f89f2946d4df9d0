"""The same call again, and calls on many nodes: how they run must not show."""

import gc
import itertools
import warnings
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import counts
import oracle
from chorax import call_all_fns, replace, vmap_call_all_fns
from models import Add, Draw
from rows import quick


class Toss(eqx.Module):
    """Draws what no compiler rounds: of functions like those of a normal draw some
    versions of XLA compute an array's last few elements otherwise than the rest."""

    x: Any = None

    def step(self, *, key):
        return replace(self, x=jax.random.uniform(key, (3,)))


class Read(eqx.Module):
    """Reads an array of its own, and draws nothing."""

    w: jax.Array
    x: Any = None

    def step(self, *, key=None):
        return replace(self, x=self.w * 2 + 1)


class Twice(eqx.Module):
    """Its parts draw, and then it reads what they drew."""

    parts: Any
    x: Any = None

    def step(self, *, key):
        drawn = sum(part.x.sum() for part in self.parts)
        return replace(self, x=drawn + jax.random.uniform(key, ()))


@pytest.fixture
def compiled():
    """What XLA has compiled since the test began."""
    with counts.compiled() as programs:
        yield programs


# Borders: of what one program does for all nodes, of the blocks in which arrays are
# taken out of stacks, of halves.
COUNTS = [1, 16, 17, 49, 97]
MAKERS = {
    "draw": lambda i: Toss(),
    "read": lambda i: Read(jnp.arange(4.0) + i),
    "add": lambda i: Add(jnp.arange(3.0) + i, jnp.ones(3)),
    "twice": lambda i: Twice([Draw(2), Draw(2)]),
}


@pytest.mark.parametrize(
    ("count", "maker"),
    quick(
        itertools.product(COUNTS, MAKERS),
        [(1, "draw"), *((n, "read") for n in COUNTS)],
    ),
)
def test_any_number_of_nodes(maker, count, lane_key):
    net = [MAKERS[maker](i) for i in range(count)]
    keys = jax.random.split(lane_key, 2)
    expected = oracle.vmap_call(net, "step", keys)
    for given in (keys, lane_key, keys):
        model, _ = vmap_call_all_fns(net, "step", axis_size=2, key=given)
        oracle.assert_same(model, expected, exact=maker in ("draw", "read"))
    one, _ = call_all_fns(net, "step", key=lane_key)
    alone = oracle.call(net, "step", key=lane_key)
    oracle.assert_same(one, alone, exact=maker in ("draw", "read"))


@pytest.mark.parametrize(
    ("count", "maker"),
    quick(
        itertools.product([2, 3, 17], MAKERS),
        [(2, "twice"), (3, "draw"), (17, "add"), (17, "read")],
    ),
)
def test_any_number_of_nodes_in_jit(maker, count, lane_key):
    net = [MAKERS[maker](i) for i in range(count)]
    keys = jax.random.split(lane_key, 2)
    expected = oracle.vmap_call(net, "step", keys)

    @eqx.filter_jit
    def run(net, key):
        return vmap_call_all_fns(net, "step", axis_size=2, key=key)[0]

    oracle.assert_same(run(net, lane_key), expected, exact=maker in ("draw", "read"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 40_000])
def test_big_arrays(size, lane_key):
    """Beyond some bytes nodes run one by one; nobody can tell."""
    net = [Add(jnp.arange(float(size)) + i, jnp.ones(size)) for i in range(3)]
    net += [Draw(size), Draw(size)]
    keys = jax.random.split(lane_key, 2)
    expected = oracle.vmap_call(net, "step", keys)
    for jit in (lambda f: f, eqx.filter_jit):
        run = jit(
            lambda net: vmap_call_all_fns(net, "step", axis_size=2, key=lane_key)[0]
        )
        oracle.assert_same(run(net), expected, exact=False)


@pytest.mark.slow
def test_lanes_in_any_number(lane_key):
    net = [Toss() for _ in range(20)]
    for lanes in (1, 5_000):
        model, _ = vmap_call_all_fns(net, "step", axis_size=lanes, key=lane_key)
        last = jax.random.split(lane_key, lanes)[-1]
        expected: Any = oracle.call(net, "step", key=last)
        for node, one in zip(model, expected, strict=True):
            oracle.assert_same(node.x[-1], one.x)


def test_classes_that_compute_the_same():
    """Their programs are one, each node's leaves and lane axes are its own."""

    class First(eqx.Module):
        a: jax.Array
        n: int = 0

        def step(self):
            return replace(self, a=self.a * 2 - 1, n=self.n + 1)

    class Second(eqx.Module):
        other: str
        b: jax.Array

        def step(self):
            return replace(self, b=self.b * 2 - 1)

    values = jnp.arange(6.0).reshape(2, 3)
    net = [First(values), Second("x", values.T), First(values + 1, 5)]
    axes = [First(0, None), Second(None, 1), First(0, None)]  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        model, delta = vmap_call_all_fns(net, "step", axis_size=2, in_axes=axes)
        assert model[0].a.tolist() == (values * 2 - 1).tolist()
        assert model[1].b.tolist() == (values * 2 - 1).tolist()
        assert model[2].a.tolist() == (values * 2 + 1).tolist()
        assert [model[0].n, model[1].other, model[2].n] == [1, "x", 6]
        assert delta.paths == ("0.a", "0.n", "1.b", "2.a", "2.n")


def test_numbers_that_methods_close_over_are_told_apart():
    """Programs are shared only by what computes the same, to the last constant."""

    def scale(by):
        class Node(eqx.Module):
            x: jax.Array

            def step(self):
                return replace(self, x=self.x * by + by)

        return Node(jnp.ones(2))

    net = [scale(2.0), scale(3.0), scale(-0.0), scale(0.0)]
    for _ in range(2):
        model, _ = call_all_fns(net, "step")
        found = [node.x.tolist() for node in model]
        assert found == [[4.0] * 2, [6.0] * 2, [0.0] * 2, [0.0] * 2]
        signs = [np.signbit(node.x).tolist() for node in model[2:]]
        assert signs == [[True, True], [False, False]]


def test_precision_of_a_computation_is_part_of_it():
    def product(precision):
        class Node(eqx.Module):
            x: jax.Array

            def step(self):
                return replace(self, x=jnp.dot(self.x, self.x, precision=precision))

        return Node(jnp.eye(2))

    net = [product("highest"), product(None)]
    text = str(
        jax.make_jaxpr(lambda xs: [n.x for n in call_all_fns(net, "step")[0]])(0)
    )
    assert "HIGHEST" in text
    assert text.count("dot_general") == 2


@pytest.mark.parametrize(
    ("one", "two"), [(1, True), (1.0, 1), (0.0, -0.0), ("a", None)]
)
def test_what_is_equal_and_not_the_same(one, two):
    class Static(eqx.Module):
        tau: Any = eqx.field(static=True)
        x: Any = None

        def step(self):
            return replace(self, x=jnp.zeros(2), tau=repr(self.tau))

    class Leaf(eqx.Module):
        tau: Any
        x: Any = None

        def step(self):
            return replace(self, x=jnp.zeros(2), tau=repr(self.tau))

    for value in (one, two, one, two):
        for cls in (Static, Leaf):
            model, _ = call_all_fns([cls(value)], "step")
            assert model[0].tau == repr(value)


def test_keys_of_dictionaries_that_are_equal():
    paths = []

    class Node(eqx.Module):
        x: Any = None

        def step(self):
            return replace(self, x=jnp.zeros(2))

    for name in (1, True, 1):
        _, delta = call_all_fns({name: Node()}, "step")
        paths += delta.paths
    assert paths == ["1.x", "True.x", "1.x"]


def test_filters_of_nodes_are_asked_each_time(key):
    """They may look at values."""

    def is_positive(_, node):
        return bool((node.w > 0).all())

    for w, paths in [(1.0, ("1.x",)), (0.0, ("0.x", "1.x"))] * 2:
        net = [Add(jnp.ones(2), jnp.full(2, w)), Add(jnp.ones(2), jnp.zeros(2))]
        _, delta = call_all_fns(net, "step", key=key, node_to_exclude=is_positive)
        assert delta.paths == paths


def test_filters_of_leaves(key):
    net = [Read(jnp.ones(2)), Read(jnp.ones(2))]

    def first(path, _):
        return path[0] == 0

    def second(path, _):
        return path[0] == 1

    for keeps, shapes in [(first, [(2,), (3, 2)]), (second, [(3, 2), (2,)])] * 2:
        model, _ = vmap_call_all_fns(net, "step", axis_size=3, state_to_exclude=keeps)
        assert [node.x.shape for node in model] == shapes


def test_filters_are_not_kept_alive():
    def make():
        def keeps(path, _):
            return path == ()

        vmap_call_all_fns(
            Read(jnp.ones(2)), "step", axis_size=2, state_to_exclude=keeps
        )
        return weakref.ref(keeps)

    ref = make()
    gc.collect()
    assert ref() is None


def test_functions_among_leaves_are_not_kept_alive():
    class Node(eqx.Module):
        act: Any
        x: Any = None

        def step(self):
            return replace(self, x=self.act(jnp.zeros(2)))

    def make(value):
        node = Node(lambda x: x + value)
        model, _ = call_all_fns([node], "step")
        assert model[0].x.tolist() == [value, value]
        return weakref.ref(node.act)

    refs = [make(1.0), make(2.0)]
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_warnings_come_again(key):
    class Bare(eqx.Module):
        x: int = 0

    class Same(eqx.Module):
        x: int = 0

        def step(self):
            return self

    run: Any = {"fn_if_not_exist": "warn"}
    for _ in range(2):
        with pytest.warns(UserWarning, match="Bare at `1` has no method `step`"):
            call_all_fns([Draw(2), Bare()], "step", key=key, **run)
        with pytest.warns(UserWarning, match="wrote nothing at all"):
            call_all_fns(Same(), "step")
        node = Draw(2)
        with pytest.warns(
            UserWarning, match="The same object stands at `0` and at `1`"
        ):
            call_all_fns([node, node], "step", key=key)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call_all_fns([Draw(2), Draw(2)], "step", key=key)


def test_bad_use_is_found_again():
    net = [Read(jnp.ones(3))]
    axes = [Read(0, None)]  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"`axis_size` = 2 long, but it has 3"):
            vmap_call_all_fns(net, "step", axis_size=2, in_axes=axes)
        vmap_call_all_fns(net, "step", axis_size=3, in_axes=axes)


@pytest.mark.slow
def test_legacy_and_typed_keys_take_turns(legacy_key):
    key = jax.random.key(0)
    net = [Draw(2) for _ in range(20)]
    for _ in range(2):
        typed, _ = vmap_call_all_fns(net, "step", axis_size=3, key=key)
        other, _ = vmap_call_all_fns(net, "step", axis_size=3, key=legacy_key)
        many, _ = vmap_call_all_fns(
            net, "step", axis_size=3, key=jax.random.split(legacy_key, 3)
        )
        oracle.assert_same(typed, other)
        oracle.assert_same(typed, many)


@pytest.mark.parametrize("jit", [lambda f: f, eqx.filter_jit])
@pytest.mark.parametrize("count", quick([2, 60], [2]))
def test_keys_that_draw_otherwise_in_a_batch(count, jit):
    """A batch of `rbg` keys draws by the first of them, so nodes keep to themselves."""
    rbg = jax.random.key(0, impl="rbg")
    run = jit(lambda net: vmap_call_all_fns(net, "step", axis_size=2, key=rbg)[0])
    many = run([Draw(3) for _ in range(count)])
    alone = run([None] * (count - 1) + [Draw(3)])
    oracle.assert_same(many[-1], alone[-1])


def test_keywords_take_turns(key):
    net = [Add(jnp.zeros((2, 3)), jnp.ones(3)) for _ in range(2)]
    axes = [Add(0, None) for _ in range(2)]  # pyright: ignore[reportArgumentType]
    run: Any = {"axis_size": 2, "in_axes": axes, "key": key}
    for _ in range(2):
        whole, delta = vmap_call_all_fns(net, "step", **run)
        kept, _ = vmap_call_all_fns(net, "step", where=jnp.array([True, False]), **run)
        _, tagged = vmap_call_all_fns(net, "step", state_tag="s", **run)
        assert kept[0].x[0].tolist() == whole[0].x[0].tolist()
        assert kept[0].x[1].tolist() == [0.0] * 3
        assert delta.tags["0.x"] == frozenset()
        assert tagged.tags["0.x"] == {"s"}


def draws_in(jaxpr, times=1):
    """How often a program draws, in all that it calls, and how many words."""
    rows = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "random_bits":
            rows.append(times * equation.outvars[0].aval.size)
        often = times * equation.params.get("length", 1)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            rows += draws_in(inner, often) if hasattr(inner, "eqns") else []
    return rows


@pytest.mark.usefixtures("needs_jit")
def test_in_jit_small_nodes_are_computed_together_and_big_ones_are_not(lane_key):
    def draws(count, size):
        net = [Draw(size) for _ in range(count)]

        def run(key):
            model, _ = vmap_call_all_fns(net, "step", axis_size=2, key=key)
            return [node.x for node in model]

        closed = jax.make_jaxpr(run)(lane_key)
        assert ("scan" in str(closed)) == (count > 1 and size < 300_000)
        return draws_in(closed.jaxpr)

    assert draws(1, 3) == [2 * 3]
    for count in (20, 60):
        assert draws(count, 3) == [2 * count * 3]
        assert draws(count, 60_000) == [2 * count * 60_000]
    # Together, what is beyond 1 MiB a node would be copied once more.
    assert draws(20, 300_000) == [2 * 300_000] * 20


class Reads(eqx.Module):
    below: Any
    x: Any = None

    def step(self, *, key=None):
        return replace(self, x=self.below.x + 1)


@pytest.mark.parametrize("size", [3, 100_000])
def test_parents_of_small_nodes_and_of_big_ones(size, lane_key):
    net = [Reads(Add(jnp.zeros(size) + i, jnp.ones(size))) for i in range(3)]
    keys = jax.random.split(lane_key, 2)
    expected = oracle.vmap_call(net, "step", keys)
    for jit in (lambda f: f, eqx.filter_jit):
        run = jit(
            lambda net: vmap_call_all_fns(net, "step", axis_size=2, key=lane_key)[0]
        )
        oracle.assert_same(run(net), expected, exact=False)


@pytest.mark.slow
@pytest.mark.parametrize("maker", ["draw", "read", "add"])
def test_programs_do_not_grow_with_nodes(maker, compiled, key):
    """Nor do those of few nodes outnumber those of many."""

    def programs(count):
        jax.clear_caches()
        net = [MAKERS[maker](i) for i in range(count)]
        before = len(compiled)
        vmap_call_all_fns(net, "step", axis_size=4, key=key)
        return len(compiled) - before

    few, many, more = (programs(count) for count in (3, 60, 240))
    assert many == more
    assert 0 < many <= few + 3


@pytest.mark.slow
@pytest.mark.usefixtures("needs_jit")
def test_many_kinds_of_one_node_share_programs(compiled, key):
    def programs(count):
        jax.clear_caches()
        net = [Read(jnp.arange(float(size))) for size in range(1, count + 1)]
        before = len(compiled)
        vmap_call_all_fns(net, "step", axis_size=4, key=key)
        return len(compiled) - before

    one = programs(1)
    # Up to 16 steps in one program.
    assert programs(12) == programs(16) == one
    assert programs(30) == one + 1


@pytest.mark.slow
def test_kinds_that_compute_the_same_are_compiled_once(compiled, key):
    def programs(count):
        jax.clear_caches()
        net: Any = [type(f"Toss{i}", (Toss,), {})() for i in range(count)]
        before = len(compiled)
        vmap_call_all_fns(net, "step", axis_size=3, key=key)
        return len(compiled) - before

    assert programs(60) == programs(120)


@pytest.mark.slow
def test_legacy_keys_of_many_nodes(legacy_lane_key):
    net = [Draw(3) for _ in range(20)]
    batched, _ = vmap_call_all_fns(net, "step", axis_size=3, key=legacy_lane_key)
    expected = oracle.vmap_call(net, "step", jax.random.split(legacy_lane_key, 3))
    oracle.assert_same(batched, expected, exact=False)


def test_one_key_and_values_that_are_no_arrays(lane_key):
    class Node(eqx.Module):
        x: Any = None
        name: Any = "before"

        def step(self, *, key):
            return replace(self, x=jax.random.uniform(key, (2,)), name="after")

    keys = jax.random.split(lane_key, 3)
    batched, _ = vmap_call_all_fns([Node()], "step", axis_size=3, key=keys)
    oracle.assert_same(batched, oracle.vmap_call([Node()], "step", keys))


def test_untouched_leaves_are_the_same_however_many():
    net = [Add(jnp.zeros(1), jnp.ones(1) * i) for i in range(300)]
    batched, delta = vmap_call_all_fns(
        net,
        lambda node: replace(node, x=node.x + 1),
        axis_size=2,
    )
    assert len(delta.paths) == 300
    assert all(x.w is y.w for x, y in zip(batched, net, strict=True))
    assert set(delta.filter_spec) == {Add(True, False)}  # pyright: ignore[reportArgumentType]
