"""What methods leave in nodes besides arrays: nobody shares it, and it lasts."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

from chorax import call_all_fns, replace, vmap_call_all_fns
from models import Draw


class Noted:
    def __init__(self):
        self.rows: list[Any] = [0]

    def __repr__(self):
        return f"Noted({self.rows})"


class Leaf(eqx.Module):
    """Writes what `make` makes, and returns another one as `aux`."""

    make: Any = eqx.field(static=True)
    log: Any = None
    x: Any = None

    def step(self):
        return replace(self, log=self.make(), x=jnp.zeros(2))

    def told(self):
        return self.step(), self.make()


class Static(eqx.Module):
    make: Any = eqx.field(static=True)
    log: Any = eqx.field(static=True, default=None)
    x: Any = None

    step = Leaf.step
    told = Leaf.told


# What is made, and how to change it in place.
MUTABLE: dict[str, Any] = {
    "strings": (lambda: np.array(["a", "b"]), lambda x: x.__setitem__(0, "z")),
    "objects": (
        lambda: np.array([None, "b"], dtype=object),
        lambda x: x.__setitem__(0, "z"),
    ),
    "object": (Noted, lambda x: x.rows.append(1)),
    "set": (lambda: {1}, lambda x: x.add(2)),
    "frozen set": (
        lambda: frozenset({Noted()}),
        lambda x: next(iter(x)).rows.append(1),
    ),
    "partial": (
        lambda: functools.partial(print, [1]),
        lambda f: f.args[0].append(1),
    ),
    "list": (lambda: [1], lambda x: x.append(2)),
    "dictionary": (lambda: {"a": [1]}, lambda x: x["a"].append(2)),
    "tuple": (lambda: ([1],), lambda x: x[0].append(2)),
}
# As leaves these are containers, and JAX makes them anew.
CONTAINERS = {"list", "dictionary", "tuple"}


@pytest.mark.parametrize("made", MUTABLE)
@pytest.mark.parametrize("cls", [Leaf, Static])
@pytest.mark.parametrize("jit", [False, True])
def test_no_result_shares_what_can_be_changed(made, cls, jit):
    make, change = MUTABLE[made]
    if jit and (cls is Static or made not in CONTAINERS):
        return  # No output of a `jit`.
    net = [cls(make), cls(make)]

    def run(net):
        return vmap_call_all_fns(net, "told", axis_size=3, has_aux=True)

    if jit:
        run = eqx.filter_jit(run)
    first, again = run(net), run(net)
    logs = [node.log for model, _, _ in (first, again) for node in model]
    if cls is Leaf:
        logs += [aux[name] for _, _, aux in (first, again) for name in ("0", "1")]
    expected = repr(logs[1])
    assert [repr(log) for log in logs] == [expected] * len(logs)
    if jit:
        return
    change(logs[0])
    assert repr(logs[0]) != expected
    assert [repr(log) for log in logs[1:]] == [expected] * (len(logs) - 1)


def test_what_cannot_be_changed_is_traced_once():
    seen: list[str] = []

    class Node(eqx.Module):
        act: Any = None
        name: Any = eqx.field(static=True, default="")
        x: Any = None

        def step(self):
            seen.append("traced")
            name = ("a", frozenset({1}), np.dtype("float32"), range(3))
            return replace(self, act=jax.nn.relu, name=name, x=jnp.zeros(2))

    for _ in range(2):
        call_all_fns([Node(), Node()], "step")
    assert seen == ["traced"]


@pytest.mark.parametrize("has_aux", [False, True])
def test_what_the_user_gave_is_the_very_object(has_aux):
    """What a method found, and did not make, is shared as by hand."""
    log = Noted()

    class Node(eqx.Module):
        log: Any = None

        def step(self, given):
            node = replace(self, log=given)
            return (node, given) if has_aux else node

    for _ in range(2):
        found = call_all_fns([Node(), Node()], "step", log, has_aux=has_aux)
        assert all(node.log is log for node in found[0])


class Holder(eqx.Module):
    w: Any
    f: Any = None
    static: Any = eqx.field(static=True, default=None)
    parts: Any = None

    def closure(self):
        return replace(self, f=lambda x: x + self.w)

    def default(self):
        return replace(self, f=lambda x, w=self.w: x + w)

    def partial(self):
        return replace(self, f=functools.partial(jnp.add, self.w))

    def computed(self):
        return replace(self, f=functools.partial(print, {"a": [self.w * 2]}))

    def bound(self):
        return replace(self, f=self.closure)

    def drawn(self, *, key):
        return replace(self, f=functools.partial(jnp.add, jax.random.normal(key)))

    def deep(self):
        return replace(self, parts={"a": [lambda: self.w]})

    def holds(self):
        noted = Noted()
        noted.rows = [self.w]
        return replace(self, f=noted)

    def in_static(self):
        return replace(self, static=(lambda: self.w,))

    def in_aux(self):
        return self, {"f": lambda: self.w}


PLACES = {
    "closure": "a function that holds a traced array into `f`",
    "default": "`f`",
    "partial": "a partial that holds a traced array into `f`",
    "computed": "`f`",
    "drawn": "`f`",
    "deep": "`parts.a.0`",
    "holds": "a Noted that holds a traced array into `f`",
    "in_static": "into the static field `static`",
    "in_aux": "into `aux`",
}


@pytest.mark.usefixtures("needs_jit")
@pytest.mark.parametrize("method", PLACES)
@pytest.mark.parametrize("jit", [False, True])
def test_traced_arrays_that_are_held(method, jit, key):
    def run(w):
        net = [Holder(w, f=None)]
        options: Any = {"has_aux": method == "in_aux", "key": key}
        return vmap_call_all_fns(net, method, axis_size=2, **options)

    with pytest.raises(TypeError, match=f"`{method}` of Holder at `0`") as info:
        (eqx.filter_jit(run) if jit else run)(jnp.ones(2))
    assert PLACES[method] in str(info.value)


def test_functions_of_what_is_traced_around_the_call():
    """They are of use for as long as that trace goes on."""

    class Node(eqx.Module):
        x: Any
        f: Any = None

        def step(self, given):
            return replace(self, f=given, x=self.x * 2)

    @jax.jit
    def run(x, w):
        [node], _ = call_all_fns([Node(x)], "step", lambda y: y + w)
        return node.f(node.x)

    assert run(jnp.ones(2), jnp.ones(2)).tolist() == [3.0, 3.0]
    both = jax.grad(lambda w: run(jnp.ones(2), w).sum())(jnp.ones(2))
    assert both.tolist() == [1.0, 1.0]


def test_functions_of_arrays_as_modules(key):
    """The cure that the message names."""

    class Node(eqx.Module):
        w: Any
        f: Any = None

        def step(self, *, key):
            return replace(self, f=jtu.Partial(jnp.add, self.w))

    [model], delta = vmap_call_all_fns(
        [Node(jnp.ones(2))], "step", axis_size=3, key=key
    )
    assert model.f.args[0].shape == (3, 2)
    assert delta.paths == ("0.f.0.0",)


def test_numbers_that_are_written_as_they_were():
    """Nobody can tell: so nothing was written."""

    class Node(eqx.Module):
        n: Any
        x: Any = None

        def step(self, n):
            return replace(self, n=n, x=jnp.zeros(()))

    def written(old, new):
        return call_all_fns([Node(old)], "step", kwargs={"n": new})[1].paths

    text = "".join(["o", "ld"])
    for _ in range(2):
        for old, new in [
            (1, 1),
            (2.5, float("2.5")),
            ("old", text),
            (float("nan"), float("nan")),
        ]:
            assert written(old, new) == ("0.x",)
        for old, new in [(1, 1.0), (0.0, -0.0), (True, 1), ("old", "new")]:
            assert written(old, new) == ("0.n", "0.x")


def test_draws_beside_what_is_made_anew(lane_key):
    """Nodes that are traced one by one draw as they would together."""

    class Node(Draw):
        log: Any = None

        def step(self, *, key):
            return replace(super().step(key=key), log=Noted())

    net, plain = [Node(2), Node(2)], [Draw(2), Draw(2)]
    made, _ = vmap_call_all_fns(net, "step", axis_size=3, key=lane_key)
    expected, _ = vmap_call_all_fns(plain, "step", axis_size=3, key=lane_key)
    for one, other in zip(made, expected, strict=True):
        assert one.x.tolist() == other.x.tolist()
    assert made[0].log is not made[1].log


def test_static_arrays_that_differ():
    """NumPy compares them element by element, which is no answer."""

    class Node(eqx.Module):
        table: Any = eqx.field(static=True)
        x: Any = None

        def step(self):
            return replace(self, table=self.table + 1, x=jnp.zeros(2))

        def rest(self):
            return replace(self, x=jnp.zeros(2))

    old = np.arange(3)
    with pytest.warns(UserWarning, match="static"):
        node = Node(old)
    for name, table in [("step", old + 1), ("rest", old)]:
        for _ in range(2):
            model, delta = vmap_call_all_fns([node], name, axis_size=2)
            assert model[0].table.tolist() == table.tolist()
            assert delta.paths == ("0.x",)
