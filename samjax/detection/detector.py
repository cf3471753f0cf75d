"""`YoloDetector`: a picture to boxes, classes, scores and masks."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, UInt8

from samjax.detection.letterbox import fit
from samjax.detection.masks import mask_in_picture, mask_logits
from samjax.detection.suppression import suppress
from samjax.models.params import Params
from samjax.models.yolo import YoloConfig, decode_boxes
from samjax.postprocess import Rle, compress_mask
from samjax.yolo_model import YoloModel, run


class Detections(NamedTuple):
    """What is in one picture, the best first.

    Boxes are (x0, y0, x1, y1) in its pixels, scores in 0..1; `masks` are run lengths at its own
    resolution, None of a model without masks. Of a model of oriented boxes `oriented` are these as
    (x, y, width, height, turn): centre and sides in pixels, and radians from the x axis towards the
    y axis; `boxes` are then what they lie in, cut off at the picture's edges.
    """

    boxes: Float32[np.ndarray, "N 4"]
    scores: Float32[np.ndarray, "N"]
    classes: Int32[np.ndarray, "N"]
    masks: list[Rle] | None = None
    oriented: Float32[np.ndarray, "N 5"] | None = None


class YoloDetector:
    """A YOLOv8 with the thresholds that are wanted of it.

    Args:
      model: as `samjax.convert.yolo.load_yolo` gives it.
      conf: boxes are kept whose best class scores above this.
      iou: overlap with a better box of its class above which a box goes (`suppress`).
      imgsz: the longest side of the model's input, or its (height, width): multiples of 32.
      max_det: at most this many boxes of a picture.
      classes: numbers of the classes to keep; None is all.
      agnostic: a better box of any class counts.
      rect: margins only as wide as they have to be; otherwise all inputs have one size, and one
        program serves all pictures.

    Raises `ValueError` for a value that is out of range.
    """

    def __init__(
        self,
        model: YoloModel,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        imgsz: int | tuple[int, int] = 640,
        max_det: int = 300,
        classes: Sequence[int] | None = None,
        agnostic: bool = False,
        rect: bool = True,
    ):
        for name, value in (("conf", conf), ("iou", iou)):
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{name} is {value}; it has to be a number from 0 to 1.")
        if max_det < 1:
            raise ValueError(f"max_det is {max_det}; it has to be at least 1.")
        count = model.config.num_classes
        if classes is not None and (
            strange := [number for number in classes if not 0 <= number < count]
        ):
            raise ValueError(f"classes has {strange[0]}; this model's are 0 to {count - 1}.")
        fit(1, 1, imgsz)
        self.model = model
        self.conf, self.iou, self.imgsz, self.max_det = conf, iou, imgsz, max_det
        self.agnostic, self.rect = agnostic, rect
        self._wanted = np.ones(count, np.bool_)
        if classes is not None:
            self._wanted[:] = False
            self._wanted[list(classes)] = True

    @property
    def names(self) -> dict[int, str]:
        """Class number to name."""
        return dict(enumerate(self.model.names))

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], *, masks: bool = True) -> Detections:
        """What is in an RGB picture, with `masks` where the model has any."""
        height, width, _ = image.shape
        letterbox = fit(height, width, self.imgsz, rect=self.rect)
        found = _detect(
            self.model.params, letterbox.apply(image)[None], self._wanted, np.float32(self.conf),
            np.float32(self.iou), config=self.model.config, max_det=self.max_det,
            agnostic=self.agnostic,
        )  # fmt: skip
        count = int(found.number[0])
        boxes = np.asarray(found.boxes[0])[:count]
        oriented = None
        if boxes.shape[1] == 5:
            oriented = letterbox.oriented_in_picture(boxes)
            boxes = around(boxes)
        boxes = letterbox.boxes_in_picture(boxes)
        scores = np.asarray(found.scores[0])[:count]
        classes = np.asarray(found.classes[0])[:count]
        if not masks or found.coefficients is None or found.prototypes is None:
            return Detections(boxes, scores, classes, oriented=oriented)
        logits = mask_logits(np.asarray(found.coefficients[0])[:count], found.prototypes[0])
        rles = [
            compress_mask(mask_in_picture(mask, box, letterbox))
            for mask, box in zip(logits, boxes, strict=True)
        ]
        return Detections(boxes, scores, classes, rles)


def around(oriented: Float32[np.ndarray, "N 5"]) -> Float32[np.ndarray, "N 4"]:
    """The smallest upright boxes (x0, y0, x1, y1) that (x, y, width, height, turn) lie in."""
    cos, sin = np.abs(np.cos(oriented[:, 4:])), np.abs(np.sin(oriented[:, 4:]))
    width, height = oriented[:, 2:3], oriented[:, 3:4]
    half = np.concatenate([width * cos + height * sin, width * sin + height * cos], axis=1) / 2
    return np.concatenate([oriented[:, :2] - half, oriented[:, :2] + half], axis=1)


class _Found(NamedTuple):
    boxes: Array
    scores: Array
    classes: Array
    number: Array
    coefficients: Array | None
    prototypes: Array | None


@functools.partial(jax.jit, static_argnames=("config", "max_det", "agnostic"))
def _detect(
    params: Params, images: Array, wanted: Array, conf: Array, iou: Array, *,
    config: YoloConfig, max_det: int, agnostic: bool,
) -> _Found:  # fmt: skip
    """Of uint8 inputs: the picks of each picture, padded to `max_det`."""
    outputs = run(params, images.astype(jnp.float32) / 255, config)
    boxes = decode_boxes(outputs, images.shape[1], images.shape[2])
    every = jax.nn.sigmoid(outputs.classes)
    classes = jnp.argmax(every, axis=-1).astype(jnp.int32)
    scores = jnp.where(wanted[classes], jnp.max(every, axis=-1), 0)
    choose = functools.partial(suppress, max_det=max_det, agnostic=agnostic)
    picks, count = jax.vmap(choose, in_axes=(0, 0, 0, None, None))(
        boxes, scores, classes, conf, iou
    )

    def picked(x: Any) -> Any:
        return None if x is None else jax.vmap(lambda of_one, i: of_one[i])(x, picks)

    return _Found(
        picked(boxes), picked(scores), picked(classes), count,
        picked(outputs.mask_coefficients), outputs.prototypes,
    )  # fmt: skip
