"""A deep ensemble of any Equinox model, in one call.

One `eqx.nn.MLP` becomes eight, each with a random initialisation of its own. They train
side by side on ten labelled images of each digit, every one on its own shuffling of
them. So few images leave a single network sure of itself where it is wrong; the average
of eight is right more often, and knows better when it isn't (deep ensembles:
Lakshminarayanan et al. 2017, arXiv:1612.01474). It also tells better what is no digit
at all: patches of photographs, which it has never seen. The script prints the scores of
both, and draws how far confidence can be trusted, how unsure both are of digits and of
photographs, and where the members disagree.

    pip install -e ".[examples]"
    python docs/examples/deep_ensemble.py
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
from sklearn.datasets import load_digits, load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import chorax


CLASSES, BINS = 10, 15
TRAIN_SIZE, BATCH_SIZE = 100, 20
MEMBER, ENSEMBLE, RIGHT, WRONG = "#d9822b", "#1f5f8b", "#2e8b57", "#b8b8b8"
OUTPUT = Path(__file__).parent / "output" / "deep_ensemble.png"

Scalar = Float[Array, ""]
PerBin = Float[Array, " bins"]
PerImage = Float[Array, " images"]
Images = Float[Array, "images pixels"]
Labels = Int[Array, " images"]
LogProbs = Float[Array, "images classes"]
MemberLogProbs = Float[Array, "members images classes"]
Votes = Int[Array, "members images"]


def load_data(seed: int) -> tuple[Images, Labels, Images, Labels]:
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images / 16)
    split = train_test_split(
        images, labels, train_size=TRAIN_SIZE, stratify=labels, random_state=seed
    )
    train_x, test_x, train_y, test_y = map(jnp.asarray, split)
    return train_x, train_y, test_x, test_y


def load_photographs(count: int, seed: int) -> Images:
    """Patches of two photographs, as big as the digits and as dark."""
    patches = [
        extract_patches_2d(
            photo.mean(axis=2), (8, 8), max_patches=count // 2, random_state=seed
        )
        for photo in load_sample_images().images
    ]
    return jnp.asarray(np.concatenate(patches).reshape(-1, 64) / 255, jnp.float32)


def predict(model: eqx.nn.MLP, images: Images) -> LogProbs:
    return jax.nn.log_softmax(jax.vmap(model)(images))


def nll(log_probs: LogProbs, labels: Labels) -> Scalar:
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean()


def train_ensemble(
    model: eqx.nn.MLP, members: int, x: Images, y: Labels, epochs: int, key: Array
) -> tuple[eqx.nn.MLP, chorax.StateDelta[eqx.nn.MLP]]:
    members_key, shuffle_key = jax.random.split(key)
    ensemble, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, axis_size=members, key=members_key
    )
    optimiser = optax.adamw(3e-3)

    # Written for one member: `delta.in_axes` below is what makes lanes of it.
    def step(
        model: eqx.nn.MLP, state: optax.OptState, x: Images, y: Labels
    ) -> tuple[eqx.nn.MLP, optax.OptState, Scalar]:
        loss, grads = eqx.filter_value_and_grad(lambda m: nll(predict(m, x), y))(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimiser.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, loss

    state = jax.vmap(optimiser.init)(eqx.filter(ensemble, eqx.is_inexact_array))
    step_all = eqx.filter_jit(eqx.filter_vmap(step, in_axes=(delta.in_axes, 0, 0, 0)))

    rows = jnp.tile(jnp.arange(len(x)), (members, 1))
    for epoch_key in (bar := tqdm(jax.random.split(shuffle_key, epochs), unit="epoch")):
        order = jax.random.permutation(epoch_key, rows, axis=1, independent=True)
        for start in range(0, len(x), BATCH_SIZE):
            batch = order[:, start : start + BATCH_SIZE]
            ensemble, state, loss = step_all(ensemble, state, x[batch], y[batch])
        bar.set_postfix(loss=f"{loss.mean():.4f}", refresh=False)
    return ensemble, delta


def average(log_probs: MemberLogProbs) -> LogProbs:
    """The log of the members' averaged probabilities: what the ensemble predicts."""
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(len(log_probs))


def calibration(log_probs: LogProbs, labels: Labels) -> tuple[PerBin, PerBin, PerBin]:
    """Count, mean confidence and accuracy of the predictions in each bin of confidence
    (Guo et al. 2017, arXiv:1706.04599)."""
    confidence = jnp.exp(log_probs.max(axis=1))
    correct = jnp.float32(log_probs.argmax(axis=1) == labels)
    # A bin includes its upper edge; rounding can put a confidence just above 1.
    index = jnp.clip(jnp.int32(jnp.ceil(confidence * BINS)) - 1, 0, BINS - 1)
    count = jnp.bincount(index, length=BINS)
    sums = (jnp.bincount(index, x, length=BINS) for x in (confidence, correct))
    mean_confidence, accuracy = (x / jnp.maximum(count, 1) for x in sums)
    return count, mean_confidence, accuracy


def score(log_probs: LogProbs, labels: Labels) -> Array:
    """Accuracy, negative log-likelihood in nats, expected calibration error."""
    count, confidence, accuracy = calibration(log_probs, labels)
    ece = (count * jnp.abs(accuracy - confidence)).sum() / len(labels)
    correct = log_probs.argmax(axis=1) == labels
    return jnp.stack([correct.mean(), nll(log_probs, labels), ece])


def entropy(log_probs: Array) -> Array:
    """How unsure a prediction is, in nats."""
    return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)


def told_apart(known: Array, unknown: Array) -> float:
    """The chance that a prediction for what is no digit is the less sure one: the area
    under the ROC curve."""
    is_unknown = np.repeat((False, True), (len(known), len(unknown)))
    return float(roc_auc_score(is_unknown, np.concatenate([known, unknown])))


def disagreement(log_probs: MemberLogProbs) -> PerImage:
    """The mutual information, in nats, of the prediction and the member that makes it:
    zero where all members predict the same, however unsure they are."""
    return entropy(average(log_probs)) - entropy(log_probs).mean(axis=0)


def draw_calibration(figure: Any, log_probs: MemberLogProbs, labels: Labels) -> None:
    pooled = log_probs.reshape(-1, CLASSES), jnp.tile(labels, len(log_probs))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot((0, 1), (0, 1), ":", color="grey", label="perfectly calibrated")
    single = (0.3, "single members", MEMBER, pooled)
    ensemble = (0.7, "ensemble", ENSEMBLE, (average(log_probs), labels))
    for offset, name, colour, predictions in (single, ensemble):
        count, confidence, accuracy = calibration(*predictions)
        # The accuracy of a handful of predictions is noise.
        kept = count >= 20
        x, y = confidence[kept], accuracy[kept]
        top.plot(x, y, "o-", color=colour, label=name, clip_on=False)
        middle = (np.arange(BINS) + offset) / BINS
        bottom.bar(middle, count / count.sum(), 0.4 / BINS, color=colour)
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    top.legend(loc="upper left", frameon=False)
    bottom.set(xlabel="confidence", ylabel="share of\npredictions")
    figure.suptitle("How far can confidence be trusted?", weight="bold")


def draw_entropy(figure: Any, digits: MemberLogProbs, photos: MemberLogProbs) -> None:
    top, bottom = figure.subplots(2, 1, sharex=True, sharey=True)
    edges = np.linspace(0, np.log(CLASSES), 30)
    for axes, name, scores in (
        (top, "single members", [entropy(x).ravel() for x in (digits, photos)]),
        (bottom, "ensemble", [entropy(average(x)) for x in (digits, photos)]),
    ):
        for what, colour, each in zip(
            ("digits", "photographs"), (RIGHT, WRONG), scores, strict=True
        ):
            weights = np.full(len(each), 1 / len(each))
            axes.hist(each, edges, weights=weights, color=colour, alpha=0.7, label=what)
        axes.set_title(name, size="medium")
        axes.set(ylabel="share of inputs")
    top.legend(frameon=False)
    bottom.set(xlabel="entropy of the prediction (nats)", xlim=(0, np.log(CLASSES)))
    figure.suptitle("Does it know what it has never seen?", weight="bold")


def draw_votes(figure: Any, images: Images, labels: Labels, votes: Votes) -> None:
    digits = range(CLASSES)
    axes = figure.subplots(2, len(images), height_ratios=(2, 1), sharey="row")
    for top, bottom, image, label, ballot in zip(
        *axes, images, labels.tolist(), votes.T, strict=True
    ):
        top.imshow(image.reshape(8, 8), cmap="gray_r")
        top.set(title=f"a {label}", xticks=(), yticks=())
        colours = [RIGHT if digit == label else WRONG for digit in digits]
        bottom.bar(digits, jnp.bincount(ballot, length=CLASSES), color=colours)
        bottom.set(xticks=digits[::3], ylim=(0, len(ballot)), yticks=(0, len(ballot)))
        bottom.tick_params(length=2)
        bottom.spines[["top", "right"]].set_visible(False)
    axes[1, 0].set_ylabel("votes")
    figure.supxlabel("digit", size="medium")


def draw(
    images: Images, labels: Labels, log_probs: MemberLogProbs, photos: MemberLogProbs
) -> Figure:
    figure = Figure(figsize=(4.1, 14.5), layout="constrained")
    panels: Any = figure.subfigures(3, 1, height_ratios=(4, 4.5, 6), hspace=0.02)
    draw_calibration(panels[0], log_probs, labels)
    draw_entropy(panels[1], log_probs, photos)
    rows = panels[2].subfigures(2, 1, hspace=0.03)
    order = jnp.argsort(disagreement(log_probs), descending=True)
    votes = log_probs.argmax(axis=2)
    for row, chosen in ((rows[0], order[:3]), (rows[1], order[-3:])):
        draw_votes(row, images[chosen], labels[chosen], votes[:, chosen])
    disputed = "Where the members disagree most"
    rows[0].suptitle(f"{disputed}\n(green: the right digit)", weight="bold")
    rows[1].suptitle("Where they agree most", weight="bold")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A deep ensemble on the digits.")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture")
    options = parser.parse_args(argv)

    train_x, train_y, test_x, test_y = load_data(options.seed)
    model_key, train_key = jax.random.split(jax.random.key(options.seed))
    model = eqx.nn.MLP(train_x.shape[1], CLASSES, width_size=64, depth=4, key=model_key)
    ensemble, delta = train_ensemble(
        model, options.members, train_x, train_y, options.epochs, train_key
    )
    predict_all = eqx.filter_vmap(predict, in_axes=(delta.in_axes, None))
    log_probs = predict_all(ensemble, test_x)
    singles = jax.vmap(score, in_axes=(0, None))(log_probs, test_y)
    photos = predict_all(ensemble, load_photographs(len(test_x), options.seed))
    single = np.mean(
        [
            told_apart(*map(entropy, pair))
            for pair in zip(log_probs, photos, strict=True)
        ]
    )
    both = told_apart(entropy(average(log_probs)), entropy(average(photos)))
    print(f"{'':20}{'accuracy':>10}{'NLL (nats)':>12}{'ECE':>8}{'AUROC':>8}")
    for name, scores, area in (
        ("mean single member", singles.mean(axis=0), single),
        (f"ensemble of {options.members}", score(average(log_probs), test_y), both),
    ):
        row = (name, *scores.tolist(), area)
        print("{:20}{:>10.1%}{:>12.3f}{:>8.3f}{:>8.3f}".format(*row))

    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(test_x, test_y, log_probs, photos).savefig(options.output, dpi=200)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
