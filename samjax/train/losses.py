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
    edge: Float[Array, "*L"]
    outline: Float[Array, "*L"]
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
    logits: Float[Array, "*L h w"], target: Bool[Array, "*L h w"], inside: Bool[Array, "*#L h w"]
) -> Float[Array, "*L"]:
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), in [0, 1) (Milletari et al. 2016, in DETR's
    form, whose ones keep it defined for empty masks)."""
    probability = jax.nn.sigmoid(logits.astype(jnp.float32))
    truth = target.astype(jnp.float32)
    overlap = 2.0 * _sum(probability * truth, inside)
    return 1.0 - (overlap + 1.0) / (_sum(probability, inside) + _sum(truth, inside) + 1.0)


def edge_loss(
    logits: Float[Array, "*L h w"], target: Bool[Array, "*L h w"], inside: Bool[Array, "h w"]
) -> Float[Array, "*L"]:
    """F / (F + T), in [0, 1): T is the mask's outline, F the prediction's edges elsewhere.

    The length of edges is the difference |p - q| of two neighbouring pixels' probabilities, summed;
    F is 0 where the prediction changes nowhere but across the mask's outline, however far it is
    off. Neither focal nor dice loss knows of neighbours: holes, specks and steps cost them no more
    than the same area along an outline. Not in the paper; the total variation of Rudin et al. 1992,
    but for the places where it belongs. As a share of both it is gentle on a ground of which little
    is known yet: by F / T alone it would be best to leave that out.
    """
    probability = jax.nn.sigmoid(logits.astype(jnp.float32))
    false = true = jnp.zeros(())
    for axis in (-2, -1):
        within = _fewer(inside, axis, 1) & _fewer(inside, axis, -1)
        changes = _fewer(target, axis, 1) != _fewer(target, axis, -1)
        difference = jnp.abs(_fewer(probability, axis, 1) - _fewer(probability, axis, -1))
        false += _sum(jnp.where(changes, 0.0, difference), within)
        true += _sum(changes.astype(jnp.float32), within)
    return false / (false + jnp.maximum(true, 1.0))


def outline_loss(
    logits: Float[Array, "*L h w"],
    target: Bool[Array, "*L h w"],
    inside: Bool[Array, "h w"],
    *,
    distance: int = 4,
) -> Float[Array, "*L"]:
    """`dice_loss` of the pixels near the mask's outline, in [0, 1); 0 where there is none.

    Near is what has both the mask and something else of the picture within `distance` pixels along
    each axis. Where an outline runs is a small part of a large mask's area, so that focal and dice
    loss hardly mind it. Not in the paper; what counts is what Boundary IoU (Cheng et al. 2021)
    counts, on both sides.
    """

    def grown(mask):
        window = (1,) * (mask.ndim - 2) + (2 * distance + 1,) * 2
        return jax.lax.reduce_window(
            mask, False, jax.lax.bitwise_or, window, (1,) * mask.ndim, "SAME"
        )

    return dice_loss(logits, target, inside & grown(target & inside) & grown(~target & inside))


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
    edge = edge_loss(masks[best], target, inside) if train.edge_weight else jnp.zeros(())
    outline = outline_loss(masks[best], target, inside) if train.outline_weight else jnp.zeros(())

    actual = mask_iou(jax.lax.stop_gradient(masks) > mask_threshold, targets, inside)
    error = (jnp.asarray(iou_predictions).astype(jnp.float32) - actual) ** 2
    if train.iou_masks == "chosen":
        iou = error[best]
    else:
        iou = jnp.where(ambiguous, jnp.mean(error[1:]), error[0])
    of_mask = train.focal_weight * focal + train.dice_weight * dice
    of_edges = train.edge_weight * edge + train.outline_weight * outline
    return ObjectLoss(of_mask + of_edges + train.iou_weight * iou, focal, dice, edge, outline, iou)


def _fewer(values: Array, axis: int, start: int) -> Array:
    """Without the first of an axis (`start` 1), or without the last (-1)."""
    return jax.lax.slice_in_dim(
        values, max(start, 0), values.shape[axis] + min(start, 0), axis=values.ndim + axis
    )


def _sum(values: Float[Array, "*L h w"], inside: Bool[Array, "*#L h w"]) -> Float[Array, "*L"]:
    return jnp.sum(jnp.where(inside, values, 0.0), axis=(-2, -1))
