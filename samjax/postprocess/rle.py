"""Masks as run lengths, in COCO's two forms.

Uncompressed, "counts" is a list of run lengths, column by column, beginning with the number of
zeros (0 where the first pixel is set). Compressed, it is a string of pycocotools' making.
"""

from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco

_MOST_CHARACTERS = 12
"""Of one number in a compressed string: 60 bits."""


class Rle(TypedDict):
    """One mask; `size` is [height, width]."""

    size: list[int]
    counts: list[int] | str | bytes


def mask_to_rle(mask: Bool[np.ndarray, "H W"]) -> Rle:
    """The uncompressed run lengths of a mask (reference: `amg.mask_to_rle_pytorch`).

    Masks in Fortran order are read in place, others are first copied to it.

    Raises ValueError for a mask without pixels.
    """
    height, width = mask.shape
    if mask.size == 0:
        raise ValueError(f"a mask of {height} x {width} pixels has no runs")
    pixels = mask.ravel(order="F")
    ends = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(ends, prepend=0, append=pixels.size).tolist()
    return {"size": [height, width], "counts": [0, *counts] if pixels[0] else counts}


def compress_mask(mask: Bool[np.ndarray, "H W"]) -> Rle:
    """The compressed run lengths of a mask, "counts" as str: a byte or two for each run.

    Quicker and far smaller than the list of `mask_to_rle`; masks in Fortran order are read in
    place. Raises ValueError for a mask without pixels.
    """
    height, width = mask.shape
    if mask.size == 0:
        raise ValueError(f"a mask of {height} x {width} pixels has no runs")
    compressed = coco.encode(np.asfortranarray(mask).view(np.uint8))
    return {"size": [height, width], "counts": compressed["counts"].decode("ascii")}


def uncompress_rle(rle: Rle) -> Rle:
    """Either form to run lengths in a list."""
    return {"size": list(rle["size"]), "counts": _runs(rle)}


def rle_to_mask(rle: Rle) -> Bool[np.ndarray, "H W"]:
    """The mask of either form, in Fortran order (reference: `amg.rle_to_mask`).

    Raises ValueError where the runs do not fill the size, or "counts" is no such string.
    """
    height, width = rle["size"]
    runs = np.array(_runs(rle), np.int64)
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(f"run lengths do not fill a mask of {height} x {width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def area_from_rle(rle: Rle) -> int:
    """The number of pixels set, of either form (reference: `amg.area_from_rle`)."""
    return sum(_runs(rle)[1::2])


def box_from_rle(rle: Rle) -> Int[np.ndarray, "4"]:
    """(x0, y0, x1, y1) from the first to the last pixel of a compressed mask, zeros for an empty
    one (reference: `amg.batched_mask_to_box`)."""
    x, y, width, height = coco.toBbox(rle).astype(np.int64)
    return np.array([x, y, x + max(width - 1, 0), y + max(height - 1, 0)])


def coco_encode_rle(rle: Rle) -> Rle:
    """Uncompressed to compressed, "counts" as str for JSON (reference: `amg.coco_encode_rle`)."""
    height, width = rle["size"]
    compressed = coco.frPyObjects(rle, height, width)
    return {"size": [height, width], "counts": compressed["counts"].decode("ascii")}


def _runs(rle: Rle) -> list[int]:
    """The run lengths of either form.

    pycocotools' string holds each number in characters of five bits above "0", lowest first, a
    sixth bit where more follow, in two's complement; from the fourth number on it is the
    difference from the number two before. Its own decoder takes some damaged strings for masks.
    """
    counts = rle["counts"]
    if isinstance(counts, list):
        return counts
    characters = counts.encode() if isinstance(counts, str) else counts
    bits = np.frombuffer(characters, np.uint8).astype(np.int64) - ord("0")
    if (strange := bits[(bits < 0) | (bits >= 64)]).size:
        character = chr(int(strange[0]) + ord("0"))
        raise ValueError(f"compressed run lengths contain the character {character!r}")
    if not bits.size:
        return []
    lasts = np.flatnonzero(bits < 32)
    if not lasts.size or lasts[-1] != bits.size - 1:
        raise ValueError("compressed run lengths end in the middle of a number")
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    lengths = lasts - firsts + 1
    if lengths.max() > _MOST_CHARACTERS:
        raise ValueError("compressed run lengths contain a number of more than 60 bits")
    places = np.arange(bits.size) - np.repeat(firsts, lengths)
    runs = np.add.reduceat((bits & 31) << (5 * places), firsts)
    runs -= (bits[lasts] & 16) << (5 * lengths - 4)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs.tolist()
