"""Pictures read and decoded ahead of the devices, by grain: in threads or worker processes."""

import contextlib
import logging
import multiprocessing
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from samjax.batch.items import Item, read_item
from samjax.failures import reason
from samjax.grain_workers import end_with_parent, let_grain_read_its_flags

try:
    import grain
except ImportError as error:
    raise ImportError('samjax.batch needs grain: pip install "samjax[batch]"') from error

_log = logging.getLogger("samjax")

RESTARTS = 5
"""Times that workers which have died are started again in one run."""
PATIENCE = 12
"""Seconds that are waited for grain to notice that a worker has died."""

_END: Any = object()


class Read(NamedTuple):
    """A picture (H, W, 3) uint8, or what went wrong. `number` is its place in the order asked."""

    number: int
    item: Item
    image: np.ndarray | None
    error: str | None


class _Load:
    """Of a numbered item; what a worker process runs."""

    def __call__(self, numbered: tuple[int, Item]) -> Read:
        number, item = numbered
        try:
            return Read(number, Item(*item), read_item(Item(*item)), None)
        except Exception as error:
            return Read(number, Item(*item), None, reason(item[1], error))


def read_all(
    items: Sequence[Item], *, workers: int = 0, threads: int = 2, ahead: int = 4
) -> Iterator[Read]:
    """Every picture in order, `ahead` of them in memory beyond the one in use (with `workers`, so
    many for each). Worker processes that die are replaced, `RESTARTS` times."""
    done, restarts = 0, 0
    while done < len(items):
        stream = _pipeline(list(enumerate(items))[done:], workers, threads, ahead)
        try:
            for read in _watched(stream) if workers else stream:
                yield read
                done += 1
        except Exception as error:
            if not workers or restarts == RESTARTS:
                raise
            restarts += 1
            _log.warning(
                "samjax: a process that reads pictures has died (%s); started again, %d of %d",
                error, restarts, RESTARTS,
            )  # fmt: skip


def _watched(dataset: grain.IterDataset) -> Iterator[Read]:
    """The same items; raises `RuntimeError` where a worker has died and nothing comes any more.

    grain says so itself, unless the worker dies while it hands something over: then it would wait
    for ever for the rest of that.
    """
    before = set(multiprocessing.active_children())
    workers: set[Any] = set()
    arrived: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(1)
    stop = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                arrived.put((item, error), timeout=0.5)
                return True
        return False

    def pump() -> None:
        try:
            for item in dataset:
                if not put(item):
                    return
            put(_END)
        except Exception as error:
            put(None, error)

    threading.Thread(target=pump, name="samjax-read", daemon=True).start()
    waited = 0
    try:
        while True:
            workers |= set(multiprocessing.active_children()) - before
            try:
                item, error = arrived.get(timeout=1.0)
            except queue.Empty:
                dead = any(worker.exitcode not in (None, 0) for worker in workers)
                waited = waited + 1 if dead else 0
                if waited < PATIENCE:
                    continue
                raise RuntimeError("it ended while it handed over a picture") from None
            waited = 0
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        for worker in workers:
            if worker.is_alive():
                worker.kill()


def _pipeline(
    numbered: list[tuple[int, Item]], workers: int, threads: int, ahead: int
) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
    source: Any = numbered
    dataset = grain.MapDataset.source(source).map(_Load()).to_iter_dataset(options)
    if not workers:
        return dataset
    let_grain_read_its_flags()
    return dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead),
        worker_init_fn=end_with_parent,
    )
