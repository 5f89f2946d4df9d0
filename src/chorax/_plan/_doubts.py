"""What a call does that may not be meant: said once it is planned, before it runs."""

from collections.abc import Iterator, Sequence

import equinox as eqx

from .._lanes._arguments import unmatched
from .._text._places import Path, place
from .._tree._nodes import Tree
from .._tree._paths import same_structure
from ._kept import kept_parameters
from ._kind import ArraySpec
from ._planner import Plan
from ._results import Results
from ._select import Calls


def doubts(plan: Plan, results: Results, calls: Calls) -> Iterator[str]:
    """What to warn about, as far as the plan shows it."""
    request = calls.request
    if calls.excludes is not None:
        yield from _unmatched(calls)
    kept = list(kept_parameters(plan, calls))
    yield from kept
    if isinstance(request.fn_name, str) and request.where is None:
        yield from _lanes_of_lanes(plan, calls)
    if kept:
        return  # What it says explains a call that wrote nothing, too.
    if not plan.visits:
        yield (
            f"`{request.label}` wrote nothing at all: it was called on no node, since "
            "each is excluded or has no such method. `chorax.explain` says which."
        )
    elif (
        not results.paths and not request.has_aux and not _is_restructured(plan, calls)
    ):
        yield (
            f"`{request.label}` wrote nothing at all: no called node returned a "
            "changed leaf. Methods must return the updated node, as "
            "`chorax.replace(self, ...)`."
        )


def shared_objects(tree: Tree, written: Sequence[Path]) -> Iterator[str]:
    """What to say where the same object stands at two paths and was written."""
    told: set[Path] = set()
    above: set[Path] | None = None
    for one, other in _pairs(tree):
        if above is None:
            above = {path[:i] for path in written for i in range(len(path) + 1)}
        if one not in told and (one in above or other in above):
            told.add(one)
            yield (
                f"The same object stands at {place(one)} and at {place(other)}, and "
                "was written. PyTrees have no sharing: from here on the two part ways. "
                "To keep them tied, use `eqx.nn.Shared`."
            )


def _unmatched(calls: Calls) -> Iterator[str]:
    """What to say where no written leaf matches `state_to_exclude`."""
    assert calls.excludes is not None
    entries = calls.request.bare_filters["state_to_exclude"]
    answers = calls.excludes.answers
    if entries and answers and not any(answers.values()):
        what, tags = "written leaf", calls.excludes.tags_asked()
        yield unmatched("state_to_exclude", entries, what, tags, ["arrays"])


def _lanes_of_lanes(plan: Plan, calls: Calls) -> Iterator[str]:
    """What to say where all that is written seems to have had lanes before, and no
    `in_axes` was given."""
    request, size = calls.request, calls.request.size
    if size is None or request.in_axes is not None:
        return
    found: list[tuple[Path, tuple[int, ...]]] = []
    for leaf in plan.leaves:
        if not leaf.written or leaf.original is None:
            continue
        old, new = plan.specs[leaf.original], plan.specs[leaf.name]
        if not isinstance(old, ArraySpec):
            continue
        shape = old.struct.shape
        is_alike = isinstance(new, ArraySpec) and new.struct.shape == shape
        if not is_alike or not leaf.has_lanes or shape[:1] != (size,):
            return
        found.append((leaf.path, shape))
    if found:
        path, shape = found[0]
        yield (
            f"`{request.label}` was called without `in_axes` on arrays that seem to "
            f"have {size} lanes already: {place(path)} had shape {shape} and now has "
            f"shape {(size, *shape)}, and likewise all that was written. Pass "
            "`in_axes`, such as the `StateDelta` of the call that added the lanes, so "
            "that each lane gets its own slice; or `in_axes=lambda leaf: None` if that "
            "axis is not the lanes."
        )


def _is_restructured(plan: Plan, calls: Calls) -> bool:
    return not same_structure(plan.structure, calls.tree.structure)


def _pairs(tree: Tree) -> Iterator[tuple[Path, Path]]:
    """Pairs of paths of one object, the first and each further one: modules, and arrays
    outside of those modules."""
    items = (*tree.modules, *tree.leaves)
    if len(set(map(id, items))) == len(items):
        return
    arrays = [
        (path, leaf)
        for path, leaf in zip(tree.leaf_paths, tree.leaves, strict=True)
        if eqx.is_array(leaf)
    ]
    # Parents come first, so what is inside of a pair is met after it.
    first: dict[int, Path] = {}
    firsts: dict[Path, Path] = {}
    modules = zip(tree.survey.module_paths, tree.modules, strict=True)
    for path, item in (*modules, *arrays):
        other = first.setdefault(id(item), path)
        if other is path:
            continue
        around = (path[:i] for i in range(len(path)))
        inside = [firsts[each] for each in around if each in firsts]
        if not any(other[: len(each)] == each for each in inside):
            firsts[path] = other
            yield other, path
