"""One annotated picture, and the account of what had to be left out."""

import dataclasses
import enum
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from samjax.images import read_image
from samjax.postprocess.rle import Rle, rle_to_mask

NUM_EXAMPLES = 3
"""Places that a report names for each reason."""


class Reason(enum.StrEnum):
    """Why a picture or a mask is left out."""

    MISSING_PICTURE = "missing picture"
    BROKEN_PICTURE = "broken picture"
    PICTURE_SIZE = "picture of another size than its annotations"
    BROKEN_ANNOTATIONS = "broken annotations"
    NO_MASKS = "picture without masks"
    UNKNOWN_PICTURE = "mask of an unknown picture"
    UNKNOWN_CATEGORY = "unknown category"
    CROWD = "crowd"
    BROKEN_MASK = "broken mask"
    MASK_SIZE = "mask of another size than the picture"
    DEGENERATE_POLYGON = "degenerate polygon"
    EMPTY_MASK = "empty mask"
    VANISHED = "area 0 after resize"


REASONS = tuple(Reason)
"""The order of the counts in `Report.add_counts`."""


class BadRecordError(ValueError):
    """A picture or a mask that cannot be used; `reason` says why, the text says which."""

    def __init__(self, reason: Reason, text: str):
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text

    def __reduce__(self):
        return BadRecordError, (self.reason, self.text)


class Finding(NamedTuple):
    """One thing that was left out, and where."""

    reason: Reason
    text: str


class Record(NamedTuple):
    """A picture file, its (height, width), and its masks as run lengths of either of COCO's forms.

    `left_out` are the masks that could not be used as far as can be told without decoding them:
    `decode_mask` finds the rest.
    """

    path: Path
    size: tuple[int, int]
    masks: tuple[Rle, ...]
    source: str
    left_out: tuple[Finding, ...] = ()


@dataclasses.dataclass
class Report:
    """Counts of what was left out, with a few places for each reason; `str` gives a table.

    `masks` is None where they have not been counted.
    """

    name: str
    pictures: int = 0
    masks: int | None = None
    counts: Counter[Reason] = dataclasses.field(default_factory=Counter)
    examples: dict[Reason, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        for reason, text in findings:
            self.counts[reason] += 1
            examples = self.examples.setdefault(reason, [])
            if len(examples) < NUM_EXAMPLES:
                examples.append(text)

    def add_counts(self, counts: Integer[np.ndarray, "*B R"]) -> None:
        """Numbers of findings in the order of `REASONS`, summed over leading axes."""
        totals = counts.reshape(-1, len(REASONS)).sum(axis=0).tolist()
        self.counts.update({r: n for r, n in zip(REASONS, totals, strict=True) if n})

    def copy(self) -> "Report":
        examples = {reason: list(texts) for reason, texts in self.examples.items()}
        return Report(self.name, self.pictures, self.masks, Counter(self.counts), examples)

    def __str__(self) -> str:
        masks = "" if self.masks is None else f", {self.masks:,} masks"
        lines = [f"{self.name}: {self.pictures:,} pictures{masks}"]
        width = max((len(reason) for reason in self.counts), default=0)
        for reason in REASONS:
            if count := self.counts[reason]:
                texts = self.examples.get(reason, [])
                more = ", ..." if count > len(texts) > 0 else ""
                line = f"  left out: {reason:{width}}  {count:7,}  {', '.join(texts)}{more}"
                lines.append(line.rstrip())
        return "\n".join(lines)


def read_picture(record: Record) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a record's picture, RGB.

    Upright by its EXIF orientation, as `samjax.images.read_image` reads it; a picture that this
    turns to another size than its annotations have cannot be used.

    Raises BadRecordError for a missing or broken file, or one of another size than its annotations.
    """
    try:
        image = read_image(record.path)
    except FileNotFoundError as error:
        raise BadRecordError(Reason.MISSING_PICTURE, str(record.path)) from error
    except (ValueError, OSError) as error:
        text = str(error) if str(record.path) in str(error) else f"{record.path}: {error}"
        raise BadRecordError(Reason.BROKEN_PICTURE, text) from error
    if image.shape[:2] != record.size:
        height, width = record.size
        text = (
            f"{record.path} is {image.shape[0]} high and {image.shape[1]} wide, "
            f"its annotations {height} and {width}"
        )
        raise BadRecordError(Reason.PICTURE_SIZE, text)
    return image


def decode_mask(record: Record, index: int) -> Bool[np.ndarray, "H W"]:
    """The record's mask of that index.

    Raises BadRecordError for run lengths that are no mask, and for a mask without a pixel.
    """
    where = f"mask {index} of {record.path.name}"
    try:
        mask = rle_to_mask(record.masks[index])
    except (ValueError, TypeError, OverflowError, IndexError) as error:
        raise BadRecordError(Reason.BROKEN_MASK, f"{where}: {error}") from error
    if not mask.any():
        raise BadRecordError(Reason.EMPTY_MASK, where)
    return mask
