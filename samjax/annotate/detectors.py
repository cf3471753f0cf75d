"""Whatever finds boxes in pictures: a YOLOv8, a file of boxes, a function."""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from samjax.annotate.box_files import FoundBoxes, open_coco_boxes, open_yolo_boxes
from samjax.detection import Detections, YoloDetector
from samjax.detection import load as load_detector
from samjax.naming import Picture
from samjax.yolo_model import YoloModel

Function = Callable[[np.ndarray], Any]
"""A picture, (H, W, 3) uint8 RGB, to boxes (N, 4) in its pixels, (x0, y0, x1, y1); or to a tuple of
boxes, scores (N,) and class numbers (N,), as `Detections` begins."""

KINDS = (
    "a YOLOv8 (a .pt or .onnx file, a folder by samjax.save_checkpoint, a published name), a COCO "
    "file of boxes (.json), a folder of YOLO label files, or a function of a picture"
)


class Category(NamedTuple):
    """A class: `id` is its number in COCO files, `name` what it is called."""

    id: int
    name: str


@runtime_checkable
class Detector(Protocol):
    """What `open_detector` gives. `categories` are the classes, in the order of their numbers; None
    where those are known only from what is found."""

    description: str
    categories: Sequence[Category] | None

    def __call__(self, picture: Picture, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Raises `ValueError` for a picture that it cannot say anything of."""
        ...


def open_detector(
    source: Any,
    *,
    conf: float = 0.25,
    iou: float = 0.45,
    imgsz: int | tuple[int, int] = 640,
    max_det: int = 300,
    classes: Sequence[int] | None = None,
    names: Mapping[int, str] | Sequence[str] | None = None,
) -> Detector:
    """A detector from any of `KINDS`.

    `conf`, `max_det` and `classes` choose among what is found: boxes without a score pass `conf`,
    and of too many the best are kept. `iou` and `imgsz` are a YOLOv8's: boxes from files and
    functions are not suppressed. `names` of classes are for files and functions that have none.

    Raises `FileNotFoundError`, `ValueError` for values out of range and files that are none of
    these, `TypeError` for another source, and what `samjax.detection.load` raises.
    """
    for name, value in (("conf", conf), ("iou", iou)):
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"{name} is {value}; it has to be a number from 0 to 1.")
    if max_det < 1:
        raise ValueError(f"max_det is {max_det}; it has to be at least 1.")
    if classes is not None and not all(
        isinstance(number, int | np.integer) and number >= 0 for number in classes
    ):
        raise ValueError(f"classes is {classes!r}; it has to be numbers of classes, from 0.")
    chosen = _Chosen(conf, max_det, None if classes is None else list(classes))
    given = _categories(names)
    detect = functools.partial(
        YoloDetector, conf=conf, iou=iou, imgsz=imgsz, max_det=max_det, classes=classes
    )
    if isinstance(source, YoloModel):
        return _Yolo("a YoloModel", detect(source))
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix.lower() == ".json" and not path.is_dir():
            return _Boxes(f"boxes of {path}", open_coco_boxes(path), chosen, given)
        if path.is_dir() and not (path / "samjax.json").exists():
            return _Boxes(f"boxes of {path}", open_yolo_boxes(path), chosen, given)
        return _Yolo(os.fspath(source), detect(load_detector(source)))
    if callable(source):
        return _Called(source, chosen, given or _categories(getattr(source, "names", None)))
    raise TypeError(f"det_model is of type {type(source).__name__}; it can be {KINDS}.")


class _Chosen(NamedTuple):
    """Which of the boxes are wanted that no YOLOv8 of ours has chosen."""

    conf: float
    max_det: int
    classes: list[int] | None

    def of(self, boxes: np.ndarray, scores: np.ndarray, numbers: np.ndarray) -> Detections:
        kept = np.flatnonzero(np.isnan(scores) | (scores > self.conf))
        if self.classes is not None:
            kept = kept[np.isin(numbers[kept], self.classes)]
        if len(kept) > self.max_det:
            ranks = np.where(np.isnan(scores[kept]), np.inf, scores[kept])
            kept = np.sort(kept[np.argsort(-ranks, kind="stable")[: self.max_det]])
        return Detections(boxes[kept], scores[kept], numbers[kept])


class _Yolo:
    def __init__(self, description: str, detector: YoloDetector):
        self.description, self.detector = description, detector
        self.categories: Sequence[Category] | None = _categories(detector.model.names)

    def __call__(self, picture: Picture, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        return self.detector(image, masks=False)


class _Boxes:
    def __init__(self, description: str, file: FoundBoxes, chosen: _Chosen,
                 given: list[Category] | None):  # fmt: skip
        self.description = description
        self.file, self.chosen = file, chosen
        own = None if file.categories is None else [Category(*item) for item in file.categories]
        self.categories: Sequence[Category] | None = given or own

    def __call__(self, picture: Picture, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        boxes, scores, numbers = self.file.find(picture, (image.shape[0], image.shape[1]))
        return self.chosen.of(boxes, scores, numbers)


class _Called:
    def __init__(self, function: Function, chosen: _Chosen, given: list[Category] | None):
        name = getattr(function, "__name__", type(function).__name__)
        self.description = f"the function {name}"
        self.function, self.chosen = function, chosen
        self.categories: Sequence[Category] | None = given

    def __call__(self, picture: Picture, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        return self.chosen.of(*_read(self.function(image), self.description))


def _read(
    found: Any, whose: str
) -> tuple[Float32[np.ndarray, "N 4"], Float32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
    """What a function returned. Raises `ValueError` for what is not as `Function` says."""
    parts = list(found) if isinstance(found, tuple) else [found]
    boxes = _numbers(parts[0], whose, "boxes")
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"{whose} returned boxes of shape {boxes.shape}; expected (N, 4): x0, y0, x1, y1 in "
            "pixels of the picture."
        )
    count = len(boxes)
    columns = [np.full(count, np.nan), np.zeros(count)]
    for i, what in enumerate(("scores", "classes")):
        if len(parts) > i + 1 and parts[i + 1] is not None:
            columns[i] = _numbers(parts[i + 1], whose, what)
            if columns[i].shape != (count,):
                raise ValueError(
                    f"{whose} returned {what} of shape {columns[i].shape} for {count} boxes."
                )
    scores, classes = columns
    if (
        not np.isfinite(classes).all()
        or (classes != np.floor(classes)).any()
        or (classes < 0).any()
    ):
        raise ValueError(f"{whose} returned classes {classes}; expected whole numbers from 0.")
    return boxes.astype(np.float32), scores.astype(np.float32), classes.astype(np.int32)


def _numbers(values: Any, whose: str, what: str) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{whose} returned {what} of type {type(values).__name__}, which are no numbers."
        ) from None


def _categories(names: Mapping[int, str] | Sequence[str] | None) -> list[Category] | None:
    """Numbered from 1, as COCO does."""
    if names is None:
        return None
    if isinstance(names, Mapping):
        last = max(names, default=-1)
        names = [str(names.get(number, f"class{number}")) for number in range(last + 1)]
    return [Category(number, str(name)) for number, name in enumerate(names, start=1)]
