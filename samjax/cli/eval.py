"""`samjax eval`: mean IoU of clicks and boxes on annotated pictures."""

import argparse
import errno
import sys
from pathlib import Path
from typing import Any

from samjax.cli.common import add_model, load_model, number

FILES = ("evaluation.csv", "evaluation.json")


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "eval",
        parents=[shared],
        help="mean IoU of clicks and boxes on annotated pictures",
        description="Mean IoU after 1, 3 and 5 clicks and for boxes, by Meta's protocol, on the "
        "things of annotated pictures.",
    )
    add_model(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="a COCO instances file, a folder in SA-1B's layout, or one with images and masks",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of a COCO file's pictures (default: images, beside it)",
    )
    parser.add_argument(
        "--max-pictures", type=int, metavar="N", help="only N pictures, evenly spread over the file"
    )
    parser.add_argument(
        "--min-area",
        type=int,
        default=100,
        metavar="PIXELS",
        help="leave smaller things out (default: 100)",
    )
    parser.add_argument("--output", metavar="DIR", help=f"folder for {' and '.join(FILES)}")
    parser.add_argument("--overwrite", action="store_true", help="replace them there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from samjax.checkpoint import NANO
    from samjax.datasets import open_source
    from samjax.evaluate import evaluate
    from samjax.predictor import SamPredictor

    for flag in ("max_pictures", "min_area"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} has to be at least 1, not {value}")
    if args.output:
        _check_output(Path(args.output), overwrite=args.overwrite)
    source = open_source(args.data, args.images)
    if source.report.counts:
        print(source.report, file=sys.stderr)
    model = load_model(args.model, args.precision)
    result = evaluate(
        SamPredictor(model),
        source,
        model=(args.model or NANO) + (f" in {args.precision}" if args.precision else ""),
        min_area=args.min_area,
        max_pictures=args.max_pictures,
        progress=True,
    )
    things, pictures = number(len(result.areas), "thing"), number(result.num_pictures, "picture")
    print(f"{things} of {args.min_area} pixels and more in {pictures} of {args.data}")
    print(result.table())
    for path in result.write(args.output) if args.output else ():
        print(path)
    return 0


def _check_output(folder: Path, *, overwrite: bool) -> None:
    """That results can be written, before hours are spent on them."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, f"the output folder cannot be {folder}: there is a file in its place"
        )
    folder.mkdir(parents=True, exist_ok=True)
    existing = [name for name in FILES if (folder / name).exists()]
    if existing and not overwrite:
        raise FileExistsError(
            errno.EEXIST, f"{folder / existing[0]} is there already; --overwrite replaces it"
        )
