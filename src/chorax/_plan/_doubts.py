"""What a call does that may not be meant: told once it is planned, before it runs."""

from collections.abc import Collection, Iterator, Sequence

from .._lanes._arguments import unmatched
from .._lanes._axes import Axes
from .._layers._reset import reset_parameters
from .._text._places import place
from .._tree._nodes import Walked
from ._excludes import Excludes
from ._finish import Placed
from ._kept import kept_parameters
from ._kind import ArraySpec
from ._planner import Plan
from ._request import Request


def doubts(
    plan: Plan,
    placed: Sequence[Placed],
    axes: Axes,
    walked: Walked,
    called: Collection[int],
    excludes: Excludes | None,
    request: Request,
) -> Iterator[str]:
    """What to warn of; `called` are the indices of the nodes that are called."""
    if excludes is not None:
        yield from _unmatched(excludes, request)
    if request.fn_name is reset_parameters:
        yield from kept_parameters(plan, placed, axes, walked, called)
    if isinstance(request.fn_name, str) and request.where is None:
        yield from _lanes_of_lanes(plan, placed, request)


def _unmatched(excludes: Excludes, request: Request) -> Iterator[str]:
    """Where no written leaf matches `state_to_exclude`."""
    entries = request.bare_filters["state_to_exclude"]
    if entries and excludes.answers and not any(excludes.answers.values()):
        what, tags = "written leaf", excludes.tags_asked()
        yield unmatched("state_to_exclude", entries, what, tags, ["arrays"])


def _lanes_of_lanes(
    plan: Plan, placed: Sequence[Placed], request: Request
) -> Iterator[str]:
    """Where all that is written seems to have had lanes, of which nothing was said."""
    size = request.size
    if size is None or request.in_axes is not None:
        return
    rows: list[tuple[Placed, tuple[int, ...]]] = []
    for leaf in placed:
        if not leaf.written or leaf.original is None:
            continue
        old, new = plan.specs[leaf.original], plan.specs[leaf.name]
        if not isinstance(old, ArraySpec):
            continue
        shape = old.struct.shape
        is_alike = isinstance(new, ArraySpec) and new.struct.shape == shape
        if not is_alike or not leaf.has_lanes or shape[:1] != (size,):
            return
        rows.append((leaf, shape))
    if rows:
        leaf, shape = rows[0]
        yield (
            f"`{request.label}` was called without `in_axes`, and gave {size} lanes to "
            f"what seems to have them already: {place(leaf.path)} was of shape {shape} "
            f"and is of shape {(size, *shape)}, and so with all that is written. Pass "
            "`in_axes`, the `StateDelta` of the call that made these lanes, so that "
            "each lane gets its own; or `in_axes` that maps nothing, "
            "`lambda leaf: None`, if the axis is another."
        )
