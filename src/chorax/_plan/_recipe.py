"""All that a collective call does, without the values.

It is a function of structure, shapes, methods and settings alone, so it is worked out
once and remembered; the same call again is a look at the target, the compiled
functions, and putting the arrays in place.
"""

import dataclasses
import functools
from collections.abc import Hashable, Mapping
from typing import Any

import jax

from .._lanes._axes import Axes
from .._text._places import Path
from .._text._warn import warn
from .._tree._memo import Cell, recipe_cell, surroundings
from ._doubts import doubts, shared_objects
from ._kind import ArraySpec, Lanes, place_of, spec_of, StaticSpec
from ._methods import definition_token
from ._planner import make_plan, Perform, Plan
from ._results import plan_results, Results
from ._select import Calls, find_methods


# So many calls are remembered that differ in the answers of `state_to_exclude` only.
_ANSWERS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A plan as it is run and remembered.

    `axes` are the lane axes of the target's leaves, and `answers` are those of
    `state_to_exclude`.
    """

    plan: Plan
    results: Results
    lanes: Lanes | None
    axes: Axes
    in_jit: bool
    warnings: tuple[str, ...]
    answers: Mapping[tuple[Path, jax.ShapeDtypeStruct], bool]
    # How it runs, which is decided when it first does.
    run: Cell = dataclasses.field(default_factory=Cell)

    @functools.cached_property
    def reads(self) -> frozenset[int]:
        """The names of all values that are read to make the results."""
        steps = {name for s in self.plan.steps for row in s.inputs for name in row}
        names = {
            name for each in self.results.arrays for name in (each.name, each.kept)
        }
        return frozenset(name for name in steps | names if name is not None)

    def lane_axis(self, name: int) -> int | None:
        """The lane axis of a value: in front, or none."""
        spec = self.plan.specs[name]
        return 0 if isinstance(spec, ArraySpec) and spec.has_lanes else None

    @functools.cached_property
    def moved(self) -> tuple[int, ...]:
        """The leaves that are read and whose lane axis is not in front."""
        axes = enumerate(self.axes)
        return tuple(i for i, axis in axes if axis and i in self.reads)


def find_recipe(calls: Calls, perform: Perform | None) -> Recipe:
    """The recipe of a call, remembered from an earlier one if there was one.

    With `perform` the methods run, and nothing is remembered.
    """
    recipe = _make(calls, False, perform) if perform else _remembered(calls)
    warn(recipe.warnings)
    warn(shared_objects(calls.tree, recipe.results.paths))
    return recipe


def _remembered(calls: Calls) -> Recipe:
    scene, in_jit = surroundings()
    try:
        cell = recipe_cell((scene, in_jit, _token(calls)))
    except TypeError:
        cell = Cell()  # Something can't be a key: nothing is remembered.
    known: tuple[Recipe, ...] = cell.value or ()
    for recipe in known:
        if calls.excludes is None or calls.excludes.say(recipe.answers):
            return recipe
    recipe = _make(calls, in_jit, None)
    if recipe.plan.lasts:
        recipe = _without_leaves(recipe, len(calls.tree.leaves))
        cell.value = (recipe, *known)[:_ANSWERS]
    return recipe


def _make(calls: Calls, in_jit: bool, perform: Perform | None) -> Recipe:
    methods, warnings = find_methods(calls)
    plan = make_plan(calls, methods, perform)
    results = plan_results(plan, calls)
    lanes = calls.request.lanes
    if lanes is not None and lanes.runs_per_device:
        spans = any(step.trace.computation.spans_devices for step in plan.steps)
        lanes = dataclasses.replace(lanes, is_one_program=spans)
    return Recipe(
        plan,
        results,
        lanes,
        calls.axes,
        in_jit,
        (*warnings, *doubts(plan, results, calls)),
        {} if calls.excludes is None else calls.excludes.answers,
    )


def _token(calls: Calls) -> Hashable:
    """What decides what a call does; `TypeError` if not all of it can be a key."""
    tree, request = calls.tree, calls.request
    if tree.exact is None:
        raise TypeError("Something static can't be hashed.")
    methods: tuple[Hashable, ...] = ()
    if isinstance(request.fn_name, str):
        name = request.fn_name
        methods = tuple(definition_token(cls, name) for cls in tree.survey.classes)
    return (
        tree.structure,
        tree.exact,
        tuple([_leaf_token(x) for x in tree.leaves]),
        calls.axes,
        calls.call.token,
        request.lanes,
        methods,
        request.fn_if_not_exist,
        tuple(request.bare_filters.items()),
        calls.excluded,
        None if calls.excludes is None else (calls.excludes.token,),
        request.where is not None,
        request.in_axes is not None,
        request.state_tag,
    )


def _leaf_token(x: Any) -> Hashable:
    if not isinstance(x, jax.Array):
        return spec_of(x, None).token
    place = place_of(x)
    # The type that JAX gives to an array says more than a spec, and is there already.
    return x.aval if place is None else (x.aval, place)


def _without_leaves(recipe: Recipe, count: int) -> Recipe:
    """The recipe without what a next call does not need, and without the target's
    leaves, which it would keep alive."""
    specs = recipe.plan.specs
    own = [x if isinstance(x, ArraySpec) else StaticSpec(None) for x in specs[:count]]
    specs = (*own, *specs[count:])
    plan = dataclasses.replace(recipe.plan, specs=specs, visits=())
    return dataclasses.replace(recipe, plan=plan)
