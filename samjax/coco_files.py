"""COCO instances files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from pycocotools import mask as coco

from samjax.writing import write_beside

COCO_HEAD: dict[str, Any] = {
    "info": {"description": "Masks by samjax"},
    "categories": [{"id": 1, "name": "object", "supercategory": "object"}],
}
"""All of a COCO file but its images and annotations."""


def coco_image(image: Mapping[str, Any]) -> dict[str, Any]:
    """From `image_id`, `width`, `height` and `file_name`, as annotations.json has them."""
    return {"id": image["image_id"]} | {k: image[k] for k in ("width", "height", "file_name")}


def coco_annotation(image: Mapping[str, Any], annotation: Mapping[str, Any]) -> dict[str, Any]:
    """From one of the generator's records with a compressed RLE; the stability score may be
    missing. It has no `id` yet."""
    scores = ("predicted_iou", "stability_score")
    return {
        "image_id": image["image_id"],
        "category_id": 1,
        "segmentation": annotation["segmentation"],
        "area": annotation["area"],
        "bbox": coco.toBbox(annotation["segmentation"]).tolist(),
        "iscrowd": 0,
        "score": annotation["predicted_iou"],
        **{name: annotation[name] for name in scores if name in annotation},
    }


def write_coco_file(
    path: Path,
    head: Mapping[str, Any],
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
) -> int:
    """Writes a file, whole or not at all, and returns the number of annotations.

    `head` is all but images and annotations; these are taken one at a time, and the annotations
    numbered from 1. The old file stays until the new one is whole.
    """
    numbered = ({"id": i, **item} for i, item in enumerate(annotations, start=1))
    with write_beside(path) as staged, staged.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "images": [')
        _write_items(file, images)
        file.write('], "annotations": [')
        number = _write_items(file, numbered)
        file.write("]}\n")
    return number


def _write_items(file: IO[str], items: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for count, item in enumerate(items, start=1):  # noqa: B007
        file.write(("\n" if count == 1 else ",\n") + json.dumps(item))
    return count
