"""A population that trains side by side, and of which the fittest go on.

Sixteen networks learn to read digits, each in a lane, with a learning rate of its own
that is drawn at random. After every generation of training steps the worst quarter is
replaced by copies of the best, and each copy tries another learning rate, so that rates
become a schedule nobody had to think of (population-based training: Jaderberg et al.
2017, arXiv:1711.09846). Survivors are picked by `lanes.take`, from the models and from
the optimiser's states alike, inside of one compiled function. The script prints how the
population does beside one that is left alone, and draws fitness and learning rates.

    pip install -e ".[examples]"
    python docs/examples/population.py
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import chorax
from chorax import lanes


CLASSES, BATCH_SIZE, REPLACED = 10, 32, 4
LOWEST, HIGHEST = 1e-4, 1.0
PICKED, ALONE = "#1f5f8b", "#d9822b"
OUTPUT = Path(__file__).parent / "output" / "population.png"


class Data(NamedTuple):
    """Images of shape `(images, pixels)` and their labels."""

    x: Array
    y: Array


class Population(NamedTuple):
    """Everything that a member has, with a lane for each."""

    models: eqx.nn.MLP
    states: Any
    rates: Float[Array, " members"]


def load_data(seed: int) -> tuple[Data, Data, Data]:
    """For training, for the fitness, and for the test."""
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images / 16)
    rest_x, test_x, rest_y, test_y = train_test_split(
        images, labels, test_size=500, stratify=labels, random_state=seed
    )
    train_x, fit_x, train_y, fit_y = train_test_split(
        rest_x, rest_y, test_size=500, stratify=rest_y, random_state=seed
    )
    pairs = ((train_x, train_y), (fit_x, fit_y), (test_x, test_y))
    train, fit, test = [Data(*map(jnp.asarray, pair)) for pair in pairs]
    return train, fit, test


def nll(model: eqx.nn.MLP, data: Data) -> Float[Array, ""]:
    logits = jax.vmap(model)(data.x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, data.y).mean()


def accuracy(model: eqx.nn.MLP, data: Data) -> Float[Array, ""]:
    return (jax.vmap(model)(data.x).argmax(axis=1) == data.y).mean()


def found(
    members: int, optimiser: optax.GradientTransformation, key: Array
) -> tuple[Population, chorax.StateDelta[eqx.nn.MLP]]:
    """The first generation."""
    one, two, three = jax.random.split(key, 3)
    model = eqx.nn.MLP(64, CLASSES, width_size=64, depth=3, key=one)
    models, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, axis_size=members, key=two
    )
    states = jax.vmap(optimiser.init)(eqx.filter(models, eqx.is_inexact_array))
    rates = jax.random.uniform(three, (members,), minval=np.log(LOWEST), maxval=0.0)
    return Population(models, states, jnp.exp(rates)), delta


def make_generation(
    delta: chorax.StateDelta[eqx.nn.MLP],
    optimiser: optax.GradientTransformation,
    train: Data,
    fit: Data,
    steps: int,
    picks: bool,
) -> Any:
    # Written for one member.
    def step(
        model: eqx.nn.MLP, state: Any, rate: Array, key: Array
    ) -> tuple[eqx.nn.MLP, Any]:
        batch = jax.random.randint(key, (BATCH_SIZE,), 0, len(train.x))
        grads = eqx.filter_grad(nll)(model, Data(train.x[batch], train.y[batch]))
        updates, state = optimiser.update(grads, state)
        updates = jax.tree.map(lambda g: -rate * g, updates)
        return eqx.apply_updates(model, updates), state

    step_all = eqx.filter_vmap(
        step, in_axes=(delta.in_axes, 0, 0, 0), out_axes=(delta.in_axes, 0)
    )
    fitness = eqx.filter_vmap(nll, in_axes=(delta.in_axes, None))

    def select(population: Population, losses: Array, key: Array) -> Population:
        """The best in place of the worst, with other rates."""
        order = jnp.argsort(losses)
        kept = jnp.concatenate([order[:-REPLACED], order[:REPLACED]])
        change = jnp.exp(jax.random.normal(key, (REPLACED,)))
        rates = population.rates[kept].at[-REPLACED:].multiply(change)
        return Population(
            lanes.take(population.models, delta, kept),
            lanes.take(population.states, 0, kept),
            jnp.clip(rates, LOWEST, HIGHEST),
        )

    @eqx.filter_jit
    def generation(population: Population, key: Array) -> tuple[Population, Array]:
        one, two = jax.random.split(key)
        arrays, static = eqx.partition(population, eqx.is_array)

        def body(arrays: Any, key: Array) -> tuple[Any, None]:
            own = eqx.combine(arrays, static)
            keys = jax.random.split(key, len(own.rates))
            models, states = step_all(own.models, own.states, own.rates, keys)
            return eqx.filter(Population(models, states, own.rates), eqx.is_array), None

        arrays, _ = jax.lax.scan(body, arrays, jax.random.split(one, steps))
        population = eqx.combine(arrays, static)
        losses = fitness(population.models, fit)
        # Where training has broken down.
        losses = jnp.nan_to_num(losses, nan=jnp.inf)
        return select(population, losses, two) if picks else population, losses

    return generation


def draw(
    losses: dict[str, Float[Array, "generations members"]],
    rates: Float[Array, "generations members"],
) -> Figure:
    figure = Figure(figsize=(4.1, 7.2), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    for (name, each), colour in zip(losses.items(), (PICKED, ALONE), strict=True):
        time = np.arange(1, len(each) + 1)
        top.plot(time, each, color=colour, linewidth=0.5, alpha=0.4)
        best = np.asarray(each).min(axis=1)
        top.plot(time, best, color=colour, linewidth=2.5, label=f"best: {name}")
    top.set(
        xlabel="generation",
        ylabel="loss on held-out images (nats)",
        yscale="log",
        ylim=(np.asarray(losses["picked"]).min() * 0.8, 4),
    )
    top.legend(frameon=False)
    top.set_title("Fitness", weight="bold")
    scores = np.argsort(np.argsort(np.asarray(losses["picked"]), axis=1), axis=1)
    time = np.repeat(np.arange(1, len(rates) + 1), rates.shape[1])
    points = bottom.scatter(
        time, np.asarray(rates).ravel(), c=scores.ravel() + 1, cmap="viridis_r", s=7
    )
    figure.colorbar(points, ax=bottom, label="rank in the generation")
    bottom.set(xlabel="generation", ylabel="learning rate", yscale="log")
    bottom.set_title("Learning rates that survive", weight="bold")
    for panel in (top, bottom):
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Population-based training.")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--generations", type=int, default=40)
    parser.add_argument("--steps", type=int, default=30, help="in a generation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture")
    options = parser.parse_args(argv)

    train, fit, test = load_data(options.seed)
    found_key, run_key = jax.random.split(jax.random.key(options.seed))
    optimiser = optax.trace(decay=0.9)
    first, delta = found(options.members, optimiser, found_key)
    score = eqx.filter_vmap(accuracy, in_axes=(delta.in_axes, None))
    losses: dict[str, Array] = {}
    rates: list[Array] = []
    for name in ("picked", "left alone"):
        population, rows = first, []
        generation = make_generation(
            delta, optimiser, train, fit, options.steps, name == "picked"
        )
        keys = jax.random.split(run_key, options.generations)
        for key in (bar := tqdm(keys, unit="generation", desc=name)):
            if name == "picked":
                rates.append(population.rates)
            population, each = generation(population, key)
            rows.append(each)
            bar.set_postfix(best=f"{each.min():.3f}", refresh=False)
        losses[name] = jnp.stack(rows)
        best = int(losses[name][-1].argmin())
        if name == "picked":
            # The survivors stand in order, the best first.
            best = 0
        correct = score(population.models, test)
        print(
            f"{name:12} best loss {losses[name][-1].min():.3f} nats, "
            f"its accuracy on test images {correct[best]:.1%}"
        )
    figure = draw(losses, jnp.stack(rates))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=200)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
