"""`run`: from a collection of pictures to an output folder, on all devices of all hosts."""

import logging
import os
import queue
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from samjax.batch.bar import bar
from samjax.batch.collected import Collected
from samjax.batch.devices import WEIGHTS, Feed, places, working
from samjax.batch.finish import finish
from samjax.batch.hosts import Host, Signs, begin_session
from samjax.batch.items import Problem, Source, list_items
from samjax.batch.plan import LOG, SHARDS, Shard, extend_plan, open_folder, read_plan
from samjax.batch.prompt_files import PromptFile
from samjax.batch.reading import Read, read_all
from samjax.batch.shards import FORMATS, Result, read_manifest, write_shard
from samjax.batch.tasks import MODES, Task, drawn
from samjax.checkpoint import Model, load
from samjax.failures import FAILURES, reason
from samjax.locking import locked
from samjax.models.config import Precision
from samjax.models.params import fingerprint, flatten
from samjax.processes import join, leave

_log = logging.getLogger("samjax")

LONGEST_LISTING = 3600
"""Seconds that processes wait for the first one to list the pictures."""
WRITE_PAUSES = (1.0, 4.0, 15.0)
"""Seconds before each new try to write a shard that could not be written."""
SAMPLES = 2
"""Pictures of each shard that are drawn for the report."""


class Summary(NamedTuple):
    """What is in `folder` now, `done_now` of its pictures by this process. `errors` have key, path
    and reason."""

    folder: Path
    pictures: int
    masks: int
    done_now: int
    errors: list[dict[str, Any]]


def run(
    source: Source | Sequence[Source],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Model | None = None,
    mode: str = "everything",
    prompts: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("sa1b", "coco"),
    overlays: bool = False,
    precision: Precision | None = None,
    weights: str = "replicated",
    batch: int | None = None,
    shard_size: int = 64,
    workers: int = 0,
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    host_timeout: float = 60.0,
    retry_errors: bool = False,
    new_output: bool = False,
    progress: bool = True,
    **generator: Any,
) -> Summary:
    """Segments all pictures of `source` into the folder `output`; goes on where it was stopped.

    Args:
      source: what `samjax.batch.items.list_items` takes: folders, globs, lists, tars in
        WebDataset's form, ArrayRecord files, also in buckets.
      output: a folder that all processes see (`samjax.batch.plan` and `.shards` say what is in it).
      model: what `samjax.load` takes or returns; without one the package's own, nano.
      mode: "everything", "boxes", "points" or "embeddings".
      prompts: a COCO or Parquet file for "boxes" and "points" (`samjax.batch.prompt_files`).
      formats: of "sa1b", "coco", "parquet".
      overlays: write each picture with its masks drawn over it.
      precision: what the model computes in, if it is to be another than the file's
        (`samjax.load`).
      weights: "replicated" on each device, or "sharded" over all devices of the host.
      batch: pictures that go through the model together, but in mode "everything"; by default 1 on
        the CPU and 8 elsewhere.
      shard_size: pictures in a shard, which is what a stopped run may have to do again.
      workers: processes that read pictures, beside this one; with 0 its threads do.
      distributed: meet other processes first, by `jax.distributed.initialize`, whose arguments are
        `coordinator`, `num_processes` and `process_id`. Each does its share of the shards, and in
        the end those of processes that have given no sign for `host_timeout` seconds.
      retry_errors: do shards again in which pictures could not be done.
      new_output: where `output` is of other settings, take `output`2 and so on.
      progress: show a bar (process 0 does, for all).
      generator: for mode "everything", arguments of `SamAutomaticMaskGenerator`.

    A picture that cannot be done is in errors.csv with the reason, and the rest is done. Raises
    `ValueError` and `FileNotFoundError` for what cannot be begun, `FileExistsError` for an output
    that is not ours, and `OSError` where a shard could not be written after several tries: all
    shards before it are whole, and the next run goes on there.
    """
    _check(mode, prompts, formats, weights, shard_size, generator)
    asked = PromptFile(Path(prompts), mode) if prompts is not None else None
    host = Host(0, 1)
    if distributed:
        join(coordinator, num_processes, process_id, parting_timeout=LONGEST_LISTING)
        host = Host(jax.process_index(), jax.process_count())
    loaded = model if isinstance(model, Model) else load(model)
    if precision is not None:
        loaded = loaded.at_precision(precision)
    size = batch or (1 if jax.local_devices()[0].platform == "cpu" else 8)
    if mode == "everything":
        size = 1
    settings = {
        "mode": mode, "model_sha256": _model_digest(loaded), "formats": sorted(formats),
        "overlays": overlays, "batch": size, "shard_size": shard_size,
        "prompts_sha256": None if asked is None else asked.digest, "weights": weights,
        **{name: value for name, value in sorted(generator.items())},
    }  # fmt: skip
    problems: list[Problem] = []
    folder = Path(output)
    if host.rank == 0:
        folder = open_folder(folder, settings, new_output=new_output)
        problems = extend_plan(folder, list_items(source, output=folder), shard_size)
        begin_session(folder)
    if distributed:
        leave()
    if host.rank:
        folder = open_folder(folder, settings, new_output=new_output)
    task = Task(mode, dict(generator), asked, size, overlays)
    alone = locked(folder / LOG / f".lock-{host.rank}", when_waiting=lambda: _tell(folder))
    with alone, Signs(folder, host, host_timeout) as signs:
        job = _Job(folder, task, loaded, formats, weights, workers, signs, retry_errors)
        with bar(job.total, job.earlier, signs, shown=progress and host.rank == 0):
            job.do_all()
        return job.summary(problems)


def _check(
    mode: str, prompts: Any, formats: Sequence[str], weights: str, shard_size: int,
    generator: dict[str, Any],
) -> None:  # fmt: skip
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; use one of {MODES}.")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"formats has {unknown[0]!r}; use some of {FORMATS}.")
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}; use one of {WEIGHTS}.")
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; a shard has at least 1 picture.")
    if (prompts is not None) != (mode in ("boxes", "points")):
        wants = "needs a file of prompts" if prompts is None else "takes no file of prompts"
        raise ValueError(f"mode {mode!r} {wants} (--prompts, prompts=).")
    if generator and mode != "everything":
        raise ValueError(f"{', '.join(generator)}: for mode 'everything' alone, not {mode!r}.")
    if "parquet" in formats:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ImportError(
                'the format "parquet" needs pyarrow: pip install "samjax[batch]"'
            ) from error


class _Job:
    """One process's part."""

    def __init__(
        self, folder: Path, task: Task, model: Model, formats: Sequence[str], weights: str,
        workers: int, signs: Signs, retry_errors: bool,
    ):  # fmt: skip
        self.folder, self.task, self.model, self.formats = folder, task, model, tuple(formats)
        self.workers, self.signs = workers, signs
        self.where = places(weights, 1 if jax.local_devices()[0].platform == "cpu" else 2)
        self.shards = list(read_plan(folder))
        self.disk_failed = False
        self.done: set[int] = set()
        for shard in self.shards:
            manifest = read_manifest(folder, shard)
            if manifest is not None and not (retry_errors and manifest.errors):
                self.done.add(shard.number)
        self.total = sum(len(shard.items) for shard in self.shards)
        self.earlier = sum(len(self.shards[number].items) for number in self.done)

    def do_all(self) -> None:
        """This process's shards, then those of processes that are gone, until all are done: any of
        them may go while it is the last one at work."""
        host = self.signs.host
        mine = [s for s in self.shards if s.number % host.number == host.rank]
        for shard in mine:
            if shard.number not in self.done:
                _remove_partial(self.folder, shard)
        self._do([shard for shard in mine if shard.number not in self.done])
        while left := self._left():
            gone = {i for i in range(host.number) if i != host.rank and self.signs.gone(i)}
            orphans = [shard for shard in left if shard.number % host.number in gone]
            alive = [i for i in range(host.number) if i not in gone]
            place = alive.index(host.rank)
            if share := [s for i, s in enumerate(orphans) if i % len(alive) == place]:
                _log.warning("samjax: doing %d shards of processes that have ended", len(share))
                self._do(share)
            else:
                time.sleep(max(0.5, len(left) / 1000))

    def summary(self, problems: Sequence[Problem]) -> Summary:
        """The first process alive writes what is about all shards."""
        host = self.signs.host
        first = min(i for i in range(host.number) if i == host.rank or not self.signs.gone(i))
        totals = finish(
            self.folder, self.shards, problems, self.task, self.formats,
            self.signs.all(), write=host.rank == first,
        )  # fmt: skip
        done_now = self.signs.counts.pictures
        return Summary(self.folder, totals.pictures, totals.masks, done_now, totals.errors)

    def _left(self) -> list[Shard]:
        """What nobody has done."""
        for shard in self.shards:
            if shard.number not in self.done and read_manifest(self.folder, shard) is not None:
                self.done.add(shard.number)
        return [shard for shard in self.shards if shard.number not in self.done]

    def _do(self, shards: Sequence[Shard]) -> None:
        if not shards:
            return
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threads = max(2, min(16, 2 * len(self.where)))
        ahead = max(4, 2 * len(self.where) * self.task.batch)
        items = [item for shard in shards for item in shard.items]
        reads = read_all(items, workers=self.workers, threads=threads, ahead=ahead)
        most_open = 2 + -(-2 * len(self.where) * self.task.batch // len(shards[0].items))
        feed = Feed(shards, reads, self.task.batch, most_open, results)
        collected = Collected(shards)
        before = self.signs.counts.waited
        with (
            ThreadPoolExecutor(1, thread_name_prefix="samjax-write") as writing,
            working(self.task, self.model, self.where, feed, results),
        ):
            writes: list[Future[None]] = []
            while not collected.complete:
                outcome = results.get()
                if outcome is None:
                    continue
                if isinstance(outcome, BaseException):
                    raise outcome
                shard = self._take(collected, *outcome)
                self.signs.update(waited=before + feed.waited / len(self.where))
                if shard is not None:
                    done = collected.results.pop(shard.number)
                    write = writing.submit(self._write, shard, done, feed.written)
                    write.add_done_callback(lambda w: results.put(w.exception()))
                    writes = [write for write in writes if not write.done()] + [write]
            for write in writes:
                write.result()

    def _take(self, collected: Collected, read: Read, found: Any) -> Shard | None:
        """Counts a picture in; its shard, if that is complete now."""
        shard, place = collected.where(read.number)
        counts = self.signs.counts
        one: Result | str
        if isinstance(found, Exception):
            if not isinstance(found, FAILURES):
                raise found
            one = reason(read.item.path, found)
            _log.warning("samjax: skipped: %s", one)
            self.signs.update(pictures=counts.pictures + 1, errors=counts.errors + 1)
        else:
            sample = place in range(0, len(shard.items), -(-len(shard.items) // SAMPLES))
            one = drawn(read, found, whole=self.task.overlays, sample=sample)
            masks = counts.masks + len(found.records)
            self.signs.update(pictures=counts.pictures + 1, masks=masks)
        return collected.put(shard, place, one)

    def _write(self, shard: Shard, done: list[Result | str], written: Callable[[], None]) -> None:
        for pause in (*WRITE_PAUSES, None):
            if self.disk_failed:
                return
            try:
                write_shard(self.folder, shard, done, self.formats)
                break
            except OSError as error:
                if pause is None:
                    self.disk_failed = True
                    raise
                _log.warning("samjax: %s; trying again in %g s", error, pause)
                time.sleep(pause)
        written()


def _model_digest(model: Model) -> str:
    return fingerprint(flatten(model.params))[:16] + f" {model.config.computes_in}"


def _remove_partial(folder: Path, shard: Shard) -> None:
    """What a process that was killed has left of it."""
    for rest in (folder / SHARDS).glob(f".{shard.number:05d}.*.partial"):
        shutil.rmtree(rest, ignore_errors=True)


def _tell(folder: Path) -> None:
    _log.warning("samjax: waiting for another run that writes to %s", folder)
