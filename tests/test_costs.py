"""What calls cost, counted and not timed: methods traced, programs compiled and run.

The cases are those of the table of costs (`docs/pages/cost.md`), as functions of nodes,
kinds and lanes.
"""

import functools
import math
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import chorax
from benchmarks import models
from chorax import lanes
from counts import compiled, executed
from rows import quick


pytestmark = pytest.mark.usefixtures("needs_jit")
# On older versions the counts are bounds.
IS_NEW = jax.__version_info__ >= (0, 10)
# The oldest of them can't read a profile.
IS_COUNTED = getattr(jax.profiler, "ProfileData", None) is not None
# So many arrays are taken out of stacks by one program, and so many kinds go into one.
ARRAYS, KINDS = 48, 16


class Cost(NamedTuple):
    traced: int
    compiled: int
    executed: int


# Each call runs one small program to see what surrounds it, and one that makes the keys
# of all nodes where any node draws.
SEEN, KEYS = 1, 1


def of_alike(nodes: int, arrays: int = 3, kinds: int = 1) -> Cost:
    """Nodes of a kind run in one program, and are then taken out of its stacks."""
    calls = 0 if nodes == 1 else math.ceil(nodes / (ARRAYS // arrays))
    own = SEEN + KEYS + 1
    return Cost(kinds, own + min(calls, 1), own + calls)


def of_kinds(kinds: int) -> Cost:
    programs = SEEN + KEYS + math.ceil(kinds / KINDS)
    return Cost(kinds, programs, programs)


# Task, nodes and lanes.
CASES: dict[tuple[str, int, int], Cost] = {
    ("create", 1, 2): of_alike(1),
    ("create", 12, 2): of_alike(12),
    ("create", 12, 5): of_alike(12),
    ("create", 60, 2): of_alike(60),
    ("create", 200, 3): of_alike(200),
    # What computes the same is one program.
    ("kinds by class", 3, 2): of_alike(3, kinds=3),
    ("kinds by class", 12, 5): of_alike(12, kinds=12),
    ("kinds by shape", 3, 2): of_kinds(3),
    ("kinds by shape", 3, 5): of_kinds(3),
    ("kinds by shape", 20, 2): of_kinds(20),
    # What is big is not copied: each node runs on its own, by the same program.
    ("blocks", 2, 2): Cost(1, SEEN + 1, SEEN + 2),
    ("blocks", 3, 5): Cost(1, SEEN + 1, SEEN + 3),
    ("chain", 3, 2): of_alike(3, 1, kinds=3),
    ("chain", 6, 4): of_alike(6, 1, kinds=6),
    ("tree", 4, 2): of_alike(15, 1, kinds=4),
}


@pytest.fixture
def traced(monkeypatch):
    """The runs of the methods that are measured."""
    runs: list[Any] = []

    def count(cls, name):
        method = vars(cls)[name]

        @functools.wraps(method)
        def counted(self, **options):
            runs.append(type(self))
            return method(self, **options)

        monkeypatch.setattr(cls, name, counted)

    count(models.Neuron, "init_state")
    count(models.Link, "init_state")
    count(models.Block, "step")
    return runs


def work(task, nodes, size, key):
    model, options = models.make_model(task, nodes), {"axis_size": size}
    if task != "blocks":
        options["key"] = key
        return functools.partial(
            chorax.vmap_call_all_fns, model, "init_state", **options
        )
    model, axes = lanes.broadcast(model, size, lambda path, x: path[-1] == "v")
    return functools.partial(
        chorax.vmap_call_all_fns, model, "step", in_axes=axes, **options
    )


def assert_costs(found, expected):
    if IS_NEW:
        assert found == expected
    else:
        assert found <= expected


QUICK = [
    ("create", 12, 5),
    ("create", 60, 2),
    ("kinds by class", 3, 2),
    ("kinds by shape", 3, 2),
    ("blocks", 2, 2),
    ("chain", 3, 2),
]


@pytest.mark.parametrize(("task", "nodes", "size"), quick(CASES, QUICK))
def test_costs(task, nodes, size, traced, lane_key):
    run = work(task, nodes, size, lane_key)
    expected = CASES[task, nodes, size]
    # A process asks XLA once how it can be told to compile.
    chorax.call_all_fns(models.Neuron(1), "init_state", key=lane_key)
    traced.clear()
    jax.clear_caches()
    with compiled() as programs:
        run()
    assert len(traced) == expected.traced
    assert_costs(len(programs), expected.compiled)
    with compiled() as programs:
        run()
    assert len(traced) == expected.traced
    assert programs == []
    if IS_COUNTED:
        assert_costs(executed(run), expected.executed)


def test_a_reset_by_the_same_method_costs_a_lookup(traced, lane_key):
    run = work("create", 60, 2, lane_key)
    model, delta = run()
    traced.clear()
    again = functools.partial(
        chorax.vmap_call_all_fns,
        model,
        "init_state",
        axis_size=2,
        key=lane_key,
        in_axes=delta,
    )
    with compiled() as programs:
        again()
    assert programs == []
    assert len(traced) == 1


@pytest.mark.parametrize("nodes", [2, 20])
def test_a_call_in_a_jit_is_one_program(nodes, traced, lane_key):
    run = work("create", nodes, 2, lane_key)
    jitted = eqx.filter_jit(lambda key: run(key=key)[0])
    with compiled() as programs:
        jitted(lane_key)
    assert len(traced) == 1
    assert len(programs) == 1
    if IS_COUNTED:
        assert_costs(executed(lambda: jitted(lane_key)), 1)


def test_an_ensembles_forward_pass_is_the_one_written_by_hand(lane_key):
    mlp = eqx.nn.MLP(2, 3, 8, 2, key=lane_key)
    batched, delta = chorax.vmap_call_all_fns(
        mlp, chorax.reset_parameters, axis_size=4, key=lane_key
    )
    ensemble = lanes.Ensemble(batched, delta)
    arrays, static = eqx.partition(batched, eqx.is_array)
    x = jnp.ones(2)

    def program(call):
        def forward(arrays, x):
            return call(eqx.combine(arrays, static), x)

        lowered = jax.jit(forward).lower(arrays, x)
        # Without where in the source an operation comes from.
        text = re.sub(r", metadata=\{[^}]*\}", "", lowered.compile().as_text())
        tables = r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*"
        return lowered.as_text(), re.sub(tables, "", text, flags=re.MULTILINE).strip()

    over_lanes = functools.partial(eqx.filter_vmap, in_axes=(eqx.if_array(0), None))
    by_hand = program(over_lanes(lambda m, x: m(x)))
    assert all("dot" in text for text in by_hand)
    assert program(over_lanes(lambda m, x: m(x) + 1))[1] != by_hand[1]
    assert program(lambda m, x: chorax.replace(ensemble, model=m)(x)) == by_hand
    in_axes = (delta.in_axes, None)
    assert program(eqx.filter_vmap(lambda m, x: m(x), in_axes=in_axes)) == by_hand
