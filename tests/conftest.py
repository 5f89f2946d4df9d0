"""JAX at its strictest, and types on: what is lenient here would hide mistakes."""

import contextlib
import gc
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any


# Most of the time goes into compiling, and what is compiled here is small: so XLA does
# it cheaply, with the same bits nearly everywhere. Under
# `XLA_FLAGS=--xla_backend_optimization_level=3` it compiles as it does for users.
_CHEAPLY = (
    "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
_FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_backend_optimization_level" not in _FLAGS:
    os.environ["XLA_FLAGS"] = f"{_FLAGS} {_CHEAPLY}".strip()

# Not before XLA has been told.
import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402


# Tests of the built pages need what builds them, the `docs` extra.
collect_ignore = [] if find_spec("mkdocs") else ["test_site.py"]

# Types are checked where CI asks for it: that takes a third of the time.
_TYPES = contextlib.nullcontext()
if os.environ.get("CHECK_TYPES"):
    _TYPES = install_import_hook("chorax", "beartype.beartype")
with _TYPES:
    import chorax  # noqa: F401

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Nobody reads where an error that is expected came from.
jax.config.update("jax_traceback_filtering", "off")
# Simulated, for what spreads lanes; all else runs on the first.
if "xla_force_host_platform_device_count" not in _FLAGS:
    jax.config.update("jax_num_cpu_devices", 8)
# The tests against brainstate and Flax need `pip install -e ".[peers]"` and 32 bits, to
# which brainstate sets all of JAX when it is imported.
_HAS_PEERS = all(find_spec(name) for name in ("brainstate", "flax"))
if not _HAS_PEERS or jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
    collect_ignore_glob = ["*peer*.py"]
# What is slow is to compile what a new example comes to.
_PATIENT: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("quick", max_examples=3, derandomize=True, **_PATIENT)
settings.register_profile("laws", max_examples=60, derandomize=True, **_PATIENT)
settings.register_profile("thorough", max_examples=2000, **_PATIENT)
settings.load_profile("quick")


@pytest.fixture
def key() -> jax.Array:
    """Of the default kind, or of one that is cheap to compile where that is JAX's."""
    from trees import MIXED  # Not before the profile is known.

    default = jax.config.jax_default_prng_impl  # pyright: ignore[reportAttributeAccessIssue]
    return jax.random.key(0, impl=MIXED if default == "threefry2x32" else default)


@pytest.fixture
def legacy_key():
    """The same key, as an array of words."""
    with jax.enable_custom_prng(False):
        yield jax.random.PRNGKey(0)


@pytest.fixture
def lane_key() -> jax.Array:
    """For what compares lanes with calls on their own: whatever the default is, a batch
    of such keys draws what each of them draws. A batch of `rbg` keys does not."""
    from trees import MIXED

    return jax.random.key(0, impl=MIXED)


@pytest.fixture
def legacy_lane_key():
    """Such a key, as an array of words."""
    with jax.enable_custom_prng(False), jax.default_prng_impl("threefry2x32"):
        yield jax.random.PRNGKey(0)


@pytest.fixture
def in_32_bits():
    """For what prints dtypes and bytes as most people see them."""
    before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def needs_jit() -> None:
    """For what counts traces and programs, of which there are none without."""
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        pytest.skip("JAX_DISABLE_JIT is set: nothing is traced")


def pytest_collection_finish():
    """Spares tests that collect garbage a look at what all of them share."""
    gc.collect()
    gc.freeze()


# A program that is compiled maps memory some three times, and an operating system
# admits 65,530 maps.
_MANY_MAPS = 30_000


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Drops compiled programs once they are many."""
    yield
    with contextlib.suppress(OSError):  # There is such a file on Linux alone.
        if Path("/proc/self/maps").read_bytes().count(b"\n") < _MANY_MAPS:
            return
    jax.clear_caches()
