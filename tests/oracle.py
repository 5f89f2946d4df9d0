"""What a collective call means, written as plainly as it can be: one node after the
other, one lane after the other, on concrete values.

It shares nothing with the library but the two facts it has to agree upon: a node's key
is made from its path, and `call_order` leaves its mark on a function.
"""

import dataclasses
import hashlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np


def call(target, name, args=(), key=None, skip=lambda path, node: False):
    """One lane: calls the method on every node that has it."""
    due = []
    for index, (path, node) in enumerate(children_first(target)):
        method = getattr(type(node), name, None)
        if method is not None and not skip(path, node):
            level = getattr(method, "call_order", None)
            due.append((level is not None, level or 0, index, path))
    for _, _, _, path in sorted(due):
        node = get(target, path)
        method = getattr(node, name)
        kwargs = {} if key is None else {"key": node_key(key, path)}
        new = method(*args, **kwargs)
        target = put(target, path, new)
    return target


def vmap_call(target, name, keys, args=(), axes=None):
    """All lanes, as the batched model; `axes` has the lane axis of each leaf."""
    leaves, structure = jtu.tree_flatten(target)
    axes = [None] * len(leaves) if axes is None else axes
    lanes = []
    for i, key in enumerate(keys):
        own = [
            x if a is None else jnp.take(x, i, axis=a)
            for x, a in zip(leaves, axes, strict=True)
        ]
        before = jtu.tree_unflatten(structure, own)
        after = call(before, name, args, key)
        lanes.append((before, after))
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


def node_key(key, path):
    digest = hashlib.sha256(repr(path).encode()).digest()
    high, low = np.frombuffer(digest[:8], dtype=">u4")
    return jax.random.fold_in(jax.random.fold_in(key, int(high)), int(low))


def children_first(tree, path=()):
    for key, child in parts(tree):
        yield from children_first(child, (*path, key))
    if isinstance(tree, eqx.Module):
        yield path, tree


def parts(tree) -> list[tuple[Any, Any]]:
    if isinstance(tree, eqx.Module):
        return [
            (f.name, getattr(tree, f.name))
            for f in dataclasses.fields(tree)
            if not f.metadata.get("static", False)
        ]
    if isinstance(tree, dict):
        return sorted(tree.items())
    names = getattr(tree, "_fields", None)
    if names is not None:
        return list(zip(names, tree, strict=True))
    if isinstance(tree, list | tuple):
        return list(enumerate(tree))
    return []


def leaves_by_path(tree, path=()):
    found = {}
    below = parts(tree)
    for key, child in below:
        found.update(leaves_by_path(child, (*path, key)))
    is_container = isinstance(tree, eqx.Module | dict | list | tuple)
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
    changed = put(dict(parts(tree))[path[0]], path[1:], value)
    if isinstance(tree, eqx.Module):
        copy = object.__new__(type(tree))
        for name, old in {**vars(tree), path[0]: changed}.items():
            object.__setattr__(copy, name, old)
        return copy
    if isinstance(tree, dict):
        return {**tree, path[0]: changed}
    children = [changed if k == path[0] else x for k, x in parts(tree)]
    return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)


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
