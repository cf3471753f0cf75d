"""The result of an evaluation: for people, for spreadsheets and for programs."""

import csv
import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from samjax.checkpoint import write_beside
from samjax.images import write_json

SMALL, LARGE = 32**2, 96**2
"""COCO's bounds between small, medium and large things, in pixels."""


class Group(NamedTuple):
    """Things of an area from `least` pixels, to less than `below`."""

    name: str
    least: float
    below: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """IoUs of each thing under each protocol, and how they were found.

    `ious` has one array for each protocol, all in the order of `areas`. `left_out` counts what of
    the data could not be used, by reason.
    """

    model: str
    data: str
    min_area: int
    num_pictures: int
    areas: Int64[np.ndarray, "N"]
    ious: Mapping[str, Float64[np.ndarray, "N"]]
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def groups(self) -> list[Group]:
        """All things, then by COCO's area classes; without classes below the least area."""
        bounds = [self.min_area, *(b for b in (SMALL, LARGE) if b > self.min_area), math.inf]
        classes = [
            Group(f"{low} and more" if high == math.inf else f"{low} to {high - 1:.0f}", low, high)
            for low, high in zip(bounds[:-1], bounds[1:], strict=True)
        ]
        return [Group("all", self.min_area, math.inf), *classes]

    def members(self, group: Group) -> np.ndarray:
        """Which things (N,) belong to the group, bool."""
        return (self.areas >= group.least) & (self.areas < group.below)

    def mean_iou(self, protocol: str, group: Group | None = None) -> float:
        """The mean over things, NaN where there is none. All things, unless a group is given."""
        ious = self.ious[protocol]
        chosen = ious if group is None else ious[self.members(group)]
        return float(chosen.mean()) if len(chosen) else math.nan

    def rows(self) -> list[dict[str, Any]]:
        """One for each protocol and group: protocol, pixels, things, mean_iou (or None)."""
        rows = []
        for protocol in self.ious:
            for group in self.groups():
                mean = self.mean_iou(protocol, group)
                rows.append(
                    {
                        "protocol": protocol,
                        "pixels": group.name,
                        "things": int(self.members(group).sum()),
                        "mean_iou": None if math.isnan(mean) else mean,
                    }
                )
        return rows

    def table(self) -> str:
        """Mean IoU, a line for each protocol and a column for each class of area."""
        groups = self.groups()
        head = ["mean IoU", *(group.name for group in groups)]
        sizes = ["things", *(f"{int(self.members(group).sum()):,}" for group in groups)]
        lines = [[p, *(_text(self.mean_iou(p, g)) for g in groups)] for p in self.ious]
        columns = list(zip(head, sizes, *lines, strict=True))
        widths = [max(map(len, column)) for column in columns]
        text = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in [head, sizes, *lines]
        ]
        return "\n".join(text)

    def write(self, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Writes evaluation.csv (the rows) and evaluation.json (rows and all settings).

        Each file is whole or the old one. Raises OSError where the folder cannot be written.
        """
        table, whole = Path(folder, "evaluation.csv"), Path(folder, "evaluation.json")
        rows = self.rows()
        with write_beside(table) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        content = {
            "model": self.model,
            "data": self.data,
            "min_area": self.min_area,
            "pictures": self.num_pictures,
            "things": len(self.areas),
            "left_out": dict(self.left_out),
            "rows": rows,
        }
        write_json(whole, content)
        return table, whole


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
