"""Everything in one picture with SAM, MobileSAM, FastSAM-s and YOLOv8n-seg, by samjax and by
Ultralytics' program: python -m benchmarks.detectors [PICTURE]

Ultralytics' program, in an environment of its own, makes the two YOLOv8 with random weights and
writes them as it writes its files; samjax reads those. All four have random weights.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import contenders, environments
from benchmarks.harness import compare, record, serve
from benchmarks.machine import ROOT, cores
from benchmarks.weights import write_weights

MASKS = 100
"""About as many the two YOLOv8 find: their threshold is made to be so."""


class Which(NamedTuple):
    """`weights` is the name for `benchmarks.weights`, or the architecture and number of classes."""

    file: str
    sam: str | None = None
    yolo: tuple[str, int] | None = None
    imgsz: int = 1024
    iou: float = 0.7


MODELS = {
    "SAM-b": Which("sam_b.pt", sam="vit_b"),
    "MobileSAM": Which("mobile_sam.pt", sam="vit_t"),
    "FastSAM-s": Which("FastSAM-s.pt", yolo=("yolov8s-seg.yaml", 1), iou=0.9),
    "YOLOv8n-seg": Which("yolov8n-seg.pt", yolo=("yolov8n-seg.yaml", 80), imgsz=640),
}


def main() -> None:
    args = _parse()
    if args.make:
        _make_yolo(args)
        return
    if args.worker:
        prepare = {"samjax": _samjax, "ultralytics": _ultralytics}[args.worker]
        serve(lambda: prepare(args, MODELS[args.models[0]]), _save)
        return
    python = environments.interpreter("ultralytics")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in args.models:
            which = MODELS[model]
            _write(python, which, folder, args)
            again = ["-m", "benchmarks.detectors", *_picture_argument(args), "--models", model,
                     "--malloc", args.malloc, "--weights", str(folder), "--worker"]  # fmt: skip
            pythons = {"samjax": sys.executable, "ultralytics": str(python)}
            measurements = compare(
                {name: [pythons[name], *again, name] for name in args.contenders},
                repeats=args.repeats, warmup=args.warmup, malloc=args.malloc, save_to=folder,
            )  # fmt: skip
            size_mb = (folder / which.file).stat().st_size / 1e6
            for m in measurements:
                masks = _masks(folder / f"{m.contender}.npz")
                m.facts = {"masks": len(masks), "file_mb": f"{size_mb:.1f}",
                           "parameters": _parameters(folder / which.file)}  # fmt: skip
                if len(args.contenders) == 2:
                    m.facts["matched"] = matched(masks, _masks(folder / "ultralytics.npz"))
            height, width = _picture(args).shape[:2]
            record("detectors", f"{model} {width}x{height}", measurements, malloc=args.malloc)


def matched(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many of our masks have one of theirs to themselves at IoU 0.99."""
    from benchmarks.everything import matched as matched_rles
    from samjax.postprocess import compress_mask

    rles: list[Any] = [[compress_mask(np.asarray(m)) for m in masks] for masks in (ours, theirs)]
    return matched_rles(*rles)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, nargs="?", help="default: one that is drawn")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--contenders", nargs="+", choices=("samjax", "ultralytics"),
        default=["samjax", "ultralytics"],
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--malloc", choices=("own", "keep", "default"), default="own")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.picture is not None and not args.picture.is_file():
        parser.error(f"there is no picture {args.picture}")
    return args


def _picture_argument(args: argparse.Namespace) -> list[str]:
    return [] if args.picture is None else [str(args.picture.absolute())]


def _picture(args: argparse.Namespace) -> np.ndarray:
    if args.picture is None:
        return contenders.draw_picture()
    from PIL import Image

    return np.array(Image.open(args.picture).convert("RGB"))


def _write(python: Path, which: Which, folder: Path, args: argparse.Namespace) -> None:
    """The file of one model, and beside a YOLOv8's the threshold to call it with."""
    if which.sam is None:
        command = [str(python), "-m", "benchmarks.detectors", *_picture_argument(args),
                   "--weights", str(folder), "--make", which.file]  # fmt: skip
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return
    write_weights(which.sam, folder / which.sam, checkpoint=None, formats=[])
    (folder / which.sam / "meta.pth").rename(folder / which.file)


def _make_yolo(args: argparse.Namespace) -> None:
    """By Ultralytics' program: random weights, with scores that differ from place to place."""
    import torch
    from ultralytics import YOLO

    which = next(which for which in MODELS.values() if which.file == args.make)
    assert which.yolo is not None
    name, classes = which.yolo
    torch.manual_seed(0)
    wrapped: Any = YOLO(name, task="segment")
    if wrapped.model.model[-1].nc != classes:
        from ultralytics.nn.tasks import SegmentationModel

        wrapped.model = SegmentationModel(name, nc=classes, verbose=False)
        wrapped.model.names = {0: "object"}
        wrapped.model.args = {"task": "segment", "imgsz": which.imgsz}
        wrapped.model.task = "segment"
    norms: list[Any] = [
        module for module in wrapped.model.modules() if isinstance(module, torch.nn.BatchNorm2d)
    ]
    for module in norms:
        module.running_mean.normal_(0, 0.1)
        module.running_var.uniform_(0.3, 0.9)
        module.weight.data.uniform_(0.8, 1.4)
    head = wrapped.model.model[-1]
    for branch in (*head.cv3, *head.cv4):
        branch[2].weight.data.normal_(0, 0.2)
    for branch in head.cv3:
        branch[2].bias.data.fill_(-4)
    wrapped.save(args.weights / which.file)
    (args.weights / f"{which.file}.conf").write_text("0.25")
    found = _ultralytics(args, which, conf=0.001)()
    scores = np.sort(found[0].boxes.conf.numpy())[::-1]
    conf = float(scores[min(MASKS, len(scores) - 1)])
    (args.weights / f"{which.file}.conf").write_text(repr(conf))


def _conf(args: argparse.Namespace, which: Which) -> float:
    return float((args.weights / f"{which.file}.conf").read_text())


def _samjax(args: argparse.Namespace, which: Which) -> Callable[[], Any]:
    import samjax

    if args.malloc == "own":
        samjax.tune_allocator()
    picture = np.ascontiguousarray(_picture(args)[..., ::-1])
    if which.sam is not None:
        model = samjax.SAM(args.weights / which.file)
        return lambda: model(picture, verbose=False)
    fast = samjax.FastSAM(args.weights / which.file)
    options: dict[str, Any] = dict(
        conf=_conf(args, which), iou=which.iou, imgsz=which.imgsz, verbose=False
    )
    return lambda: fast(picture, **options)


def _ultralytics(
    args: argparse.Namespace, which: Which, conf: float | None = None
) -> Callable[[], Any]:
    import torch
    from ultralytics import SAM, YOLO

    torch.set_num_threads(cores())
    picture = np.ascontiguousarray(_picture(args)[..., ::-1])
    if which.sam is not None:
        sam = SAM(str(args.weights / which.file))
        return lambda: sam(picture, verbose=False)
    conf = _conf(args, which) if conf is None else conf
    yolo = YOLO(str(args.weights / which.file), task="segment")
    options = dict(conf=conf, iou=which.iou, imgsz=which.imgsz, retina_masks=True, verbose=False)
    return lambda: yolo(picture, **options)


def _save(results: list[Any], path: Path) -> None:
    masks = results[0].masks
    found = np.zeros((0, 8, 8), bool) if masks is None else np.asarray(masks.data).astype(bool)
    np.savez(path.with_suffix(".npz"), bits=np.packbits(found, axis=-1), shape=found.shape)


def _masks(path: Path) -> np.ndarray:
    with np.load(path) as saved:
        shape = saved["shape"]
        return np.unpackbits(saved["bits"], axis=-1, count=int(shape[-1])).astype(bool)


def _parameters(path: Path) -> int:
    from samjax.checkpoint import load_any

    return load_any(path).num_parameters


if __name__ == "__main__":
    main()
