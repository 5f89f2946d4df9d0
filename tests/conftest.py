"""JAX at its strictest, and types on: what is lenient here would hide mistakes."""

import jax
import pytest
from jaxtyping import install_import_hook


with install_import_hook("chorax", "beartype.beartype"):
    import chorax  # noqa: F401


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Drops compiled programs after each file of tests."""
    yield
    jax.clear_caches()
