from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

MEASURED = pytest.StashKey[list[str]]()
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Pictures and trained decoder weights that stand beside the checkout, not inside it."""
    if not SHARED.is_dir():
        pytest.skip("needs the test material in ../shared, which is not here")
    return SHARED


@pytest.fixture
def measured(request):
    """Call with a line that states a figure; all of them stand at the end of the test run."""
    return request.config.stash.setdefault(MEASURED, []).append


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash.get(MEASURED, []):
        terminalreporter.section("measured against the reference")
        for line in lines:
            terminalreporter.line(line)
