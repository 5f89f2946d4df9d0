"""What a type checker tells users, who have none of our stubs: never run, only checked.

pyright -p tests/typed && mypy --config-file tests/typed/mypy.ini
"""

from collections.abc import Callable
from typing import Any, assert_type

import equinox as eqx
import jax

import chorax
from chorax import filters, lanes, StateDelta
from chorax.lanes import Ensemble


class Neuron(eqx.Module):
    v: jax.Array | None = None

    @chorax.call_order(1)
    def init_state(self, size: int, *, key: jax.Array) -> "Neuron":
        return chorax.replace(self, v=jax.random.normal(key, (size,)))


def calls(linear: eqx.nn.Linear, net: list[Neuron], key: jax.Array) -> None:
    made = chorax.vmap_call_all_fns(linear, chorax.reset_parameters, axis_size=2)
    assert_type(made, tuple[eqx.nn.Linear, StateDelta[eqx.nn.Linear]])
    drawn = chorax.call_all_fns(linear, chorax.reset_parameters, key=key)
    assert_type(drawn, tuple[eqx.nn.Linear, StateDelta[eqx.nn.Linear]])
    with_aux = chorax.call_all_fns(linear, "step", has_aux=True)
    assert_type(
        with_aux, tuple[eqx.nn.Linear, StateDelta[eqx.nn.Linear], dict[str, Any]]
    )
    batched, delta = chorax.vmap_init_all_states(net, 3, axis_size=8, key=key)
    assert_type(batched, list[Neuron])
    assert_type(delta, StateDelta[list[Neuron]])
    assert_type(chorax.init_all_states(net, 3, key=key)[0], list[Neuron])
    assert_type(chorax.reset_all_states(net)[0], list[Neuron])
    again = chorax.vmap_reset_all_states(batched, axis_size=8, in_axes=delta)
    assert_type(again, tuple[list[Neuron], StateDelta[list[Neuron]]])
    assert_type(
        chorax.explain(net, "init_state", 3, axis_size=8, key=key), chorax.Explanation
    )


def package() -> None:
    assert_type(chorax.__version__, str)
    # What is not there is an error.
    _ = chorax.vmap_calls  # type: ignore[attr-defined]


def deltas(
    net: list[Neuron], delta: StateDelta[list[Neuron]], named: dict[str, Any]
) -> None:
    assert_type(delta.values, list[Neuron])
    assert_type(delta.in_axes, list[Neuron])
    assert_type(delta.filter_spec, list[Neuron])
    assert_type(delta.axis_size, int | None)
    assert_type(delta.select("state"), StateDelta[list[Neuron]])
    assert_type(delta.to_dict(), dict[str, Any])
    assert_type(delta.of(net), StateDelta[list[Neuron]])
    assert_type(StateDelta.from_axes(net, 0), StateDelta[list[Neuron]])
    assert_type(chorax.apply_delta(net, delta), list[Neuron])
    assert_type(chorax.diff(net, net), StateDelta[list[Neuron]])
    new, unexpected, missing = chorax.assign_state_values(net, named)
    assert_type(new, list[Neuron])
    assert_type(unexpected, list[Any])
    assert_type(missing, list[str | tuple[str | int, ...]])


def nodes(linear: eqx.nn.Linear, neuron: Neuron, key: jax.Array) -> None:
    assert_type(chorax.replace(neuron, v=None), Neuron)
    assert_type(neuron.init_state(3, key=key), Neuron)
    assert_type(filters.to_filter_spec(neuron, eqx.is_array), Neuron)
    rule: Callable[[Neuron], Neuron] = chorax.call_order(2)(lambda node: node)
    assert_type(rule(neuron), Neuron)


def step(model: eqx.nn.Linear, x: jax.Array) -> tuple[eqx.nn.Linear, jax.Array]:
    return model, model(x)


def members(linears: list[eqx.nn.Linear], mask: jax.Array) -> None:
    batched, axes = lanes.stack(linears)
    assert_type(batched, eqx.nn.Linear)
    assert_type(axes, eqx.nn.Linear)
    assert_type(lanes.unstack(batched, axes), list[eqx.nn.Linear])
    assert_type(lanes.take(batched, axes, 0), eqx.nn.Linear)
    assert_type(lanes.concatenate([batched, batched], axes), eqx.nn.Linear)
    assert_type(lanes.where(mask, batched, batched, axes), eqx.nn.Linear)
    assert_type(lanes.broadcast(linears[0], 3), tuple[eqx.nn.Linear, eqx.nn.Linear])
    assert_type(lanes.scan(step, batched, axes, mask), tuple[eqx.nn.Linear, Any])
    assert_type(lanes.fold(step, batched, axes, mask), tuple[jax.Array, Any])
    assert_type(lanes.vmap(step, in_axes=(axes, None)), Callable[..., Any])
    assert_type(lanes.vmap(in_axes=0)(step), Callable[..., Any])
    parts = lanes.partition(batched, axes, "trained")
    assert_type(parts, tuple[eqx.nn.Linear, eqx.nn.Linear])
    noisy = lanes.perturb(batched, axes, jax.random.key(0), lambda key, x: x)
    assert_type(noisy, eqx.nn.Linear)
    groups = lanes.groups(linears)
    assert_type(groups, lanes.Groups[eqx.nn.Linear])
    assert_type(list(groups), list[eqx.nn.Linear])
    assert_type(groups.map(step, [mask]), list[Any])
    ensemble = Ensemble(batched, axes)
    assert_type(ensemble, Ensemble[eqx.nn.Linear])
    assert_type(ensemble.model, eqx.nn.Linear)
    assert_type(ensemble[0], eqx.nn.Linear)
    assert_type(list(ensemble), list[eqx.nn.Linear])
