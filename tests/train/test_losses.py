"""Losses against torch, written out anew, and what padding must not do to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samjax.train.config import TrainConfig
from samjax.train.losses import (
    dice_loss,
    edge_loss,
    focal_loss,
    mask_iou,
    object_loss,
    outline_loss,
)
from samjax.types import Predictions

EVERYWHERE = jnp.ones((16, 16), bool)


@pytest.fixture
def some():
    """Logits (4, 16, 16) of ordinary and of extreme size, IoUs (4,), and a target."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 16, 16)).astype(np.float32) * 4
    logits[0, 0, :4] = [200, -200, 60, -60]
    target = rng.random((16, 16)) < 0.3
    return jnp.asarray(logits), jnp.asarray(rng.random(4), jnp.float32), jnp.asarray(target)


def torch_focal(logits, target, gamma=2.0, alpha=0.25):
    truth = target.to(logits.dtype).expand_as(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    p_t = torch.exp(-cross_entropy)
    alpha_t = alpha * truth + (1 - alpha) * (1 - truth)
    return (alpha_t * (1 - p_t) ** gamma * cross_entropy).flatten(-2).mean(-1)


def torch_dice(logits, target):
    p, truth = logits.sigmoid().flatten(-2), target.to(logits.dtype).flatten(-2)
    return 1 - (2 * (p * truth).sum(-1) + 1) / (p.sum(-1) + truth.sum(-1) + 1)


@pytest.mark.parametrize("ours, theirs", [(focal_loss, torch_focal), (dice_loss, torch_dice)])
def test_loss_and_gradient_agree_with_torch(some, ours, theirs):
    logits, _, target = some
    wide = torch.tensor(np.asarray(logits, np.float64), requires_grad=True)
    expected = theirs(wide, torch.tensor(np.asarray(target)))
    expected.sum().backward()
    targets = jnp.broadcast_to(target, logits.shape)
    np.testing.assert_allclose(ours(logits, targets, EVERYWHERE), expected.detach(), rtol=2e-6)
    gradient = jax.grad(lambda x: ours(x, targets, EVERYWHERE).sum())(logits)
    largest = wide.grad.abs().max().item()
    np.testing.assert_allclose(gradient, wide.grad, rtol=0, atol=2e-6 * largest)


@pytest.mark.parametrize("gamma, alpha", [(0.0, 0.5), (1.5, 0.25), (3.0, 0.9)])
def test_focal_loss_with_other_constants(some, gamma, alpha):
    logits, _, target = some
    logits = jnp.clip(logits, -20, 20)
    wide = torch.tensor(np.asarray(logits, np.float64))
    expected = torch_focal(wide, torch.tensor(np.asarray(target)), gamma, alpha)
    targets = jnp.broadcast_to(target, logits.shape)
    got = focal_loss(logits, targets, EVERYWHERE, gamma=gamma, alpha=alpha)
    np.testing.assert_allclose(got, expected, rtol=5e-6)


def test_losses_are_float32_from_half_precision(some):
    logits, _, target = some
    half = logits.astype(jnp.bfloat16)
    targets = jnp.broadcast_to(target, half.shape)
    for loss in (focal_loss, dice_loss, edge_loss, outline_loss):
        got = loss(half, targets, EVERYWHERE)
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, loss(half.astype(jnp.float32), targets, EVERYWHERE))


def test_iou():
    a, b = np.zeros((2, 2, 16, 16), bool)
    a[0, 2:6, 2:6] = True
    b[0, 4:8, 2:6] = True
    a, b = jnp.asarray(a), jnp.asarray(b)
    np.testing.assert_allclose(mask_iou(a, b, EVERYWHERE), [8 / 24, 0], rtol=1e-6)
    np.testing.assert_allclose(mask_iou(a, a, EVERYWHERE), [1, 0], rtol=1e-6)


def test_edge_loss(some):
    """By its words: pair by pair of neighbours, in a loop."""
    logits, _, target = some
    p, t = torch.sigmoid(torch.tensor(np.asarray(logits))).numpy(), np.asarray(target)
    pairs = [((y, x), (y, x + 1)) for y in range(16) for x in range(15)]
    pairs += [((y, x), (y + 1, x)) for y in range(15) for x in range(16)]
    own = sum(t[a] != t[b] for a, b in pairs)
    false = [sum(abs(q[a] - q[b]) for a, b in pairs if t[a] == t[b]) for q in p]
    expected = [f / (f + own) for f in false]
    targets = jnp.broadcast_to(target, logits.shape)
    np.testing.assert_allclose(edge_loss(logits, targets, EVERYWHERE), expected, rtol=1e-5)


def test_edge_loss_knows_holes_and_steps_but_no_outline():
    """A hole costs its circumference; what changes across the outline alone costs nothing."""
    target = jnp.zeros((16, 16), bool).at[2:12, 2:12].set(True)
    sharp, faint = jnp.where(target, 50.0, -50.0), jnp.where(target, 0.1, -0.1)
    hole = sharp.at[5:7, 5:7].set(-50.0)
    for logits, expected in ((sharp, 0.0), (faint, 0.0), (hole, 8 / 48)):
        np.testing.assert_allclose(edge_loss(logits, target, EVERYWHERE), expected, atol=1e-6)
    whole = jnp.ones((16, 16), bool)
    np.testing.assert_allclose(edge_loss(hole, whole, EVERYWHERE), 48 / 49, rtol=1e-6)


@pytest.mark.parametrize("distance", [1, 3])
def test_outline_loss(some, distance):
    """By its words: which pixels are near in a loop over each one's surroundings, then dice."""
    logits, _, _ = some
    target = np.zeros((16, 16), bool)
    target[4:12, 3:] = True  # its right edge is the picture's, and no outline
    near = np.zeros((16, 16), bool)
    for y in range(16):
        for x in range(16):
            around = target[max(0, y - distance) : y + distance + 1,
                            max(0, x - distance) : x + distance + 1]  # fmt: skip
            near[y, x] = around.any() and not around.all()
    assert near.any() and not near.all() and not near[8, 15]
    expected = torch_dice(torch.tensor(np.asarray(logits)[:, near]).unsqueeze(1),
                          torch.tensor(target[near]).unsqueeze(0))  # fmt: skip
    targets = jnp.broadcast_to(target, logits.shape)
    got = outline_loss(logits, targets, EVERYWHERE, distance=distance)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_outline_loss_minds_the_outline_alone():
    """What is wrong far from it costs nothing, and neither does a mask without an outline."""
    target = jnp.zeros((32, 32), bool).at[8:24, 8:].set(True)
    sharp = jnp.where(target, 50.0, -50.0)
    hole, wider = sharp.at[15:17, 20:].set(-50.0), sharp.at[7, 8:].set(50.0)
    for logits, cost in ((sharp, False), (hole, False), (wider, True)):
        assert (outline_loss(logits, target, jnp.ones((32, 32), bool)) > 1e-6) == cost
    whole = jnp.ones((16, 16), bool)
    assert outline_loss(jnp.where(whole, -1.0, 1.0), whole, EVERYWHERE) == 0


@pytest.mark.parametrize("part, loss", [("edge", edge_loss), ("outline", outline_loss)])
def test_weights_add_further_losses_of_the_chosen_mask(some, part, loss):
    logits, ious, target = some

    def of(weight):
        train = TrainConfig(**{f"{part}_weight": weight})
        return object_loss(Predictions(logits, ious), target, jnp.array(False), EVERYWHERE,
                           train=train, mask_threshold=0.0)  # fmt: skip

    without, with_it = of(0.0), of(0.5)
    cost = loss(logits[0], target, EVERYWHERE)
    assert cost > 0
    expected = without._replace(**{part: cost}, total=without.total + cost / 2)
    np.testing.assert_allclose(with_it, expected, rtol=1e-6)


@pytest.mark.parametrize("ambiguous", [True, False])
def test_padded_pixels_count_nowhere(some, ambiguous):
    """A padded picture has the loss of the picture alone, and no gradient where it was padded."""
    logits, ious, target = some
    inside = jnp.broadcast_to(jnp.arange(16) < 10, (16, 16))
    kw = dict(train=TrainConfig(edge_weight=0.5, outline_weight=0.5), mask_threshold=0.0)
    flag = jnp.array(ambiguous)

    def loss(masks, target, inside):
        return object_loss(Predictions(masks, ious), target, flag, inside, **kw)

    padded = loss(logits, target, inside)
    cropped = loss(logits[:, :, :10], target[:, :10], jnp.ones((16, 10), bool))
    np.testing.assert_allclose(padded, cropped, rtol=1e-6)
    gradient = jax.grad(lambda x: loss(x, target, inside).total)(logits)
    assert not gradient[:, ~inside].any()
    assert gradient[:, inside].any()


def expected_object_loss(logits, ious, target, ambiguous, iou_masks):
    """By the paper's words, mask by mask, in torch and with a loop."""
    parts, target = [], np.asarray(target)
    for mask, iou in zip(
        torch.tensor(np.asarray(logits, np.float64)), np.asarray(ious), strict=True
    ):
        binary = mask.numpy() > 0
        actual = (binary & target).sum() / (binary | target).sum()
        truth = torch.tensor(target)
        parts.append((torch_focal(mask, truth).item(), torch_dice(mask, truth).item(),
                      (iou - actual) ** 2))  # fmt: skip
    counted = parts[1:] if ambiguous else parts[:1]
    focal, dice, iou = min(counted, key=lambda x: 20 * x[0] + x[1])
    if iou_masks == "all":
        iou = np.mean([x[2] for x in counted])
    return 20 * focal + dice + iou, focal, dice, 0.0, 0.0, iou


@pytest.mark.parametrize("iou_masks", ["all", "chosen"])
@pytest.mark.parametrize("ambiguous", [True, False])
@pytest.mark.parametrize("best", [1, 2, 3])
def test_object_loss_takes_the_best_mask(some, ambiguous, iou_masks, best):
    logits, ious, target = some
    logits = logits.at[best].set(jnp.where(target, 1.0, -1.0) + 0.5 * logits[best])
    got = object_loss(
        Predictions(logits, ious), target,
        jnp.array(ambiguous), EVERYWHERE, train=TrainConfig(iou_masks=iou_masks),
        mask_threshold=0.0,
    )  # fmt: skip
    expected = expected_object_loss(logits, ious, target, ambiguous, iou_masks)
    np.testing.assert_allclose(got, expected, rtol=5e-6)


@pytest.mark.parametrize("iou_masks, learning", [("all", [1, 2, 3]), ("chosen", [2])])
def test_gradient_reaches_the_best_mask_alone(some, iou_masks, learning):
    logits, ious, target = some
    logits = logits.at[2].set(jnp.where(target, 2.0, -2.0))
    train = TrainConfig(iou_masks=iou_masks)

    def loss(masks, ious):
        return object_loss(
            Predictions(masks, ious), target, jnp.array(True), EVERYWHERE,
            train=train, mask_threshold=0.0,
        ).total  # fmt: skip

    of_masks, of_ious = jax.grad(loss, argnums=(0, 1))(logits, ious)
    assert np.flatnonzero(np.abs(of_masks).max(axis=(1, 2))).tolist() == [2]
    assert np.flatnonzero(of_ious).tolist() == learning
