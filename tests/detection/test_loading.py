"""Detectors from files, folders and names, and through the commands."""

import json
import sys

import jax
import numpy as np
import pytest
import torch
import yolo_reference

import samjax
from samjax import detection
from samjax.cli import main
from samjax.convert import convert
from samjax.models.params import flatten
from samjax.models.yolo import YoloConfig
from samjax.yolo_model import YoloModel
from samjax.yolo_model import abstract_params as abstract

CONFIG = YoloConfig(
    task="segment", num_classes=3, widths=(8, 8, 8, 16, 16), depths=(1, 1, 1, 1), prototype_width=8
)
NAMES = ("cat", 'a "b" / ä', "")


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), abstract(CONFIG))
    return YoloModel(params, CONFIG, NAMES)


@pytest.fixture
def folder(model, tmp_path):
    samjax.save_checkpoint(tmp_path / "yolo", model)
    return tmp_path / "yolo"


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """A whole module, as Ultralytics saves them, of classes that are not here."""
    reference = yolo_reference.build(CONFIG)
    for cls in {type(module) for module in reference.modules()}:
        if cls.__module__ == "yolo_reference":
            monkeypatch.setattr(cls, "__module__", "ultralytics")
    monkeypatch.setitem(sys.modules, "ultralytics", yolo_reference)
    path = tmp_path / "yolov8.pt"
    torch.save({"model": reference}, path)
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    return path


def test_saved_and_loaded(model, folder):
    loaded = detection.load(folder)
    assert loaded.config == CONFIG and loaded.names == NAMES
    ours, theirs = flatten(loaded.params), flatten(model.params)
    assert ours.keys() == theirs.keys() and all((ours[n] == theirs[n]).all() for n in ours)
    half = detection.load(folder, dtype="float16")
    assert {str(x.dtype) for x in flatten(half.params).values()} == {"float16"}


def test_neither_is_taken_for_the_other(folder):
    with pytest.raises(ValueError, match=r"is a YOLOv8.*samjax\.detection\.load reads it"):
        samjax.load(folder)
    with pytest.raises(ValueError, match=r"yolov8n\.pt is a YOLOv8"):
        samjax.load("yolov8n.pt")
    with pytest.raises(ValueError, match="is a Segment Anything model"):
        detection.load("nano")


def test_arrays_of_another_config_are_refused(model, tmp_path):
    other = YoloModel(model.params, YoloConfig.published("n"), ("x",) * 80)
    with pytest.raises(ValueError, match="do not fit its config"):
        samjax.save_checkpoint(tmp_path / "x", other)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a"]}, "class names in its samjax.json cannot be used.*1 names for 3"),
        ({"model": "sam9"}, "kind 'sam9'; was it saved by a newer samjax"),
        ({"config": {"legs": 4}}, r"YoloConfig has no field \['legs'\]"),
    ],
)
def test_a_description_that_cannot_be_used(folder, change, message):
    path = folder / "samjax.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        detection.load(folder)


def test_converted_by_the_command(pickled, tmp_path, capsys):
    assert main(["convert", str(pickled), str(tmp_path / "out")]) == 0
    assert "YOLOv8 of widths 8, 8, 8, 16, 16" in capsys.readouterr().out
    converted, read = detection.load(tmp_path / "out"), detection.load(pickled)
    assert converted.names == read.names == ("thing 0", "thing 1", "thing 2")
    for name, array in flatten(read.params).items():
        np.testing.assert_array_equal(array, flatten(converted.params)[name])
    for options in (["x.pth"], ["x", "--verify"], ["x", "--everything", "pred_iou_thresh=0.5"]):
        target = [str(tmp_path / options[0]), *options[1:]]
        assert main(["convert", str(pickled), *target]) == 2
        assert "is a YOLOv8, which is written as an Orbax folder only" in capsys.readouterr().err
        assert not (tmp_path / options[0]).exists()


def test_half_precision(pickled, tmp_path):
    done = convert(pickled, tmp_path / "half", dtype="float16")
    assert done.model.num_bytes == 2 * done.model.num_parameters
    assert detection.load(tmp_path / "half").num_bytes == done.model.num_bytes


def test_described_by_the_command(folder, capsys):
    assert main(["info", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "boxes with masks" in told and "classes             3: cat" in told
    assert "detect, 640 x 640" in told


def test_names_of_published_sizes():
    assert YoloConfig.published("n").name == "YOLOv8n"
    assert YoloConfig.published("x", "segment", 1).name == "YOLOv8x-seg"
    assert CONFIG.name is None
