"""A sweep over time constants and learning rates, in one training run.

A recurrent network of leaky units sees a digit row by row, waits, and then has to say
which it was. How well it does depends on how long its units remember, and on the
learning rate: so both are swept, each pair of values in a lane of its own. All lanes
begin with the same weights and see the same images, and one compiled step trains them
all, but for the time constants: these are tagged, and left out of what is trained. The
script prints the best pair, and draws the accuracy of every pair.

    pip install -e ".[examples]"
    python docs/examples/sweep.py
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import chorax
from chorax import lanes


SIDE, CLASSES, BATCH_SIZE = 8, 10, 64
OUTPUT = Path(__file__).parent / "output" / "sweep.png"


class Leaky(eqx.Module):
    """Units that forget with a time constant `tau`, in steps."""

    drive: eqx.nn.Linear
    recurrent: eqx.nn.Linear
    tau: Float[Array, ""]

    def __init__(self, inputs: int, units: int, key: Array) -> None:
        one, two = jax.random.split(key)
        self.drive = eqx.nn.Linear(inputs, units, key=one)
        self.recurrent = eqx.nn.Linear(units, units, use_bias=False, key=two)
        self.tau = jnp.ones(())

    def set_tau(self, tau: Float[Array, ""]) -> "Leaky":
        return chorax.replace(self, tau=tau)

    def __call__(
        self, h: Float[Array, " units"], x: Float[Array, " inputs"]
    ) -> Float[Array, " units"]:
        new = jnp.tanh(self.drive(x) + self.recurrent(h))
        return h + (new - h) / self.tau


class Reader(eqx.Module):
    """Reads the rows of an image, waits, and names the digit."""

    leaky: Leaky
    readout: eqx.nn.Linear

    def __init__(self, units: int, key: Array) -> None:
        one, two = jax.random.split(key)
        self.leaky = Leaky(SIDE, units, one)
        self.readout = eqx.nn.Linear(units, CLASSES, key=two)

    def __call__(self, rows: Float[Array, "time inputs"]) -> Float[Array, " classes"]:
        start = jnp.zeros(self.leaky.recurrent.weight.shape[0])
        h, _ = jax.lax.scan(lambda h, x: (self.leaky(h, x), None), start, rows)
        return self.readout(h)


def load_data(pause: int, seed: int) -> list[Array]:
    """Images as sequences of their rows, with nothing to see at the end."""
    images, labels = load_digits(return_X_y=True)
    rows = np.float32(images / 16).reshape(-1, SIDE, SIDE)
    rows = np.pad(rows, ((0, 0), (0, pause), (0, 0)))
    split = train_test_split(rows, labels, stratify=labels, random_state=seed)
    train_x, test_x, train_y, test_y = map(jnp.asarray, split)
    return [train_x, train_y, test_x, test_y]


def make_lanes(
    model: Reader, taus: Float[Array, " lanes"]
) -> tuple[Reader, chorax.StateDelta[Reader]]:
    """The same model in every lane, but for its time constant."""
    batched, axes = lanes.broadcast(model, len(taus), eqx.is_inexact_array)
    return chorax.vmap_call_all_fns(
        batched,
        "set_tau",
        taus,
        in_axes=axes,
        args_in_axes=0,
        state_tag="hyper",
        fn_if_not_exist="pass",
    )


def make_step(
    delta: chorax.StateDelta[Reader],
) -> tuple[optax.GradientTransformation, Any]:
    optimiser = optax.scale_by_adam()

    # Written for one lane, and one learning rate.
    def step(
        params: Reader,
        rest: Reader,
        state: Any,
        rate: Float[Array, ""],
        x: Array,
        y: Array,
    ) -> tuple[Reader, Any, Array]:
        def loss(params: Reader) -> Array:
            logits = jax.vmap(eqx.combine(params, rest))(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(grads, state)
        updates = jax.tree.map(lambda g: -rate * g, updates)
        return eqx.apply_updates(params, updates), state, value

    in_axes = (delta, delta, 0, 0, None, None)
    return optimiser, eqx.filter_jit(lanes.vmap(step, in_axes=in_axes))


def draw(
    accuracy: Float[Array, "taus rates"],
    taus: Float[Array, " taus"],
    rates: Float[Array, " rates"],
    losses: Float[Array, "steps taus rates"],
) -> Figure:
    figure = Figure(figsize=(4.1, 8.2), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    image = top.imshow(accuracy, origin="lower", cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(
        image, ax=top, label="accuracy on test images", location="bottom", shrink=0.9
    )
    names = (
        [f"{rate:.0e}" for rate in rates.tolist()],
        [f"{x:g}" for x in taus.tolist()],
    )
    top.set_xticks(range(len(rates)), names[0], rotation=45)
    top.set_yticks(range(len(taus)), names[1])
    top.set(xlabel="learning rate", ylabel="time constant (steps)")
    for (row, column), value in np.ndenumerate(np.asarray(accuracy)):
        colour = "black" if value > 0.6 else "white"
        text = f"{value:.2f}".removeprefix("0")
        top.text(column, row, text, ha="center", va="center", color=colour)
    top.set_title("A lane for each pair", weight="bold")
    window = np.full(min(25, len(losses)), 1 / min(25, len(losses)))
    best = np.asarray(accuracy).argmax(axis=1)
    colours = colormaps["plasma"](np.linspace(0, 0.9, len(taus)))
    for row, (tau, colour) in enumerate(zip(taus.tolist(), colours, strict=True)):
        smooth = np.convolve(losses[:, row, best[row]], window, mode="valid")
        bottom.plot(smooth, color=colour, label=f"{tau:g}")
    bottom.set(
        xlabel="training step",
        ylabel="cross-entropy (nats), mean of 25 steps",
        ylim=(0, None),
    )
    bottom.legend(title="time constant", frameon=False, ncols=2)
    bottom.spines[["top", "right"]].set_visible(False)
    bottom.set_title("Each time constant at its best rate", weight="bold")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time constants and learning rates.")
    parser.add_argument("--values", type=int, default=8, help="of each of the two")
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--pause", type=int, default=12, help="steps of waiting")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture")
    options = parser.parse_args(argv)

    train_x, train_y, test_x, test_y = load_data(options.pause, options.seed)
    model_key, train_key = jax.random.split(jax.random.key(options.seed))
    count = options.values
    taus = jnp.geomspace(1.0, 128.0, count)
    rates = jnp.geomspace(1e-3, 0.3, count)
    all_taus, all_rates = (x.ravel() for x in jnp.meshgrid(taus, rates, indexing="ij"))

    models, delta = make_lanes(Reader(options.units, model_key), all_taus)
    params, rest = lanes.partition(models, delta)
    optimiser, step = make_step(delta)
    state = lanes.vmap(optimiser.init)(params)
    losses: list[Float[Array, " lanes"]] = []
    keys = jax.random.split(train_key, options.steps)
    for key in (bar := tqdm(keys, unit="step")):
        batch = jax.random.randint(key, (BATCH_SIZE,), 0, len(train_x))
        params, state, loss = step(
            params, rest, state, all_rates, train_x[batch], train_y[batch]
        )
        losses.append(loss)
        if len(losses) % 50 == 0:
            bar.set_postfix(best=f"{loss.min():.3f}", refresh=False)
    models = eqx.combine(params, rest)
    assert (models.leaky.tau == all_taus).all(), "the swept values were trained"

    def score(model: Reader, x: Array, y: Int[Array, " images"]) -> Float[Array, ""]:
        return (jax.vmap(model)(x).argmax(axis=1) == y).mean()

    score_all = lanes.vmap(score, in_axes=(delta, None, None))
    accuracy = score_all(models, test_x, test_y).reshape(count, count)
    row, column = np.unravel_index(int(accuracy.argmax()), accuracy.shape)
    print(f"{count * count} pairs in one run")
    print(
        f"best: time constant {taus[row]:.0f} steps, learning rate "
        f"{rates[column]:.0e}, accuracy {accuracy.max():.1%}"
    )
    figure = draw(accuracy, taus, rates, jnp.stack(losses).reshape(-1, count, count))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=200)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
