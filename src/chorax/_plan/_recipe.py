"""All that a collective call comes to, but for the values.

It is a function of structure, shapes, methods and settings alone, so it is found once
and remembered; the same call again is a look at the target, the compiled functions, and
putting the arrays in place.
"""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu

from .._lanes._axes import Axes, check_leaf_lengths
from .._text._places import Path
from .._text._warn import warn
from .._tree._memo import Cell, recipe_cell, surroundings
from .._tree._nodes import Walked
from .._tree._paths import same_structure
from ._doubts import doubts
from ._excludes import Excludes
from ._finish import (
    describe,
    find_sources,
    place_leaves,
    Placed,
    Sources,
    written_paths,
)
from ._kind import ArraySpec, Call, Lanes, place_of, spec_of, StaticSpec
from ._methods import definition_token
from ._planner import make_plan, Plain, Plan, Visit
from ._request import excluded_leaves, Request
from ._select import excluded_nodes, select_nodes, Selection


# Of calls that differ in what `state_to_exclude` answers, so many are remembered.
_ANSWERS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A call without its values.

    `placed` are the leaves of the result, `sources` where they come from, and `delta`
    is the structure of the delta, whose leaves are the written ones. `calls` is the
    number of nodes that are called, and `answers` are those of `state_to_exclude`.
    """

    plan: Plan
    lanes: Lanes | None
    axes: Axes
    in_jit: bool
    sources: Sources
    placed: tuple[Placed, ...]
    delta: jtu.PyTreeDef
    written: tuple[Path, ...]
    changes_structure: bool
    calls: int
    warnings: tuple[str, ...]
    answers: Mapping[tuple[Path, jax.ShapeDtypeStruct], bool]
    # How it runs, which is decided when it first does.
    run: Cell = dataclasses.field(default_factory=Cell)

    @functools.cached_property
    def is_written(self) -> tuple[bool, ...]:
        """Whether each leaf of the result is written."""
        return tuple(leaf.written for leaf in self.placed)

    @functools.cached_property
    def reads(self) -> frozenset[int]:
        """The names of what is read to make the results, of the values at hand too."""
        steps = {name for s in self.plan.steps for row in s.inputs for name in row}
        names = {name for each in self.sources.made for name in (each.name, each.kept)}
        return frozenset(name for name in steps | names if name is not None)

    @functools.cached_property
    def moved(self) -> tuple[int, ...]:
        """The leaves that are read and whose lane axis is not in front."""
        axes = enumerate(self.axes)
        return tuple(i for i, axis in axes if axis and i in self.reads)


class Proposal(NamedTuple):
    """What a call comes to, before it is decided how it runs."""

    plan: Plan
    visits: Sequence[Visit]
    placed: tuple[Placed, ...]


def select(
    walked: Walked, request: Request, axes: Axes, excluded: frozenset[int]
) -> Selection:
    """Selects the nodes to call, once no leaf of the target stands in the way."""
    if request.lanes is not None:
        leaves, structure = walked.leaves, walked.structure
        check_leaf_lengths(leaves, structure, axes, request.lanes.size, "in_axes")
    return select_nodes(walked, request, excluded)


def propose(
    walked: Walked,
    selection: Selection,
    request: Request,
    axes: Axes,
    call: Call,
    excludes: Excludes | None,
    plain: Plain | None = None,
) -> Proposal:
    """Plans and places; `plain` is as in `make_plan`."""
    specs = [spec_of(x, axis) for x, axis in zip(walked.leaves, axes, strict=True)]
    methods = selection.methods
    plan, visits = make_plan(walked, methods, call, specs, excludes, plain)
    placed = place_leaves(plan, walked, request, excludes)
    return Proposal(plan, visits, placed)


def find_recipe(
    walked: Walked,
    request: Request,
    axes: Axes,
    call: Call,
    plain: Plain | None,
) -> Recipe:
    """The recipe of a call, remembered from an earlier one if there was one, but where
    methods are to run plainly."""
    excluded = excluded_nodes(walked, request)
    excludes = excluded_leaves(request)

    def make(in_jit: bool) -> Recipe:
        selection = select(walked, request, axes, excluded)
        # Before any method is traced: a warning may be an error.
        warn(selection.warnings)
        made = propose(walked, selection, request, axes, call, excludes, plain)
        plan, placed = made.plan, made.placed
        rest = plan, placed, axes, walked
        warnings = tuple(doubts(*rest, selection.methods, excludes, request))
        warn(warnings)
        lanes = request.lanes
        if lanes is not None and lanes.is_apart:
            spans = any(step.trace.computation.spans_devices for step in plan.steps)
            lanes = dataclasses.replace(lanes, is_one=spans)
        return Recipe(
            plan,
            lanes,
            axes,
            in_jit,
            find_sources(plan, placed, walked, request),
            placed,
            describe(plan, placed, axes, walked, request),
            written_paths(plan, placed, walked),
            not same_structure(plan.structure, walked.structure),
            len(selection.methods),
            (*selection.warnings, *warnings),
            {} if excludes is None else excludes.answers,
        )

    if plain is not None:
        return make(False)
    scene, in_jit = surroundings()
    try:
        token = _token(walked, request, axes, call, excluded, excludes)
        cell = recipe_cell((scene, in_jit, token))
    except TypeError:
        cell = Cell()  # Something can't be a key: nothing is remembered.
    known: tuple[Recipe, ...] = cell.value or ()
    for recipe in known:
        if excludes is None or excludes.say(recipe.answers):
            warn(recipe.warnings)
            return recipe
    recipe = make(in_jit)
    if recipe.plan.lasts:
        recipe = _without_leaves(recipe, len(walked.leaves))
        cell.value = (recipe, *known)[:_ANSWERS]
    return recipe


def _token(
    walked: Walked,
    request: Request,
    axes: Axes,
    call: Call,
    excluded: frozenset[int],
    excludes: Excludes | None,
) -> Hashable:
    """What decides what a call comes to; `TypeError` if not all of it can be a key."""
    if walked.exact is None:
        raise TypeError("Something static can't be hashed.")
    methods: tuple[Hashable, ...] = ()
    if isinstance(request.fn_name, str):
        name = request.fn_name
        methods = tuple(definition_token(c, name) for c in walked.survey.classes)
    return (
        walked.structure,
        walked.exact,
        tuple([_leaf_token(x) for x in walked.leaves]),
        axes,
        call.token,
        request.lanes,
        methods,
        request.fn_if_not_exist,
        tuple(request.bare_filters.items()),
        excluded,
        None if excludes is None else (excludes.token,),
        request.where is not None,
        request.in_axes is not None,
        request.state_tag,
    )


def _leaf_token(x: Any) -> Hashable:
    if not isinstance(x, jax.Array):
        return spec_of(x, None).token
    place = place_of(x)
    # The type that JAX gives to an array says more than a spec, and is at hand.
    return x.aval if place is None else (x.aval, place)


def _without_leaves(recipe: Recipe, count: int) -> Recipe:
    """The recipe, keeping alive none of the target's leaves."""
    specs = recipe.plan.specs
    own = [x if isinstance(x, ArraySpec) else StaticSpec(None) for x in specs[:count]]
    plan = dataclasses.replace(recipe.plan, specs=(*own, *specs[count:]))
    return dataclasses.replace(recipe, plan=plan)
