"""From `bboxes`, `points`, `labels` and `masks` in their documented shapes to objects."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from samjax.ultralytics_style.host_array import to_numpy

_POINT_SHAPES = (
    "(2,) for one point, (N, 2) for N objects of one point each, or (N, n, 2) for N objects of n "
    "points each"
)


class Objects(NamedTuple):
    """The prompts of N objects: for each of these, N entries or None where it was not given.

    points (n, 2) and labels (n,), where n may differ; boxes (4,); masks (h, w) logits.
    """

    number: int
    points: list[np.ndarray] | None
    labels: list[np.ndarray] | None
    boxes: list[np.ndarray] | None
    masks: list[np.ndarray] | None

    def part(self, start: int, stop: int) -> "Objects":
        columns = [None if column is None else column[start:stop] for column in self[1:]]
        return Objects(min(stop, self.number) - start, *columns)


def read_objects(bboxes: Any, points: Any, labels: Any, masks: Any, *, side: int) -> Objects | None:
    """None where nothing is given. `side` is that of the model's low-resolution masks.

    - bboxes: (4,) for one object or (N, 4) for N, (x0, y0, x1, y1);
    - points: (2,), (N, 2) for N objects of one point each, (N, n, 2), or N lists of points whose
      lengths differ; labels of the same shape without the last axis, all 1 when absent;
    - masks: (h, w) or (N, h, w), logits at the model's low resolution.

    Raises `ValueError` for other shapes, values that are not finite numbers, labels without points,
    and prompts for different numbers of objects.
    """
    if labels is not None and points is None:
        raise ValueError("labels are given without points; they go together.")
    found = {
        "bboxes": None if bboxes is None else _rows("bboxes", bboxes, (4,), "(4,) or (N, 4)"),
        "points": None if points is None else _points(points),
        "masks": None if masks is None else _masks(masks, side),
    }
    counts = {name: len(rows) for name, rows in found.items() if rows is not None}
    if not counts:
        return None
    if len(set(counts.values())) > 1:
        hint = ""
        if points is not None:
            hint = " Several points of one object are written [[[x, y], [x, y]]]."
        raise ValueError(f"the prompts are for different numbers of objects: {counts}.{hint}")
    given_labels = None if found["points"] is None else _labels(labels, points, found["points"])
    number = next(iter(counts.values()))
    return Objects(number, found["points"], given_labels, found["bboxes"], found["masks"])


def _rows(name: str, values: Any, shape: tuple[int, ...], expected: str) -> list[np.ndarray]:
    array = _numbers(name, values, expected)
    if array.shape == (0,):
        return []
    if array.shape == shape:
        array = array[None]
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        raise ValueError(f"{name} have shape {array.shape}; expected {expected}.")
    return list(array)


def _points(points: Any) -> list[np.ndarray]:
    if _is_ragged(points):
        rows = [_numbers("points", row, _POINT_SHAPES) for row in points]
        wrong = next((row for row in rows if row.ndim != 2 or row.shape[1] != 2), None)
        if wrong is not None:
            raise ValueError(
                f"points of one object have shape {wrong.shape}; expected (n, 2) for each of the "
                f"{len(rows)} objects. In general points are {_POINT_SHAPES}."
            )
        return rows
    array = _numbers("points", points, _POINT_SHAPES)
    if array.shape == (0,):
        return []
    if array.shape[-1:] != (2,) or array.ndim > 3:
        raise ValueError(f"points have shape {array.shape}; expected {_POINT_SHAPES}.")
    if array.ndim == 3 and array.shape[1] == 0 < len(array):
        raise ValueError(f"points have shape {array.shape}: objects without points.")
    return list(array.reshape(-1, 1, 2) if array.ndim < 3 else array)


def _labels(labels: Any, points: Any, rows: list[np.ndarray]) -> list[np.ndarray]:
    """One label for each point, in the nesting that the points have."""
    lengths = [len(row) for row in rows]
    if labels is None:
        return [np.ones(length, np.int32) for length in lengths]
    if _is_ragged(points):
        expected = f"one list for each object, of {lengths} labels"
        if not hasattr(labels, "__len__") or len(labels) != len(rows):
            raise ValueError(f"labels are {labels!r}; these points need {expected}.")
        given = [_numbers("labels", row, expected) for row in labels]
        if [row.shape for row in given] != [(length,) for length in lengths]:
            shapes = [row.shape for row in given]
            raise ValueError(f"labels have shapes {shapes}; these points need {expected}.")
        return given
    shape = to_numpy(points).shape[:-1] if rows else (0,)
    array = _numbers("labels", labels, f"shape {shape}")
    as_scalar = shape == () and array.shape == (1,)
    as_column = len(shape) == 1 and array.shape == (*shape, 1)
    if not (array.shape == shape or as_scalar or as_column):
        hint = ""
        if len(shape) == 1 and array.shape == (1, *shape):
            hint = (f" For one object of {shape[0]} points write the points as "
                    "[[[x, y], [x, y]]].")  # fmt: skip
        raise ValueError(
            f"labels have shape {array.shape}; points of shape {(*shape, 2)} need labels of shape "
            f"{shape}, 1 for the object and 0 for the background.{hint}"
        )
    return list(array.reshape(len(rows), -1)) if rows else []


def _masks(masks: Any, side: int) -> list[np.ndarray]:
    expected = (f"({side}, {side}) or (N, {side}, {side}): low-resolution logits, as "
                "result.masks.logits of an earlier prediction holds them")  # fmt: skip
    array = _array("masks", masks, expected)
    if array.dtype.kind in "biu" and array.size:
        raise ValueError(f"masks are {array.dtype}, not logits; expected {expected}.")
    return [row.astype(np.float32) for row in _rows("masks", masks, (side, side), expected)]


def _is_ragged(values: Any) -> bool:
    """Whether it is a list of lists of different lengths, or of arrays of different shapes."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not len(values):
        return False
    try:
        lengths = {len(value) for value in values}
    except TypeError:
        return False
    deep = all(len(value) and np.ndim(value[0]) for value in values)
    return deep and len(lengths) > 1


def _array(name: str, values: Any, expected: str) -> np.ndarray:
    try:
        return to_numpy(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read ({error}); expected {expected}.") from None


def _numbers(name: str, values: Any, expected: str) -> np.ndarray:
    array = _array(name, values, expected)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} hold {array.dtype} values, not numbers; expected {expected}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinity; every value has to be finite.")
    return array
