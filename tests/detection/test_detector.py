"""From a picture to boxes and masks, beside torch and torchvision."""

import numpy as np
import pytest
import torch
import yolo_reference
from torchvision.ops import batched_nms

from samjax.convert.yolo import from_yolo_arrays
from samjax.detection import YoloDetector
from samjax.detection.letterbox import fit
from samjax.detection.masks import mask_in_picture, mask_logits
from samjax.detection.suppression import suppress
from samjax.models.yolo import YoloConfig, anchor_points
from samjax.postprocess import rle_to_mask

CONFIG = YoloConfig(
    task="segment", num_classes=3, widths=(8, 8, 8, 16, 16), depths=(1, 1, 1, 1), prototype_width=8
)


@pytest.fixture(scope="module")
def reference():
    model = yolo_reference.build(CONFIG, seed=3)
    for branch in model.model[22].cv3:
        branch[2].weight.data *= 8
    for branch in model.model[22].cv4:
        branch[2].weight.data *= 8
    return model


@pytest.fixture(scope="module")
def model(reference):
    return from_yolo_arrays({n: x.numpy() for n, x in reference.state_dict().items()})


@pytest.mark.parametrize("agnostic", [False, True])
def test_suppression_is_torchvisions(agnostic):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (400, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 40, (400, 2))], axis=1).astype(np.float32)
    scores = rng.uniform(size=400).astype(np.float32)
    scores[1::2] = scores[::2]
    classes = rng.integers(0, 4, 400).astype(np.int32)
    kept = np.flatnonzero(scores > 0.3)
    groups = np.zeros_like(classes) if agnostic else classes
    theirs = kept[
        batched_nms(*map(torch.from_numpy, (boxes[kept], scores[kept], groups[kept])), 0.4).numpy()
    ]
    picks, count = suppress(boxes, scores, classes, 0.3, 0.4, max_det=300, agnostic=agnostic)
    assert 20 < int(count) < 300
    assert sorted(np.asarray(picks)[: int(count)]) == sorted(theirs)
    np.testing.assert_array_equal(scores[np.asarray(picks)[: int(count)]], scores[theirs])
    few, number = suppress(boxes, scores, classes, 0.3, 0.4, max_det=7, agnostic=agnostic)
    assert int(number) == 7 and (np.asarray(few) == np.asarray(picks)[:7]).all()


def test_nothing_above_the_threshold():
    boxes = np.tile(np.array([[0, 0, 4, 4]], np.float32), (5, 1))
    _, count = suppress(boxes, np.full(5, 0.2, np.float32), np.zeros(5, np.int32), 0.2, 0.5,
                        max_det=3)  # fmt: skip
    assert int(count) == 0


@pytest.mark.parametrize(
    ("size", "imgsz", "rect", "expected"),
    [
        ((480, 640), 640, True, (480, 640, 0, 0)),
        ((480, 640), 640, False, (640, 640, 80, 0)),
        ((1080, 810), 640, True, (640, 480, 0, 0)),
        ((100, 333), 640, True, (192, 640, 0, 0)),
        ((50, 50), (64, 96), True, (64, 64, 0, 0)),
        ((50, 50), (64, 96), False, (64, 96, 0, 16)),
    ],
)
def test_letterboxes(size, imgsz, rect, expected):
    box = fit(*size, imgsz, rect=rect)
    assert (*box.input_size, box.top, box.left) == expected
    framed = box.apply(np.zeros((*size, 3), np.uint8))
    height, width = box.resized
    inside = framed[box.top : box.top + height, box.left : box.left + width]
    assert not inside.any() and framed.sum() == 3 * 114 * (framed.size // 3 - height * width)


def test_a_point_comes_back_through_the_letterbox():
    box = fit(300, 500, 320, rect=False)
    corners = np.array([[10, 20, 400, 250]], np.float32)
    there = corners * box.scale + np.array([box.left, box.top] * 2)
    np.testing.assert_allclose(box.boxes_in_picture(there), corners, rtol=1e-5)
    far = box.boxes_in_picture(np.array([[-900.0, -900, 900, 900]], np.float32))
    assert far.tolist() == [[0, 0, 500, 300]]


def interpolated(logits, letterbox):
    """torch's, at the places where the picture's pixels lie."""
    (height, width), (tall, wide) = letterbox.original_size, letterbox.input_size
    y = ((np.arange(height) + 0.5) * letterbox.scale + letterbox.top) / tall * 2 - 1
    x = ((np.arange(width) + 0.5) * letterbox.scale + letterbox.left) / wide * 2 - 1
    grid = np.stack(np.broadcast_arrays(x[None], y[:, None]), axis=-1)[None]
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(logits[None, None].astype(np.float64)), torch.from_numpy(grid),
        mode="bilinear", padding_mode="border", align_corners=False,
    )  # fmt: skip
    return sampled[0, 0].numpy()


@pytest.mark.parametrize("size", [(100, 150), (64, 64), (37, 201)])
def test_masks_are_prototypes_between_their_places(size):
    rng = np.random.default_rng(1)
    letterbox = fit(*size, 128, rect=False)
    prototypes = rng.normal(size=(32, 32, 6)).astype(np.float32)
    coefficients = rng.normal(size=(3, 6)).astype(np.float32)
    logits = mask_logits(coefficients, prototypes)
    np.testing.assert_allclose(
        logits, np.einsum("nm,hwm->nhw", coefficients, prototypes), atol=1e-5
    )
    box = np.array([3.2, 5, 0.8 * size[1], 0.9 * size[0]], np.float32)
    mask = mask_in_picture(logits[0], box, letterbox)
    expected = interpolated(logits[0], letterbox)
    inside = np.zeros(size, bool)
    inside[5 : int(np.ceil(box[3])), 4 : int(np.ceil(box[2]))] = True
    doubtful = np.abs(expected) < 1e-5
    assert inside.any() and (mask == ((expected > 0) & inside))[~doubtful].all()


def expected_of(reference, image, letterbox, *, conf, iou):
    pixels = torch.from_numpy(letterbox.apply(image).transpose(2, 0, 1)[None] / np.float32(255))
    with torch.inference_mode():
        found = reference(pixels)
    points, strides = anchor_points(*letterbox.input_size)
    shares = found["boxes"][0].reshape(-1, 4, 16).softmax(-1) @ torch.arange(16.0)
    distances = shares.numpy() * strides[:, None]
    boxes = np.concatenate([points - distances[:, :2], points + distances[:, 2:]], axis=1)
    scores, classes = found["classes"][0].sigmoid().max(-1)
    kept = torch.nonzero(scores > conf)[:, 0]
    picks = kept[batched_nms(torch.from_numpy(boxes)[kept], scores[kept], classes[kept], iou)]
    logits = torch.einsum("nm,hwm->nhw", found["extras"][0][picks], found["prototypes"][0])
    return boxes[picks], scores[picks].numpy(), classes[picks].numpy(), logits.numpy()


@pytest.mark.optimized
def test_a_picture_beside_torch(model, reference, measured):
    image = np.random.default_rng(2).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    letterbox = fit(90, 130, 96)
    boxes, scores, classes, logits = expected_of(reference, image, letterbox, conf=0.5, iou=0.5)
    found = YoloDetector(model, conf=0.5, iou=0.5, imgsz=96)(image)
    assert 5 < len(scores) < 300 and len(found.scores) == len(scores)
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, letterbox.boxes_in_picture(boxes), atol=1e-3)
    differing = total = 0
    for rle, box, logit in zip(found.masks, found.boxes, logits, strict=True):
        mask = rle_to_mask(rle)
        y, x = np.mgrid[:90, :130]
        inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
        theirs = (interpolated(logit, letterbox) > 0) & inside
        differing, total = differing + int((mask != theirs).sum()), total + mask.size
    measured(f"YOLOv8 masks of {len(scores)} boxes: {differing} of {total} pixels differ")
    assert differing <= total * 1e-5


def test_chosen_classes_and_few_boxes(model):
    image = np.random.default_rng(2).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    every = YoloDetector(model, conf=0.5, iou=0.5, imgsz=96)(image)
    wanted = int(np.bincount(every.classes).argmax())
    some = YoloDetector(model, conf=0.5, iou=0.5, imgsz=96, classes=[wanted])(image)
    np.testing.assert_allclose(some.boxes, every.boxes[every.classes == wanted], atol=1e-4)
    few = YoloDetector(model, conf=0.5, iou=0.5, imgsz=96, max_det=2)(image)
    np.testing.assert_allclose(few.scores, every.scores[:2], atol=1e-6)
    none = YoloDetector(model, conf=1.0, imgsz=96)(image)
    assert len(none.boxes) == 0 and none.masks == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conf": 1.5}, "conf is 1.5"),
        ({"iou": -1.0}, "iou is -1"),
        ({"imgsz": 100}, "imgsz is 100; .*multiples of 32"),
        ({"max_det": 0}, "max_det is 0"),
        ({"classes": [0, 7]}, "classes has 7; this model's are 0 to 2"),
    ],
)
def test_arguments_out_of_range(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        YoloDetector(model, **arguments)
