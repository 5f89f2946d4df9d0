"""What a collective call means, written as plainly as it can be: one node after the
other, one lane after the other, on concrete values.

It shares nothing with the library but the two facts it has to agree upon: a node's key
is made from its path, and `call_order` leaves its mark on a function.
"""

import dataclasses
import hashlib
from collections import OrderedDict
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from chorax.lanes import Ensemble
from trees import Bag


def no_node(path, node):
    return False


def unwatched(node, levels):
    return None


def call(target, name, args=(), key=None, skip=no_node, watch=unwatched):
    """One lane: calls the method, or a function, on every node that has it; shows each
    to `watch` before, with the lanes of the ensembles around it."""

    def run(node, key):
        own = {} if key is None else {"key": key}
        if callable(name):
            return name(node, *args, **own)
        return getattr(node, name)(*args, **own)

    due = []
    for index, (path, node) in enumerate(children_first(target)):
        method = name if callable(name) else getattr(type(node), name, None)
        if method is not None and is_node(node) and not skip(path, node):
            level = getattr(method, "call_order", None)
            # The index alone tells two apart, so paths are never compared.
            due.append((level is not None, level or 0, index, path))
    for _, _, _, path in sorted(due):
        node, levels = get(target, path), levels_around(target, path)
        watch(
            node, [(level.size, tuple(sorted(level.axes.items()))) for level in levels]
        )
        own = None if key is None else node_key(key, path)
        if not levels:
            target = put(target, path, run(node, own))
            continue
        new, rows = call_members(node, levels, run, own)
        target = put(target, path, new)
        for level, axes in zip(levels, rows, strict=True):
            ensemble: Any = get(target, level.path)
            inside = path[len(level.path) + 1 :]
            now = {(*inside, *p): axis for p, axis in axes.items()}
            mapped = {p: axis for p, axis in ensemble.mapped if p not in now} | now
            mapped = {row for row in mapped.items() if row[1] is not None}
            new = with_fields(ensemble, mapped=frozenset(mapped))
            target = put(target, level.path, new)
    return target


def is_node(module):
    is_plumbing = type(module).__module__.startswith("equinox.")
    return not is_plumbing and not isinstance(module, Ensemble)


@dataclasses.dataclass
class Level:
    """An ensemble around a node, and the lane axes of the node's leaves in it."""

    path: Any
    size: int
    axes: dict[Any, int]


def levels_around(tree, path):
    """The ensembles of which a node is in the model, the outermost first."""
    levels, above = [], []
    for i, key in enumerate(path):
        if isinstance(tree, Ensemble) and key == "model":
            rest = path[i + 1 :]
            axes = {p[len(rest) :]: a for p, a in tree.mapped if p[: len(rest)] == rest}
            above.append((path[: i + 1], dict(tree.mapped)))
            levels.append(Level(path[:i], size_of(tree, above), axes))
        tree = dict(parts(tree))[key]
    return levels


def size_of(ensemble, around):
    """How many members an ensemble has, the last of those around a node: counted in a
    leaf without the lanes of the others, or else what it says itself."""
    start, known = around[-1]
    for path, x in leaves_by_path(ensemble.model).items():
        if path in known and eqx.is_array(x):
            shape = list(x.shape)
            for outer, axes in around[:-1]:
                axis = axes.get((*start, *path)[len(outer) :])
                if axis is not None:
                    del shape[axis]
            return shape[known[path]]
    return eqx.filter(ensemble, False).axis_size


def members(leaves, levels, key):
    """The leaves and the key of every member, row by row."""
    if not levels:
        return [(leaves, key)]
    (level, *rest), each = levels, []
    keys = [None] * level.size if key is None else jax.random.split(key, level.size)
    for i in range(level.size):
        own = {
            p: lane_of(x, level.axes[p], i) if p in level.axes else x
            for p, x in leaves.items()
        }
        each += members(own, rest, keys[i])
    return each


def call_members(node, levels, run, key):
    """The node after a call in every member; and its lane axes in each ensemble."""
    old, structure = leaves_by_path(node), jtu.tree_structure(node)
    before = members(old, levels, key)
    after = [run(jtu.tree_unflatten(structure, x.values()), k) for x, k in before]
    first, news = before[0][0], [leaves_by_path(x) for x in after]

    def leaf(path, value):
        """What stands there for all members, and its lane axes."""
        same = [p for p, x in first.items() if x is value]
        if same:
            source = path if path in same else same[0]
            return old[source], [level.axes.get(source) for level in levels]
        if not eqx.is_array(value):
            return value, [None] * len(levels)
        axes = [level.axes.get(path) for level in levels]
        was: Any = first.get(path)
        if None in axes or not eqx.is_array(was) or was.ndim != value.ndim:
            axes = [0] * len(levels)
        x = jnp.stack([jnp.asarray(new[path]) for new in news])
        x = x.reshape(*[level.size for level in levels], *value.shape)
        for i, axis in reversed(list(enumerate(axes))):
            x = jnp.moveaxis(x, i, i + axis)
        return x, axes

    found = {path: leaf(path, value) for path, value in news[0].items()}
    leaves = [x for x, _ in found.values()]
    rows = [{p: axes[i] for p, (_, axes) in found.items()} for i in range(len(levels))]
    return jtu.tree_unflatten(jtu.tree_structure(after[0]), leaves), rows


def one_by_one(target, name, keys, args=lambda lane: (), axes=None, skip=no_node):
    """The model before and after, in every lane; `axes` has the lane axis of each
    leaf, and `args` the arguments of each lane."""
    leaves, structure = jtu.tree_flatten(target)
    axes = [None] * len(leaves) if axes is None else axes
    lanes = []
    for i, key in enumerate(keys):
        own = [
            x if a is None else lane_of(x, a, i)
            for x, a in zip(leaves, axes, strict=True)
        ]
        before = jtu.tree_unflatten(structure, own)
        lanes.append((before, call(before, name, args(i), key, skip)))
    return lanes


def vmap_call(target, name, keys, **options):
    """All lanes, as the batched model; with the options of `one_by_one`."""
    lanes = one_by_one(target, name, keys, **options)
    old = leaves_by_path(target)
    before = leaves_by_path(lanes[0][0])
    after = [leaves_by_path(model) for _, model in lanes]
    out = []
    for path, value in after[0].items():
        if path in before and before[path] is value:
            out.append(old[path])
        elif eqx.is_array(value):
            out.append(jnp.stack([jnp.asarray(model[path]) for model in after]))
        else:
            out.append(value)
    return jtu.tree_unflatten(jtu.tree_structure(lanes[0][1]), out)


def lane_of(x, axis, index):
    return x[(*[slice(None)] * (axis % x.ndim), index)]


def node_key(key, path):
    digest = hashlib.sha256(repr(path).encode()).digest()
    high, low = np.frombuffer(digest[:8], dtype=">u4")
    return jax.random.fold_in(jax.random.fold_in(key, int(high)), int(low))


def children_first(tree, path=()):
    for key, child in parts(tree):
        yield from children_first(child, (*path, key))
    if isinstance(tree, eqx.Module):
        yield path, tree


def fields_of(module):
    return [
        f.name
        for f in dataclasses.fields(module)
        if not f.metadata.get("static", False)
    ]


def parts(tree) -> list[tuple[Any, Any]]:
    """The children of a container, by the plain keys of paths; none of a leaf."""
    if isinstance(tree, eqx.Module):
        return [(name, getattr(tree, name)) for name in fields_of(tree)]
    if isinstance(tree, dict):
        # JAX sorts the keys of all dictionaries but ordered ones.
        is_ordered = isinstance(tree, OrderedDict)
        names = list(tree) if is_ordered else sorted(tree)
        return [(plain(name), tree[name]) for name in names]
    names = getattr(tree, "_fields", None)
    if names is not None:
        return list(zip(names, tree, strict=True))
    if isinstance(tree, list | tuple):
        return list(enumerate(tree))
    if isinstance(tree, Bag):
        return list(enumerate(tree.items))
    return []


def plain(key):
    is_int = isinstance(key, int | np.integer) and not isinstance(key, bool)
    return key if isinstance(key, str) else int(key) if is_int else str(key)


def leaves_by_path(tree, path=()):
    found = {}
    for key, child in parts(tree):
        found.update(leaves_by_path(child, (*path, key)))
    is_container = isinstance(tree, eqx.Module | dict | list | tuple | Bag)
    if not is_container and tree is not None:
        found[path] = tree
    return found


def get(tree, path):
    for key in path:
        tree = dict(parts(tree))[key]
    return tree


def put(tree, path, value):
    if not path:
        return value
    below = dict(parts(tree))
    below[path[0]] = put(below[path[0]], path[1:], value)
    if isinstance(tree, eqx.Module):
        return with_fields(tree, **below)
    if isinstance(tree, dict):
        return type(tree)((name, below[plain(name)]) for name in tree)
    if isinstance(tree, Bag) or hasattr(tree, "_fields"):
        return type(tree)(*below.values())
    return type(tree)(below.values())


def with_fields(module, **fields):
    copy = object.__new__(type(module))
    for name, value in {**vars(module), **fields}.items():
        object.__setattr__(copy, name, value)
    return copy


def assert_same(left, right, exact=True):
    """Equal in structure, and in every leaf: bit for bit, or to rounding."""
    assert jtu.tree_structure(left) == jtu.tree_structure(right)
    pairs = zip(jtu.tree_leaves(left), jtu.tree_leaves(right), strict=True)
    for a, b in pairs:
        if not eqx.is_array(a) and not eqx.is_array(b):
            assert type(a) is type(b)
            assert a == b
            continue
        assert eqx.is_array(a)
        assert eqx.is_array(b)
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        if exact or not np.issubdtype(a.dtype, np.inexact):
            assert a.tobytes() == b.tobytes(), (a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
