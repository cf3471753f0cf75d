"""Iterators that begin the next item while one is in use."""

import functools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_END: Any = object()


class OneAhead(Generic[T]):
    """The same items, the next one made on a thread of its own while one is in use.

    Never more than one is waiting. What `items` raise is raised in its turn. `close` has to be
    called: it calls `stop`, which may have the item that is being made end early, waits for that,
    closes `items`, and ends the thread.
    """

    def __init__(
        self, items: Generator[T, None, None], *, stop: Callable[[], object] = lambda: None
    ):
        self._items = items
        self._stop = stop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="samjax-ahead")
        self._upcoming = self._thread.submit(next, items, _END)

    @property
    def ready(self) -> bool:
        """Whether the next item, or the end, is there without waiting."""
        return self._upcoming.done()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._upcoming.result()
        if item is _END:
            raise StopIteration
        self._upcoming = self._thread.submit(next, self._items, _END)
        return item

    def close(self) -> None:
        self._stop()
        self._thread.shutdown(cancel_futures=True)
        self._items.close()


class BegunEarly(Generic[T]):
    """The same items; `begin` makes the next one before its turn, on the same thread.

    For items that are promises: JAX's arrays, which are there before they are computed.
    """

    def __init__(self, items: Iterator[T]):
        self._items = items
        self._begun: list[Callable[[], T]] = []

    def begin(self) -> bool:
        """Whether there is a next one. What the items raise waits for its turn."""
        if not self._begun:
            self._begun.append(self._make())
        return self._begun[0] is not _stop

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self.begin()
        return self._begun.pop()()

    def _make(self) -> Callable[[], T]:
        try:
            item = next(self._items)
        except StopIteration:
            return _stop
        except Exception as error:
            return functools.partial(_raise, error)
        return lambda: item


def _stop() -> Any:
    raise StopIteration


def _raise(error: Exception) -> Any:
    raise error
