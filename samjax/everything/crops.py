"""One crop of a picture: every point decoded, what passes measured, filtered and compressed.

The device is kept a batch ahead: while the host reads which masks of a batch pass, the next batch
is being decoded. Threads bring those that do to full resolution, a piece at a time each, and encode
their runs. JAX runs what one thread asks for in order, and the CPU measures a piece on one core: so
the others have work too. No more than `PIECES_AT_ONCE` times `MASKS_AT_ONCE` masks exist.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from samjax import inference
from samjax.checkpoint import Model
from samjax.embeddings import Picture
from samjax.everything.ahead import BegunEarly
from samjax.everything.masks import Masks
from samjax.models.sam import FEWEST_SHARED
from samjax.postprocess import compress_packed, is_box_near_crop_edge, nms
from samjax.transforms import ResizeLongestSide
from samjax.types import PointLabel, Predictions, Prompts

MASKS_AT_ONCE = 8
"""Masks brought to full resolution together; memory grows with this and not with their number."""

MEASURING_THREADS = 2
"""Of which each measures and compresses a piece of so many masks."""

PIECES_AT_ONCE = MEASURING_THREADS + 1
"""Pieces that are being measured, or wait for it or to be taken."""


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
    measuring: Executor,
    all_begun: Callable[[], object],
    after_batch: Callable[[], object],
) -> Masks:
    """The crop's masks, duplicates suppressed, in the whole picture's coordinates.

    `picture` is the crop's embedding. `measuring` has `MEASURING_THREADS` threads. `all_begun` is
    called when the last batch has gone to the device, which then has room for other work;
    `after_batch` after each. What it raises ends the work.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    batches = BegunEarly(_decoded(model, crop, picture, filters, points_per_batch))
    pieces: deque[Future[Masks]] = deque()
    parts = [Masks.none()]
    for points, predictions in batches:
        if not batches.begin():
            all_begun()
        low_res_masks = _on_one_device(predictions.low_res_masks)
        ious = np.asarray(predictions.iou_predictions)[0, : len(points), 1:]
        passing = np.argwhere((ious > filters.pred_iou_thresh) | (filters.pred_iou_thresh <= 0.0))
        for start in range(0, len(passing), MASKS_AT_ONCE):
            some, mask = passing[start : start + MASKS_AT_ONCE].T
            if len(pieces) == PIECES_AT_ONCE:
                parts.append(pieces.popleft().result())
            chosen = some * predictions.iou_predictions.shape[-1] + mask + 1
            piece = _Piece(low_res_masks, chosen, ious[some, mask], points[some], device)
            pieces.append(measuring.submit(_kept, piece, model, crop, picture, filters))
        after_batch()
    parts.extend(piece.result() for piece in pieces)
    masks = Masks.concatenate(parts)
    return masks.take(nms(masks.boxes, masks.iou_predictions, filters.box_nms_thresh))


def _decoded(
    model: Model, crop: Crop, picture: Picture, filters: Filters, points_per_batch: int
) -> Iterator[tuple[Float[np.ndarray, "P 2"], Predictions]]:
    """Points, and all masks of a click on each, of which those count that promise enough."""
    transform = ResizeLongestSide(model.config.image_size)
    shared = None
    if len(crop.points) > FEWEST_SHARED:
        shared = inference.share_pictures(model.params, picture.features, config=model.config)
    for start in range(0, len(crop.points), points_per_batch):
        points = crop.points[start : start + points_per_batch]
        coords = transform.apply_coords(points, picture.original_size)
        yield points, inference.decode_masks(
            model.params, picture.features, _clicks(coords, points_per_batch), config=model.config,
            least_iou=filters.pred_iou_thresh if filters.pred_iou_thresh > 0 else -np.inf,
            shared=shared,
        )  # fmt: skip


def _clicks(coords: Float[np.ndarray, "P 2"], number: int) -> Prompts:
    """One for each point, padded to `number` so that one shape compiles."""
    padded = np.zeros((1, number, 2, 2), np.float32)
    labels = np.full((1, number, 2), PointLabel.PADDING, np.int32)
    padded[0, : len(coords), 0] = coords
    labels[0, : len(coords)] = PointLabel.FOREGROUND, PointLabel.NOT_A_POINT
    return Prompts(padded, labels)


def _on_one_device(masks: Array | np.ndarray) -> Array | np.ndarray:
    """Of a model on a mesh. Programs of several devices, begun by threads in one order here and in
    another there, would wait for each other; and to measure a mask everywhere is no use."""
    if not isinstance(masks, jax.Array) or len(masks.sharding.device_set) == 1:
        return masks
    if masks.is_fully_replicated:
        return masks.addressable_data(0)
    return jax.device_put(masks, masks.addressable_shards[0].device)


class _Piece(NamedTuple):
    """Masks to measure: their numbers among `low_res_masks`, and what is known of each."""

    low_res_masks: Array | np.ndarray
    chosen: Int[np.ndarray, "K"]
    ious: Float[np.ndarray, "K"]
    points: Float[np.ndarray, "K 2"]
    device: Any
    """JAX's default device, which each thread has for itself."""


def _kept(piece: _Piece, model: Model, crop: Crop, picture: Picture, filters: Filters) -> Masks:
    """Measures, padded to `MASKS_AT_ONCE`; the masks that pass, in the picture's frame."""
    number = len(piece.chosen)
    with jax.default_device(piece.device):
        packed, stability, boxes = picture.upscaler.measure(
            piece.low_res_masks, np.pad(piece.chosen, (0, MASKS_AT_ONCE - number)),
            mask_threshold=model.config.mask_threshold,
            stability_score_offset=filters.stability_score_offset,
        )  # fmt: skip
    height, width = crop.size
    keep = ~is_box_near_crop_edge(boxes, crop.box, [0, 0, width, height])
    if filters.stability_score_thresh > 0.0:
        keep &= stability >= filters.stability_score_thresh
    keep = np.flatnonzero(keep[:number])
    x0, y0, _, _ = crop.box
    inside, whole = picture.original_size, crop.size
    return Masks(
        [compress_packed(packed[i], inside, origin=(x0, y0), frame=whole) for i in keep],
        boxes[keep] + np.array([x0, y0, x0, y0]),
        piece.ious[keep],
        piece.points[keep] + np.array([x0, y0]),
        stability[keep],
        np.tile(np.array(crop.box, np.int64), (len(keep), 1)),
    )
