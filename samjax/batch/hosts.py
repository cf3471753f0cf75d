"""Which of several processes this is, and how the others are doing.

JAX's distributed runtime says who is who, and is left again before the first picture: no array
ever goes from one host to another, and within the runtime the end of one host would be the end of
all. From then on processes see each other through small files in OUTPUT/log, which change as long
as their process lives.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from samjax.batch.plan import LOG
from samjax.images import write_json

SESSION = "session.json"
BEAT = 2.0
"""Seconds between two signs of life."""


class Host(NamedTuple):
    """This process, one of `number`, counted from 0."""

    rank: int
    number: int


class Counts(NamedTuple):
    """What a process has done in this session; `waited` are seconds, of `seconds` altogether, in
    which a device waited for a picture, in the mean of its devices."""

    pictures: int = 0
    masks: int = 0
    errors: int = 0
    waited: float = 0.0
    seconds: float = 0.0
    state: str = "working"


def begin_session(folder: Path) -> None:
    """Tells all processes that a new session begins; process 0 does so."""
    write_json(folder / LOG / SESSION, {"session": _session(folder) + 1})


class Signs:
    """Writes this process's signs of life, and reads those of the others."""

    def __init__(self, folder: Path, host: Host, timeout: float):
        self.host = host
        self.timeout = timeout
        self.counts = Counts()
        self._folder = folder / LOG / f"session-{_session(folder)}"
        self._folder.mkdir(exist_ok=True)
        self._started = time.monotonic()
        self._seen: dict[int, tuple[str, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="samjax-signs", daemon=True)
        self._lock = threading.Lock()

    def __enter__(self) -> "Signs":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.update(state="done" if kind is None else "failed")
        self._write()

    def update(self, **changes: Any) -> None:
        with self._lock:
            seconds = time.monotonic() - self._started
            self.counts = self.counts._replace(seconds=seconds, **changes)

    def all(self) -> dict[int, Counts]:
        """Of every process that has given a sign in this session."""
        found = {}
        for index in range(self.host.number):
            if (content := self._read(index)) is not None:
                found[index] = Counts(**json.loads(content)["counts"])
        return found

    def gone(self, index: int) -> bool:
        """Whether a process has ended, or given no sign for the timeout."""
        if index == self.host.rank:
            return False
        content = self._read(index)
        if content is not None and json.loads(content)["counts"]["state"] != "working":
            return True
        now = time.monotonic()
        last, since = self._seen.get(index, (None, self._started))
        if content is not None and content != last:
            self._seen[index] = (content, now)
            return False
        return now - since > self.timeout

    def _read(self, index: int) -> str | None:
        try:
            text = (self._folder / f"process-{index}.json").read_text()
            json.loads(text)
        except (OSError, ValueError):
            return None
        return text

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            self.update()
            self._write()

    def _write(self) -> None:
        try:
            write_json(
                self._folder / f"process-{self.host.rank}.json",
                {"time": time.time(), "counts": self.counts._asdict()},
            )
            with (self._folder / f"process-{self.host.rank}.metrics.jsonl").open("a") as file:
                file.write(json.dumps({"time": time.time(), **self.counts._asdict()}) + "\n")
        except OSError:
            pass  # a full disk is told of by the shard that cannot be written


def _session(folder: Path) -> int:
    try:
        return int(json.loads((folder / LOG / SESSION).read_text())["session"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
