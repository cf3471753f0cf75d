"""Iterators that run ahead: order, how far, errors, and how they end."""

import threading

import pytest

from samjax.everything.ahead import BegunEarly, OneAhead


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "samjax" in thread.name}


def counted(made: list[int], number: int, error: Exception | None = None):
    for i in range(number):
        made.append(i)
        yield i
    if error is not None:
        raise error


def test_one_ahead_and_no_further():
    made: list[int] = []
    items = OneAhead(counted(made, 5))
    for i in range(5):
        assert next(items) == i
        items._upcoming.result()
        assert items.ready and made == list(range(min(i + 2, 5)))
    with pytest.raises(StopIteration):
        next(items)
    items.close()
    assert not threads()


def test_an_error_has_its_turn():
    items = OneAhead(counted([], 1, KeyError("bad")))
    assert next(items) == 0
    with pytest.raises(KeyError, match="bad"):
        next(items)
    items.close()
    assert not threads()


def test_closing_stops_what_is_being_made_and_closes_the_source():
    stop, begun, closed = threading.Event(), threading.Event(), []

    def slow():
        try:
            yield 0
            begun.set()
            assert stop.wait(60)
            yield 1
        finally:
            closed.append(threading.current_thread().name)

    items = OneAhead(slow(), stop=stop.set)
    assert next(items) == 0
    assert begun.wait(60) and not items.ready
    items.close()
    assert closed and not threads()


def test_begun_early():
    made: list[int] = []
    items = BegunEarly(counted(made, 2, KeyError("bad")))
    assert made == []
    assert items.begin() and items.begin()
    assert made == [0]
    assert next(items) == 0 and next(items) == 1
    assert items.begin()  # an error, for which it is not yet time
    with pytest.raises(KeyError, match="bad"):
        next(items)
    assert not items.begin()
    with pytest.raises(StopIteration):
        next(items)
