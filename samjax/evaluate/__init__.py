"""How good masks are: metrics, and the published protocols of clicks and boxes."""

from samjax.evaluate.metrics import (
    boxes_of_masks,
    farthest_point,
    filled_box_iou,
    filled_ellipse_iou,
    mask_iou,
    next_click,
)
from samjax.evaluate.protocols import CLICKS, Predictor, evaluate, evaluate_picture
from samjax.evaluate.table import Evaluation

__all__ = [
    "CLICKS",
    "Evaluation",
    "Predictor",
    "boxes_of_masks",
    "evaluate",
    "evaluate_picture",
    "farthest_point",
    "filled_box_iou",
    "filled_ellipse_iou",
    "mask_iou",
    "next_click",
]
