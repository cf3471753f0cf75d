"""Masks as run lengths, in COCO's two forms.

Uncompressed, "counts" is a list of run lengths, column by column, beginning with the number of
zeros (0 where the first pixel is set). Compressed, it is the string that pycocotools makes of it.

Runs are found in masks of one bit for each pixel, 64 at a time. pycocotools, which looks at one
byte after the other, takes three times as long.
"""

from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Int, UInt8
from pycocotools import mask as coco

_MOST_CHARACTERS = 12
"""Of one number in a compressed string: 60 bits."""


class Rle(TypedDict):
    """One mask; `size` is [height, width]."""

    size: list[int]
    counts: list[int] | str | bytes


def mask_to_rle(mask: Bool[np.ndarray, "H W"]) -> Rle:
    """The uncompressed run lengths of a mask (reference: `amg.mask_to_rle_pytorch`).

    Raises ValueError for a mask without pixels.
    """
    return {"size": list(mask.shape), "counts": _lengths_in(mask).tolist()}


def compress_mask(mask: Bool[np.ndarray, "H W"]) -> Rle:
    """The compressed run lengths of a mask, "counts" as str: a byte or two for each run.

    Quicker and far smaller than the list of `mask_to_rle`. Raises ValueError for a mask without
    pixels.
    """
    return {"size": list(mask.shape), "counts": _string(_lengths_in(mask))}


def compress_packed(
    bits: UInt8[np.ndarray, "W B"],
    size: tuple[int, int],
    *,
    origin: tuple[int, int] = (0, 0),
    frame: tuple[int, int] | None = None,
) -> Rle:
    """The compressed run lengths of a mask as `measure_masks` gives it: its columns one after the
    other, eight rows in a byte, the first in the lowest bit, a multiple of eight bytes.

    `size` is (height, width) of the mask; bits beyond are 0. Where it is a crop, `origin` is (x0,
    y0) of it in the picture, and `frame` (height, width) of that.
    """
    height, width = size if frame is None else frame
    if size[0] == 8 * bits.shape[1] and (height, width) != size:  # no 0 after a column
        bits = np.pad(bits, ((0, 0), (0, 8)))
    columns, rows = np.divmod(_changes(bits), 8 * bits.shape[1])
    ends = (columns + origin[0]) * height + rows + origin[1]
    # A run that reaches the foot of the picture goes on at the head of the next column.
    goes_on = np.flatnonzero(ends[1:] == ends[:-1])
    if goes_on.size:
        ends = np.delete(ends, np.concatenate([goes_on, goes_on + 1]))
    return {"size": [height, width], "counts": _string(_lengths(ends, height * width))}


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
    return {"size": list(rle["size"]), "counts": _string(np.array(rle["counts"], np.int64))}


def _lengths_in(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "R"]:
    height, width = mask.shape
    if mask.size == 0:
        raise ValueError(f"a mask of {height} x {width} pixels has no runs")
    bits = np.packbits(mask.ravel(order="F"), bitorder="little")
    return _lengths(_changes(np.pad(bits, (0, -bits.size % 8))), mask.size)


def _lengths(ends: Int[np.ndarray, "E"], total: int) -> Int[np.ndarray, "R"]:
    """Of the runs that end there; the last one ends with the pixels, told or not."""
    if ends.size and ends[-1] == total:
        ends = ends[:-1]
    return np.diff(ends, prepend=0, append=total)


def _changes(bits: UInt8[np.ndarray, "*B"]) -> Int[np.ndarray, "E"]:
    """Which bits differ from the one before; before the first one there is a 0."""
    words = np.ascontiguousarray(bits).reshape(-1).view("<u8")
    changed = words << np.uint64(1)
    changed[1:] |= words[:-1] >> np.uint64(63)
    changed ^= words
    somewhere = np.flatnonzero(changed != 0)
    each = np.unpackbits(changed[somewhere].view(np.uint8), bitorder="little").view(np.bool_)
    word, bit = np.divmod(np.flatnonzero(each), 64)
    return 64 * somewhere[word] + bit


def _string(lengths: Int[np.ndarray, "R"]) -> str:
    """pycocotools' string of run lengths.

    It holds each number in characters of five bits above "0", lowest first, a sixth bit where more
    follow, in two's complement; from the fourth number on it is the difference from the number two
    before.
    """
    numbers = lengths.copy()
    numbers[3:] -= lengths[1:-2]
    characters = np.ones(len(numbers), np.int64)
    for count in range(1, _MOST_CHARACTERS):
        least = 16 << 5 * (count - 1)
        longer = (numbers >= least) | (numbers < -least)
        if not longer.any():
            break
        characters += longer
    ends = np.cumsum(characters)
    string = np.empty(characters.sum(), np.uint8)
    at, more = ends - characters, characters > 1
    while at.size:
        string[at] = ord("0") + (numbers & 31) + 32 * more
        at, numbers, characters = at[more] + 1, numbers[more] >> 5, characters[more] - 1
        more = characters > 1
    return string.tobytes().decode("ascii")


def _runs(rle: Rle) -> list[int]:
    """The run lengths of either form; `_string` says what the string is. pycocotools' own decoder
    takes some damaged strings for masks."""
    counts = rle["counts"]
    if isinstance(counts, list):
        return counts
    characters = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
    bits = characters.astype(np.int64) - ord("0")
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
