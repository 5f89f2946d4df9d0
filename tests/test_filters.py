"""Filters: every form, and how they combine."""

import functools
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chorax
from chorax import filters
from chorax.filters import (
    All,
    Everything,
    Not,
    Nothing,
    OfType,
    PathContains,
    to_filter_spec,
    to_predicate,
    WithTag,
)
from models import Constant


class Tagged:
    def __init__(self, tag):
        self.tag = tag


def two(path, x):
    return path == ("a", 0) and x == 1


def defaulted(x, y=0, *, z=0):
    return x == 1


class Callable1(eqx.Module):
    n: int

    def __call__(self, x):
        return x == self.n


FORMS: list[tuple[Any, Any, Any]] = [
    # filter, something that it keeps, something that it does not
    (int, 1, "1"),
    ((int, str), "1", 0.5),
    (int, True, 0.5),
    (eqx.nn.Linear, eqx.nn.Linear(1, 1, key=jax.random.key(0)), 1),
    ("red", Tagged("red"), Tagged("blue")),
    ("red", Tagged(["blue", "red"]), Tagged(["blue"])),
    ("red", Tagged({"red"}), Tagged(3)),
    ("red", Tagged(frozenset({"red"})), "red"),
    (eqx.is_inexact_array, jnp.ones(1), jnp.ones(1, int)),
    (lambda x: x == 1, 1, 2),
    (defaulted, 1, 2),
    (callable, len, 3),
    (functools.partial(lambda a, x: a == x, 1), 1, 2),
    (Callable1(1), 1, 2),
    (two, 1, 2),
    (True, 1, None),
    (..., 1, None),
    (None, None, 1),
    (False, None, 1),
    ([int, "red"], Tagged("red"), 0.5),
    ([int, [str, (float,)]], 0.5, None),
    ([], None, 1),
    (OfType(int), 1, "1"),
    (OfType((int, str)), "1", 0.5),
    (WithTag("red"), Tagged("red"), 1),
    (Everything(), 1, None),
    (Nothing(), None, 1),
    (filters.Any(int, str), "1", 0.5),
    (All(int, lambda x: x > 1), 2, 1),
    (Not(int), "1", 1),
    (~OfType(int), "1", 1),
    (OfType(int) & (lambda x: x > 1), 2, 1),
    ((lambda x: x > 1) & OfType(int), 2, 1),
    (int | OfType(str), "1", 0.5),
    (OfType(int) | "red", Tagged("red"), 0.5),
    ("red" | OfType(int), Tagged("red"), 0.5),
]
ONLY_KEEPS = (True, ..., Everything())
ONLY_DROPS = (None, False, Nothing(), [])


@pytest.mark.parametrize(("filter", "kept", "dropped"), FORMS)
def test_forms(filter, kept, dropped):
    predicate = to_predicate(filter)
    if not any(filter is f or filter == f for f in ONLY_DROPS if not callable(f)):
        if not isinstance(filter, Nothing):
            assert predicate(("a", 0), kept) is True
    else:
        assert predicate(("a", 0), dropped) is False
    if not any(filter is f for f in ONLY_KEEPS) and not isinstance(filter, Everything):
        assert predicate(("a", 0), dropped) is False
    else:
        assert predicate(("a", 0), dropped) is True


def test_path_contains():
    assert PathContains("a")(("b", "a", 0), None)
    assert PathContains(0)(("b", "a", 0), None)
    assert not PathContains("0")(("b", "a", 0), None)
    assert not PathContains("b.a")(("b", "a", 0), None)


def test_tags_of_a_leaf_count_too():
    tags = frozenset({"red", "round"})
    assert WithTag("red")((), 0, tags)
    assert (WithTag("red") & "round")((), 0, tags)
    assert not (~WithTag("red"))((), 0, tags)
    assert (OfType(str) | "round")((), 0, tags)


def test_filters_are_values():
    assert OfType(int) & "a" == All(OfType(int), WithTag("a"))
    assert hash(filters.Any(int, "a")) == hash(filters.Any(int, "a"))
    assert filters.Any(int) != All(int)
    assert to_predicate(Everything()) == Everything()
    assert repr(~OfType(int)) == "Not(OfType(type=<class 'int'>))"


def test_pickles_name_the_public_module():
    filter = to_predicate(eqx.is_array) | [int, ~WithTag("a")] & PathContains("b")
    pickled = pickle.dumps(filter)
    assert pickle.loads(pickled) == filter
    assert b"chorax.filters" in pickled
    assert b"chorax._" not in pickled
    assert to_predicate.__module__ == filters.Predicate.__module__ == "chorax.filters"


def test_to_filter_spec():
    tree = {"a": [1, jnp.ones(2)], "b": (2.0, None)}
    assert to_filter_spec(tree, int) == {"a": [True, False], "b": (False, None)}
    spec = to_filter_spec(tree, PathContains("a") & eqx.is_array)
    assert spec == {"a": [False, True], "b": (False, None)}
    kept, rest = eqx.partition(tree, spec)
    assert kept["a"][1] is tree["a"][1]
    assert rest["a"] == [1, None]
    assert to_filter_spec(3, ...) is True
    assert to_filter_spec(None, ...) is None


def stops(x):
    raise StopIteration("no more")


# Each asks `stops` of an array, and of nothing else.
STOPPING = [
    OfType(jax.Array) & stops,
    filters.Any(int, OfType(jax.Array) & stops),
    ~(Not(jax.Array) | stops),
    [All(jax.Array, [stops])],
]


@pytest.mark.parametrize("filter", STOPPING)
def test_an_exception_keeps_its_type_in_any_combination(filter):
    tree = {"a": 1, "b": jnp.ones(2)}
    delta = chorax.diff({"a": 0, "b": 0}, tree)
    for ask in (
        lambda: to_predicate(filter)((), tree["b"]),
        lambda: to_filter_spec(tree, filter),
        lambda: delta.select(filter),
        lambda: chorax.vmap_call_all_fns(
            Constant(), "step", axis_size=2, state_to_exclude=filter
        ),
        lambda: chorax.lanes.broadcast(tree, 2, filter),
        lambda: chorax.lanes.stack([tree, tree], share=filter),
    ):
        with pytest.raises(StopIteration, match="no more"):
            ask()


BAD = [3, 0.5, {"a"}, {"a": 1}, np.bool_(True), b"a", list[int], int | str, object()]


@pytest.mark.parametrize("filter", BAD)
def test_anything_else_is_a_type_error(filter):
    for bad in (filter, [filter], (int, filter)):
        with pytest.raises(TypeError, match="Not a filter: "):
            to_predicate(bad)
        with pytest.raises(TypeError, match="Not a filter: "):
            _ = Everything() & bad


@pytest.mark.parametrize(
    "function", [lambda: True, lambda a, b, c: True, lambda *args: True]
)
def test_functions_of_other_arity(function):
    with pytest.raises(TypeError, match="positional parameters are not one or two"):
        to_predicate(function)


def make(cls: Any, value: Any) -> Any:
    return cls(value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: make(OfType, 3),
            "`OfType` takes a type or a tuple of types, but got 3",
        ),
        (lambda: make(OfType, (int, "a")), "`OfType` takes a type or a tuple of types"),
        (lambda: make(OfType, list[int]), "`OfType` takes a type"),
        (lambda: make(PathContains, 0.5), "`PathContains` takes one key of a path"),
        (lambda: make(PathContains, ("a",)), "`PathContains` takes one key of a path"),
        (lambda: make(WithTag, 3), "`WithTag` takes a `str`, but got 3"),
    ],
)
def test_bad_parts(build, message):
    with pytest.raises(TypeError, match=r"type|key|str") as info:
        build()
    text = str(info.value)
    assert message in text or "Type-check error" in text


def test_parameters_with_defaults_do_not_count():
    """What a function asks for of its own accord is not the path."""
    keeps = to_predicate(lambda x, kind=int: isinstance(x, kind))
    assert [keeps(("a",), x) for x in (3, "b")] == [True, False]
    both = to_predicate(lambda path, x, kind=int: path == ("a",) and x == 3)
    assert [both(path, 3) for path in [("a",), ("b",)]] == [True, False]
