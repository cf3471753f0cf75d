import time

import numpy as np
import pytest
import torch
import torchvision
from segment_anything.utils import amg

from samjax.postprocess import boxes as ours


def random_boxes(count: int, *, side: int, largest: int, seed: int = 0) -> np.ndarray:
    """Integer boxes, some of them without width or height, many alike when `side` is small."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, side, (count, 2))
    return np.concatenate([corner, corner + rng.integers(0, largest, (count, 2))], axis=1)


def their_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    return torchvision.ops.nms(
        torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), threshold
    ).numpy()


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.5, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("side, largest", [(6, 5), (40, 30), (1000, 300)])
@pytest.mark.parametrize("levels", [1, 4, 100000])
def test_nms_equals_torchvision(threshold, side, largest, levels):
    for seed in range(4):
        boxes = random_boxes(250, side=side, largest=largest, seed=seed)
        scores = np.random.default_rng(seed).integers(0, levels, 250).astype(np.float32) / levels
        kept = ours.nms(boxes, scores, threshold)
        assert kept.dtype == np.int64
        np.testing.assert_array_equal(kept, their_nms(boxes, scores, threshold))


@pytest.mark.parametrize(
    "width, threshold, kept",
    [
        pytest.param(5, 0.5, [0, 1], id="an IoU equal to the threshold keeps the box"),
        pytest.param(3, 0.3, [0], id="float32(3 / 10) lies above 0.3"),
        pytest.param(7, 0.7, [0, 1], id="float32(7 / 10) lies below 0.7"),
    ],
)
def test_the_iou_is_float32_and_the_threshold_is_not(width, threshold, kept):
    boxes = np.array([[0, 0, 10, 1], [0, 0, width, 1]], np.float32)
    scores = np.array([2, 1], np.float32)
    np.testing.assert_array_equal(ours.nms(boxes, scores, threshold), kept)
    np.testing.assert_array_equal(their_nms(boxes, scores, threshold), kept)


def test_boxes_without_area_keep_each_other():
    boxes = np.array([[5, 5, 5, 5]] * 3 + [[0, 0, 9, 9]] * 2, np.float32)
    scores = np.array([0.1, 0.9, 0.9, 0.5, 0.5], np.float32)
    np.testing.assert_array_equal(ours.nms(boxes, scores, 0.5), [1, 2, 3, 0])
    np.testing.assert_array_equal(their_nms(boxes, scores, 0.5), [1, 2, 3, 0])


def test_infinite_and_nan_scores_rank_as_in_torchvision():
    boxes = random_boxes(60, side=50, largest=30)
    scores = np.random.default_rng(0).random(60).astype(np.float32)
    scores[[3, 17]] = np.nan
    scores[[5, 40]] = np.inf
    scores[[8, 50]] = -np.inf
    np.testing.assert_array_equal(ours.nms(boxes, scores, 0.4), their_nms(boxes, scores, 0.4))


def test_nms_of_no_boxes():
    kept = ours.nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.7)
    assert kept.shape == (0,) and kept.dtype == np.int64


@pytest.mark.parametrize("threshold", [0.1, 0.7])
def test_nms_of_ten_thousand_boxes_with_ties_is_quick(threshold):
    """Meta calls `batched_nms`, which above a thousand boxes sorts ties in no stated order."""
    boxes = random_boxes(10_000, side=2000, largest=200)
    scores = np.random.default_rng(0).integers(0, 500, 10_000).astype(np.float32)
    theirs = torchvision.ops.batched_nms(
        torch.from_numpy(boxes).float(), torch.from_numpy(scores), torch.zeros(10_000), threshold
    )
    start = time.perf_counter()
    kept = ours.nms(boxes, scores, threshold)
    assert time.perf_counter() - start < 10
    np.testing.assert_array_equal(kept, their_nms(boxes, scores, threshold))
    np.testing.assert_array_equal(np.sort(kept), np.sort(theirs.numpy()))
    np.testing.assert_array_equal(scores[kept], scores[theirs.numpy()])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64])
def test_area_and_conversion_equal_the_reference(dtype):
    boxes = random_boxes(20, side=1000, largest=300).astype(dtype)
    areas, xywh = ours.box_area(boxes), ours.box_xyxy_to_xywh(boxes)
    assert areas.dtype == xywh.dtype == dtype
    np.testing.assert_array_equal(areas, torchvision.ops.box_area(torch.from_numpy(boxes)).numpy())
    for box, expected in zip(boxes, xywh, strict=True):
        np.testing.assert_array_equal(amg.box_xyxy_to_xywh(box), expected)
        np.testing.assert_array_equal(ours.box_xyxy_to_xywh(box), expected)


@pytest.mark.parametrize("shape", [(7,), (3, 2)])
@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_uncropping_equals_the_reference(shape, dtype):
    crop = [13, 29, 200, 180]
    boxes = np.random.default_rng(0).integers(0, 99, (*shape, 4)).astype(dtype)
    points = boxes[..., :2] / dtype(2) if dtype != np.int32 else boxes[..., :2]
    for mine, theirs, values in [
        (ours.uncrop_boxes_xyxy, amg.uncrop_boxes_xyxy, boxes),
        (ours.uncrop_points, amg.uncrop_points, points),
    ]:
        moved = mine(values, crop)
        assert moved.dtype == dtype
        np.testing.assert_array_equal(moved, theirs(torch.from_numpy(values), crop).numpy())


@pytest.mark.parametrize("atol", [20.0, 0.0, 5.5])
@pytest.mark.parametrize("crop", [[0, 0, 300, 200], [0, 0, 150, 120], [140, 90, 300, 200],
                                  [100, 0, 220, 120]])  # fmt: skip
def test_crop_edges_equal_the_reference(crop, atol):
    whole = [0, 0, 300, 200]
    rng = np.random.default_rng(0)
    limits = np.array([crop[2] - crop[0], crop[3] - crop[1]] * 2)
    boxes = np.minimum(rng.integers(0, 300, (400, 4)), limits - 1).astype(np.int32)
    theirs = amg.is_box_near_crop_edge(torch.from_numpy(boxes), crop, whole, atol).numpy()
    near = ours.is_box_near_crop_edge(boxes, crop, whole, atol)
    np.testing.assert_array_equal(near, theirs)
    assert near.any() == (crop != whole and theirs.any())


def test_a_box_twenty_pixels_from_the_crop_edge_is_near_and_at_the_picture_edge_is_not():
    crop, whole = (100, 100, 200, 200), (0, 0, 200, 400)
    boxes = np.array([[20, 40, 50, 60], [21, 40, 50, 60], [40, 40, 99, 60], [40, 40, 60, 99]])
    near = ours.is_box_near_crop_edge(boxes.astype(np.int32), crop, whole)
    np.testing.assert_array_equal(near, [True, False, False, True])
