"""Checkpoints of YOLOv8: Ultralytics' `.pt` files, plain state dicts, ONNX exports."""

import ast
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from samjax.convert.pickled_modules import Stub, module_arrays, read_torch_zip
from samjax.convert.table import Row, Table, permute, to_ours, wrong_shapes
from samjax.models.params import describe, differences, flatten, unflatten
from samjax.models.yolo.config import Task, YoloConfig
from samjax.yolo_model import YoloModel, abstract_params

EPSILON = 1e-3
"""Of the published models' batch norms."""

_HEAD = "model.22."
_NECK = {"up.0": 12, "up.1": 15, "blocks.0": 18, "blocks.1": 21}
_DOWN = {"down.0": 16, "down.1": 19}
_IGNORED = re.compile(r".*\.num_batches_tracked|model\.22\.dfl\.conv\.weight")
"""The distribution's distances 0, 1, 2 ... are no parameters here."""


class _Content(NamedTuple):
    arrays: dict[str, np.ndarray]
    names: Any
    epsilon: float


def load_yolo(path: str | os.PathLike) -> YoloModel:
    """A YOLOv8 from a file, in float32, its batch norms folded into the convolutions.

    The file is Ultralytics' `.pt` (nothing in it is run, and neither torch nor ultralytics is
    needed), a state dict by `torch.save`, or an ONNX export (needs the package onnx). Size, task
    and number of classes are read from the arrays' shapes; classes without names are "class0" and
    so on. An average over the training ("ema") is preferred, as Ultralytics does.

    Raises `FileNotFoundError`; `ImportError` without onnx; `ValueError` for a damaged file, one
    that would run code, and another model's.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    content = _read_onnx(path) if path.suffix.lower() == ".onnx" else _read_pt(path)
    try:
        model = from_yolo_arrays(content.arrays, epsilon=content.epsilon)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return YoloModel(model.params, model.config, _names(content.names, model.config.num_classes))


def from_yolo_arrays(arrays: Mapping[str, np.ndarray], *, epsilon: float = EPSILON) -> YoloModel:
    """The same of a state dict's arrays, by its names ("model.0.conv.weight").

    Raises `ValueError` that lists what is missing, unexpected or of the wrong shape.
    """
    kept = {name: x for name, x in arrays.items() if not _IGNORED.fullmatch(name)}
    config = yolo_config(kept)
    table = _table(config.task)
    translation = to_ours(table, fold_batch_norms(kept, epsilon=epsilon))
    expected = flatten(abstract_params(config))
    problems = dict(translation.problems)
    if not any(problems.values()):
        problems["of the wrong shape"] = wrong_shapes(table, translation, expected)
        problems["missing"] = differences(translation.arrays, expected)["missing"]
    if any(problems.values()):
        raise ValueError(f"these are not the arrays of a YOLOv8.\n{describe(problems)}")
    params = unflatten({name: jnp.asarray(translation.arrays[name]) for name in expected})
    return YoloModel(params, config, _names(None, config.num_classes))


def yolo_config(arrays: Mapping[str, Any]) -> YoloConfig:
    """The config that the shapes of a state dict show, folded or not.

    Raises `ValueError` for another model's: it names the first array that is not there.
    """

    def shape(name: str, axes: int = 4) -> tuple[int, ...]:
        found = getattr(arrays.get(name), "shape", None)
        if found is None or len(found) != axes:
            first = ", ".join(list(arrays)[:3]) or "nothing"
            raise ValueError(
                f"this is no YOLOv8 that detects, segments or finds oriented boxes: {name} is "
                f"{'missing' if found is None else f'of shape {tuple(found)}'} (it begins with "
                f"{first})."
            )
        return tuple(found)

    def depth(layer: int) -> int:
        pattern = re.compile(rf"model\.{layer}\.m\.(\d+)\.cv1\.conv\.weight")
        return len({m[1] for name in arrays if (m := pattern.fullmatch(name))})

    task: Task = "detect"
    mask: dict[str, Any] = {}
    classes, _, _, _ = shape(_HEAD + "cv3.0.2.weight")
    distances, _, _, _ = shape(_HEAD + "cv2.0.2.weight")
    if any(name.startswith(_HEAD + "proto.") for name in arrays):
        task = "segment"
        mask["mask_channels"] = shape(_HEAD + "proto.cv3.conv.weight")[0]
        mask["prototype_width"] = shape(_HEAD + "proto.cv1.conv.weight")[0]
    elif any(name.startswith(_HEAD + "cv4.") for name in arrays):
        task = "obb"
        if (extras := shape(_HEAD + "cv4.0.2.weight")[0]) != 1:
            raise ValueError(
                f"{_HEAD}cv4.0.2.weight gives {extras} numbers for each place; oriented boxes have "
                "1 (the angle). Models of poses are not read."
            )
    return YoloConfig(
        task=task,
        num_classes=classes,
        widths=tuple(shape(f"model.{i}.conv.weight")[0] for i in (0, 1, 3, 5, 7)),
        depths=tuple(depth(i) for i in (2, 4, 6, 8)),
        neck_depth=depth(12),
        reg_max=distances // 4,
        **mask,
    )


def fold_batch_norms(
    arrays: Mapping[str, np.ndarray], *, epsilon: float = EPSILON
) -> dict[str, np.ndarray]:
    """Convolutions with a bias in place of a batch norm after them, in float32.

    Computed in float64. Arrays without a norm are taken as they are, so that folding again changes
    nothing. Raises `ValueError` for a norm without a convolution, or not whole.
    """
    folded: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".bn.")
        if not module:
            folded.setdefault(name, np.asarray(array, np.float32))
        elif leaf == "weight":
            kernel, bias = _folded(arrays, module, epsilon)
            folded[f"{module}.conv.weight"] = kernel
            folded[f"{module}.conv.bias"] = bias
    return folded


def _folded(
    arrays: Mapping[str, np.ndarray], module: str, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    names = [f"{module}.bn.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    lacking = [name for name in (f"{module}.conv.weight", *names) if name not in arrays]
    if lacking:
        raise ValueError(f"a batch norm is not whole.\n{describe({'missing': lacking})}")
    scale, bias, mean, var = (np.asarray(arrays[name], np.float64) for name in names)
    factor = scale / np.sqrt(var + epsilon)
    kernel = np.asarray(arrays[f"{module}.conv.weight"], np.float64)
    kernel = kernel * factor[:, None, None, None]
    return kernel.astype(np.float32), (bias - mean * factor).astype(np.float32)


def _table(task: Task) -> Table:
    rows = [*_conv("model.0", "stem")]
    for stage in range(4):
        rows += _conv(f"model.{1 + 2 * stage}", f"stages.{stage}.down")
        rows += _c2f(f"model.{2 + 2 * stage}", f"stages.{stage}.block")
    rows += _conv("model.9.cv1", "pool.conv1") + _conv("model.9.cv2", "pool.conv2")
    for ours, layer in _NECK.items():
        rows += _c2f(f"model.{layer}", f"neck.{ours}")
    for ours, layer in _DOWN.items():
        rows += _conv(f"model.{layer}", f"neck.{ours}")
    branches = {"cv2": "boxes", "cv3": "classes"} | ({} if task == "detect" else {"cv4": "extras"})
    for theirs, ours in branches.items():
        source, target = f"{_HEAD}{theirs}.{{i}}", f"head.{ours}.{{i}}"
        rows += _conv(f"{source}.0", f"{target}.conv1") + _conv(f"{source}.1", f"{target}.conv2")
        rows += _plain(f"{source}.2", f"{target}.conv3")
    if task == "segment":
        source, target = f"{_HEAD}proto.", "head.prototypes."
        for i in (1, 2, 3):
            rows += _conv(f"{source}cv{i}", f"{target}conv{i}")
        upsample = permute(2, 3, 0, 1)
        rows.append(Row(f"{source}upsample.weight", f"{target}upsample_kernel", upsample))
        rows.append(Row(f"{source}upsample.bias", f"{target}upsample_bias"))
    return Table(rows)


def _plain(source: str, target: str) -> list[Row]:
    return [
        Row(f"{source}.weight", f"{target}.kernel", permute(2, 3, 1, 0)),
        Row(f"{source}.bias", f"{target}.bias"),
    ]


def _conv(source: str, target: str) -> list[Row]:
    return _plain(f"{source}.conv", target)


def _c2f(source: str, target: str) -> list[Row]:
    rows = _conv(f"{source}.cv1", f"{target}.conv1") + _conv(f"{source}.cv2", f"{target}.conv2")
    for i in (1, 2):
        rows += _conv(f"{source}.m.{{i}}.cv{i}", f"{target}.blocks.{{i}}.conv{i}")
    return rows


def _read_pt(path: Path) -> _Content:
    root = read_torch_zip(path)
    if isinstance(root, Mapping):
        chosen = next((root[key] for key in ("ema", "model") if root.get(key) is not None), root)
    else:
        chosen = root
    if isinstance(chosen, Stub):
        return _Content(dict(module_arrays(chosen)), chosen.get("names"), _epsilon(chosen, path))
    if isinstance(chosen, Mapping):
        arrays = {str(n): x for n, x in chosen.items() if isinstance(x, np.ndarray)}
        return _Content(arrays, None, EPSILON)
    raise ValueError(f"{path} holds a {type(chosen).__name__}; expected a model or a state dict.")


def _epsilon(module: Stub, path: Path) -> float:
    """The one epsilon of all batch norms."""
    found = set(_epsilons(module))
    if len(found) > 1:
        raise ValueError(f"{path} has batch norms of different epsilons: {sorted(found)}.")
    return found.pop() if found else EPSILON


def _epsilons(module: Stub) -> list[float]:
    own = [float(module.get("eps"))] if module.name.endswith("BatchNorm2d") else []
    children = (module.get("_modules") or {}).values()
    return own + [e for child in children if isinstance(child, Stub) for e in _epsilons(child)]


def _read_onnx(path: Path) -> _Content:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ImportError("Reading ONNX files needs the package onnx: pip install onnx") from error
    try:
        model = onnx.load(path)
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not an ONNX file ({type(error).__name__}: {error})"
        ) from None
    arrays = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    names = {entry.key: entry.value for entry in model.metadata_props}.get("names")
    try:
        return _Content(arrays, ast.literal_eval(names) if names else None, EPSILON)
    except (ValueError, SyntaxError):
        return _Content(arrays, None, EPSILON)


def _names(found: Any, count: int) -> tuple[str, ...]:
    """Class names of a dict by number, or a list."""
    known = dict(enumerate(found)) if isinstance(found, list | tuple) else found
    known = known if isinstance(known, Mapping) else {}
    return tuple(str(known.get(i, f"class{i}")) for i in range(count))
