"""Pictures read and decoded ahead of the devices, by grain: in threads or worker processes."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from samjax.batch.items import Item, read_item
from samjax.failures import reason

_log = logging.getLogger("samjax")

RESTARTS = 5
"""Times that workers which have died are started again in one run."""


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
        stream = iter(_pipeline(list(enumerate(items))[done:], workers, threads, ahead))
        try:
            for read in stream:
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


def _pipeline(
    numbered: list[tuple[int, Item]], workers: int, threads: int, ahead: int
) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    source: Any = numbered
    dataset = grain.MapDataset.source(source).map(_Load()).to_iter_dataset(options)
    if not workers:
        return dataset
    return dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
    )
