"""Run lengths moved from one frame to another, by arithmetic and without a bitmap."""

from collections.abc import Sequence

import numpy as np

from samjax.postprocess.rle import Rle, coco_encode_rle, uncompress_rle

LARGEST_FRAME = 2**32 - 1
"""Pixels of the largest frame: pycocotools counts them in 32 bits."""


def reframe_rle(rle: Rle, box: Sequence[int]) -> Rle:
    """A mask as it is seen in the window `box` (x0, y0, x1, y1) of its own frame, compressed.

    x1 and y1 are exclusive. The window may reach beyond the frame, where nothing is set: a crop's
    mask is placed in the whole picture by the picture's box in the crop's coordinates. Time and
    memory go with the number of runs, not of pixels.

    Raises `ValueError` for a window without pixels or with more than 2**32 - 1, and for a damaged
    RLE.
    """
    x0, y0, x1, y1 = map(int, box)
    if x1 <= x0 or y1 <= y0 or (x1 - x0) * (y1 - y0) > LARGEST_FRAME:
        raise ValueError(
            f"the window {(x0, y0, x1, y1)} has no pixels, or more than the {LARGEST_FRAME} that "
            "run lengths can count"
        )
    columns, tops, bottoms = _strokes(rle)
    tops, bottoms = np.maximum(tops, y0) - y0, np.minimum(bottoms, y1) - y0
    inside = (columns >= x0) & (columns < x1) & (tops < bottoms)
    height = y1 - y0
    first = (columns[inside] - x0) * height
    starts, ends = first + tops[inside], first + bottoms[inside]
    apart = starts[1:] != ends[:-1]
    starts = starts[np.concatenate([np.ones(len(starts[:1]), bool), apart])]
    ends = ends[np.concatenate([apart, np.ones(len(ends[:1]), bool)])]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=(x1 - x0) * height).tolist()
    if counts[-1] == 0:
        counts.pop()
    return coco_encode_rle({"size": [height, x1 - x0], "counts": counts})


def _strokes(rle: Rle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The set pixels as vertical strokes: column, first row, row after the last; in order."""
    height, width = rle["size"]
    runs = np.array(uncompress_rle(rle)["counts"], np.int64)
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(f"run lengths do not fill a mask of {height} x {width} pixels")
    edges = np.cumsum(runs)
    ends = edges[1::2]
    starts = edges[0::2][: len(ends)]
    starts, ends = starts[starts < ends], ends[starts < ends]
    first_columns = starts // height
    numbers = (ends - 1) // height - first_columns + 1
    run = np.repeat(np.arange(len(starts)), numbers)
    columns = first_columns[run] + np.arange(len(run)) - (np.cumsum(numbers) - numbers)[run]
    tops = np.maximum(starts[run] - columns * height, 0)
    bottoms = np.minimum(ends[run] - columns * height, height)
    return columns, tops, bottoms
