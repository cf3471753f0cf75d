"""Boxes (x0, y0, x1, y1) on the host: suppression, crops, conversion."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64, Num


def nms(
    boxes: Num[np.ndarray, "N 4"],
    scores: Num[np.ndarray, "N"],
    iou_threshold: float,
) -> Int64[np.ndarray, "K"]:
    """Indices of the boxes that no better box covers, best score first.

    Equal to `torchvision.ops.nms`: areas in float32 without adding a pixel, ties in the order
    given, a box is dropped where its IoU with a kept one is strictly above `iou_threshold`. Two
    boxes without area have the IoU 0/0 and keep each other. NaN scores rank first.
    """
    scores = scores.astype(np.float32)
    order = np.lexsort((-scores, ~np.isnan(scores)))
    corners = np.ascontiguousarray(boxes.astype(np.float32)[order].T)
    areas = box_area(corners.T)
    threshold = _largest_float32_up_to(iou_threshold)
    alive = np.ones(len(order), np.bool_)
    for best in range(len(order)):
        if alive[best]:
            iou = _iou_with_first(corners[:, best:], areas[best:])
            alive[best + 1 :] &= ~(iou[1:] > threshold)
    return order[alive]


def _largest_float32_up_to(value: float) -> np.float32:
    """Above it lie just the float32 numbers above `value`: float32(0.3) is more than 0.3."""
    nearest = np.float32(value)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest


def _iou_with_first(
    corners: Float[np.ndarray, "4 N"], areas: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "N"]:
    x0, y0, x1, y1 = corners
    width = np.minimum(x1[0], x1) - np.maximum(x0[0], x0)
    height = np.minimum(y1[0], y1) - np.maximum(y0[0], y0)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / (areas[0] + areas - shared)


def box_area(boxes: Num[np.ndarray, "*N 4"]) -> Num[np.ndarray, "*N"]:
    """Width times height in the boxes' own dtype, no pixel added (`torchvision.ops.box_area`)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_xyxy_to_xywh(boxes: Num[np.ndarray, "*N 4"]) -> Num[np.ndarray, "*N 4"]:
    """(x0, y0, x1, y1) to (x0, y0, x1 - x0, y1 - y0), as in the generator's records."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def uncrop_boxes_xyxy(
    boxes: Num[np.ndarray, "*N 4"], crop_box: Sequence[int]
) -> Num[np.ndarray, "*N 4"]:
    """Boxes in a crop's pixels to boxes in the whole picture's, in the same dtype."""
    x0, y0, _, _ = crop_box
    return boxes + np.array([x0, y0, x0, y0], boxes.dtype)


def uncrop_points(
    points: Num[np.ndarray, "*N 2"], crop_box: Sequence[int]
) -> Num[np.ndarray, "*N 2"]:
    """Points (x, y) in a crop's pixels to points in the whole picture's, in the same dtype."""
    x0, y0, _, _ = crop_box
    return points + np.array([x0, y0], points.dtype)


def is_box_near_crop_edge(
    boxes: Num[np.ndarray, "N 4"],
    crop_box: Sequence[int],
    orig_box: Sequence[int],
    atol: float = 20.0,
) -> Bool[np.ndarray, "N"]:
    """Whether a side is cut off by the crop: near the crop's edge, not near the picture's.

    `boxes` are in the crop's pixels, `crop_box` and `orig_box` (0, 0, width, height) in the
    picture's; near is at most `atol` pixels away (reference: `amg.is_box_near_crop_edge`).
    """
    sides = uncrop_boxes_xyxy(boxes, crop_box).astype(np.float32)
    near_crop = np.abs(sides - np.asarray(crop_box, np.float32)) <= atol
    near_picture = np.abs(sides - np.asarray(orig_box, np.float32)) <= atol
    return np.any(near_crop & ~near_picture, axis=-1)
