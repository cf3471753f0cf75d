"""The folder that labels are written to, and what is known of how far it has come.

    OUTPUT/
      NAME.txt           labels of a picture, in YOLO's form; no file where nothing was found
      annotations.json   all masks as COCO instances
      data.yaml          names of the classes, as YOLO's programs read them
      overlays/NAME.png  pictures with their masks drawn over them, where asked for
      progress.jsonl     settings, then a line for each picture that is done

A picture counts as done once its line is whole, which is written last.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco

from samjax.annotate.detectors import Category
from samjax.coco_files import write_coco_file
from samjax.images import overlay, write_png
from samjax.label_files import write_lines, yolo_lines
from samjax.naming import Picture
from samjax.postprocess import Rle, area_from_rle, mask_to_polygon, rle_to_mask
from samjax.writing import check_writable, differing_settings, write_beside

PROGRESS, COCO, DATA, OVERLAYS = "progress.jsonl", "annotations.json", "data.yaml", "overlays"


class Labelled(NamedTuple):
    """One object: its mask, class number, the detector's score (NaN for none) and SAM's."""

    rle: Rle
    number: int
    score: float
    predicted_iou: float


class Output:
    """An output folder of one run, new or gone on with. `begin` writes its first file."""

    def __init__(self, folder: Path, settings: dict[str, Any], done: dict[str, str], fresh: bool):
        self.folder = folder
        self.settings = settings
        self._done = done
        self._fresh = fresh

    def missing(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Those that are not done. Raises `ValueError` where a name is another file's by now."""
        for picture in pictures:
            earlier = self._done.get(picture.name, picture.file_name)
            if earlier != picture.file_name:
                raise ValueError(
                    f"{self.folder / picture.name}.txt is of {earlier}, and would be of "
                    f"{picture.file_name} now; choose another output folder, or overwrite."
                )
        return [picture for picture in pictures if picture.name not in self._done]

    def begin(self) -> None:
        if self._fresh:
            _discard(self.folder)
            with write_beside(self.folder / PROGRESS) as path:
                path.write_text(_line({"samjax annotate": 1, "settings": self.settings}))
            return
        _cut_unfinished_line(self.folder / PROGRESS)

    def write(
        self,
        picture: Picture,
        image: UInt8[np.ndarray, "H W 3"],
        objects: Sequence[Labelled],
        *,
        dropped: int = 0,
        drawn: bool = False,
        texts: Sequence[str] = (),
    ) -> None:
        """Labels, with `drawn` an overlay, and last the line that says so. `dropped` boxes were of
        no use. Raises `OSError` when the disk fails."""
        height, width, _ = image.shape
        masks = [rle_to_mask(one.rle) for one in objects]
        scale = np.array([width, height], np.float32)
        lines = yolo_lines(
            [mask_to_polygon(mask) / scale for mask in masks], [one.number for one in objects]
        )
        labels = self.folder / f"{picture.name}.txt"
        if lines:
            write_lines(labels, lines)
        if drawn:
            path = self.folder / OVERLAYS / f"{picture.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            boxes = np.array([_corners(one.rle) for one in objects]).reshape(-1, 4)
            write_png(path, overlay(image, masks, boxes=boxes, box_texts=texts))
        entry = {
            "name": picture.name,
            "file_name": picture.file_name,
            "height": height,
            "width": width,
            "dropped": dropped,
            "objects": [one._asdict() | {"score": _or_none(one.score)} for one in objects],
        }
        with (self.folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())
        self._done[picture.name] = picture.file_name

    def finish(self, categories: Sequence[Category] | None) -> tuple[int, int]:
        """Writes the COCO file and the names of the classes; the numbers of pictures and masks.

        Pictures come in the order of their names, so that the files are the same however often the
        run was broken off.
        """
        entries = sorted(_entries(self.folder / PROGRESS), key=lambda entry: entry["name"])
        used = {one["number"] for entry in entries for one in entry["objects"]}
        known = list(categories or ())
        while len(known) <= max(used, default=-1):
            known.append(Category(1 + max((c.id for c in known), default=0), f"class{len(known)}"))
        self._write_names(known)
        head = {
            "info": {"description": "Masks by samjax"},
            "categories": [
                {"id": c.id, "name": c.name, "supercategory": "object"} for c in known
            ],
        }  # fmt: skip
        images = (
            {"id": i, "width": e["width"], "height": e["height"], "file_name": e["file_name"]}
            for i, e in enumerate(entries, start=1)
        )
        annotations = (
            _annotation(image_id, one, known)
            for image_id, entry in enumerate(entries, start=1)
            for one in entry["objects"]
        )
        return len(entries), write_coco_file(self.folder / COCO, head, images, annotations)

    def _write_names(self, categories: Sequence[Category]) -> None:
        """Quoted as JSON does it, which is YAML as well whatever characters a name has."""
        lines = [f"  {i}: {json.dumps(c.name)}" for i, c in enumerate(categories)]
        write_lines(self.folder / DATA, ["names:", *lines] if lines else ["names: {}"])


def open_output(
    folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Output:  # fmt: skip
    """A folder that is new or empty, or one of an earlier run.

    That is gone on with under the same settings, which are JSON values, and with `overwrite` begun
    anew: what it wrote goes, and nothing else. Raises `FileExistsError` for a folder with other
    things in it, `ValueError` that names the settings which differ, and `OSError` for one that
    cannot be written.
    """
    check_writable(folder)
    plain = json.loads(json.dumps(dict(settings)))
    progress = folder / PROGRESS
    if not any(not entry.name.startswith(".") for entry in folder.iterdir()):
        return Output(folder, plain, {}, fresh=True)
    earlier = _settings(progress)
    if earlier is None:
        raise FileExistsError(
            f"the output folder {folder} is not empty, and there is no run of samjax annotate to "
            "go on with: choose another folder."
        )
    if overwrite:
        return Output(folder, plain, {}, fresh=True)
    if differing := differing_settings(earlier, plain):
        raise ValueError(
            f"{folder} was made with other settings: {differing}. Give the same settings to go on "
            "with it, another output folder, or overwrite=True (--overwrite) to begin anew."
        )
    done = {entry["name"]: entry["file_name"] for entry in _entries(progress)}
    return Output(folder, plain, done, fresh=False)


def _discard(folder: Path) -> None:
    """Removes what an earlier run wrote; its progress goes last."""
    if not (folder / PROGRESS).exists():
        return
    for entry in _entries(folder / PROGRESS):
        for path in (folder / f"{entry['name']}.txt", folder / OVERLAYS / f"{entry['name']}.png"):
            path.unlink(missing_ok=True)
    for name in (COCO, DATA, PROGRESS):
        (folder / name).unlink(missing_ok=True)


def _settings(progress: Path) -> dict[str, Any] | None:
    try:
        with progress.open(encoding="utf-8") as file:
            return dict(json.loads(file.readline())["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entries(progress: Path) -> Iterator[dict[str, Any]]:
    """One for each picture, the last where there are two; a last line that is not whole is none.

    Raises `ValueError` for any other line that cannot be read.
    """
    found = {}
    with progress.open(encoding="utf-8") as file:
        next(file, None)
        for number, line in enumerate(file, start=2):
            if not line.endswith("\n"):
                break
            try:
                entry = json.loads(line)
                found[entry["name"]] = entry
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{progress}, line {number} is damaged: remove that line, and its picture is "
                    "done again."
                ) from None
    yield from found.values()


def _cut_unfinished_line(path: Path) -> None:
    """Of a process that was killed while it wrote."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _annotation(image_id: int, one: dict[str, Any], categories: list[Category]) -> dict[str, Any]:
    scores = {"score": one["score"]} if one["score"] is not None else {}
    return {
        "image_id": image_id,
        "category_id": categories[one["number"]].id,
        "segmentation": one["rle"],
        "area": area_from_rle(one["rle"]),
        "bbox": coco.toBbox(one["rle"]).tolist(),
        "iscrowd": 0,
        **scores,
        "predicted_iou": one["predicted_iou"],
    }


def _corners(rle: Rle) -> list[float]:
    x, y, width, height = coco.toBbox(rle).tolist()
    return [x, y, x + width, y + height]


def _or_none(score: float) -> float | None:
    return None if np.isnan(score) else float(score)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"
