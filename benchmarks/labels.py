"""How good are the masks of labels that are made from true boxes?

python -m benchmarks.labels ../shared/data/coco-train/instances.json [--model nano]
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

import samjax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a COCO file with masks, with `images` beside it")
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    samjax.tune_allocator()
    with tempfile.TemporaryDirectory() as folder:
        done = samjax.auto_annotate(
            args.data.parent / "images", args.data, args.model, output_dir=folder
        )
        from_coco, from_yolo = compare(args.data, Path(folder))
    print(f"{done.pictures} pictures, {done.masks} masks, {args.model}, boxes of {args.data.name}")
    print(f"mean IoU, COCO file: {np.mean(from_coco):.4f}")
    print(f"mean IoU, YOLO files: {np.mean(from_yolo):.4f}")


def compare(truth: Path, labels: Path) -> tuple[list[float], list[float]]:
    """The IoU of each mask with the true one of its box, from either kind of file.

    Both have their objects in the order of the boxes, which is the annotations' in `truth`, but for
    boxes for which the model found no pixel: their IoU is 0.
    """
    expected = COCO(str(truth))
    found = COCO(str(labels / "annotations.json"))
    ids = {image["file_name"]: key for key, image in expected.imgs.items()}
    from_coco, from_yolo = [], []
    for key, image in found.imgs.items():
        annotations = expected.imgToAnns[ids[image["file_name"]]]
        true = [expected.annToMask(a).astype(bool) for a in annotations if not a.get("iscrowd")]
        masks = [found.annToMask(a).astype(bool) for a in found.imgToAnns[key]]
        file = labels / f"{Path(image['file_name']).stem}.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        size = image["height"], image["width"]
        filled = [filled_polygon(line, size) for line in lines]
        if not len(true) >= len(masks) == len(filled):
            raise ValueError(
                f"{image['file_name']}: {len(true)} objects, {len(masks)} in the COCO file and "
                f"{len(filled)} in {file.name}"
            )
        kept = found_of(true, masks)
        missed = [0.0] * (len(true) - len(kept))
        from_coco += [iou(a, b) for a, b in zip(masks, kept, strict=True)] + missed
        from_yolo += [iou(a, b) for a, b in zip(filled, kept, strict=True)] + missed
    return from_coco, from_yolo


def found_of(true: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which of the true masks these are, in the same order: those with the largest sum of IoUs."""
    ious = [[iou(a, b) for b in true] for a in masks] if len(masks) < len(true) else []
    kept = max(
        itertools.combinations(range(len(true)), len(masks)),
        key=lambda kept: sum(row[k] for row, k in zip(ious, kept, strict=False)),
    )
    return [true[k] for k in kept]


def filled_polygon(line: str, size: tuple[int, int]) -> np.ndarray:
    """A YOLO line as a mask, by OpenCV's even-odd rule, as YOLO's programs read it."""
    height, width = size
    points = np.array(line.split()[1:], float).reshape(-1, 2) * (width, height)
    canvas = np.zeros(size, np.uint8)
    cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1)
    return canvas.astype(bool)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


if __name__ == "__main__":
    main()
