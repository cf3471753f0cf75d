"""Numbers of single masks, at the picture's own resolution."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64


class Click(NamedTuple):
    """A pixel and its label: 1 on the object, 0 on the background (`samjax.types.PointLabel`)."""

    x: int
    y: int
    label: int


def mask_iou(
    masks: Bool[np.ndarray, "*#N H W"], others: Bool[np.ndarray, "*#N H W"]
) -> Float64[np.ndarray, "*N"]:
    """Pixels in both by pixels in either, in [0, 1]; leading axes broadcast.

    Two masks without a pixel are equal: 1.
    """
    shared = np.asarray((masks & others).sum(axis=(-2, -1)), np.float64)
    either = np.asarray((masks | others).sum(axis=(-2, -1)), np.float64)
    return np.asarray(np.where(either == 0, 1.0, shared / np.maximum(either, 1)))


def farthest_point(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, float]:
    """The pixel (x, y) of a mask that is farthest from its boundary, and how far that is.

    The distance is Euclidean, to the nearest pixel outside the mask; all beyond the picture is
    outside. Which of several equally far pixels it is, is left to the rounding of OpenCV's
    distances. The distance is 0 for an empty mask.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    distances = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(distances)), mask.shape)
    return int(x), int(y), float(distances[y, x])


def next_click(
    truth: Bool[np.ndarray, "H W"], prediction: Bool[np.ndarray, "H W"] | None = None
) -> Click | None:
    """Where Meta's protocol clicks next, or None where nothing is wrong.

    Without a prediction it is the object's pixel farthest from its boundary. Then it is the pixel
    farthest from the boundary of the error, which is looked for in the part that is missing and in
    the part that is too much, each by itself: positive in the one, negative in the other (Kirillov
    et al. 2023, appendix D.1; Sofiiuk et al. 2021 for the two parts). Equally far, it is positive.
    """
    if prediction is None:
        prediction = np.zeros_like(truth)
    x, y, missing = farthest_point(truth & ~prediction)
    other_x, other_y, too_much = farthest_point(prediction & ~truth)
    if missing == too_much == 0:
        return None
    return Click(x, y, 1) if missing >= too_much else Click(other_x, other_y, 0)


def boxes_of_masks(masks: Bool[np.ndarray, "P H W"]) -> Int64[np.ndarray, "P 4"]:
    """Boxes (x0, y0, x1, y1) around the masks' pixels, from edge to edge, as COCO's: x1 - x0 is the
    width in pixels.

    Raises ValueError for a mask without a pixel.
    """
    boxes = np.zeros((len(masks), 4), np.int64)
    for i, mask in enumerate(masks):
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if not len(columns):
            raise ValueError(f"mask {i} has no pixel, so it has no box")
        boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def filled_box_iou(mask: Bool[np.ndarray, "H W"]) -> float:
    """IoU of a mask with its own box, filled: what a box prompt is worth without a model."""
    return float(mask_iou(_inside_box(mask), np.ones_like(_inside_box(mask))))


def filled_ellipse_iou(mask: Bool[np.ndarray, "H W"]) -> float:
    """IoU of a mask with the pixels whose centres are in the ellipse that its box encloses."""
    inside = _inside_box(mask)
    height, width = inside.shape
    y = (np.arange(height) + 0.5) / height * 2 - 1
    x = (np.arange(width) + 0.5) / width * 2 - 1
    return float(mask_iou(inside, y[:, None] ** 2 + x**2 <= 1))


def _inside_box(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "h w"]:
    x0, y0, x1, y1 = boxes_of_masks(mask[None])[0]
    return mask[y0:y1, x0:x1]
