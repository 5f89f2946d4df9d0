"""Mutants of `src`, each against the quickest tests that reach it.

In a clone of the repository, since mutants are written into its files:

    pip install -e ".[dev,peers]"
    python tests/mutants.py record                   # Which tests reach which lines.
    python tests/mutants.py sample --count 250 --seed 0
    cosmic-ray exec build/mutants.toml build/mutants.sqlite
    python tests/mutants.py report
    python tests/mutants.py again --seconds 300      # The others, with more tests.
    python tests/mutants.py named                    # Those of the table below.

`--part 0/2` and `--part 1/2` of `sample` halve the sample, for two clones at a time.
"""

import argparse
import os
import random
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
CONFIG, SESSION = BUILD / "mutants.toml", BUILD / "mutants.sqlite"
DURATIONS = BUILD / "durations.txt"
# The tests of one mutant: as many, and as many seconds of them.
MOST_TESTS, MOST_SECONDS = 400, 40.0
SECONDS = "MUTANT_SECONDS"
# A `|` is nearly always a union of types, which fails on import.
LEFT_OUT = ("BitOr",)
SETTINGS = f"""[cosmic-ray]
module-path = "src/chorax"
timeout = 600.0
excluded-modules = []
test-command = "{sys.executable} tests/mutants.py test"

[cosmic-ray.distributor]
name = "local"
"""
# Mutants that once changed results and failed no test: file, text, what stands in its
# place, and the tests that have to fail.
NAMED = [
    (
        "_kind",
        "(self.lanes.axis_name, self.lanes.size)",
        "(self.lanes.axis_name,)",
        "test_same_call.py",
    ),
    ("_kind", "self.gets_key, self.levels", "self.gets_key", "test_same_call.py"),
    (
        "_kind",
        "definition = code_token(self.definition)",
        "definition = None",
        "test_same_call.py",
    ),
    (
        "_axes",
        "return jnp.moveaxis(x, axis, 0) if axis else x",
        "return jnp.moveaxis(x, 0, axis) if axis else x",
        "test_keywords.py",
    ),
    (
        "_excludes",
        "self._own | self._tags.get(path, frozenset())",
        "self._own",
        "test_same_call.py",
    ),
    (
        "_recipe",
        "if calls.excludes is None or calls.excludes.say(recipe.answers):",
        "if True:",
        "test_same_call.py",
    ),
    (
        "_reading",
        "and parameter.default is parameter.empty",
        "",
        "test_filters.py",
    ),
    (
        "_memo",
        "types.append(exact_type(static))",
        "types.append(None)",
        "test_same_call.py",
    ),
    (
        "_nodes",
        "types.extend((exact_type(key), key) for key in keys)",
        "pass",
        "test_same_call.py",
    ),
    (
        "_nodes",
        "((exact_type(key), key) for key in keys)",
        "(map(exact_type, keys))",
        "test_same_call.py",
    ),
    (
        "_memo",
        "tuple((exact_type(k), exact_type(v)) for k, v in rows)",
        "None",
        "test_same_call.py",
    ),
    (
        "_computation",
        "rows, outputs, _context(each.ctx)",
        "rows, outputs",
        "test_same_call.py",
    ),
    (
        "_schedule",
        "trace.in_lanes, visit.places, ",
        "trace.in_lanes, ",
        "test_places.py",
    ),
    ("_blocks", "and set(step.places) == set(first.places)", "", "test_places.py"),
    (
        "_constants",
        "return all(map(_is_fixed, held_by(value)))",
        "return True",
        "test_left_in_nodes.py",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record")
    options = commands.add_parser("sample")
    options.add_argument("--count", type=int, default=250)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--part", default="0/1")
    commands.add_parser("test")
    commands.add_parser("report")
    options = commands.add_parser("again")
    options.add_argument("--seconds", type=float, default=300)
    commands.add_parser("named")
    args = parser.parse_args()
    if args.command == "record":
        record()
    elif args.command == "sample":
        sample(args.count, args.seed, *map(int, args.part.split("/")))
    elif args.command == "again":
        again(args.seconds)
    elif args.command == "named":
        sys.exit(named())
    elif args.command == "test":
        sys.exit(test())
    else:
        report()


def record() -> None:
    """Runs the suite once; notes which tests reach which lines, and for how long."""
    BUILD.mkdir(exist_ok=True)
    options = ["--cov", "--cov-context=test", "--cov-report=", "--durations=0", "-vv"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--hypothesis-profile=quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = re.findall(r"^([\d.]+)s call +(.+)$", done.stdout, re.MULTILINE)
    failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    # What fails without a mutant tells nothing of one.
    rows = [(seconds, name) for seconds, name in rows if name not in failed]
    DURATIONS.write_text("".join(f"{seconds} {name}\n" for seconds, name in rows))
    print(done.stdout[-300:])


def sample(count: int, seed: int, part: int, parts: int) -> None:
    """Makes a session, and leaves so many of its mutants to be run."""
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    CONFIG.write_text(SETTINGS)
    init = ["cosmic-ray", "init", "--force", str(CONFIG), str(SESSION)]
    subprocess.run(init, cwd=ROOT, check=True)
    with use_db(str(SESSION)) as db:
        every = sorted(db.pending_work_items, key=lambda x: str(x.mutations))
        fit = [
            item
            for item in every
            if not any(
                word in each.operator_name
                for each in item.mutations
                for word in LEFT_OUT
            )
        ]
        draw = random.Random(seed)
        chosen: dict[str, Any] = {}
        while len(chosen) < min(count, len(fit)):
            drawn = draw.sample(fit, min(count, len(fit)) - len(chosen))
            chosen |= {x.job_id: x for x in drawn if not is_declaration(x)}
        kept = set(list(chosen)[part::parts])
        left = [item.job_id for item in every if item.job_id not in kept]
        db.set_multiple_results(left, WorkResult(WorkerOutcome.SKIPPED))
    print(f"{len(kept)} of {len(every)} mutants")


def is_declaration(item: Any) -> bool:
    """Whether it changes what only says that something can't be: that the parts of a
    `zip` are of one length, or that nobody writes into a dataclass."""
    [mutation] = item.mutations
    row, column = mutation.start_pos
    line = (ROOT / mutation.module_path).read_text().splitlines()[row - 1]
    return line[:column].endswith(("strict=", "frozen=", "eq="))


def again(seconds: float) -> None:
    """Runs the mutants that were not killed once more, each with more tests."""
    from cosmic_ray.work_db import use_db

    with use_db(str(SESSION)) as db:
        left = {job for job, result in db.results if is_left(result)}
    with sqlite3.connect(SESSION) as connection:
        for job in left:
            connection.execute("DELETE FROM work_results WHERE job_id = ?", [job])
    run = ["cosmic-ray", "exec", str(CONFIG), str(SESSION)]
    subprocess.run(run, cwd=ROOT, check=True, env=os.environ | {SECONDS: str(seconds)})


def named() -> int:
    """Makes each mutant of the table, and tells which no test fails on."""
    survived = 0
    for name, before, after, tests in NAMED:
        [file] = (ROOT / "src" / "chorax").rglob(f"{name}.py")
        source = file.read_text()
        if source.count(before) != 1:
            raise ValueError(f"Not once in {file.name}: {before}")
        command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "--tb=no"]
        try:
            file.write_text(source.replace(before, after))
            done = subprocess.run(
                [*command, f"tests/{tests}"], cwd=ROOT, check=False, capture_output=True
            )
        finally:
            file.write_text(source)
        is_dead = done.returncode == 1
        survived += not is_dead
        print("killed  " if is_dead else "SURVIVED", f"{name}: {before} -> {after}")
    return survived


def is_left(result: Any) -> bool:
    """Whether it is of the sample and was not killed."""
    return result.worker_outcome != "skipped" and not is_killed(result)


def is_killed(result: Any) -> bool:
    # Of what was skipped cosmic-ray says that it was killed.
    return result.worker_outcome == "normal" and result.is_killed


def test() -> int:
    """Runs the tests that reach what differs from what is committed."""
    changed = list(changed_lines())
    names = reaching(changed, float(os.environ.get(SECONDS, MOST_SECONDS)))
    if not names:
        return 0  # No test reaches it; without a name, pytest would run them all.
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "--no-header"]
    options = ["-p", "no:cacheprovider", "--hypothesis-profile=quick", "--tb=no"]
    return subprocess.run(
        [*command, *options, *names], cwd=ROOT, check=False
    ).returncode


def changed_lines() -> Iterable[tuple[str, int]]:
    """Files and lines, as they were before they were changed."""
    diff = subprocess.run(
        ["git", "diff", "-U0", "--", "src"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    name = ""
    for line in diff.splitlines():
        if line.startswith("--- a/"):
            name = line[6:]
        found = re.match(r"@@ -(\d+)(?:,(\d+))?", line)
        if found:
            first, many = int(found[1]), int(found[2] or 1)
            yield from ((name, first + i) for i in range(many))


def reaching(changed: Iterable[tuple[str, int]], most_seconds: float) -> list[str]:
    """The quickest tests that run any of these lines, or else the same files."""
    from coverage import CoverageData

    data = CoverageData(str(ROOT / ".coverage"))
    data.read()
    of_lines: set[str] = set()
    of_files: set[str] = set()
    for name, line in changed:
        contexts = data.contexts_by_lineno(name)
        of_lines.update(contexts.get(line, ()))
        of_files.update(x for many in contexts.values() for x in many)
    seconds: dict[str, float] = {}
    for row in DURATIONS.read_text().splitlines():
        time, _, name = row.partition(" ")
        seconds[name] = float(time)

    def tests(contexts: set[str]) -> list[str]:
        names = {x.partition("|")[0] for x in contexts if x.endswith("|run")}
        rows = sorted(names & set(seconds), key=seconds.__getitem__)
        # The quickest of each file come first: what is quickest of all is much alike.
        rank: dict[str, int] = {}
        place = Counter[str]()
        for name in rows:
            file = name.partition("::")[0]
            rank[name] = place[file]
            place[file] += 1
        return sorted(rows, key=rank.__getitem__)

    chosen: list[str] = []
    total = 0.0
    for name in tests(of_lines) or tests(of_files):
        total += seconds[name]
        if chosen and (total > most_seconds or len(chosen) >= MOST_TESTS):
            break
        chosen.append(name)
    return chosen


def report() -> None:
    """Prints the share of mutants that were killed, and the diffs of the others."""
    from cosmic_ray.work_db import use_db

    with use_db(str(SESSION)) as db:
        results = [result for _, result in db.results]
    killed = sum(map(is_killed, results))
    survived = [result.diff for result in results if is_left(result)]
    for diff in survived:
        print(diff)
    print(f"killed {killed} of {killed + len(survived)}")


if __name__ == "__main__":
    main()
