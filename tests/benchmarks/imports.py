"""How long it takes to import this library beyond what it is built on."""

import importlib
import json
import time


def seconds() -> float:
    """The time that is its own."""
    for name in ("jax", "equinox", "jaxtyping"):
        importlib.import_module(name)
    start = time.perf_counter()
    importlib.import_module("chorax")
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps({"seconds": seconds()}))
