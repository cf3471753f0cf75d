"""Opening data sets. Opening lists the pictures; a picture's masks are looked at when it is read.

So a data set of millions of pictures opens at once, and `scan` looks at everything beforehand.
"""

import dataclasses
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image
from pycocotools import mask as coco

from samjax.datasets.records import (
    BadRecordError,
    Finding,
    Reason,
    Record,
    Report,
    decode_mask,
    read_picture,
)
from samjax.images import list_images
from samjax.postprocess.rle import Rle, mask_to_rle


class Entry(NamedTuple):
    """A picture and what is known of it on opening."""

    path: Path
    size: tuple[int, int] | None
    annotations: Any


@dataclasses.dataclass(frozen=True)
class Source:
    """Pictures in random access. `report` counts what was left out on opening, and is not changed
    by reading."""

    name: str
    entries: Sequence[Entry]
    reader: Callable[[Entry, str], Record]
    report: Report

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> Record:
        """The record of that index; raises BadRecordError where it has no mask that can be used."""
        record = self.reader(self.entries[index], self.name)
        if not record.masks:
            text = str(record.path)
            if record.left_out:
                text += f" ({record.left_out[0].reason}: {record.left_out[0].text})"
            raise BadRecordError(Reason.NO_MASKS, text)
        return record


def scan(source: Source, *, pictures: bool = False) -> Report:
    """Reads every record, decodes every mask and, with `pictures`, every picture.

    The report adds what is found to the report of opening, and counts what can be used.
    """
    report = source.report.copy()
    report.pictures, report.masks = 0, 0
    for index in range(len(source)):
        try:
            record = source.reader(source.entries[index], source.name)
            report.add(record.left_out)
            good = 0
            for i in range(len(record.masks)):
                try:
                    decode_mask(record, i)
                    good += 1
                except BadRecordError as error:
                    report.add([Finding(error.reason, error.text)])
            if not good:
                raise BadRecordError(Reason.NO_MASKS, str(record.path))
            if pictures:
                read_picture(record)
            report.pictures += 1
            report.masks += good
        except BadRecordError as error:
            report.add([Finding(error.reason, error.text)])
    return report


def open_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    name: str | None = None,
) -> Source:
    """A COCO instances file with polygons or run lengths, and the folder of its pictures.

    Crowds are left out, which are regions and not things. Pictures without an annotation are not
    listed and not counted: COCO has many. `name` is the file's own unless given.

    Raises FileNotFoundError for a missing file or folder, ValueError for a file that is no COCO
    instances JSON or has no picture that can be used.
    """
    path, folder = Path(annotations), Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of pictures: {folder}")
    content = _coco_content(path)
    report = Report(name or path.stem)
    pictures = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content.get("categories", ())}
    grouped: dict[Any, list[dict]] = defaultdict(list)
    for annotation in content["annotations"]:
        where = f"annotation {annotation.get('id', '?')}"
        if annotation.get("image_id") not in pictures:
            report.add([Finding(Reason.UNKNOWN_PICTURE, where)])
        elif annotation.get("iscrowd"):
            report.add([Finding(Reason.CROWD, where)])
        elif categories and annotation.get("category_id") not in categories:
            report.add([Finding(Reason.UNKNOWN_CATEGORY, where)])
        else:
            grouped[annotation["image_id"]].append(annotation)
    entries = []
    for key, image in pictures.items():
        if key not in grouped:
            continue
        picture = folder / image["file_name"]
        if not picture.is_file():
            report.add([Finding(Reason.MISSING_PICTURE, str(picture))])
            continue
        entries.append(Entry(picture, (image["height"], image["width"]), grouped[key]))
    return _source(entries, _read_coco, report, of=path)


def open_sa1b(folder: str | os.PathLike[str], *, name: str | None = None) -> Source:
    """SA-1B's layout: `sa_*.json`, each with its picture `sa_*.jpg` beside it.

    Raises FileNotFoundError for a missing folder, ValueError where no picture can be used.
    """
    root = _folder(folder)
    report = Report(name or root.name)
    entries = []
    for annotations in sorted(root.glob("sa_*.json")):
        picture = annotations.with_suffix(".jpg")
        if picture.is_file():
            entries.append(Entry(picture, None, annotations))
        else:
            report.add([Finding(Reason.MISSING_PICTURE, str(picture))])
    return _source(entries, _read_sa1b, report, of=root)


def open_mask_folder(folder: str | os.PathLike[str], *, name: str | None = None) -> Source:
    """Pictures `images/NAME.*` with their masks as PNG, in either of two ways:

    - `masks/NAME/*.png`: a file for each mask, which is where the pixels are not 0;
    - `masks/NAME.png`: instance numbers, 8 or 16 bits a pixel, 0 for no instance.

    Pictures without either are left out as having no masks. Raises FileNotFoundError where
    `images` or `masks` is missing, ValueError where no picture can be used.
    """
    root = _folder(folder)
    masks = _folder(root / "masks")
    report = Report(name or root.name)
    entries = []
    for picture in list_images(_folder(root / "images")):
        files = sorted((masks / picture.stem).glob("*.png")) or [masks / f"{picture.stem}.png"]
        if files[0].is_file():
            entries.append(Entry(picture, None, files))
        else:
            report.add([Finding(Reason.NO_MASKS, str(picture))])
    return _source(entries, _read_mask_folder, report, of=root)


def _source(entries: list[Entry], reader: Callable, report: Report, *, of: Path) -> Source:
    report.pictures = len(entries)
    if not entries:
        raise ValueError(f"{of} has no picture with masks that can be used\n{report}")
    return Source(report.name, entries, reader, report)


def _folder(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no such folder: {path}")
    return Path(path)


def _coco_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        images, annotations = content["images"], content["annotations"]
        for image in images:
            if not (image["height"] >= 1 and image["width"] >= 1):
                raise ValueError(f"picture {image['file_name']} has no pixels")
            _ = image["id"], image["file_name"]
        if not all(isinstance(annotation, dict) for annotation in annotations):
            raise ValueError("an annotation is no object")
    except FileNotFoundError:
        raise FileNotFoundError(f"no such annotation file: {path}") from None
    except KeyError as error:
        raise ValueError(f"{path} is no COCO instances file: {error} is missing in it") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no COCO instances file ({error})") from error
    return content


def _read_coco(entry: Entry, source: str) -> Record:
    assert entry.size is not None
    masks, left_out = [], []
    for annotation in entry.annotations:
        where = f"annotation {annotation.get('id', '?')} of {entry.path.name}"
        try:
            masks.append(_to_rle(annotation.get("segmentation"), entry.size, where))
        except BadRecordError as error:
            left_out.append(Finding(error.reason, error.text))
    return Record(entry.path, entry.size, tuple(masks), source, tuple(left_out))


def _read_sa1b(entry: Entry, source: str) -> Record:
    try:
        content = json.loads(entry.annotations.read_bytes())
        size = (int(content["image"]["height"]), int(content["image"]["width"]))
        annotations = [dict(annotation) for annotation in content["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{entry.annotations} ({type(error).__name__}: {error})"
        raise BadRecordError(Reason.BROKEN_ANNOTATIONS, text) from error
    return _read_coco(Entry(entry.path, size, annotations), source)


def _read_mask_folder(entry: Entry, source: str) -> Record:
    try:
        with Image.open(entry.path) as picture:
            lying = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            height, width = picture.size if lying else picture.size[::-1]
    except (OSError, ValueError, SyntaxError) as error:
        raise BadRecordError(Reason.BROKEN_PICTURE, f"{entry.path} ({error})") from error
    masks, left_out = [], []
    numbered = len(entry.annotations) == 1 and entry.annotations[0].parent.name == "masks"
    for path in entry.annotations:
        try:
            with Image.open(path) as file:
                pixels = np.array(file)
        except (OSError, ValueError, SyntaxError) as error:
            left_out.append(Finding(Reason.BROKEN_MASK, f"{path} ({error})"))
            continue
        if pixels.ndim > 2:
            pixels = np.max(pixels[..., :3], axis=-1)
        if pixels.shape != (height, width):
            text = f"{path} is {pixels.shape[0]} high and {pixels.shape[1]} wide"
            left_out.append(Finding(Reason.MASK_SIZE, text))
            continue
        numbers = [n for n in np.unique(pixels) if n] if numbered else [None]
        found = [pixels != 0 if number is None else pixels == number for number in numbers]
        if not any(mask.any() for mask in found):
            left_out.append(Finding(Reason.EMPTY_MASK, str(path)))
            continue
        masks += [mask_to_rle(mask) for mask in found]
    return Record(entry.path, (height, width), tuple(masks), source, tuple(left_out))


def _to_rle(segmentation: Any, size: tuple[int, int], where: str) -> Rle:
    """Run lengths of the picture's size from any of COCO's forms; raises BadRecordError."""
    if isinstance(segmentation, dict):
        claimed, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(counts, list | str) or not isinstance(claimed, list | tuple):
            raise BadRecordError(Reason.BROKEN_MASK, f"{where} is no polygon and no run lengths")
        if list(claimed) != list(size):
            text = f"{where}: {list(claimed)}, the picture is {list(size)}"
            raise BadRecordError(Reason.MASK_SIZE, text)
        return {"size": list(size), "counts": counts}
    if not isinstance(segmentation, list):
        raise BadRecordError(Reason.BROKEN_MASK, f"{where} is no polygon and no run lengths")
    if not segmentation:
        raise BadRecordError(Reason.EMPTY_MASK, where)
    polygons = [polygon for polygon in segmentation if _is_polygon(polygon, size)]
    if not polygons:
        raise BadRecordError(Reason.DEGENERATE_POLYGON, where)
    merged = coco.merge(coco.frPyObjects(polygons, *size))
    return {"size": list(size), "counts": merged["counts"].decode("ascii")}


def _is_polygon(points: Any, size: tuple[int, int]) -> bool:
    """Whether pycocotools takes it for a polygon: it reads four numbers as a box, and a line far
    outside the picture takes as much memory as it is long."""
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    if not all(isinstance(p, int | float) and math.isfinite(p) for p in points):
        return False
    xy = np.array(points, np.float64).reshape(-1, 2)
    within = (np.abs(xy) <= 2 * max(size)).all()
    x, y = (xy - xy[0]).T
    area = abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
    return bool(within and area > 0)
