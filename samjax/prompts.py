"""From the points, boxes and masks people give to the padded arrays that compiled code takes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from samjax.types import PointLabel, Prompts

MIN_TOKENS = 2


class Tokens(NamedTuple):
    """One prompt's points and box corners, in the order the decoder was trained to see them."""

    coords: Float[np.ndarray, "T 2"]
    labels: Int[np.ndarray, "T"]


def tokens(
    point_coords: Float[np.ndarray, "N 2"] | None = None,
    point_labels: Int[np.ndarray, "N"] | None = None,
    box: Float[np.ndarray, "4"] | None = None,
) -> Tokens:
    """Points first, then the box's corners; points without a box are followed by NOT_A_POINT
    (reference: `PromptEncoder._embed_points` with `pad = boxes is None`)."""
    coords, labels = np.zeros((0, 2)), np.zeros(0, np.int32)
    if point_coords is not None:
        coords, labels = np.asarray(point_coords, np.float64), np.asarray(point_labels, np.int32)
    if box is not None:
        coords = np.concatenate([coords, np.asarray(box, np.float64).reshape(2, 2)])
        corners = [PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]
        labels = np.concatenate([labels, np.array(corners, np.int32)])
    elif point_coords is not None:
        coords = np.concatenate([coords, np.zeros((1, 2))])
        labels = np.concatenate([labels, np.array([PointLabel.NOT_A_POINT], np.int32)])
    return Tokens(coords, labels)


def pack(
    prompts: Sequence[Tokens],
    mask_inputs: Sequence[Float[np.ndarray, "h w"] | None] | None = None,
    *,
    num_prompts: int | None = None,
    num_tokens: int | None = None,
) -> Prompts:
    """Pads to a power of two of tokens (or to `num_tokens`) and of prompts (or to `num_prompts`),
    axes (P, T).

    So a handful of shapes serves prompts of any number and length. Padding tokens take part in
    nothing; padding prompts are to be dropped from the result. Raises `ValueError` when there are
    more prompts than `num_prompts`, or more tokens than `num_tokens` in one.
    """
    rows = padded_size(len(prompts)) if num_prompts is None else num_prompts
    if len(prompts) > rows:
        raise ValueError(f"{len(prompts)} prompts do not fit in {rows}; pack them in parts.")
    most = max((len(p.labels) for p in prompts), default=0)
    width = padded_size(most, MIN_TOKENS) if num_tokens is None else num_tokens
    if most > width:
        raise ValueError(f"{most} tokens do not fit in {width}.")
    coords = np.zeros((rows, width, 2), np.float32)
    labels = np.full((rows, width), PointLabel.PADDING, np.int32)
    for row, prompt in enumerate(prompts):
        coords[row, : len(prompt.labels)] = prompt.coords
        labels[row, : len(prompt.labels)] = prompt.labels

    given = (
        [] if mask_inputs is None else [(i, m) for i, m in enumerate(mask_inputs) if m is not None]
    )
    if not given:
        return Prompts(coords, labels)
    masks = np.zeros((rows, *given[0][1].shape), np.float32)
    has_mask = np.zeros(rows, bool)
    for row, mask in given:
        masks[row], has_mask[row] = mask, True
    return Prompts(coords, labels, masks, has_mask)


def padded_size(count: int, least: int = 1) -> int:
    """The next power of two, `least` at the least."""
    return max(least, 1 << max(count - 1, 0).bit_length())


def check_points(
    point_coords: np.ndarray | Sequence | None,
    point_labels: np.ndarray | Sequence | None,
    size: tuple[int, int],
) -> tuple[Float[np.ndarray, "N 2"], Int[np.ndarray, "N"]]:
    """Points and labels as arrays, for a picture of `size` (height, width).

    Raises `ValueError` for the wrong shape or length, values that are not finite, labels other
    than 1 (object), 0 (background) and -1 (the reference's "not a point"), and points outside the
    picture.
    """
    if point_coords is None or point_labels is None:
        missing = "point_labels" if point_labels is None else "point_coords"
        raise ValueError(
            f"{missing} is missing: point_coords (N, 2) and point_labels (N,), 1 for the object "
            "and 0 for the background, go together."
        )
    coords = _finite("point_coords", point_coords)
    labels = np.asarray(point_labels)
    if coords.ndim != 2 or coords.shape[1] != 2 or len(coords) == 0:
        raise ValueError(f"point_coords have shape {coords.shape}; expected (N, 2) with N > 0.")
    if labels.shape != coords.shape[:1]:
        raise ValueError(
            f"point_labels have shape {labels.shape}; {len(coords)} points need shape "
            f"({len(coords)},)."
        )
    known = (PointLabel.FOREGROUND, PointLabel.BACKGROUND, PointLabel.NOT_A_POINT)
    strange = labels[~np.isin(labels, known)]
    if strange.size:
        raise ValueError(f"a point label is {strange[0]!r}; use 1 (object) or 0 (background).")
    height, width = size
    real = coords[labels != PointLabel.NOT_A_POINT]
    outside = real[((real < 0) | (real > (width, height))).any(axis=1)]
    if len(outside):
        x, y = outside[0]
        raise ValueError(
            f"point ({x:g}, {y:g}) is outside the picture, which is {width} wide and {height} "
            "high; points are (x, y) in its pixels."
        )
    return coords, labels.astype(np.int32)


def check_box(box: np.ndarray | Sequence, size: tuple[int, int]) -> Float[np.ndarray, "4"]:
    """A box (x0, y0, x1, y1) as an array, for a picture of `size` (height, width).

    It may reach over the picture's edge. Raises `ValueError` for the wrong shape, values that are
    not finite, corners in the wrong order, and boxes wholly outside.
    """
    array = _finite("box", box)
    if array.shape != (4,):
        raise ValueError(f"box has shape {array.shape}; expected 4 numbers (x0, y0, x1, y1).")
    x0, y0, x1, y1 = array
    as_text = f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{as_text} is empty; it has to be (x0, y0, x1, y1), x0 < x1 and y0 < y1.")
    height, width = size
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise ValueError(
            f"{as_text} lies outside the picture, which is {width} wide and {height} high."
        )
    return array


def check_mask(mask_input: np.ndarray, side: int) -> Float[np.ndarray, "h w"]:
    """A mask prompt as (h, w) float32 logits.

    Raises `ValueError` for another shape than (1, side, side) or (side, side), values that are
    not finite, and masks that are not logits: a boolean mask has to be turned into logits first.
    """
    array = np.asarray(mask_input)
    if array.dtype == bool or (array.dtype.kind in "iu"):
        raise ValueError(
            f"mask_input is {array.dtype}; it takes low-resolution logits, as the third value of "
            "predict returns them (positive inside the mask, negative outside)."
        )
    if array.shape not in ((1, side, side), (side, side)):
        raise ValueError(
            f"mask_input has shape {array.shape}; expected (1, {side}, {side}): the low-resolution "
            "logits of an earlier prediction, not a mask of the picture's size."
        )
    return _finite("mask_input", array).astype(np.float32).reshape(side, side)


def _finite(name: str, values: np.ndarray | Sequence) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}.") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity; every value has to be finite.")
    return array
