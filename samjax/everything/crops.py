"""One crop of a picture: every point decoded, what passes measured, filtered and compressed.

The device is kept a batch ahead. While the host reads which masks of a batch pass, the next batch
is being decoded; while full-resolution masks of one piece are run-length encoded on a thread, those
of the next are being made. No more than `PIECES_AT_ONCE` times `MASKS_AT_ONCE` of them exist.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from samjax import inference
from samjax.checkpoint import Model
from samjax.embeddings import Picture
from samjax.everything.ahead import BegunEarly
from samjax.everything.masks import Masks
from samjax.postprocess import compress_packed, is_box_near_crop_edge, nms
from samjax.transforms import ResizeLongestSide
from samjax.types import PointLabel, Predictions, Prompts

MASKS_AT_ONCE = 8
"""Masks brought to full resolution together; memory grows with this and not with their number."""

PIECES_AT_ONCE = 3
"""Pieces of so many masks that are being made or compressed at a time."""


class Filters(NamedTuple):
    """The generator's thresholds, under its names."""

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float


class Crop(NamedTuple):
    """A part of a picture. `box` is (x0, y0, x1, y1) in the picture of `size` (height, width);
    `points` (x, y) are in the crop's pixels."""

    box: list[int]
    size: tuple[int, int]
    points: Float[np.ndarray, "N 2"]


def segment_crop(
    model: Model,
    crop: Crop,
    picture: Picture,
    filters: Filters,
    *,
    points_per_batch: int,
    compressing: Executor,
    all_begun: Callable[[], object],
    after_batch: Callable[[], object],
) -> Masks:
    """The crop's masks, duplicates suppressed, in the whole picture's coordinates.

    `picture` is the crop's embedding. `compressing` encodes masks. `all_begun` is called when the
    last batch has gone to the device, which then has room for other work; `after_batch` after each.
    What it raises ends the work.
    """
    batches = BegunEarly(_decoded(model, crop, picture, filters, points_per_batch))
    pieces: deque[Future[Masks]] = deque()
    parts = [Masks.none()]
    for points, predictions in batches:
        if not batches.begin():
            all_begun()
        ious = np.asarray(predictions.iou_predictions)[0, : len(points), 1:]
        passing = np.argwhere((ious > filters.pred_iou_thresh) | (filters.pred_iou_thresh <= 0.0))
        for start in range(0, len(passing), MASKS_AT_ONCE):
            some, mask = passing[start : start + MASKS_AT_ONCE].T
            if len(pieces) == PIECES_AT_ONCE:
                parts.append(pieces.popleft().result())
            measuring = _measuring(predictions, some, mask + 1, picture, filters, model)
            pieces.append(
                compressing.submit(
                    _kept, measuring, ious[some, mask], points[some], crop, picture, filters
                )
            )
        after_batch()
    parts.extend(piece.result() for piece in pieces)
    masks = Masks.concatenate(parts)
    return masks.take(nms(masks.boxes, masks.iou_predictions, filters.box_nms_thresh))


def _decoded(
    model: Model, crop: Crop, picture: Picture, filters: Filters, points_per_batch: int
) -> Iterator[tuple[Float[np.ndarray, "P 2"], Predictions]]:
    """Points, and all masks of a click on each, of which those count that promise enough."""
    transform = ResizeLongestSide(model.config.image_size)
    for start in range(0, len(crop.points), points_per_batch):
        points = crop.points[start : start + points_per_batch]
        coords = transform.apply_coords(points, picture.original_size)
        yield points, inference.decode_masks(
            model.params, picture.features, _clicks(coords, points_per_batch), config=model.config,
            least_iou=filters.pred_iou_thresh if filters.pred_iou_thresh > 0 else -np.inf,
        )  # fmt: skip


def _clicks(coords: Float[np.ndarray, "P 2"], number: int) -> Prompts:
    """One for each point, padded to `number` so that one shape compiles."""
    padded = np.zeros((1, number, 2, 2), np.float32)
    labels = np.full((1, number, 2), PointLabel.PADDING, np.int32)
    padded[0, : len(coords), 0] = coords
    labels[0, : len(coords)] = PointLabel.FOREGROUND, PointLabel.NOT_A_POINT
    return Prompts(padded, labels)


def _measuring(
    predictions: Predictions,
    prompts: Int[np.ndarray, "K"],
    masks: Int[np.ndarray, "K"],
    picture: Picture,
    filters: Filters,
    model: Model,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Begins to measure these masks of these prompts, padded to `MASKS_AT_ONCE`."""
    chosen = prompts * predictions.iou_predictions.shape[-1] + masks
    return picture.upscaler.measuring(
        predictions.low_res_masks,
        np.pad(chosen, (0, MASKS_AT_ONCE - len(chosen))),
        mask_threshold=model.config.mask_threshold,
        stability_score_offset=filters.stability_score_offset,
    )


def _kept(
    measuring: tuple[jax.Array, jax.Array, jax.Array],
    ious: Float[np.ndarray, "K"],
    points: Float[np.ndarray, "K 2"],
    crop: Crop,
    picture: Picture,
    filters: Filters,
) -> Masks:
    """Masks that pass, in the picture's frame, when they have been computed."""
    packed, stability, boxes = picture.upscaler.measured(measuring)
    height, width = crop.size
    keep = ~is_box_near_crop_edge(boxes, crop.box, [0, 0, width, height])
    if filters.stability_score_thresh > 0.0:
        keep &= stability >= filters.stability_score_thresh
    keep = np.flatnonzero(keep[: len(ious)])
    x0, y0, _, _ = crop.box
    inside, whole = picture.original_size, crop.size
    return Masks(
        [compress_packed(packed[i], inside, origin=(x0, y0), frame=whole) for i in keep],
        boxes[keep] + np.array([x0, y0, x0, y0]),
        ious[keep],
        points[keep] + np.array([x0, y0]),
        stability[keep],
        np.tile(np.array(crop.box, np.int64), (len(keep), 1)),
    )
