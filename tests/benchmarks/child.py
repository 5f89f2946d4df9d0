"""One measurement in a process of its own: prints it as a line of JSON.

`cold` is the first call, with all tracing and compilation, and `cpu` what it takes of
all cores together; `warm` is the best of the calls after it; all in seconds. `peak`, if
that is asked for instead, are the bytes that a warm call needs at its highest, its
results among them; `None` where the system does not tell.
"""

import gc
import importlib
import json
import sys
import time
import timeit
from pathlib import Path
from typing import Any


PEERS = {
    "chorax": ("equinox_peers", "ours"),
    "chorax in jit": ("equinox_peers", "ours_in_jit"),
    "by hand": ("equinox_peers", "by_hand"),
    "by hand in jit": ("equinox_peers", "by_hand_in_jit"),
    "nnx": ("nnx_peer", "nnx_vmap"),
    "brainstate": ("brainstate_peer", "vmap_call_all_fns"),
    "torch": ("torch_peer", "stack_module_state"),
}


def measure(
    peer: str, task: str, nodes: int, lanes: int, only_peak: bool
) -> dict[str, Any] | None:
    """The figures of one peer's work; `None` if it is not that peer's."""
    module, name = PEERS[peer]
    run = getattr(importlib.import_module(f".{module}", __package__), name)
    work = run(task, nodes, lanes)
    if work is None:
        return None
    ready = _waiter(peer)

    def once() -> None:
        ready(work())

    start = time.process_time()
    cold = timeit.timeit(once, number=1)
    cpu = time.process_time() - start
    if only_peak:
        return {"peak": _peak(once)}
    first = timeit.timeit(once, number=1)
    repeat = max(3, min(200, int(2 / first)))
    warm = min(timeit.repeat(once, number=1, repeat=repeat))
    return {"cold": cold, "cpu": cpu, "warm": warm}


def _waiter(peer: str) -> Any:
    if peer == "torch":
        return lambda _: None
    import jax

    # What is running in the background when the model is ready does not count.
    (jax.device_put(0.0) + 0).block_until_ready()
    return jax.block_until_ready


def _peak(once: Any) -> int | None:
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    gc.collect()
    try:
        refs.write_text("5")  # The high-water mark starts again from here.
    except OSError:
        return None
    before = _kilobytes(status, "VmRSS")
    once()
    return (_kilobytes(status, "VmHWM") - before) * 1024


def _kilobytes(status: Path, name: str) -> int:
    lines = (line.split() for line in status.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{name}:")


if __name__ == "__main__":
    peer, task, nodes, lanes, *rest = sys.argv[1:]
    print(json.dumps(measure(peer, task, int(nodes), int(lanes), rest == ["peak"])))
