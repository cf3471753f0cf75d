"""IoU, the farthest point, the next click, and the shapes that need no model."""

import math

import numpy as np
import pytest

from samjax.datasets import decode_mask, open_coco
from samjax.evaluate import (
    boxes_of_masks,
    farthest_point,
    filled_box_iou,
    filled_ellipse_iou,
    mask_iou,
    next_click,
)


def rectangle(top, left, bottom, right, size=(20, 30)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_mask_iou():
    a, b, none = rectangle(0, 0, 10, 10), rectangle(0, 5, 10, 20), rectangle(0, 0, 0, 0)
    assert mask_iou(a, b) == 50 / 200
    assert mask_iou(a, a) == 1 and mask_iou(none, none) == 1
    assert mask_iou(a, none) == 0 == mask_iou(a, rectangle(10, 10, 20, 30))
    stacked = mask_iou(np.stack([a, b, none])[None], np.stack([a, b])[:, None])
    np.testing.assert_array_equal(stacked, [[1, 0.25, 0], [0.25, 1, 0]])


def brute_force(mask):
    """Distances of each pixel to the nearest one outside; a ring around the picture is outside."""
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded)
    distances = np.zeros(mask.shape)
    for y, x in np.argwhere(mask):
        distances[y, x] = np.sqrt(((outside - (y + 1, x + 1)) ** 2).sum(axis=1).min())
    return distances


@pytest.mark.parametrize("seed", range(20))
def test_farthest_point_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((17, 23)) < 0.97
    for _ in range(3):
        top, left = rng.integers(0, 10, 2)
        mask |= rectangle(top, left, top + rng.integers(5, 9), left + rng.integers(5, 13), (17, 23))
    distances = brute_force(mask)
    x, y, distance = farthest_point(mask)
    assert distance == pytest.approx(distances.max(), rel=1e-6)
    assert distances[y, x] == distances.max()


def test_farthest_point_of_simple_shapes():
    assert farthest_point(rectangle(4, 10, 9, 15)) == (12, 6, 3.0)
    assert farthest_point(rectangle(0, 0, 5, 5)) == (2, 2, 3.0), "the picture's edge is a boundary"
    assert farthest_point(np.ones((3, 3), bool)) == (1, 1, 2.0)
    assert farthest_point(rectangle(0, 0, 0, 0))[2] == 0


def test_first_click_is_the_object_center():
    assert next_click(rectangle(4, 10, 9, 15)) == (12, 6, 1)


def test_next_click_goes_to_the_larger_error():
    truth = rectangle(0, 0, 11, 11)
    assert next_click(truth, truth) is None
    missing = rectangle(0, 0, 11, 4)
    assert next_click(truth, missing) == (7, 3, 1)
    too_much = truth | rectangle(0, 12, 19, 29)
    assert next_click(truth, too_much) == (20, 8, 0)
    both = missing | rectangle(17, 25, 20, 28)
    assert next_click(truth, both) == (7, 3, 1), "7 wide is farther inside than 3"
    assert next_click(truth, rectangle(0, 0, 11, 9) | rectangle(12, 12, 17, 17)) == (14, 14, 0)


def test_errors_side_by_side_are_apart():
    """Together these would be 8 wide, with the point on the border between them."""
    truth = rectangle(5, 5, 15, 10)
    prediction = rectangle(5, 10, 15, 13)
    assert next_click(truth, prediction) == (7, 7, 1)


def test_equal_errors_are_clicked_positive():
    truth, prediction = rectangle(0, 0, 5, 5), rectangle(10, 10, 15, 15)
    assert next_click(truth, prediction) == (2, 2, 1)


def test_boxes_are_coco_boxes():
    masks = np.stack([rectangle(4, 10, 9, 15), rectangle(0, 0, 20, 30), rectangle(19, 29, 20, 30)])
    assert boxes_of_masks(masks).tolist() == [[10, 4, 15, 9], [0, 0, 30, 20], [29, 19, 30, 20]]
    with pytest.raises(ValueError, match="mask 0 has no pixel"):
        boxes_of_masks(np.zeros((1, 4, 4), bool))


def test_filled_shapes():
    assert filled_box_iou(rectangle(3, 4, 13, 20)) == 1
    triangle = np.tri(10, 10, dtype=bool)
    assert filled_box_iou(np.pad(triangle, 3)) == 55 / 100
    assert filled_ellipse_iou(np.ones((400, 600), bool)) == pytest.approx(math.pi / 4, abs=1e-3)
    y, x = np.mgrid[-50:50, -80:80] + 0.5
    disc = (y / 50) ** 2 + (x / 80) ** 2 <= 1
    assert filled_ellipse_iou(np.pad(disc, ((2, 3), (4, 1)))) == 1


def test_filled_shapes_on_coco(shared_dir, measured):
    """As measured for the prototype's 327 things, 0.562 and 0.594, on others of the same kind."""
    folder = shared_dir / "data" / "coco-train"
    source = open_coco(folder / "instances.json", folder / "images")
    records = [source.read(i) for i in range(len(source))]
    masks = [decode_mask(record, i) for record in records for i in range(len(record.masks))]
    masks = [mask for mask in masks if mask.sum() >= 100]
    box = np.mean([filled_box_iou(mask) for mask in masks])
    ellipse = np.mean([filled_ellipse_iou(mask) for mask in masks])
    measured(f"{len(masks)} COCO things: filled box {box:.3f}, filled ellipse {ellipse:.3f}")
    assert len(masks) == 668
    assert box == pytest.approx(0.5506, abs=1e-4) and box == pytest.approx(0.562, abs=0.02)
    assert ellipse == pytest.approx(0.5839, abs=1e-4) and ellipse == pytest.approx(0.594, abs=0.02)
