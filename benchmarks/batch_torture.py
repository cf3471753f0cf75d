"""A run that is killed again and again: python -m benchmarks.batch_torture [--kills 20]

Small pictures and a small model of random numbers. In turn: eight simulated devices; two processes
with two each; one process, killed with SIGKILL at random moments; a process that reads for it,
killed; a disk that is full (a file system of half a megabyte where the user may mount one, else a
limit on the size of files); one of two processes, killed. Each time the last run has to end with
the bytes of one that nobody disturbed.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from benchmarks.machine import ROOT

SETTINGS = ["--shard-size", "8", "--points-per-side", "3", "--pred-iou-thresh", "0",
            "--stability-score-thresh", "0", "--box-nms-thresh", "1"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=400)
    args = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_model(work / "model")
        write_pictures(work / "in", args.pictures)
        finish(begin(work, work / "alone"))
        expected = contents(work / "alone")
        facts = {"pictures": args.pictures, "files": len(expected)}
        finish(begin(work, work / "eight", devices=8))
        check(work / "eight", expected)
        facts["eight devices"] = "same bytes"
        pair = [begin(work, work / "two", *words, devices=2) for words in together()]
        for process in pair:
            finish(process)
        check(work / "two", expected)
        facts["two processes with two devices each"] = "same bytes"
        facts["killed"] = killed(work, args.kills, expected)
        facts["reading process killed"] = reader_killed(work, expected)
        facts["disk full"] = disk_full(work, expected)
        facts["one of two processes killed"] = one_of_two_killed(work, expected)
    print(json.dumps(facts))


def killed(work: Path, kills: int, expected: dict[str, bytes]) -> str:
    """One time in five while it starts, else soon after a shard has been written."""
    out, at = work / "killed", []

    def done() -> int:
        return len(list((out / "shards").glob("0*")))

    for i in range(kills):
        process, before = begin(work, out), done()
        if i % 5:
            while process.poll() is None and done() == before:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.1))
        else:
            time.sleep(random.uniform(0, 5))
        assert process.poll() is None, "the run had ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        at.append(done())
    finish(begin(work, out))
    check(out, expected)
    return f"{len(at)} times, with {', '.join(map(str, at))} shards done; same bytes"


def reader_killed(work: Path, expected: dict[str, bytes]) -> str:
    process = begin(work, work / "reader", "--workers", "2")
    while not list((work / "reader/shards").glob("0*")):
        time.sleep(0.05)
    readers = [
        child for child in children(process.pid)
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]  # fmt: skip
    os.kill(readers[0], signal.SIGKILL)
    finish(process)
    check(work / "reader", expected)
    return "same bytes"


def disk_full(work: Path, expected: dict[str, bytes]) -> str:
    with small_disk(work / "disk") as (out, limit):
        process = begin(work, out, limit=limit)
        code = process.wait()
        done = len(list((out / "shards").glob("0*")))
        partial = [file for file in (out / "shards").iterdir() if file.name.startswith(".")]
        assert code == 2 and done and not partial, (code, done, partial)
        subprocess.run(["cp", "-a", str(out), str(work / "moved")], check=True)
    finish(begin(work, work / "moved"))
    check(work / "moved", expected)
    return f"ended with exit code {code} after {done} shards; went on elsewhere, same bytes"


def one_of_two_killed(work: Path, expected: dict[str, bytes]) -> str:
    first, second = (begin(work, work / "pair", *words) for words in together())
    while not (work / "pair/shards/00003").exists():
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    finish(first)
    check(work / "pair", expected)
    second.wait()
    return "the other one ended with the same bytes"


def together() -> list[list[str]]:
    """Arguments by which two processes find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        ["--coordinator", address, "--num-processes", "2", "--process-id", str(i),
         "--host-timeout", "8"] for i in (0, 1)
    ]  # fmt: skip


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """A folder that takes half a megabyte; or any, and that files have to be limited."""
    folder.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True
    ).returncode
    try:
        yield folder / "out", not mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def begin(
    work: Path, out: Path, *more: str, limit: bool = False, devices: int = 1
) -> subprocess.Popen[bytes]:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    with (work / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "samjax", "batch", str(work / "in"), str(out), "--model",
             str(work / "model"), *SETTINGS, *more],
            cwd=ROOT, env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=log, stderr=log, preexec_fn=limited if limit else None,
        )  # fmt: skip


def finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise RuntimeError(f"a run ended with exit code {process.returncode}")


def check(out: Path, expected: dict[str, bytes]) -> None:
    found = contents(out)
    if different := {n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)}:
        raise RuntimeError(f"{out.name}: other bytes in {sorted(different)[:5]}")


def contents(out: Path) -> dict[str, bytes]:
    """But for what is about the way that the run took."""
    return {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file() and file.relative_to(out).parts[0] not in ("log", "report.html")
    }


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def write_model(folder: Path) -> None:
    from samjax.checkpoint import Model, save_checkpoint
    from samjax.models import SamConfig
    from samjax.models.architecture import abstract_params
    from samjax.models.params import flatten, unflatten

    config = SamConfig.tiny(64)
    rng = np.random.default_rng(0)
    leaves = flatten(abstract_params(config))
    arrays = {
        n: jnp.asarray(0.2 * rng.standard_normal(x.shape, np.float32)) for n, x in leaves.items()
    }
    save_checkpoint(folder, Model(unflatten(arrays), config))


def write_pictures(folder: Path, number: int) -> None:
    from samjax.images import write_image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(number):
        image = rng.integers(0, 60, (48, 64, 3), np.uint8)
        y, x = rng.integers(0, 24, 2)
        image[y : y + 20, x : x + 25] = rng.integers(100, 255, 3)
        write_image(folder / f"{i:05d}.png", image)


if __name__ == "__main__":
    main()
