"""What users do wrong, and the whole of what they are told: the parts of it.

A mistake is a target, what is done with it, and the error: its type, its text, its
notes. A warning is an error, as in all of the tests.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from chorax import call_all_fns, call_order, replace, vmap_call_all_fns


class Mistake(NamedTuple):
    """`runs` is how many methods had run by then; `None` where any number is right.
    `in_jit` is whether it is a mistake under `eqx.filter_jit` too.
    """

    target: Any
    act: Callable[[Any], Any]
    kind: type[BaseException]
    text: str
    notes: tuple[str, ...] = ()
    runs: int | None = 0
    in_jit: bool = True


# How many methods of `Count` ran.
RUNS: list[str] = []


def f32(*shape):
    # From NumPy, so that nothing is compiled for each shape.
    return jnp.asarray(np.zeros(shape, np.float32))


def i32(*shape):
    return jnp.asarray(np.zeros(shape, np.int32))


class Count(eqx.Module):
    """Its methods tell that they ran."""

    x: Any = None

    def step(self):
        RUNS.append("step")
        return replace(self, x=f32(2))

    def add(self, other):
        RUNS.append("add")
        return replace(self, x=other + f32(2))

    def draw(self, *, key):
        RUNS.append("draw")
        return replace(self, x=jax.random.normal(key, (2,), jnp.float32))

    def init_state(self, size=2, *, key=None):
        RUNS.append("init_state")
        return replace(self, x=f32(size))

    def reset_state(self):
        RUNS.append("reset_state")
        return replace(self, x=f32(2))


class Box(eqx.Module):
    """Has no method at all."""

    child: Any
    x: Any = None


class BadRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


class BadEq:
    __hash__ = object.__hash__

    def __eq__(self, other):
        raise RuntimeError("no eq")


def bad_filter(x):
    raise KeyError("no")


def asks_for_values(x):
    return f32(2)


def needs_keyword(x, *, by):
    return by


def no_parameters():
    return None


KEY = jax.random.key(0, impl="threefry2x32")
# The shape of a legacy key.
WORDS = jax.random.key_data(jax.random.key(0)).shape
BIG = f32(50, 50)


class NotAType(type):
    def __instancecheck__(cls, instance):
        raise RuntimeError("no type")


class Unasked(metaclass=NotAType):
    """Nobody can be asked whether it is one of these."""


class Removes(eqx.Module):
    child: Any

    def step(self):
        return replace(self, child=None)


class Last(eqx.Module):
    @call_order(1)
    def step(self):
        return self


def eager(name, **options):
    """Calls a method of `Bad` where there is one, without lanes."""
    options.setdefault("fn_if_not_exist", "pass")
    return lambda target: call_all_fns(target, name, **options)


def batched(name, **options):
    """The same in four lanes."""
    options = {"fn_if_not_exist": "pass", "axis_size": 4, **options}
    return lambda target: vmap_call_all_fns(target, name, **options)


NET = {"a": [Count(), Box(Count(), f32(3))]}
FOUR = {"v": f32(4, 2), "w": f32(2)}
FOUR_AXES = {"v": 0, "w": None}
HUGE = Box([Box(BIG, "x" * 5000)] * 50, ["y" * 5000] * 50)


def wrong(
    kind, text, act, *notes, target: Any = NET, runs: int | None = 0, in_jit=True
):
    return Mistake(target, act, kind, text, notes, runs, in_jit)


def delta_of(size):
    return vmap_call_all_fns([Count()], "step", axis_size=size)[1]


def traced(act, *shape, dtype=jnp.int32):
    """Does it with a traced array of that shape, under `jax.disable_jit` too."""
    struct = jax.ShapeDtypeStruct(shape, dtype)
    return lambda target: jax.eval_shape(lambda x: act(target, x), struct)


def told_by_jax(run, kind=Exception):
    """What JAX says of it, in its own words, which change from version to version."""
    try:
        run()
    except kind as error:
        return str(error)
    raise AssertionError("JAX has nothing against it.")


def size_text(got, name="axis_size", meaning="the number of lanes"):
    return f"`{name}` must be a positive integer, {meaning}, but {got}."


def filter_text(got):
    return (
        f"Not a filter: {got}. A filter is a type, a tag (`str`), a function of `(x)` "
        "or of `(path, x)`, a `bool`, `...`, `None`, or a list or tuple of filters."
    )


def key_text(got):
    return (
        "`key` must be a PRNG key, as `jax.random.key(0)` makes, or an array of them, "
        f"one per lane; got {got}."
    )


def one_key_text(got):
    return f"`key` must be a PRNG key, as `jax.random.key(0)` makes; got {got}."


def many_keys_text(got):
    return (
        f"`key` must be one PRNG key, but got an array of them of shape {got}. One key "
        "per lane is for `vmap_call_all_fns`."
    )


def words_text(got):
    return (
        f"`key` must be a PRNG key, of shape {WORDS} if it is a legacy one, or an "
        f"array of keys; got an array of dtype uint32 and shape {got}."
    )


def mask_text(but, name="where"):
    return (
        f"`{name}` must be a boolean array of shape (4,), one entry per lane, "
        f"but {but}."
    )


def axes_text(got, place="the root `()`", name="in_axes"):
    return (
        f"`{name}` must hold `None`, integers and functions of a leaf, as in "
        f"`eqx.filter_vmap`, but has {got} at {place}."
    )


def part_text(place, axes, tree, name="in_axes"):
    return (
        f"`{name}` must be a prefix of the tree it describes, but they differ at "
        f"{place}: {axes} against {tree}."
    )


def length_text(place, axis, size, found, shape, name="in_axes", is_given=True):
    told = f"`axis_size` = {size}" if is_given and name != "axes" else size
    problem = f"which must be {told} long, but it has {found}"
    if found == "no such axis":
        problem = "but it has no such axis"
    return (
        f"`{name}` maps {place} along axis {axis}, {problem}: its shape is {shape}. "
        "Map it along its lane axis, or use `None` to share it."
    )


def no_array_text(place, got, name="in_axes"):
    return (
        f"`{name}` maps {place} along axis 0, but it is not an array: {got}. Use "
        "`None` there, or `eqx.if_array(0)` to map the arrays only."
    )


def given(parameter):
    return f"Given as `{parameter}`."


class Static(eqx.Module):
    n: Any = eqx.field(static=True)


LONG = f"'{'x' * 27}...{'x' * 28}'"
# What wrong arguments are called, whoever gets them.
SHOWN: dict[str, tuple[Any, str]] = {
    "a number": (3.5, "3.5 of type float"),
    "None": (None, "`None`"),
    "a long string": ("x" * 5000, f"{LONG} of type str"),
    "an array": (BIG, "an array of dtype float32 and shape (50, 50)"),
    "a key": (KEY, "an array of dtype key<fry> and shape ()"),
    "a model": (HUGE, "a Box"),
    "a class": (Count, "the class Count"),
    "a function": (bad_filter, "bad_filter of type function"),
    "what can't be shown": (BadRepr(), "<BadRepr> of type BadRepr"),
    "what can't be compared": (BadEq(), "<BadEq> of type BadEq"),
    "a big list": (
        [BIG, HUGE, BadRepr(), "x" * 5000, 5],
        f"[float32[50, 50], Box(...), <BadRepr>, {LONG}, ...] of type list",
    ),
}


def shown_to(text, act, *without):
    """One mistake for each wrong argument, but for those that are right."""
    return {
        name: wrong(TypeError, text(got), lambda target, x=x: act(x))
        for name, (x, got) in SHOWN.items()
        if name not in without
    }


def of(function, table):
    return {f"{function}, {name}": mistake for name, mistake in table.items()}
