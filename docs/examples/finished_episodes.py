"""A recurrent policy on 64 poles at once; whichever falls begins anew.

The task is to balance a pole on a cart (Barto, Sutton and Anderson 1983), of which only
positions are seen, so that the policy has to remember how fast they change. The cart
and the memory of the policy are nodes of one model, each with a state in every lane.
All lanes run inside of one `lax.scan`; at every step one call resets cart and memory in
the lanes where the pole has fallen, and the others go on. The policy learns by
advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783), through the memory. The
script prints how long poles stay up, and draws the learning curve and some episodes.

    pip install -e ".[examples]"
    python docs/examples/finished_episodes.py
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
from jaxtyping import Array, Bool, Float, Int
from matplotlib.figure import Figure
from tqdm import tqdm

import chorax


# Metres, seconds, kilograms, newtons, radians.
GRAVITY, CART, POLE, LENGTH, FORCE, STEP = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
FARTHEST, STEEPEST, LONGEST = 2.4, 0.21, 200
# Of what the policy sees: how far positions move within some steps.
SCALES = (0.5, 0.05)
# Of learning: the discount of later rewards and of their estimates, and weights.
DISCOUNT, TRACE, CURIOSITY, CRITIC = 0.98, 0.95, 0.002, 0.5
OUTPUT = Path(__file__).parent / "output" / "finished_episodes.png"


class Pole(eqx.Module):
    """A pole on a cart: position, speed, angle, and speed of the angle."""

    x: Float[Array, "4"] | None = None
    time: Int[Array, ""] | None = None

    def init_state(self, *, key: Array) -> "Pole":
        x = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return chorax.replace(self, x=x, time=jnp.zeros((), jnp.int32))

    def reset_state(self, *, key: Array) -> "Pole":
        return self.init_state(key=key)

    def push(self, right: Int[Array, ""]) -> "Pole":
        assert self.x is not None
        assert self.time is not None
        _, v, angle, spin = self.x
        force = jnp.where(right == 1, FORCE, -FORCE)
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        mass = CART + POLE
        pull = (force + POLE * LENGTH * spin**2 * sine) / mass
        twist = (GRAVITY * sine - cosine * pull) / (
            LENGTH * (4 / 3 - POLE * cosine**2 / mass)
        )
        change = jnp.stack(
            [v, pull - POLE * LENGTH * twist * cosine / mass, spin, twist]
        )
        return chorax.replace(self, x=self.x + STEP * change, time=self.time + 1)

    @property
    def fallen(self) -> Bool[Array, ""]:
        assert self.x is not None
        return (jnp.abs(self.x[0]) > FARTHEST) | (jnp.abs(self.x[2]) > STEEPEST)


class Memory(eqx.Module):
    """What the policy makes of all it has seen in an episode."""

    cell: eqx.nn.GRUCell
    h: Float[Array, " units"] | None = None

    def init_state(self) -> "Memory":
        return chorax.replace(self, h=jnp.zeros(self.cell.hidden_size))

    def reset_state(self) -> "Memory":
        return self.init_state()

    def __call__(self, seen: Float[Array, " seen"]) -> "Memory":
        assert self.h is not None
        return chorax.replace(self, h=self.cell(seen, self.h))


class Agent(eqx.Module):
    pole: Pole
    memory: Memory
    actor: eqx.nn.Linear
    critic: eqx.nn.Linear

    def __init__(self, units: int, key: Array) -> None:
        one, two, three = jax.random.split(key, 3)
        self.pole = Pole()
        self.memory = Memory(eqx.nn.GRUCell(2, units, key=one))
        self.actor = eqx.nn.Linear(units, 2, key=two)
        self.critic = eqx.nn.Linear(units, "scalar", key=three)

    def act(self, key: Array) -> tuple["Agent", "Moment"]:
        """One step of one lane."""
        assert self.pole.x is not None
        seen = self.pole.x[jnp.array([0, 2])] / jnp.array(SCALES)
        memory = self.memory(seen)
        assert memory.h is not None
        logits = jax.nn.log_softmax(self.actor(memory.h))
        action = jax.random.categorical(key, logits)
        pole = self.pole.push(action)
        assert pole.time is not None
        moment = Moment(
            logits[action],
            -(jnp.exp(logits) * logits).sum(),
            self.critic(memory.h),
            pole.fallen,
            pole.fallen | (pole.time >= LONGEST),
            pole.time,
            self.pole.x[2],
        )
        return chorax.replace(self, pole=pole, memory=memory), moment


class Moment(NamedTuple):
    """What happened in one step: arrays of shape `(time, lanes)` after a loop."""

    log_prob: Array
    entropy: Array
    value: Array
    fallen: Array
    done: Array
    time: Array
    angle: Array


def make_states(agent: Agent, lanes: int, key: Array) -> Any:
    return chorax.vmap_init_all_states(agent, axis_size=lanes, key=key)


def play(
    agent: Agent, delta: chorax.StateDelta[Agent], steps: int, key: Array
) -> tuple[Agent, Moment]:
    """All lanes for some steps; those that are done begin anew."""
    lanes = delta.axis_size
    assert lanes is not None
    act = eqx.filter_vmap(
        lambda agent, key: agent.act(key),
        in_axes=(delta.in_axes, 0),
        out_axes=(delta.in_axes, 0),
    )
    states, shared = eqx.partition(agent, delta.filter_spec)

    def step(states: Agent, key: Array) -> tuple[Agent, Moment]:
        one, two = jax.random.split(key)
        agent = eqx.combine(states, shared)
        agent, moment = act(agent, jax.random.split(one, lanes))
        agent, _ = chorax.vmap_reset_all_states(
            agent, key=two, in_axes=delta, where=moment.done
        )
        return eqx.filter(agent, delta.filter_spec), moment

    states, moments = jax.lax.scan(step, states, jax.random.split(key, steps))
    return eqx.combine(states, shared), moments


def advantages(moments: Moment, last: Array) -> Array:
    """How much better than expected it went (Schulman et al. 2016, arXiv:1506.02438);
    a fall costs 1."""
    value = jax.lax.stop_gradient(moments.value)
    after = jnp.concatenate([value[1:], last[None]])
    goes_on = 1.0 - moments.done
    error = -1.0 * moments.fallen + DISCOUNT * goes_on * after - value

    def back(later: Array, each: tuple[Array, Array]) -> tuple[Array, Array]:
        error, goes_on = each
        total = error + DISCOUNT * TRACE * goes_on * later
        return total, total

    start = jnp.zeros_like(last)
    return jax.lax.scan(back, start, (error, goes_on), reverse=True)[1]


def make_step(delta: chorax.StateDelta[Agent], optimiser: Any, steps: int) -> Any:
    def loss(weights: Agent, states: Agent, key: Array) -> tuple[Array, Any]:
        agent, moments = play(eqx.combine(weights, states), delta, steps, key)
        gain = advantages(moments, jax.lax.stop_gradient(moments.value[-1]))
        actor = -(moments.log_prob * gain).mean()
        target = gain + jax.lax.stop_gradient(moments.value)
        critic = ((moments.value - target) ** 2).mean()
        total = actor + CRITIC * critic - CURIOSITY * moments.entropy.mean()
        return total, (eqx.filter(agent, delta.filter_spec), moments)

    @eqx.filter_jit
    def step(weights: Agent, states: Agent, state: Any, key: Array) -> Any:
        gradient = eqx.filter_grad(loss, has_aux=True)
        grads, (states, moments) = gradient(weights, states, key)
        updates, state = optimiser.update(grads, state)
        ended = moments.done.sum()
        length = (moments.time * moments.done).sum() / jnp.maximum(ended, 1)
        return eqx.apply_updates(weights, updates), states, state, length

    return step


def draw(
    lengths: Float[Array, " updates"],
    before: Float[Array, "time lanes"],
    after: Float[Array, "time lanes"],
    steps: int,
) -> Figure:
    figure = Figure(figsize=(4.1, 9.5), layout="constrained")
    axes = figure.subplots(3, 1, height_ratios=(3, 4, 4))
    window = max(1, len(lengths) // 40)
    smooth = np.convolve(lengths, np.full(window, 1 / window), mode="valid")
    axes[0].plot(lengths, color="#b8b8b8", linewidth=0.7)
    axes[0].plot(np.arange(len(smooth)) + window // 2, smooth, color="#1f5f8b")
    axes[0].axhline(LONGEST, color="grey", linestyle=":")
    axes[0].set(
        xlabel=f"update (of {steps} steps in every lane)",
        ylabel="steps that a pole stays up",
        ylim=(0, LONGEST * 1.05),
    )
    axes[0].set_title("Learning", weight="bold")
    for panel, angles, name in ((axes[1], before, "Before"), (axes[2], after, "After")):
        image = panel.imshow(
            np.asarray(angles).T,
            aspect="auto",
            cmap="coolwarm",
            vmin=-STEEPEST,
            vmax=STEEPEST,
            interpolation="nearest",
        )
        panel.set(xlabel="time (steps)", ylabel="lane")
        panel.set_title(name, weight="bold")
    label = "angle of the pole (rad)"
    figure.colorbar(image, ax=axes[2], label=label, location="bottom")
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A recurrent policy on many poles.")
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--steps", type=int, default=32, help="between updates")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture")
    options = parser.parse_args(argv)

    keys = jax.random.split(jax.random.key(options.seed), 4)
    agent, delta = make_states(Agent(options.units, keys[0]), options.lanes, keys[1])
    print(delta)
    states, weights = eqx.partition(agent, delta.filter_spec)
    rate = optax.linear_schedule(3e-3, 0.0, options.updates)
    optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate))
    state = optimiser.init(eqx.filter(weights, eqx.is_inexact_array))
    step = make_step(delta, optimiser, options.steps)
    watch = eqx.filter_jit(lambda agent: play(agent, delta, 300, keys[3])[1])
    before = watch(eqx.combine(weights, states))
    lengths: list[Array] = []
    for key in (bar := tqdm(jax.random.split(keys[2], options.updates), unit="update")):
        weights, states, state, length = step(weights, states, state, key)
        lengths.append(length)
        if len(lengths) % 50 == 0:
            bar.set_postfix(steps=f"{length:.0f}", refresh=False)
    after = watch(eqx.combine(weights, states))
    for name, moments in (("before", before), ("after", after)):
        ended = moments.done.sum()
        fallen = moments.fallen.sum()
        print(
            f"{name} learning, {ended} episodes ended in 300 steps, {fallen} by a fall"
        )
    figure = draw(jnp.stack(lengths), before.angle, after.angle, options.steps)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=200)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
