"""Pictures of what a model in training does, beside what it should do."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from samjax.datasets import BadRecordError, Source, decode_mask, read_picture
from samjax.drawing import overlay
from samjax.evaluate import boxes_of_masks, next_click
from samjax.predictor import SamPredictor

MAX_MASKS = 8
"""Objects shown in a picture, the largest ones."""
SIDE = 480
"""Longest side of a picture in the sheet, in pixels."""


def sample_sheet(
    predictor: SamPredictor, sources: Sequence[Source], number: int
) -> UInt8[np.ndarray, "H W 3"] | None:
    """A row for each of `number` pictures, spread evenly over each source in turn: the truth, what
    a box gives, and the best of three masks that a click gives by the predicted IoU.

    None where no picture can be used.
    """
    rows = []
    for n in range(number):
        source = sources[n % len(sources)]
        shown = -(-number // len(sources))
        try:
            record = source.read((n // len(sources)) * len(source) // shown)
            image = read_picture(record)
        except BadRecordError:
            continue
        masks = _largest(record)
        if len(masks):
            rows.append(_row(predictor, image, masks))
    if not rows:
        return None
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255)
              for row in rows]  # fmt: skip
    return np.concatenate(padded)


def _row(
    predictor: SamPredictor, image: UInt8[np.ndarray, "H W 3"], masks: Bool[np.ndarray, "P H W"]
) -> UInt8[np.ndarray, "h w 3"]:
    boxes = boxes_of_masks(masks).astype(np.float64)
    found = [next_click(mask, np.zeros_like(mask)) for mask in masks]
    clicks = np.array([click[:2] for click in found if click], np.float64)
    predictor.set_image(image)
    from_boxes, _, _ = predictor.predict_batch(boxes=boxes, multimask_output=False)
    from_clicks, scores, _ = predictor.predict_batch(
        point_coords=[click[None] for click in clicks], point_labels=[np.ones(1, int)] * len(clicks)
    )
    best = np.asarray(scores).argmax(axis=1)
    chosen = np.asarray(from_clicks)[np.arange(len(best)), best]
    panels = [
        overlay(image, masks),
        overlay(image, np.asarray(from_boxes)[:, 0], boxes=boxes),
        overlay(image, chosen, points=clicks),
    ]
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = [np.asarray(Image.fromarray(panel).resize(size)) for panel in panels]
    gap = np.full((size[1], 8, 3), 255, np.uint8)
    return np.concatenate([small[0], gap, small[1], gap, small[2]], axis=1)


def _largest(record) -> Bool[np.ndarray, "P H W"]:
    masks = [np.zeros((0, *record.size), bool)]
    for i in range(len(record.masks)):
        try:
            masks.append(decode_mask(record, i)[None])
        except BadRecordError:
            continue
    found = np.concatenate(masks)
    order = np.argsort(-found.sum(axis=(1, 2)), kind="stable")[:MAX_MASKS]
    return found[order]
