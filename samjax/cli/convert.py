"""`samjax convert`: checkpoints of every known format to every other."""

import argparse
import sys
from typing import Any

from samjax.cli.common import size_text, summary
from samjax.cli.progress import waiting

VERIFY_LIMIT = 1e-3
"""Largest difference that `--verify` lets pass, as a share of the largest value."""


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "convert",
        parents=[shared],
        help="a checkpoint of one format to another",
        description="Converts a checkpoint bit for bit: Segment Anything's, and detectors to "
        "Orbax folders. The format of SOURCE and the architecture "
        "are read from its content, the format of TARGET from its name.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .pth or .safetensors file, an Orbax or Hugging Face folder, or a model's name",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="what to write: NAME.pth in Meta's format, NAME.safetensors, or an Orbax folder, "
        "which may be in a bucket (gs://, s3://)",
    )
    parser.add_argument(
        "--format",
        "--to",
        dest="to",
        choices=("meta", "huggingface", "safetensors", "orbax"),
        help="format of TARGET where its name does not say it, such as huggingface for a folder",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the parameters in TARGET; by default that of SOURCE",
    )
    parser.add_argument(
        "--everything",
        nargs="+",
        type=_threshold,
        default=[],
        metavar="NAME=NUMBER",
        help="thresholds for TARGET to carry, which segmenting everything then uses by default, "
        "such as pred_iou_thresh=0.8",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint at TARGET")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run Meta's own model and the converted one on the same input and print the largest "
        "differences (needs segment-anything and torch)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from samjax.convert import convert

    with waiting(f"converting {args.source}"):
        done = convert(
            args.source,
            args.target,
            to=args.to,
            dtype=args.dtype,
            everything=dict(args.everything),
            overwrite=args.overwrite,
            verify=args.verify,
        )
    size = size_text(done.model.num_bytes)
    print(
        f"converted {done.source} to {done.target} ({done.format}): {summary(done.model)}, {size}"
    )
    if done.report is None:
        return 0
    print(done.report)
    if all(difference.relative <= VERIFY_LIMIT for difference in done.report):
        return 0
    print(
        f"samjax: the models differ by more than {VERIFY_LIMIT:g} of the largest value",
        file=sys.stderr,
    )
    return 1


def _threshold(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER") from None
