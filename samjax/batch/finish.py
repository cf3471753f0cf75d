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
from samjax.batch.shards import Manifest
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
    done: Mapping[int, Manifest],
    problems: Sequence[Problem],
    task: Task,
    formats: Sequence[str],
    counts: Mapping[int, Counts],
    *,
    write: bool,
) -> Totals:
    """Counts what is done, and with `write` writes what is about all of it, each file whole.

    Raises `OSError` where one cannot be written.
    """
    manifests = [done[shard.number] for shard in shards if shard.number in done]
    errors = [error for manifest in manifests for error in manifest.errors]
    errors += [{"key": "", "path": one.path, "reason": one.reason} for one in problems]
    pictures = [picture for manifest in manifests for picture in manifest.pictures]
    totals = Totals(len(pictures), sum(one["masks"] for one in pictures), errors)
    if not write:
        return totals
    if "coco" in formats and task.mode != "embeddings":
        images = (image for one in manifests for image in _coco(folder, one, "images"))
        rows = (row for one in manifests for row in _coco(folder, one, "annotations"))
        write_coco_file(folder / COCO, COCO_HEAD, images, rows)
    text = io.StringIO()
    table = csv.DictWriter(text, ["key", "path", "reason"], lineterminator="\n")
    table.writeheader()
    table.writerows(errors)
    _write_text(folder / ERRORS, text.getvalue())
    histograms: dict[str, list[int]] = {}
    for manifest in manifests:
        for name, bins in manifest.histograms.items():
            histograms[name] = (np.array(histograms.get(name, 0)) + np.array(bins)).tolist()
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"]
    page = Report(
        folder.resolve().name, settings, totals.pictures, totals.masks,
        len(shards) - len(manifests), [one["masks"] for one in pictures], histograms, errors,
        list(_samples(folder, manifests)), counts,
    )  # fmt: skip
    _write_text(folder / REPORT, report_html(page))
    return totals


def _coco(folder: Path, manifest: Manifest, what: str) -> Iterator[dict[str, Any]]:
    path = shard_folder(folder, manifest.number) / COCO
    for row in json.loads(path.read_text(encoding="utf-8"))[what]:
        if what == "annotations":
            row.pop("id")
        yield row


def _samples(folder: Path, manifests: Sequence[Manifest]) -> Iterator[tuple[str, bytes]]:
    """Names and JPEG files, from shards that are spread evenly."""
    names = [
        (manifest.number, name)
        for manifest in manifests for name in manifest.files if name.startswith("samples/")
    ]  # fmt: skip
    step = max(1, -(-len(names) // MOST_SAMPLES))
    for number, name in names[::step]:
        file = shard_folder(folder, number) / name
        if file.exists():
            yield name.removeprefix("samples/").removesuffix(".jpg"), file.read_bytes()


def _write_text(path: Path, text: str) -> None:
    with write_beside(path) as staged:
        staged.write_text(text, encoding="utf-8")
