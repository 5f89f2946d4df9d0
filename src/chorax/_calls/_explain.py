"""Explaining a collective call: it is planned on shapes, and the plan is read out."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex, TYPE_CHECKING, TypeAlias

import jax
import jax.tree_util as jtu
from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from .._plan._kept import has_rule, kept_arrays
from .._plan._kind import ArraySpec
from .._plan._leaves import same_value
from .._plan._planner import make_plan, Plan
from .._plan._request import IfNotExist, LANE_OPTIONS, Request
from .._plan._schedule import Visit
from .._plan._select import Calls, find_methods, select
from .._text._places import dotted, Path
from .._text._table import counted, size_of
from .._tree._nodes import walk_nodes
from .._tree._paths import leaf_paths
from ..filters import Filter
from ._checks import check_request
from ._explanation import ExplainedNode, Explanation, LeafChange


if TYPE_CHECKING:
    _Function: TypeAlias = str | Callable[..., Any]
    _Kwargs: TypeAlias = Mapping[str, Any] | None
    _Size: TypeAlias = SupportsIndex | None
    _Key: TypeAlias = ArrayLike | None
    _Mask: TypeAlias = ArrayLike | Sequence[bool] | None
    _Tag: TypeAlias = str | None
    _Flag: TypeAlias = bool
    _Name: TypeAlias = Hashable
    _Sharding: TypeAlias = NamedSharding | None
else:
    # Wrong arguments raise the errors of the call, even if an import hook checks types.
    _Function = _Kwargs = _Size = _Key = _Mask = _Tag = _Flag = _Name = _Sharding = Any
    IfNotExist = Any


def explain(
    target: Any,
    fn_name: _Function,
    args: Any = (),
    kwargs: _Kwargs = None,
    axis_size: _Size = None,
    node_to_exclude: Filter = None,
    state_tag: _Tag = None,
    fn_if_not_exist: IfNotExist = "raise",
    *,
    key: _Key = None,
    state_to_exclude: Filter = None,
    where: _Mask = None,
    has_aux: _Flag = False,
    in_axes: Any = None,
    args_in_axes: Any = None,
    kwargs_in_axes: Any = None,
    axis_name: _Name = None,
    spmd_axis_name: _Name = None,
    chunk_size: _Size = None,
    sharding: _Sharding = None,
) -> Explanation:
    """Shows what a collective call will do, without doing it.

    It lists which nodes are called, in which order; how they fall into kinds, each of
    which is traced once, and into waves, which run one after another; which nodes are
    skipped, and why; what each call writes, with shapes before and after and the bytes
    it takes; and which inexact arrays stay the same in all lanes.
    Methods are traced, as in the call itself, but nothing is computed, so models may be
    of any size. The idea is that of `EXPLAIN` in SQL.

    **Arguments:** those of `vmap_call_all_fns`; without any option about lanes it
    explains `call_all_fns` instead. `init_all_states` and its relatives are calls of
    `"init_state"` or `"reset_state"` with `fn_if_not_exist="pass"`.

    **Returns:**

    An `Explanation`. It prints as a table, and as an HTML table in a notebook; its
    fields `calls` and `skipped` hold the same information as values.

    **Raises:** what the call would raise, except for nodes without the method: they are
    listed as skipped.

    ```python
    >>> import chorax, equinox as eqx, jax, jax.numpy as jnp
    >>> class Neuron(eqx.Module):
    ...     weight: jax.Array
    ...     v: jax.Array | None = None
    ...     def init_state(self):
    ...         return chorax.replace(self, v=jnp.zeros_like(self.weight))
    >>> net = [Neuron(jnp.ones(3, "float32")) for _ in range(8)]
    >>> chorax.explain(net, "init_state", axis_size=32)
    `init_state` in 32 lanes: 8 calls of 1 kind in 1 wave, 8 written leaves, 3.0 KiB
    node        class   kind  wave  writes  before  after                    bytes
    {0..7} (8)  Neuron  1     1     v       None    float32 (32 lanes, 3)  3.0 KiB
    <BLANKLINE>
    8 arrays shared by all lanes: no call writes them
    path               type     shape  bytes
    {0..7}.weight (8)  float32  (3,)    96 B

    ```
    """
    given = dict(locals())
    target = given.pop("target")
    names = (*LANE_OPTIONS, "where", "in_axes", "args_in_axes", "kwargs_in_axes")
    has_lanes = any(given[name] is not None for name in names)
    request = check_request(target, given, has_lanes)
    with request.scope():
        return _explain(target, request)


def _explain(target: Any, request: Request) -> Explanation:
    why_not = f"has no method `{request.label}`"
    if request.fn_if_not_exist == "raise":
        # The error would name one node; here all of them are listed.
        why_not = "no method: the call would raise"
        request = dataclasses.replace(request, fn_if_not_exist="pass")
    calls = select(walk_nodes(target), request)
    methods, _ = find_methods(calls)
    plan = make_plan(calls, methods)
    kept = kept_arrays(plan, calls)
    reader = _Reader(plan, calls)
    waves = {path: step.wave + 1 for step in plan.steps for path in step.paths}
    kinds: dict[int, int] = {}
    called: list[ExplainedNode] = []
    for visit in plan.visits:
        path, cls = visit.node.path, visit.node.cls
        kind = kinds.setdefault(id(visit.trace.outcome), len(kinds) + 1)
        writes = tuple(reader.changes(visit))
        reason = "" if writes else "nothing"
        if not writes and not has_rule(request.fn_name, cls):
            count = len(kept.get(path, ()))
            holds = f"holds {counted(count, 'array')} of its own"
            reason = (
                f"no rule for {cls.__name__}, {holds}" if count else "nothing to draw"
            )
        wave = waves.get(path)
        called.append(ExplainedNode(path, cls.__name__, reason, kind, wave, writes))
    skipped = [
        ExplainedNode(
            node.path,
            node.cls.__name__,
            "`node_to_exclude`" if index in calls.excluded else why_not,
        )
        for index, node in enumerate(calls.tree.nodes)
        if index not in methods
    ]
    written = [leaf for leaf in plan.leaves if leaf.written]
    sizes = [size_of(reader.value(x.name, x.has_lanes)[0]) or 0 for x in written]
    sharding = None if request.lanes is None else request.lanes.sharding
    return Explanation(
        request.label,
        request.size,
        tuple(called),
        tuple(skipped),
        tuple(dotted(leaf.path) for leaf in written),
        sum(sizes),
        None if sharding is None else sharding.parts,
        tuple(row for rows in kept.values() for row in rows) if request.lanes else (),
    )


class _Reader:
    """Reads values off a plan, as shapes."""

    def __init__(self, plan: Plan, calls: Calls) -> None:
        self._specs = plan.specs
        self._axes = calls.axes
        self._size = calls.request.size
        # A value that was put back where it was has the lanes it had.
        self._has_lanes: dict[tuple[Path, int | None], bool | None] = {
            (leaf.path, leaf.name): leaf.has_lanes if leaf.written else None
            for leaf in plan.leaves
        }

    def changes(self, visit: Visit) -> Iterator[LeafChange]:
        """The leaves that a call writes, whether or not others overwrite them."""
        old, new = _by_path(*visit.before), _by_path(*visit.after)
        for below in dict.fromkeys([*new, *old]):
            before, after = old.get(below), new.get(below)
            if not same_value(self._specs, before, after):
                path = (*visit.node.path, *below)
                is_batched = self._size is not None
                has_lanes = self._has_lanes.get((path, after), is_batched)
                was, was_axis = self.value(before, None)
                value, axis = self.value(after, has_lanes)
                yield LeafChange(path, was, value, was_axis, axis)

    def value(self, name: int | None, has_lanes: bool | None) -> tuple[Any, int | None]:
        """A value as a shape, and its lane axis: in front, or none; where `has_lanes`
        is `None`, the one that it has."""
        if name is None:
            return None, None
        spec = self._specs[name]
        if not isinstance(spec, ArraySpec):
            return spec.value, None
        axis = 0 if (spec.has_lanes if has_lanes is None else has_lanes) else None
        if has_lanes is None and name < len(self._axes):
            axis = self._axes[name]
        shape = list(spec.struct.shape)
        if axis is not None and self._size is not None:
            shape.insert(axis, self._size)
        return jax.ShapeDtypeStruct(tuple(shape), spec.struct.dtype), axis


def _by_path(structure: jtu.PyTreeDef, names: tuple[int, ...]) -> Mapping[Path, int]:
    return dict(zip(leaf_paths(structure), names, strict=True))
