"""How long does it take to segment everything? python -m benchmarks.everything [PICTURE]"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contenders
from benchmarks.harness import compare, record, serve
from benchmarks.machine import ROOT

SAME_MASK = 0.99
"""IoU from which two masks are the same."""


def main() -> None:
    args = _parse()
    if args.worker:
        prepare = {"samjax": _samjax, "meta": _meta}[args.worker]
        serve(lambda: prepare(args), _save)
        return
    with tempfile.TemporaryDirectory() as folder:
        weights, saved = Path(folder, "weights"), Path(folder)
        measurements = compare(
            contenders.commands("benchmarks.everything", args, weights),
            repeats=args.repeats, warmup=args.warmup, malloc=args.malloc, save_to=saved,
        )  # fmt: skip
        rles = {m.contender: _masks(saved / f"{m.contender}.json") for m in measurements}
    for m in measurements:
        m.facts["masks"] = len(rles[m.contender])
        m.facts["matched"] = matched(rles[m.contender], rles["meta"]) if "meta" in rles else ""
    record("everything", _size(args), measurements, malloc=args.malloc)


def matched(ours: list[dict], theirs: list[dict]) -> int:
    """How many of our masks (COCO RLE) have one of theirs to themselves at IoU 0.99."""
    from pycocotools import mask as coco

    if not ours or not theirs:
        return 0
    ious = coco.iou(ours, theirs, [0] * len(theirs))
    free = np.ones(len(theirs), bool)
    for row in ious:
        best = int(np.argmax(np.where(free, row, -1.0)))
        if free[best] and row[best] >= SAME_MASK:
            free[best] = False
    return int((~free).sum())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "picture", type=Path, nargs="?", help="default: one of 1200x1800 pixels that is drawn"
    )
    contenders.arguments(parser, repeats=1, warmup=0)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--points-per-batch", type=int, default=64)
    parser.add_argument("--crop-n-layers", type=int, default=0)
    parser.add_argument("--crop-n-points-downscale-factor", type=int, default=1)
    parser.add_argument("--pred-iou-thresh", type=float, help="see --stability-score-thresh")
    parser.add_argument(
        "--stability-score-thresh", type=float,
        help="default: nano's own, Meta's with --checkpoint, and 0 with random weights, which "
        "score badly",
    )  # fmt: skip
    parser.add_argument("--box-nms-thresh", type=float, default=0.7)
    parser.add_argument("--min-mask-region-area", type=float, help="default: nano's own, or 0")
    args = contenders.check(parser, parser.parse_args())
    if args.picture is not None and not args.picture.is_file():
        parser.error(f"there is no picture {args.picture}")
    for name, default in _thresholds(args).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


def _thresholds(args: argparse.Namespace) -> dict[str, float]:
    """Those that nano carries, Meta's for trained weights, and none for random ones."""
    metas = {
        "pred_iou_thresh": 0.88, "stability_score_thresh": 0.95, "min_mask_region_area": 0
    }  # fmt: skip
    if args.model == "nano":
        carried = json.loads((ROOT / "samjax/assets/nano/samjax.json").read_text())["everything"]
        assert carried.keys() <= metas.keys(), "this benchmark passes on no other threshold"
        return metas | carried
    return metas if args.checkpoint is not None else dict.fromkeys(metas, 0.0)


def _size(args: argparse.Namespace) -> str:
    height, width = _picture(args).shape[:2]
    trained = args.checkpoint is not None or args.model == "nano"
    return (
        f"{args.model} {'trained' if trained else 'random'} {width}x{height} "
        f"points {args.points_per_side} crops {args.crop_n_layers} "
        f"iou {args.pred_iou_thresh:g} stability {args.stability_score_thresh:g} "
        f"nms {args.box_nms_thresh:g}"
        + (f" region {args.min_mask_region_area:g}" if args.min_mask_region_area else "")
    )


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return dict(
        points_per_side=args.points_per_side,
        points_per_batch=args.points_per_batch,
        pred_iou_thresh=args.pred_iou_thresh,
        stability_score_thresh=args.stability_score_thresh,
        box_nms_thresh=args.box_nms_thresh,
        min_mask_region_area=int(args.min_mask_region_area),
        crop_n_layers=args.crop_n_layers,
        crop_n_points_downscale_factor=args.crop_n_points_downscale_factor,
        output_mode="coco_rle",
    )


def _picture(args: argparse.Namespace) -> np.ndarray:
    if args.picture is None:
        return contenders.draw_picture()
    from PIL import Image

    return np.array(Image.open(args.picture).convert("RGB"))


def _samjax(args: argparse.Namespace) -> Callable[[], list[dict]]:
    from samjax.automatic_mask_generator import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(contenders.load_samjax(args), **_options(args))
    picture = _picture(args)
    return lambda: generator.generate(picture)


def _meta(args: argparse.Namespace) -> Callable[[], list[dict]]:
    import segment_anything

    generator = segment_anything.SamAutomaticMaskGenerator(
        contenders.load_meta(args), **_options(args)
    )
    picture = _picture(args)
    return lambda: generator.generate(picture)


def _masks(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def _save(records: list[dict], path: Path) -> None:
    rles = [record["segmentation"] for record in records]
    path.with_suffix(".json").write_text(json.dumps(rles))


if __name__ == "__main__":
    main()
