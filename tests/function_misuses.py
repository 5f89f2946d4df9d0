"""Wrong arguments of functions of deltas, modules and layers, and of filters."""

import operator
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

import chorax
from chorax import (
    apply_delta,
    assign_state_values,
    call_all_fns,
    call_order,
    check_annotations,
    diff,
    filters,
    replace,
    reset_parameters,
)
from misuses import (
    axes_text,
    bad_filter,
    BadRepr,
    BIG,
    Count,
    delta_of,
    f32,
    filter_text,
    FOUR,
    HUGE,
    KEY,
    Last,
    length_text,
    LONG,
    many_keys_text,
    Mistake,
    NET,
    of,
    one_key_text,
    shown_to,
    Static,
    Unasked,
    words_text,
    wrong,
)


class Called(eqx.Module):
    x: Any

    def __call__(self, x):
        raise NotImplementedError("not to be called")


class Shaped(eqx.Module):
    w: Float[Array, "n"]
    v: Float[Array, "n"] | None = None

    def step(self):
        return replace(self, v=f32(self.w.shape[0] + 1))


def linear(**fields):
    return replace(eqx.nn.Linear(2, 3, key=KEY, dtype=jnp.float32), **fields)


def mappings_text(got):
    return (
        "`mappings` of `assign_state_values` must be a mapping from paths to values, "
        f"as `delta.to_dict()` makes, but got {got}."
    )


def apply_text(got):
    return (
        "`delta` of `apply_delta` must be a `StateDelta`, as collective calls and "
        f"`diff` return, but got {got}."
    )


def structure_text(place, model, delta):
    return (
        "This model does not have the structure that the delta was made from: at "
        f"{place}, the model: {model}; the delta: {delta}."
    )


def level_text(got):
    return (
        "`level` of `call_order` must be an integer, as in `@call_order(1)`, but got "
        f"{got}."
    )


def range_text(got):
    return (
        f"`level` must be an integer in [0, 10), but got {got}. Pass "
        "`check_order_boundary=False` to use any other."
    )


def mark_text(got):
    return (
        f"`call_order` marks the function of a method, but got {got}. Put it below "
        "other decorators, next to the `def`."
    )


def module_text(got):
    return (
        "`module` of `replace` must be an `eqx.Module`, an instance and not a class, "
        f"but got {got}."
    )


def layer_text(got):
    return (
        f"`reset_parameters` takes one layer, but got {got}. Pass a whole model to "
        "`call_all_fns(model, reset_parameters, key=key)`, or register a rule with "
        "`@chorax.reset_parameters.register`."
    )


def not_array_text(got):
    return (
        f"The value for `a.1.x` does not fit: it is {got}, but the model has float32 "
        "of shape (3,) there. Pass a value of that dtype and shape; or pass "
        "`check=False` to take all values as they are."
    )


def check_text(got):
    return (
        "There is nothing to check: the model does not contain an `eqx.Module`, but is "
        f"{got}."
    )


FUNCTIONS: dict[str, Mistake] = {
    **of(
        "assign_state_values",
        shown_to(mappings_text, lambda x: assign_state_values(FOUR, {}, x)),
    ),
    "assign_state_values of a delta": wrong(
        TypeError,
        mappings_text("a StateDelta"),
        lambda target: assign_state_values(target, diff(target, target)),  # pyright: ignore[reportArgumentType]
    ),
    "assign_state_values by a name of two": wrong(
        ValueError,
        "2 leaves have the dotted path `a.b`, because a dictionary key has a dot in "
        "it: name the leaf by its path as a tuple.",
        lambda target: assign_state_values(target, {"a.b": 3}),
        target={"a.b": f32(1), "a": {"b": f32(2)}},
    ),
    "assign_state_values of a string to an array": wrong(
        ValueError,
        not_array_text("'text' of type str"),
        lambda target: assign_state_values(target, {"a.1.x": "text"}),
    ),
    "assign_state_values of None to an array": wrong(
        ValueError,
        not_array_text("`None`"),
        lambda target: assign_state_values(target, {("a", 1, "x"): None}),
    ),
    **of("apply_delta", shown_to(apply_text, lambda x: apply_delta(NET, x))),
    "apply_delta, the wrong way round": wrong(
        TypeError,
        apply_text("a Box"),
        lambda target: apply_delta(diff(target, target), target),
        target=HUGE,
    ),
    "apply_delta of a dictionary": wrong(
        TypeError,
        apply_text("{'x': float32[2]} of type dict"),
        lambda target: apply_delta(target, {"x": f32(2)}),  # pyright: ignore[reportArgumentType]
        target=Count(),
    ),
    "apply_delta to another model": wrong(
        ValueError,
        structure_text("the root `()`", "a dict", "a Count"),
        lambda target: apply_delta(target, diff(Count(), Count(f32(2)))),
    ),
    "apply_delta to no model": wrong(
        ValueError,
        structure_text("the root `()`", "None", "a Count"),
        lambda target: apply_delta(target, diff(Count(), Count())),
        target=None,
    ),
    "apply_delta to other keys": wrong(
        ValueError,
        structure_text("`a.j`", "has it", "lacks it"),
        lambda target: apply_delta(target, diff({"a": {"k": 1}}, {"a": {"k": 2}})),
        target={"a": {"j": 1}},
    ),
    "apply_delta to another static field": wrong(
        ValueError,
        structure_text("`n`", "<BadRepr>", LONG),
        lambda target: apply_delta(target, diff(Static("x" * 5000), Static("x"))),
        target=Static(BadRepr()),
    ),
    "deltas that do not follow": wrong(
        ValueError,
        "These deltas do not follow one another: at `b`, earlier: has it; later: "
        "lacks it.",
        lambda target: diff({"b": 1}, {"b": 2}) | diff({"a": 1}, {"a": 2}),
    ),
    "deltas of other lanes": wrong(
        ValueError,
        "These deltas have 3 and 4 lanes. Only values written in the same lanes can be "
        "combined into one delta.",
        lambda target: delta_of(3) | delta_of(4),
        runs=None,
    ),
    "a delta and a number": wrong(
        TypeError,
        "unsupported operand type(s) for |: 'StateDelta' and 'int'",
        lambda target: operator.or_(diff(1, 2), 3),
    ),
    "a delta of two leaves of one name": wrong(
        ValueError,
        "Two written leaves have the dotted path `a.b`, one of them at ('a.b',): "
        "rename the dictionary key that has a dot in it.",
        lambda target: diff(target, {"a.b": 3, "a": {"b": 4}}).to_dict(),
        target={"a.b": 1, "a": {"b": 2}},
    ),
    "select by a number": wrong(
        TypeError,
        filter_text("3.5 of type float"),
        lambda target: diff(1, 2).select(3.5),  # pyright: ignore[reportArgumentType]
    ),
    "select by what raises": wrong(
        KeyError,
        "'no'",
        lambda target: diff({"a": 1}, {"a": 2}).select(bad_filter),
        "Raised by the filter bad_filter at `a`.",
    ),
    **of("call_order", shown_to(level_text, call_order)),
    "call_order of a bool": wrong(
        TypeError, level_text("True of type bool"), lambda target: call_order(True)
    ),
    "call_order below the range": wrong(
        ValueError, range_text(-1), lambda target: call_order(-1)
    ),
    "call_order above the range": wrong(
        ValueError, range_text(10), lambda target: call_order(10)
    ),
    **of(
        "check_order_boundary",
        shown_to(
            lambda got: (
                "`check_order_boundary` of `call_order` must be a `bool`, but "
                f"got {got}."
            ),
            lambda x: call_order(1, x),
        ),
    ),
    **{
        f"call_order on {name}": wrong(
            TypeError, mark_text(got), lambda target, x=x: call_order(1)(x)
        )
        for name, x, got in [
            ("a number", 3, "3 of type int"),
            ("None", None, "`None`"),
            ("a name", "step", "'step' of type str"),
            ("a class", Count, "the class Count"),
            ("a property", property(len), "<property> of type property"),
            (
                "a static method",
                staticmethod(bad_filter),
                "<staticmethod(<function bad_filter>)> of type staticmethod",
            ),
            (
                "a built-in",
                len,
                "<built-in function len> of type builtin_function_or_method",
            ),
        ]
    },
    **of("replace", shown_to(module_text, replace, "a model")),
    "replace of no field": wrong(
        AttributeError,
        "Box has no field `y`; its fields are `child`, `x`.",
        lambda target: replace(target, x=1, y=2),
        target=HUGE,
    ),
    "replace without fields": wrong(
        AttributeError,
        "Last has no field `x`; its fields are (none).",
        lambda target: replace(target, x=1),
        target=Last(),
    ),
    **of(
        "reset_parameters",
        shown_to(layer_text, lambda x: reset_parameters(x, key=KEY), "a model"),
    ),
    **of(
        "key of reset_parameters",
        shown_to(one_key_text, lambda x: reset_parameters(linear(), key=x), "a key"),
    ),
    "reset_parameters with many keys": wrong(
        ValueError,
        many_keys_text("(3,)"),
        lambda target: reset_parameters(linear(), key=jnp.broadcast_to(KEY, (3,))),
    ),
    "reset_parameters with a legacy key of another shape": wrong(
        ValueError,
        words_text("(3,)"),
        lambda target: reset_parameters(linear(), key=jnp.zeros(3, jnp.uint32)),
    ),
    "reset_parameters of what is no array": wrong(
        TypeError,
        "`weight` of Linear is not an array but a BadRepr, so it can't be drawn as the "
        "constructor would. Register a rule for a class of your own with "
        "`@chorax.reset_parameters.register`, or exclude the layer by "
        "`node_to_exclude`.",
        lambda target: call_all_fns(
            {"a": linear(weight=BadRepr())}, reset_parameters, key=KEY
        ),
        "Raised by `reset_parameters` of Linear at `a`, in a collective call of "
        "chorax.",
    ),
    **{
        f"check_annotations of {name}": wrong(
            ValueError, check_text(got), lambda target, x=x: check_annotations(x)
        )
        for name, x, got in [
            ("a number", 3, "an int"),
            ("None", None, "`None`"),
            ("a class", Shaped, "the class Shaped"),
            ("an array", BIG, "an array"),
            ("a list", [1, 2], "a list"),
            ("what can't be shown", BadRepr(), "a BadRepr"),
        ]
    },
    "check_annotations of what does not fit": wrong(
        chorax.AnnotationError,
        "The field `v` of the Shaped at `a.0` does not fit its annotation.\n"
        '  annotated: v: Float[Array, "n"] | None\n'
        "  found: float32 of shape (4,)\n"
        "  bound: n = 3 by `w`",
        check_annotations,
        target={"a": [Shaped(f32(3), f32(4))]},
    ),
    "check_annotations of a long string": wrong(
        chorax.AnnotationError,
        "The field `v` of the Shaped at the root `()` does not fit its annotation.\n"
        '  annotated: v: Float[Array, "n"] | None\n'
        f"  found: a str, {LONG}\n"
        "  bound: n = 3 by `w`",
        check_annotations,
        target=Shaped(f32(3), "x" * 5000),  # pyright: ignore[reportArgumentType]
    ),
    "check_annotations with axes that are none": wrong(
        TypeError,
        axes_text("'x'"),
        lambda target: check_annotations(target, in_axes="x"),
    ),
    "check_annotations where lanes disagree": wrong(
        ValueError,
        length_text("`1.x`", 0, 3, "5 there", "(5, 2)", is_given=False),
        lambda target: check_annotations(target, in_axes=0),
        "`0.x` has 3 lanes.",
        target=[Count(f32(3, 2)), Count(f32(5, 2))],
    ),
}


def type_text(got):
    return f"`OfType` takes a type or a tuple of types, but got {got}."


def path_text(got):
    return (
        f"`PathContains` takes one key of a path, a `str` or an `int`, but got {got}."
    )


def tag_text(got):
    return f"`WithTag` takes a `str`, but got {got}."


def no_filter(act):
    return shown_to(
        filter_text,
        act,
        "None",
        "a long string",
        "a class",
        "a function",
        "a model",
        "a big list",
    )


FILTERS: dict[str, Mistake] = {
    **of("OfType", shown_to(type_text, filters.OfType, "a class")),
    "OfType of a number in a tuple": wrong(
        TypeError,
        type_text("(int, 3) of type tuple"),
        lambda target: filters.OfType((int, 3)),  # pyright: ignore[reportArgumentType]
    ),
    "OfType of a generic": wrong(
        TypeError,
        type_text("list[int] of type GenericAlias"),
        lambda target: filters.OfType(list[int]),
    ),
    **of("PathContains", shown_to(path_text, filters.PathContains, "a long string")),
    "PathContains of a bool": wrong(
        TypeError,
        path_text("True of type bool"),
        lambda target: filters.PathContains(True),
    ),
    "PathContains of a path": wrong(
        TypeError,
        path_text("('a', 0) of type tuple"),
        lambda target: filters.PathContains(("a", 0)),  # pyright: ignore[reportArgumentType]
    ),
    **of("WithTag", shown_to(tag_text, filters.WithTag, "a long string")),
    **of("Any", no_filter(filters.Any)),
    **of("All", no_filter(lambda x: filters.All(int, [x]))),
    **of("Not", no_filter(filters.Not)),
    **of("&", no_filter(lambda x: filters.Everything() & (x,))),
    **of("|", no_filter(lambda x: [x] | filters.Nothing())),
    **of("to_predicate", no_filter(filters.to_predicate)),
    **of("to_filter_spec", no_filter(lambda x: filters.to_filter_spec(NET, x))),
    "to_filter_spec by what raises": wrong(
        KeyError,
        "'no'",
        lambda target: filters.to_filter_spec(target, bad_filter),
        "Raised by the filter bad_filter at `a.1.x`.",
    ),
    "to_filter_spec by a partial that raises": wrong(
        KeyError,
        "'no'",
        lambda target: filters.to_filter_spec(target, partial(bad_filter)),
        "Raised by the filter functools.partial(<function bad_filter>) at `a.1.x`.",
    ),
    "to_filter_spec by a model that is called": wrong(
        NotImplementedError,
        "not to be called",
        lambda target: filters.to_filter_spec(target, Called(BIG)),
        "Raised by the filter Called(...) at `a.1.x`.",
    ),
    "to_filter_spec by a type that raises": wrong(
        RuntimeError,
        "no type",
        lambda target: filters.to_filter_spec(target, Unasked),
        "Raised by the filter Unasked at `a.1.x`.",
    ),
    "a filter that is none": wrong(
        TypeError,
        "Predicate does not say what it keeps.",
        lambda target: filters.to_filter_spec(target, filters.Predicate()),
    ),
}
