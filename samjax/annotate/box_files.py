"""Boxes that are known already: a COCO file, or a folder of YOLO's label files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from samjax.coco_objects import PictureNames, not_coco, read_coco_objects
from samjax.naming import Picture

Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(N, 4) float32 x0, y0, x1, y1 in pixels; (N,) float32 scores, NaN where there is none; (N,) int32
class numbers, from 0."""


class FoundBoxes(NamedTuple):
    """`find` takes a picture and its (height, width); `categories` are pairs of COCO's id and a
    name, in the order of the class numbers, None where there are no names."""

    find: Callable[[Picture, tuple[int, int]], Boxes]
    categories: list[tuple[int, str]] | None


def open_coco_boxes(path: Path) -> FoundBoxes:
    """Boxes of a COCO instances file: [x, y, width, height] of each annotation, and its "score".

    A picture is known by its `file_name`, or by the last part of it where only one has that.
    Crowds are left out. Classes are numbered in the order of the file's categories. Raises
    `FileNotFoundError`, and `ValueError` for what is no such file.
    """
    content = read_coco_objects(path)
    names = PictureNames(content.images)
    try:
        numbers = {category["id"]: i for i, category in enumerate(content.categories)}
        rows = {
            name: [_coco_row(one, numbers) for one in annotations]
            for name, annotations in content.annotations.items()
        }
        known = [
            (category["id"], str(category.get("name", f"class{i}")))
            for i, category in enumerate(content.categories)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_coco(path, error) from None

    def find(picture: Picture, size: tuple[int, int]) -> Boxes:
        name = names.find(picture.file_name)
        if name is None:
            raise ValueError(f"{path} says nothing of {picture.file_name}.")
        stated = tuple(content.images[name].get(side) for side in ("height", "width"))
        if None not in stated and stated != size:
            raise ValueError(
                f"{picture.path} is {size[0]} high and {size[1]} wide, and in {path} {stated[0]} "
                f"and {stated[1]}."
            )
        return _columns(rows[name])

    return FoundBoxes(find, known or None)


def open_yolo_boxes(folder: Path) -> FoundBoxes:
    """Label files of YOLO, a `STEM.txt` for each picture with something in it.

    A line is a class number and a box's centre, width and height, as shares of the picture's, and
    perhaps a score; or a class number and a polygon, whose box is taken. Names of classes come from
    `data.yaml` or `classes.txt` in the folder or above it. Raises `ValueError` for a folder without
    label files; `find` does so for lines of another form.
    """
    named = {"classes", "labels"}
    files = [file for file in folder.glob("*.txt") if file.stem not in named]
    if not files:
        raise ValueError(
            f"{folder} is no detector: it has neither samjax.json, as a saved model has, nor label "
            "files of YOLO (NAME.txt for each picture)."
        )

    def find(picture: Picture, size: tuple[int, int]) -> Boxes:
        file = folder / f"{picture.name}.txt"
        if not file.exists():
            return _columns([])
        lines = file.read_text(encoding="utf-8").splitlines()
        return _columns([
            _yolo_row(line, size, f"{file}, line {i}")
            for i, line in enumerate(lines, start=1) if line.strip()
        ])  # fmt: skip

    names = _names(folder)
    return FoundBoxes(find, None if names is None else list(enumerate(names, start=1)))


def _coco_row(annotation: Any, numbers: dict[Any, int]) -> list[float]:
    x, y, width, height = map(float, annotation["bbox"])
    category = annotation.get("category_id")
    if numbers and category not in numbers:
        raise ValueError(f"category {category!r} is not among the categories")
    number = numbers[category] if numbers else int(category or 0)
    score = annotation.get("score")
    return [x, y, x + width, y + height, float("nan") if score is None else float(score), number]


def _yolo_row(line: str, size: tuple[int, int], where: str) -> list[float]:
    expected = (
        "a class number and 4 numbers of a box (with a score, 5), or the x and y of at least 3 "
        "points, as shares of the picture's width and height"
    )
    try:
        number, *values = (float(word) for word in line.split())
    except ValueError:
        raise ValueError(f"{where} is {line[:60]!r}; expected {expected}.") from None
    fits = len(values) in (4, 5) or (len(values) >= 6 and len(values) % 2 == 0)
    finite = np.isfinite([number, *values]).all()
    if not (fits and finite) or number != int(number) or number < 0:
        raise ValueError(f"{where} is {line[:60]!r}; expected {expected}.")
    height, width = size
    if len(values) > 5:
        corners = np.array(values).reshape(-1, 2) * (width, height)
        low, high = corners.min(axis=0), corners.max(axis=0)
        return [*low.tolist(), *high.tolist(), float("nan"), number]
    x, y, w, h = values[:4]
    score = values[4] if len(values) == 5 else float("nan")
    return [
        (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height,
        score, number,
    ]  # fmt: skip


def _columns(rows: list[list[float]]) -> Boxes:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return (
        table[:, :4].astype(np.float32), table[:, 4].astype(np.float32),
        table[:, 5].astype(np.int32),
    )  # fmt: skip


def _names(folder: Path) -> list[str] | None:
    for place in (folder, folder.parent):
        if (file := place / "data.yaml").is_file():
            try:
                names = yaml.safe_load(file.read_text(encoding="utf-8"))["names"]
                known = names if isinstance(names, dict) else dict(enumerate(names))
                return [str(known.get(i, f"class{i}")) for i in range(max(known, default=-1) + 1)]
            except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{file} has no names of classes ({type(error).__name__}); expected `names:`, "
                    "a list or numbers with a name each."
                ) from None
        if (file := place / "classes.txt").is_file():
            return file.read_text(encoding="utf-8").splitlines()
    return None
