# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # In a notebook
#
# This page is a notebook, and what you see is what its cells returned. Deltas,
# explanations and ensembles are shown as tables.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp

import chorax


class Neuron(eqx.Module):
    weight: jax.Array
    v: jax.Array | None = None

    def init_state(self, *, key):
        return chorax.replace(self, v=jax.random.normal(key, self.weight.shape))


net = [Neuron(jnp.ones(3)) for _ in range(4)]

# %% [markdown]
# ## Before a call
#
# `chorax.explain` tells what a call will do. Rows that differ only in the indices of
# their paths are folded into one.

# %%
key = jax.random.key(0)
chorax.explain(net, "init_state", axis_size=32, key=key)

# %% [markdown]
# ## The delta of a call

# %%
net, delta = chorax.vmap_init_all_states(
    net, axis_size=32, key=key, state_tag="membrane"
)
delta

# %% [markdown]
# ## An ensemble

# %%
mlp = eqx.nn.MLP(2, 1, 8, 2, key=jax.random.key(1))
members, axes = chorax.vmap_call_all_fns(
    mlp, chorax.reset_parameters, axis_size=5, key=jax.random.key(2)
)
ensemble = chorax.lanes.Ensemble(members, axes)
ensemble

# %% [markdown]
# ## With treescope
#
# [treescope](https://treescope.readthedocs.io/) shows any PyTree as a tree to unfold:
# batched models, the values of a delta, ensembles.

# %%
import treescope

treescope.register_as_default()
net[0]

# %%
delta.values[0]

# %%
ensemble

# %% [markdown]
# To keep the tables, leave out `treescope.register_as_default()`. `treescope.show(net)`
# shows a single result as a tree.
