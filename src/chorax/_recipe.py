"""All that a collective call comes to, but for the values.

It is a function of structure, shapes, methods and settings alone, so it is found once
and remembered; the same call again is a look at the target, the compiled functions, and
putting the arrays in place.
"""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast, NamedTuple

import jax
import jax.tree_util as jtu

from ._arrange import arrange, Script
from ._axes import Axes, check_leaf_lengths
from ._excludes import Excludes
from ._finish import describe, place_leaves, Placed, written_paths
from ._keys import LaneKeys
from ._kind import ArraySpec, Call, Lanes, place_of, spec_of, StaticSpec
from ._memo import Cell, recipe_cell, surroundings
from ._methods import definition_token
from ._nodes import Walked
from ._paths import Path, same_structure
from ._plan import make_plan, Plan, Visit
from ._request import excluded_leaves, Request
from ._select import excluded_nodes, select_nodes, Selection
from ._warn import warn


# Of calls that differ in what `state_to_exclude` answers, so many are remembered.
_ANSWERS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A call without its values.

    `placed` are the leaves of the result, and `delta` is the structure of the delta,
    whose leaves are the written ones. `calls` is the number of nodes that are called,
    and `answers` are those of `state_to_exclude`.
    """

    plan: Plan
    lanes: Lanes | None
    axes: Axes
    script: Script
    placed: tuple[Placed, ...]
    delta: jtu.PyTreeDef
    written: tuple[Path, ...]
    changes_structure: bool
    has_mask: bool
    calls: int
    warnings: tuple[str, ...]
    answers: Mapping[tuple[Path, jax.ShapeDtypeStruct], bool]
    # What is compiled for it on many devices.
    compiled: Cell = dataclasses.field(default_factory=Cell)

    @functools.cached_property
    def is_written(self) -> tuple[bool, ...]:
        """Whether each leaf of the result is written."""
        return tuple(leaf.written for leaf in self.placed)

    @functools.cached_property
    def ready(self) -> tuple[int | None, ...]:
        """The name of the value that is a leaf of the result as it is; `None` where
        there is more to be done."""
        return tuple(self._ready(leaf) for leaf in self.placed)

    def _ready(self, leaf: Placed) -> int | None:
        if not leaf.written:
            return leaf.original
        spec = self.plan.specs[leaf.name]
        is_whole = leaf.has_lanes and isinstance(spec, ArraySpec) and spec.axis == 0
        return leaf.name if is_whole and not self.has_mask else None


def _arranged(
    plan: Plan, lanes: Lanes | None, in_jit: bool, keys: LaneKeys | None
) -> Script:
    stacks = keys is None or keys.stacks
    if lanes is None or lanes.sharding is None:
        return arrange(plan, lanes, in_jit, stacks)
    return arrange(plan, lanes.on_device(), True, stacks)


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
    keys: LaneKeys | None,
    excludes: Excludes | None,
    values: Sequence[Any] | None = None,
) -> Proposal:
    """Plans and places; `values` are as in `make_plan`."""
    specs = [spec_of(x, axis) for x, axis in zip(walked.leaves, axes, strict=True)]
    methods = selection.methods
    plan, visits = make_plan(walked, methods, call, specs, excludes, values, keys)
    placed = place_leaves(plan, walked, request, excludes)
    return Proposal(plan, visits, placed)


def find_recipe(
    walked: Walked,
    request: Request,
    axes: Axes,
    call: Call,
    arrays: Sequence[Any],
    keys: LaneKeys | None,
) -> Recipe:
    """The recipe of a call, remembered from an earlier one if there was one.

    `arrays` are those of the arguments.
    """
    excluded = excluded_nodes(walked, request)
    excludes = excluded_leaves(request)

    def make(known: list[Any] | None, in_jit: bool) -> Recipe:
        selection = select(walked, request, axes, excluded)
        # Before any method is traced: a warning may be an error.
        warn(selection.warnings)
        made = propose(walked, selection, request, axes, call, keys, excludes, known)
        plan, placed = made.plan, made.placed
        lanes = request.lanes
        if lanes is not None and lanes.is_apart:
            spans = any(step.trace.computation.spans_devices for step in plan.steps)
            lanes = dataclasses.replace(lanes, is_one=spans)
        return Recipe(
            plan,
            lanes,
            axes,
            _arranged(plan, lanes, in_jit, keys),
            placed,
            describe(plan, placed, axes, walked, request),
            written_paths(plan, placed, walked),
            not same_structure(plan.structure, walked.structure),
            request.where is not None,
            len(selection.methods),
            selection.warnings,
            {} if excludes is None else excludes.answers,
        )

    # JAX makes the attributes of its configuration at run time.
    if cast(Any, jax.config).jax_disable_jit:
        return make([*walked.leaves, *arrays], False)
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
    recipe = make(None, in_jit)
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
    if isinstance(request.function, str):
        name = request.function
        methods = tuple(definition_token(c, name) for c in walked.survey.classes)
    return (
        walked.structure,
        walked.exact,
        tuple([_leaf_token(x) for x in walked.leaves]),
        axes,
        call.token,
        request.lanes,
        methods,
        request.if_not_exist,
        excluded,
        None if excludes is None else (excludes.token,),
        request.where is not None,
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
