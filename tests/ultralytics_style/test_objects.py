"""The documented shapes of prompts, and shapes that are wrong."""

import numpy as np
import pytest
import torch

from samjax.ultralytics_style.objects import read_objects

SIDE = 16


def read(bboxes=None, points=None, labels=None, masks=None):
    return read_objects(bboxes, points, labels, masks, side=SIDE)


def same(rows, expected):
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row, other)


def test_no_prompt_and_prompts_for_nothing_differ():
    assert read() is None
    for nothing in ([], np.zeros((0, 4)), torch.zeros((0, 4))):
        assert read(bboxes=nothing).number == 0
    assert read(points=[], labels=[]).number == 0
    assert read(points=np.zeros((0, 2))).number == 0


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_boxes(kind):
    assert read(bboxes=kind([1, 2, 3, 4])).number == 1
    two = read(bboxes=kind([[1, 2, 3, 4], [5, 6, 7, 8]]))
    same(two.boxes, [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert two.points is two.labels is two.masks is None


@pytest.mark.parametrize(
    "points, labels, expected_points, expected_labels",
    [
        ([9, 3], [1], [[[9, 3]]], [[1]]),
        ([9, 3], 0, [[[9, 3]]], [[0]]),
        ([9, 3], None, [[[9, 3]]], [[1]]),
        ([[4, 3], [9, 3]], [1, 0], [[[4, 3]], [[9, 3]]], [[1], [0]]),
        ([[4, 3], [9, 3]], [[1], [0]], [[[4, 3]], [[9, 3]]], [[1], [0]]),
        ([[4, 3], [9, 3]], None, [[[4, 3]], [[9, 3]]], [[1], [1]]),
        ([[[4, 3], [9, 3]]], [[1, 0]], [[[4, 3], [9, 3]]], [[1, 0]]),
        ([[[4, 3], [9, 3]], [[5, 5]]], [[1, 0], [1]], [[[4, 3], [9, 3]], [[5, 5]]], [[1, 0], [1]]),
        ([[[4, 3], [9, 3]], [[5, 5]]], None, [[[4, 3], [9, 3]], [[5, 5]]], [[1, 1], [1]]),
    ],
)
def test_points(points, labels, expected_points, expected_labels):
    found = read(points=points, labels=labels)
    assert found.number == len(expected_points)
    same(found.points, expected_points)
    same(found.labels, expected_labels)


def test_masks_and_parts():
    logits = np.zeros((3, SIDE, SIDE))
    assert read(masks=logits[0]).number == 1
    found = read(masks=logits, bboxes=np.arange(12).reshape(3, 4))
    assert found.number == 3 and found.masks[0].dtype == np.float32
    part = found.part(2, 4)
    assert part.number == len(part.masks) == len(part.boxes) == 1
    np.testing.assert_array_equal(part.boxes[0], [8, 9, 10, 11])


@pytest.mark.parametrize(
    "prompts, message",
    [
        (dict(bboxes=[1, 2, 3]), r"bboxes have shape \(3,\); expected \(4,\) or \(N, 4\)"),
        (dict(bboxes=[[1, 2, 3, 4, 5]]), r"bboxes have shape \(1, 5\)"),
        (dict(bboxes=[[[1, 2, 3, 4]]]), r"bboxes have shape \(1, 1, 4\)"),
        (dict(bboxes=[1, 2, 3, float("nan")]), "bboxes hold NaN"),
        (dict(bboxes="1 2 3 4"), "bboxes hold <U7 values, not numbers"),
        (dict(bboxes=[[1, 2, 3, 4], [1, 2]]), "bboxes cannot be read"),
        (dict(points=[1, 2, 3]), r"points have shape \(3,\); expected \(2,\)"),
        (dict(points=5), r"points have shape \(\)"),
        (dict(points=np.zeros((1, 1, 1, 2))), r"points have shape \(1, 1, 1, 2\)"),
        (dict(points=np.zeros((2, 0, 2))), "objects without points"),
        (dict(points=[[[1, 2]], [[3, 4], [5, 6, 7]]]), "points cannot be read"),
        (dict(points=[[[1, 2, 3]], [[3, 4], [5, 6]]]), r"points of one object have shape \(1, 3\)"),
        (dict(points=[[1, 2], [3, 4]], labels=[[1, 1]]), r"labels have shape \(1, 2\).*\[\[\[x, y"),
        (dict(points=[[1, 2], [3, 4]], labels=[1]), r"need labels of shape \(2,\)"),
        (dict(points=[[[1, 2], [3, 4]]], labels=[1, 1]), r"need labels of shape \(1, 2\)"),
        (dict(points=[[[1, 2]], [[1, 2], [3, 4]]], labels=[1, 1]), "labels have shapes"),
        (dict(points=[[[1, 2]], [[1, 2], [3, 4]]], labels=[[1]]), "one list for each object"),
        (dict(labels=[1]), "labels are given without points"),
        (dict(points=[[1, 2], [3, 4]], bboxes=[0, 0, 9, 9]), r"different numbers.*\[\[\[x, y"),
        (dict(masks=np.zeros((9, 9))), r"masks have shape \(9, 9\); expected \(16, 16\)"),
        (dict(masks=np.zeros((SIDE, SIDE), bool)), "masks are bool, not logits"),
    ],
)
def test_wrong_shapes(prompts, message):
    with pytest.raises(ValueError, match=message):
        read(**prompts)
