"""Measures this library against its peers on the same work.

Run as `python -m tests.benchmarks` at the root of the repository, with the extra
`bench` installed. Every measurement is a fresh process; the peers take turns, so that
what else the machine does falls on all of them.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .goals import goals
from .models import kinds_of, MEMBERS


Work = tuple[str, str, int, int]
_NAMES = ("peer", "task", "nodes", "lanes")
_ROOT = Path(__file__).parents[2]
_PACKAGES = {"nnx": "flax", "brainstate": "brainstate", "torch": "torch"}
_PEERS = ("chorax", "by hand", *_PACKAGES)
_IN_JIT = ("chorax in jit", "by hand in jit")
_JITTED = ("chorax", "by hand in jit")
# Work of which the memory matters.
_BIG = (("blocks", 24, 8), ("shared", 32, 64), ("create", 10, 100_000))
# What takes longer than so many seconds is not run again.
_LONG = 60.0
# What the work is, and what N counts where it is not nodes in a list.
_TASKS = {
    "create": "Nodes that are alike get three small arrays each, two of them drawn.",
    "reset": "The same nodes have their arrays in all lanes, and get new ones.",
    "blocks": "Each node multiplies a state by a matrix of 1024 by 1024, which all "
    "lanes share.",
    "kinds by class": "As `create`, and each node is of a class of its own.",
    "kinds by shape": "As `create`, and the arrays of each node have a size of their "
    "own.",
    "six kinds": "As `create`, and the arrays of the nodes have one of six sizes.",
    "six kinds reset": "The same nodes have their arrays in all lanes; another method "
    "draws one afresh, and keeps another.",
    "zeros": "Nodes that are alike have two arrays each, and get zeros.",
    "add": "The same nodes add one to one of their arrays.",
    "MLP": "Members of `eqx.nn.MLP(7, 3, 32, 7)`, with parameters of their own.",
    "recurrent": "Members of six GRU cells and six linear layers, all of other sizes.",
    "vision": "Members of a small vision transformer of equimo's.",
    "chain": "Each node holds the next, and draws a small array.",
    "tree": "The same in a full binary tree; N is its levels.",
    "shared": "Of the model's 40 MiB each lane draws 4 MiB for itself, and shares the "
    "rest.",
}


def works(quick: bool) -> Iterator[Work]:
    """What is measured: peer, task, nodes and lanes."""
    counts = (3,) if quick else (10, 100, 400)
    for nodes in counts:
        yield from ((peer, "create", nodes, 8) for peer in (*_PEERS, *_IN_JIT))
        yield from (
            (peer, "reset", nodes, 8) for peer in (*_PEERS[:2], *_IN_JIT, "nnx")
        )
    if quick:
        yield from ((peer, "zeros", 3, 8) for peer in _IN_JIT)
        yield from ((peer, "MLP", 1, 3) for peer in ("chorax", "by hand"))
        yield from ((peer, "six kinds", 7, 2) for peer in ("chorax", "brainstate"))
        tasks = ("kinds by shape", "kinds by class", "blocks", "shared")
        yield from ((peer, task, 2, 2) for task in tasks for peer in _JITTED)
        yield from (("chorax", task, 3, 2) for task in ("chain", "tree"))
        return
    for nodes in (10, 100, 1000):
        yield from (
            (peer, task, nodes, 8) for task in ("zeros", "add") for peer in _IN_JIT
        )
    for task in MEMBERS:
        yield from ((peer, task, 1, 8) for peer in ("chorax", "by hand"))
    yield from ((peer, "six kinds", 60, 8) for peer in (*_PEERS[:-1], *_IN_JIT))
    peers = (*_PEERS[:2], *_IN_JIT, "nnx")
    yield from ((peer, "six kinds reset", 60, 8) for peer in peers)
    # Nobody's `jit` of a loop over so many nodes ends in reasonable time.
    yield from ((peer, "create", 3000, 8) for peer in ("chorax", "nnx"))
    yield from ((peer, "create", 10, 512) for peer in (*_PEERS, *_IN_JIT))
    for lanes in (10_000, 100_000):
        yield from ((peer, "create", 10, lanes) for peer in _JITTED)
    yield from ((peer, "blocks", 24, 8) for peer in (*_JITTED, "chorax in jit"))
    for task in ("kinds by class", "kinds by shape"):
        yield from ((peer, task, 400, 8) for peer in (*_JITTED, "by hand"))
    yield from (("chorax", "chain", nodes, 8) for nodes in (75, 200, 300, 400))
    yield from (("chorax", "tree", levels, 8) for levels in (9, 12))
    yield from ((peer, "shared", 32, 64) for peer in _JITTED)


def run(module: str, *args: object) -> Any:
    """What a module prints, run in a fresh process."""
    env = dict(os.environ)
    if "peak" in args:
        # Memory goes back to the system at once, so that the peak says what is used.
        env["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, args)]
    done = subprocess.run(
        command, cwd=_ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(todo: Sequence[Work], runs: int) -> dict[Work, list[dict[str, Any]]]:
    """All runs of everything that a peer can do."""
    found: dict[Work, list[dict[str, Any]]] = {work: [] for work in todo}
    for index in range(runs):
        for work in todo:
            known = found[work]
            if len(known) < index or (known and known[0]["cold"] > _LONG):
                continue
            figures = run("child", *work)
            if figures is not None:
                peak = run("child", *work, "peak") if work[1:] in _BIG else {}
                figures = {"peak": None, **figures, **peak}
                known.append(figures)
                print(index + 1, *work, figures, file=sys.stderr, flush=True)
    return {work: known for work, known in found.items() if known}


def read(report: Path) -> dict[Work, list[dict[str, Any]]]:
    """What an earlier run has found."""
    rows = json.loads(report.read_text())["measurements"]
    return {tuple(row[name] for name in _NAMES): row["runs"] for row in rows}


def medians(found: Mapping[Work, Sequence[Mapping[str, Any]]]) -> dict[Work, Any]:
    """The median of each figure."""

    def median(known: Sequence[Mapping[str, Any]], name: str) -> float | None:
        values = [each[name] for each in known if each[name] is not None]
        return statistics.median(values) if values else None

    return {
        work: {name: median(known, name) for name in ("cold", "cpu", "warm", "peak")}
        for work, known in found.items()
    }


_HEAD = (
    "N",
    "kinds",
    "E",
    "",
    "first call, s",
    "CPU-s",
    "again, s",
    "compile in jit, CPU-s",
    "in jit again, s",
    "peak, MiB",
)


def table(figures: Mapping[Work, Mapping[str, Any]]) -> Iterator[str]:
    """The figures as rows of Markdown."""
    for task in dict.fromkeys(work[1] for work in figures):
        sizes = dict.fromkeys(work[2:] for work in figures if work[1] == task)
        yield f"\n## {task}\n\n{_TASKS[task]}\n"
        yield f"| {' | '.join(_HEAD)} |"
        yield f"|---:|---:|---:|---|{'---:|' * 6}"
        for nodes, lanes in sizes:
            for peer in _PEERS:
                work = (task, nodes, lanes)
                plain = figures.get((peer, *work))
                jitted = figures.get((f"{peer} in jit", *work))
                if plain or jitted:
                    kinds = kinds_of(task, nodes)
                    cells = [str(nodes), str(kinds), str(lanes), peer]
                    yield f"| {' | '.join([*cells, *_cells(plain, jitted)])} |"


def _cells(plain: Any, jitted: Any) -> Iterator[str]:
    for found, names in ((plain, ("cold", "cpu", "warm")), (jitted, ("cpu", "warm"))):
        yield from (f"{found[name]:.2g}" if found else "" for name in names)
    peak = (plain or jitted)["peak"] or 0
    yield f"{peak / (1 << 20):.0f}" if peak > 1 << 24 else ""


def main() -> None:
    """Runs everything; prints and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="tiny, to see that it runs"
    )
    parser.add_argument("--task", help="only this one; the rest as it was written")
    parser.add_argument(
        "--output", type=Path, default=_ROOT / "docs" / "pages" / "cost"
    )
    args = parser.parse_args()
    missing = {
        peer
        for peer, package in _PACKAGES.items()
        if importlib.util.find_spec(package) is None
    }
    if missing:
        print(f"Not installed, so left out: {', '.join(sorted(missing))}.")
    todo = [work for work in works(args.quick) if work[0] not in missing]
    known: dict[Work, list[dict[str, Any]]] = {}
    report = args.output / "figures.json"
    if args.task is not None:
        todo = [work for work in todo if work[1] == args.task]
        known = read(report)
    found = {**known, **measure(todo, args.runs)}
    figures = medians(found)
    forward = {**run("forward"), "import": run("imports")}
    lines = [
        f"Python {platform.python_version()} on {os.cpu_count()} cores; N nodes in E "
        "lanes.",
        *table(figures),
        "\n## Goals\n\nWhat the figures are to show, and whether they do: ratios, but "
        "for what is said to be seconds.\n",
        "| goal | figure | at most | met |",
        "|---|---:|---:|---|",
    ]
    for goal in goals(figures, forward):
        verdict = "yes" if goal.ratio <= goal.bound else "no"
        lines.append(f"| {goal.name} | {goal.ratio:.3g} | {goal.bound} | {verdict} |")
    print("\n".join(lines))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "table.md").write_text("\n".join(lines) + "\n")
    rows = [
        dict(zip(_NAMES, work, strict=True), runs=runs) for work, runs in found.items()
    ]
    text = json.dumps({"forward": forward, "measurements": rows}, indent=1)
    report.write_text(text + "\n")
    if importlib.util.find_spec("matplotlib") is not None:
        from .plot import draw

        draw(figures, args.output / "figures.png")


if __name__ == "__main__":
    main()
