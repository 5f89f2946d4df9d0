"""BatchNorm in an ensemble: running statistics for each member.

`eqx.nn.BatchNorm` keeps running statistics in an `eqx.nn.State`, apart from the model,
and `eqx.nn.SpectralNorm` keeps vectors there. In an ensemble every member has its own:
the parameters get their lanes by one collective call, which draws them afresh, and the
state gets its own by `lanes.broadcast`. The networks learn to read digits; then noise
is added to the images. The script prints the accuracy of members and of their average,
and draws it against the noise, beside the statistics that each member has come to.

    pip install -e ".[examples]"
    python docs/examples/batchnorm_ensemble.py
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
from chorax import lanes


CLASSES, CHANNELS, BATCH_SIZE = 10, 8, 64
NOISE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
MEMBER, ENSEMBLE = "#d9822b", "#1f5f8b"
OUTPUT = Path(__file__).parent / "output" / "batchnorm_ensemble.png"


class Network(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    pool: eqx.nn.MaxPool2d
    head: eqx.nn.SpectralNorm[eqx.nn.Linear]

    def __init__(self, key: Array) -> None:
        one, two, three = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(1, CHANNELS, 3, padding=1, key=one)
        self.norm = eqx.nn.BatchNorm(CHANNELS, "batch", mode="batch")
        self.pool = eqx.nn.MaxPool2d(2, 2)
        linear = eqx.nn.Linear(CHANNELS * 16, CLASSES, key=two)
        self.head = eqx.nn.SpectralNorm(linear, "weight", key=three)

    def __call__(
        self, x: Float[Array, "1 height width"], state: eqx.nn.State
    ) -> tuple[Float[Array, " classes"], eqx.nn.State]:
        x, state = self.norm(self.conv(x), state)
        x = self.pool(jax.nn.relu(x)).reshape(-1)
        logits, state = self.head(x, state)
        # The norm of the head's weight is 1, which is little for a softmax.
        return 5.0 * logits, state


def forward(
    model: Network, state: eqx.nn.State, x: Float[Array, "batch 1 height width"]
) -> tuple[Float[Array, "batch classes"], eqx.nn.State]:
    """A batch through one member; statistics go in and come out."""
    over = jax.vmap(model, (0, None), (0, None), axis_name="batch")
    return over(x, state)


def make_step(optimiser: optax.GradientTransformation) -> Any:
    # Written for one member.
    def step(
        model: Network, state: eqx.nn.State, opt_state: Any, x: Array, y: Array
    ) -> tuple[Network, eqx.nn.State, Any, Array]:
        def loss(model: Network) -> tuple[Array, eqx.nn.State]:
            logits, new = forward(model, state, x)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return each.mean(), new

        (value, new), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model)
        updates, opt_state = optimiser.update(grads, opt_state)
        return eqx.apply_updates(model, updates), new, opt_state, value

    return step


def draw(
    members: Float[Array, "noise members"],
    ensemble: Float[Array, " noise"],
    means: Float[Array, "members channels"],
) -> Figure:
    figure = Figure(figsize=(4.1, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    top.plot(NOISE, members, color=MEMBER, alpha=0.5)
    top.plot([], [], color=MEMBER, label="single members")
    top.plot(NOISE, ensemble, "o-", color=ENSEMBLE, label="average of all")
    top.set(
        xlabel="standard deviation of the noise (black is 1)",
        ylabel="accuracy on test images",
        ylim=(0, 1.02),
    )
    top.legend(frameon=False, loc="lower left")
    top.spines[["top", "right"]].set_visible(False)
    top.set_title("Under noise", weight="bold")
    most = float(jnp.abs(means).max())
    image = bottom.imshow(means, cmap="coolwarm", vmin=-most, vmax=most, aspect="auto")
    bottom.set(xlabel="channel", ylabel="member")
    figure.colorbar(image, ax=bottom, label="running mean")
    bottom.set_title("Each has statistics of its own", weight="bold")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Batch normalisation in ensembles.")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture")
    options = parser.parse_args(argv)

    images, labels = load_digits(return_X_y=True)
    images = np.float32(images / 16).reshape(-1, 1, 8, 8)
    split = train_test_split(images, labels, stratify=labels, random_state=options.seed)
    train_x, test_x, train_y, test_y = map(jnp.asarray, split)

    keys = jax.random.split(jax.random.key(options.seed), 4)
    model, state = eqx.nn.make_with_state(Network)(keys[0])
    models, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, axis_size=options.members, key=keys[1]
    )
    states, _ = lanes.broadcast(state, options.members)
    print(delta)

    optimiser = optax.adam(3e-3)
    opt_states = jax.vmap(optimiser.init)(eqx.filter(models, eqx.is_inexact_array))
    axes = (delta.in_axes, 0, 0, 0, 0)
    step = eqx.filter_jit(
        eqx.filter_vmap(
            make_step(optimiser), in_axes=axes, out_axes=(delta.in_axes, 0, 0, 0)
        )
    )
    for key in (bar := tqdm(jax.random.split(keys[2], options.steps), unit="step")):
        shape = options.members, BATCH_SIZE
        batch = jax.random.randint(key, shape, 0, len(train_x))
        models, states, opt_states, loss = step(
            models, states, opt_states, train_x[batch], train_y[batch]
        )
        bar.set_postfix(loss=f"{loss.mean():.3f}", refresh=False)

    tested = eqx.nn.inference_mode(models)
    predict = eqx.filter_jit(
        eqx.filter_vmap(
            lambda model, state, x: jax.nn.softmax(forward(model, state, x)[0]),
            in_axes=(delta.in_axes, 0, None),
        )
    )

    def right(probabilities: Array, y: Int[Array, " images"]) -> Array:
        return (probabilities.argmax(axis=-1) == y).mean(axis=-1)

    members: list[Array] = []
    ensemble: list[Array] = []
    for index, size in enumerate(NOISE):
        noise = jax.random.normal(jax.random.fold_in(keys[3], index), test_x.shape)
        probabilities = predict(tested, states, test_x + size * noise)
        members.append(right(probabilities, test_y))
        ensemble.append(right(probabilities.mean(axis=0), test_y))
        print(
            f"noise {size:.1f}: mean member {members[-1].mean():.1%}, "
            f"average of {options.members} {ensemble[-1]:.1%}"
        )
    # Statistics are a tuple of means and variances.
    index: Any = models.norm.batch_state_index
    means, _ = states.get(index)
    figure = draw(jnp.stack(members), jnp.stack(ensemble), means)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=200)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
