"""What JAX's profiler says of programs on the CPU."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def traced(folder: Path) -> Iterator[None]:
    """Writes a trace of what is computed meanwhile, without Python's calls."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        yield


def operations(folder: Path) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """For each thread the events of programs' operations, each with its statistics."""
    import jax

    (file,) = folder.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            events = [(event, dict(event.stats)) for event in line.events]
            yield [(event, stats) for event, stats in events if "run_id" in stats]
