"""An ensemble on many devices.

Sixteen networks learn to read digits on eight devices, simulated by one CPU, each of
which makes, trains and holds its own lanes. Where lanes live is said once, when they
are made: training is then the step of one member mapped over the lanes, and no device
waits for another. The members of the worst device are drawn anew halfway, where they
live. The script prints what a device holds and what is sent between devices, and draws
where the lanes live.

    pip install -e ".[examples]"
    python docs/examples/many_devices.py
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import chorax


BATCH_SIZE = 64
COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
OUTPUT = Path(__file__).parent / "output" / "many_devices.png"


class Reader(eqx.Module):
    """Reads a digit, on a scale that all members share."""

    scale: Float[Array, " pixels"]
    mlp: eqx.nn.MLP

    def __call__(self, image: Float[Array, " pixels"]) -> Float[Array, " classes"]:
        return self.mlp(image / self.scale)


def load_data(seed: int) -> list[Any]:
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images)
    return train_test_split(images, labels, stratify=labels, random_state=seed)


# Written for one member; lanes, and devices, are added where it is called.
def train_step(
    member: Reader, state: Any, x: Array, y: Array, optimiser: Any
) -> tuple[Reader, Any, Array]:
    def loss(mlp: eqx.nn.MLP) -> Array:
        logits = jax.vmap(chorax.replace(member, mlp=mlp))(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, grads = eqx.filter_value_and_grad(loss)(member.mlp)
    updates, state = optimiser.update(grads, state)
    mlp = eqx.apply_updates(member.mlp, updates)
    return chorax.replace(member, mlp=mlp), state, value


def score(member: Reader, x: Array, y: Array) -> Float[Array, ""]:
    return (jax.vmap(member)(x).argmax(axis=1) == y).mean()


def homes(x: Array, axis: int | None, lanes: int) -> list[set[int]]:
    """For each lane the devices on which its part of an array lives."""
    found: list[set[int]] = [set() for _ in range(lanes)]
    for shard in x.addressable_shards:
        own = slice(None) if axis is None else shard.index[axis]
        for lane in range(lanes)[own]:
            found[lane].add(shard.device.id)
    return found


def draw(
    rows: Sequence[tuple[str, Sequence[set[int]]]],
    accuracy: Float[Array, "moments lanes"],
    held: Sequence[float],
    devices: int,
    anew: int,
) -> Figure:
    lanes = len(rows[0][1])
    figure = Figure(figsize=(4.1, 13.5), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    top, bottom = parts
    table = top.subplots()
    colours = colormaps["turbo"](np.linspace(0.08, 0.92, devices))
    for row, (_, lanes_of_leaf) in enumerate(rows):
        for lane, found in enumerate(lanes_of_leaf):
            is_own = len(found) == 1
            fill = colours[min(found)] if is_own else np.array([0.88] * 3)
            corner = (row - 0.42, lane - 0.34)
            style = "round,pad=0,rounding_size=0.1"
            table.add_patch(FancyBboxPatch(corner, 0.84, 0.68, style, fc=fill, lw=0))
            text = str(min(found)) if is_own else "all"
            ink = "black" if fill[:3] @ (0.3, 0.59, 0.11) > 0.5 else "white"
            table.text(row, lane, text, ha="center", va="center", color=ink)
    table.set(xlim=(-0.6, len(rows) - 0.4), ylim=(lanes - 0.4, -0.6), ylabel="lane")
    table.set_yticks(range(lanes))
    names = [name for name, _ in rows]
    table.set_xticks(range(len(rows)), names, family="monospace", rotation=90)
    table.spines[:].set_visible(False)
    table.tick_params(length=0)
    table.set_title("The device of each lane and leaf", weight="bold")
    left, right = bottom.subplots(2, 1, height_ratios=(1.5, 1))
    owner = [min(found) for found in rows[-1][1]]
    for lane, (before, after) in enumerate(np.asarray(accuracy).T):
        left.plot([lane, lane], [before, after], color=colours[owner[lane]], lw=2)
        left.plot(lane, before, "o", mfc="white", color=colours[owner[lane]])
        left.plot(lane, after, "o", color=colours[owner[lane]])
    left.set(xlabel="lane", ylabel="accuracy on test images")
    left.set_xticks(range(0, lanes, 2))
    title = f"Before device {anew} begins anew (open),\nand in the end (filled)"
    left.set_title(title, weight="bold")
    right.bar(["one device", f"each of {devices}"], held, color=["0.6", colours[2]])
    for place, size in enumerate(held):
        right.text(place, size, f"{size:.2f}", ha="center", va="bottom")
    right.set(ylabel="held by a training step (MB)")
    right.set_title("What a device holds", weight="bold")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="An ensemble on many devices.")
    parser.add_argument("--devices", type=int, default=8, help="to simulate")
    parser.add_argument("--lanes", type=int, default=16, help="members of the ensemble")
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture")
    options = parser.parse_args(argv)

    # Without this there are as many devices as the machine has.
    jax.config.update("jax_num_cpu_devices", options.devices)
    types = (AxisType.Auto,)
    mesh = jax.make_mesh((options.devices,), ("lanes",), axis_types=types)
    where_lanes_live = NamedSharding(mesh, PartitionSpec("lanes"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    model_key, make_key, data_key, anew_key = jax.random.split(
        jax.random.key(options.seed), 4
    )
    mlp = eqx.nn.MLP(64, 10, options.units, 2, key=model_key)
    model = Reader(jnp.full(64, 16.0), mlp)
    made = {
        "axis_size": options.lanes,
        "sharding": where_lanes_live,
        "node_to_exclude": Reader,
    }
    members, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, key=make_key, **made
    )
    data = jax.device_put(load_data(options.seed), everywhere)
    train_x, test_x, train_y, test_y = data

    optimiser = optax.adam(1e-3)
    begin = eqx.filter_jit(jax.vmap(optimiser.init))
    state = begin(eqx.filter(members.mlp, eqx.is_inexact_array))
    lane_by_lane = eqx.filter_vmap(
        train_step,
        in_axes=(delta.in_axes, 0, None, None, None),
        out_axes=(delta.in_axes, 0, 0),
    )
    step = eqx.filter_jit(lane_by_lane)
    score_all = eqx.filter_jit(
        eqx.filter_vmap(score, in_axes=(delta.in_axes, None, None))
    )

    program = step.lower(
        members, state, train_x[:BATCH_SIZE], train_y[:BATCH_SIZE], optimiser
    ).compile()
    sent = re.findall(COLLECTIVES, program.compiled.as_text())
    stats = program.compiled.memory_analysis()
    held = stats.argument_size_in_bytes + stats.temp_size_in_bytes

    lane = jnp.arange(options.lanes)
    device_of_lane = lane * options.devices // options.lanes
    halfway, worst = jnp.zeros(options.lanes), 0
    keys = jax.random.split(data_key, options.steps)
    for number, key in enumerate(tqdm(keys, unit="step")):
        batch = jax.random.randint(key, (BATCH_SIZE,), 0, len(train_x))
        x, y = train_x[batch], train_y[batch]
        members, state, _ = step(members, state, x, y, optimiser)
        if number == options.steps // 2:
            halfway = score_all(members, test_x, test_y)
            worst = int(halfway.reshape(options.devices, -1).mean(axis=1).argmin())
            mask = device_of_lane == worst
            members, _ = chorax.vmap_call_all_fns(
                members,
                chorax.reset_parameters,
                key=anew_key,
                in_axes=delta,
                where=mask,
                **made,
            )
            fresh = begin(eqx.filter(members.mlp, eqx.is_inexact_array))
            state = chorax.lanes.where(mask, fresh, state, 0)
    accuracy = score_all(members, test_x, test_y)
    whole = held_by_one(members, state, optimiser, data, delta)

    print(f"{options.lanes} members on {jax.device_count()} devices")
    print(f"sent between devices in a training step: {sent or 'nothing'}")
    print(f"held: {whole / 1e6:.2f} MB by one device, {held / 1e6:.2f} MB by each")
    print(f"accuracy: {accuracy.min():.1%} to {accuracy.max():.1%}")
    leaves = jax.tree.leaves_with_path(eqx.filter(members, eqx.is_array))
    axes = dict.fromkeys(delta.paths, 0)
    rows = [
        (name, homes(x, axes.get(name), options.lanes))
        for name, x in ((_dotted(path), x) for path, x in leaves)
    ]
    moments = jnp.stack([halfway, accuracy])
    sizes = [whole / 1e6, held / 1e6]
    figure = draw(rows, moments, sizes, options.devices, worst)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=200)
    print(f"picture: {options.output}")


def held_by_one(
    members: Reader, state: Any, optimiser: Any, data: Sequence[Array], delta: Any
) -> int:
    """The bytes of a training step if all lanes live on one device."""
    arrays, static = eqx.partition((members, state), eqx.is_array)
    alone = jax.device_put(arrays, jax.devices()[0])
    members, state = eqx.combine(alone, static)
    x, _, y, _ = jax.device_put(data, jax.devices()[0])
    step = eqx.filter_jit(
        eqx.filter_vmap(
            train_step,
            in_axes=(delta.in_axes, 0, None, None, None),
            out_axes=(delta.in_axes, 0, 0),
        )
    )
    program = step.lower(members, state, x[:BATCH_SIZE], y[:BATCH_SIZE], optimiser)
    stats = program.compile().compiled.memory_analysis()
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes


def _dotted(path: Sequence[Any]) -> str:
    names = (getattr(key, "name", getattr(key, "idx", None)) for key in path)
    return ".".join(map(str, names))


if __name__ == "__main__":
    main()
