"""The one road that every collective call takes.

Walk the target, select the nodes, plan, run, put the results in place, describe what
was written. Each step hands one value to the next, and none reaches back.
"""

from typing import Any, cast

import jax
import jax.tree_util as jtu

from ._delta import StateDelta
from ._finish import describe, Finish, place_leaves, writing_warnings
from ._keys import lane_keys
from ._kind import spec_of
from ._nodes import walk_nodes
from ._paths import dotted
from ._plan import make_plan
from ._request import excluded_leaves, make_call, Request, target_axes
from ._run import run_plan
from ._select import select_nodes
from ._warn import warn


def run_collective(
    target: Any, request: Request
) -> tuple[Any, StateDelta[Any], dict[str, Any]]:
    """The new model, the delta, and every called node's `aux` by dotted path."""
    keys = lane_keys(request.key, request.size)
    walked = walk_nodes(target)
    selection = select_nodes(walked, request)
    axes = target_axes(target, request)
    call, arrays = make_call(request, keys)
    warn(selection.warnings)

    specs = [spec_of(x, axis) for x, axis in zip(walked.leaves, axes, strict=True)]
    values = dict(enumerate([*walked.leaves, *arrays]))
    excludes = excluded_leaves(request)
    # JAX makes the attributes of its configuration at run time.
    is_plain: bool = cast(Any, jax.config).jax_disable_jit
    known = list(values.values()) if is_plain else None
    plan = make_plan(walked, selection.methods, call, specs, excludes, known, keys)
    placed = place_leaves(plan, walked, request, excludes)
    done = run_plan(plan, values, keys, request.lanes)

    finish = Finish(plan, done, walked, axes, request)
    leaves = [finish.leaf(leaf) for leaf in placed]
    model = jtu.tree_unflatten(plan.structure, leaves)
    delta = describe(plan, placed, leaves, axes, walked, request)
    aux = {
        dotted(each.path): jtu.tree_unflatten(
            each.structure, [finish.with_lanes(name) for name in each.names]
        )
        for each in plan.aux
    }
    warn(writing_warnings(plan, placed, walked, request.label))
    return model, delta, aux
