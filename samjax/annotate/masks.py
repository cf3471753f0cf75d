"""Masks of boxes on several pictures at once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from samjax import inference, prompts
from samjax.checkpoint import Model
from samjax.postprocess import Rle, compress_mask
from samjax.predictor import MAX_PROMPTS, SamPredictor
from samjax.prompts import Tokens, padded_size
from samjax.types import Prompts
from samjax.upscaler import Upscaler

AT_ONCE = 16
"""Masks in memory at full size together."""


class Masks(NamedTuple):
    """Of one picture, in the order of its boxes: run lengths, and predicted IoUs."""

    rles: list[Rle]
    ious: Float[np.ndarray, "N"]


class Boxed(NamedTuple):
    """A picture, and at least one box in it that `samjax.prompts.check_box` lets pass."""

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "N 4"]


def masks_of_boxes(model: Model, pictures: Sequence[Boxed], *, batch: int) -> list[Masks]:
    """One mask for each box, as `SamPredictor.predict_batch` without `multimask_output` gives it.

    Pictures, at most `batch`, go through encoder and decoder together, with as many prompts as the
    one with most boxes needs: programs are compiled for `batch` pictures and a power of two of
    prompts.
    """
    predictor = SamPredictor(model)
    prepared = [predictor.prepare(picture.image) for picture in pictures]
    rows = [*prepared, *[prepared[-1]] * (batch - len(prepared))]
    images = np.concatenate([row.batch for row in rows])
    embeddings = inference.encode_images(model.params, images, config=model.config)
    tokens = [
        [
            prompts.tokens(box=box)
            for box in predictor.transform.apply_boxes(picture.boxes, picture.image.shape[:2])
        ]
        for picture in pictures
    ]
    low_res: list[list[np.ndarray]] = [[] for _ in pictures]
    ious: list[list[np.ndarray]] = [[] for _ in pictures]
    for start in range(0, max(map(len, tokens)), MAX_PROMPTS):
        parts = [of_one[start : start + MAX_PROMPTS] for of_one in tokens]
        packed = _packed(parts, batch)
        found = inference.decode_masks(model.params, embeddings, packed, config=model.config)
        chosen = found.select(multimask_output=False)
        masks, scores = np.asarray(chosen.low_res_masks), np.asarray(chosen.iou_predictions)
        for i, part in enumerate(parts):
            low_res[i].append(masks[i, : len(part), 0])
            ious[i].append(scores[i, : len(part), 0])
    return [
        Masks(
            _full_size(
                Upscaler(model.config, one.input_size, one.original_size), np.concatenate(masks),
                model.config.mask_threshold,
            ),
            np.concatenate(scores),
        )
        for one, masks, scores in zip(prepared, low_res, ious, strict=True)
    ]  # fmt: skip


def _packed(parts: Sequence[Sequence[Tokens]], batch: int) -> Prompts:
    """Axes (B, P, T), with pictures and prompts of padding where there are fewer."""
    number = padded_size(max(map(len, parts)))
    rows = [*parts, *[()] * (batch - len(parts))]
    packed = [prompts.pack(row, num_prompts=number) for row in rows]
    return jax.tree.map(lambda *x: np.stack(x), *packed)


def _full_size(
    upscaler: Upscaler, low_res_masks: Float[np.ndarray, "N h w"], threshold: float
) -> list[Rle]:
    """Padded to a power of two of masks, so that few programs are compiled."""
    rles = []
    for start in range(0, len(low_res_masks), AT_ONCE):
        part = low_res_masks[start : start + AT_ONCE]
        padding = np.zeros((padded_size(len(part)) - len(part), *part.shape[1:]), part.dtype)
        masks = upscaler.masks(np.concatenate([part, padding]), mask_threshold=threshold)
        rles += [compress_mask(mask) for mask in masks[: len(part)]]
    return rles
