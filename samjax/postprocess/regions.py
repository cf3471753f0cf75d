"""Small holes and islands of a mask."""

import cv2
import numpy as np
from jaxtyping import Bool


def remove_small_regions(
    mask: Bool[np.ndarray, "H W"], area_thresh: float, mode: str
) -> tuple[Bool[np.ndarray, "H W"], bool]:
    """Fill holes, or drop islands, of fewer than `area_thresh` pixels.

    Regions are 8-connected. Of islands that are all too small the largest stays, the first found
    among equals. Returns the mask, the very same one where nothing changed, and whether it
    changed (reference: `amg.remove_small_regions`).

    Raises ValueError where `mode` is neither "holes" nor "islands".
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode must be 'holes' or 'islands', not {mode!r}")
    regions_of = ~mask if mode == "holes" else mask
    _, regions, stats, _ = cv2.connectedComponentsWithStats(
        regions_of.astype(np.uint8), connectivity=8
    )
    areas = stats[:, cv2.CC_STAT_AREA]
    small = areas < area_thresh
    small[0] = False
    if not small.any():
        return mask, False
    if mode == "holes":
        filled = small
        filled[0] = True
        return filled[regions], True
    kept = ~small
    kept[0] = False
    if not kept.any():
        kept[1 + np.argmax(areas[1:])] = True
    return kept[regions], True
