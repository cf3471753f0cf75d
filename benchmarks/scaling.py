"""How does the cost grow with the work? python -m benchmarks.scaling [--plot]

Three curves, each point in processes of its own, so that its peak memory is its own too:

prompts   clicks on an encoded picture, to low-resolution masks and predicted IoUs, in batches of 64
pictures  encoded in one call, and one by one
sides     everything in a square picture that is encoded already, with a grid of few points; with
          nano, whose decoder is that of the others, since masks of random weights are noise
"""

import argparse
import datetime
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import contenders
from benchmarks.everything import matched
from benchmarks.harness import RESULTS, compare, record, serve
from benchmarks.machine import ROOT
from benchmarks.scaling_work import WORK

PLOT = ROOT / "docs/scaling.png"
CURVES = ("prompts", "pictures", "sides")
MANY = {"prompts": 64, "pictures": 1, "sides": 2048}
"""Points beyond it are measured once, without a call before, once their programs are compiled."""


class Point(NamedTuple):
    """`how` is empty where there is only one way."""

    curve: str
    value: int
    how: str = ""


def main() -> None:
    args = _parse()
    if args.worker:
        prepare = WORK[args.curve, args.worker]
        serve(lambda: prepare(args), _save)
        return
    path = RESULTS / "scaling.csv"
    if not args.plot:
        run = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with tempfile.TemporaryDirectory() as folder:
            for curve in args.curves:
                path = _measure(args, curve, Path(folder, curve), run)
    from benchmarks.scaling_plot import draw

    draw(path, args.picture)
    print(args.picture)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    contenders.arguments(parser, repeats=2, warmup=0)
    numbers: dict[str, Any] = dict(type=int, nargs="+")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=CURVES)
    parser.add_argument("--prompts", default=[4**i for i in range(7)], **numbers)
    parser.add_argument("--pictures", default=[1, 4, 16], **numbers)
    parser.add_argument("--sides", default=[512, 1024, 2048, 4096], **numbers)
    parser.add_argument("--points-per-side", type=int, default=4, help="of the grid in `sides`")
    parser.add_argument(
        "--most-prompts", type=int, default=256, help="that Meta's code gets, at about 0.1 s each"
    )
    parser.add_argument(
        "--most-pictures", type=int, default=4, help="that Meta's code gets, at about 3 GB each"
    )
    parser.add_argument("--plot", action="store_true", help="draw what was measured, and no more")
    parser.add_argument("--picture", type=Path, default=PLOT, help="where the plot goes")
    parser.add_argument("--curve", choices=CURVES, help=argparse.SUPPRESS)
    parser.add_argument("--value", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in CURVES:
        if min(getattr(args, name)) < 1:
            parser.error(f"--{name} has {min(getattr(args, name))}; the least is 1.")
    return args if args.worker else contenders.check(parser, args)


def _measure(args: argparse.Namespace, curve: str, folder: Path, run: str) -> Path:
    """All points of a curve, each recorded as soon as it is there; returns the CSV file."""
    args = argparse.Namespace(**vars(args))
    if curve == "sides":
        args.model, args.checkpoint = "nano", None
    weights = folder / "weights"
    formats = [] if curve == "pictures" else ["embedding.npy"]
    commands = contenders.commands("benchmarks.scaling", args, weights, formats=formats)
    path = RESULTS / "scaling.csv"
    for point in _points(args, curve):
        options = ["--model", args.model, "--curve", curve, "--value", str(point.value)]
        options += ["--how", point.how]
        takes_part = {
            name: [*command, *options]
            for name, command in commands.items()
            if name != "meta" or point.value <= _most(args, curve)
        }
        if not takes_part:
            continue
        many = point.value > MANY[curve]
        saved = folder / "-".join(map(str, point))
        saved.mkdir()
        measurements = compare(
            takes_part, repeats=1 if many else args.repeats, warmup=0 if many else args.warmup,
            malloc=args.malloc, save_to=saved, cold=not many,
        )  # fmt: skip
        for m in measurements:
            m.facts |= {"run": run, "curve": curve, "value": point.value, "how": point.how}
            m.facts |= _agreement(saved, m.contender)
        size = " ".join(filter(None, (args.model, f"{point.value} {curve}", point.how)))
        path = record("scaling", size, measurements, malloc=args.malloc)
    return path


def _points(args: argparse.Namespace, curve: str) -> Iterator[Point]:
    for value in sorted(set(getattr(args, curve))):
        if curve != "pictures":
            yield Point(curve, value)
            continue
        yield Point(curve, value, "together")
        if value > 1:
            yield Point(curve, value, "one by one")


def _most(args: argparse.Namespace, curve: str) -> float:
    """Where Meta's code stops, so that a run ends and fits the memory."""
    return {"prompts": args.most_prompts, "pictures": args.most_pictures}.get(curve, np.inf)


def _save(result: Any, path: Path) -> None:
    if isinstance(result, list):
        masks = [record["segmentation"] for record in result]
        path.with_suffix(".json").write_text(json.dumps(masks))
    else:
        np.save(path.with_suffix(".npy"), np.asarray(result))


def _agreement(folder: Path, name: str) -> dict[str, Any]:
    """With Meta: the largest difference as a share of the largest value, or masks matched."""
    facts: dict[str, Any] = {"difference": "", "masks": "", "matched": ""}

    def read(name: str) -> list[dict] | None:
        path = folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    ours, theirs = read(name), read("meta")
    if ours is not None:
        facts["masks"] = len(ours)
        facts["matched"] = "" if theirs is None else matched(ours, theirs)
    elif name != "meta" and (folder / "meta.npy").exists():
        found, expected = np.load(folder / f"{name}.npy"), np.load(folder / "meta.npy")
        facts["difference"] = f"{np.abs(found - expected).max() / np.abs(expected).max():.1e}"
    return facts


if __name__ == "__main__":
    main()
