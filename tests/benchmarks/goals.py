"""What the figures are to show: ratios of this library to its peers, and their bounds.

A goal whose figures are missing, since its peer is not installed or the run was a small
one, is left out.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


# Peer, task, nodes and lanes, and which figure.
Key = tuple[str, str, int, int]
Figures = Mapping[Key, Mapping[str, Any]]
_JAX = ("by hand", "by hand in jit", "nnx", "brainstate")


@dataclasses.dataclass(frozen=True)
class Goal:
    """A ratio, which is to be at most `bound`."""

    name: str
    ratio: float
    bound: float


def goals(figures: Figures, forward: Mapping[str, Mapping[str, float]]) -> list[Goal]:
    """Every goal that the figures tell of."""
    found = [
        *_cold(figures),
        *_warm(figures),
        *_lanes(figures),
        *_blocks(figures),
        *_kinds(figures),
        *_deep(figures),
        *_shared(figures),
        *_many_kinds(figures),
        *_in_jit(figures),
    ]
    own = forward["import"]["seconds"]
    found.append(Goal("13. import, seconds beyond what it is built on", own, 0.15))
    for name in ("flops", "bytes accessed"):
        ratio = forward["ensemble"][name] / forward["by hand"][name]
        found.append(Goal(f"8. forward pass, {name}, to by hand", ratio, 1.0))
    return sorted(found, key=lambda goal: goal.name)


def _cold(figures: Figures) -> Iterator[Goal]:
    first = figures.get(("chorax", "create", 10, 8))
    for nodes in (400, 3000):
        ours = figures.get(("chorax", "create", nodes, 8))
        peers = [figures.get((peer, "create", nodes, 8)) for peer in _JAX]
        times = [peer["cold"] for peer in peers if peer]
        if ours and times:
            name = f"1. cold, {nodes} nodes, to the fastest JAX peer"
            yield Goal(name, ours["cold"] / min(times), 0.5)
        if ours and first:
            name = f"1. cold, {nodes} nodes, to our own at 10"
            yield Goal(name, ours["cold"] / first["cold"], 1.5)
    yield from _compare(
        figures,
        "3. trace + lower + compile in a user's jit, 400 nodes",
        ("chorax in jit", "by hand in jit"),
        ("create", 400, 8),
        "cold",
        0.1,
    )


def _warm(figures: Figures) -> Iterator[Goal]:
    for task in ("create", "reset"):
        for nodes in (10, 100, 400):
            yield from _compare(
                figures,
                f"2. warm {task}, {nodes:>3} nodes, to by hand in jit",
                ("chorax", "by hand in jit"),
                (task, nodes, 8),
                "warm",
                1.0,
            )


def _lanes(figures: Figures) -> Iterator[Goal]:
    for lanes in (8, 512, 10_000, 100_000):
        work = ("create", 10, lanes)
        peers = ("chorax", "by hand in jit")
        name = f"4. warm, {lanes:>6} lanes, to by hand in jit"
        yield from _compare(figures, name, peers, work, "warm", 1.1)
        if lanes == 100_000:
            name = f"4. peak bytes, {lanes} lanes, to by hand in jit"
            yield from _compare(figures, name, peers, work, "peak", 1.1)


def _blocks(figures: Figures) -> Iterator[Goal]:
    for ours in ("chorax", "chorax in jit"):
        for figure, name in (("warm", "time"), ("peak", "peak bytes")):
            yield from _compare(
                figures,
                f"5. big weights, {name}, {ours} to by hand in jit",
                (ours, "by hand in jit"),
                ("blocks", 24, 8),
                figure,
                1.1,
            )


def _kinds(figures: Figures) -> Iterator[Goal]:
    for task in ("kinds by shape", "kinds by class"):
        for figure in ("cold", "warm"):
            for peer in ("by hand", "by hand in jit"):
                yield from _compare(
                    figures,
                    f"6. {task}, {figure}, 400 nodes, to {peer}",
                    ("chorax", peer),
                    (task, 400, 8),
                    figure,
                    1.2,
                )


def _deep(figures: Figures) -> Iterator[Goal]:
    # A chain of n nodes has subtrees of n (n + 1) / 2 nodes in all, a binary tree of k
    # levels about k 2^k.
    sizes = {"chain": (75, 300), "tree": (9, 12)}
    sums = {"chain": lambda n: n * (n + 1) / 2, "tree": lambda n: n * 2**n}
    for task, (small, large) in sizes.items():
        pair = [figures.get(("chorax", task, n, 8)) for n in (small, large)]
        if pair[0] and pair[1]:
            growth = sums[task](large) / sums[task](small)
            for figure in ("cold", "warm"):
                ratio = pair[1][figure] / pair[0][figure] / growth
                name = f"7. {task} of {large}, {figure}, growth to that of subtrees"
                yield Goal(name, ratio, 1.0)


def _shared(figures: Figures) -> Iterator[Goal]:
    ours = figures.get(("chorax", "shared", 32, 64))
    if ours and ours["peak"] is not None:
        # A tenth of the model, 4 MiB in all, in every lane.
        own = 64 * 4 * (1 << 20)
        yield Goal(
            "9. peak bytes to those of the lanes' own part", ours["peak"] / own, 1.1
        )


def _many_kinds(figures: Figures) -> Iterator[Goal]:
    for task, bound in (("six kinds", 5.0), ("six kinds reset", 2.0)):
        ours = figures.get(("chorax", task, 60, 8))
        if ours:
            yield Goal(f"10. {task}, first call, CPU-seconds", ours["cpu"], bound)
    for nodes in (10, 400):
        ours = figures.get(("chorax", "create", nodes, 8))
        if ours:
            name = f"10. create, {nodes} nodes, first call, CPU-seconds"
            yield Goal(name, ours["cpu"], 1.2)
    ours = figures.get(("chorax", "six kinds", 60, 8))
    peers = [figures.get((peer, "six kinds", 60, 8)) for peer in _JAX]
    times = [peer["cpu"] for peer in peers if peer]
    if ours and times:
        name = "10. six kinds, first call in CPU-s, to the fastest JAX peer"
        yield Goal(name, ours["cpu"] / min(times), 0.34)
    for task in ("MLP", "recurrent", "vision"):
        name = f"11. {task}, first call in CPU-s, to by hand"
        peers = ("chorax", "by hand")
        yield from _compare(figures, name, peers, (task, 1, 8), "cpu", 0.2)


def _in_jit(figures: Figures) -> Iterator[Goal]:
    peers = ("chorax in jit", "by hand in jit")
    for task, bound in (("zeros", 1.5), ("add", 1.5), ("create", 1.0)):
        for nodes in (10, 100, 1000):
            name = f"12. {task}, {nodes} nodes, compile in jit in CPU-s, to by hand"
            yield from _compare(figures, name, peers, (task, nodes, 8), "cpu", bound)
    pair = [figures.get(("chorax", "chain", nodes, 8)) for nodes in (200, 400)]
    if pair[0] and pair[1]:
        ratio = pair[1]["cpu"] / pair[0]["cpu"]
        yield Goal("7. chain of 400, first call in CPU-s, to one of 200", ratio, 2.2)


def _compare(
    figures: Figures,
    name: str,
    peers: tuple[str, str],
    work: tuple[str, int, int],
    figure: str,
    bound: float,
) -> Iterator[Goal]:
    ours, other = (figures.get((peer, *work)) for peer in peers)
    if ours and other and ours[figure] is not None and other[figure]:
        yield Goal(name, ours[figure] / other[figure], bound)
