"""The one road that every collective call takes.

Take the target apart, find what the call comes to, run, put the results in place. Each
step hands one value to the next, and none reaches back.
"""

import itertools
from typing import Any

import jax.tree_util as jtu

from ._delta import StateDelta
from ._finish import Finish, writing_warnings
from ._keys import lane_keys
from ._nodes import walk_nodes
from ._paths import dotted
from ._recipe import find_recipe
from ._request import make_call, Request, target_axes
from ._run import run_script
from ._warn import warn


def run_collective(
    target: Any, request: Request
) -> tuple[Any, StateDelta[Any], dict[str, Any]]:
    """The new model, the delta, and every called node's `aux` by dotted path."""
    keys = lane_keys(request.key, request.size)
    walked = walk_nodes(target)
    axes = target_axes(target, walked, request)
    call, arrays = make_call(request, keys)
    recipe = find_recipe(walked, request, axes, call, arrays, keys)
    plan, placed = recipe.plan, recipe.placed

    values = dict(enumerate([*walked.leaves, *arrays]))
    values.update(plan.known)
    run_script(recipe.script, values, keys)

    finish = Finish(plan, values, axes, request.size, request.where)
    leaves = [
        finish.leaf(leaf) if name is None else values[name]
        for leaf, name in zip(placed, recipe.ready, strict=True)
    ]
    written = itertools.compress(leaves, recipe.is_written)
    model = jtu.tree_unflatten(plan.structure, leaves)
    delta = jtu.tree_unflatten(recipe.delta, written)
    aux = {
        dotted(each.path): jtu.tree_unflatten(
            each.structure, [finish.with_lanes(name) for name in each.names]
        )
        for each in plan.aux
    }
    is_same = not recipe.changes_structure
    label, calls = request.label, recipe.calls
    warn(writing_warnings(recipe.written, is_same, walked, label, calls))
    return model, delta, aux
