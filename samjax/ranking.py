"""Masks in the order of what a function of the caller's thinks of the picture in them.

With CLIP as that function it is text to mask (appendix D.5): docs/text_to_mask.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Num, UInt8

from samjax.everything.masks import compressed
from samjax.everything.pictures import Source
from samjax.images import read_image
from samjax.postprocess import box_from_rle, reframe_rle, rle_to_mask

Score = Callable[[list[np.ndarray]], Any]
"""Crops of (h, w, 3) uint8 RGB, of any size, to as many numbers: more is better."""


def rank_by(
    records: Sequence[Mapping[str, Any]],
    image: Source,
    score: Score,
    *,
    crop: Literal["box", "masked"] = "box",
    padding: float = 0.0,
    square: bool = False,
    fill: int = 0,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """The records of everything with a "score", the best first; equal ones in the order given.

    Args:
      records: of a generator, of any output mode, tiled or not. They are not changed.
      image: the picture they are of: a file, or an array as `SamPredictor.set_image` takes.
      score: called with lists of at most `batch_size` crops, in the records' order.
      crop: "box" is all of the picture in the mask's box; in "masked" what is outside the mask has
        the value `fill`. The paper takes one or the other for each mask, by chance.
      padding: by how much the box grows on each side, as a share of its own width and height, as
        far as the picture goes. The paper's 1 to 2 times the box are 0 to 0.5.
      square: makes crops square with margins of `fill`, for scorers that would cut off the ends.
      fill: 0..255; the paper's is 0.
      batch_size: crops in memory at a time.

    Raises `ValueError` for an argument out of range, a mask of another size than the picture or
    without pixels, and where `score` does not return one finite number for each crop.
    """
    if crop not in ("box", "masked"):
        raise ValueError(f"crop is {crop!r}; use 'box' or 'masked'.")
    if not (math.isfinite(padding) and padding >= 0):
        raise ValueError(f"padding is {padding}; it is a share of the box, 0 or more.")
    if not 0 <= fill <= 255:
        raise ValueError(f"fill is {fill}; it is a pixel's value in 0..255.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it has to be at least 1.")
    pixels = read_image(image)
    scores: list[float] = []
    for start in range(0, len(records), batch_size):
        crops = []
        for i, record in enumerate(records[start : start + batch_size], start):
            cut = _crop(record, i, pixels, padding, fill if crop == "masked" else None)
            crops.append(_squared(cut, fill) if square else cut)
        scores += _checked(score(crops), len(crops)).tolist()
    order = sorted(range(len(records)), key=lambda i: -scores[i])
    return [{**records[i], "score": scores[i]} for i in order]


def _crop(
    record: Mapping[str, Any],
    index: int,
    image: UInt8[np.ndarray, "H W 3"],
    padding: float,
    blank: int | None,
) -> UInt8[np.ndarray, "h w 3"]:
    rle = compressed(record["segmentation"])
    height, width, _ = image.shape
    if list(rle["size"]) != [height, width]:
        raise ValueError(
            f"the mask of record {index} has (height, width) {tuple(rle['size'])}, and the picture "
            f"{(height, width)}; give the picture that the records are of."
        )
    left, top, right, bottom = box_from_rle(rle).tolist()
    mask = rle_to_mask(reframe_rle(rle, (left, top, right + 1, bottom + 1)))
    if not mask.any():
        raise ValueError(f"the mask of record {index} has no pixels; leave it out.")
    more_x = round(padding * (right + 1 - left))
    more_y = round(padding * (bottom + 1 - top))
    x0, y0 = max(0, left - more_x), max(0, top - more_y)
    x1, y1 = min(width, right + 1 + more_x), min(height, bottom + 1 + more_y)
    cut = image[y0:y1, x0:x1].copy()
    if blank is not None:
        cut[~rle_to_mask(reframe_rle(rle, (x0, y0, x1, y1)))] = blank
    return cut


def _squared(crop: UInt8[np.ndarray, "h w 3"], fill: int) -> UInt8[np.ndarray, "s s 3"]:
    height, width, _ = crop.shape
    side = max(height, width)
    y, x = (side - height) // 2, (side - width) // 2
    whole = np.full((side, side, 3), fill, np.uint8)
    whole[y : y + height, x : x + width] = crop
    return whole


def _checked(scores: Any, number: int) -> Num[np.ndarray, "N"]:
    found = np.asarray(scores)
    if found.shape != (number,) or found.dtype.kind not in "biuf":
        raise ValueError(
            f"score returned shape {found.shape}, dtype {found.dtype} for {number} crops; expected "
            f"numbers of shape ({number},), one for each."
        )
    if not np.isfinite(found).all():
        raise ValueError("score returned NaN or infinity; expected finite numbers.")
    return found.astype(np.float64)
