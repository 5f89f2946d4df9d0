"""A deep ensemble of any Equinox model, in one line.

One `eqx.nn.MLP` becomes eight, each with a random initialisation of its own. They train
side by side on ten labelled images of each digit, every one on its own shuffling of
them. So few images leave a single network sure of itself when it is wrong; the average
of eight is right more often, and knows better when it isn't (deep ensembles:
Lakshminarayanan et al. 2017, arXiv:1612.01474). The script prints the scores of both,
and draws how far confidence can be trusted and where the members disagree.

    pip install -e ".[examples]"
    python docs/examples/deep_ensemble.py
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import chorax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm


CLASSES, BINS = 10, 15
TRAIN_SIZE, BATCH_SIZE = 100, 20
MEMBER, ENSEMBLE, WRONG = "#d9822b", "#1f5f8b", "#c9c9c9"

Images = Float[Array, "images pixels"]
Labels = Int[Array, " images"]
LogProbs = Float[Array, "images classes"]
MemberLogProbs = Float[Array, "members images classes"]


class Scores(NamedTuple):
    accuracy: Float[Array, ""]
    nll: Float[Array, ""]
    ece: Float[Array, ""]


class Bins(NamedTuple):
    """Predictions sorted by confidence into equal bins, after Guo et al. 2017."""

    count: Float[Array, " bins"]
    confidence: Float[Array, " bins"]
    accuracy: Float[Array, " bins"]


def load_data(seed: int) -> tuple[Images, Images, Labels, Labels]:
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        np.float32(images) / 16,
        labels,
        train_size=TRAIN_SIZE,
        stratify=labels,
        random_state=seed,
    )
    return (
        jnp.asarray(train_x),
        jnp.asarray(test_x),
        jnp.asarray(train_y),
        jnp.asarray(test_y),
    )


def train(
    members: int, epochs: int, images: Images, labels: Labels, key: Array
) -> tuple[eqx.nn.MLP, chorax.StateDelta[eqx.nn.MLP]]:
    model_key, members_key, shuffle_key = jax.random.split(key, 3)
    model = eqx.nn.MLP(images.shape[1], CLASSES, 64, 4, key=model_key)
    ensemble, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, axis_size=members, key=members_key
    )
    optimiser = optax.adamw(3e-3)

    def loss_fn(model: eqx.nn.MLP, images: Images, labels: Labels) -> Float[Array, ""]:
        logits = jax.vmap(model)(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return loss.mean()

    # Both functions are written for one member; `delta.in_axes` gives them lanes.
    def init(model: eqx.nn.MLP) -> optax.OptState:
        return optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    def step(
        model: eqx.nn.MLP, state: optax.OptState, images: Images, labels: Labels
    ) -> tuple[eqx.nn.MLP, optax.OptState, Float[Array, ""]]:
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model, images, labels)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimiser.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, loss

    state = eqx.filter_vmap(init, in_axes=(delta.in_axes,))(ensemble)
    step_all = eqx.filter_jit(eqx.filter_vmap(step, in_axes=(delta.in_axes, 0, 0, 0)))

    rows = jnp.tile(jnp.arange(len(images)), (members, 1))
    epoch_keys = jax.random.split(shuffle_key, epochs)
    for epoch_key in (bar := tqdm(epoch_keys, desc="training", unit="epoch")):
        order = jax.random.permutation(epoch_key, rows, axis=1, independent=True)
        for start in range(0, len(images), BATCH_SIZE):
            batch = order[:, start : start + BATCH_SIZE]
            ensemble, state, loss = step_all(
                ensemble, state, images[batch], labels[batch]
            )
        bar.set_postfix(loss=f"{loss.mean():.4f}")
    return ensemble, delta


def average(log_probs: MemberLogProbs) -> LogProbs:
    """The log of the averaged probabilities: the ensemble's prediction."""
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(len(log_probs))


def calibration(log_probs: LogProbs, labels: Labels) -> Bins:
    confidence = jnp.exp(log_probs.max(axis=1))
    correct = log_probs.argmax(axis=1) == labels
    # A bin includes its upper edge. Rounding can put a confidence just above 1.
    index = jnp.clip(jnp.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
    count, sum_confidence, sum_correct = (
        jnp.bincount(index, weights=weights, length=BINS)
        for weights in (jnp.ones_like(confidence), confidence, correct)
    )
    return Bins(count, sum_confidence / count, sum_correct / count)


def score(log_probs: LogProbs, labels: Labels) -> Scores:
    """Accuracy, negative log-likelihood in nats and expected calibration error (Guo et
    al. 2017, arXiv:1706.04599)."""
    bins = calibration(log_probs, labels)
    gap = jnp.abs(bins.accuracy - bins.confidence)
    return Scores(
        accuracy=(log_probs.argmax(axis=1) == labels).mean(),
        nll=-jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean(),
        # An empty bin has no mean, and no weight.
        ece=jnp.where(bins.count > 0, bins.count * gap, 0).sum() / len(labels),
    )


def disagreement(log_probs: MemberLogProbs) -> Float[Array, " images"]:
    """The mutual information of the prediction and the member that makes it, in nats:
    zero where all members predict the same, however unsure they are."""

    def entropy(log_probs: Array) -> Array:
        return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)

    return entropy(average(log_probs)) - entropy(log_probs).mean(axis=0)


def draw_calibration(
    figure: SubFigure, log_probs: MemberLogProbs, labels: Labels
) -> None:
    members = log_probs.reshape(-1, CLASSES)
    curves = (
        ("single members", MEMBER, members, jnp.tile(labels, len(log_probs))),
        ("ensemble", ENSEMBLE, average(log_probs), labels),
    )
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot((0, 1), (0, 1), color="grey", linestyle=":", label="perfect calibration")
    width = 1 / BINS
    left = np.arange(BINS) * width
    for i, (name, colour, predictions, truth) in enumerate(curves):
        bins = calibration(predictions, truth)
        # The accuracy of a handful of predictions is noise.
        keep = bins.count >= 10
        x, y = bins.confidence[keep], bins.accuracy[keep]
        top.plot(x, y, "o-", color=colour, label=name)
        share = bins.count / bins.count.sum()
        bottom.bar(left + (i + 0.5) * width / 2, share, width * 0.45, color=colour)
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    top.set_title("How far can confidence be trusted?", weight="bold")
    top.legend(loc="upper left", frameon=False)
    bottom.set(xlabel="confidence", ylabel="share of predictions")


def draw_votes(
    image_axes: Axes,
    vote_axes: Axes,
    image: np.ndarray,
    votes: np.ndarray,
    label: int,
) -> None:
    image_axes.imshow(image.reshape(8, 8), cmap="gray_r")
    image_axes.set(xticks=(), yticks=(), title=f"a {label}")
    colours = [ENSEMBLE if digit == label else WRONG for digit in range(CLASSES)]
    vote_axes.bar(range(CLASSES), np.bincount(votes, minlength=CLASSES), color=colours)


