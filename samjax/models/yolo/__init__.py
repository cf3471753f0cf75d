"""YOLOv8: boxes, classes and masks of a picture in one pass. The backbone of FastSAM too."""

from samjax.models.yolo.config import YoloConfig
from samjax.models.yolo.decoding import anchor_points, decode_boxes
from samjax.models.yolo.yolo import Yolo, YoloOutputs

__all__ = ["Yolo", "YoloConfig", "YoloOutputs", "anchor_points", "decode_boxes"]
