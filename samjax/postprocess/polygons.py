"""A mask as one polygon, for formats that know nothing else."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

_PAIRS_AT_ONCE = 2_000_000


def mask_to_polygon(mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "K 2"]:
    """The outline of a mask as one closed polygon of (x, y), float32, through pixel centres.

    Several parts, and holes, are joined by bridges of no width, each there and back between two
    near corners: the first ring's points up to the bridge, the whole other ring, the rest. Filled
    by the even-odd rule, or by the nonzero rule (holes run the other way round), it is the mask
    again, but for pixels that a renderer draws along the bridges. Empty for an empty mask.
    """
    pixels = np.ascontiguousarray(mask).view(np.uint8)
    x, y, width, height = cv2.boundingRect(pixels)
    contours, tree = cv2.findContours(
        pixels[y : y + height, x : x + width],
        cv2.RETR_CCOMP,
        cv2.CHAIN_APPROX_SIMPLE,
        offset=(x, y),
    )
    if not contours:
        return np.zeros((0, 2), np.float32)
    rings = [contour.reshape(-1, 2) for contour in contours]
    is_hole = tree.reshape(-1, 4)[:, 3] >= 0
    # Parts before the holes in them, so that no hole is bridged to another part's inside.
    order = sorted(range(len(rings)), key=lambda i: (is_hole[i], -len(rings[i])))
    polygon = rings[order[0]]
    for i in order[1:]:
        polygon = _bridged(polygon, rings[i])
    return polygon.astype(np.float32)


def _bridged(polygon: Int[np.ndarray, "K 2"], ring: Int[np.ndarray, "L 2"]) -> np.ndarray:
    i, j = _nearest(polygon, ring)
    there_and_back = np.concatenate([ring[j:], ring[: j + 1]])
    return np.concatenate([polygon[: i + 1], there_and_back, polygon[i:]])


def _nearest(a: Int[np.ndarray, "K 2"], b: Int[np.ndarray, "L 2"]) -> tuple[int, int]:
    """Indices of the two points that are nearest to each other."""
    step = max(1, _PAIRS_AT_ONCE // len(b))
    best = (np.inf, 0, 0)
    for start in range(0, len(a), step):
        offsets = a[start : start + step, None].astype(np.int64) - b
        squares = (offsets**2).sum(axis=-1)
        i, j = np.unravel_index(squares.argmin(), squares.shape)
        best = min(best, (float(squares[i, j]), start + int(i), int(j)))
    return best[1], best[2]
