"""Runs contenders in turn, each in a process of its own, and appends what they took to a CSV file.

A question is a file that, as a program, calls `compare`, and that starts itself again with
`--worker NAME` to become one contender, which calls `serve`. The parent imports neither jax nor
torch. It and a worker speak in lines: the parent sends "run" or a JSON string with a path to save
to, the worker answers each with one JSON object.
"""

import csv
import dataclasses
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from benchmarks import XLA_FLAGS
from benchmarks.machine import ROOT, commit, hardware, versions

RESULTS = Path(__file__).parent / "results"
KEEP_MEMORY = (
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=9223372036854775807"
    ":glibc.malloc.top_pad=536870912"
)
"""Makes glibc keep freed memory; otherwise each call faults in all its pages again."""

Malloc = Literal["own", "keep", "default"]
T = TypeVar("T")


@dataclasses.dataclass
class Measurement:
    """What one contender took; times are in seconds, and `seconds` holds one for each repeat."""

    contender: str
    seconds: list[float]
    first_seconds: float
    peak_mib: float
    accelerator: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    """Of the contender's own environment."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def compile_seconds(self) -> float:
        """By how much the first call was slower than the later ones."""
        return max(0.0, self.first_seconds - self.median)


def compare(
    commands: Mapping[str, Sequence[str]],
    *,
    repeats: int,
    warmup: int = 1,
    malloc: Malloc = "keep",
    save_to: Path | None = None,
    cold: bool = True,
) -> list[Measurement]:
    """Starts each command, then times them in turn: A B A B, so that noise meets all of them.

    The first call and `warmup` more are not among the times; without `cold` the first is, because
    the contenders have compiled what they need before they are ready. With `save_to` each writes
    its last result to `save_to / name`. Raises `ValueError` for fewer than one repeat, and
    `RuntimeError` if a contender fails.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats is {repeats}, warmup {warmup}; at least 1 and 0 are needed.")
    workers: dict[str, _Worker] = {}
    try:
        for name, command in commands.items():
            workers[name] = _Worker(name, command, malloc)
        first = {name: worker.run() for name, worker in workers.items()} if cold else {}
        for _ in range(warmup):
            for worker in workers.values():
                worker.run()
        times: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(repeats):
            for name, worker in workers.items():
                times[name].append(worker.run())
        if save_to is not None:
            for name, worker in workers.items():
                worker.ask(json.dumps(str(save_to / name)))
        return [
            Measurement(
                name,
                times[name],
                first.get(name, 0.0),
                worker.peak_mib,
                worker.accelerator,
                versions=worker.versions,
            )  # fmt: skip
            for name, worker in workers.items()
        ]
    finally:
        for worker in workers.values():
            worker.stop()


def serve(
    prepare: Callable[[], Callable[[], T]], save: Callable[[T, Path], None] | None = None
) -> None:
    """Becomes a contender: prepares, then does the work each time the parent asks.

    The work may return JAX arrays; it is over when they are there.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    work = prepare()
    answer(accelerator=_accelerator(), versions=versions())
    result: Any = None
    for line in sys.stdin:
        if line.strip() == "run":
            result = None  # its memory does not count twice
            start = time.perf_counter()
            result = _wait_for(work())
            answer(seconds=time.perf_counter() - start, peak_mib=peak_mib())
        else:
            if save is not None:
                save(result, Path(json.loads(line)))
            answer()


def record(
    question: str,
    size: str,
    measurements: Sequence[Measurement],
    *,
    malloc: Malloc = "keep",
    folder: Path = RESULTS,
) -> Path:
    """Appends a row for each measurement to `folder / question.csv`, and prints them.

    Columns that are new are added to the file, empty in the rows that it has. Raises `ValueError`
    when it has others that this benchmark does not write.
    """
    rows = [
        {
            "question": question,
            "contender": m.contender,
            "size": size,
            "median_s": f"{m.median:.5g}",
            "min_s": f"{min(m.seconds):.5g}",
            "max_s": f"{max(m.seconds):.5g}",
            "repeats": len(m.seconds),
            "compile_s": f"{m.compile_seconds:.4g}",
            "peak_mib": f"{m.peak_mib:.0f}",
            **m.facts,
            **m.versions,
            **hardware(),
            "accelerator": m.accelerator,
            "malloc": malloc,
            "xla_flags": XLA_FLAGS,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "commit": commit(),
        }
        for m in measurements
    ]
    path = folder / f"{question}.csv"
    _append(path, rows)
    _print_table(f"{question}, {size}", measurements)
    return path


class _Worker:
    """A contender's process, from the parent's side."""

    def __init__(self, name: str, command: Sequence[str], malloc: Malloc):
        env = dict(os.environ)
        if malloc == "keep":
            env["GLIBC_TUNABLES"] = KEEP_MEMORY
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT
        )
        self.peak_mib = 0.0
        hello = self._answer()
        self.accelerator, self.versions = hello["accelerator"], hello["versions"]

    def run(self) -> float:
        answer = self.ask("run")
        self.peak_mib = answer["peak_mib"]
        return answer["seconds"]

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and reading the answer says so
        return self._answer()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise RuntimeError(
                f"contender {self.name!r} ended with status {status} before it answered; "
                "what it printed stands above."
            )
        return json.loads(line)


def _wait_for(result: Any) -> Any:
    """JAX returns before the work is done, and so does torch on a GPU."""
    if "jax" in sys.modules:
        result = sys.modules["jax"].block_until_ready(result)
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.synchronize()
    return result


def peak_mib() -> float:
    """The most memory this process ever held.

    Read from Linux's own record, because `ru_maxrss` starts with the parent's size.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _accelerator() -> str:
    """What this worker computes on: empty for the processor."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return sys.modules["torch"].cuda.get_device_name()
    if "jax" in sys.modules:
        device = sys.modules["jax"].devices()[0]
        return "" if device.platform == "cpu" else device.device_kind
    return ""


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    older: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            older = list(reader)
            unknown = sorted(set(reader.fieldnames or ()) - set(columns))
        if unknown:
            raise ValueError(
                f"{path} has other columns than this benchmark writes: {unknown}, which it does "
                f"not, beside {columns}; rename the file and run again."
            )
    whole = path.with_suffix(".partial")
    with whole.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*older, *rows])
    whole.replace(path)


def _print_table(title: str, measurements: Sequence[Measurement]) -> None:
    print(f"{title}: seconds, and peak memory in MiB")
    slowest = max(m.median for m in measurements)
    for m in measurements:
        facts = "".join(f", {name} {value}" for name, value in m.facts.items() if value != "")
        print(
            f"  {m.contender:12} {m.median:9.3f} ({min(m.seconds):.3f} to {max(m.seconds):.3f}), "
            f"{slowest / m.median:5.2f}x, first call +{m.compile_seconds:.2f}, "
            f"peak {m.peak_mib:.0f}{facts}"
        )
