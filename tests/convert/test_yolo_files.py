"""Files of YOLOv8, read without the classes that they name."""

import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
import yolo_reference

from samjax.convert.pickled_modules import read_torch_zip
from samjax.convert.yolo import fold_batch_norms, from_yolo_arrays, load_yolo
from samjax.models.params import flatten
from samjax.models.yolo import YoloConfig

CONFIG = YoloConfig(
    task="segment", num_classes=3, widths=(8, 8, 8, 16, 16), depths=(1, 1, 1, 1), prototype_width=8
)


@pytest.fixture(scope="module")
def reference():
    return yolo_reference.build(CONFIG)


@pytest.fixture(scope="module")
def arrays(reference):
    return {name: x.numpy() for name, x in reference.state_dict().items()}


def same(found, expected):
    ours, theirs = flatten(found.params), flatten(expected.params)
    return ours.keys() == theirs.keys() and all((ours[n] == theirs[n]).all() for n in ours)


def test_a_pickled_module_whose_class_is_not_there(reference, arrays, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, "ema": None, "model": reference}, path)
    monkeypatch.setitem(sys.modules, "yolo_reference", None)
    model = load_yolo(path)
    assert model.config == CONFIG and model.names == ("thing 0", "thing 1", "thing 2")
    assert same(model, from_yolo_arrays(arrays))


def test_an_average_is_preferred_and_half_precision_widened(reference, arrays, tmp_path):
    path = tmp_path / "model.pt"
    other = yolo_reference.build(CONFIG, seed=1)
    torch.save({"ema": yolo_reference.build(CONFIG).half(), "model": other}, path)
    halved = {n: x.astype(np.float16) if x.dtype == np.float32 else x for n, x in arrays.items()}
    assert same(load_yolo(path), from_yolo_arrays(halved))


def test_a_plain_state_dict(reference, arrays, tmp_path):
    path = tmp_path / "plain.pt"
    torch.save(reference.state_dict(), path)
    model = load_yolo(path)
    assert model.names == ("class0", "class1", "class2") and same(model, from_yolo_arrays(arrays))


def test_an_onnx_export(reference, arrays, tmp_path):
    onnx = pytest.importorskip("onnx")
    folded = fold_batch_norms(arrays)
    initializers = [onnx.numpy_helper.from_array(x, name) for name, x in folded.items()]
    graph = onnx.helper.make_graph([], "yolo", [], [], initializers)
    exported = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(exported, {"names": "{0: 'cat', 1: 'd o g', 2: 'x'}"})
    onnx.save(exported, tmp_path / "model.onnx")
    model = load_yolo(tmp_path / "model.onnx")
    assert model.names == ("cat", "d o g", "x") and same(model, from_yolo_arrays(arrays))


def test_the_epsilon_of_the_file_counts(arrays, tmp_path):
    path = tmp_path / "model.pt"
    other = yolo_reference.build(CONFIG)
    for module in other.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.1
    torch.save({"model": other}, path)
    assert same(load_yolo(path), from_yolo_arrays(arrays, epsilon=0.1))
    assert not same(load_yolo(path), from_yolo_arrays(arrays))


class Harmful:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, pickle.loads])
def test_a_pickle_that_would_run_code_is_refused(function, tmp_path):
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    argument = b"" if function is pickle.loads else f"open({str(trace)!r}, 'w')"
    torch.save({"model": Harmful(function, argument)}, path)
    with pytest.raises(
        ValueError, match="refused, and nothing in it was run.*" + function.__name__
    ):
        load_yolo(path)
    assert not trace.exists()


def test_damaged_files(reference, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": reference}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_yolo(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/other.pkl", b"")
    with pytest.raises(ValueError, match="no data.pkl"):
        load_yolo(path)
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        load_yolo(tmp_path / "nowhere.pt")
    path.with_suffix(".onnx").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="ONNX"):
        load_yolo(path.with_suffix(".onnx"))


def test_a_tensor_longer_than_its_storage_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"x": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in parts if n.endswith("data.pkl"))
    parts[name] = parts[name].replace(b"K\x04\x85", b"K\x7f\x85", 1)
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    with pytest.raises(ValueError, match="longer than its storage|expected"):
        read_torch_zip(path)


def test_another_models_arrays(arrays):
    with pytest.raises(ValueError, match=r"no YOLOv8.*model.22.cv3.0.2.weight is missing.*image"):
        from_yolo_arrays({"image_encoder.pos_embed": np.zeros((1, 4, 4, 8))})
    later = {name.replace("model.22.", "model.23."): x for name, x in arrays.items()}
    with pytest.raises(ValueError, match="no YOLOv8"):
        from_yolo_arrays(later)
    less = {name: x for name, x in arrays.items() if "model.5." not in name or "conv" in name}
    with pytest.raises(ValueError, match="model.5.conv.bias"):
        from_yolo_arrays(less)
    pose = dict(arrays, **{"model.22.cv4.0.2.weight": np.zeros((51, 8, 1, 1), np.float32)})
    pose = {name: x for name, x in pose.items() if "proto" not in name}
    with pytest.raises(ValueError, match="51 numbers"):
        from_yolo_arrays(pose)
