"""Iterators that begin the next item while one is in use."""

import functools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_END: Any = object()


def one_ahead(
    items: Iterator[T], *, stop: Callable[[], None] | None = None
) -> Generator[T, None, None]:
    """The same items, the next one made on a thread of its own while one is in use.

    Never more than one is waiting. What `items` raises is raised in its turn. When the iterator is
    closed, `stop` is called first, to have the item that is being made end early; then the thread
    ends, and `items` are closed where they are a generator.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="samjax-ahead") as thread:
        upcoming = thread.submit(next, items, _END)
        try:
            while (item := upcoming.result()) is not _END:
                upcoming = thread.submit(next, items, _END)
                yield item
        finally:
            if stop is not None:
                stop()
            thread.submit(getattr(items, "close", lambda: None))


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

    def __iter__(self) -> "BegunEarly[T]":
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
