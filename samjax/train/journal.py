"""What a run leaves to read: `log.csv`, `evaluation.csv` and `curves.png`."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from samjax.checkpoint import write_beside

LOSSES = ("loss", "focal_loss", "dice_loss", "edge_loss", "outline_loss", "iou_loss")


class Journal:
    """A CSV file whose first column is the step. It goes on where a continued run goes on: rows
    of steps after `step` are from before it was killed, and are dropped. Of several processes one
    `writes` the file; in the others the rows are the same."""

    def __init__(self, path: Path, columns: tuple[str, ...], *, step: int, writes: bool = True):
        self.path, self.columns, self.writes = path, ("step", *columns), writes
        self.rows = [row for row in read_journal(path) if row["step"] <= step]
        if not writes:
            return
        with write_beside(path) as new, new.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(
                [_text(row.get(name, math.nan)) for name in self.columns] for row in self.rows
            )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row at once; columns without a value stay empty."""
        row = {"step": float(step), **values}
        self.rows.append(row)
        if not self.writes:
            return
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([_text(row.get(name, math.nan)) for name in self.columns])


def read_journal(path: Path) -> list[dict[str, float]]:
    """The rows of a journal as numbers, NaN where there is none; a row cut off at the end of the
    file is left out."""
    if not path.exists():
        return []
    rows = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({name: float(text) if text else math.nan for name, text in row.items()})
            except (TypeError, ValueError):
                continue
    return rows


def draw_curves(path: Path, log: Journal, evaluations: Journal) -> None:
    """The loss and its parts, the IoU in training, and the mean IoUs of the evaluations, by step.

    Losses are drawn as they are, faintly, and as a running mean.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    losses, training, validation = figure.subplots(1, 3)
    for axes, names, title in (
        (losses, LOSSES, "loss"),
        (training, ("first_iou", "last_iou"), "mean IoU in training"),
        (validation, evaluations.columns[1:], "mean IoU in validation"),
    ):
        rows = evaluations.rows if axes is validation else log.rows
        for name in names:
            points = [
                (row["step"], row[name]) for row in rows if not math.isnan(row.get(name, math.nan))
            ]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            if axes is validation:
                axes.plot(steps, values, marker="o", markersize=3, label=name)
                continue
            (line,) = axes.plot(steps, _running_mean(values), label=name.replace("_", " "))
            axes.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    losses.set_yscale("log")
    with write_beside(path) as new:
        figure.savefig(new, dpi=100, format="png")


def _running_mean(values: tuple[float, ...]) -> list[float]:
    """Exponential, over about a twentieth of the values."""
    factor = 2.0 / (1.0 + max(1.0, len(values) / 20))
    smooth, mean = [], values[0]
    for value in values:
        mean += factor * (value - mean)
        smooth.append(mean)
    return smooth


def _text(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"
