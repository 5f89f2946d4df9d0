"""What makes two calls the same, and what does not: two that differ get what each of
them would have got alone."""

import dataclasses
import functools
from types import FunctionType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest
from jax.experimental.compute_on import compute_on

import oracle
from chorax import call_all_fns, call_order, lanes, replace, vmap_call_all_fns
from chorax.filters import to_predicate, WithTag


pytestmark = pytest.mark.usefixtures("needs_jit")


class Toss(eqx.Module):
    x: Any = None

    def step(self, *, key):
        return replace(self, x=jax.random.bits(key, (4,)))


class Other(eqx.Module):
    n: int
    x: Any = None

    def step(self, *, key):
        return replace(self, x=jax.random.bits(key, (4,)))


def test_how_threefry_is_partitioned():
    """It decides what is drawn, also where classes share a program."""
    key = jax.random.key(0, impl="threefry2x32")
    found = []
    for node, is_on in [(Toss(), True), (Other(3), False), (Toss(), False)]:
        with jax.threefry_partitionable(is_on):
            model, _ = call_all_fns([node], "step", key=key)
            expected = oracle.call([node], "step", key=key)
        oracle.assert_same(model, expected)
        found.append(model[0].x.tolist())
    assert found[0] != found[1] == found[2]


def test_where_an_equation_is_computed():
    class Plain(eqx.Module):
        x: jax.Array

        def step(self):
            return replace(self, x=self.x * 3)

    class Hosted(eqx.Module):
        x: jax.Array

        def step(self):
            with compute_on("device_host"):
                return replace(self, x=self.x * 3)

    def lowered(*nodes):
        def run(nodes):
            return call_all_fns(nodes, "step")[0]

        return jax.jit(run).lower(list(nodes)).as_text()

    assert "_xla_compute_type" not in lowered(Plain(jnp.ones(2)))
    text = lowered(Plain(jnp.ones(2)), Hosted(jnp.ones(2)))
    assert text.count('_xla_compute_type = "host"') >= 1
    both = lowered(Hosted(jnp.ones(2)), Plain(jnp.ones(2)))
    assert "_xla_compute_type" in both
    plain = [row for row in both.splitlines() if "stablehlo.multiply" in row]
    assert any("_xla_compute_type" not in row for row in plain)


def by_default(self, by=1):
    return replace(self, x=by)


def by_keyword(self, *, by=1):
    return replace(self, x=by)


def by_closure(by):
    def step(self):
        return replace(self, x=by)

    return step


def fresh(function):
    """A function of its own that does the same."""
    copy = FunctionType(function.__code__, globals(), function.__name__)
    copy.__defaults__ = function.__defaults__
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def change_code(function):
    function.__code__ = (lambda self: replace(self, x="code")).__code__


def change_defaults(function):
    function.__defaults__ = ("defaults",)


def change_keywords(function):
    function.__kwdefaults__ = {"by": "keyword"}


def change_closure(function):
    function.__closure__[0].cell_contents = "closure"


# A function, and what replaces a part of it, as editors and notebooks do.
CHANGES = {
    "code": (lambda: fresh(by_default), change_code),
    "defaults": (lambda: fresh(by_default), change_defaults),
    "defaults of keywords": (lambda: fresh(by_keyword), change_keywords),
    "closure": (lambda: by_closure(1), change_closure),
}


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def node_with(step, base: type[eqx.Module] = eqx.Module) -> Any:
    class Node(base):
        x: Any = None

    Node.step = step  # pyright: ignore[reportAttributeAccessIssue]
    return Node()


# How a call comes upon a function: a node and what is called on it.
WAYS = {
    "method": lambda f: (node_with(f), "step"),
    "inherited": lambda f: (node_with(None, type(node_with(f))), "step"),
    "behind a wrapper": lambda f: (node_with(wrapped(f)), "step"),
    "partial method": lambda f: (node_with(functools.partialmethod(f)), "step"),
    "function": lambda f: (node_with(None), f),
    "partial": lambda f: (node_with(None), functools.partial(f)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", WAYS)
def test_methods_that_are_replaced_in_place(change, way):
    make, alter = CHANGES[change]
    function = make()
    node, name = WAYS[way](function)
    if way == "inherited":
        del type(node).step

    def outcome():
        return call_all_fns([node], name)[0][0].x

    assert [outcome(), outcome()] == [1, 1]
    alter(function)
    expected = function(node).x
    assert expected != 1
    assert [outcome(), outcome()] == [expected, expected]


def test_a_function_in_a_field_that_is_replaced_in_place():
    class Node(eqx.Module):
        step: Any
        x: Any = None

    def step(by=1):
        return Node(step, by)

    assert call_all_fns(Node(step), "step")[0].x == 1
    step.__defaults__ = (2,)
    assert call_all_fns(Node(step), "step")[0].x == 2


def test_whether_it_takes_a_key_is_asked_of_the_code_of_now(key):
    node = node_with(fresh(by_default))
    call_all_fns(node, "step", key=key)
    type(node).step.__code__ = (lambda self, *, key: replace(self, x="drawn")).__code__
    assert call_all_fns(node, "step", key=key)[0].x == "drawn"


def test_a_mark_of_order_that_comes_later():
    class Parent(eqx.Module):
        part: Any
        x: Any = None

        def step(self):
            return replace(self, x=self.part.x)

    part = node_with(fresh(by_default))
    assert call_all_fns(Parent(part), "step")[0].x == 1
    call_order(1)(type(part).step)
    assert call_all_fns(Parent(part), "step")[0].x is None


def test_rules_that_come_later():
    class Node(eqx.Module):
        n: Any
        x: Any = None

        @functools.singledispatchmethod
        def rule(self, kind):
            return replace(self, x="any")

        def step(self):
            return self.rule(self.n)

    @functools.singledispatch
    def draw(node):
        return replace(node, x="no rule")

    class Marked(Node):
        @functools.singledispatchmethod
        def step(self, kind):
            return replace(self, x="any")

    def called(node, *given):
        return call_all_fns(node, *given)[0].x

    partial = functools.partial(draw)
    for _ in range(2):
        assert called(Marked(1), "step", 1) == "any"
        assert called(Node(1), draw) == called(Node(1), partial) == "no rule"
    vars(Marked)["step"].register(int, lambda self, kind: replace(self, x="int"))
    draw.register(Node, lambda node: replace(node, x="rule"))
    for _ in range(2):
        assert called(Marked(1), "step", 1) == "int"
        assert called(Node(1), draw) == called(Node(1), partial) == "rule"


def test_what_a_list_in_a_closure_holds_is_not_looked_at():
    seen: list[int] = []

    def step(self):
        seen.append(len(seen))
        return replace(self, x=jnp.zeros(2))

    node = node_with(step)
    for _ in range(3):
        call_all_fns([node], "step")
    assert seen == [0]


def test_filters_of_leaves_are_asked_in_every_call():
    """They may read what has changed since."""

    class Node(eqx.Module):
        x: Any = None
        y: Any = None

        def step(self):
            return replace(self, x=jnp.zeros(2), y=jnp.zeros(3))

    names = {"x"}

    class Chosen:
        name = "y"

        def keeps(self, path, x):
            return path[-1] == self.name

    chosen = Chosen()

    def axes(keeps):
        found = vmap_call_all_fns(Node(), "step", axis_size=4, state_to_exclude=keeps)
        return found[1].in_axes.x, found[1].in_axes.y

    for keeps in (
        lambda path, x: path[-1] in names,
        [lambda path, x: path[-1] in names],
        ~~to_predicate(lambda path, x: path[-1] in names),
    ):
        names.clear()
        for name, expected in [("x", (None, 0)), ("y", (0, None)), ("x", (None, 0))]:
            names.add(name)
            assert axes(keeps) == expected
            names.remove(name)
        assert axes(keeps) == (0, 0)
    assert axes(chosen.keeps) == (0, None)
    chosen.name = "x"
    assert axes(chosen.keeps) == (None, 0)


def test_tags_of_an_earlier_call_decide_too():
    class Node(eqx.Module):
        x: Any = None

        def step(self):
            return replace(self, x=jnp.zeros(2))

    for tag, shape in [("still", (2,)), ("moving", (4, 2)), ("still", (2,))]:
        net, delta = vmap_call_all_fns(Node(), "step", axis_size=4, state_tag=tag)
        made, _ = vmap_call_all_fns(
            net, "step", axis_size=4, in_axes=delta, state_to_exclude=WithTag("still")
        )
        assert made.x.shape == shape


def test_how_many_lanes_a_named_axis_has():
    class Node(eqx.Module):
        x: Any = None

        def step(self):
            return replace(self, x=jnp.full(2, jax.lax.psum(1, "lanes")))

    for size in (2, 3, 2):
        run: Any = {"axis_size": size, "axis_name": "lanes"}
        model, _ = vmap_call_all_fns(Node(), "step", **run)
        assert model.x.tolist() == [[size] * 2] * size


def test_where_the_lanes_of_an_ensemble_are():
    """Its nodes are alike but for that."""

    class Node(eqx.Module):
        w: jax.Array
        x: Any = None

        def step(self):
            return replace(self, x=jnp.cumsum(self.w))

    w = jnp.arange(9.0).reshape(3, 3)
    for axes in ((0, 1), (1, 0)):
        net = [lanes.Ensemble(Node(w), Node(axis, None)) for axis in axes]  # pyright: ignore[reportArgumentType]
        made, _ = call_all_fns(net, "step")
        for axis, ensemble in zip(axes, made, strict=True):
            rows = jnp.moveaxis(w, axis, 0)
            found = [ensemble[i].x.tolist() for i in range(3)]
            assert found == [jnp.cumsum(row).tolist() for row in rows]


class Bag(NamedTuple):
    a: Any
    b: Any


@jtu.register_pytree_with_keys_class
class Registered:
    def __init__(self, rows: dict[Any, Any]) -> None:
        self.rows = rows

    def tree_flatten_with_keys(self):
        pairs = [(jtu.DictKey(name), x) for name, x in self.rows.items()]
        return pairs, tuple(self.rows)

    @classmethod
    def tree_unflatten(cls, keys, values):
        return cls(dict(zip(keys, values, strict=True)))


class Hashed(dict[str, Any]):
    def __hash__(self):
        return hash(tuple(self))


@dataclasses.dataclass(frozen=True)
class Setting:
    value: Any


class Inner(eqx.Module):
    value: Any = eqx.field(static=True)


# Pairs of containers that hold numbers which Python takes to be equal.
HELD = {
    "itself": lambda x: x,
    "tuple": lambda x: (x, "a"),
    "nested": lambda x: ((), (x,)),
    "named tuple": lambda x: Bag("a", x),
    "frozen set": lambda x: frozenset({x}),
    "mapping": lambda x: Hashed(a=x),
    "dataclass": Setting,
    "dataclass in a tuple": lambda x: (Setting((x,)),),
    "module": Inner,
    "module in a dataclass": lambda x: Setting(Inner(x)),
}
PAIRS = [(1, True), (1, 1.0), (0.0, -0.0), (1.0, 1 + 0j)]


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_static_values(held, one, two):
    class Static(eqx.Module):
        tau: Any = eqx.field(static=True)
        x: Any = None

        def step(self):
            return replace(self, x=repr(self.tau))

    for value in (one, two, one):
        tau = HELD[held](value)
        for node in (Static(tau), {"a": [Static(tau)]}):
            model, _ = call_all_fns(node, "step")
            found = model if isinstance(model, Static) else model["a"][0]
            assert found.x == repr(tau)
            assert repr(found.tau) == repr(tau)


class Named(eqx.Module):
    x: Any = None

    def step(self, *, key=None):
        drawn = jnp.zeros(2) if key is None else jax.random.bits(key, (2,))
        return replace(self, x=drawn)


@pytest.mark.parametrize("kind", [dict, Registered])
@pytest.mark.parametrize(
    ("one", "two"),
    [
        ((True, 0), (False, 1)),
        ((1, 0), (True, False)),
        ((1,), (True,)),
        (((1, 2),), ((True, 2),)),
    ],
)
def test_keys_of_containers(kind, one, two, key):
    """A node's path is made of them, and its draws of the path."""
    for names in (one, two, one):
        rows = {name: Named() for name in names}
        [model], delta = call_all_fns([kind(rows)], "step", key=key)
        expected: Any = oracle.call([rows], "step", key=key)
        assert set(delta.paths) == {f"0.{name}.x" for name in names}
        drawn: Any = getattr(model, "rows", model)
        for name in names:
            oracle.assert_same(drawn[name], expected[0][name])
