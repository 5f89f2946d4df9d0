"""A recurrent spiking network that reads digits as trains of spikes.

Each pixel of an image fires at random, the more often the brighter it is. Two layers of
leaky integrate-and-fire neurons with recurrent connections read the spikes, and a leaky
readout adds up what they say. All images of a batch share the weights, and each has
states of its own: they are made inside of `jit` at every training step, by one call,
and a loop over time carries them alone, inside of `grad`. A neuron's step has no useful
gradient, so a smooth one stands in for it (surrogate gradients: Neftci et al. 2019,
arXiv:1901.09948). The script prints the accuracy, and draws what the neurons do while
they see two images.

    pip install -e ".[examples]"
    python docs/examples/spiking_network.py
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
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import chorax


PIXELS, CLASSES, BATCH_SIZE = 64, 10, 64
COLOURS = ("#1f5f8b", "#d9822b", "#2e8b57")
OUTPUT = Path(__file__).parent / "output" / "spiking_network.png"

# Time is in steps; potentials are in units of the threshold.
LEAK, SLOPE, REST = 0.9, 10.0, 0.2


@jax.custom_jvp
def spike(v: Array) -> Array:
    """1 where the potential is above the threshold, else 0."""
    return (v > 1.0).astype(v.dtype)


@spike.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + SLOPE * jnp.abs(v - 1)) ** 2


class Recurrent(eqx.Module):
    """A layer of integrate-and-fire neurons that also hears its own spikes."""

    weight: Float[Array, "neurons inputs"]
    recurrent: Float[Array, "neurons neurons"]
    v: Float[Array, " neurons"] | None = None
    spikes: Float[Array, " neurons"] | None = None

    def __init__(self, inputs: int, neurons: int, key: Array) -> None:
        one, two = jax.random.split(key)
        scale = 2.0 / np.sqrt(inputs)
        self.weight = scale * jax.random.normal(one, (neurons, inputs))
        scale = 0.5 / np.sqrt(neurons)
        self.recurrent = scale * jax.random.normal(two, (neurons, neurons))

    def init_state(self, *, key: Array) -> "Recurrent":
        v = REST * jax.random.uniform(key, self.weight.shape[:1])
        return chorax.replace(self, v=v, spikes=jnp.zeros_like(v))

    def __call__(self, x: Float[Array, " inputs"]) -> "Recurrent":
        assert self.v is not None
        assert self.spikes is not None
        v = LEAK * (self.v - self.spikes) + self.weight @ x
        v = v + self.recurrent @ self.spikes
        return chorax.replace(self, v=v, spikes=spike(v))


class Readout(eqx.Module):
    """Adds up spikes, and forgets slowly."""

    linear: eqx.nn.Linear
    total: Float[Array, " classes"] | None = None

    def init_state(self) -> "Readout":
        size = self.linear.weight.shape[0]
        return chorax.replace(self, total=jnp.zeros(size))

    def __call__(self, x: Float[Array, " inputs"]) -> "Readout":
        assert self.total is not None
        return chorax.replace(self, total=0.95 * self.total + self.linear(x))


class Network(eqx.Module):
    layers: list[Recurrent]
    readout: Readout

    def __init__(self, neurons: int, key: Array) -> None:
        one, two, three = jax.random.split(key, 3)
        self.layers = [
            Recurrent(PIXELS, neurons, one),
            Recurrent(neurons, neurons, two),
        ]
        self.readout = Readout(eqx.nn.Linear(neurons, CLASSES, key=three))

    def __call__(self, x: Float[Array, " pixels"]) -> "Network":
        layers: list[Recurrent] = []
        for layer in self.layers:
            layer = layer(x)
            assert layer.spikes is not None
            layers.append(layer)
            x = layer.spikes
        return chorax.replace(self, layers=layers, readout=self.readout(x))


def run(
    network: Network, spikes: Float[Array, "time batch pixels"], key: Array
) -> tuple[Float[Array, "batch classes"], list[Float[Array, "time batch neurons"]]]:
    """What the readout has at the end, and all spikes of each layer."""
    network, delta = chorax.vmap_init_all_states(
        network, axis_size=spikes.shape[1], key=key
    )
    step = eqx.filter_vmap(
        lambda network, x: network(x),
        in_axes=(delta.in_axes, 0),
        out_axes=delta.in_axes,
    )
    states, shared = eqx.partition(network, delta.filter_spec)

    def tick(states: Network, x: Array) -> tuple[Network, list[Array]]:
        network = step(eqx.combine(states, shared), x)
        heard = [layer.spikes for layer in network.layers]
        return eqx.filter(network, delta.filter_spec), heard

    states, heard = jax.lax.scan(tick, states, spikes)
    assert states.readout.total is not None
    return states.readout.total, heard


def encode(
    images: Float[Array, "batch pixels"], steps: int, key: Array
) -> Float[Array, "time batch pixels"]:
    """Trains of spikes, of a rate up to one in two steps."""
    rates = jnp.broadcast_to(images / 2, (steps, *images.shape))
    return jax.random.bernoulli(key, rates).astype(images.dtype)


def make_step(optimiser: optax.GradientTransformation, steps: int) -> Any:
    def loss(network: Network, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
        one, two = jax.random.split(key)
        logits, heard = run(network, encode(x, steps, one), two)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        # Neurons that fire all the time say nothing.
        rate = jnp.mean(jnp.stack(heard))
        return each.mean() + (rate - 0.1) ** 2, (logits.argmax(axis=1) == y).mean()

    @eqx.filter_jit
    def step(network: Network, state: Any, x: Array, y: Array, key: Array) -> Any:
        gradient = eqx.filter_value_and_grad(loss, has_aux=True)
        (_, accuracy), grads = gradient(network, x, y, key)
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(network, updates), state, accuracy

    return step


def draw(
    image_pair: Array,
    labels: Int[Array, " images"],
    trains: Float[Array, "time images pixels"],
    heard: list[Float[Array, "time images neurons"]],
    curve: list[tuple[int, float, float]],
) -> Figure:
    figure = Figure(figsize=(4.1, 9), layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=(2, 1), hspace=0.03)
    columns = len(labels)
    axes = panels[0].subplots(
        4, columns, height_ratios=(1.2, 1.5, 2, 2), sharex=False, squeeze=False
    )
    rows = [("pixels", trains), *((f"layer {i + 1}", x) for i, x in enumerate(heard))]
    for column in range(columns):
        axes[0, column].imshow(image_pair[column].reshape(8, 8), cmap="gray_r")
        axes[0, column].set(title=f"a {labels[column]}", xticks=(), yticks=())
        for row, (name, spikes) in enumerate(rows, start=1):
            panel = axes[row, column]
            time, neuron = np.nonzero(np.asarray(spikes[:, column]))
            panel.scatter(
                time, neuron, s=3, marker="|", linewidth=0.8, color=COLOURS[row - 1]
            )
            panel.set(xlim=(-0.5, len(trains) - 0.5), ylim=(-1, spikes.shape[-1]))
            panel.spines[["top", "right"]].set_visible(False)
            if row < len(rows):
                panel.set(xticklabels=())
            if column == 0:
                panel.set(ylabel=name)
            else:
                panel.set(yticklabels=())
        axes[-1, column].set(xlabel="time (steps)")
    panels[0].suptitle("Spikes while the network sees an image", weight="bold")

    panel = panels[1].subplots()
    epochs, train, test = zip(*curve, strict=True)
    panel.plot(epochs, train, "o-", color=COLOURS[1], label="training batches")
    panel.plot(epochs, test, "o-", color=COLOURS[0], label="test images")
    panel.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    panel.legend(loc="lower right", frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    panels[1].suptitle("Accuracy", weight="bold")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A spiking network on the digits.")
    parser.add_argument("--neurons", type=int, default=96)
    parser.add_argument("--steps", type=int, default=25, help="time for an image")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture")
    options = parser.parse_args(argv)

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(
        np.float32(images / 16), labels, stratify=labels, random_state=options.seed
    )
    train_x, test_x, train_y, test_y = map(jnp.asarray, split)
    model_key, shuffle_key, test_key = jax.random.split(jax.random.key(options.seed), 3)
    network = Network(options.neurons, model_key)
    print(
        chorax.explain(
            network,
            "init_state",
            axis_size=BATCH_SIZE,
            key=model_key,
            fn_if_not_exist="pass",
        )
    )

    optimiser = optax.adam(
        optax.cosine_decay_schedule(4e-3, options.epochs * (len(train_x) // BATCH_SIZE))
    )
    step = make_step(optimiser, options.steps)
    state = optimiser.init(eqx.filter(network, eqx.is_inexact_array))
    trains = encode(test_x, options.steps, test_key)
    evaluate = eqx.filter_jit(run)
    curve: list[tuple[int, float, float]] = []
    keys = jax.random.split(shuffle_key, options.epochs)
    for epoch, key in enumerate(bar := tqdm(keys, unit="epoch"), start=1):
        order = jax.random.permutation(key, len(train_x))
        right: list[Array] = []
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            own = jax.random.fold_in(key, start)
            network, state, accuracy = step(
                network, state, train_x[batch], train_y[batch], own
            )
            right.append(accuracy)
        logits, _ = evaluate(network, trains, test_key)
        test = float((logits.argmax(axis=1) == test_y).mean())
        curve.append((epoch, float(jnp.stack(right).mean()), test))
        bar.set_postfix(test=f"{test:.3f}")

    _, heard = evaluate(network, trains, test_key)
    rate = jnp.mean(jnp.stack(heard))
    print(f"accuracy on test images: {curve[-1][2]:.1%}")
    print(f"a neuron fires in {rate:.1%} of all steps")
    shown = jnp.array([jnp.argmax(test_y == digit) for digit in (3, 7)])
    figure = draw(
        test_x[shown],
        test_y[shown],
        trains[:, shown],
        [spikes[:, shown] for spikes in heard],
        curve,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=200)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
