"""Of the training pictures' things, those that touch another of their kind.

    python -m benchmarks.nano.touching

Two people side by side or a row of cars are rare among all annotations, and a model that has seen
few of them joins them. Written to `nano-training/coco-mix-touching.json`.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco
from tqdm import tqdm

from benchmarks.nano.prepare import OUTPUT

MIN_AREA = 900
NEAR = 7
"""Pixels: masks drawn by hand leave a gap between things that touch."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=OUTPUT)
    args = parser.parse_args(argv)
    content = touching(json.loads((args.folder / "coco-mix-training.json").read_text()))
    target = args.folder / "coco-mix-touching.json"
    target.write_text(json.dumps(content))
    print(f"{len(content['annotations'])} things in {len(content['images'])} pictures: {target}")


def touching(content: dict) -> dict:
    """The same COCO file with those things alone, and the pictures that have them."""
    by_kind: dict[tuple[int, int], list[dict]] = {}
    for annotation in content["annotations"]:
        if annotation["area"] >= MIN_AREA and not annotation["iscrowd"]:
            key = annotation["image_id"], annotation["category_id"]
            by_kind.setdefault(key, []).append(annotation)
    found: set[int] = set()
    for things in tqdm(by_kind.values(), unit="kind", delay=2):
        if len(things) < 2:
            continue
        wide = np.ones((NEAR, NEAR), np.uint8)
        grown = [cv2.dilate(coco.decode(thing["segmentation"]), wide) > 0 for thing in things]
        for (one, a), (other, b) in combinations(zip(things, grown, strict=True), 2):
            # A border in common of a fifth of the smaller one's side, not a corner.
            side = min(one["area"], other["area"]) ** 0.5
            if np.count_nonzero(a & b) >= NEAR * side / 5:
                found |= {one["id"], other["id"]}
    kept = [annotation for annotation in content["annotations"] if annotation["id"] in found]
    pictures = {annotation["image_id"] for annotation in kept}
    images = [image for image in content["images"] if image["id"] in pictures]
    return {**content, "images": images, "annotations": kept}


if __name__ == "__main__":
    main()
