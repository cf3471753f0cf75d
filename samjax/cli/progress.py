"""A sign of life for work that is one long call and has no steps to count."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

DELAY = 2.0
"""Seconds after which it shows, as with the progress bars."""


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows `text` and the seconds that have passed on stderr while the block runs.

    Appears after `DELAY` and is wiped out at the end; nothing where stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    ticker = threading.Thread(target=_tick, args=(text, done), daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()


def _tick(text: str, done: threading.Event) -> None:
    started = time.monotonic()
    wait, line = DELAY, ""
    while not done.wait(wait):
        line = f"{text} ... {time.monotonic() - started:.0f} s"
        print(f"\r{line}", end="", file=sys.stderr, flush=True)
        wait = 1.0
    if line:
        print(f"\r{' ' * len(line)}\r", end="", file=sys.stderr, flush=True)
