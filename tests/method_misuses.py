"""Mistakes that a node makes, wherever it stands."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import chorax
from chorax import call_all_fns, filters, lanes, replace
from misuses import (
    bad_filter,
    BadRepr,
    batched,
    Box,
    Count,
    eager,
    f32,
    KEY,
    Last,
    length_text,
    no_array_text,
    Removes,
    Unasked,
)
from models import Pair


def hides_its_parameters(method):
    def wrapper(self, *args, **kwargs):
        return method(self, *args, **kwargs)

    return wrapper


class Bad(eqx.Module):
    """One method for each mistake."""

    x: Any = None
    n: Any = eqx.field(static=True, default=0)
    attribute: float = 0.5

    def needs_key(self, *, key):
        return replace(self, x=jax.random.normal(key, (2,), jnp.float32))

    def takes_key_first(self, key=None):
        return self

    def returns_none(self):
        return None

    def returns_a_number(self):
        return 3

    def returns_an_array(self):
        return f32(2)

    def returns_another(self):
        return Count()

    def returns_a_class(self):
        return Bad

    def returns_a_pair(self):
        return self, 1

    def returns_three(self):
        return self, 1, 2

    def returns_a_list(self):
        return [self, 1]

    def returns_itself(self):
        return self

    def returns_other_pair(self):
        return None, 1

    def generates(self):
        yield self

    def raises(self):
        raise ZeroDivisionError("inside")

    def raises_oddly(self):
        raise StopIteration("inside")

    def assigns(self):
        self.x = 3
        return self

    def sets_an_item(self):
        jnp.zeros(2)[0] = 1
        return self

    def branches(self):
        return self if f32(2) > 0 else replace(self, x=1)

    def lacks_self():  # pyright: ignore[reportSelfClsParameterName]
        return None

    def wants_more(self, by, *, much):
        return self

    def takes_key_by_position(self, key, /, **rest):
        return self

    def takes_anything(self, *args, **options):
        return replace(self, x=options.get("key"))

    @hides_its_parameters
    def is_decorated(self, *, key):
        return self

    def makes_another(self):
        return Strict("text")

    def calls_within(self):
        return call_all_fns(self, "returns_none")[0]

    def names_an_axis(self):
        return replace(self, x=jax.lax.psum(f32(), "nowhere"))

    def writes(self):
        return replace(self, x=f32(3))

    def puts_into_static(self):
        return replace(self, n=f32(2) + 1)

    @staticmethod
    def returns_a_string():
        return "text"

    @property
    def number(self):
        return 3

    @property
    def broken(self):
        raise ValueError("inside")

    @property
    def lacking(self):
        return self.nowhere  # pyright: ignore[reportAttributeAccessIssue]


class Strict(eqx.Module):
    """Has a constructor that refuses."""

    n: Any

    def __check_init__(self):
        if not isinstance(self.n, int):
            raise TypeError("`n` must be an `int`")


class BadTag(eqx.Module):
    @property
    def tag(self):
        raise RuntimeError("no tag")

    def step(self):
        return self


class BadLookup(eqx.Module):
    def __getattr__(self, name):
        raise RuntimeError("no attribute")


class Shaped(eqx.Module):
    w: Float[Array, "n"]
    v: Float[Array, "n"] | None = None

    def step(self):
        return replace(self, v=f32(self.w.shape[0] + 1))


class Exchanges(eqx.Module):
    child: Any

    def step(self):
        return replace(self, child=Box(1))


def stops(x):
    raise StopIteration("no more")


class At:
    """A place: of a node, and of what is below it."""

    def __init__(self, *path):
        self.path = path

    def __call__(self, *below):
        path = (*self.path, *below)
        return f"`{'.'.join(map(str, path))}`" if path else "the root `()`"


# Where a node may stand: a tree around it, and its path.
PLACES: dict[str, tuple[Callable[[Any], Any], At]] = {
    "the root": (lambda node: node, At()),
    "a list": (lambda node: [Count(), node], At(1)),
    "a tuple": (lambda node: (node, "text"), At(0)),
    "a dict": (lambda node: {"b": Count(), "a": node}, At("a")),
    "a dict of numbers": (lambda node: {7: node}, At(7)),
    "a dict of pairs": (lambda node: {(1, 2): node}, At("(1, 2)")),
    "a NamedTuple": (lambda node: Pair(None, node), At("second")),
    "a module": (lambda node: Box(node, f32(5)), At("child")),
    "an ensemble": (
        lambda node: lanes.Ensemble(Pair(f32(3, 2), node), Pair(0, None)),
        At("model", "second"),
    ),
    "deep": (
        lambda node: {"a": ["text", Pair(Count(), Box({"k": (None, Box(node))}))]},
        At("a", 1, "second", "child", "k", 1, "child"),
    ),
}


class Row(NamedTuple):
    """A mistake of a node; `text` and `notes` are functions of its place."""

    make: Callable[[], Any]
    act: Callable[[Any], Any]
    kind: type[BaseException]
    text: Callable[[At], str]
    notes: Callable[[At], tuple[str, ...]] = lambda at: ()
    runs: int | None = 0


TWICE = (
    "by `key=` of the collective call and in its own arguments. Keep one: `key=` gives "
    "every node and lane a key of its own, an argument gives all of them the same."
)
HIDDEN = "it takes `**{}`. Name it (`*, key`), put `functools.wraps` on the decorator "
HIDDEN += "that hides it"
CURE = "Return the updated node, or `return self` if nothing changes."


IN_PLACE = (
    "Modules are not changed in place: return `chorax.replace(self, field=value)`."
)


def raised_by(name, *more, of="Bad"):
    return lambda at: (
        f"Raised by `{name}` of {of} at {at()}, in a collective call of chorax.",
        *more,
    )


def returned(name, what, cure=CURE):
    return Row(
        Bad,
        eager(name),
        TypeError,
        lambda at: (
            f"`{name}` of Bad at {at()} must return a Bad, but returned {what}. " + cure
        ),
    )


def no_aux(name, what):
    return Row(
        Bad,
        batched(name, has_aux=True),
        TypeError,
        lambda at: (
            f"`{name}` of Bad at {at()} must return `(node, aux)`, since "
            f"`has_aux=True`, but returned {what}."
        ),
    )


def hides_key(name, why, **options):
    return Row(
        Bad,
        batched(name, key=KEY, **options),
        TypeError,
        lambda at: (
            f"`key=` was given, but `{name}` of Bad at {at()} shows no parameter `key` "
            f"to pass it as: {why}, or call it without `key=`; `node_to_exclude` "
            "leaves nodes out."
        ),
    )


def gone(make, what):
    return Row(
        make,
        batched("step"),
        ValueError,
        lambda at: (
            f"`step` was still to be called on the Last at {at('child')}, but "
            f"the earlier call on the node at {at()} {what}. Nodes are enumerated "
            f"once, at the start; exclude the one at {at('child')}, or give the calls "
            "another `call_order`."
        ),
        runs=None,
    )


def map_three(leaf):
    return 0 if eqx.is_array(leaf) and leaf.shape == (3,) else None


def map_floats(leaf):
    return 0 if isinstance(leaf, float) else None


ANYWHERE: dict[str, Row] = {
    "no such method": Row(
        Bad,
        batched("step", fn_if_not_exist="raise"),
        AttributeError,
        lambda at: (
            f"Bad at {at()} has no method `step`. Define it, exclude the "
            "node by `node_to_exclude`, or pass `fn_if_not_exist='pass'` to skip such "
            "nodes."
        ),
    ),
    "no such method, warned of": Row(
        Bad,
        eager("step", fn_if_not_exist="warn"),
        UserWarning,
        lambda at: f"Bad at {at()} has no method `step`; it is skipped.",
    ),
    "an attribute that is no method": Row(
        Bad,
        eager("attribute"),
        TypeError,
        lambda at: (
            f"`attribute` of Bad at {at()} is not callable, but a float. Give "
            "the name of a method, or exclude the node."
        ),
    ),
    "a field that is an array": Row(
        lambda: Bad(f32(2)),
        batched("x", node_to_exclude=~filters.OfType(Bad)),
        TypeError,
        lambda at: (
            f"`x` of Bad at {at()} is not callable, but an array. Give the name "
            "of a method, or exclude the node."
        ),
    ),
    "a field that is None": Row(
        Bad,
        eager("x", node_to_exclude=~filters.OfType(Bad)),
        TypeError,
        lambda at: (
            f"`x` of Bad at {at()} is not callable, but `None`. Give the name "
            "of a method, or exclude the node."
        ),
    ),
    "a property that is no method": Row(
        Bad,
        batched("number"),
        TypeError,
        lambda at: (
            f"`number` of Bad at {at()} is not callable, but an int. Give the "
            "name of a method, or exclude the node."
        ),
    ),
    "a property that raises": Row(
        Bad,
        eager("broken"),
        ValueError,
        lambda at: "inside",
        lambda at: (
            f"Raised by the property `broken` of Bad at {at()}, in a collective call "
            "of chorax.",
        ),
    ),
    "a property that lacks something": Row(
        Bad,
        batched("lacking"),
        AttributeError,
        lambda at: "'Bad' object has no attribute 'nowhere'",
        lambda at: (
            f"Raised by the property `lacking` of Bad at {at()}, in a collective call "
            "of chorax.",
        ),
    ),
    "a lookup that raises": Row(
        BadLookup,
        eager("nothing"),
        RuntimeError,
        lambda at: "no attribute",
        lambda at: (
            f"Raised by the property `nothing` of BadLookup at {at()}, in a collective "
            "call of chorax.",
        ),
    ),
    "no key": Row(
        Bad,
        batched("needs_key"),
        ValueError,
        lambda at: (
            f"`needs_key` of Bad at {at()} needs a `key`, and none was given: "
            "pass `key=jax.random.key(0)` to the collective call."
        ),
    ),
    "key twice": Row(
        Bad,
        batched("needs_key", key=KEY, kwargs={"key": KEY}),
        TypeError,
        lambda at: f"`key` is given twice to `needs_key` of Bad at {at()}: {TWICE}",
    ),
    "key twice, once by position": Row(
        Bad,
        eager("takes_key_first", key=KEY, args=(KEY,)),
        TypeError,
        lambda at: (
            f"`key` is given twice to `takes_key_first` of Bad at {at()}: {TWICE}"
        ),
    ),
    "a mapped leaf of another length": Row(
        lambda: Bad(f32(3)),
        batched("writes", in_axes=map_three),
        ValueError,
        lambda at: length_text(at("x"), 0, 4, "3 there", "(3,)"),
    ),
    "a mapped leaf that is no array": Row(
        Bad,
        batched("writes", in_axes=map_floats),
        ValueError,
        lambda at: no_array_text(at("attribute"), "0.5 of type float"),
    ),
    "None": returned("returns_none", "`None`"),
    "a number": returned("returns_a_number", "an int"),
    "an array": returned("returns_an_array", "an array"),
    "a string": returned("returns_a_string", "a str"),
    "another module": returned("returns_another", "a Count"),
    "the class": returned("returns_a_class", "the class Bad"),
    "a list": returned("returns_a_list", "a list"),
    "three": returned("returns_three", "a tuple of 3"),
    "a generator": returned("generates", "a generator"),
    "a pair without has_aux": returned(
        "returns_a_pair",
        "a tuple of 2",
        f"{CURE} To return `(node, aux)`, pass `has_aux=True`.",
    ),
    "a node with has_aux": no_aux("returns_itself", "a Bad"),
    "None with has_aux": no_aux("returns_none", "`None`"),
    "three with has_aux": no_aux("returns_three", "a tuple of 3"),
    "a list with has_aux": no_aux("returns_a_list", "a list"),
    "no node in a pair": Row(
        Bad,
        batched("returns_other_pair", has_aux=True),
        TypeError,
        lambda at: (
            f"`returns_other_pair` of Bad at {at()} must return a Bad, but "
            f"returned `None`. {CURE}"
        ),
    ),
    "an exception": Row(
        Bad,
        eager("raises"),
        ZeroDivisionError,
        lambda at: "inside",
        raised_by("raises"),
    ),
    "an exception that generators use": Row(
        Bad,
        batched("raises_oddly"),
        StopIteration,
        lambda at: "inside",
        raised_by("raises_oddly"),
    ),
    "an assignment": Row(
        Bad,
        batched("assigns"),
        dataclasses.FrozenInstanceError,
        lambda at: "cannot assign to field 'x'",
        raised_by("assigns", IN_PLACE),
    ),
    "no parameter for the node": Row(
        Bad,
        eager("lacks_self"),
        TypeError,
        lambda at: "Bad.lacks_self() takes 0 positional arguments but 1 was given",
        raised_by("lacks_self"),
    ),
    "arguments that are missing": Row(
        Bad,
        eager("wants_more", args=1),
        TypeError,
        lambda at: "Bad.wants_more() missing 1 required keyword-only argument: 'much'",
        raised_by("wants_more"),
    ),
    "a key by position only": hides_key(
        "takes_key_by_position", "its `key` is positional-only. Drop the `/`"
    ),
    "a key by position only, which is missing": Row(
        Bad,
        eager("takes_key_by_position"),
        TypeError,
        lambda at: (
            "Bad.takes_key_by_position() missing 1 required positional argument: 'key'"
        ),
        raised_by("takes_key_by_position"),
    ),
    "a key by position only, twice": Row(
        Bad,
        eager("takes_key_by_position", key=KEY, args=(KEY,)),
        TypeError,
        lambda at: (
            f"`key` is given twice to `takes_key_by_position` of Bad at {at()}: {TWICE}"
        ),
    ),
    "a key among other keywords": hides_key(
        "takes_anything", HIDDEN.format("options"), args=(1,), kwargs={"by": 2}
    ),
    "a key among other keywords, twice": Row(
        Bad,
        batched("takes_anything", key=KEY, kwargs={"key": KEY}),
        TypeError,
        lambda at: (
            f"`key` is given twice to `takes_anything` of Bad at {at()}: {TWICE}"
        ),
    ),
    "a key that a decorator hides": hides_key("is_decorated", HIDDEN.format("kwargs")),
    "a constructor that refuses": Row(
        Bad,
        eager("makes_another"),
        TypeError,
        lambda at: "`n` must be an `int`",
        raised_by("makes_another"),
    ),
    "a collective call within": Row(
        Bad,
        eager("calls_within"),
        TypeError,
        lambda at: (
            "`returns_none` of Bad at the root `()` must return a Bad, but "
            f"returned `None`. {CURE}"
        ),
        raised_by("calls_within"),
    ),
    "a node that is removed": gone(lambda: Removes(Last()), "removed it"),
    "a node that is exchanged": gone(
        lambda: Exchanges(Last()), "changed its class to Box"
    ),
    "a filter of nodes that raises": Row(
        Bad,
        eager(
            "writes",
            node_to_exclude=lambda path, x: isinstance(x, Bad) and bad_filter(x),
        ),
        KeyError,
        lambda at: "'no'",
        lambda at: (f"Raised by the filter <lambda> at {at()}.",),
    ),
    "a filter of nodes that generators misread": Row(
        Bad,
        batched("writes", node_to_exclude=filters.Any(filters.OfType(Bad) & stops)),
        StopIteration,
        lambda at: "no more",
        lambda at: (f"Raised by the filter stops at {at()}.",),
    ),
    "a tag that raises": Row(
        BadTag,
        eager("step", node_to_exclude="hidden"),
        RuntimeError,
        lambda at: "no tag",
        lambda at: (f"Raised by the filter 'hidden' at {at()}.",),
    ),
    "a filter of leaves that raises": Row(
        Bad,
        batched("writes", state_to_exclude=bad_filter),
        KeyError,
        lambda at: "'no'",
        lambda at: (f"Raised by the filter bad_filter at {at('x')}.",),
    ),
    "a type that raises": Row(
        Bad,
        batched("writes", state_to_exclude=filters.Not(Unasked)),
        RuntimeError,
        lambda at: "no type",
        lambda at: (f"Raised by the filter Unasked at {at('x')}.",),
    ),
    "an excluded leaf with other values in other lanes": Row(
        Bad,
        batched("needs_key", key=KEY, state_to_exclude=True),
        ValueError,
        lambda at: (
            f"{at('x')} is excluded by `state_to_exclude`, so it is written "
            "once for all lanes, but its value differs from lane to lane: it depends "
            "on a key, a leaf or an argument that has one entry per lane. Do not "
            "exclude it, or make it the same in all lanes (with `axis_name` a method "
            "can take `jax.lax.pmean` over them)."
        ),
    ),
    "nothing to keep": Row(
        Bad,
        batched("writes", where=[True] * 4),
        ValueError,
        lambda at: (
            "Under `where`, lanes where it is false keep what they had, but "
            f"{at('x')} has nothing to keep: there was no value before. Call once "
            "without `where` first, or let the method keep shape and dtype."
        ),
    ),
    "no array to keep": Row(
        lambda: Bad(BadRepr()),
        batched("writes", where=[True] * 4),
        ValueError,
        lambda at: (
            "Under `where`, lanes where it is false keep what they had, but "
            f"{at('x')} has nothing to keep: there was no array before, but <BadRepr>. "
            "Call once without `where` first, or let the method keep shape and dtype."
        ),
    ),
    "an annotation that does not fit": Row(
        lambda: Shaped(f32(3)),
        batched("step"),
        chorax.AnnotationError,
        lambda at: (
            f"The field `v` of the Shaped at {at()} does not fit its annotation "
            "after `step`, as one lane sees it.\n"
            '  annotated: v: Float[Array, "n"] | None\n'
            "  found: float32 of shape (4,)\n"
            "  bound: n = 3 by `w`"
        ),
        runs=None,
    ),
}


# Mistakes that only a trace can find.
TRACED: dict[str, Row] = {
    "a traced value in a static field": Row(
        Bad,
        batched("puts_into_static"),
        TypeError,
        lambda at: (
            f"`puts_into_static` of Bad at {at()} put a traced array into the "
            "static field `n`. Static fields are part of the program; declare the "
            "field without `static=True`."
        ),
    ),
}
