"""Detectors: YOLOv8 with its weights, and what it finds in pictures."""

from samjax.detection.detector import Detections, YoloDetector
from samjax.detection.loading import load
from samjax.yolo_model import YoloModel

__all__ = ["Detections", "YoloDetector", "YoloModel", "load"]
