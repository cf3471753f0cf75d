"""Detectors: YOLOv8 with its weights, and what it says about pictures."""

from samjax.detection.model import YoloModel

__all__ = ["YoloModel"]
