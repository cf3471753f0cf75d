"""One process at a time: a lock on a file, which goes when its process does."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_POLL_SECONDS = 0.1


@contextlib.contextmanager
def locked(path: Path, *, when_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock while the block runs; waits, after `when_waiting`, while another has it.

    The file is made and stays. On a file system without locks nobody waits. Raises `OSError` where
    the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        told = False
        while not _try(file):
            if not told:
                when_waiting()
                told = True
            time.sleep(_POLL_SECONDS)
        yield


def _try(file: IO[bytes]) -> bool:
    if os.name == "nt":
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # such as a network file system that has no locks
        return True
    return True
