"""What a collective call will do, as a value that prints as a table."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from .._text._places import dotted, Path
from .._text._table import counted, in_bytes, Row, size_of, Table, value_cells


@dataclasses.dataclass(frozen=True)
class LeafChange:
    """A leaf that one node's call writes.

    `before` and `after` are arrays as `jax.ShapeDtypeStruct` with their lane axis, the
    index of which is `before_axis` or `after_axis`; or else the values themselves. A
    leaf that was not there, or is not there any more, is `None`.
    """

    path: Path
    before: Any
    after: Any
    before_axis: int | None
    after_axis: int | None

    @property
    def bytes(self) -> int:
        """The size of the new value in all lanes; 0 if it is not an array."""
        return size_of(self.after) or 0


@dataclasses.dataclass(frozen=True)
class ExplainedNode:
    """A node that is called, or skipped.

    `reason` says why it is skipped, or why its call writes nothing. `kind` is the
    number of its kind, from 1; nodes of one kind are traced once. Calls of one `wave`,
    from 1, do not read each other's results. `wave` is `None` where nothing is left to
    compute: the call makes no new array, or other calls overwrite what it makes.
    """

    path: Path
    class_name: str
    reason: str
    kind: int | None = None
    wave: int | None = None
    writes: tuple[LeafChange, ...] = ()


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a collective call will do, as `chorax.explain` finds it.

    It prints as a table, in a notebook too; rows that differ only in the indices of
    their paths are folded into one.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> class Neuron(eqx.Module):
    ...     weight: jnp.ndarray
    ...     v: jnp.ndarray | None = None
    ...     def init_state(self):
    ...         return chorax.replace(self, v=jnp.zeros_like(self.weight))
    >>> net = {"a": Neuron(jnp.ones(3, "float32")), "b": eqx.nn.Identity()}
    >>> plan = chorax.explain(net, "init_state", axis_size=8, fn_if_not_exist="pass")
    >>> plan.label, plan.axis_size, plan.devices, plan.kinds, plan.waves
    ('init_state', 8, None, 1, 1)
    >>> [(node.path, node.writes[0].after.shape) for node in plan.calls]
    [(('a',), (8, 3))]
    >>> [(node.path, node.reason) for node in plan.skipped]
    [(('b',), 'has no method `init_state`')]
    >>> plan.paths, plan.bytes, [path for path, _ in plan.shared]
    (('a.v',), 96, [('a', 'weight')])

    ```
    """

    label: str
    """The name of the method or function that is called."""
    axis_size: int | None
    """The number of lanes; `None` without lanes."""
    calls: tuple[ExplainedNode, ...]
    """The nodes that are called, in the order of the calls."""
    skipped: tuple[ExplainedNode, ...]
    """The nodes that are not called, each with its `reason`."""
    paths: tuple[str, ...]
    """The dotted paths of the leaves that are written in the end."""
    bytes: int
    """The size of these leaves in all lanes."""
    devices: int | None = None
    """How many devices these bytes are divided among; `None` without a `sharding`."""
    shared: tuple[tuple[Path, jax.ShapeDtypeStruct], ...] = ()
    """The inexact arrays that stay the same in all lanes, with their paths."""

    @property
    def kinds(self) -> int:
        """How many kinds of nodes are called, each of which is traced once."""
        return len({call.kind for call in self.calls})

    @property
    def waves(self) -> int:
        """How many waves there are: the longest chain of calls that read each other's
        results."""
        return max((call.wave or 0 for call in self.calls), default=0)

    def __repr__(self) -> str:
        return "\n\n".join(table.text() for table in self._tables())

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in self._tables())

    def _tables(self) -> Iterator[Table]:
        lanes = "without lanes"
        if self.axis_size is not None:
            lanes = f"in {counted(self.axis_size, 'lane')}"
        if self.devices is not None:
            lanes = f"{lanes} on {counted(self.devices, 'device')}"
        summary = (
            f"`{self.label}` {lanes}: {counted(len(self.calls), 'call')} of "
            f"{counted(self.kinds, 'kind')} in {counted(self.waves, 'wave')}, "
            f"{counted(len(self.paths), 'written leaf', 'written leaves')}, "
            f"{in_bytes(self.bytes)}"
        )
        head = ("node", "class", "kind", "wave", "writes", "before", "after", "bytes")
        rows = [row for call in self.calls for row in _rows(call)]
        yield Table(summary, head, tuple(rows))
        if self.skipped:
            rows = [Row(x.path, (x.class_name, x.reason)) for x in self.skipped]
            title = f"{counted(len(rows), 'node')} skipped"
            yield Table(title, ("node", "class", "why"), tuple(rows))
        if self.shared:
            rows = [Row(p, value_cells(x, None), size_of(x)) for p, x in self.shared]
            count = counted(len(rows), "array")
            title = f"{count} shared by all lanes: no call writes them"
            yield Table(title, ("path", "type", "shape", "bytes"), tuple(rows))


def _rows(call: ExplainedNode) -> Iterator[Row]:
    first = call.class_name, str(call.kind), str(call.wave or "-")
    if not call.writes:
        yield Row(call.path, (*first, call.reason, "", ""))
    for leaf in call.writes:
        name = dotted(leaf.path[len(call.path) :]) or "()"
        before = _cell(leaf.before, leaf.before_axis)
        after = _cell(leaf.after, leaf.after_axis)
        yield Row(call.path, (*first, name, before, after), size_of(leaf.after))


def _cell(value: Any, axis: int | None) -> str:
    return "None" if value is None else " ".join(value_cells(value, axis))
