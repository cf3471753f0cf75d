"""Segment everything in a picture (appendix B; reference: `SamAutomaticMaskGenerator`)."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco
from tqdm import tqdm

from samjax import inference
from samjax.checkpoint import Model
from samjax.images import read_image
from samjax.postprocess import (
    Rle,
    box_area,
    box_xyxy_to_xywh,
    build_all_layer_point_grids,
    compress_mask,
    generate_crop_boxes,
    is_box_near_crop_edge,
    nms,
    remove_small_regions,
    uncompress_rle,
    uncrop_mask,
)
from samjax.predictor import SamPredictor
from samjax.types import PointLabel, Predictions, Prompts

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")

MASKS_AT_ONCE = 8
"""Masks brought to full resolution together; memory grows with this and not with their number."""


class MetasDefault(float):
    """A default of Meta's, which gives way to the model's own threshold.

    An equal number from a caller is a plain float, and stays.
    """


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


class Candidates(NamedTuple):
    """Masks that wait for their measures: predicted IoUs, clicks, and what the device is busy
    with, padded to `MASKS_AT_ONCE`."""

    iou_predictions: Float[np.ndarray, "K"]
    points: Float[np.ndarray, "K 2"]
    measuring: tuple[jax.Array, jax.Array, jax.Array]


class SamAutomaticMaskGenerator:
    """Masks of all that is in a picture, from a grid of points on it and on crops of it.

    Arguments, defaults, output modes and record keys are the reference's. A model may carry
    thresholds of its own (`Model.everything`), which are used where the caller names none.

    Args:
      model: what `samjax.load` returns; without one the package's own, nano.
      points_per_side: points along one side of the grid; their square is the number of prompts.
        None when `point_grids` are given.
      points_per_batch: prompts decoded at a time.
      pred_iou_thresh: keep masks whose predicted IoU is above this, in 0..1.
      stability_score_thresh: keep masks whose stability score is at least this, in 0..1.
      stability_score_offset: by how much the threshold is moved for that score, in logits.
      box_nms_thresh: IoU of boxes above which the mask with the lower predicted IoU goes.
      crop_n_layers: layer i runs the model again on 4**i crops of the picture.
      crop_nms_thresh: as `box_nms_thresh`, between masks of different crops.
      crop_overlap_ratio: overlap of the first layer's crops, as a share of the shorter side.
      crop_n_points_downscale_factor: layer i has `points_per_side / factor**i` points a side.
      point_grids: (N, 2) arrays of points in [0, 1], one for each layer.
      min_mask_region_area: fill holes and drop islands smaller than this, in pixels.
      output_mode: "binary_mask", "uncompressed_rle" or "coco_rle" segmentations.
      progress: show a progress bar when it takes more than two seconds.

    Raises `ValueError` naming the argument that is out of range.
    """

    def __init__(
        self,
        model: Model | None = None,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = MetasDefault(0.88),
        stability_score_thresh: float = MetasDefault(0.95),
        stability_score_offset: float = MetasDefault(1.0),
        box_nms_thresh: float = MetasDefault(0.7),
        crop_n_layers: int = 0,
        crop_nms_thresh: float = MetasDefault(0.7),
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        *,
        progress: bool = False,
    ):
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode is {output_mode!r}; use one of {OUTPUT_MODES}.")
        if points_per_batch < 1:
            raise ValueError(f"points_per_batch is {points_per_batch}; it has to be at least 1.")
        if crop_n_layers < 0:
            raise ValueError(f"crop_n_layers is {crop_n_layers}; it has to be 0 or more.")
        if not 0 <= crop_overlap_ratio <= 1:
            raise ValueError(
                f"crop_overlap_ratio is {crop_overlap_ratio}; it is a share in [0, 1]."
            )
        if min_mask_region_area < 0:
            raise ValueError(
                f"min_mask_region_area is {min_mask_region_area}; it has to be 0 or more pixels."
            )
        self.point_grids = _point_grids(
            points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor
        )
        self.predictor = SamPredictor(model)
        carried = self.predictor.model.everything.to_dict()

        def threshold(name: str, given: float) -> float:
            return float(carried.get(name, given) if isinstance(given, MetasDefault) else given)

        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = threshold("pred_iou_thresh", pred_iou_thresh)
        self.stability_score_thresh = threshold("stability_score_thresh", stability_score_thresh)
        self.stability_score_offset = threshold("stability_score_offset", stability_score_offset)
        self.box_nms_thresh = threshold("box_nms_thresh", box_nms_thresh)
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = threshold("crop_nms_thresh", crop_nms_thresh)
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self.progress = progress

    def generate(self, image: str | os.PathLike[str] | np.ndarray) -> list[dict[str, Any]]:
        """Segments everything in a picture: a file, or an array as `SamPredictor.set_image` takes.

        Returns one record for each mask: `segmentation` ((H, W) bool or an RLE), `area` in pixels,
        `bbox` (x, y, width, height), `predicted_iou`, `point_coords` [[x, y]] that was clicked,
        `stability_score`, and `crop_box` (x, y, width, height) of the crop it was found in.
        """
        masks = self._generate_masks(read_image(image))
        if self.min_mask_region_area > 0:
            masks = self._without_small_regions(masks)
        return [self._record(masks, i) for i in range(len(masks.rles))]

    def _generate_masks(self, image: np.ndarray) -> Masks:
        crop_boxes, layers = generate_crop_boxes(
            image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio
        )
        batches = [-(-len(self.point_grids[layer]) // self.points_per_batch) for layer in layers]
        bar = tqdm(total=sum(batches), unit="batch", delay=2, leave=None, disable=not self.progress)
        with bar:
            parts = [
                self._process_crop(image, crop_box, self.point_grids[layer], bar)
                for crop_box, layer in zip(crop_boxes, layers, strict=True)
            ]
        masks = Masks.concatenate(parts)
        if len(crop_boxes) > 1:
            preference = 1.0 / box_area(masks.crop_boxes.astype(np.float32))
            masks = masks.take(nms(masks.boxes, preference, self.crop_nms_thresh))
        return masks

    def _process_crop(
        self, image: np.ndarray, crop_box: list[int], grid: Float[np.ndarray, "N 2"], bar: tqdm
    ) -> Masks:
        x0, y0, x1, y1 = crop_box
        self.predictor.set_image(image[y0:y1, x0:x1])
        points = grid * np.array([[x1 - x0, y1 - y0]])
        parts = [Masks.none()]
        begun: list[Candidates] = []
        for start in range(0, len(points), self.points_per_batch):
            batch = points[start : start + self.points_per_batch]
            predictions = self._decode(batch)
            for candidates in self._candidates(predictions, batch, begun):
                parts.append(self._kept(candidates, crop_box, image.shape[:2]))
            bar.update()
        parts.extend(self._kept(candidates, crop_box, image.shape[:2]) for candidates in begun)
        self.predictor.reset_image()
        masks = Masks.concatenate(parts)
        return masks.take(nms(masks.boxes, masks.iou_predictions, self.box_nms_thresh))

    def _decode(self, points: Float[np.ndarray, "P 2"]) -> Predictions:
        """The multimask outputs of a click on each point, of which those count that promise
        enough."""
        model = self.predictor.model
        return inference.decode_masks(
            model.params, self.predictor.picture.features, self._prompts(points),
            config=model.config,
            least_iou=self.pred_iou_thresh if self.pred_iou_thresh > 0 else -np.inf,
        ).select(multimask_output=True)  # fmt: skip

    def _candidates(
        self,
        predictions: Predictions,
        points: Float[np.ndarray, "P 2"],
        begun: list[Candidates],
    ) -> Iterator[Candidates]:
        """Masks whose predicted IoU passes, each few of them after the next ones have begun.

        So the host compresses masks while the device is busy. `begun` holds those that are not yet
        given out, at the start those of the batch before.
        """
        yield from begun
        begun.clear()
        ious = np.asarray(predictions.iou_predictions)[0, : len(points)]
        per_point = ious.shape[1]
        ious = ious.reshape(-1)
        kept = np.arange(len(ious))
        if self.pred_iou_thresh > 0.0:
            kept = np.flatnonzero(ious > self.pred_iou_thresh)
        low_res = predictions.low_res_masks[0].reshape(-1, *predictions.low_res_masks.shape[-2:])
        for start in range(0, len(kept), MASKS_AT_ONCE):
            some = kept[start : start + MASKS_AT_ONCE]
            padded = np.pad(some, (0, MASKS_AT_ONCE - len(some)))
            measuring = self.predictor.picture.upscaler.measuring(
                low_res[padded],
                mask_threshold=self.predictor.mask_threshold,
                stability_score_offset=self.stability_score_offset,
            )
            begun.append(Candidates(ious[some], points[some // per_point], measuring))
            if len(begun) > 1:
                yield begun.pop(0)

    def _prompts(self, points: Float[np.ndarray, "P 2"]) -> Prompts:
        """One click for each point, padded to `points_per_batch` so that one shape compiles."""
        coords = np.zeros((1, self.points_per_batch, 2, 2), np.float32)
        labels = np.full((1, self.points_per_batch, 2), PointLabel.PADDING, np.int32)
        coords[0, : len(points), 0] = self.predictor.transform.apply_coords(
            points, self.predictor.picture.original_size
        )
        labels[0, : len(points)] = PointLabel.FOREGROUND, PointLabel.NOT_A_POINT
        return Prompts(coords, labels)

    def _kept(self, candidates: Candidates, crop_box: list[int], size: tuple[int, int]) -> Masks:
        """Full-resolution masks of the candidates that pass, in the picture's frame."""
        ious, points, measuring = candidates
        binary, stability, boxes = self.predictor.picture.upscaler.measured(measuring)
        near_edge = is_box_near_crop_edge(boxes, crop_box, [0, 0, size[1], size[0]])
        keep = ~near_edge
        if self.stability_score_thresh > 0.0:
            keep &= stability >= self.stability_score_thresh
        keep = np.flatnonzero(keep[: len(ious)])
        x0, y0, _, _ = crop_box
        return Masks(
            [compress_mask(uncrop_mask(binary[i], crop_box, size)) for i in keep],
            boxes[keep] + np.array([x0, y0, x0, y0]),
            ious[keep],
            points[keep] + np.array([x0, y0]),
            stability[keep],
            np.tile(np.array(crop_box, np.int64), (len(keep), 1)),
        )

    def _without_small_regions(self, masks: Masks) -> Masks:
        """Holes filled and islands dropped, duplicates suppressed again, unchanged masks first."""
        rles, boxes, unchanged = [], np.zeros_like(masks.boxes), np.ones(len(masks.rles), bool)
        for i, rle in enumerate(masks.rles):
            mask, filled = remove_small_regions(
                _decode(rle), self.min_mask_region_area, mode="holes"
            )
            mask, dropped = remove_small_regions(mask, self.min_mask_region_area, mode="islands")
            unchanged[i] = not (filled or dropped)
            rles.append(rle if unchanged[i] else compress_mask(mask))
            boxes[i] = _box(mask)
        threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
        kept = nms(boxes, unchanged.astype(np.float32), threshold)
        changed = np.where(unchanged[:, None], masks.boxes, boxes)
        return masks._replace(rles=rles, boxes=changed).take(kept)

    def _record(self, masks: Masks, i: int) -> dict[str, Any]:
        rle = masks.rles[i]
        encode = {
            "binary_mask": _decode,
            "uncompressed_rle": uncompress_rle,
            "coco_rle": lambda rle: rle,
        }[self.output_mode]
        return {
            "segmentation": encode(rle),
            "area": int(coco.area(rle)),
            "bbox": box_xyxy_to_xywh(masks.boxes[i]).tolist(),
            "predicted_iou": float(masks.iou_predictions[i]),
            "point_coords": [masks.points[i].tolist()],
            "stability_score": float(masks.stability_scores[i]),
            "crop_box": box_xyxy_to_xywh(masks.crop_boxes[i]).tolist(),
        }


def _point_grids(
    points_per_side: int | None, point_grids: list[np.ndarray] | None, layers: int, factor: int
) -> list[Float[np.ndarray, "N 2"]]:
    if (points_per_side is None) == (point_grids is None):
        raise ValueError(
            f"points_per_side is {points_per_side} and point_grids "
            f"{'given' if point_grids is not None else 'None'}; give exactly one of the two."
        )
    if point_grids is None:
        assert points_per_side is not None
        return build_all_layer_point_grids(points_per_side, layers, factor)
    if len(point_grids) != layers + 1:
        raise ValueError(
            f"point_grids has {len(point_grids)} grids; crop_n_layers={layers} needs {layers + 1}."
        )
    grids = [np.asarray(grid, np.float64) for grid in point_grids]
    for grid in grids:
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise ValueError(f"a point grid has shape {grid.shape}; expected (N, 2), N > 0.")
        if not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError("a point grid has values outside [0, 1]; they are shares of a side.")
    return grids


def _decode(rle: Rle) -> Bool[np.ndarray, "H W"]:
    return coco.decode(rle).astype(bool)


def _box(mask: np.ndarray) -> Int[np.ndarray, "4"]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])
