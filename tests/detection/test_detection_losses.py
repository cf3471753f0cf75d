"""The loss of boxes and classes, beside torchvision and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.ops import complete_box_iou_loss

from quick import jit
from samjax.detection import losses
from samjax.detection.losses import Truth, complete_iou, detection_loss
from samjax.models.yolo import YoloOutputs, anchor_points

SIDE, STEPS = 64, 16


def random_boxes(rng, *shape):
    low = rng.uniform(0, 40, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(4, 24, (*shape, 2))], axis=-1).astype(np.float32)


def test_complete_iou_is_torchvisions():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 200), random_boxes(rng, 200)
    expected = complete_box_iou_loss(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(1 - np.asarray(complete_iou(a, b)), expected, atol=2e-5)
    np.testing.assert_allclose(complete_iou(a, a), 1, atol=1e-5)


def outputs_of(boxes, scores):
    """What the head would say so that places have these boxes (A, 4) and scores (A, C)."""
    points, strides = anchor_points(SIDE, SIDE)
    sides = np.concatenate([points - boxes[:, :2], boxes[:, 2:] - points], axis=-1)
    sides = np.clip(sides / strides[:, None], 0, STEPS - 1.01)
    before = np.floor(sides).astype(int)
    logits = np.full((len(boxes), 4, STEPS), -1e4, np.float32)
    share = np.clip(sides - before, 1e-12, 1 - 1e-7)
    np.put_along_axis(logits, before[..., None], np.log(1 - share)[..., None], axis=-1)
    np.put_along_axis(logits, before[..., None] + 1, np.log(share)[..., None], axis=-1)
    classes = np.log(scores / (1 - scores)).astype(np.float32)
    return YoloOutputs(logits.reshape(1, len(boxes), -1), classes[None])


@pytest.fixture
def perfect():
    """Two things of two classes; every place inside one has its box and is sure of its class."""
    points, _ = anchor_points(SIDE, SIDE)
    true = np.array([[2, 2, 40, 30], [34, 34, 60, 62]], np.float32)
    boxes = np.concatenate([points - 4, points + 4], axis=-1)
    scores = np.full((len(points), 2), 1e-6)
    for number, box in enumerate(true):
        inside = ((points > box[:2]) & (points < box[2:])).all(axis=1)
        boxes[inside] = box
        scores[inside, number] = 1 - 1e-4
    truth = Truth(true[None], np.array([[0, 1]], np.int32), np.ones((1, 2), bool))
    return outputs_of(boxes, scores), truth, inside


def test_nothing_to_learn_where_all_is_right(perfect):
    outputs, truth, _ = perfect
    loss = detection_loss(outputs, truth, SIDE, SIDE)
    assert 0 <= loss.boxes < 1e-3
    assert loss.distances < 0.7  # the entropy of distances between two whole ones
    wrong = truth._replace(classes=truth.classes[:, ::-1])
    assert detection_loss(outputs, wrong, SIDE, SIDE).classes > 4 * loss.classes
    moved = truth._replace(boxes=truth.boxes + np.float32([3, 0, 3, 0]))
    assert detection_loss(outputs, moved, SIDE, SIDE).boxes > loss.boxes + 0.02


def test_places_learn_of_things_around_them():
    rng = np.random.default_rng(1)
    points, _ = anchor_points(SIDE, SIDE)
    boxes, true = random_boxes(rng, len(points)), random_boxes(rng, 5)
    scores = rng.uniform(size=(len(points), 3)).astype(np.float32)
    classes, valid = np.array([0, 1, 2, 0, 1]), np.array([True, True, True, True, False])
    arrays = map(jnp.asarray, (boxes, scores, true, classes, valid))
    thing, weights = losses._assign(*arrays, points)
    learning = np.flatnonzero(np.asarray(weights) > 1e-12)
    assert len(learning) > 8
    for place in learning:
        box = true[thing[place]]
        assert valid[thing[place]]
        assert (points[place] > box[:2]).all() and (points[place] < box[2:]).all()
    assert np.bincount(np.asarray(thing)[learning]).max() <= losses.PLACES
    assert np.asarray(weights).max() <= 1


def test_padding_counts_for_nothing(perfect):
    outputs, truth, _ = perfect
    more = Truth(
        np.concatenate([truth.boxes, np.float32([[[0, 0, 64, 64]]])], axis=1),
        np.array([[0, 1, 1]], np.int32),
        np.array([[True, True, False]]),
    )
    expected, found = (detection_loss(outputs, t, SIDE, SIDE) for t in (truth, more))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    none = truth._replace(valid=np.zeros((1, 2), bool))
    alone = detection_loss(outputs, none, SIDE, SIDE)
    assert alone.boxes == alone.distances == 0 and np.isfinite(alone.total)


def test_distributions_are_cross_entropies():
    rng = np.random.default_rng(2)
    points, strides = anchor_points(SIDE, SIDE)
    logits = rng.normal(size=(1, len(points), 4 * STEPS)).astype(np.float32)
    true = np.concatenate([points - strides[:, None] * 2.25, points + strides[:, None] * 3.5], -1)
    found = losses._distribution(
        YoloOutputs(jnp.asarray(logits), jnp.zeros((1, len(points), 1))), jnp.asarray(true[None]),
        points, strides,
    )  # fmt: skip
    rows = torch.from_numpy(logits.reshape(-1, 4, STEPS))
    expected = 0
    for side, (low, share) in enumerate([(2, 0.25), (2, 0.25), (3, 0.5), (3, 0.5)]):
        for target, weight in ((low, 1 - share), (low + 1, share)):
            targets = torch.full((len(points),), target)
            each = torch.nn.functional.cross_entropy(rows[:, side], targets, reduction="none")
            expected = expected + weight * each / 4
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-5)


def test_gradients_go_downhill(perfect):
    outputs, truth, _ = perfect
    rng = np.random.default_rng(3)
    start = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), outputs
    )  # fmt: skip

    @jit
    def down(outputs):
        value, gradient = jax.value_and_grad(
            lambda outputs: detection_loss(outputs, truth, SIDE, SIDE).total
        )(outputs)
        return value, jax.tree.map(lambda x, g: x - 0.2 * g, outputs, gradient)

    values = []
    for _ in range(60):
        value, start = down(start)
        values.append(float(value))
    assert np.isfinite(values).all() and values[-1] < 0.5 * values[0]
