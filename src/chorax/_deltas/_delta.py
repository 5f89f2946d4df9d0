"""State deltas: exactly what a call wrote, as a value of its own."""

from collections.abc import Sequence
from typing import Any, cast, Generic, TypeVar

import equinox as eqx
import jax.tree_util as jtu

from .._text._places import dotted, names_of, Path, place
from .._text._table import counted, in_bytes, Row, size_of, Table, value_cells
from .._tree._holder import AxesHolder, undo_lanes
from .._tree._paths import first_difference, leaf_paths, same_structure
from ..filters import Filter, to_predicate


T = TypeVar("T")


class StateDelta(AxesHolder, Generic[T]):
    """What a collective call wrote: a PyTree whose leaves are the written values.

    `vmap_call_all_fns` and its relatives return one beside the model; `diff` makes one
    from two models, and `apply_delta` puts one into a model. Two deltas of calls made
    one after the other combine with `earlier | later`: the later value wins, and tags
    add up. It prints as a table.

    ```python
    >>> import chorax
    >>> import equinox as eqx
    >>> import jax.numpy as jnp
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

    ```
    Tags say which leaves are meant, here in the delta of two calls:

    ```python
    >>> _, ones = chorax.vmap_init_all_states(net, axis_size=8, state_tag="hidden")
    >>> both = delta | ones
    >>> both.tags, both.select("hidden").paths
    ({'0.v': frozenset({'hidden'})}, ('0.v',))

    ```
    """

    values: T
    """The returned model with its written values, and `None` wherever nothing was
    written."""
    # The structures of the target and of the returned model.
    before: jtu.PyTreeDef = eqx.field(static=True)
    after: jtu.PyTreeDef = eqx.field(static=True)
    # One entry for each leaf of the returned model.
    _written: tuple[bool, ...] = eqx.field(static=True)
    _axes: tuple[int | None, ...] = eqx.field(static=True)
    _tags: tuple[frozenset[str], ...] = eqx.field(static=True)
    # The lane axis that the leaf had before, if it was there.
    _mapped: tuple[int | None, ...] = eqx.field(static=True)

    @property
    def in_axes(self) -> T:
        """The returned model with the lane axis of each leaf: `0` where this call wrote
        it, what it was where it was mapped before, `None` for shared leaves. Fits
        `in_axes` and `out_axes` of `eqx.filter_vmap`."""
        return jtu.tree_unflatten(self.after, self._axes)

    @property
    def filter_spec(self) -> T:
        """The returned model with `True` for each written leaf, `False` elsewhere. Fits
        `eqx.partition` and `eqx.filter`."""
        return jtu.tree_unflatten(self.after, self._written)

    @property
    def paths(self) -> tuple[str, ...]:
        """The dotted paths of the written leaves, in the order of traversal."""
        return tuple(dotted(path) for path, _, _ in self._rows())

    @property
    def tags(self) -> dict[str | Path, frozenset[str]]:
        """The tags of each written leaf, by dotted path; by its path as a tuple, where
        several have that one."""
        rows = self._rows()
        names = names_of([path for path, _, _ in rows])
        return dict(zip(names, [tags for _, _, tags in rows], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """The written values by dotted path: a state dict, which
        `assign_state_values` takes.

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

        - `filter`: any filter, see `chorax.filters`; it is asked about each written
            leaf, and a `str` is a tag.

        **Returns:**

        A delta of the kept leaves, for models of the same structures. In a model that
        it is applied to, a leaf that is not kept and was not there before is `None`.

        **Raises:** `TypeError` for anything that is not a filter.
        """
        keeps = to_predicate(filter)
        rows = self.leaves()
        kept = [was and keeps(path, value, tags) for path, value, was, tags in rows]
        axes = zip(kept, self._written, self._axes, self._mapped, strict=True)
        left_out = [
            path
            for (path, _, was, _), keep in zip(rows, kept, strict=True)
            if was and not keep
        ]
        return make_delta(
            self.before,
            undo_lanes(self.after, self.before, left_out),
            [
                x if keep else None
                for (_, x, _, _), keep in zip(rows, kept, strict=True)
            ],
            kept,
            [old if was and not keep else axis for keep, was, axis, old in axes],
            [
                tags if keep else frozenset()
                for keep, tags in zip(kept, self._tags, strict=True)
            ],
            self.axis_size,
            self._mapped,
        )

    # What a structure of modules comes to by `pickle` and `copy` does not equal it: it
    # holds marks of Equinox that are told apart by identity. A tree of it does.
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
                "what was written in the same lanes goes into one delta."
            )
        earlier = {row[0]: row[1:] for row in self.leaves()}
        axes = dict(zip(earlier, self._axes, strict=True))
        values: list[Any] = []
        written: list[bool] = []
        new_axes: list[int | None] = []
        tags: list[frozenset[str]] = []
        rows = later.leaves()
        for (path, value, is_new, own), axis in zip(rows, later._axes, strict=True):
            old_value, was_written, old_tags = earlier.get(
                path, (None, False, frozenset[str]())
            )
            values.append(value if is_new else old_value)
            written.append(is_new or was_written)
            known = axis is not None or is_new
            new_axes.append(axis if known else axes.get(path))
            tags.append(own | old_tags)
        size = self.axis_size if later.axis_size is None else later.axis_size
        old = dict(zip(earlier, self._mapped, strict=True))
        mapped = [old.get(path) for path, _, _, _ in rows]
        return make_delta(
            self.before, later.after, values, written, new_axes, tags, size, mapped
        )

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def leaves(self) -> list[tuple[Path, Any, bool, frozenset[str]]]:
        """Path, value, whether it was written, and tags of each leaf of the model."""
        # A delta may have been mapped over or filtered; a leaf's place then holds
        # whatever came of it.
        values = self.after.flatten_up_to(self.values)
        paths = leaf_paths(self.after)
        return list(zip(paths, values, self._written, self._tags, strict=True))

    def _rows(self) -> list[tuple[Path, Any, frozenset[str]]]:
        rows = self.leaves()
        return [(path, x, tags) for path, x, is_written, tags in rows if is_written]

    def _table(self) -> Table:
        rows = tuple(
            Row(path, (*value_cells(x, axis), ", ".join(sorted(tags))), size_of(x))
            for (path, x, is_written, tags), axis in zip(
                self.leaves(), self._axes, strict=True
            )
            if is_written
        )
        lanes = (
            "no lanes" if self.axis_size is None else counted(self.axis_size, "lane")
        )
        parts = [counted(len(rows), "written leaf", "written leaves"), lanes]
        if rows:
            parts.append(in_bytes(sum(row.size or 0 for row in rows)))
        head = ("path", "type", "shape", "tags", "bytes")
        return Table(f"StateDelta: {', '.join(parts)}", head, rows)


def make_delta(
    before: jtu.PyTreeDef,
    after: jtu.PyTreeDef,
    values: Sequence[Any],
    written: Sequence[bool],
    axes: Sequence[int | None],
    tags: Sequence[frozenset[str]],
    axis_size: int | None,
    mapped: Sequence[int | None],
) -> StateDelta[Any]:
    """A delta from its parts; all but the structures have an entry for each leaf of
    `after`, and `values` has `None` where nothing was written."""
    tree = jtu.tree_unflatten(after, values)
    rest = tuple(written), tuple(axes), tuple(tags), tuple(mapped)
    return StateDelta(axis_size, tree, before, after, *rest)


def known_axes(in_axes: Any, structure: jtu.PyTreeDef) -> tuple[int | None, ...] | None:
    """The lane axis of every leaf, where `in_axes` is the delta of such a model."""
    if isinstance(in_axes, StateDelta):
        delta = cast(StateDelta[Any], in_axes)
        if same_structure(delta.after, structure):
            return delta._axes  # pyright: ignore[reportPrivateUsage]
    return None


def tags_by_path(delta: StateDelta[Any]) -> dict[Path, frozenset[str]]:
    """The tags of a delta's leaves, by path."""
    return {path: tags for path, _, _, tags in delta.leaves() if tags}


def mismatch(
    got: jtu.PyTreeDef, expected: jtu.PyTreeDef, got_name: str, expected_name: str
) -> str:
    """Where two structures part, and what each has there."""
    found = first_difference(got, expected)
    if found is None:
        return "they differ in a part that has no path."
    path, a, b = found
    return f"at {place(path)}, {got_name}: {a}; {expected_name}: {b}."
