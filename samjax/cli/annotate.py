"""`samjax annotate`: labels for a folder of pictures."""

import argparse
import sys
import time
from typing import Any

from samjax.cli.common import number


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "annotate",
        parents=[shared],
        help="label a folder: a detector's boxes, and a mask in each",
        description="Labels all pictures of a folder, in YOLO's form and as a COCO file: a "
        "detector finds boxes, and Segment Anything the mask in each. Given again, the command "
        "goes on where it stopped.",
    )
    parser.add_argument("data", metavar="DATA", help="a folder of pictures, or a picture")
    parser.add_argument(
        "--det-model", default="yolov8x.pt", metavar="DETECTOR",
        help="a YOLOv8 (a name, a .pt or .onnx file, a folder by samjax convert), a COCO file of "
        "boxes, or a folder of YOLO's label files (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--sam-model", "--model", default="sam_b.pt", metavar="MODEL",
        help="a Segment Anything model, by name or path (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="", help="where to run; by default JAX's own choice")
    parser.add_argument(
        "--output", metavar="DIR",
        help="folder for the labels (default: DATA_auto_annotate_labels beside DATA)",
    )  # fmt: skip
    parser.add_argument("--overlays", action="store_true", help="draw the masks over the pictures")
    parser.add_argument("--recursive", action="store_true", help="pictures in sub-folders too")
    parser.add_argument(
        "--overwrite", action="store_true",
        help="begin anew in a folder of labels that was made with other settings",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, help="pictures at a time (default: 1 on the CPU, 8 elsewhere)"
    )
    group = parser.add_argument_group("which boxes are taken")
    group.add_argument("--conf", type=float, default=0.25, help="least score (default: 0.25)")
    group.add_argument(
        "--iou", type=float, default=0.45,
        help="overlap above which a YOLOv8's worse box goes (default: 0.45)",
    )  # fmt: skip
    group.add_argument(
        "--imgsz", type=int, nargs="+", default=[640], metavar="PIXELS",
        help="longest side of a YOLOv8's input, or its height and width (default: 640)",
    )  # fmt: skip
    group.add_argument(
        "--max-det", type=int, default=300, help="most boxes of a picture (default: 300)"
    )
    group.add_argument(
        "--classes", type=int, nargs="+", metavar="NUMBER", help="only these classes, from 0"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from samjax.annotate import auto_annotate

    if len(args.imgsz) > 2:
        raise ValueError(f"--imgsz takes a side, or height and width, not {len(args.imgsz)} values")
    started = time.monotonic()
    done = auto_annotate(
        args.data, args.det_model, args.sam_model, args.device, args.output, args.conf, args.iou,
        args.imgsz[0] if len(args.imgsz) == 1 else tuple(args.imgsz), args.max_det, args.classes,
        overlays=args.overlays, recursive=args.recursive, overwrite=args.overwrite,
        batch=args.batch,
    )  # fmt: skip
    if done.empty:
        some = ", ".join(done.empty[:3]) + (", ..." if len(done.empty) > 3 else "")
        print(f"nothing found in {number(len(done.empty), 'picture')} ({some})")
    if done.dropped_boxes:
        print(f"{done.dropped_boxes} boxes left out: empty, or outside of their picture")
    if done.empty_masks:
        print(f"{done.empty_masks} boxes left out in which there was no mask")
    earlier = done.pictures - done.done_now
    skipped = f" ({earlier} done earlier)" if earlier else ""
    seconds = time.monotonic() - started
    print(
        f"{number(done.pictures, 'picture')}{skipped}, {number(done.masks, 'mask')}, "
        f"{seconds:.1f} s, in {done.folder}"
    )
    if done.failures:
        lines = [f"samjax: {number(len(done.failures), 'picture')} not done:", *done.failures]
        print("\n  ".join(lines), file=sys.stderr)
    return 1 if done.failures else 0
