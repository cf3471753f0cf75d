"""Label files in YOLO's format."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samjax.checkpoint import write_beside

_LEAST_POINTS = 3
"""A line of five numbers is a box to those who read it, so a smaller polygon repeats its last
point."""


def yolo_lines(
    polygons: Sequence[np.ndarray], classes: Sequence[int], scores: Sequence[float] | None = None
) -> list[str]:
    """`class x y x y ...` for each polygon with points, and its score at the end where given."""
    lines = []
    for i, polygon in enumerate(polygons):
        if not len(polygon):
            continue
        points = np.asarray(polygon)
        missing = max(0, _LEAST_POINTS - len(points))
        points = np.concatenate([points, np.repeat(points[-1:], missing, axis=0)])
        numbers = [f"{value:.6g}" for value in points.ravel()]
        score = [] if scores is None else [f"{scores[i]:.6g}"]
        lines.append(" ".join([str(int(classes[i])), *numbers, *score]))
    return lines


def write_lines(path: str | os.PathLike[str], lines: Sequence[str]) -> None:
    """A text file, whole or not at all; folders above it are made."""
    with write_beside(Path(path)) as staged:
        staged.write_text("".join(f"{line}\n" for line in lines))
