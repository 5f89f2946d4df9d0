"""State deltas: what a call wrote, as a value."""

from collections.abc import Iterable
from typing import Any, cast, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax.tree_util as jtu

from .._lanes._arrays import ask
from .._lanes._lane_axes import agreed_count, lane_axes
from .._text._places import dotted, names_of, Path
from .._text._table import Table
from .._tree._holder import AxesHolder, undo_lanes
from .._tree._paths import leaf_paths, same_structure
from ..filters import Filter, to_predicate
from ._show import delta_table, mismatch


T = TypeVar("T")
V = TypeVar("V")


class LeafRecord(NamedTuple):
    """What a delta knows about a leaf: `axis` is its lane axis, and `axis_before` the
    one that it had before the call, if it existed."""

    written: bool = False
    axis: int | None = None
    tags: frozenset[str] = frozenset()
    axis_before: int | None = None


class StateDelta(AxesHolder, Generic[T]):
    """What a collective call wrote: a PyTree whose leaves are the written values.

    `vmap_call_all_fns` and related functions return one next to the model; `diff` makes
    one from two models, and `apply_delta` puts one into a model. The deltas of two
    consecutive calls combine with `earlier | later`: the later value wins, and tags add
    up. It prints as a table.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> class Neuron(eqx.Module):
    ...     w: float
    ...     v: jnp.ndarray | None = None
    ...     def init_state(self):
    ...         return chorax.replace(self, v=jnp.zeros(3))
    >>> net, delta = chorax.vmap_init_all_states([Neuron(0.5)], axis_size=8)
    >>> delta.paths, delta.axis_size
    (('0.v',), 8)
    >>> delta.in_axes[0].v, delta.filter_spec[0].w
    (0, False)
    >>> delta.values[0].v.shape, delta.values[0].w
    ((8, 3), None)
    >>> delta.to_dict()["0.v"].shape
    (8, 3)
    >>> _, ones = chorax.vmap_init_all_states(net, axis_size=8, state_tag="hidden")
    >>> both = delta | ones
    >>> both.tags, both.select("hidden").paths
    ({'0.v': frozenset({'hidden'})}, ('0.v',))

    ```
    """

    values: T
    """The returned model with `None` for each leaf that was not written."""
    # The structures of the target and of the returned model.
    before: jtu.PyTreeDef = eqx.field(static=True)
    after: jtu.PyTreeDef = eqx.field(static=True)
    # One for each leaf of the returned model.
    _records: tuple[LeafRecord, ...] = eqx.field(static=True)

    @property
    def in_axes(self) -> T:
        """The returned model with the lane axis of each leaf: `0` if this call wrote
        it, the axis it already had if it was mapped before, `None` if it is shared.
        Fits `in_axes` and `out_axes` of `eqx.filter_vmap`."""
        return jtu.tree_unflatten(self.after, [each.axis for each in self._records])

    @property
    def filter_spec(self) -> T:
        """The returned model with `True` for each written leaf, `False` elsewhere. Fits
        `eqx.partition` and `eqx.filter`."""
        return jtu.tree_unflatten(self.after, [each.written for each in self._records])

    @property
    def paths(self) -> tuple[str, ...]:
        """The dotted paths of the written leaves, in the order of traversal."""
        return tuple(dotted(path) for path, _, _ in self._rows())

    @property
    def tags(self) -> dict[str | Path, frozenset[str]]:
        """The tags of each written leaf by dotted path, or by its path as a tuple if
        several leaves have the same dotted path."""
        rows = self._rows()
        names = names_of([path for path, _, _ in rows])
        return dict(zip(names, [record.tags for _, _, record in rows], strict=True))

    @property
    def path_tags(self) -> dict[Path, frozenset[str]]:
        """The tags of each leaf that has some, by its path as a tuple."""
        return {path: each.tags for path, _, each in self.leaves() if each.tags}

    @classmethod
    def from_axes(cls, model: V, axes: Any) -> "StateDelta[V]":
        """A delta for a batched model that no collective call made.

        **Arguments:**

        - `model`, `axes`: as in `chorax.lanes.unstack`, which raises the same errors.

        **Returns:** a delta in which the leaves with a lane axis count as written.

        ```python
        >>> import chorax, jax.numpy as jnp
        >>> model, axes = {"v": jnp.ones((4, 2)), "w": 0.5}, {"v": 0, "w": None}
        >>> delta = chorax.StateDelta.from_axes(model, axes)
        >>> delta.paths, delta.axis_size
        (('v',), 4)

        ```
        """
        lanes = lane_axes(model, axes)
        records = [LeafRecord(axis is not None, axis) for axis in lanes.axes]
        rows = zip(lanes.leaves, records, strict=True)
        return make_delta(lanes.structure, lanes.structure, rows, lanes.size)

    def of(self, model: T) -> "StateDelta[T]":
        """This delta, with the values that a model has now: after training, loading or
        `chorax.lanes.take`, where the delta still has those that its call wrote.

        **Arguments:**

        - `model`: of the structure that the delta made, with any number of lanes.

        **Returns:** a delta with the same paths, tags and lane axes.

        **Raises:** `ValueError` for a model of another structure, naming the first path
        that differs, or if its leaves disagree on their lanes.

        ```python
        >>> import chorax
        >>> delta = chorax.diff({"a": 1, "b": 2}, {"a": 1, "b": 3})
        >>> delta.of({"a": 5, "b": 7}).to_dict()
        {'b': 7}

        ```
        """
        leaves, structure = jtu.tree_flatten(model)
        if not same_structure(structure, self.after):
            problem = mismatch(structure, self.after, "the model", "the delta")
            text = "This model has another structure than the delta describes: "
            raise ValueError(text + problem)
        axes = tuple(each.axis for each in self._records)
        found = ask(lambda x: agreed_count(x, structure, axes, "delta"), leaves)
        size = self.axis_size if found is None else found
        rows = zip(leaves, self._records, strict=True)
        return make_delta(self.before, self.after, rows, size)

    def to_dict(self) -> dict[str, Any]:
        """The written values by dotted path: a state dict, as `assign_state_values`
        takes it.

        **Raises:** `ValueError` if two leaves have the same dotted path.
        """
        state: dict[str, Any] = {}
        for path, value, _ in self._rows():
            name = dotted(path)
            if name in state:
                raise ValueError(
                    f"Two written leaves have the dotted path `{name}`, one of them at "
                    f"{path}: rename the dictionary key that has a dot in it."
                )
            state[name] = value
        return state

    def select(self, filter: Filter) -> "StateDelta[T]":
        """The part of this delta that a filter keeps.

        **Arguments:**

        - `filter`: any filter, see `chorax.filters`. It decides about each written
            leaf, and a `str` is a tag.

        **Returns:**

        A delta of the kept leaves, for models of the same structures. When it is
        applied, a leaf that is not kept and did not exist before is `None`.

        **Raises:** `TypeError` for anything that is not a filter.
        """
        keeps = to_predicate(filter)
        rows: list[tuple[Any, LeafRecord]] = []
        undone: list[Path] = []
        for path, x, record in self.leaves():
            if record.written and not keeps(path, x, record.tags):
                undone.append(path)
                was = record.axis_before
                record = LeafRecord(axis=was, axis_before=was)
            rows.append((x, record))
        after = undo_lanes(self.after, self.before, undone)
        return make_delta(self.before, after, rows, self.axis_size)

    # A structure of modules does not equal its pickled copy: it contains marks of
    # Equinox that are compared by identity. A tree of that structure pickles well.
    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        for name in ("before", "after"):
            structure: jtu.PyTreeDef = state[name]
            leaves = range(structure.num_leaves)
            state[name] = jtu.tree_unflatten(structure, leaves)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            is_tree = name in ("before", "after")
            value = jtu.tree_structure(value) if is_tree else value
            object.__setattr__(self, name, value)

    def __or__(self, later: "StateDelta[Any]") -> "StateDelta[Any]":
        """`earlier | later`: what two calls wrote, one after the other, as one delta.

        The value of the later call wins, and tags add up.

        **Raises:** `ValueError` if the later call was not made on the model that the
        earlier one returned, or if the two have different numbers of lanes.
        """
        if not isinstance(cast(object, later), StateDelta):
            return NotImplemented
        if not any(same_structure(self.after, x) for x in (later.before, later.after)):
            raise ValueError(
                "These deltas do not follow one another: "
                + mismatch(self.after, later.before, "earlier", "later")
            )
        sizes = {self.axis_size, later.axis_size} - {None}
        if len(sizes) > 1:
            raise ValueError(
                f"These deltas have {self.axis_size} and {later.axis_size} lanes. Only "
                "values written in the same lanes can be combined into one delta."
            )
        size = self.axis_size if later.axis_size is None else later.axis_size
        known = {path: (x, record) for path, x, record in self.leaves()}
        rows = [
            _joined(known.get(path, (None, LeafRecord())), (x, record))
            for path, x, record in later.leaves()
        ]
        return make_delta(self.before, later.after, rows, size)

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def leaves(self) -> list[tuple[Path, Any, LeafRecord]]:
        """For each leaf of the model its path, its value, and what is known of it."""
        # If the delta was mapped over or filtered, a leaf may have become a tree.
        values = self.after.flatten_up_to(self.values)
        return list(zip(leaf_paths(self.after), values, self._records, strict=True))

    def _rows(self) -> list[tuple[Path, Any, LeafRecord]]:
        return [row for row in self.leaves() if row[2].written]

    def _table(self) -> Table:
        rows = [(path, x, each.axis, each.tags) for path, x, each in self._rows()]
        return delta_table(rows, self.axis_size)


def make_delta(
    before: jtu.PyTreeDef,
    after: jtu.PyTreeDef,
    rows: Iterable[tuple[Any, LeafRecord]],
    axis_size: int | None,
) -> StateDelta[Any]:
    """A delta from the value and the record of each leaf of `after`."""
    rows = tuple(rows)
    values = [x if record.written else None for x, record in rows]
    records = tuple(record for _, record in rows)
    return StateDelta(
        axis_size, jtu.tree_unflatten(after, values), before, after, records
    )


def _joined(
    earlier: tuple[Any, LeafRecord], later: tuple[Any, LeafRecord]
) -> tuple[Any, LeafRecord]:
    (old, was), (new, now) = earlier, later
    axis = now.axis if now.written or now.axis is not None else was.axis
    tags = was.tags | now.tags
    record = LeafRecord(was.written or now.written, axis, tags, was.axis_before)
    return new if now.written else old, record


def known_axes(in_axes: Any, structure: jtu.PyTreeDef) -> tuple[int | None, ...] | None:
    """The lane axis of every leaf, if `in_axes` is a delta of this structure."""
    if isinstance(in_axes, StateDelta):
        delta = cast(StateDelta[Any], in_axes)
        if same_structure(delta.after, structure):
            return tuple(record.axis for _, _, record in delta.leaves())
    return None
