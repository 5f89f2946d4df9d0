"""A thousand calls that have nothing in common, and what is left of them.

    python tests/stress.py [--calls 1000] [--seed 0]

Every call is on a model of another structure, with other static values, in another
number of lanes, with methods and filters that close over arrays of their own; many are
on classes that no other call has met, some inside of a `jax.jit`, and some fail. At the
end it prints what is alive, and exits with 1 if that is more than it should be:

- no tracer, and no more entries in each of chorax's memories than it is bounded by;
- no more arrays than those that such bounded entries hold, and none once the memories
  are emptied: a call's own arrays die with it;
- no more objects of one type after the second half than after the first, but for those
  that belong to classes (JAX and Equinox keep every class of modules for good) and to
  the entries of memories that were not full after the first half;
- as much resident memory, to a tolerance, once chorax's memories and JAX's caches are
  emptied as after the same number of classes.
"""

import argparse
import collections
import ctypes
import functools
import gc
import random
import sys
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import psutil

import chorax
from chorax import call_order, replace


def memories():
    """chorax's own memories by name: all that outlives a call."""
    modules = [m for name, m in sys.modules.items() if name.startswith("chorax")]
    return {
        f"{module.__name__}.{name}": x
        for module in modules
        for name, x in vars(module).items()
        if isinstance(x, functools._lru_cache_wrapper)
    }
