"""Draws `results/scaling.csv`: of each curve, the run that measured it last."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

TITLES = {
    "prompts": ("clicks on an encoded picture", "prompts"),
    "pictures": ("encoding", "pictures"),
    "sides": ("everything in an encoded picture", "side in pixels"),
}
COLOURS = {"samjax": "tab:blue", "meta": "tab:red"}
NAMES = {"meta": "Meta's code"}
COLUMNS = {
    "median_s": ("seconds", 1.0, "log"),
    "peak_mib": ("peak memory in GiB", 1024.0, "linear"),
}

Line = dict[int, dict[str, str]]


def lines(path: Path, curve: str) -> dict[tuple[str, str], Line]:
    """Rows by their value, of each contender and each way of doing it; a single picture is both
    together and one by one. Raises `FileNotFoundError` if nothing was measured."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; run python -m benchmarks.scaling first.")
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["curve"] == curve]
    last = max((row["run"] for row in rows), default="")
    found: dict[tuple[str, str], Line] = defaultdict(dict)
    for row in rows:
        if row["run"] == last:
            found[row["contender"], row["how"]][int(row["value"])] = row
    for (contender, how), line in found.items():
        if how == "one by one" and 1 in (single := found.get((contender, "together"), {})):
            line[1] = single[1]
    return dict(found)


def draw(path: Path, picture: Path) -> None:
    """Time above, logarithmic; peak memory below, from zero; one column for each curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    measured = {curve: found for curve in TITLES if (found := lines(path, curve))}
    figure, axes = plt.subplots(
        2, len(measured), figsize=(4.2 * len(measured), 6.4), squeeze=False, layout="constrained"
    )
    for column, (curve, found) in enumerate(measured.items()):
        title, unit = TITLES[curve]
        models = {row["size"].split()[0] for line in found.values() for row in line.values()}
        for row, (name, (label, unit_size, scale)) in enumerate(COLUMNS.items()):
            axis = axes[row, column]
            for (contender, how), line in found.items():
                _draw_line(axis, contender, how, line, name, unit_size)
            axis.set(xscale="log", yscale=scale, xlabel=unit, ylabel=label)
            values = sorted({value for line in found.values() for value in line})
            axis.set_xticks(values, [str(value) for value in values])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            if scale == "linear":
                axis.set_ylim(bottom=0)
        axes[0, column].set_title(f"{title} ({', '.join(sorted(models))})", fontsize=10)
        axes[0, column].legend(fontsize=8)
    figure.suptitle(_caption(measured), fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def _draw_line(axis: Any, contender: str, how: str, line: Line, column: str, unit: float) -> None:
    values = sorted(line)
    axis.plot(
        values, [float(line[value][column]) / unit for value in values], marker="o",
        color=COLOURS.get(contender), linestyle="--" if how == "one by one" else "-",
        label=", ".join(filter(None, (NAMES.get(contender, contender), how))),
    )  # fmt: skip


def _caption(measured: dict[str, dict[tuple[str, str], Line]]) -> str:
    """The machine, and where Meta's code was not asked to go on."""
    every = [row for found in measured.values() for line in found.values() for row in line.values()]
    machines = sorted({f"{row['cores']} cores of {row['cpu']}, float32" for row in every})
    stops = []
    for curve, found in measured.items():
        values: dict[str, list[int]] = defaultdict(list)
        for (contender, _), line in found.items():
            values[contender] += line
        theirs = max(values["meta"], default=0)
        if 0 < theirs < max(map(max, filter(None, values.values()))):
            stops.append(f"{theirs} {curve}")
    note = f"; Meta's code was measured up to {' and '.join(stops)}" if stops else ""
    return "; ".join(machines) + note
