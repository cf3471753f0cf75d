"""What JAX compiles and how long it takes, told as it happens (`jax.monitoring`)."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
FROM_CACHE = "/jax/compilation_cache/cache_hits"

MOST_ARGUMENTS = 8
"""Arguments that are shown: the last ones. Before them come the model's parameters."""

_LOGGER = logging.getLogger("jax._src.interpreters.pxla")
"""Where JAX names the shapes before it compiles, which its events do not."""


class Compiled(NamedTuple):
    """A program: the function's name, types and shapes of its arguments, the seconds that it took
    to compile or to read, and whether it came from the compilation cache on disk."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    from_cache: bool

    def __str__(self) -> str:
        more = len(self.arguments) - MOST_ARGUMENTS
        shown = ([f"{more} more"] if more > 0 else []) + list(self.arguments[-MOST_ARGUMENTS:])
        how = "from the cache" if self.from_cache else "compiled"
        return f"{how} in {self.seconds:.2f} s: {self.name}({', '.join(shown)})"


@contextlib.contextmanager
def compiles_reported(report: Callable[[Compiled], object]) -> Iterator[None]:
    """Calls `report` for each program that is compiled while the block runs, on any thread.

    Called on the thread that compiled. Tracing is not among the seconds. Where a JAX of another
    version does not log the arguments as 0.10 does, there are none.
    """
    here = threading.local()

    def on_event(event: str, **_: str | int) -> None:
        if event == FROM_CACHE:
            here.from_cache = True

    def on_duration(event: str, duration_secs: float, **about: str | int) -> None:
        if event == COMPILED:
            arguments, from_cache = vars(here).pop("arguments", ()), "from_cache" in vars(here)
            vars(here).clear()
            name = _plain(str(about.get("fun_name", "")))
            report(Compiled(name, arguments, duration_secs, from_cache))

    def arguments(record: logging.LogRecord) -> bool:
        """Takes what is logged for this alone, and lets the rest pass."""
        if not str(record.msg).startswith("Compiling"):
            return record.levelno >= level
        if isinstance(record.args, tuple) and len(record.args) > 1:
            here.arguments = tuple(str(argument) for argument in record.args[1])  # type: ignore[attr-defined]
        return record.levelno >= level

    level, own_level = _LOGGER.getEffectiveLevel(), _LOGGER.level
    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    _LOGGER.addFilter(arguments)
    _LOGGER.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _LOGGER.setLevel(own_level)
        _LOGGER.removeFilter(arguments)
        jax.monitoring.unregister_event_duration_listener(on_duration)
        jax.monitoring.unregister_event_listener(on_event)


def _plain(name: str) -> str:
    """ "jit(decode)" and "jit__decode" are "decode"."""
    name = name.removeprefix("jit").removeprefix("(").removesuffix(")")
    return name.lstrip("_") or "?"
