"""The masks that have been found, as columns, and as the reference's records."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco

from samjax.postprocess import (
    Rle,
    box_xyxy_to_xywh,
    coco_encode_rle,
    compress_mask,
    nms,
    remove_small_regions,
    uncompress_rle,
)

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class Masks(NamedTuple):
    """Masks that have been kept, in the whole picture's coordinates, one entry in each column.

    Run lengths are compressed: as lists, those of a thousand ragged masks take gigabytes."""

    rles: list[Rle]
    boxes: Int[np.ndarray, "N 4"]
    iou_predictions: Float[np.ndarray, "N"]
    points: Float[np.ndarray, "N 2"]
    stability_scores: Float[np.ndarray, "N"]
    crop_boxes: Int[np.ndarray, "N 4"]

    def take(self, indices: Int[np.ndarray, "K"]) -> "Masks":
        return Masks([self.rles[i] for i in indices], *(column[indices] for column in self[1:]))

    @staticmethod
    def concatenate(parts: Sequence["Masks"]) -> "Masks":
        rles = [rle for part in parts for rle in part.rles]
        columns = zip(*(part[1:] for part in parts), strict=True)
        return Masks(rles, *(np.concatenate(column) for column in columns))

    @staticmethod
    def none() -> "Masks":
        return Masks(
            [], np.zeros((0, 4), np.int64), np.zeros(0, np.float32), np.zeros((0, 2)),
            np.zeros(0, np.float32), np.zeros((0, 4), np.int64),
        )  # fmt: skip


def without_small_regions(masks: Masks, least_area: float, nms_thresh: float) -> Masks:
    """Holes filled and islands dropped, duplicates suppressed again, unchanged masks first.

    Reference: `SamAutomaticMaskGenerator.postprocess_small_regions`. `least_area` is in pixels.
    """
    rles, boxes, unchanged = [], np.zeros_like(masks.boxes), np.ones(len(masks.rles), bool)
    for i, rle in enumerate(masks.rles):
        mask, filled = remove_small_regions(_decode(rle), least_area, mode="holes")
        mask, dropped = remove_small_regions(mask, least_area, mode="islands")
        unchanged[i] = not (filled or dropped)
        rles.append(rle if unchanged[i] else compress_mask(mask))
        boxes[i] = _box(mask)
    kept = nms(boxes, unchanged.astype(np.float32), nms_thresh)
    changed = np.where(unchanged[:, None], masks.boxes, boxes)
    return masks._replace(rles=rles, boxes=changed).take(kept)


def records(masks: Masks, output_mode: str) -> list[dict[str, Any]]:
    """One of the reference's records for each mask; `output_mode` is one of `OUTPUT_MODES`."""
    return [
        {
            "segmentation": encode(rle, output_mode),
            "area": int(coco.area(rle)),
            "bbox": box_xyxy_to_xywh(masks.boxes[i]).tolist(),
            "predicted_iou": float(masks.iou_predictions[i]),
            "point_coords": [masks.points[i].tolist()],
            "stability_score": float(masks.stability_scores[i]),
            "crop_box": box_xyxy_to_xywh(masks.crop_boxes[i]).tolist(),
        }
        for i, rle in enumerate(masks.rles)
    ]


def compressed(segmentation: Bool[np.ndarray, "H W"] | Mapping[str, Any]) -> Rle:
    """A record's segmentation, of any output mode, as `Rle` with "counts" as str."""
    if isinstance(segmentation, np.ndarray):
        return compress_mask(segmentation)
    counts = segmentation["counts"]
    rle: Rle = {"size": list(segmentation["size"]), "counts": counts}
    if isinstance(counts, list):
        return coco_encode_rle(rle)
    return {**rle, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def encode(rle: Rle, output_mode: str) -> Bool[np.ndarray, "H W"] | Rle:
    """A compressed mask as a record's segmentation; `output_mode` is one of `OUTPUT_MODES`."""
    if output_mode == "binary_mask":
        return _decode(rle)
    return uncompress_rle(rle) if output_mode == "uncompressed_rle" else rle


def _decode(rle: Rle) -> Bool[np.ndarray, "H W"]:
    return coco.decode(rle).astype(bool)


def _box(mask: np.ndarray) -> Int[np.ndarray, "4"]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])
