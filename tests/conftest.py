"""JAX at its strictest, and types on: what is lenient here would hide mistakes."""

import os
from importlib.util import find_spec
from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook


with install_import_hook("chorax", "beartype.beartype"):
    import chorax  # noqa: F401


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Simulated, for what spreads lanes; all else runs on the first.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
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
settings.register_profile("quick", max_examples=12, derandomize=True, **_PATIENT)
settings.register_profile("laws", max_examples=60, derandomize=True, **_PATIENT)
settings.register_profile("thorough", max_examples=2000, **_PATIENT)
settings.load_profile("laws")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def legacy_key():
    """The same key, as an array of words."""
    with jax.enable_custom_prng(False):
        yield jax.random.PRNGKey(0)


@pytest.fixture
def lane_key() -> jax.Array:
    """For what compares lanes with calls on their own: whatever the default is, a batch
    of such keys draws what each of them draws. A batch of `rbg` keys does not."""
    return jax.random.key(0, impl="threefry2x32")


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


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Drops compiled programs after each file of tests."""
    yield
    jax.clear_caches()
