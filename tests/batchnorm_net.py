"""A small convolutional network with batch normalisation and spectral normalisation."""

import equinox as eqx
import jax


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    pool: eqx.nn.MaxPool2d
    head: eqx.nn.SpectralNorm

    def __init__(self, key):
        one, two, three = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(1, 8, 3, padding=1, key=one)
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.pool = eqx.nn.MaxPool2d(2, 2)
        linear = eqx.nn.Linear(128, 10, key=two)
        self.head = eqx.nn.SpectralNorm(linear, "weight", key=three)

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state)
        x = self.pool(jax.nn.relu(x)).reshape(-1)
        logits, state = self.head(x, state)
        return 4.0 * logits, state


def build(key):
    """The network and its state."""
    return eqx.nn.make_with_state(Net)(key)
