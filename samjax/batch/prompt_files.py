"""Prompts that are known beforehand: boxes or points of each picture, from COCO or Parquet."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samjax.coco_objects import PictureNames, read_coco_objects
from samjax.prompts import Tokens, check_box, check_points, tokens

Prompts = list[Tokens]
BOX_COLUMNS = ("x0", "y0", "x1", "y1")


class PromptFile:
    """Prompts by picture: a call with a key and (height, width) gives a `Tokens` for each object.

    A COCO file's annotations are the objects: with mode "boxes" their `bbox`, with "points" their
    `point_coords` and `point_labels` (all 1 where absent), or the visible ones of their
    `keypoints`. A Parquet file has a row for each: `file_name`, and either `bbox` (x, y, width,
    height) or `x0`, `y0`, `x1`, `y1`; or `point_coords` and `point_labels`. A picture is known by
    its key, or by the last part of it where only one in the file has that.

    Raises `FileNotFoundError`, and `ValueError` for what is no such file.
    """

    def __init__(self, path: Path, mode: str):
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path} to take prompts from.")
        content = path.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        self.path = path
        self._objects: Mapping[str, list[Mapping[str, Any]]]
        if path.suffix.lower() == ".parquet":
            self._objects = _read_parquet(path, content)
        else:
            self._objects = read_coco_objects(path, content).annotations
        self._names = PictureNames(self._objects)
        self._convert: Callable[[Mapping[str, Any], tuple[int, int]], Tokens]
        self._convert = _box if mode == "boxes" else _points

    def __call__(self, key: str, size: tuple[int, int]) -> Prompts:
        """Raises `ValueError` for a picture that the file does not name, and for a prompt that is
        not one, or outside of the picture."""
        name = self._names.find(key)
        if name is None:
            raise ValueError(f"{self.path} says nothing of {key}")
        prompts = []
        for number, thing in enumerate(self._objects[name]):
            try:
                prompts.append(self._convert(thing, size))
            except (ValueError, TypeError, KeyError) as error:
                text = error.args[0] if isinstance(error, KeyError) else error
                raise ValueError(
                    f"object {number} of {name} in {self.path} has no prompt of this mode, or a "
                    f"wrong one: {text}"
                ) from error
        return prompts


def _read_parquet(path: Path, content: bytes) -> dict[str, list[Mapping[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f'{path} is a Parquet file, which needs pyarrow: pip install "samjax[batch]"'
        ) from error
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no Parquet file ({error}).") from None
    columns = set(table.column_names)
    if "file_name" not in columns or not columns & {"bbox", "x0", "point_coords"}:
        raise ValueError(
            f"{path} has the columns {', '.join(sorted(columns))}; expected file_name, and bbox or "
            "x0, y0, x1, y1, or point_coords and point_labels."
        )
    objects: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        objects[str(row["file_name"])].append(row)
    return dict(objects)


def _box(thing: Mapping[str, Any], size: tuple[int, int]) -> Tokens:
    if all(thing.get(name) is not None for name in BOX_COLUMNS):
        box = [float(thing[name]) for name in BOX_COLUMNS]
    else:
        x, y, width, height = map(float, thing["bbox"])
        box = [x, y, x + width, y + height]
    return tokens(box=check_box(np.array(box), size))


def _points(thing: Mapping[str, Any], size: tuple[int, int]) -> Tokens:
    if thing.get("point_coords") is not None:
        coords = np.array(thing["point_coords"], np.float64)
        given = thing.get("point_labels")
        labels = np.ones(len(coords), np.int32) if given is None else np.array(given, np.int32)
    else:
        keypoints = np.array(thing["keypoints"], np.float64).reshape(-1, 3)
        coords = keypoints[keypoints[:, 2] > 0, :2]
        labels = np.ones(len(coords), np.int32)
    coords, labels = check_points(coords, labels, size)
    return tokens(coords, labels)
