"""Devices that take the next pictures whenever they are free.

Each device, or each mesh of devices that share the weights, has threads of its own and a copy of
the model. No device waits for another: there is nothing that they would have to agree on. So what
is computed for a picture is the same on one device and on many.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from samjax.batch.plan import Shard
from samjax.batch.reading import Read
from samjax.batch.tasks import Outcome, Task, outcomes
from samjax.model import Model

WEIGHTS = ("replicated", "sharded")


class Stopped(Exception):
    """Somebody has ended the work."""


class Feed:
    """Hands out the pictures of shards, a group at a time, to whoever asks.

    Groups are of `size` pictures that follow each other in one shard, so that they are the same
    ones whoever takes them. No more than `most_open` shards are begun and not yet written. A
    picture that could not be read goes to `failed` instead.
    """

    def __init__(
        self, shards: Sequence[Shard], reads: Iterator[Read], size: int, most_open: int,
        failed: "queue.SimpleQueue[Any]",
    ):  # fmt: skip
        self._groups = self._of(shards, size)
        self._reads, self._failed = reads, failed
        self._slots = threading.BoundedSemaphore(most_open)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.waited = 0.0

    def groups(self) -> Iterator[list[Read]]:
        """For one thread of one device."""
        while True:
            started = time.monotonic()
            with self._lock:
                self.waited += time.monotonic() - started
                group = next(self._groups, None)
            if group is None:
                return
            if group:
                yield group

    def written(self) -> None:
        """A shard is on disk, and another may be begun."""
        self._slots.release()

    def stop(self) -> None:
        self._stop.set()

    def _of(self, shards: Sequence[Shard], size: int) -> Iterator[list[Read]]:
        for shard in shards:
            while not self._slots.acquire(timeout=0.2):
                if self._stop.is_set():
                    return
            for start in range(0, len(shard.items), size):
                group = []
                for _ in shard.items[start : start + size]:
                    if self._stop.is_set():
                        return
                    began = time.monotonic()
                    read = next(self._reads)
                    self.waited += time.monotonic() - began
                    if read.error is None:
                        group.append(read)
                    else:
                        self._failed.put((read, ValueError(read.error)))
                yield group


def places(weights: str, threads: int) -> list[Any]:
    """Where copies of the model go, a sharding for each thread that works: this host's devices, one
    by one; or all of them together, each with a part of the weights."""
    devices = jax.local_devices()
    if weights == "replicated" or len(devices) == 1:
        return [SingleDeviceSharding(device) for device in devices] * threads
    mesh = Mesh(devices, ("weights",))

    def cut(name: str, shape: tuple[int, ...]) -> NamedSharding:
        """Along the longest axis that can be."""
        axes = sorted(range(len(shape)), key=lambda axis: -shape[axis])
        for axis in axes:
            if shape[axis] % len(devices) == 0 and name.startswith("image_encoder."):
                spec = PartitionSpec(*[None] * axis, "weights")
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, PartitionSpec())

    return [cut]


@contextlib.contextmanager
def working(
    task: Task, model: Model, where: Sequence[Any], feed: Feed, results: "queue.SimpleQueue[Any]"
) -> Iterator[None]:
    """Threads that put `Outcome`s into `results`, and an exception that ends it all, while the
    block runs; None from each at its end."""
    copies: dict[Any, Model] = {}
    for place in where:
        if place not in copies:
            copies[place] = model.place(place)
    threads = [
        threading.Thread(
            target=_work, args=(task, copies[place], place, feed, results),
            name=f"samjax-device-{i}", daemon=True,
        )
        for i, place in enumerate(where)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        feed.stop()
        for thread in threads:
            thread.join()


def _work(
    task: Task, model: Model, place: Any, feed: Feed, results: "queue.SimpleQueue[Any]"
) -> None:
    try:
        device = next(iter(place.device_set)) if isinstance(place, SingleDeviceSharding) else None
        with jax.default_device(device) if device is not None else contextlib.nullcontext():
            outcome: Outcome
            for outcome in outcomes(task, model, feed.groups()):
                results.put(outcome)
    except BaseException as error:
        results.put(error)
    else:
        results.put(None)
