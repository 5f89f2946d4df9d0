"""Bad use: what is raised, before any work, and what it says."""

import dataclasses
import re
import warnings
from functools import partial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import chorax
from chorax import call_all_fns, call_order, replace, vmap_call_all_fns
from models import Constant, Draw, Plain


KEY = jax.random.key(0)


class Count(eqx.Module):
    """Tells whether it was ever called."""

    x: Any = None

    def step(self):
        RUNS.append(1)
        return replace(self, x=jnp.zeros(2))

    def add(self, other):
        return replace(self, x=jnp.zeros(2) + other)


RUNS: list[int] = []
NET = {"a": [Count(), Plain(Count(), jnp.ones(3))]}


def call(target=NET, name: Any = "step", **options):
    options.setdefault("fn_if_not_exist", "pass")
    return vmap_call_all_fns(target, name, **{"axis_size": 4, **options})


class NotCallable(eqx.Module):
    step: float = 0.5


class Raises(eqx.Module):
    def step(self):
        raise ZeroDivisionError("inside")


class Returns(eqx.Module):
    value: Any = eqx.field(static=True)

    def step(self):
        return self.value


CASES = {
    "axis_size missing": (
        lambda: call(axis_size=None),
        ValueError,
        "`axis_size` must be a positive integer, the number of lanes, but it is "
        "missing",
    ),
    "axis_size zero": (
        lambda: call(axis_size=0),
        ValueError,
        "`axis_size` must be a positive integer, the number of lanes, but got 0",
    ),
    "axis_size negative": (
        lambda: call(axis_size=-2),
        ValueError,
        "positive integer, the number of lanes, but got -2",
    ),
    "axis_size a float": (lambda: call(axis_size=2.0), ValueError, "but got 2.0"),
    "axis_size a bool": (lambda: call(axis_size=True), ValueError, "but got True"),
    "axis_size a string": (lambda: call(axis_size="4"), ValueError, "but got '4'"),
    "axis_size missing in a wrapper": (
        lambda: chorax.vmap_init_all_states(NET),
        ValueError,
        "`axis_size` must be a positive integer",
    ),
    "kwargs no mapping": (
        lambda: call(kwargs=[("x", 1)]),
        TypeError,
        "`kwargs` must be a mapping or `None`, but got [('x', 1)] of type list",
    ),
    "kwargs with other keys": (
        lambda: call(kwargs={1: 2}),
        TypeError,
        "`kwargs` must have `str` keys, but has [1]",
    ),
    "fn_name a number": (
        lambda: call(name=3),
        TypeError,
        "`fn_name` must be the name of a method or a callable",
    ),
    "a filter of another type": (
        lambda: call(node_to_exclude=3.5),
        TypeError,
        "Not a filter: 3.5 of type float",
    ),
    "a leaf filter of another type": (
        lambda: call(state_to_exclude={"a"}),
        TypeError,
        "Not a filter: {'a'} of type set",
    ),
    "a filter in a list": (
        lambda: call(node_to_exclude=[Count, 7]),
        TypeError,
        "Not a filter: 7 of type int",
    ),
    "an unknown mode": (
        lambda: call(fn_if_not_exist="ignore"),
        ValueError,
        "`fn_if_not_exist` must be one of 'raise', 'pass', 'none', 'warn', but got "
        "'ignore'",
    ),
    "an unknown mode, un-batched": (
        lambda: call_all_fns(Count(), "step", fn_if_not_exist=cast(Any, None)),
        ValueError,
        "`fn_if_not_exist` must be one of",
    ),
    "no such method": (
        lambda: call(fn_if_not_exist="raise"),
        AttributeError,
        "Plain at `a.1` has no method `step`",
    ),
    "no such method at the root": (
        lambda: call_all_fns(Count(), "nothing"),
        AttributeError,
        "Count at the root `()` has no method `nothing`",
    ),
    "not callable": (
        lambda: call([Count(), NotCallable()]),
        TypeError,
        "`step` of NotCallable at `1` is not callable, but a float",
    ),
    "no key": (
        lambda: call([Count(), Draw(2)]),
        ValueError,
        "`step` of Draw at `1` needs a `key`, and none was given",
    ),
    "no key for a function": (
        lambda: call(name=chorax.reset_parameters),
        ValueError,
        "`reset_parameters` needs a `key`, and none was given",
    ),
    "key twice": (
        lambda: call(Draw(2), key=KEY, kwargs={"key": KEY}),
        TypeError,
        "`key` is given twice to `step` of Draw at the root `()`",
    ),
    "key twice, once by position": (
        lambda: call(Positional(), key=KEY, args=(KEY,)),
        TypeError,
        "`key` is given twice to `step` of Positional",
    ),
    "no key at all": (
        lambda: call(key="seed"),
        TypeError,
        "`key` must be a PRNG key, as `jax.random.key(0)` makes, or an array of them, "
        "one a lane; got 'seed' of type str",
    ),
    "a float array for a key": (
        lambda: call(key=jnp.zeros(2, jnp.float32)),
        TypeError,
        "got an array of dtype float32 and shape (2,)",
    ),
    "keys for other lanes": (
        lambda: call(key=jax.random.split(KEY, 3)),
        ValueError,
        "one a lane: expected shape (4,), got (3,)",
    ),
    "legacy keys for other lanes": (
        lambda: call(key=jax.random.split(jax.random.PRNGKey(0), 3)),
        ValueError,
        "one a lane: expected shape (4,), got (3,)",
    ),
    "a table of legacy keys": (
        lambda: call(key=jax.random.key_data(jax.random.split(KEY, (4, 3)))),
        ValueError,
        "one a lane: expected shape (4,), got (4, 3)",
    ),
    "a legacy key of another shape": (
        lambda: call(key=jnp.zeros((4, 3), jnp.uint32)),
        ValueError,
        f"a legacy one has shape {jax.random.key_data(KEY).shape}",
    ),
    "keys without lanes": (
        lambda: call_all_fns(Draw(2), "step", key=jax.random.split(KEY, 3)),
        ValueError,
        "`key` must be one PRNG key, but got an array of them of shape (3,)",
    ),
    "a mapped leaf of another length": (
        lambda: call(in_axes={"a": [None, Plain(None, 0)]}),
        ValueError,
        "`in_axes` maps `a.1.x` along axis 0, which must be `axis_size` = 4 long, but "
        "it has 3 there: its shape is (3,)",
    ),
    "a mapped leaf without that axis": (
        lambda: call(in_axes={"a": [None, Plain(None, 1)]}),
        ValueError,
        "`in_axes` maps `a.1.x` along axis 1, which must be `axis_size` = 4 long, but "
        "it has no such axis: its shape is (3,)",
    ),
    "a mapped leaf that is no array": (
        lambda: call([Constant(n=3)], in_axes=0),
        ValueError,
        "`in_axes` maps `0.n` along axis 0, but it is no array: 3 of type int",
    ),
    "axes of another structure": (
        lambda: call(in_axes={"b": 0}),
        ValueError,
        "`in_axes` must be a prefix of the tree it describes, but they part at the "
        "root `()`: a dict of ['b'] against a dict of ['a'].",
    ),
    "axes of another type": (
        lambda: call(in_axes={"a": ["x", None]}),
        TypeError,
        "`in_axes` must hold `None`, integers and functions of a leaf, as in "
        "`eqx.filter_vmap`, but has 'x' at `a.0`",
    ),
    "an axis that is a bool": (
        lambda: call(in_axes={"a": [True, None]}),
        TypeError,
        "functions of a leaf, as in `eqx.filter_vmap`, but has True at `a.0`",
    ),
    "a mapped argument of another length": (
        lambda: call(name="add", args=jnp.zeros(3), args_in_axes=0),
        ValueError,
        "`args_in_axes` maps `0` along axis 0, which must be `axis_size` = 4 long, but "
        "it has 3 there",
    ),
    "a mapped keyword of another length": (
        lambda: call(name="add", kwargs={"other": jnp.zeros(3)}, kwargs_in_axes=0),
        ValueError,
        "`kwargs_in_axes` maps `other` along axis 0",
    ),
    "axes for a keyword that is not there": (
        lambda: call(name="add", args=1, kwargs_in_axes={"by": 0}),
        ValueError,
        "`kwargs_in_axes` names ['by'], but `kwargs` has only []",
    ),
    "chunks and a named axis": (
        lambda: call(chunk_size=2, axis_name="lanes"),
        ValueError,
        "`chunk_size` and `axis_name` do not go together",
    ),
    "a chunk of nothing": (
        lambda: call(chunk_size=0),
        ValueError,
        "`chunk_size` must be a positive integer, lanes at a time, but got 0",
    ),
    "where of another shape": (
        lambda: call(where=jnp.ones(3, bool)),
        ValueError,
        "`where` must be a boolean array of shape (4,), one entry a lane, but its "
        "shape is (3,)",
    ),
    "where of another dtype": (
        lambda: call(where=jnp.ones(4, jnp.float32)),
        TypeError,
        "`where` must be a boolean array of shape (4,), one entry a lane, but its "
        "dtype is float32",
    ),
    "where that is no array": (
        lambda: call(where=True),
        TypeError,
        "one entry a lane, but got True of type bool",
    ),
    "a tag that is no string": (
        lambda: call(state_tag=3),
        TypeError,
        "`state_tag` must be a `str` or `None`, but got 3 of type int",
    ),
    "has_aux that is no bool": (
        lambda: call(has_aux=1),
        TypeError,
        "`has_aux` must be `True` or `False`, but got 1 of type int",
    ),
    "no node": (
        lambda: call({"a": [jnp.ones(2), "text"]}),
        ValueError,
        "The target holds no `eqx.Module` to call anything on",
    ),
    "only plumbing": (
        lambda: call(eqx.nn.StateIndex(jnp.zeros(2))),
        ValueError,
        "The target holds no `eqx.Module`",
    ),
    "two nodes of one name": (
        lambda: call({"a.b": Count(), "a": {"b": Count()}}, has_aux=True),
        ValueError,
        "Two nodes have the dotted path `a.b`",
    ),
}


class Positional(eqx.Module):
    def step(self, key):
        return self


@pytest.mark.parametrize("name", sorted(CASES))
def test_bad_use_raises_before_any_work(name):
    make, kind, message = CASES[name]
    RUNS.clear()
    before = jtu.tree_leaves(NET)
    with pytest.raises(kind, match=re.escape(message)) as info:
        make()
    assert type(info.value) is kind
    assert not RUNS
    assert all(x is y for x, y in zip(before, jtu.tree_leaves(NET), strict=True))


RESULTS = {
    "nothing": (
        None,
        False,
        "`step` of Returns at `a` must return a Returns, but returned `None`. Return "
        "the updated node, or `return self` if nothing changes.",
    ),
    "something else": (
        3,
        False,
        "must return a Returns, but returned an int. Return the updated node",
    ),
    "another class": (Count(), False, "must return a Returns, but returned a Count."),
    "a pair without has_aux": (
        (1, 2),
        False,
        "To return `(node, aux)`, pass `has_aux=True`.",
    ),
    "no pair with has_aux": (
        3,
        True,
        "`step` of Returns at `a` must return `(node, aux)`, since `has_aux=True`, but "
        "returned an int.",
    ),
    "a pair of something else": (
        (None, 2),
        True,
        "must return a Returns, but returned `None`.",
    ),
}


@pytest.mark.parametrize("lanes", [None, 2])
@pytest.mark.parametrize("name", sorted(RESULTS))
def test_methods_must_return_a_node_of_their_class(name, lanes):
    value, has_aux, message = RESULTS[name]
    run: Any = call_all_fns if lanes is None else partial(call, axis_size=lanes)
    with pytest.raises(TypeError, match=re.escape(message)):
        run({"a": Returns(value)}, "step", has_aux=has_aux)


def test_a_subclass_is_another_class():
    class Becomes(Count):
        def step(self):
            return Sub(self.x)

    class Sub(Becomes):
        pass

    with pytest.raises(TypeError, match="must return a Becomes, but returned a Sub"):
        call_all_fns(Becomes(), "step")


def test_a_missing_method_is_warned_of():
    with pytest.warns(UserWarning, match=r"^Plain at `a\.1` has no method `step`") as w:
        model, _ = call(fn_if_not_exist="warn")
    assert [x.filename for x in w] == [__file__]
    assert model["a"][1].child.x.shape == (4, 2)


def test_a_bad_mode_is_an_error_even_if_no_method_is_missing():
    with pytest.raises(ValueError, match="fn_if_not_exist"):
        vmap_call_all_fns(
            Count(), "step", axis_size=2, fn_if_not_exist=cast(Any, "skip")
        )


class Removes(eqx.Module):
    child: Any

    def step(self):
        return replace(self, child=None)


class Exchanges(eqx.Module):
    child: Any

    def step(self):
        return replace(self, child=Constant())


class Last(eqx.Module):
    @call_order(1)
    def step(self):
        return self


@pytest.mark.parametrize("lanes", [None, 2])
@pytest.mark.parametrize(
    ("cls", "what"),
    [(Removes, "removed it"), (Exchanges, "changed its class to Constant")],
)
def test_a_node_that_is_gone_names_both(cls, what, lanes):
    tree = [Count(), Plain({"k": cls(Last())}, jnp.ones(1))]
    run: Any = call_all_fns if lanes is None else partial(call, axis_size=lanes)
    message = (
        "`step` was still to be called on the Last at `1.child.k.child`, but the "
        f"earlier call on the node at `1.child.k` {what}."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        run(tree, "step", fn_if_not_exist="pass")


def test_a_node_that_an_outer_call_removed_names_the_outer():
    class Outer(eqx.Module):
        child: Any

        def step(self):
            return replace(self, child=[])

    with pytest.raises(ValueError, match="earlier call on the node at the root"):
        call_all_fns(Outer([Plain(Last(), 1)]), "step", fn_if_not_exist="pass")


def test_nothing_written_is_warned_of():
    with pytest.warns(UserWarning, match="`step` wrote nothing at all") as w:
        model, delta = call_all_fns(Last(), "step")
    assert [x.filename for x in w] == [__file__]
    assert delta.paths == ()
    with pytest.warns(
        UserWarning, match="`nothing` wrote nothing at all: it was .* no node"
    ):
        chorax.call_all_fns(Last(), "nothing", fn_if_not_exist="pass")
    with pytest.warns(UserWarning, match="`init_state` wrote nothing at all") as w:
        chorax.vmap_init_all_states(Last(), axis_size=2)
    assert [x.filename for x in w] == [__file__]


def test_states_that_were_never_made_are_told_of():
    class Neuron(eqx.Module):
        v: Any = None

        def init_state(self):
            return replace(self, v=jnp.zeros(2))

        def reset_state(self, by):
            return replace(self, v=self.v * by)

    with pytest.raises(TypeError, match="NoneType") as info:
        chorax.vmap_reset_all_states([Neuron()], 0.0, axis_size=2)
    assert "make the states first, by `init_all_states`" in " ".join(
        info.value.__notes__
    )
    made, _ = chorax.init_all_states([Neuron()])
    with pytest.raises(TypeError, match="scalar") as info:
        chorax.reset_all_states(made, "text")
    assert "make the states first" not in " ".join(info.value.__notes__)


def test_a_change_of_structure_alone_is_no_reason_to_warn():
    class Structure(eqx.Module):
        x: Any
        n: int = eqx.field(static=True, default=0)

        def step(self):
            return replace(self, n=1)

        def drop(self):
            return replace(self, x=None)

    model, delta = call_all_fns(Structure(jnp.ones(1)), "step")
    assert model.n == 1
    assert delta.paths == ()
    model, delta = call_all_fns(Structure(jnp.ones(1)), "drop")
    assert model.x is None


class Box(eqx.Module):
    x: Any
    y: Any = None

    def step(self):
        return replace(self, x=self.x + 1)

    def fill(self):
        return replace(self, y=jnp.zeros(1))


def shared_warnings(target, name="step"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call_all_fns(target, name)
    assert {w.filename for w in caught} <= {__file__}
    return [str(w.message) for w in caught]


def test_a_shared_array_that_was_written_is_warned_of():
    x = jnp.ones(2)
    [message] = shared_warnings([Box(x), Box(x), Box(x)])
    assert "same object stands at `0.x` and at `1.x`, and was written" in message
    assert "`eqx.nn.Shared`" in message


def test_a_shared_module_that_was_written_is_warned_of_once():
    box = Box(jnp.ones(2))
    [message] = shared_warnings({"a": box, "b": [box]})
    assert "same object stands at `a` and at `b.0`, and was written" in message


def test_a_shared_module_without_arrays():
    box = Box(None)
    [message] = shared_warnings([box, box], "fill")
    assert "stands at `0` and at `1`" in message


def test_what_is_shared_and_not_written_is_fine():
    x = jnp.ones(2)
    assert shared_warnings([Box(jnp.zeros(2), x), Box(jnp.zeros(2), x)]) == []
    assert shared_warnings([Box(0.5), Box(0.5)]) == []


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("lanes", [None, 2])
def test_an_exception_keeps_its_type_and_gains_a_note(jit, lanes):
    run: Any = call_all_fns if lanes is None else partial(call, axis_size=lanes)
    run = eqx.filter_jit(run) if jit else run
    tree = {"a": [Count(), Raises()]}
    with pytest.raises(ZeroDivisionError, match="inside") as info:
        run(tree, "step")
    note = "Raised by `step` of Raises at `a.1`, in a collective call of chorax."
    assert note in info.value.__notes__
    # Nothing is left behind: the next good call works.
    model, _ = call_all_fns(tree["a"][0], "step")
    assert model.x.shape == (2,)


def test_a_note_on_what_the_call_itself_gets_wrong():
    with pytest.raises(TypeError, match="unexpected keyword argument 'by'") as info:
        call(Count(), kwargs={"by": 1})
    assert "`step` of Count at the root `()`" in info.value.__notes__[0]


def test_a_note_on_what_fails_while_running(key):
    class Checked(eqx.Module):
        x: jax.Array

        def step(self):
            x = eqx.error_if(self.x, self.x < 0, "negative!")
            return replace(self, x=x + 1)

    model, _ = call_all_fns(Checked(jnp.ones(())), "step")
    assert model.x == 2
    with pytest.raises(Exception, match="negative!"):
        jax.block_until_ready(call_all_fns(Checked(-jnp.ones(())), "step"))


def test_the_first_to_fail_is_the_one_that_is_told():
    class Fails(eqx.Module):
        name: str
        child: Any = None

        def step(self):
            raise RuntimeError(self.name)

    # `first` comes after its child, and so in a later wave than `second`.
    tree = [Fails("first", Count()), Fails("second")]
    with pytest.raises(RuntimeError, match="first"):
        call_all_fns(tree, "step")
    tree = [Count(), Fails("outer", Fails("inner")), Fails("later")]
    with pytest.raises(RuntimeError, match="inner"):
        call_all_fns(tree, "step")

    class Marked(Fails):
        @call_order(0)
        def step(self):
            raise RuntimeError(self.name)

    with pytest.raises(RuntimeError, match="unmarked"):
        call_all_fns([Marked("marked"), Fails("unmarked")], "step")


def test_a_filter_that_raises_says_where():
    def bad(x):
        raise KeyError("no")

    with pytest.raises(KeyError, match="no") as info:
        call(node_to_exclude=bad)
    assert "at `a.0`" in info.value.__notes__[0]


WHERE = {
    "was None": (lambda: Box(jnp.ones(2)), "fill", "`0.y` has nothing to keep"),
    "other shape": (
        lambda: dataclasses.replace(Box(jnp.ones(2)), y=jnp.ones(3)),
        "fill",
        "`0.y` has nothing to keep: a lane had float32[3] there, and float32[1] was "
        "written",
    ),
    "other dtype": (
        lambda: dataclasses.replace(Box(jnp.ones(2)), y=jnp.ones(1, jnp.int32)),
        "fill",
        "`0.y` has nothing to keep: a lane had int32[1] there, and float32[1] was",
    ),
    "no array before": (
        lambda: dataclasses.replace(Box(jnp.ones(2)), y=0.5),
        "fill",
        "`0.y` has nothing to keep: there was no array before, but 0.5",
    ),
    "no array after": (
        lambda: Box(0.5),
        "step",
        "`0.x` has nothing to keep: what was written is no array",
    ),
}


@pytest.mark.usefixtures("in_32_bits")
@pytest.mark.parametrize("name", sorted(WHERE))
def test_where_needs_something_to_keep(name):
    make, method, message = WHERE[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call([make()], method, where=jnp.ones(4, bool))


def test_where_can_not_keep_an_excluded_leaf_or_a_structure():
    where = jnp.ones(4, bool)
    with pytest.raises(ValueError, match=r"makes it the same .* Do not exclude it"):
        call(
            dataclasses.replace(Box(jnp.ones(2)), y=jnp.ones(1)),
            "fill",
            where=where,
            state_to_exclude=True,
        )

    class Drops(eqx.Module):
        x: Any

        def step(self):
            return replace(self, x=None)

    with pytest.raises(ValueError, match="the call changed the structure at `x`"):
        call(Drops(jnp.ones(2)), where=where)


@pytest.mark.usefixtures("needs_jit")
def test_a_traced_static_field_is_refused():
    class Static(eqx.Module):
        x: jax.Array
        n: Any = eqx.field(static=True, default=0)

        def step(self):
            return replace(self, n=self.x + 1)

    with pytest.raises(TypeError, match="put a traced array into a static field"):
        call_all_fns(Static(jnp.ones(())), "step")


def test_a_property_that_raises_is_not_a_missing_method():
    class Broken(eqx.Module):
        @property
        def step(self):
            return cast(Any, self).nothing

    with pytest.raises(AttributeError, match="nothing") as info:
        call({"a": Broken()})
    assert "property `step` of Broken at `a`" in info.value.__notes__[0]


@pytest.mark.usefixtures("needs_jit")
def test_a_traced_value_in_a_static_dictionary_is_refused():
    class Static(eqx.Module):
        x: jax.Array
        n: Any = eqx.field(static=True, default=0)

        def step(self):
            return replace(self, n={"a": [self.x + 1]})

    with pytest.raises(TypeError, match="put a traced array into a static field"):
        call_all_fns(Static(jnp.ones(())), "step")


def test_warnings_under_a_wrapper_of_equinox_are_the_callers():
    with pytest.warns(UserWarning, match="wrote nothing") as w:
        eqx.filter_jit(call_all_fns)(Last(), "step")
    assert [x.filename for x in w] == [__file__]


def test_a_field_may_be_called_module():
    class Wraps(eqx.Module):
        module: Any

    assert replace(Wraps(1), module=2).module == 2


def test_replace_wants_a_field():
    message = "Count has no field `y`; its fields are `x`."
    with pytest.raises(AttributeError, match=re.escape(message)):
        replace(Count(), y=1)
    with pytest.raises(TypeError, match="module"):
        replace({"a": 1}, a=2)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("level", [-1, 10, 99])
def test_call_order_has_bounds(level):
    with pytest.raises(ValueError, match=re.escape(f"in [0, 10), but got {level}")):
        call_order(level)
    assert call_order(level, check_order_boundary=False)(lambda x: x)


@pytest.mark.parametrize("level", [1.0, "1", None, True])
def test_call_order_takes_integers(level):
    with pytest.raises(TypeError, match="level"):
        call_order(level)


def test_two_children_of_one_key():
    tree = jtu.tree_map(lambda x: x, __import__("collections").OrderedDict())
    tree[1.5], tree["1.5"] = Count(), Count()
    with pytest.raises(ValueError, match="have the same key in a path"):
        call_all_fns(tree, "step")


def test_numpy_arrays_of_strings_are_no_arrays():
    model, _ = call_all_fns(Box(1, np.array(["a", "b"])), "step")
    assert model.x == 2
    assert model.y.tolist() == ["a", "b"]
