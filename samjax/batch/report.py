"""A page about a run, in one HTML file that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from samjax.batch.hosts import Counts

MOST_ERRORS = 500

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em;
  color: #1c2330; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .2em .8em .2em 0; text-align: left;
  vertical-align: top } td.number { text-align: right; font-variant-numeric: tabular-nums }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 10px }
.sheet img { width: 100%; height: 150px; object-fit: contain; background: #eef0f3 }
.sheet figcaption { font-size: 12px; overflow-wrap: anywhere } figure { margin: 0 }
.plots { display: flex; flex-wrap: wrap; gap: 24px } rect { fill: #3b6fb6 }
text { font: 11px system-ui, sans-serif; fill: #566 } .bad { color: #a3262b }
"""


class Report(NamedTuple):
    """`masks_each` are numbers of masks of the pictures; `histograms` as in the manifests;
    `samples` names and JPEG files; `counts` what each process did in the last session."""

    name: str
    settings: Mapping[str, Any]
    pictures: int
    masks: int
    masks_each: Sequence[int]
    histograms: Mapping[str, Sequence[int]]
    errors: Sequence[Mapping[str, Any]]
    samples: Sequence[tuple[str, bytes]]
    counts: Mapping[int, Counts]


def report_html(report: Report) -> str:
    """The page, as text."""
    parts = [
        f"<h1>{escape(report.name)}</h1>",
        _table([
            ("pictures", f"{report.pictures:,}"),
            ("masks", f"{report.masks:,}"),
            ("not done", f"{len(report.errors):,}"),
        ]),
    ]  # fmt: skip
    if report.masks:
        parts += ["<h2>Masks</h2>", '<div class="plots">', *_plots(report), "</div>"]
    if report.samples:
        parts += ["<h2>Some of the pictures</h2>", '<div class="sheet">']
        for name, content in report.samples:
            text = base64.b64encode(content).decode()
            parts.append(
                f'<figure><img alt="" src="data:image/jpeg;base64,{text}">'
                f"<figcaption>{escape(name)}</figcaption></figure>"
            )
        parts.append("</div>")
    if report.errors:
        parts.append('<h2 class="bad">Not done</h2>')
        shown = [(str(e["key"]), str(e["reason"])) for e in report.errors[:MOST_ERRORS]]
        parts.append(_table(shown))
        if more := len(report.errors) - len(shown):
            parts.append(f"<p>and {more:,} more, in errors.csv</p>")
    parts += ["<h2>The last session</h2>", _sessions(report.counts)]
    parts += ["<h2>Settings</h2>", _table([(k, str(v)) for k, v in report.settings.items()])]
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f"<title>{escape(report.name)}</title><style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _plots(report: Report) -> list[str]:
    plots = []
    if report.masks_each:
        most = max(report.masks_each)
        counts, edges = np.histogram(report.masks_each, bins=20, range=(0, most + 1))
        labels = ["0", f"{edges[-1]:.0f}"]
        plots.append(_plot("masks in a picture", counts.tolist(), labels))
    if area := report.histograms.get("area"):
        plots.append(_plot("area, as a share of the picture", area[::-1], ["1/1,000,000", "1"]))
    for name in ("predicted_iou", "stability_score"):
        if bins := report.histograms.get(name):
            plots.append(_plot(name.replace("_", " "), bins, ["0", "1"]))
    return plots


def _plot(title: str, counts: Sequence[int], ends: Sequence[str]) -> str:
    width, height = 240, 110
    most = max(max(counts), 1)
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * count / most:.1f}" '
        f'width="{step - 1:.1f}" height="{height * count / most:.1f}"><title>{count:,}</title>'
        "</rect>"
        for i, count in enumerate(counts)
    )
    return (
        f'<svg width="{width}" height="{height + 38}" viewBox="0 -18 {width} {height + 38}">'
        f'<text x="0" y="-6">{escape(title)}</text>{bars}'
        f'<text x="0" y="{height + 14}">{ends[0]}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end">{ends[1]}</text></svg>'
    )


def _sessions(counts: Mapping[int, Counts]) -> str:
    rows = [
        "<tr><th>process</th><th>pictures</th><th>masks</th><th>not done</th><th>seconds</th>"
        "<th>devices without work</th></tr>"
    ]
    for index, one in sorted(counts.items()):
        share = one.waited / one.seconds if one.seconds else 0.0
        cells = [f"{index}", f"{one.pictures:,}", f"{one.masks:,}", f"{one.errors:,}",
                 f"{one.seconds:.1f}", f"{share:.1%}"]  # fmt: skip
        rows.append("<tr>" + "".join(f'<td class="number">{c}</td>' for c in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{''.join(cells)}</table>"
