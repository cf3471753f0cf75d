"""Oriented boxes: their overlap, suppression, and a picture's."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import yolo_reference

from samjax.convert.yolo import from_yolo_arrays
from samjax.detection import YoloDetector
from samjax.detection.detector import around
from samjax.detection.letterbox import fit
from samjax.detection.suppression import prob_iou, suppress
from samjax.models.yolo import YoloConfig


def some_boxes(number: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres, sides = rng.uniform(0, 60, (number, 2)), rng.uniform(2, 40, (number, 2))
    turns = rng.uniform(-math.pi / 4, 3 * math.pi / 4, (number, 1))
    return np.concatenate([centres, sides, turns], axis=1).astype(np.float32)


def by_matrices(a: np.ndarray, b: np.ndarray) -> float:
    """One less the Hellinger distance of two Gaussians, in double precision."""

    def gaussian(box):
        x, y, width, height, turn = box.astype(np.float64)
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        return np.array([x, y]), turned @ np.diag([width**2, height**2]) @ turned.T / 12

    (at, spread), (other, others) = gaussian(a), gaussian(b)
    mean, apart = (spread + others) / 2, at - other
    ratio = np.linalg.det(mean) / np.sqrt(np.linalg.det(spread) * np.linalg.det(others))
    distance = apart @ np.linalg.solve(mean, apart) / 8 + np.log(ratio) / 2
    return 1 - np.sqrt(max(0.0, 1 - np.exp(-distance)))


def test_overlaps_are_those_of_gaussians():
    boxes = some_boxes(60)
    for box in boxes[:10]:
        expected = [by_matrices(each, box) for each in boxes]
        different = np.abs(boxes - box).max(axis=1) > 0
        found = np.asarray(prob_iou(jnp.asarray(boxes), jnp.asarray(box)))
        np.testing.assert_allclose(found[different], np.array(expected)[different], atol=1e-5)
        # The distance is a root of what is left of single precision.
        assert found[~different].item() > 0.999


@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_overlap_of_what_is_equal_apart_and_without_area(turn):
    square, far = [30, 30, 10, 10, turn], [3e4, 30, 10, 10, turn]
    quarter, flat = [30, 30, 10, 10, turn + math.pi / 2], [30, 30, 10, 0, turn]
    found = np.asarray(prob_iou(jnp.array([square, far, quarter, flat]), jnp.array(square)))
    assert found[0] > 0.999 and found[1] == 0 and found[2] > 0.999 and 0 <= found[3] < 0.1


def picked(boxes, scores, classes, least, most) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        mine = [k for k in kept if classes[k] == classes[i]]
        if scores[i] > least and all(by_matrices(boxes[i], boxes[k]) <= most for k in mine):
            kept.append(int(i))
    return kept


def test_suppression_is_greedy_by_that_overlap():
    boxes, rng = some_boxes(300), np.random.default_rng(1)
    scores, classes = rng.uniform(size=300).astype(np.float32), rng.integers(0, 3, 300, np.int32)
    picks, count = suppress(boxes, scores, classes, 0.2, 0.3, max_det=300)
    expected = picked(boxes, scores, classes, 0.2, 0.3)
    assert 30 < len(expected) < 200
    assert np.asarray(picks)[: int(count)].tolist() == expected


def test_a_turned_box_lies_in_an_upright_one():
    boxes = some_boxes(20)
    corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) / 2
    for box, (x0, y0, x1, y1) in zip(boxes, around(boxes), strict=True):
        cos, sin = np.cos(box[4]), np.sin(box[4])
        turned = (corners * box[2:4]) @ np.array([[cos, sin], [-sin, cos]]) + box[:2]
        np.testing.assert_allclose([*turned.min(axis=0), *turned.max(axis=0)], [x0, y0, x1, y1],
                                   atol=1e-4)  # fmt: skip


def test_a_pictures_oriented_boxes():
    config = YoloConfig(task="obb", num_classes=3, widths=(8, 8, 8, 16, 16), depths=(1, 1, 1, 1))
    reference = yolo_reference.build(config, seed=3)
    for branch in reference.model[22].cv3:
        branch[2].weight.data *= 8
    model = from_yolo_arrays({n: x.numpy() for n, x in reference.state_dict().items()})
    image = np.random.default_rng(2).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    letterbox = fit(90, 130, 96)
    found = YoloDetector(model, conf=0.5, iou=0.6, imgsz=96)(image)
    inputs = letterbox.apply(image)[None].astype(np.float32) / 255
    boxes, scores = (np.asarray(x[0]) for x in model.boxes_and_scores(inputs))
    expected = picked(boxes, scores.max(axis=1), scores.argmax(axis=1), 0.5, 0.6)
    assert 5 < len(expected) < (scores.max(axis=1) > 0.5).sum()
    np.testing.assert_allclose(found.scores, scores[expected].max(axis=1), atol=1e-6)
    scale = np.array([letterbox.scale] * 4 + [1])
    margin = np.array([letterbox.left, letterbox.top, 0, 0, 0])
    np.testing.assert_allclose(found.oriented * scale + margin, boxes[expected], atol=1e-4)
    assert found.masks is None
    assert (found.boxes >= 0).all() and (found.boxes <= [130, 90, 130, 90]).all()
    inside = np.clip(around(found.oriented), 0, [130, 90, 130, 90])
    np.testing.assert_allclose(found.boxes, inside, atol=1e-3)
