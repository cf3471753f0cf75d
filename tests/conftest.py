from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Pictures and trained decoder weights that stand beside the checkout, not inside it."""
    if not SHARED.is_dir():
        pytest.skip("needs the test material in ../shared, which is not here")
    return SHARED
