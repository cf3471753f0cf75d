"""Masks of prompts on several pictures at once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from samjax import inference, prompts
from samjax.checkpoint import Model
from samjax.postprocess import Rle, compress_packed
from samjax.predictor import MAX_PROMPTS, SamPredictor
from samjax.prompts import Tokens, padded_size
from samjax.types import Predictions, Prompts
from samjax.upscaler import Upscaler

AT_ONCE = 16
"""Masks in memory at full size together."""


class Masks(NamedTuple):
    """Of one picture, in the order of its prompts."""

    rles: list[Rle]
    ious: Float[np.ndarray, "N"]
    stability_scores: Float[np.ndarray, "N"]


class Prompted(NamedTuple):
    """A picture, and at least one prompt on it (`samjax.prompts.tokens`, in its own pixels)."""

    image: UInt8[np.ndarray, "H W 3"]
    tokens: Sequence[Tokens]


def box_prompts(boxes: Float[np.ndarray, "N 4"]) -> list[Tokens]:
    """Boxes that `samjax.prompts.check_box` lets pass, a prompt each."""
    return [prompts.tokens(box=box) for box in boxes]


def masks_of_prompts(
    model: Model,
    pictures: Sequence[Prompted],
    *,
    batch: int,
    best_of_three: bool = False,
    stability_score_offset: float = 1.0,
) -> list[Masks]:
    """One mask for each prompt: what `SamPredictor.predict_batch` gives without `multimask_output`,
    or with `best_of_three` the one of its three whose predicted IoU is highest.

    Pictures, at most `batch`, go through encoder and decoder together, with as many prompts as the
    one with most needs: programs are compiled for `batch` pictures and a power of two of prompts.
    """
    predictor = SamPredictor(model)
    prepared = [predictor.prepare(picture.image) for picture in pictures]
    rows = [*prepared, *[prepared[-1]] * (batch - len(prepared))]
    images = np.concatenate([row.batch for row in rows])
    embeddings = inference.encode_images(model.params, images, config=model.config)
    scale = predictor.transform.apply_coords
    tokens = [
        [Tokens(scale(t.coords, one.image.shape[:2]), t.labels) for t in one.tokens]
        for one in pictures
    ]
    low_res: list[list[np.ndarray]] = [[] for _ in pictures]
    ious: list[list[np.ndarray]] = [[] for _ in pictures]
    for start in range(0, max(map(len, tokens)), MAX_PROMPTS):
        parts = [of_one[start : start + MAX_PROMPTS] for of_one in tokens]
        packed = _packed(parts, batch)
        found = inference.decode_masks(model.params, embeddings, packed, config=model.config)
        masks, scores = _one_each(found, best_of_three)
        for i, part in enumerate(parts):
            low_res[i].append(masks[i, : len(part)])
            ious[i].append(scores[i, : len(part)])
    done = []
    for one, masks_of_one, scores_of_one in zip(prepared, low_res, ious, strict=True):
        upscaler = Upscaler(model.config, one.input_size, one.original_size)
        rles, stability = _full_size(
            upscaler, np.concatenate(masks_of_one), model.config.mask_threshold,
            stability_score_offset,
        )  # fmt: skip
        done.append(Masks(rles, np.concatenate(scores_of_one), stability))
    return done


def _one_each(found: Predictions, best_of_three: bool) -> tuple[np.ndarray, np.ndarray]:
    chosen = found.select(multimask_output=best_of_three)
    masks, ious = np.asarray(chosen.low_res_masks), np.asarray(chosen.iou_predictions)
    best = ious.argmax(axis=-1)[..., None]
    return (
        np.take_along_axis(masks, best[..., None, None], axis=-3)[..., 0, :, :],
        np.take_along_axis(ious, best, axis=-1)[..., 0],
    )


def _packed(parts: Sequence[Sequence[Tokens]], batch: int) -> Prompts:
    """Axes (B, P, T), with pictures and prompts of padding where there are fewer."""
    number = padded_size(max(map(len, parts)))
    rows = [*parts, *[()] * (batch - len(parts))]
    width = padded_size(max(len(t.labels) for part in parts for t in part), prompts.MIN_TOKENS)
    packed = [prompts.pack(row, num_prompts=number, num_tokens=width) for row in rows]
    return jax.tree.map(lambda *x: np.stack(x), *packed)


def _full_size(
    upscaler: Upscaler, low_res_masks: Float[np.ndarray, "N h w"], threshold: float, offset: float
) -> tuple[list[Rle], Float[np.ndarray, "N"]]:
    """Padded to a power of two of masks, so that few programs are compiled."""
    rles: list[Rle] = []
    scores = []
    for start in range(0, len(low_res_masks), AT_ONCE):
        part = low_res_masks[start : start + AT_ONCE]
        padding = np.zeros((padded_size(len(part)) - len(part), *part.shape[1:]), part.dtype)
        masks, stability, _ = upscaler.measure(
            np.concatenate([part, padding]), mask_threshold=threshold,
            stability_score_offset=offset,
        )  # fmt: skip
        size = upscaler.original_size
        rles += [compress_packed(mask, size) for mask in masks[: len(part)]]
        scores.append(stability[: len(part)])
    return rles, np.concatenate(scores)
