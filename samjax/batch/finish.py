"""What is written when the shards are done: coco.json, errors.csv and the report."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samjax.batch.hosts import Counts
from samjax.batch.items import Problem
from samjax.batch.plan import SETTINGS, Shard, shard_folder
from samjax.batch.report import Report, report_html
from samjax.batch.shards import read_manifest
from samjax.batch.tasks import Task
from samjax.coco_files import COCO_HEAD, write_coco_file
from samjax.writing import write_beside

COCO, ERRORS, REPORT = "coco.json", "errors.csv", "report.html"
MOST_SAMPLES = 48


class Totals(NamedTuple):
    pictures: int
    masks: int
    errors: list[dict[str, Any]]


def finish(
    folder: Path,
    shards: Sequence[Shard],
    problems: Sequence[Problem],
    task: Task,
    formats: Sequence[str],
    counts: Mapping[int, Counts],
    *,
    write: bool,
) -> Totals:
    """Counts what is done, and with `write` writes what is about all of it, each file whole.

    One manifest is in memory at a time. Raises `OSError` where a file cannot be written.
    """
    numbers: list[int] = []
    masks_each: list[int] = []
    errors: list[dict[str, Any]] = []
    samples: list[Path] = []
    histograms: dict[str, list[int]] = {}
    for shard in shards:
        manifest = read_manifest(folder, shard)
        if manifest is None:
            continue
        numbers.append(shard.number)
        masks_each += [one["masks"] for one in manifest.pictures]
        errors += manifest.errors
        samples += [
            shard_folder(folder, shard.number) / name
            for name in manifest.files if name.startswith("samples/")
        ]  # fmt: skip
        for name, bins in manifest.histograms.items():
            histograms[name] = (np.array(histograms.get(name, 0)) + np.array(bins)).tolist()
    errors += [{"key": "", "path": one.path, "reason": one.reason} for one in problems]
    totals = Totals(len(masks_each), sum(masks_each), errors)
    if not write:
        return totals
    if "coco" in formats and task.mode != "embeddings":
        images = (image for number in numbers for image in _coco(folder, number, "images"))
        rows = (row for number in numbers for row in _coco(folder, number, "annotations"))
        write_coco_file(folder / COCO, COCO_HEAD, images, rows)
    text = io.StringIO()
    table = csv.DictWriter(text, ["key", "path", "reason"], lineterminator="\n")
    table.writeheader()
    table.writerows(errors)
    _write_text(folder / ERRORS, text.getvalue())
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"]
    page = Report(
        folder.resolve().name, settings, totals.pictures, totals.masks,
        masks_each, histograms, errors,
        list(_pictures(samples)), counts,
    )  # fmt: skip
    _write_text(folder / REPORT, report_html(page))
    return totals


def _coco(folder: Path, number: int, what: str) -> Iterator[dict[str, Any]]:
    path = shard_folder(folder, number) / COCO
    for row in json.loads(path.read_text(encoding="utf-8"))[what]:
        if what == "annotations":
            row.pop("id")
        yield row


def _pictures(samples: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """Names and JPEG files of some, spread evenly."""
    step = max(1, -(-len(samples) // MOST_SAMPLES))
    for file in samples[::step]:
        if file.exists():
            yield file.stem, file.read_bytes()


def _write_text(path: Path, text: str) -> None:
    with write_beside(path) as staged:
        staged.write_text(text, encoding="utf-8")
