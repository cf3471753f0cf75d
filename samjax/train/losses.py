"""Losses of predicted masks (Segment Anything, section 3 "Losses and training", and appendix A).

Everything is in float32, on logits at the low resolution against ground truth at that resolution,
one number for each mask. `inside` marks the pixels that belong to the picture; what was padded
counts in no sum and in no mean.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from samjax.train.config import TrainConfig
from samjax.types import Predictions


class ObjectLoss(NamedTuple):
    """The loss of one prompt's masks, and its parts before they are weighted."""

    total: Float[Array, "*L"]
    focal: Float[Array, "*L"]
    dice: Float[Array, "*L"]
    iou: Float[Array, "*L"]


def focal_loss(
    logits: Float[Array, "*L h w"],
    target: Bool[Array, "*L h w"],
    inside: Bool[Array, "h w"],
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Float[Array, "*L"]:
    """Mean over the picture's pixels of alpha_t (1 - p_t)^gamma (-log p_t).

    Lin et al. 2017, equation 5; gamma and alpha, which SAM's paper does not give, are those of
    that paper's section 5.1 and of DETR's segmentation head, which SAM cites for its losses.
    """
    logits = logits.astype(jnp.float32)
    signed = jnp.where(target, logits, -logits)
    weight = jnp.where(target, jnp.float32(alpha), jnp.float32(1 - alpha))
    power = int(gamma) if gamma == int(gamma) else gamma
    per_pixel = weight * jax.nn.sigmoid(-signed) ** power * jax.nn.softplus(-signed)
    return _sum(per_pixel, inside) / jnp.maximum(_sum(jnp.ones_like(per_pixel), inside), 1.0)


def dice_loss(
    logits: Float[Array, "*L h w"], target: Bool[Array, "*L h w"], inside: Bool[Array, "h w"]
) -> Float[Array, "*L"]:
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), in [0, 1) (Milletari et al. 2016, in DETR's
    form, whose ones keep it defined for empty masks)."""
    probability = jax.nn.sigmoid(logits.astype(jnp.float32))
    truth = target.astype(jnp.float32)
    overlap = 2.0 * _sum(probability * truth, inside)
    return 1.0 - (overlap + 1.0) / (_sum(probability, inside) + _sum(truth, inside) + 1.0)


def mask_iou(
    mask: Bool[Array, "*L h w"], target: Bool[Array, "*L h w"], inside: Bool[Array, "h w"]
) -> Float[Array, "*L"]:
    """Intersection over union, in [0, 1]; 0 where both are empty."""
    both = _sum((mask & target).astype(jnp.float32), inside)
    either = _sum((mask | target).astype(jnp.float32), inside)
    return both / jnp.maximum(either, 1.0)


def object_loss(
    predictions: Predictions,
    target: Bool[Array, "h w"],
    ambiguous: Bool[Array, ""],
    inside: Bool[Array, "h w"],
    *,
    train: TrainConfig,
    mask_threshold: float,
) -> ObjectLoss:
    """The loss of one prompt, whose `predictions` are all M masks (M, h, w) and IoUs (M,).

    An ambiguous prompt counts its multimask outputs, every other prompt the single mask. Of the
    masks that count only the one with the lowest weighted sum of focal and dice loss trains the
    masks (section 3, "Resolving ambiguity"). The IoU head learns from all masks that count, by the
    mean of their squared errors: the head "estimates the IoU between each predicted mask and the
    object" and ranks good against bad, so it has to see the bad ones; the paper does not say so
    outright, SAM 2's (appendix D.2) does. `train.iou_masks` "chosen" takes the best one alone.
    """
    masks, iou_predictions = predictions
    masks = jnp.asarray(masks).astype(jnp.float32)
    targets = jnp.broadcast_to(target, masks.shape)

    def mask_losses(logits, truth):
        focal = focal_loss(logits, truth, inside, gamma=train.focal_gamma, alpha=train.focal_alpha)
        return focal, dice_loss(logits, truth, inside)

    focal, dice = mask_losses(jax.lax.stop_gradient(masks), targets)
    weighted = train.focal_weight * focal + train.dice_weight * dice
    best = jnp.where(ambiguous, 1 + jnp.argmin(weighted[1:]), 0)
    focal, dice = mask_losses(masks[best], target)

    actual = mask_iou(jax.lax.stop_gradient(masks) > mask_threshold, targets, inside)
    error = (jnp.asarray(iou_predictions).astype(jnp.float32) - actual) ** 2
    if train.iou_masks == "chosen":
        iou = error[best]
    else:
        iou = jnp.where(ambiguous, jnp.mean(error[1:]), error[0])
    total = train.focal_weight * focal + train.dice_weight * dice + train.iou_weight * iou
    return ObjectLoss(total, focal, dice, iou)


def _sum(values: Float[Array, "*L h w"], inside: Bool[Array, "h w"]) -> Float[Array, "*L"]:
    return jnp.sum(jnp.where(inside, values, 0.0), axis=(-2, -1))
