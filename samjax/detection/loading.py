"""Detectors by path or by name."""

import os

from samjax.checkpoint import load_any
from samjax.models.config import Dtype
from samjax.yolo_model import YoloModel


def load(source: str | os.PathLike, *, dtype: Dtype | None = None) -> YoloModel:
    """A YOLOv8 from a file or folder, or by the name of a published one.

    A path is an Ultralytics `.pt`, a state dict, an ONNX export (`samjax.convert.yolo.load_yolo`),
    or what `samjax.save_checkpoint` wrote. A name ("yolov8n.pt", "FastSAM-s.pt") is one that
    `samjax models` lists; it is downloaded and converted the first time. `dtype` changes the
    parameters' type on the way. Raises what `samjax.load` raises, and `ValueError` for a Segment
    Anything model.
    """
    model = load_any(source, dtype=dtype)
    if not isinstance(model, YoloModel):
        raise ValueError(f"{source} is a Segment Anything model, not a detector: samjax.load it.")
    return model
