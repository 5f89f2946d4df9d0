"""`explain` shows what the call then does."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest
from hypothesis import given

import chorax
import oracle
import trees
from calls import build, call, seeds
from chorax import call_all_fns, explain, replace, vmap_call_all_fns
from models import Add, Draw
from trees import axis_choices, keys_of, LANES, shapes


class Neuron(eqx.Module):
    weight: jax.Array
    v: Any = None

    def init_state(self, *, key):
        return replace(self, v=jax.random.normal(key, self.weight.shape))


class Sum(eqx.Module):
    below: Any
    total: Any = None

    def init_state(self):
        return replace(self, total=sum(x.v for x in self.below))


def net(count=2):
    return {
        "cells": Sum([Neuron(jnp.ones(3)) for _ in range(count)]),
        "other": Neuron(jnp.ones(4)),
        "norm": eqx.nn.LayerNorm(3),
    }


OPTIONS: dict[str, Any] = {"fn_if_not_exist": "pass"}


@pytest.mark.usefixtures("in_32_bits")
def test_the_table(key):
    found = explain(net(), "init_state", axis_size=8, key=key, **OPTIONS)
    assert repr(found) == (
        "`init_state` in 8 lanes: 4 calls of 3 kinds in 2 waves, "
        "4 written leaves, 416 B\n"
        "node           class   kind  wave  writes  before  after               "
        "  bytes\n"
        "cells.below.0  Neuron  1     1     v       None    float32 (8 lanes, 3)"
        "   96 B\n"
        "cells.below.1  Neuron  1     1     v       None    float32 (8 lanes, 3)"
        "   96 B\n"
        "cells          Sum     2     2     total   None    float32 (8 lanes, 3)"
        "   96 B\n"
        "other          Neuron  3     1     v       None    float32 (8 lanes, 4)"
        "  128 B\n"
        "\n"
        "1 node skipped\n"
        "node  class      why\n"
        "norm  LayerNorm  has no method `init_state`\n"
        "\n"
        "5 arrays shared by all lanes: no call writes them\n"
        "path                  type     shape  bytes\n"
        "cells.below.0.weight  float32  (3,)    12 B\n"
        "cells.below.1.weight  float32  (3,)    12 B\n"
        "norm.weight           float32  (3,)    12 B\n"
        "norm.bias             float32  (3,)    12 B\n"
        "other.weight          float32  (4,)    16 B"
    )


@pytest.mark.usefixtures("in_32_bits")
def test_equal_rows_are_folded(key):
    found = explain(net(1000), "init_state", axis_size=8, key=key, **OPTIONS)
    lines = repr(found).splitlines()
    assert len(lines) == 16
    assert lines[0].startswith("`init_state` in 8 lanes: 1002 calls of 3 kinds in 2")
    assert lines[2].startswith("cells.below.{0..999} (1000)  Neuron  1     1     v")
    assert lines[2].endswith("None    float32 (8 lanes, 3)  93.8 KiB")
    assert len(found.calls) == 1002


def test_as_html(key):
    html = explain(net(9), "init_state", key=key, **OPTIONS)._repr_html_()
    assert "without lanes: 11 calls" in html
    assert "<td>cells.below.{0..8} (9)</td><td>Neuron</td>" in html
    assert html.count("<table>") == html.count("</table>") == 2
    assert "<td>has no method `init_state`</td>" in html


def test_nothing_is_computed():
    class Huge(eqx.Module):
        x: Any = None

        def step(self, *, key):
            jax.debug.callback(lambda: pytest.fail("it ran"))
            return replace(self, x=jax.random.normal(key, (10**6, 10**6)))

    found = explain([Huge()] * 3, "step", axis_size=10**6, key=jax.random.key(0))
    assert found.bytes >= 3 * 4 * 10**18
    assert "EiB" in repr(found)


@pytest.mark.usefixtures("needs_jit")
def test_methods_run_once_per_kind_and_not_again_in_the_call(key):
    runs = []

    class Node(eqx.Module):
        x: Any = None

        def step(self, *, key):
            runs.append(self)
            return replace(self, x=jax.random.uniform(key, (3,)))

    made = [Node() for _ in range(5)]
    explain(made, "step", axis_size=4, key=key)
    assert len(runs) == 1
    vmap_call_all_fns(made, "step", axis_size=4, key=key)
    assert len(runs) == 1


def test_what_is_skipped(key):
    def skip(path, _):
        return path == ("other",)

    found = explain(net(), "init_state", key=key, node_to_exclude=skip, **OPTIONS)
    assert [(each.path, each.class_name, each.reason) for each in found.skipped] == [
        (("norm",), "LayerNorm", "has no method `init_state`"),
        (("other",), "Neuron", "`node_to_exclude`"),
    ]
    # No warning: the node is listed.
    found = explain(net(), "init_state", key=key, fn_if_not_exist="warn")
    assert [each.path for each in found.skipped] == [("norm",)]


@pytest.mark.parametrize("options", [{}, {"axis_size": 2}])
def test_nodes_without_the_method_are_listed_where_the_call_raises(options, key):
    options = {"key": key, **options}
    collective: Any = vmap_call_all_fns if "axis_size" in options else call_all_fns
    with pytest.raises(AttributeError, match="LayerNorm at `norm` has no method"):
        collective(net(), "init_state", **options)
    found = explain(net(), "init_state", **options)
    [norm] = found.skipped
    assert norm.path == ("norm",)
    assert norm.reason == "no method: the call would raise"
    assert repr(found).split("\n\n")[1] == (
        "1 node skipped\n"
        "node  class      why\n"
        "norm  LayerNorm  no method: the call would raise"
    )
    # The rest is as for calls that skip such nodes.
    for mode in ("pass", "none", "warn"):
        passed = explain(net(), "init_state", **options, fn_if_not_exist=mode)
        assert passed.skipped[0].reason == "has no method `init_state`"
        same = passed.calls, passed.paths, passed.bytes, passed.kinds
        assert same == (found.calls, found.paths, found.bytes, found.kinds)
    # No node has the method.
    found = explain(net(), "nope", **options, node_to_exclude=Neuron)
    assert [each.reason for each in found.skipped] == [
        "`node_to_exclude`",
        "`node_to_exclude`",
        "no method: the call would raise",
        "no method: the call would raise",
        "`node_to_exclude`",
    ]
    assert (found.calls, found.paths, found.kinds, found.waves) == ((), (), 0, 0)


def test_a_model_that_others_wrote_whose_layers_have_no_states(key):
    found = explain(eqx.nn.MLP(2, 2, 4, 2, key=key), "init_state", axis_size=3)
    assert repr(found).split("\n\n")[:2] == [
        "`init_state` in 3 lanes: 0 calls of 0 kinds in 0 waves, 0 written leaves, 0 B",
        "4 nodes skipped\n"
        "node      class   why\n"
        "layers.0  Linear  no method: the call would raise\n"
        "layers.1  Linear  no method: the call would raise\n"
        "layers.2  Linear  no method: the call would raise\n"
        "()        MLP     no method: the call would raise",
    ]


def test_calls_that_others_overwrite_do_not_run(key):
    class Over(eqx.Module):
        below: Any

        def init_state(self):
            return replace(self, below=replace(self.below, v=jnp.zeros(3)))

    found = explain(Over(Neuron(jnp.ones(3))), "init_state", axis_size=2, key=key)
    below, over = found.calls
    assert (below.wave, over.wave, found.waves) == (None, 1, 1)
    assert found.paths == ("below.v",)
    [first], [last] = below.writes, over.writes
    assert (first.before, last.after.shape) == (None, (2, 3))
    assert first.after == last.before


def test_leaves_that_are_put_back_are_not_written():
    class Swapped(eqx.Module):
        x: Any
        y: Any

        def step(self):
            return replace(self, x=self.y, y=self.x)

    class Again(eqx.Module):
        below: Any

        def step(self):
            new = replace(self.below, x=self.below.y, y=self.below.x)
            return replace(self, below=new)

    net = Again(Swapped(jnp.ones((2, 3)), jnp.zeros(3)))
    axes = Again(Swapped(0, None))
    options: dict[str, Any] = {"axis_size": 2, "in_axes": axes}
    found = explain(net, "step", **options)
    assert found.paths == ()
    last = {leaf.path[-1]: leaf for leaf in found.calls[1].writes}
    assert (last["x"].after.shape, last["x"].after_axis) == ((2, 3), 0)
    assert (last["y"].after.shape, last["y"].after_axis) == ((3,), None)


def test_levels_and_order():
    class Late(eqx.Module):
        x: Any

        @chorax.call_order(3)
        def step(self):
            return replace(self, x=self.x + 1)

    class Early(eqx.Module):
        x: Any
        below: Any = None

        def step(self):
            return replace(self, x=self.x + 1)

    found = explain([Late(jnp.ones(1)), Early(jnp.ones(1), Late(jnp.ones(1)))], "step")
    assert [each.path for each in found.calls] == [(1,), (0,), (1, "below")]
    # Levels order calls; a call that reads no result of another does not wait.
    assert [each.wave for each in found.calls] == [1, 1, 1]


def test_lane_axes_before_and_after(key):
    nodes = {"a": Add(jnp.ones((3, 2)), jnp.ones(3))}
    axes = {"a": Add(1, None)}  # pyright: ignore[reportArgumentType]
    found = explain(nodes, "step", axis_size=2, key=key, in_axes=axes)
    [change] = found.calls[0].writes
    assert (change.before.shape, change.before_axis) == ((3, 2), 1)
    assert (change.after.shape, change.after_axis) == ((2, 3), 0)
    assert "(3, 2 lanes)" in repr(found)
    found = explain([Draw(2)], "step", axis_size=2, key=jax.random.split(key))
    assert found.calls[0].writes[0].after.shape == (2, 2)


def test_excluded_leaves_have_no_lanes():
    class Count(eqx.Module):
        n: Any

        def step(self):
            return replace(self, n=self.n + 1)

    found = explain([Count(jnp.ones(3))], "step", axis_size=4, state_to_exclude=...)
    assert found.calls[0].writes[0].after.shape == (3,)
    assert found.calls[0].writes[0].after_axis is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"axis_size": 0}, ValueError, "`axis_size` must be a positive integer"),
        ({"where": [True]}, ValueError, "`axis_size` must be a positive integer"),
        ({"in_axes": 0}, ValueError, "`in_axes` maps `other.weight` along axis 0"),
        ({"chunk_size": 2}, ValueError, "the number of lanes, but it is missing"),
        ({"axis_name": "x"}, ValueError, "the number of lanes, but it is missing"),
        ({"spmd_axis_name": "x"}, ValueError, "the number of lanes, but it is missing"),
        ({"fn_if_not_exist": "no"}, ValueError, "`fn_if_not_exist` must be one of"),
        ({"key": None}, ValueError, "`init_state` of Neuron at `cells.below.0` needs"),
        ({"state_tag": 3}, TypeError, "`state_tag` must be a `str`"),
        ({"axis_size": 8, "where": [True] * 3}, ValueError, "`where` must be a bool"),
        (
            {"axis_size": 8, "where": [True] * 8},
            ValueError,
            "has nothing to keep",
        ),
    ],
)
def test_it_raises_what_the_call_would(options, kind, message, key):
    options = {"key": key, **OPTIONS, **options}
    with pytest.raises(kind, match=re.escape(message)):
        explain(net(), "init_state", **options)


def test_under_jit_and_without(key):
    made = [Neuron(jnp.ones(3))]
    seen = []

    @jax.jit
    def run(weight):
        net = [Neuron(weight)]
        seen.append(explain(net, "init_state", axis_size=2, key=key))
        return weight

    run(jnp.ones(3))
    with jax.disable_jit():
        seen.append(explain(made, "init_state", axis_size=2, key=key))
    seen.append(explain(made, "init_state", axis_size=2, key=key))
    assert repr(seen[0]) == repr(seen[1]) == repr(seen[2])


@given(shape=shapes, choices=axis_choices, seed=seeds)
def test_it_agrees_with_the_call(shape, choices, seed):
    tree, in_axes, _ = trees.with_lanes(build(shape), choices)
    keys = keys_of(seed)
    found = explain(
        tree,
        "step",
        axis_size=LANES,
        key=keys,
        in_axes=in_axes,
        fn_if_not_exist="pass",
    )
    batched, delta = call(tree, keys, in_axes=in_axes)
    assert found.paths == delta.paths
    written = [x for x in jtu.tree_leaves(delta) if eqx.is_array(x)]
    sizes = [x.size * x.dtype.itemsize for x in written]
    assert found.bytes == sum(sizes)
    # The last write to each leaf is in the result.
    now = oracle.leaves_by_path(batched)
    last = {leaf.path: leaf for each in found.calls for leaf in each.writes}
    for path, leaf in last.items():
        if leaf.after is None:
            assert now.get(path) is None
        elif eqx.is_array(now.get(path)) and path in delta_paths(delta):
            assert leaf.after.shape == now[path].shape
            assert leaf.after.dtype == now[path].dtype
    called = {each.path for each in found.calls}
    assert called | {each.path for each in found.skipped} == {
        path for path, node in oracle.children_first(tree) if oracle.is_node(node)
    }


def delta_paths(delta):
    return {path for path, _, record in delta.leaves() if record.written}


@pytest.mark.usefixtures("in_32_bits")
def test_layers_without_a_rule_are_listed(key):
    class Mine(eqx.Module):
        w: jax.Array
        layer: eqx.nn.Linear

    net = Mine(jnp.ones(2), eqx.nn.Linear(2, 3, key=key))
    found = explain(net, chorax.reset_parameters, axis_size=3, key=key)
    assert [(call.class_name, call.reason) for call in found.calls] == [
        ("Linear", ""),
        ("Mine", "no rule for Mine, holds 1 array of its own"),
    ]
    [row] = [line for line in repr(found).splitlines() if line.startswith("()")]
    cells = ["()", "Mine", "2", "-", "no rule for Mine, holds 1 array of its own"]
    assert re.split("  +", row.strip()) == cells
    assert repr(found).splitlines()[-1].split() == ["w", "float32", "(2,)", "8", "B"]
    assert [path for path, _ in found.shared] == [("w",)]
    drop = explain([eqx.nn.Dropout()], chorax.reset_parameters, axis_size=3, key=key)
    assert "nothing to draw" in repr(drop)
    assert drop.shared == ()
    other = explain(net, lambda node: node)
    assert [call.reason for call in other.calls] == ["nothing", "nothing"]
    assert "no rule" not in repr(other)
