"""State deltas: what they contain, and what applying them does to a model."""

import copy
import pickle
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import chorax
import oracle
from chorax import apply_delta, call_all_fns, diff, replace, vmap_call_all_fns
from chorax.filters import PathContains
from models import Add, Constant, Draw, Drop, Pass, Plain, Retype


class Cell(eqx.Module):
    w: Any
    v: Any = None
    n: int = eqx.field(static=True, default=0)

    def init(self):
        return replace(self, v=self.w * 2)

    def forget(self):
        return replace(self, v=None)

    def count(self):
        return replace(self, n=self.n + 1)

    def both(self):
        return replace(self, v=self.w * 3, w=self.w + 1)


def cells(n=2):
    return [Cell(jnp.arange(3.0) + i) for i in range(n)]


def test_what_a_delta_holds():
    net = {"a": Constant(), "b": Plain(Pass(jnp.ones(2)), jnp.ones(2))}
    model, delta = vmap_call_all_fns(
        net, "step", axis_size=3, state_tag="s", fn_if_not_exist="pass"
    )
    assert delta.axis_size == 3
    assert delta.paths == ("a.x", "a.n")
    assert delta.tags == {"a.x": {"s"}, "a.n": {"s"}}
    assert delta.values["a"].x is model["a"].x
    assert delta.values["a"].n == 4
    assert delta.values["b"].x is None
    assert jtu.tree_leaves(delta) == [model["a"].x, 4]
    assert delta.in_axes["a"].x == 0
    assert delta.in_axes["a"].n is None
    assert delta.filter_spec["a"].n is True
    assert delta.filter_spec["b"].child.x is False
    assert list(delta.to_dict()) == ["a.x", "a.n"]
    assert delta.to_dict()["a.x"] is model["a"].x


def test_axes_and_spec_fit_equinox():
    net, delta = vmap_call_all_fns(cells(), "init", axis_size=4)
    states, shared = eqx.partition(net, delta.filter_spec)
    assert [x.shape for x in jtu.tree_leaves(states)] == [(4, 3)] * 2
    assert [x.shape for x in jtu.tree_leaves(shared)] == [(3,)] * 2

    def total(net):
        return jnp.stack([jnp.sum(cell.v * cell.w) for cell in net]).sum()

    out = eqx.filter_vmap(total, in_axes=(delta.in_axes,))(net)
    np.testing.assert_allclose(out, [total(call_all_fns(cells(), "init")[0])] * 4)

    def again(net):
        return jtu.tree_map(lambda x: x, net)

    same = eqx.filter_vmap(again, in_axes=(delta.in_axes,), out_axes=delta.in_axes)(net)
    oracle.assert_same(same, net)


def test_a_delta_is_a_pytree():
    _, delta = vmap_call_all_fns(cells(), "init", axis_size=4)
    doubled = jtu.tree_map(lambda x: x * 2, delta)
    np.testing.assert_array_equal(doubled.values[0].v, delta.values[0].v * 2)
    assert doubled.paths == delta.paths
    through = eqx.filter_jit(lambda d: d)(delta)
    assert through.paths == delta.paths
    oracle.assert_same(through.values, delta.values)

    def body(delta, _):
        return jtu.tree_map(lambda x: x + 1, delta), None

    after, _ = jax.lax.scan(body, delta, length=3)
    np.testing.assert_array_equal(after.values[1].v, delta.values[1].v + 3)


def test_apply_puts_values_into_either_structure():
    net = cells()
    model, delta = vmap_call_all_fns(net, "init", axis_size=4)
    oracle.assert_same(apply_delta(net, delta), model)
    oracle.assert_same(apply_delta(model, delta), model)
    other = [replace(cell, w=cell.w * 100) for cell in net]
    applied = apply_delta(other, delta)
    assert applied[0].w is other[0].w
    assert applied[0].v is model[0].v


def test_structure_is_recorded():
    net, _ = call_all_fns(cells(), "init")
    dropped, delta = call_all_fns(net, "forget")
    assert delta.paths == ()
    assert apply_delta(net, delta)[0].v is None
    assert jtu.tree_structure(apply_delta(net, delta)) == jtu.tree_structure(dropped)
    counted, delta = call_all_fns(net, "count")
    assert apply_delta(net, delta)[1].n == 1
    assert apply_delta(counted, delta)[1].n == 1
    assert delta.paths == ()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ([Cell(jnp.ones(1))], "at `1`, the model: lacks it; the delta: has it."),
        ([*cells(), 1], "at `2`, the model: has it; the delta: lacks it."),
        (tuple(cells()), "at the root `()`, the model: a tuple; the delta: a list."),
        ({"a": 1}, "at the root `()`, the model: a dict; the delta: a list."),
        (
            [Cell(jnp.ones(1)), Draw(2)],
            "at `1`, the model: a Draw; the delta: a Cell.",
        ),
        (
            [Cell(jnp.ones(1)), Cell(jnp.ones(1), n=5)],
            "at `1.n`, the model: 5; the delta: 0.",
        ),
        (
            [Cell(jnp.ones(1)), Cell(jnp.ones(1), [1])],
            "at `1.v`, the model: a list; the delta: None.",
        ),
        (
            [Cell(jnp.ones(1)), Cell({"a": 1})],
            "at `1.w`, the model: a dict; the delta: a leaf.",
        ),
    ],
)
def test_another_structure_names_the_first_difference(model, message):
    _, delta = vmap_call_all_fns(cells(), "init", axis_size=4)
    expected = "This model does not have the structure that the delta was made from: "
    with pytest.raises(ValueError, match=re.escape(expected + message)):
        apply_delta(model, delta)


def test_apply_wants_a_delta():
    with pytest.raises(TypeError, match="delta"):
        apply_delta(cells(), {"0.v": 1})  # pyright: ignore[reportArgumentType]


def test_diff_finds_what_changed():
    old = {"a": [1, 2], "b": None, "c": jnp.ones(2)}
    new = {"a": [1, 3], "b": jnp.zeros(1), "c": old["c"]}
    delta = diff(old, new)
    assert delta.paths == ("a.1", "b")
    assert delta.axis_size is None
    assert jtu.tree_leaves(delta.in_axes) == []
    applied = apply_delta(old, delta)
    assert applied["a"] == [1, 3]
    assert applied["c"] is old["c"]
    back = apply_delta(new, diff(new, old))
    assert back["b"] is None
    assert diff(old, old).paths == ()


class Mark:
    pass


def odd():
    """Non-array leaves, made anew by each call."""
    return {
        "nan": float("nan"),
        "half": float("0.5"),
        "text": "".join(["te", "xt"]),
        "pairs": frozenset({(1, 2)}),
        "mark": Mark(),
        "shared": eqx.nn.Shared([1.5, 1.5], *SAME_PLACE),
        "method": "text".upper,
    }


SAME_PLACE = (lambda x: x[1]), (lambda x: x[0])


def test_diff_tells_values_apart_as_a_call_does():
    assert diff(odd(), odd()).paths == ()
    zero, mark = float("0.0"), Mark()
    mark.value = 1  # pyright: ignore[reportAttributeAccessIssue]
    pairs = [
        (1, 1.0),
        (1, True),
        (zero, -zero),
        (float("nan"), zero),
        ((lambda: 1), (lambda: 1)),
        (Mark(), mark),
        (Mark(), object()),
        ({1}, {1}),
        (bytearray(b"a"), bytearray(b"a")),
        (np.ones(2), np.ones(2)),
        (np.float32(1), np.float32(1)),
        (jnp.sin, jnp.cos),
        (None, object()),
    ]
    for old, new in pairs:
        assert diff([old], [new]).paths == ("0",), (old, new)
        assert diff([], [new]).paths == ("0",), new


@pytest.mark.parametrize(
    "node", [Constant(), Drop(jnp.ones(2), jnp.ones(1)), Retype(1)]
)
def test_diff_agrees_with_calls(node):
    model, delta = call_all_fns([node], "step")
    found = diff([node], model)
    assert found.paths == delta.paths
    oracle.assert_same(apply_delta([node], found), model)


def test_select():
    net = {"a": cells(), "b": Constant()}
    _, one = vmap_call_all_fns(net["a"], "init", axis_size=2, state_tag="init")
    model, delta = vmap_call_all_fns(
        net, "both", axis_size=2, state_tag="t", fn_if_not_exist="pass"
    )
    part = delta.select(PathContains("w"))
    assert part.paths == ("a.0.w", "a.1.w")
    applied = apply_delta(net, part)
    assert applied["a"][0].v is None
    assert applied["a"][0].w is model["a"][0].w
    assert jtu.tree_leaves(part.in_axes) == [0, 0]
    assert delta.select("t").paths == delta.paths
    assert delta.select("other").paths == ()
    oracle.assert_same(apply_delta(net, delta.select(False)), net)
    assert one.select(lambda path, x: path[0] == 1).paths == ("1.v",)
    assert one.select(lambda x: x.shape == (2, 3)).paths == ("0.v", "1.v")
    with pytest.raises(TypeError, match="Not a filter"):
        one.select(3)  # pyright: ignore[reportArgumentType]


def test_a_selected_delta_fits_the_same_models():
    class Two(eqx.Module):
        a: Any = None
        b: Any = None

        def init(self):
            return replace(self, a=jnp.zeros(2), b=jnp.ones(2))

    net = [Two(), Two()]
    model, delta = vmap_call_all_fns(net, "init", axis_size=3)
    one, two = (delta.select(PathContains(name)) for name in "ab")
    states, rest = eqx.partition(model, one.filter_spec)
    assert [x.shape for x in jtu.tree_leaves(states)] == [(3, 2)] * 2
    assert states[0].b is None
    oracle.assert_same(eqx.combine(states, rest), model)
    assert one.in_axes[0].a == 0
    assert one.in_axes[0].b is None
    oracle.assert_same(apply_delta(model, one), model)
    assert apply_delta(net, one)[0].b is None
    oracle.assert_same(apply_delta(net, one | two), model)
    assert (one | two).paths == delta.paths


def test_select_keeps_what_was_mapped_before():
    net, first = vmap_call_all_fns(cells(), "init", axis_size=2)
    _, later = vmap_call_all_fns(net, "both", axis_size=2, in_axes=first)
    part = later.select(PathContains("w"))
    assert part.in_axes[0].v == 0
    assert part.filter_spec[0].v is False


def test_or_lets_the_later_value_win():
    net = cells()
    one, first = vmap_call_all_fns(net, "init", axis_size=2, state_tag="one")
    two, second = vmap_call_all_fns(
        one, "both", axis_size=2, in_axes=first, state_tag="two"
    )
    both = first | second
    oracle.assert_same(apply_delta(net, both), two)
    assert both.paths == ("0.w", "0.v", "1.w", "1.v")
    assert both.tags["0.v"] == {"one", "two"}
    assert both.tags["0.w"] == {"two"}
    assert jtu.tree_leaves(both.in_axes) == [0] * 4
    assert both.axis_size == 2


def test_or_over_changes_of_structure():
    net = cells()
    one, first = vmap_call_all_fns(net, "init", axis_size=2)
    two, second = vmap_call_all_fns(one, "forget", axis_size=2, in_axes=first)
    three, third = call_all_fns(two, "count")
    every = first | second | third
    assert every.paths == ()
    oracle.assert_same(apply_delta(net, every), three)
    assert apply_delta(net, every)[0].w is net[0].w
    four, fourth = vmap_call_all_fns(three, "init", axis_size=2)
    assert (every | fourth).paths == ("0.v", "1.v")
    oracle.assert_same(apply_delta(net, every | fourth), four)


def test_or_keeps_the_axes_that_the_later_call_was_not_told_of():
    net, first = vmap_call_all_fns(cells(), "init", axis_size=2)
    _, later = call_all_fns(net, "count")
    both = first | later
    assert both.in_axes[0].v == 0
    assert both.axis_size == 2


def test_or_refuses_what_does_not_follow():
    _, first = vmap_call_all_fns(cells(), "init", axis_size=2)
    _, other = vmap_call_all_fns(cells(3), "init", axis_size=2)
    with pytest.raises(ValueError, match="do not follow one another: at `2`"):
        _ = first | other
    net, _ = vmap_call_all_fns(cells(), "init", axis_size=3)
    _, three = vmap_call_all_fns(net, "both", axis_size=3)
    with pytest.raises(ValueError, match="have 2 and 3 lanes"):
        _ = first | three
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = first | 3  # pyright: ignore[reportOperatorIssue]


def test_to_dict_never_loses_a_leaf():
    delta = diff({"a.b": 0, "a": {"b": 0}}, {"a.b": 1, "a": {"b": 2}})
    assert len(delta.paths) == 2
    with pytest.raises(ValueError, match=re.escape("dotted path `a.b`")):
        delta.to_dict()


def test_leaves_that_were_mapped_before_keep_their_axis(key):
    net = [Add(jnp.ones((3, 2)), jnp.ones((2, 3)))]
    axes = [Add(0, 1)]  # pyright: ignore[reportArgumentType]
    batched, delta = vmap_call_all_fns(net, "step", axis_size=3, key=key, in_axes=axes)
    assert batched[0].w is net[0].w
    assert delta.paths == ("0.x",)
    assert (delta.in_axes[0].x, delta.in_axes[0].w) == (0, 1)


@pytest.mark.usefixtures("in_32_bits")
def test_a_delta_prints_as_a_table():
    net = {"cells": cells(1), "n": Constant()}
    _, delta = vmap_call_all_fns(
        net, "init", axis_size=8, state_tag="state", fn_if_not_exist="pass"
    )
    lines = repr(delta).splitlines()
    assert lines[0] == "StateDelta: 1 written leaf, 8 lanes, 96 B"
    assert lines[1].split() == ["path", "type", "shape", "tags", "bytes"]
    assert lines[2].split() == [
        "cells.0.v",
        "float32",
        "(8",
        "lanes,",
        "3)",
        "state",
    ] + [
        "96",
        "B",
    ]
    _, plain = call_all_fns(Constant(), "step")
    assert "StateDelta: 2 written leaves, no lanes, 12 B" in repr(plain)
    assert "n     int    4" in repr(plain)
    html = delta._repr_html_()
    assert "<td>cells.0.v</td>" in html
    assert "<td>(8 lanes, 3)</td>" in html
    assert str(delta) == repr(delta)


def test_a_table_of_anything():
    values = {
        "<b>": "x" * 99,
        "key": jax.random.key(0),
        "fn": jnp.tanh,
        "big": jnp.ones((600, 1000), jnp.float32),
        "root": 1,
    }
    delta = diff(dict.fromkeys(values), values)
    assert "2.3 MiB" in repr(delta)
    assert "..." in repr(delta)
    assert "&lt;b&gt;" in delta._repr_html_()
    assert "<b>" not in delta._repr_html_()
    assert "()" in repr(diff(1, 2))
    assert repr(diff(1, 1)) == "StateDelta: 0 written leaves, no lanes"


@pytest.mark.usefixtures("in_32_bits")
def test_rows_that_differ_in_their_indices_alone_are_folded():
    def paths_of(tree):
        rows = repr(diff(jax.tree.map(lambda _: None, tree), tree)).splitlines()[2:]
        return [row.split("  ")[0] for row in rows]

    one, two = jnp.ones(1), jnp.ones(2)
    assert paths_of([one] * 3) == ["0", "1", "2"]
    assert paths_of([one] * 4) == ["{0..3} (4)"]
    assert paths_of([one, two] * 4) == ["{0,2,4,6} (4)", "{1,3,5,7} (4)"]
    assert paths_of([{"a": one, "b": two}] * 9) == ["{0..8}.a (9)", "{0..8}.b (9)"]
    assert paths_of(dict.fromkeys("abcd", one)) == list("abcd")
    assert paths_of([[one, one], [one, one]]) == ["{0..1}.{0..1} (4)"]
    # Not every combination of these keys exists.
    assert paths_of([[one, one], [one, two], [one]]) == ["*.* (4)", "1.1"]
    assert paths_of([one, [one], [[one]], {"a": one}]) == ["0", "1.0", "2.0.0", "3.a"]
    big = repr(diff([None] * 1000, [one] * 1000)).splitlines()
    assert big[0] == "StateDelta: 1000 written leaves, no lanes, 3.9 KiB"
    assert big[2].split() == ["{0..999}", "(1000)", "float32", "(1,)", "3.9", "KiB"]


def test_a_delta_under_jit_and_grad(key):
    net = cells()

    def loss(net):
        _, delta = vmap_call_all_fns(net, "init", axis_size=2)
        return sum(jnp.sum(x) for x in jtu.tree_leaves(delta))

    grads = eqx.filter_grad(loss)(net)
    np.testing.assert_array_equal(grads[0].w, [4.0] * 3)


def test_serialises(tmp_path):
    net, delta = vmap_call_all_fns(cells(), "init", axis_size=2)
    eqx.tree_serialise_leaves(tmp_path / "delta.eqx", delta)
    like = jtu.tree_map(jnp.zeros_like, delta)
    loaded = eqx.tree_deserialise_leaves(tmp_path / "delta.eqx", like)
    oracle.assert_same(apply_delta(cells(), loaded), net)


def test_assign_state_values():
    net, delta = vmap_call_all_fns(cells(), "init", axis_size=2)
    fresh = [replace(cell, w=cell.w + 1) for cell in cells()]
    model, unexpected, missing = chorax.assign_state_values(fresh, delta.to_dict())
    assert unexpected == []
    assert missing == ["0.w", "1.w"]
    assert model[0].v is net[0].v
    assert model[0].w is fresh[0].w
    assert fresh[0].v is None


def test_assign_takes_many_mappings_and_both_forms_of_path():
    tree = {"a.b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}, "n": 3, "z": None}
    model, unexpected, missing = chorax.assign_state_values(
        tree,
        {("a.b",): np.ones(1, np.float32), "x": 1, ("n", 0): 2, 5: 0},
        {"n": 7, "x": 2, "z": 1.5},
    )
    assert isinstance(model["a.b"], jax.Array)
    assert model["n"] == 7
    assert model["z"] == 1.5
    assert unexpected == ["x", ("n", 0), 5]
    assert missing == [("a", "b")]
    with pytest.raises(ValueError, match=re.escape("2 leaves have the dotted path")):
        chorax.assign_state_values(tree, {"a.b": jnp.ones(1)})


def test_assign_makes_numbers_arrays_where_arrays_were():
    model, _, _ = chorax.assign_state_values({"a": jnp.zeros(())}, {"a": 2.0})
    assert isinstance(model["a"], jax.Array)


def test_assign_wants_mappings():
    with pytest.raises(TypeError, match="mapping"):
        chorax.assign_state_values({"a": 1}, [("a", 2)])  # pyright: ignore[reportArgumentType]


COPIES = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("name", COPIES)
def test_a_delta_is_copied_and_pickled(name, key):
    model = {"mlp": eqx.nn.MLP(2, 3, 4, 1, key=key), "n": None, "cell": [Pickled()]}
    steps = ("step", chorax.reset_parameters)
    options: dict[str, Any] = {"axis_size": 3, "key": key, "fn_if_not_exist": "pass"}
    batched, first = chorax.vmap_call_all_fns(model, steps[0], **options, state_tag="t")
    batched, second = chorax.vmap_call_all_fns(
        batched, steps[1], **options, in_axes=first
    )
    for delta in (first, second, first | second):
        found = COPIES[name](delta)
        oracle.assert_same(found, delta)
        assert found.paths == delta.paths
        assert found.tags == delta.tags
        oracle.assert_same(found.in_axes, delta.in_axes)
        oracle.assert_same(found.to_dict(), delta.to_dict())
        base = model if delta is first else batched
        oracle.assert_same(
            chorax.apply_delta(base, found), chorax.apply_delta(base, delta)
        )
    oracle.assert_same(COPIES[name](first) | second, first | second)


class Pickled(eqx.Module):
    x: Any = None
    label: str = eqx.field(static=True, default="a")

    def step(self, *, key):
        return chorax.replace(self, x=jax.random.normal(key, (2,)), label="b")


class Table(eqx.Module):
    x: Any
    rows: Any = eqx.field(static=True)

    def step(self):
        return replace(self, x=self.x + 1)

    def grow(self):
        return replace(self, rows=self.rows + 1)


# Equinox warns about them.
@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_arrays_in_static_fields():
    one, same, other = [[Table(jnp.ones(2), np.arange(3) // n)] for n in (1, 1, 2)]
    stepped, delta = call_all_fns(one, "step")
    oracle_of = [stepped[0].x.tolist(), stepped[0].rows.tolist()]
    found = apply_delta(same, delta)
    assert [found[0].x.tolist(), found[0].rows.tolist()] == oracle_of
    changed = diff(one, other)
    assert apply_delta(same, changed)[0].rows is other[0].rows
    both = diff(one, same) | changed
    assert apply_delta(one, both)[0].rows is other[0].rows
    batched, of_lanes = vmap_call_all_fns(one, "step", axis_size=3)
    again, _ = vmap_call_all_fns(
        [replace(batched[0], rows=same[0].rows)], "step", axis_size=3, in_axes=of_lanes
    )
    assert again[0].x.tolist() == [[3.0, 3.0]] * 3
    text = r"at `0\.rows`, the model: int64\[3\]; the delta: another int64\[3\]\."
    with pytest.raises(ValueError, match=text):
        apply_delta(other, delta)
    text = r"at `0\.rows`, earlier: int64\[3\]; later: another int64\[3\]\."
    with pytest.raises(ValueError, match=text):
        _ = delta | diff(other, other)


class Raising:
    __hash__ = object.__hash__

    def __eq__(self, other):
        raise RuntimeError("no eq")


def test_what_raises_when_compared_differs():
    one, other = ([Table(jnp.ones(2), (Raising(), 1))] for _ in range(2))
    assert apply_delta(one, diff(one, one))[0].rows is one[0].rows
    with pytest.raises(ValueError, match=r"at `0\.rows`, the model"):
        apply_delta(other, diff(one, one))
