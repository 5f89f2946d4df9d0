"""An ensemble over several processes, as the tests run it: one of these a process.

    python two_processes.py FOLDER TASK PORT PROCESSES PROCESS DEVICES

All processes make, train, reset and save one ensemble, whose lanes are divided among
the devices of all of them; any number of them loads it again.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import chorax
from chorax import lanes
from programs import COLLECTIVES, compiled


LANES = 16
# Of layers that take a while to be written.
WIDE = 20_000


def start(port: str, processes: int, process: int, devices: int) -> NamedSharding:
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    types = (AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("lanes",), axis_types=types)
    return NamedSharding(mesh, PartitionSpec("lanes"))


def create(sharding: Any, width: int = 16) -> Any:
    model = eqx.nn.MLP(64, 10, width, 1, key=jax.random.key(0))
    return vmap_reset(model, None, sharding, jax.random.key(1))


def vmap_reset(model: Any, axes: Any, sharding: Any, key: Any, **options: Any) -> Any:
    return chorax.vmap_call_all_fns(
        model,
        chorax.reset_parameters,
        axis_size=LANES,
        key=key,
        in_axes=axes,
        sharding=sharding,
        **options,
    )


def train(members: Any, delta: Any, sharding: Any, steps: int) -> Any:
    images, labels = load_digits(return_X_y=True)
    x, y = np.float32(images[:256] / 16), labels[:256]
    optimiser = optax.adam(1e-2)

    def step(member: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(member: Any) -> Any:
            logits = jax.vmap(member)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = eqx.filter_value_and_grad(loss)(member)
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(member, updates), state, value

    axes = (delta.in_axes, 0, None, None)
    out_axes = (delta.in_axes, 0, 0)
    lane_by_lane = eqx.filter_vmap(step, in_axes=axes, out_axes=out_axes)
    run = eqx.filter_jit(lane_by_lane)
    begin = eqx.filter_jit(jax.vmap(optimiser.init))
    state = begin(eqx.filter(members, eqx.is_inexact_array))
    check_apart(lane_by_lane, members, state, *everywhere(sharding, x, y))
    losses = []
    for _ in range(steps):
        members, state, loss = run(members, state, x, y)
        losses.append(loss)
    return members, [losses[0], losses[-1]]


def everywhere(sharding: Any, *arrays: Any) -> list[Any]:
    """Arrays on all devices."""
    layout = NamedSharding(sharding.mesh, PartitionSpec())
    return list(jax.jit(lambda x: x, out_shardings=layout)(arrays))


def everything(tree: Any, sharding: Any) -> list[np.ndarray]:
    """All lanes of all arrays, in every process."""
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return [np.asarray(x) for x in everywhere(sharding, *arrays)]


def check_apart(function: Any, *inputs: Any) -> None:
    """No device sends anything to another."""
    text = compiled(function, *inputs).as_text()
    assert re.findall(COLLECTIVES, text) == []


def check_shares(tree: Any) -> None:
    """Every device has its part of the lanes."""
    for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array)):
        shapes = {shard.data.shape[0] for shard in x.addressable_shards}
        assert shapes == {LANES // jax.device_count()}


def to_save(members: Any, delta: Any) -> dict[str, Any]:
    """The written leaves as they are now, by their paths."""
    return dict(
        zip(
            delta.paths,
            jax.tree.leaves(eqx.filter(members, delta.filter_spec)),
            strict=True,
        )
    )


def save(manager: ocp.CheckpointManager, number: int, members: Any, delta: Any) -> None:
    arguments: Any = ocp.args.StandardSave
    manager.save(number, args=arguments(to_save(members, delta)))


def load(folder: Path, sharding: Any, width: int) -> Any:
    """The latest ensemble, its lanes on these devices, however many saved it."""
    members, delta = eqx.filter_eval_shape(lambda: create(None, width))
    like = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for name, x in to_save(members, delta).items()
    }
    arguments: Any = ocp.args.StandardRestore
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        latest = manager.latest_step()
        assert latest is not None
        found = manager.restore(latest, args=arguments(like))
    model, unexpected, missing = chorax.assign_state_values(members, found)
    assert (unexpected, missing) == ([], [])
    return model


def main(folder: Path, task: str, sharding: NamedSharding) -> None:
    if task == "train":
        members, delta = create(sharding)
        check_shares(members)
        made = everything(members, sharding)
        members, losses = train(members, delta, sharding, 20)
        first, last = everything(losses, sharding)
        assert (last < 0.8 * first).all()
        mask = jnp.arange(LANES) % 5 == 0
        [key] = everywhere(sharding, jax.random.key(2))

        def reset(members: Any, key: Any) -> Any:
            return vmap_reset(members, delta, sharding, key, where=mask)

        check_apart(lambda key: create(sharding)[0], key)
        check_apart(lambda *inputs: reset(*inputs)[0], members, key)
        members, delta = reset(members, key)
        check_shares(members)
        with ocp.CheckpointManager(folder / "checkpoints") as manager:
            save(manager, 1, members, delta)
            manager.wait_until_finished()
        # One that lives in the last process, in all of them.
        taken = [lanes.take(members, delta, i) for i in (0, LANES - 1)]
        values = everything(members, sharding)
        mine = jax.process_index()
        np.savez(folder / f"made_{mine}.npz", *made)
        np.savez(folder / f"all_{mine}.npz", *values)
        arrays = jax.tree.leaves(eqx.filter(taken, eqx.is_array))
        np.savez(folder / f"taken_{mine}.npz", *map(np.asarray, arrays))
    elif task in ("load", "load wide"):
        width = {"load": 16, "load wide": WIDE}[task]
        members = load(folder, sharding, width)
        check_shares(members)
        np.savez(folder / "loaded.npz", *everything(members, sharding))
    else:
        members, delta = create(sharding, WIDE)
        with ocp.CheckpointManager(folder / "checkpoints") as manager:
            save(manager, 1, members, delta)
            manager.wait_until_finished()
            np.savez(folder / "first.npz", *everything(members, sharding))
            members, delta = vmap_reset(members, delta, sharding, jax.random.key(3))
            print("saving", flush=True)
            save(manager, 2, members, delta)
            manager.wait_until_finished()
            print("saved", flush=True)


if __name__ == "__main__":
    where, what, port, *numbers = sys.argv[1:]
    main(Path(where), what, start(port, *map(int, numbers)))
    if jax.process_count() > 1:
        # None may go while another still waits for what it sends.
        multihost_utils.sync_global_devices("done")
        jax.distributed.shutdown()
    sys.stdout.flush()
    os._exit(0)
