"""Results of pictures by shard, until a shard is complete."""

import bisect
from collections.abc import Sequence
from typing import Any

from samjax.batch.plan import Shard
from samjax.batch.shards import Result


class Collected:
    """Pictures are counted through all shards; each gets its result, or the reason of a failure."""

    def __init__(self, shards: Sequence[Shard]):
        self._shards = shards
        self._starts: list[int] = []
        start = 0
        for shard in shards:
            self._starts.append(start)
            start += len(shard.items)
        self._total = start
        self._count = 0
        self.results: dict[int, list[Any]] = {}
        self._missing = {shard.number: len(shard.items) for shard in shards}

    @property
    def complete(self) -> bool:
        return self._count == self._total

    def where(self, number: int) -> tuple[Shard, int]:
        """The shard of the n-th picture, and its place there."""
        i = bisect.bisect_right(self._starts, number) - 1
        return self._shards[i], number - self._starts[i]

    def put(self, shard: Shard, place: int, one: Result | str) -> Shard | None:
        """The shard, if that is complete now; `results` has it under its number."""
        row = self.results.setdefault(shard.number, [None] * len(shard.items))
        assert row[place] is None, (shard.number, place)
        row[place] = one
        self._count += 1
        self._missing[shard.number] -= 1
        return shard if self._missing[shard.number] == 0 else None
