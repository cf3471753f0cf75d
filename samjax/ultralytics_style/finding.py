"""Masks of one picture: of everything, or of the objects that prompts show."""

from typing import NamedTuple

import numpy as np

from samjax.automatic_mask_generator import SamAutomaticMaskGenerator
from samjax.checkpoint import Model
from samjax.postprocess import Rle, box_from_rle, compress_mask
from samjax.predictor import SamPredictor
from samjax.ultralytics_style.arguments import Arguments
from samjax.ultralytics_style.objects import Objects
from samjax.ultralytics_style.outcome import Boxes, Masks
from samjax.ultralytics_style.results import Results
from samjax.ultralytics_style.sources import Frame

OBJECTS_AT_ONCE = 16
"""Objects whose masks are in memory at full size together."""


class Found(NamedTuple):
    """Masks of one picture: run lengths, predicted IoUs, objects, and what else is known."""

    rles: list[Rle]
    ious: np.ndarray
    objects: np.ndarray
    names: dict[int, str]
    logits: np.ndarray | None = None
    stability_scores: np.ndarray | None = None


class Encoded:
    """A picture, and its embedding from when one is first asked for."""

    def __init__(self, frame: Frame):
        self.frame = frame
        self._predictor: SamPredictor | None = None

    def predictor(self, model: Model) -> SamPredictor:
        if self._predictor is None or self._predictor.model is not model:
            predictor = SamPredictor(model)
            predictor.set_image(self.frame.image)
            self._predictor = predictor
        return self._predictor


def make_generator(model: Model, settings: Arguments) -> SamAutomaticMaskGenerator:
    """Raises `ValueError` for arguments that it cannot work with."""
    return SamAutomaticMaskGenerator(
        model, **settings.for_everything(), output_mode="coco_rle", progress=settings.verbose
    )


def find_everything(generator: SamAutomaticMaskGenerator, encoded: Encoded) -> Found:
    """In the generator's order, each mask an object of its own."""
    records = generator.generate(encoded.frame.image)
    count = len(records)
    return Found(
        [record["segmentation"] for record in records],
        np.array([record["predicted_iou"] for record in records], np.float32),
        np.arange(count),
        {i: str(i) for i in range(count)},
        stability_scores=np.array([record["stability_score"] for record in records], np.float32),
    )


def find_objects(predictor: SamPredictor, objects: Objects, multimask_output: bool) -> Found:
    """One mask of each object, or all three."""
    rles: list[Rle] = []
    ious, logits = [], []
    for start in range(0, objects.number, OBJECTS_AT_ONCE):
        part = objects.part(start, start + OBJECTS_AT_ONCE)
        masks, scores, low_res = predictor.predict_batch(
            part.points, part.labels, part.boxes, part.masks, multimask_output=multimask_output
        )
        rles += [compress_mask(mask) for of_object in masks for mask in of_object]
        ious.append(scores)
        logits.append(low_res)
    side = predictor.model.config.low_res_size
    per_object = ious[0].shape[1] if ious else 1
    return Found(
        rles,
        np.concatenate(ious).reshape(-1) if ious else np.zeros(0, np.float32),
        np.repeat(np.arange(objects.number), per_object),
        {i: str(i) for i in range(objects.number)},
        logits=np.concatenate(logits).reshape(-1, side, side) if logits else None,
    )


def to_results(frame: Frame, found: Found, settings: Arguments) -> Results:
    """What is above `conf`, of which at most `max_det`, in the order in which it was found."""
    size = frame.image.shape[0], frame.image.shape[1]
    kept = np.flatnonzero(found.ious > settings.conf)
    if settings.max_det is not None and len(kept) > settings.max_det:
        best = np.argsort(-found.ious[kept], kind="stable")[: settings.max_det]
        kept = np.sort(kept[best])
    corners = [box_from_rle(found.rles[i]) for i in kept]
    data = np.column_stack([
        np.reshape(corners, (-1, 4)), found.ious[kept], found.objects[kept],
    ]).astype(np.float32)  # fmt: skip
    masks = None
    if len(kept):
        masks = Masks(
            found.rles, size, logits=found.logits, stability_scores=found.stability_scores
        )[kept]
    bgr = np.ascontiguousarray(frame.image[..., ::-1])
    boxes = Boxes(data, size)
    return Results(bgr, frame.path, found.names, boxes=boxes, masks=masks, frame=frame.number)
