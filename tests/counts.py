"""What a run costs, counted instead of timed."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax


@contextlib.contextmanager
def compiled() -> Iterator[list[str]]:
    """A list that gets an entry for each program that XLA compiles meanwhile."""
    programs: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        # The oldest versions keep it, and nobody looks at its list any more.
        stop = getattr(jax.monitoring, "unregister_event_duration_listener", None)
        if stop is not None:
            stop(listen)


def executed(run: Callable[[], Any]) -> int:
    """How many compiled programs a run executes, on one device."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        [file] = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
    names = (
        event.name
        for plane in profile.planes
        for line in plane.lines
        for event in line.events
    )
    return sum("ExecuteHelper" in name for name in names)
