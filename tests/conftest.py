import gc
import os
import shutil
import tempfile
from pathlib import Path

# Before jax is imported, for pytest-xdist's workers and the processes that tests start: what one
# has compiled, the others need not.
KEPT = "JAX_COMPILATION_CACHE_DIR"
OWN_FOLDER = None
if KEPT not in os.environ:
    OWN_FOLDER = os.environ[KEPT] = tempfile.mkdtemp(prefix="samjax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax  # noqa: E402
import pytest  # noqa: E402

import quick  # noqa: E402
from unreliable_server import serving  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")

MEASURED = pytest.StashKey[list[str]]()
SHARED = Path(__file__).parents[2] / "shared"


LONGEST = [
    "train/test_loop.py", "test_readme.py", "train/test_step.py", "test_nano_training.py",
    "train/test_gradients.py", "test_inference.py", "test_benchmarks.py", "models/test_tiny_vit.py",
]  # fmt: skip
"""Files that take minutes, begun first, so that no worker has one when all else is done."""


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true",
        help="compile with few of XLA's optimizations, and leave out the tests that need them all",
    )  # fmt: skip


def pytest_configure(config):
    if config.getoption("--quick"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick.FLAGS}"


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        config.hook.pytest_deselected(items=[x for x in items if _optimized(x)])
        items[:] = [x for x in items if not _optimized(x)]

    def place(item):
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return LONGEST.index(path) if path in LONGEST else len(LONGEST)

    items.sort(key=place)


def _optimized(item):
    return item.get_closest_marker("optimized") is not None


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Pictures and trained decoder weights that stand beside the checkout, not inside it."""
    if not SHARED.is_dir():
        pytest.skip("needs the test material in ../shared, which is not here")
    return SHARED


MAPS = Path("/proc/self/maps")
MOST_MAPS = 10_000
"""Linux allows a process 65,530 by default; one training step's program has 3,000."""


@pytest.fixture(scope="module", autouse=True)
def programs_that_are_done_with():
    """Compiled programs go when there are many: past Linux's limit the process would crash."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def _server():
    with serving() as server:
        yield server


@pytest.fixture
def server(_server):
    """A local HTTP server with the faults that real ones have, which serves nothing yet."""
    _server.files.clear()
    _server.asked.clear()
    return _server


@pytest.fixture
def measured(request):
    """Call with a line that states a figure; all of them stand at the end of the test run."""
    return request.config.stash.setdefault(MEASURED, []).append


def pytest_unconfigure():
    if OWN_FOLDER is not None:
        shutil.rmtree(OWN_FOLDER, ignore_errors=True)


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash.get(MEASURED, []):
        terminalreporter.section("measured against the reference")
        for line in lines:
            terminalreporter.line(line)
