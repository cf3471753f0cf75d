"""Masks and prompts drawn over a picture."""

import colorsys
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Integer, Num, UInt8

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_FOREGROUND = (46, 204, 64)
_BACKGROUND = (255, 51, 51)
_BOX = (46, 204, 64)
_RIM = (255, 255, 255)
_SHIFT = 4
"""OpenCV takes sub-pixel coordinates as integers with this many fractional bits."""
_ROWS_AT_ONCE = 256
"""Blended in floats, of which a large picture has no room for all."""


class _Outline(NamedTuple):
    area: int
    contours: Sequence[np.ndarray]
    colour: int


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    masks: Iterable[np.ndarray],
    *,
    boxes: Num[np.ndarray, "B 4"] | None = None,
    points: Num[np.ndarray, "N 2"] | None = None,
    labels: Integer[np.ndarray, "N"] | None = None,
    alpha: float = 0.5,
    seed: int = 0,
    box_texts: Sequence[str] = (),
    line_width: int | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """A picture to look at: masks in colour with an outline, prompts on top.

    Args:
        image: RGB; not changed.
        masks: boolean (H, W), any number, read once and one at a time: a generator will do.
            Where masks overlap, the smallest is seen.
        boxes: (x0, y0, x1, y1) in pixels.
        points: (x, y) in pixels.
        labels: 1 for a foreground point, a green star, 0 for a background point, a red disc;
            all foreground when absent.
        alpha: opacity of the colours, from 0 to 1.
        seed: another seed, another set of colours. The n-th mask has the n-th colour.
        box_texts: written beside the boxes, one for each, or none at all.
        line_width: of outlines, in pixels; by the picture's size when absent.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: a mask of another size than the picture; labels of another number than the
            points, without points, or neither 0 nor 1; coordinates that are NaN or infinite;
            `alpha` outside [0, 1]; texts of another number than the boxes; a line width below 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
    if line_width is not None and line_width < 1:
        raise ValueError(f"line_width is {line_width}; it has to be at least 1 pixel")
    owner, outlines = _claim_pixels(masks, image.shape[:2])
    colours = _palette(len(outlines), seed=seed)
    canvas = _tint(image, owner, colours, alpha=alpha)

    width = line_width or _line_width(image.shape[:2])
    for outline in sorted(outlines, key=lambda outline: -outline.area):
        colour = tuple(int(c) for c in _lighten(colours[outline.colour]))
        cv2.drawContours(canvas, outline.contours, -1, colour, width, cv2.LINE_AA)
    if boxes is not None:
        _draw_boxes(canvas, _checked(boxes, name="boxes"), width=width + 1)
    if len(box_texts):
        corners = np.zeros((0, 2)) if boxes is None else boxes[:, :2]
        if len(box_texts) != len(corners):
            raise ValueError(f"{len(box_texts)} texts for {len(corners)} boxes")
        _draw_texts(canvas, corners, box_texts, width=width)
    if points is not None:
        labels = _checked_labels(labels, len(points))
        _draw_points(canvas, _checked(points, name="points"), labels, radius=5 * width + 1)
    elif labels is not None:
        raise ValueError("labels were given without points")
    return canvas


def _claim_pixels(
    masks: Iterable[np.ndarray], size: tuple[int, int]
) -> tuple[Integer[np.ndarray, "H W"], list[_Outline]]:
    """For each pixel the index of the smallest mask over it, or -1; and each mask's outline."""
    owner = np.full(size, -1, np.int32)
    owner_area = np.full(size, np.iinfo(np.int32).max, np.int32)
    outlines = []
    for index, mask in enumerate(masks):
        if mask.dtype != np.bool_:
            raise TypeError(f"mask {index} has dtype {mask.dtype}; expected bool (mask > 0)")
        if mask.shape != size:
            raise ValueError(f"mask {index} has shape {mask.shape}; the picture is {size}")
        pixels = np.ascontiguousarray(mask).view(np.uint8)
        x, y, width, height = cv2.boundingRect(pixels)
        inside = np.s_[y : y + height, x : x + width]
        area = int(np.count_nonzero(mask[inside]))
        claimed = mask[inside] & (area < owner_area[inside])
        owner[inside][claimed] = index
        owner_area[inside][claimed] = area
        contours, _ = cv2.findContours(
            pixels[inside], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
        )
        outlines.append(_Outline(area, contours, index))
    return owner, outlines


def _palette(count: int, *, seed: int) -> UInt8[np.ndarray, "count 3"]:
    """`count` RGB colours: hues a golden ratio apart, so that neighbours in order differ most."""
    start = np.random.default_rng(seed).random()
    hues = (start + _GOLDEN_RATIO * np.arange(count)) % 1
    saturations = np.array([0.85, 0.6, 0.95])[np.arange(count) % 3]
    values = np.array([1.0, 0.95, 0.8])[np.arange(count) // 3 % 3]
    colours = [colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues, saturations, values, strict=True)]
    return np.rint(np.array(colours).reshape(count, 3) * 255).astype(np.uint8)


def _lighten(colour: UInt8[np.ndarray, "3"]) -> UInt8[np.ndarray, "3"]:
    return (127 + colour // 2).astype(np.uint8)


def _tint(
    image: UInt8[np.ndarray, "H W 3"],
    owner: Integer[np.ndarray, "H W"],
    colours: UInt8[np.ndarray, "M 3"],
    *,
    alpha: float,
) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of the picture in which owned pixels are blended with their mask's colour."""
    canvas = image.copy()
    for top in range(0, len(image), _ROWS_AT_ONCE):
        rows = np.s_[top : top + _ROWS_AT_ONCE]
        owned = owner[rows] >= 0
        covered = image[rows][owned].astype(np.float32)
        blend = (1 - alpha) * covered + alpha * colours[owner[rows][owned]]
        canvas[rows][owned] = np.rint(blend).astype(np.uint8)
    return canvas


def _line_width(size: tuple[int, int]) -> int:
    """One pixel for each 700 of the longer side, at least one."""
    return max(1, round(max(size) / 700))


def _checked(coordinates: Num[np.ndarray, "N D"], *, name: str) -> Num[np.ndarray, "N D"]:
    if not np.isfinite(coordinates).all():
        raise ValueError(f"{name} have NaN or infinite coordinates")
    return coordinates


def _checked_labels(labels: np.ndarray | None, n_points: int) -> np.ndarray:
    labels = np.ones(n_points, np.int32) if labels is None else labels
    if len(labels) != n_points:
        raise ValueError(f"{len(labels)} labels for {n_points} points")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 1 (foreground) or 0 (background)")
    return labels


def _fixed_point(coordinates: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's int32 coordinates, brought near the picture so that they cannot overflow."""
    reach = 2 * max(size) + 100
    near = np.clip(coordinates.astype(np.float64), -reach, reach)
    return np.rint(near * 2**_SHIFT).astype(np.int32)


def _draw_boxes(canvas: np.ndarray, boxes: Num[np.ndarray, "B 4"], *, width: int) -> None:
    for x0, y0, x1, y1 in _fixed_point(boxes, canvas.shape[:2]).tolist():
        for colour, thickness in ((_RIM, width + 2), (_BOX, width)):
            cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, thickness, cv2.LINE_AA, _SHIFT)


def _draw_texts(
    canvas: np.ndarray, corners: Num[np.ndarray, "N 2"], texts: Sequence[str], *, width: int
) -> None:
    """Dark on the boxes' colour, above the corner where there is room and below it elsewhere."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.35 + 0.1 * width
    for (x, y), text in zip(corners.tolist(), texts, strict=True):
        (across, up), below = cv2.getTextSize(text, font, scale, width)
        left = max(0, min(round(x), canvas.shape[1] - across - 2))
        bottom = max(round(y), up + below + 2)
        cv2.rectangle(
            canvas, (left, bottom - up - below - 2), (left + across + 2, bottom), _BOX, -1
        )
        place = (left + 1, bottom - below)
        cv2.putText(canvas, text, place, font, scale, (0, 0, 0), width, cv2.LINE_AA)


def _draw_points(
    canvas: np.ndarray,
    points: Num[np.ndarray, "N 2"],
    labels: Integer[np.ndarray, "N"],
    *,
    radius: int,
) -> None:
    for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True):
        outline = _star() if label == 1 else _disc()
        colour = _FOREGROUND if label == 1 else _BACKGROUND
        for scale, paint in ((radius + max(1.5, radius / 3), _RIM), (radius, colour)):
            corners = _fixed_point(np.array([x, y]) + scale * outline, canvas.shape[:2])
            cv2.fillPoly(canvas, [corners], paint, cv2.LINE_AA, _SHIFT)


def _star() -> Num[np.ndarray, "10 2"]:
    """The corners of a five-pointed star of radius 1.2 that stands on two of its points."""
    turns = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.2, 0.5)
    return np.stack([radii * np.sin(turns), -radii * np.cos(turns)], axis=-1)


def _disc() -> Num[np.ndarray, "32 2"]:
    turns = np.arange(32) * np.pi / 16
    return 0.85 * np.stack([np.sin(turns), np.cos(turns)], axis=-1)
