"""How the laws call: quietly about shared objects, eagerly or under a `jit`."""

import contextlib
import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from hypothesis import assume, strategies as st

import chorax
import oracle
import trees
from trees import LANES


# The first makes keys of another kind, which are slow to compile.
seeds = st.sampled_from([1, 2, 3, 4, 0])
jits = st.booleans()
masks = st.lists(st.booleans(), min_size=LANES, max_size=LANES).map(jnp.array)


@contextlib.contextmanager
def quiet():
    """For models in which objects are shared, of which a call warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The same object stands at")
        yield


def call(tree, keys, name: Any = "step", **options):
    with quiet():
        return chorax.vmap_call_all_fns(
            tree, name, axis_size=LANES, key=keys, fn_if_not_exist="pass", **options
        )


def call_one(tree, key, name: Any = "step", **options):
    with quiet():
        return chorax.call_all_fns(
            tree, name, key=key, fn_if_not_exist="pass", **options
        )


def maybe_jit(function, jit):
    return eqx.filter_jit(function) if jit else function


def fits_jit(tree):
    """Whether `eqx.filter_jit` takes it, whatever it was given before."""
    # It compares structures, and NumPy compares a scalar with a tuple by elements.
    paths = jtu.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    keys = (getattr(entry, "key", None) for path, _ in paths for entry in path)
    return not any(isinstance(key, np.generic) for key in keys)


def build(shape, jit=False):
    tree = trees.build(shape)
    assume(fits_jit(tree) or not jit)
    return tree


def written_paths(before, after):
    """The paths of the leaves that are not the very same objects."""
    old, new = oracle.leaves_by_path(before), oracle.leaves_by_path(after)
    return [path for path, x in new.items() if not (path in old and old[path] is x)]
