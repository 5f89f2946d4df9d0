"""This library, and the same work with `eqx.filter_vmap` by hand.

Each peer takes a task, a number of nodes and of lanes, and returns a function that does
the work once, or `None` if that is not the peer's work.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

import chorax

from .models import make_model, MEMBERS


Run = Callable[[], Any]


def ours(task: str, nodes: int, lanes: int) -> Run | None:
    """A collective call, as it is."""
    return _ours(task, nodes, lanes, lambda function: function)


def ours_in_jit(task: str, nodes: int, lanes: int) -> Run | None:
    """A collective call in a user's `eqx.filter_jit`."""
    return _ours(task, nodes, lanes, eqx.filter_jit)


def by_hand(task: str, nodes: int, lanes: int) -> Run | None:
    """`eqx.filter_vmap` of a loop over the nodes."""
    return _by_hand(task, nodes, lanes, lambda function: function)


def by_hand_in_jit(task: str, nodes: int, lanes: int) -> Run | None:
    """The same under `eqx.filter_jit`."""
    return _by_hand(task, nodes, lanes, eqx.filter_jit)


def _ours(task: str, nodes: int, lanes: int, wrap: Any) -> Run:
    model, delta = _prepare(task, nodes, lanes)
    methods: dict[str, Any] = {
        "blocks": "step",
        "zeros": "zeros",
        "add": "add",
        "six kinds reset": "reset_state",
    }
    method = methods.get(task, "init_state")
    if task in MEMBERS:
        method = chorax.reset_parameters

    @wrap
    def call(model: Any, key: jax.Array) -> Any:
        batched, _ = chorax.vmap_call_all_fns(
            model, method, axis_size=lanes, key=key, in_axes=delta
        )
        return batched

    key = jax.random.key(0)
    return lambda: call(model, key)


def _by_hand(task: str, nodes: int, lanes: int, wrap: Any) -> Run | None:
    if task in ("chain", "tree"):
        return None
    if task in MEMBERS:
        # What constructors hold besides arrays goes through no `jit`.
        build = eqx.filter_vmap(MEMBERS[task], out_axes=eqx.if_array(0))
        members = jax.random.split(jax.random.key(0), lanes)
        return None if wrap is eqx.filter_jit else lambda: build(members)
    model, delta = _prepare(task, nodes, lanes)
    axes: Any = None if delta is None else delta.in_axes

    def step(model: Any, key: jax.Array) -> Any:
        del key
        return [
            eqx.filter_vmap(lambda block: block.step(), in_axes=(axis,), out_axes=axis)(
                block
            )
            for block, axis in zip(model, axes, strict=True)
        ]

    def plain(model: Any, key: jax.Array) -> Any:
        del key

        def lane(_: jax.Array, model: Any) -> Any:
            return [getattr(node, task)() for node in model]

        over_lanes = eqx.filter_vmap(lane, in_axes=(0, None))
        return over_lanes(jax.numpy.arange(lanes), model)

    def init(model: Any, key: jax.Array) -> Any:
        def lane(model: Any, key: jax.Array) -> Any:
            keys = jax.random.split(key, nodes)
            name = "reset_state" if task == "six kinds reset" else "init_state"
            pairs = zip(model, keys, strict=True)
            return [getattr(node, name)(key=k) for node, k in pairs]

        keys = jax.random.split(key, lanes)
        out_axes = eqx.if_array(0) if task != "shared" else own_axes
        over_lanes = eqx.filter_vmap(lane, in_axes=(axes, 0), out_axes=out_axes)
        return over_lanes(model, keys)

    def is_own(path: Any, leaf: Any) -> int | None:
        del leaf
        return 0 if path[-1].name == "v" else None

    own_axes = jax.tree_util.tree_map_with_path(is_own, model)
    work = {"blocks": step, "zeros": plain, "add": plain}.get(task, init)
    run, key = wrap(work), jax.random.key(0)
    return lambda: run(model, key)


def _prepare(task: str, nodes: int, lanes: int) -> tuple[Any, Any]:
    """The model, and the delta that made its lanes if it has any."""
    model, key = make_model(task, nodes), jax.random.key(0)
    if task in ("reset", "six kinds reset"):
        return chorax.vmap_init_all_states(model, axis_size=lanes, key=key)
    if task == "blocks":

        def start(node: Any, key: jax.Array) -> Any:
            return chorax.replace(node, v=jax.random.normal(key, node.v.shape))

        return chorax.vmap_call_all_fns(model, start, axis_size=lanes, key=key)
    return model, None
