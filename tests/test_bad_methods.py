"""Methods and modules that do what they should not: they mutate, leak, recurse, stop,
and are built oddly. The target stays as it was, and the next call works."""

import abc
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import oracle
from chorax import call_all_fns, replace, vmap_call_all_fns
from rows import quick
from test_misuse import identities, own_notes


def ones(*shape):
    return jnp.ones(shape, jnp.float32)


def under_jit(way, *args):
    # A function of its own: JAX keeps the trace of one whose program fails.
    anew: Any = eqx.filter_jit(lambda *xs: way(*xs))
    return anew(*args)


def eager(target, name, *args):
    return call_all_fns(target, name, args, fn_if_not_exist="pass")


def jitted(target, name, *args):
    return under_jit(eager, target, name, *args)


def plain(target, name, *args):
    with jax.disable_jit():
        return eager(target, name, *args)


def batched(target, name, *args):
    options: Any = {"axis_size": 2, "fn_if_not_exist": "pass"}
    return vmap_call_all_fns(target, name, args, **options)


def batched_jitted(target, name, *args):
    return under_jit(batched, target, name, *args)


def batched_plain(target, name, *args):
    with jax.disable_jit():
        return batched(target, name, *args)


WAYS = [eager, jitted, plain, batched, batched_jitted, batched_plain]
in_every_way = pytest.mark.parametrize(
    "way",
    quick(WAYS, [eager, batched_jitted, batched_plain]),
    ids=lambda way: way.__name__,
)


def unknown(cls):
    """A class of its own, so that no call is remembered from another test."""
    return type(cls.__name__, (cls,), {})


class Mutable(eqx.Module):
    """Its methods write into it, as one writes PyTorch."""

    x: Any
    child: Any = None
    n: int = eqx.field(static=True, default=0)

    def set_leaf(self):
        object.__setattr__(self, "x", self.x + 1)
        return self

    def set_static(self):
        object.__setattr__(self, "n", self.n + 1)
        return self

    def set_child(self):
        object.__setattr__(self.child["a"][0], "x", self.x * 0)
        return self

    def add_child(self):
        self.child["a"].append(self.x * 0)
        return self

    def drop_child(self):
        del self.child["a"]
        return self

    def delete(self):
        object.__delattr__(self, "child")
        return replace(self, child=(self.x,))

    def set_other(self):
        object.__setattr__(self, "other", self.x)
        return type(self)(self.x + 1, self.child)

    def set_and_return_another(self):
        object.__setattr__(self, "child", None)
        return type(self)(self.x + 1)

    def set_and_raise(self):
        object.__setattr__(self, "x", None)
        self.child["a"].clear()
        raise ZeroDivisionError("inside")

    def set_and_return_nothing(self):
        object.__setattr__(self, "x", self.x + 1)

    def set_item(self):
        self.x[0] = 5.0
        return replace(self, n=1)

    def add_in_place(self):
        x = self.x
        x += 1
        return replace(self, x=x)

    def take(self, rows, table):
        rows.append(3)
        table["b"] = rows.pop(0)
        return replace(self, x=self.x + table["b"])


class Leaf(eqx.Module):
    x: Any


def mutable(x: Any):
    return [Mutable(x, {"a": [Leaf(x + 1)]})]


# What each of them comes to.
SETS = {
    "set_leaf": lambda m: replace(m, x=m.x + 1),
    "set_static": lambda m: replace(m, n=1),
    "set_child": lambda m: replace(m, child={"a": [Leaf(m.x * 0)]}),
    "add_child": lambda m: replace(m, child={"a": [*m.child["a"], m.x * 0]}),
    "drop_child": lambda m: replace(m, child={}),
    "delete": lambda m: replace(m, child=(m.x,)),
    "set_other": lambda m: replace(m, x=m.x + 1),
    "set_and_return_another": lambda m: Mutable(m.x + 1),
    "add_in_place": lambda m: replace(m, x=m.x + 1),
}


@in_every_way
@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.parametrize("make", [ones, np.ones], ids=["jax", "numpy"])
def test_what_a_method_writes_into_itself_is_not_the_targets(way, name, make):
    target = mutable(make(3).astype(np.float32))
    before, values = identities(target), jtu.tree_map(np.array, target)
    [model], delta = way(target, name)
    assert identities(target) == before
    oracle.assert_same(jtu.tree_map(np.array, target), values)
    # In one lane, where there are any.
    axes = delta.in_axes[0]
    lane = jtu.tree_map(
        lambda x, axis: x if axis is None else x[0], model, axes, is_leaf=eqx.is_array
    )
    [expected] = [SETS[name](m) for m in mutable(ones(3))]
    oracle.assert_same(lane, jtu.tree_map(jnp.asarray, expected))


FAILURES: dict[str, tuple[type[Exception], str]] = {
    "set_and_raise": (ZeroDivisionError, "inside"),
    "set_and_return_nothing": (TypeError, "must return a Mutable, but returned `None`"),
    "set_item": (TypeError, "do not support in-place item assignment"),
}


@in_every_way
@pytest.mark.parametrize("name", sorted(FAILURES))
@pytest.mark.parametrize("make", [ones, np.ones], ids=["jax", "numpy"])
def test_a_failed_write_is_not_the_targets(way, name, make):
    kind, text = FAILURES[name]
    target = mutable(make(3).astype(np.float32))
    before, values = identities(target), jtu.tree_map(np.array, target)
    with pytest.raises(kind, match=re.escape(text)):
        way(target, name)
    assert identities(target) == before
    oracle.assert_same(jtu.tree_map(np.array, target), values)
    [model], _ = way(target, "set_leaf")
    assert float(model.x.reshape(-1)[0]) == 2.0


@in_every_way
def test_what_a_method_writes_into_arguments_is_not_the_callers(way):
    rows, table = [ones(), ones() * 2], {"a": ones()}
    [model], _ = way(mutable(ones(3)), "take", rows, table)
    assert [float(x) for x in rows] == [1.0, 2.0]
    assert list(table) == ["a"]
    assert float(model.x.reshape(-1)[0]) == 2.0


class Names(eqx.Module):
    """Holds NumPy arrays that JAX does not take."""

    x: Any
    names: Any

    def read(self, more, counts):
        return replace(self, x=counts * len(self.names.item() + more[0]))

    def write(self):
        return replace(self, names=np.array(["d", None]))


# Not as arguments of a `jit`, which takes them neither.
@pytest.mark.parametrize("way", [eager, plain, batched, batched_plain])
@pytest.mark.parametrize("names", [np.array(["abc"]), np.array("abc", object)])
def test_arrays_of_strings_are_taken_as_they_are(way, names):
    target, more = [Names(ones(2), names), Names(None, names.copy())], np.array(["de"])
    before = identities(target)
    model, delta = way(target, "read", more, np.ones(3, np.float32))
    assert delta.paths == ("0.x", "1.x")
    for node, old in zip(model, target, strict=True):
        assert node.names is old.names
        assert node.x.shape[-1] == 3
        assert float(node.x.reshape(-1)[0]) == 5.0
    model, delta = way(target, "write")
    assert delta.paths == ("0.names", "1.names")
    assert [node.names.tolist() for node in model] == [["d", None]] * 2
    assert identities(target) == before


HELD: list[Any] = []


class Leaks(eqx.Module):
    x: Any

    def leak(self):
        HELD.append(self.x + 1)
        return replace(self, x=self.x * 2)

    def use(self):
        return replace(self, x=self.x + HELD[-1])

    def give_back(self):
        return replace(self, x=HELD[-1])


@pytest.mark.usefixtures("needs_jit")
@pytest.mark.parametrize("use", ["use", "give_back"])
@pytest.mark.parametrize(
    ("leak_in", "use_in"),
    [
        (eager, eager),
        (jitted, jitted),
        (batched, batched),
        (batched_jitted, eager),
        (eager, batched_jitted),
    ],
)
def test_a_leaked_tracer_is_refused_where_it_is_used(leak_in, use_in, use):
    HELD.clear()
    if jax.config.jax_check_tracer_leaks:  # pyright: ignore[reportAttributeAccessIssue]
        pytest.skip("the leak itself is an error")
    target = [unknown(Leaks)(ones(3))]
    before = identities(target)
    leak_in(target, "leak")
    with pytest.raises(jax.errors.UnexpectedTracerError, match="unexpected tracer"):
        use_in(target, use)
    assert identities(target) == before
    HELD.append(ones(3))
    [model], _ = use_in(target, use)
    assert float(jnp.ravel(model.x)[0]) == (2.0 if use == "use" else 1.0)
    HELD.clear()


@pytest.mark.usefixtures("needs_jit")
def test_a_leak_is_found_by_jaxs_own_check():
    HELD.clear()
    with (
        jax.checking_leaks(),
        pytest.raises(Exception, match="Leaked"),
    ):
        eager([unknown(Leaks)(ones(3))], "leak")
    HELD.clear()


class Recurses(eqx.Module):
    child: Any = None
    x: Any = None

    def step(self):
        return self.step()

    def through_calls(self):
        return call_all_fns(self, "through_calls")[0]

    def to_child(self):
        return self if self.child is None else self.child.back(self)

    def back(self, other):
        return other.to_child()

    def stop(self):
        return replace(self, x=ones(2))


@in_every_way
@pytest.mark.parametrize("name", ["step", "through_calls", "to_child"])
def test_endless_recursion_keeps_its_type_and_gains_a_note(way, name):
    target = {"a": [Recurses(Recurses())]}
    before = identities(target)
    with pytest.raises(RecursionError, match="maximum recursion depth") as info:
        way(target, name)
    assert type(info.value) is RecursionError
    at = "a.0" if name == "to_child" else "a.0.child"
    note = f"Raised by `{name}` of Recurses at `{at}`, in a collective call of chorax."
    assert note in own_notes(info.value)
    assert identities(target) == before
    model, _ = way(target, "stop")
    assert model["a"][0].x.shape[-1] == 2


class Stops(eqx.Module):
    x: Any = None

    def step(self):
        if STOPS:
            raise STOPS[0]
        return replace(self, x=ones(2))


STOPS: list[BaseException] = []


@in_every_way
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_stops_a_program_passes(way, kind):
    target = [unknown(Stops)()]
    before = identities(target)
    STOPS[:] = [kind("now")]
    with pytest.raises(kind, match="now") as info:
        way(target, "step")
    assert own_notes(info.value) == ()
    assert identities(target) == before
    STOPS.clear()
    model, _ = way(target, "step")
    assert model[0].x.shape[-1] == 2


class Raises(eqx.Module):
    def many(self):
        raise ExceptionGroup("inside", [ValueError("one"), TypeError("two")])

    def oddly(self):
        raise Unspeakable

    def again(self):
        try:
            return self.many()
        except ExceptionGroup as error:
            raise LookupError("outside") from error


class Unspeakable(Exception):  # noqa: N818
    def __str__(self):
        raise RuntimeError("no str")


@in_every_way
@pytest.mark.parametrize(
    ("name", "kind"),
    [("many", ExceptionGroup), ("oddly", Unspeakable), ("again", LookupError)],
)
def test_odd_exceptions_keep_their_type(way, name, kind):
    # By hand: `pytest.raises` would show what can't be shown.
    caught = None
    try:
        way({"a": Raises()}, name)
    except Exception as error:
        caught = error
    assert type(caught) is kind
    assert own_notes(caught) == (
        f"Raised by `{name}` of Raises at `a`, in a collective call of chorax.",
    )


# Modules that are built oddly. `BUILT` tells which of their code ran.
BUILT: list[str] = []


class Built(eqx.Module):
    """A constructor of its own, which takes something else than its fields."""

    x: Any
    size: int = eqx.field(static=True)
    cache: Any = eqx.field(init=False)

    def __init__(self, size):
        BUILT.append("__init__")
        self.x, self.size, self.cache = ones(size), size, None

    def __check_init__(self):
        BUILT.append("__check_init__")

    def step(self):
        return replace(self, x=self.x + 1)

    def fill(self):
        return replace(self, cache=self.x)

    def rebuild(self):
        return type(self)(self.size + 1)

    def wrongly(self):
        return type(self)(self.x, self.size)  # pyright: ignore[reportCallIssue]


class After(eqx.Module):
    """Works after its constructor, converts, and checks."""

    x: Any = eqx.field(converter=jnp.asarray)
    twice: Any = eqx.field(init=False, static=True)

    def __post_init__(self):
        BUILT.append("__post_init__")
        self.twice = 2 * self.x.shape[0]

    def __check_init__(self):
        BUILT.append("__check_init__")
        if self.x.ndim != 1:
            raise ValueError("one axis, please")

    @property
    def broken(self):
        BUILT.append("broken")
        raise ValueError("not to be asked")

    def step(self):
        return replace(self, x=self.x + 1)

    def fill(self):
        return replace(self, x=ones(2, 2), twice=None)

    def rebuild(self):
        return type(self)(self.x[1:])

    def wrongly(self):
        return type(self)(ones(2, 2))


class Abstract(eqx.Module):
    x: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def step(self): ...

    def fill(self):
        return replace(self, x=self.x * 3)

    def rebuild(self):
        return replace(self, x=self.x[1:])

    def wrongly(self):
        cls: Any = Abstract
        return cls()


class Concrete(Abstract):
    x: Any

    def step(self):
        return replace(self, x=self.x + 1)


ODD: dict[str, Any] = {
    "Built": lambda: unknown(Built)(3),
    "After": lambda: unknown(After)(np.ones(3, np.float32)),
    "Concrete": lambda: unknown(Concrete)(ones(3)),
}
WRONG = {
    "Built": (TypeError, r"Built\.__init__\(\) takes 2 positional arguments but 3"),
    "After": (ValueError, "one axis, please"),
    "Concrete": (TypeError, "(?i)abstract"),
}


@in_every_way
@pytest.mark.parametrize("name", sorted(ODD))
def test_no_constructor_runs_but_by_a_method(way, name):
    target = {"a": (ODD[name](),)}
    before = identities(target)
    BUILT.clear()
    for method in ("step", "fill"):
        model, delta = way(target, method)
        field = "cache" if (name, method) == ("Built", "fill") else "x"
        assert delta.paths == (f"a.0.{field}",)
        assert type(model["a"][0]) is type(target["a"][0])
    assert BUILT == []
    model, _ = way(target, "rebuild")
    shape = (4,) if name == "Built" else (2,)
    assert model["a"][0].x.shape[-1:] == shape
    assert BUILT.count("__check_init__") == (name != "Concrete")
    assert "broken" not in BUILT
    assert identities(target) == before


@in_every_way
@pytest.mark.parametrize("name", sorted(ODD))
def test_a_constructor_that_refuses_gains_a_note(way, name):
    kind, text = WRONG[name]
    target = {"a": (ODD[name](),)}
    before = identities(target)
    with pytest.raises(kind, match=text) as info:
        way(target, "wrongly")
    assert own_notes(info.value) == (
        f"Raised by `wrongly` of {name} at `a.0`, in a collective call of chorax.",
    )
    assert identities(target) == before
    model, _ = way(target, "step")
    assert float(model["a"][0].x.reshape(-1)[0]) == 2.0
