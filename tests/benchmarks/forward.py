"""The compiled forward pass of an ensemble against the hand-written one."""

import json
from typing import Any

import equinox as eqx
import jax

import chorax


def costs() -> dict[str, dict[str, float]]:
    """Flops and bytes of both programs, as XLA counts them."""
    model = eqx.nn.MLP(16, 4, 128, 3, key=jax.random.key(0))
    batched, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, axis_size=8, key=jax.random.key(1)
    )
    ensemble = chorax.lanes.Ensemble(batched, delta)
    x = jax.numpy.ones(16)
    by_hand = eqx.filter_vmap(lambda m, x: m(x), in_axes=(eqx.if_array(0), None))
    programs: dict[str, Any] = {
        "ensemble": (lambda e, x: e(x), ensemble),
        "by hand": (by_hand, batched),
    }
    found: dict[str, dict[str, float]] = {}
    for name, (function, module) in programs.items():
        lowered = eqx.filter_jit(function).lower(module, x)
        cost = lowered.compile().compiled.cost_analysis()
        names = ("flops", "bytes accessed")
        found[name] = {each: float(cost[each]) for each in names}
    return found


if __name__ == "__main__":
    print(json.dumps(costs()))
