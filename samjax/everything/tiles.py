"""Overlapping windows of one size that cover a picture."""

import itertools
from collections.abc import Sequence

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels; x1 and y1 are exclusive."""


def tile_boxes(size: Sequence[int], tile: int, overlap: float) -> list[Box]:
    """Windows of a picture (height, width), row by row.

    All have `tile` pixels a side, or the picture's where it has less. They are as few as neighbours
    that share at least `overlap` of a side allow, and spread evenly over what there is.

    Raises `ValueError` for a tile below 2 pixels, or an `overlap` outside 0..0.5.
    """
    if tile < 2:
        raise ValueError(f"a tile has {tile} pixels a side; it needs at least 2.")
    if not 0 <= overlap <= 0.5:
        raise ValueError(f"the tiles' overlap is {overlap}; it is a share of a side in [0, 0.5].")
    shared = max(1, round(tile * overlap)) if overlap else 0
    rows, columns = (_starts(length, tile, tile - shared) for length in size)
    height, width = (min(tile, length) for length in size)
    return [(x, y, x + width, y + height) for y, x in itertools.product(rows, columns)]


def _starts(length: int, tile: int, largest_step: int) -> list[int]:
    slack = max(0, length - tile)
    steps = -(-slack // largest_step)
    return [slack * i // steps for i in range(steps + 1)] if steps else [0]


def common(a: Box, b: Box) -> Box | None:
    """What two boxes share."""
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
