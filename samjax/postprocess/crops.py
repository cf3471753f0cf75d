"""Where "everything" looks: grids of points, and overlapping crops of the picture."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64


def build_point_grid(n_per_side: int) -> Float64[np.ndarray, "N 2"]:
    """`n_per_side` squared points (x, y) in [0, 1], row by row, each in the middle of its cell.

    Reference: `amg.build_point_grid`. Raises ValueError for less than one point a side.
    """
    if n_per_side < 1:
        raise ValueError(f"a point grid needs at least 1 point per side, not {n_per_side}")
    offset = 1 / (2 * n_per_side)
    side = np.linspace(offset, 1 - offset, n_per_side)
    x, y = np.meshgrid(side, side)
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def build_all_layer_point_grids(
    n_per_side: int, n_layers: int, scale_per_layer: int
) -> list[Float64[np.ndarray, "N 2"]]:
    """The grid of the whole picture, then one for the crops of each of `n_layers` layers.

    Each layer has `n_per_side` points a side, divided by `scale_per_layer` once for each layer
    above it and rounded down (reference: `amg.build_all_layer_point_grids`).

    Raises ValueError where a layer's grid would be empty.
    """
    grids = []
    for layer in range(n_layers + 1):
        n_points = int(n_per_side / scale_per_layer**layer)
        if n_points < 1:
            raise ValueError(
                f"the point grid of crop layer {layer} would be empty: {n_per_side} points per "
                f"side, divided by {scale_per_layer} to the power of {layer}. Use more points "
                "per side, fewer crop layers or a smaller downscale factor"
            )
        grids.append(build_point_grid(n_points))
    return grids


def generate_crop_boxes(
    im_size: Sequence[int], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """Crops [x0, y0, x1, y1] of a picture (height, width), and the layer each belongs to.

    Layer 0 is the whole picture; layer i has 2**i crops a side, column by column, which overlap
    by `overlap_ratio` of the shorter side in layer 1 and by half as much in each further layer
    (reference: `amg.generate_crop_boxes`). One deviation: crops without pixels, which the
    reference lists in pictures of a few pixels and then fails on, are left out.

    Raises ValueError for a side below one pixel, a negative `n_layers`, or an `overlap_ratio`
    outside [0, 1].
    """
    height, width = im_size
    if min(height, width) < 1:
        raise ValueError(f"a picture of {height} x {width} pixels has none to crop")
    if n_layers < 0:
        raise ValueError(f"the number of crop layers must not be negative, as {n_layers} is")
    if not 0 <= overlap_ratio <= 1:
        raise ValueError(f"the crops' overlap ratio must lie in [0, 1], not {overlap_ratio}")
    boxes, layers = [[0, 0, width, height]], [0]
    for layer in range(1, n_layers + 1):
        n_per_side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / n_per_side))
        columns = _split(width, n_per_side, overlap)
        rows = _split(height, n_per_side, overlap)
        for (x0, x1), (y0, y1) in itertools.product(columns, rows):
            boxes.append([x0, y0, x1, y1])
            layers.append(layer)
    return boxes, layers


def _split(length: int, parts: int, overlap: int) -> list[tuple[int, int]]:
    """Equal, overlapping stretches of one axis: start and end, cut at `length`, none empty."""
    size = math.ceil((overlap * (parts - 1) + length) / parts)
    starts = [(size - overlap) * i for i in range(parts)]
    return [(start, min(start + size, length)) for start in starts if start < length]


def uncrop_mask(
    mask: Bool[np.ndarray, "h w"], crop_box: Sequence[int], original_size: Sequence[int]
) -> Bool[np.ndarray, "H W"]:
    """A crop's mask in a frame of the picture's (height, width), False outside the crop.

    The memory order of `mask` is kept (reference: `amg.uncrop_masks`, one mask at a time).
    """
    x0, y0, x1, y1 = crop_box
    height, width = original_size
    if mask.shape == (height, width):
        return mask
    whole = np.zeros((height, width), np.bool_, "F" if mask.flags.f_contiguous else "C")
    whole[y0:y1, x0:x1] = mask
    return whole
