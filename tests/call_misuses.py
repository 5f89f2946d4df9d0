"""Wrong arguments of collective calls."""

from collections import OrderedDict
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import chorax
from chorax import replace, reset_parameters
from misuses import (
    asks_for_values,
    axes_text,
    bad_filter,
    BadEq,
    BadRepr,
    batched,
    BIG,
    Box,
    Count,
    delta_of,
    eager,
    f32,
    filter_text,
    given,
    HUGE,
    i32,
    KEY,
    key_text,
    Last,
    length_text,
    many_keys_text,
    mask_text,
    Mistake,
    needs_keyword,
    no_array_text,
    no_parameters,
    one_key_text,
    part_text,
    Removes,
    size_text,
    told_by_jax,
    traced,
    WORDS,
    words_text,
    wrong,
)


def chunk_text(got):
    return size_text(got, "chunk_size", "lanes at a time")


def function_text(got):
    return (
        "`fn_name` must be the name of a method or a callable `(node, *args, **kwargs) "
        f"-> node`, but got {got}."
    )


def mode_text(got):
    return (
        "`fn_if_not_exist` must be one of 'raise', 'pass', 'none', 'warn', but got "
        f"{got}."
    )


def keys_text(got):
    return (
        "`key` must be one PRNG key or an array of `axis_size` keys, one per lane: "
        f"expected shape (4,), got {got}."
    )


def name_text(got, name="axis_name"):
    return (
        f"`{name}` must be the name of an axis, as `jax.vmap` takes, which can be "
        f"hashed, but got {got}."
    )


NO_NODE = (
    "The target holds no `eqx.Module` to call anything on. Pass a module, or a PyTree "
    "of modules."
)


def hides_its_key(node, **rest):
    return replace(node, x=rest["key"])


def nothing_written(name):
    return (
        f"`{name}` wrote nothing at all: no called node returned a changed leaf. "
        "Methods must return the updated node, as `chorax.replace(self, ...)`."
    )


def called_on_none(name):
    return (
        f"`{name}` wrote nothing at all: it was called on no node, since each is "
        "excluded or has no such method. `chorax.explain` says which."
    )


CALLS: dict[str, Mistake] = {
    # The target.
    **{
        f"a target that is {name}": wrong(
            ValueError, NO_NODE, batched("step"), target=target
        )
        for name, target in {
            "a number": 3,
            "nothing": None,
            "a string": "net",
            "a class": Count,
            "an array": BIG,
            "an empty list": [],
            "plumbing": eqx.nn.StateIndex(f32(2)),
        }.items()
    },
    "a target of two nodes of one name": wrong(
        ValueError,
        "Two nodes have the dotted path `a.b`, under which `has_aux` would file both: "
        "('a', 'b') and ('a.b',). Rename the dictionary key that has a dot in it.",
        batched("step", has_aux=True),
        target={"a.b": Count(), "a": {"b": Count()}},
    ),
    "a target of two children of one key": wrong(
        ValueError,
        "Two children of an OrderedDict have the same key in a path: ('1.5', '1.5'). A "
        "key that is neither `str` nor `int` is named by `str(key)`; rename one of "
        "them.",
        batched("step"),
        target=OrderedDict({1.5: Count(), "1.5": Count()}),
    ),
    # What is called.
    "fn_name a number": wrong(TypeError, function_text("3 of type int"), batched(3)),
    "fn_name None": wrong(TypeError, function_text("`None`"), batched(None)),
    "fn_name bytes": wrong(
        TypeError, function_text("b'step' of type bytes"), batched(b"step")
    ),
    "fn_name an array": wrong(
        TypeError,
        function_text("an array of dtype float32 and shape (50, 50)"),
        batched(BIG),
    ),
    "fn_name a list of models": wrong(
        TypeError,
        function_text("[Box(...), Box(...)] of type list"),
        batched([HUGE] * 2),
    ),
    "fn_name that can't be shown": wrong(
        TypeError, function_text("<BadRepr> of type BadRepr"), eager(BadRepr())
    ),
    "fn_name of nothing": wrong(
        UserWarning, called_on_none("nothing"), eager("nothing")
    ),
    "a function without parameters": wrong(
        TypeError,
        "no_parameters() takes 0 positional arguments but 1 was given",
        batched(no_parameters),
        "Raised by `no_parameters` of Count at `a.0`, in a collective call of chorax.",
    ),
    "a function that needs a key": wrong(
        ValueError,
        "`reset_parameters` needs a `key`, and none was given: pass "
        "`key=jax.random.key(0)` to the collective call.",
        batched(reset_parameters),
    ),
    "a function that gets two keys": wrong(
        TypeError,
        "`key` is given twice to `reset_parameters`: by `key=` of the collective call "
        "and in its own arguments. Keep one: `key=` gives every node and lane a key of "
        "its own, an argument gives all of them the same.",
        eager(reset_parameters, key=KEY, kwargs={"key": KEY}),
    ),
    "a function that hides its key": wrong(
        TypeError,
        "`key=` was given, but `hides_its_key` shows no parameter `key` to pass it as: "
        "it takes `**rest`. Name it (`*, key`), put `functools.wraps` on the decorator "
        "that hides it, or call it without `key=`; `node_to_exclude` leaves nodes out.",
        eager(hides_its_key, key=KEY),
    ),
    # Its arguments.
    "arguments too many": wrong(
        TypeError,
        "Count.add() takes 2 positional arguments but 3 were given",
        batched("add", args=(1, 2)),
        "Raised by `add` of Count at `a.0`, in a collective call of chorax.",
    ),
    "arguments too few": wrong(
        TypeError,
        "Count.add() missing 1 required positional argument: 'other'",
        eager("add"),
        "Raised by `add` of Count at `a.0`, in a collective call of chorax.",
    ),
    "kwargs unknown": wrong(
        TypeError,
        "Count.add() got an unexpected keyword argument 'by'",
        batched("add", args=1, kwargs={"by": 1}),
        "Raised by `add` of Count at `a.0`, in a collective call of chorax.",
    ),
    "kwargs a list": wrong(
        TypeError,
        "`kwargs` must be a mapping or `None`, but got [('x', 1)] of type list.",
        batched("step", kwargs=[("x", 1)]),
    ),
    "kwargs a model": wrong(
        TypeError,
        "`kwargs` must be a mapping or `None`, but got a Box.",
        eager("step", kwargs=HUGE),
    ),
    "kwargs that can't be shown": wrong(
        TypeError,
        "`kwargs` must be a mapping or `None`, but got <BadRepr> of type BadRepr.",
        batched("step", kwargs=BadRepr()),
    ),
    "kwargs with other keys": wrong(
        TypeError,
        "`kwargs` must have `str` keys, but has [1, None].",
        batched("step", kwargs={1: 2, "a": 3, None: 4}),
    ),
    "kwargs with odd keys": wrong(
        TypeError,
        "`kwargs` must have `str` keys, but has [<BadRepr>, <BadEq>].",
        eager("step", kwargs={BadRepr(): 2, BadEq(): 3}),
    ),
    # The lanes.
    **{
        f"axis_size {name}": wrong(
            ValueError, size_text(got), batched("step", axis_size=size)
        )
        for name, size, got in [
            ("missing", None, "it is missing"),
            ("zero", 0, "got 0 of type int"),
            ("negative", -2, "got -2 of type int"),
            ("a float", 2.0, "got 2.0 of type float"),
            ("no number", float("nan"), "got nan of type float"),
            ("a bool", True, "got True of type bool"),
            ("a string", "4", "got '4' of type str"),
            ("a list", [4], "got [4] of type list"),
            ("an array", i32(), "got an array of dtype int32 and shape ()"),
            ("a big array", BIG, "got an array of dtype float32 and shape (50, 50)"),
            ("a NumPy zero", np.int32(0), "got 0 of type numpy.int32"),
            ("a model", HUGE, "got a Box"),
            ("that can't be shown", BadRepr(), "got <BadRepr> of type BadRepr"),
        ]
    },
    "axis_size traced": wrong(
        ValueError,
        size_text("got a traced array of dtype int32 and shape ()"),
        traced(lambda target, n: batched("step", axis_size=n)(target)),
    ),
    **{
        f"chunk_size {name}": wrong(
            ValueError, chunk_text(got), batched("step", chunk_size=size)
        )
        for name, size, got in [
            ("zero", 0, "got 0 of type int"),
            ("a float", 1.5, "got 1.5 of type float"),
            ("a bool", True, "got True of type bool"),
            ("an array", i32(2), "got an array of dtype int32 and shape (2,)"),
        ]
    },
    "chunks and a named axis": wrong(
        ValueError,
        "`chunk_size` and `axis_name` do not go together: lanes of different chunks "
        "can't meet. Drop one of them.",
        batched("step", chunk_size=2, axis_name="lanes"),
    ),
    "axis_name a list": wrong(
        TypeError,
        name_text("['lanes'] of type list"),
        batched("step", axis_name=["lanes"]),
    ),
    "axis_name an array": wrong(
        TypeError,
        name_text("an array of dtype float32 and shape (50, 50)"),
        batched("step", axis_name=BIG),
    ),
    "spmd_axis_name a set": wrong(
        TypeError,
        name_text("{'lanes'} of type set", "spmd_axis_name"),
        batched("step", spmd_axis_name={"lanes"}),
    ),
    "spmd_axis_name with a list in it": wrong(
        TypeError,
        name_text("(['lanes'],) of type tuple", "spmd_axis_name"),
        batched("step", spmd_axis_name=(["lanes"],)),
    ),
    # Filters.
    **{
        f"{parameter} {name}": wrong(
            TypeError,
            filter_text(got),
            batched("step", **{parameter: value}),
            given(parameter),
        )
        for parameter in ("node_to_exclude", "state_to_exclude")
        for name, value, got in [
            ("a number", 3.5, "3.5 of type float"),
            ("a set", {"a"}, "{'a'} of type set"),
            ("a dict of a model", {"a": HUGE}, "{'a': Box(...)} of type dict"),
            ("an array", BIG, "an array of dtype float32 and shape (50, 50)"),
            ("a list with a number in it", [Count, (7,)], "7 of type int"),
            ("a generic", list[int], "list[int] of type GenericAlias"),
            ("that can't be shown", BadRepr(), "<BadRepr> of type BadRepr"),
            (
                "a function of nothing",
                no_parameters,
                "no_parameters of type function whose required positional parameters "
                "are not one or two",
            ),
        ]
    },
    "a filter that asks for values": wrong(
        ValueError,
        told_by_jax(lambda: bool(f32(2))),
        eager("step", node_to_exclude=asks_for_values),
        "Raised by the filter asks_for_values at `a.0`.",
    ),
    "a filter with a keyword": wrong(
        TypeError,
        "needs_keyword() missing 1 required keyword-only argument: 'by'",
        eager("step", node_to_exclude=needs_keyword),
        "Raised by the filter needs_keyword at `a.0`.",
    ),
    # Other options.
    **{
        f"state_tag {name}": wrong(
            TypeError,
            f"`state_tag` must be a `str` or `None`, but got {got}.",
            batched("step", state_tag=tag),
        )
        for name, tag, got in [
            ("a number", 3, "3 of type int"),
            ("a list", ["a"], "['a'] of type list"),
            ("bytes", b"a", "b'a' of type bytes"),
            ("an array", BIG, "an array of dtype float32 and shape (50, 50)"),
        ]
    },
    **{
        f"fn_if_not_exist {name}": wrong(
            ValueError, mode_text(got), act("step", fn_if_not_exist=mode)
        )
        for name, act, mode, got in [
            ("unknown", batched, "ignore", "'ignore'"),
            ("in capitals", eager, "Raise", "'Raise'"),
            ("None", eager, None, "None"),
            ("a bool", batched, True, "True"),
            ("a list", eager, ["pass"], "['pass']"),
            ("an array", batched, BIG, "float32[50, 50]"),
            ("that can't be shown", eager, BadRepr(), "<BadRepr>"),
        ]
    },
    **{
        f"has_aux {name}": wrong(
            TypeError,
            f"`has_aux` must be `True` or `False`, but got {got}.",
            act("step", has_aux=flag),
        )
        for name, act, flag, got in [
            ("a number", batched, 1, "1 of type int"),
            ("None", eager, None, "`None`"),
            (
                "of NumPy",
                eager,
                np.True_,
                f"True of type numpy.{type(np.True_).__name__}",
            ),
            ("an array", batched, BIG, "an array of dtype float32 and shape (50, 50)"),
        ]
    },
    # Keys.
    **{
        f"key {name}": wrong(TypeError, key_text(got), batched("draw", key=key))
        for name, key, got in [
            ("a number", 0, "0 of type int"),
            ("a string", "seed", "'seed' of type str"),
            ("floats", f32(2), "an array of dtype float32 and shape (2,)"),
            ("integers", i32(2), "an array of dtype int32 and shape (2,)"),
            ("a list of keys", [KEY, KEY], "[key<fry>[], key<fry>[]] of type list"),
            ("a model", HUGE, "a Box"),
            ("that can't be shown", BadRepr(), "<BadRepr> of type BadRepr"),
        ]
    },
    **{
        f"keys of shape {shape}": wrong(
            ValueError,
            keys_text(shape),
            batched("draw", key=jnp.broadcast_to(KEY, shape)),
        )
        for shape in [(0,), (3,), (5,), (4, 2), (1, 4)]
    },
    **{
        f"legacy keys of shape {shape}": wrong(
            ValueError,
            keys_text(shape),
            batched("draw", key=jnp.zeros((*shape, *WORDS), jnp.uint32)),
        )
        for shape in [(0,), (3,), (4, 4)]
    },
    **{
        f"a legacy key of shape {shape}": wrong(
            ValueError,
            words_text(shape),
            batched("draw", key=np.zeros(shape, np.uint32)),
        )
        for shape in [(), (0,), (3,), (4, 3)]
    },
    "keys without lanes": wrong(
        ValueError,
        many_keys_text("(3,)"),
        eager("draw", key=jnp.broadcast_to(KEY, (3,))),
    ),
    "a number for a key without lanes": wrong(
        TypeError, one_key_text("0 of type int"), eager("draw", key=0)
    ),
    # The mask.
    **{
        f"where {name}": wrong(kind, mask_text(but), batched("step", where=mask))
        for name, mask, kind, but in [
            ("a bool", True, TypeError, "got True of type bool"),
            ("a string", "yes", TypeError, "got 'yes' of type str"),
            ("a set", {True}, TypeError, "got {True} of type set"),
            ("a model", HUGE, TypeError, "got a Box"),
            ("ragged", [[True], True], TypeError, "got [[True], True] of type list"),
            ("of floats", f32(4), TypeError, "its dtype is float32"),
            ("of numbers", [1, 0, 1, 0], TypeError, "its dtype is int64"),
            ("of None", [None] * 4, TypeError, "its dtype is object"),
            ("of strings", ["a"] * 4, TypeError, "its dtype is <U1"),
            ("of strings in NumPy", np.array(["a"] * 4), TypeError, "its dtype is <U1"),
            ("too short", jnp.ones(3, bool), ValueError, "its shape is (3,)"),
            ("empty", [], ValueError, "its shape is (0,)"),
            ("a matrix", np.ones((4, 1), bool), ValueError, "its shape is (4, 1)"),
            ("a scalar", jnp.array(True), ValueError, "its shape is ()"),
        ]
    },
    # Axes.
    **{
        f"in_axes {name}": wrong(
            TypeError, axes_text(got), batched("step", in_axes=axes)
        )
        for name, axes, got in [
            ("a string", "x", "'x'"),
            ("a bool", True, "True"),
            ("a float", 1.5, "1.5"),
            ("of NumPy", np.int32(0), "numpy.int32(0)"),
            ("an array", BIG, "float32[50, 50]"),
            ("a function to strings", lambda leaf: "a", "'a'"),
            ("that can't be shown", BadRepr(), "<BadRepr>"),
        ]
    },
    "in_axes with a string deep in it": wrong(
        TypeError,
        axes_text("'0'", "`a.1.x`"),
        batched("step", in_axes={"a": [None, Box(None, "0")]}),
    ),
    "in_axes a function that raises": wrong(
        KeyError,
        "'no'",
        batched("step", in_axes={"a": [None, bad_filter]}),
        "Raised by the function in `in_axes` at `a.1`.",
    ),
    "in_axes of another tree": wrong(
        ValueError,
        part_text("the root `()`", "a dict of ['b']", "a dict of ['a']"),
        batched("step", in_axes={"b": 0}),
    ),
    "in_axes too short": wrong(
        ValueError,
        part_text("`a`", "a list of [0]", "a list of [0, 1]"),
        batched("step", in_axes={"a": [None]}),
    ),
    "in_axes too deep": wrong(
        ValueError,
        part_text("`a.1.x`", "a list of [0]", "an array"),
        batched("step", in_axes={"a": [None, Box(None, [0])]}),
    ),
    "in_axes of another model": wrong(
        ValueError,
        part_text("the root `()`", "a list of [0]", "a dict of ['a']"),
        lambda target: batched("step", in_axes=delta_of(4))(target),
        runs=None,
    ),
    "in_axes of other lanes": wrong(
        ValueError,
        length_text("`0.x`", 0, 4, "3 there", "(3, 2)"),
        lambda target: batched("step", in_axes=delta_of(3))(target),
        target=[Count(f32(3, 2))],
        runs=None,
    ),
    "in_axes to an axis of another length": wrong(
        ValueError,
        length_text("`a.1.x`", 0, 4, "3 there", "(3,)"),
        batched("step", in_axes={"a": [None, Box(None, 0)]}),
    ),
    "in_axes to no axis": wrong(
        ValueError,
        length_text("`a.1.x`", -2, 4, "no such axis", "(3,)"),
        batched("step", in_axes={"a": [None, Box(None, -2)]}),
    ),
    "in_axes to no lanes": wrong(
        ValueError,
        length_text("`x`", 0, 4, "0 there", "(0, 2)"),
        batched("step", in_axes=0),
        target=Count(f32(0, 2)),
    ),
    "in_axes where lanes disagree": wrong(
        ValueError,
        length_text("`1.x`", 0, 4, "3 there", "(3,)"),
        batched("step", in_axes=0),
        target=[Count(f32(4)), Count(f32(3))],
    ),
    "in_axes to a string": wrong(
        ValueError,
        no_array_text("`x`", f"'{'x' * 27}...{'x' * 28}' of type str"),
        batched("step", in_axes=0),
        target=Count("x" * 5000),
    ),
    "in_axes to what can't be shown": wrong(
        ValueError,
        no_array_text("`x`", "<BadRepr> of type BadRepr"),
        batched("step", in_axes=0),
        target=Count(BadRepr()),
    ),
    "args_in_axes a string": wrong(
        TypeError,
        axes_text("'x'", "`0`", "args_in_axes"),
        batched("add", args=f32(4), args_in_axes="x"),
    ),
    "args_in_axes too many": wrong(
        ValueError,
        part_text(
            "the root `()`", "a tuple of [0, 1]", "a tuple of [0]", "args_in_axes"
        ),
        batched("add", args=(f32(4),), args_in_axes=(0, 0)),
    ),
    "args_in_axes to an axis of another length": wrong(
        ValueError,
        length_text("`0.a`", 0, 4, "3 there", "(3,)", "args_in_axes"),
        batched("add", args={"a": f32(3)}, args_in_axes=0),
    ),
    "args_in_axes to no lanes": wrong(
        ValueError,
        length_text("`0`", 1, 4, "0 there", "(4, 0)", "args_in_axes"),
        batched("add", args=f32(4, 0), args_in_axes=1),
    ),
    "args_in_axes to a number": wrong(
        ValueError,
        no_array_text("`1`", "2.0 of type float", "args_in_axes"),
        batched("add", args=(f32(4), 2.0), args_in_axes=0),
    ),
    "args_in_axes a function that raises": wrong(
        KeyError,
        "'no'",
        batched("add", args=f32(4), args_in_axes=bad_filter),
        "Raised by the function in `args_in_axes` at `0`.",
    ),
    "kwargs_in_axes a string": wrong(
        TypeError,
        axes_text("'other'", name="kwargs_in_axes"),
        batched("add", kwargs={"other": f32(4)}, kwargs_in_axes="other"),
    ),
    "kwargs_in_axes a tuple": wrong(
        ValueError,
        part_text(
            "the root `()`", "a tuple of [0]", "a dict of ['other']", "kwargs_in_axes"
        ),
        batched("add", kwargs={"other": f32(4)}, kwargs_in_axes=(0,)),
    ),
    "kwargs_in_axes of others": wrong(
        ValueError,
        "`kwargs_in_axes` names ['by'], but `kwargs` has only ['other'].",
        batched("add", kwargs={"other": f32(4)}, kwargs_in_axes={"by": 0}),
    ),
    "kwargs_in_axes to an axis of another length": wrong(
        ValueError,
        length_text("`other`", 0, 4, "3 there", "(3,)", "kwargs_in_axes"),
        batched("add", kwargs={"other": f32(3)}, kwargs_in_axes={"other": 0}),
    ),
    # What comes of it.
    "another shape to keep": wrong(
        ValueError,
        "Under `where`, lanes where it is false keep what they had, but `a.0.x` has "
        "nothing to keep: a lane had float32[5] there, and float32[2] was written. "
        "Call once without `where` first, or let the method keep shape and dtype.",
        batched("step", where=[True] * 4),
        target={"a": [Count(f32(5))]},
        runs=None,
    ),
    "a structure to keep": wrong(
        ValueError,
        "Under `where`, lanes where it is false keep what they had, but the call "
        "changed the structure at `child`, which is the same for all lanes: it was a "
        "leaf, it is None. Call without `where`.",
        batched("step", where=[True] * 4),
        target=Removes(f32(2)),
    ),
    "an excluded leaf to keep": wrong(
        ValueError,
        "Under `where`, lanes where it is false keep what they had, but `x` has "
        "nothing to keep: `state_to_exclude` makes it the same for all lanes. Do not "
        "exclude it, or call without `where`.",
        batched("step", where=[True] * 4, state_to_exclude=...),
        target=Count(f32(2)),
        runs=None,
    ),
    "nothing written": wrong(
        UserWarning, nothing_written("step"), eager("step"), target=[Last(), Last()]
    ),
    "a shared module written": wrong(
        UserWarning,
        "The same object stands at `0` and at `1.b`, and was written. PyTrees have no "
        "sharing: from here on the two part ways. To keep them tied, use "
        "`eqx.nn.Shared`.",
        batched("step"),
        target=(lambda node: [node, {"b": node}])(Count()),
        runs=None,
        in_jit=False,
    ),
    "a shared array written": wrong(
        UserWarning,
        "The same object stands at `0.x` and at `1.0.x`, and was written. PyTrees have "
        "no sharing: from here on the two part ways. To keep them tied, use "
        "`eqx.nn.Shared`.",
        eager("step"),
        target=(lambda x: (Count(x), [Count(x)]))(f32(2)),
        runs=None,
        in_jit=False,
    ),
    "nothing written in lanes": wrong(
        UserWarning, nothing_written("step"), batched("step"), target=(Last(),)
    ),
}


# The wrappers: each with the wrong options that it has.
_OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str, tuple[str, ...]]] = {
    "key": ({"key": "seed"}, TypeError, "", ()),
    "node_to_exclude": (
        {"node_to_exclude": 3.5},
        TypeError,
        filter_text("3.5 of type float"),
        (given("node_to_exclude"),),
    ),
    "state_to_exclude": (
        {"state_to_exclude": {1}},
        TypeError,
        filter_text("{1} of type set"),
        (given("state_to_exclude"),),
    ),
    "state_tag": (
        {"state_tag": 3},
        TypeError,
        "`state_tag` must be a `str` or `None`, but got 3 of type int.",
        (),
    ),
    "fn_if_not_exist": (
        {"fn_if_not_exist": "skip"},
        ValueError,
        mode_text("'skip'"),
        (),
    ),
    "has_aux": (
        {"has_aux": "no"},
        TypeError,
        "`has_aux` must be `True` or `False`, but got 'no' of type str.",
        (),
    ),
}
_LANE_OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "axis_size": ({"axis_size": None}, ValueError, size_text("it is missing")),
    "where": ({"where": "all"}, TypeError, mask_text("got 'all' of type str")),
    "in_axes": ({"in_axes": "all"}, TypeError, axes_text("'all'")),
    "args_in_axes": (
        {"args_in_axes": "all"},
        TypeError,
        axes_text("'all'", name="args_in_axes"),
    ),
    "kwargs_in_axes": (
        {"kwargs_in_axes": "all"},
        TypeError,
        axes_text("'all'", name="kwargs_in_axes"),
    ),
    "axis_name": (
        {"axis_name": []},
        TypeError,
        name_text("[] of type list"),
    ),
    "spmd_axis_name": (
        {"spmd_axis_name": {}},
        TypeError,
        name_text("{} of type dict", "spmd_axis_name"),
    ),
    "chunk_size": (
        {"chunk_size": "2"},
        ValueError,
        chunk_text("got '2' of type str"),
    ),
}


def _with(function, options):
    return lambda target: function(target, **options)


WRAPPERS: dict[str, Mistake] = {
    **{
        f"{function.__name__}, {name}": wrong(
            kind,
            text or (key_text if size else one_key_text)("'seed' of type str"),
            _with(function, size | options),
            *notes,
        )
        for function, size in [
            (chorax.init_all_states, {}),
            (chorax.reset_all_states, {}),
            (chorax.vmap_init_all_states, {"axis_size": 4}),
            (chorax.vmap_reset_all_states, {"axis_size": 4}),
        ]
        for name, (options, kind, text, notes) in _OPTIONS.items()
    },
    **{
        f"{function.__name__}, {name}": wrong(
            kind, text, _with(function, {"axis_size": 4, **options})
        )
        for function in (chorax.vmap_init_all_states, chorax.vmap_reset_all_states)
        for name, (options, kind, text) in _LANE_OPTIONS.items()
    },
    "a size by position, which is an argument": wrong(
        ValueError,
        size_text("it is missing")
        + " 8 went to the methods as `args`. Did you mean `axis_size=8`?",
        lambda target: chorax.vmap_init_all_states(target, 8),
    ),
    "an argument that the method does not take": wrong(
        TypeError,
        "Count.reset_state() takes 1 positional argument but 2 were given",
        lambda target: chorax.reset_all_states(target, 8),
        "Raised by `reset_state` of Count at `a.0`, in a collective call of chorax.",
    ),
    "an option of lanes, without lanes": wrong(
        TypeError,
        "Count.init_state() got an unexpected keyword argument 'axis_size'",
        lambda target: chorax.init_all_states(target, axis_size=8),
        "Raised by `init_state` of Count at `a.0`, in a collective call of chorax.",
        "`axis_size` is an option of the functions whose names begin with `vmap_`.",
    ),
    "no wrapped method at all": wrong(
        UserWarning,
        called_on_none("init_state"),
        lambda target: chorax.init_all_states(target),
        target=Box(1),
    ),
}
