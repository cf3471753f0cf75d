"""Clicks and boxes as Meta evaluates them (Kirillov et al. 2023, section 7.1, appendix D.1)."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64
from tqdm import tqdm

from samjax.datasets import (
    BadRecordError,
    Finding,
    Report,
    Source,
    decode_mask,
    read_picture,
)
from samjax.evaluate.metrics import (
    Click,
    boxes_of_masks,
    filled_box_iou,
    filled_ellipse_iou,
    mask_iou,
    next_click,
)
from samjax.evaluate.table import Evaluation

CLICKS = (1, 3, 5)
"""Numbers of clicks after which a mask is measured."""
MIN_AREA = 100
"""Things of fewer pixels are left out."""
MAX_PIXELS = 2**26
"""Of full-size logits in one call of the predictor."""
BOX, FILLED_BOX, FILLED_ELLIPSE = "box", "filled box", "filled ellipse"


@runtime_checkable
class Predictor(Protocol):
    """What is evaluated: `samjax.SamPredictor`, or whatever answers as it does."""

    def set_image(self, image: np.ndarray) -> None: ...

    def predict_batch(
        self,
        point_coords: Sequence | None = None,
        point_labels: Sequence | None = None,
        boxes: Any = None,
        mask_input: Sequence | None = None,
        multimask_output: bool = True,
    ) -> tuple[Any, Any, Any]: ...


class Answers(NamedTuple):
    """For each thing, C masks with their predicted IoUs and low-resolution logits."""

    masks: Bool[np.ndarray, "P C H W"]
    iou_predictions: Float[np.ndarray, "P C"]
    low_res_masks: Float[np.ndarray, "P C h w"]


def evaluate(
    predictor: Predictor,
    source: Source,
    *,
    model: str = "",
    min_area: int = MIN_AREA,
    max_pictures: int | None = None,
    clicks: Sequence[int] = CLICKS,
    progress: bool = False,
) -> Evaluation:
    """Every protocol on every thing of `min_area` pixels and more.

    `max_pictures` takes that many, spread evenly over the source. Pictures and masks that cannot be
    used are counted in the result and, pictures, warned of. `model` is a name for the result.

    Raises ValueError where there is nothing to measure, or for numbers that make no sense.
    """
    if min_area < 1 or (max_pictures is not None and max_pictures < 1):
        raise ValueError(
            f"min_area and max_pictures have to be at least 1, not {min_area} and {max_pictures}"
        )
    report: Report = source.report.copy()
    areas: list[int] = []
    ious: dict[str, list[np.ndarray]] = {}
    pictures = 0
    indices = _spread(len(source), max_pictures)
    for index in tqdm(
        indices, unit="picture", delay=2, disable=not progress or len(indices) < 2, file=sys.stderr
    ):
        try:
            image, masks = _things(source, index, min_area, report)
        except BadRecordError as error:
            report.add([Finding(error.reason, error.text)])
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        if not len(masks):
            continue
        pictures += 1
        areas += masks.sum(axis=(1, 2)).tolist()
        for protocol, values in evaluate_picture(predictor, image, masks, clicks=clicks).items():
            ious.setdefault(protocol, []).append(values)
    if not areas:
        raise ValueError(
            f"there is nothing to measure: no thing of {min_area} pixels and more in "
            f"{len(indices)} of {len(source)} pictures\n{report}"
        )
    return Evaluation(
        model, source.name, min_area, pictures, np.array(areas, np.int64),
        {protocol: np.concatenate(values) for protocol, values in ious.items()},
        {str(reason): count for reason, count in report.counts.items()},
    )  # fmt: skip


def evaluate_picture(
    predictor: Predictor,
    image: np.ndarray,
    masks: Bool[np.ndarray, "P H W"],
    *,
    clicks: Sequence[int] = CLICKS,
) -> dict[str, Float64[np.ndarray, "P"]]:
    """IoUs of one picture's things, at its own resolution, by protocol:

    - "1 click, oracle" and "1 click": of three masks, the best one and the one of the highest
      predicted IoU, after a click on the thing's pixel farthest from its boundary;
    - "N clicks": one mask, after clicks on what is farthest inside the error of the last mask,
      whose low-resolution logits are a prompt too; a thing without error gets no further click;
    - "box": one mask, for the box around the thing;
    - "filled box" and "filled ellipse": no model.

    `clicks` are the N. Raises ValueError for numbers of clicks that are not ascending from 1.
    """
    if not clicks or list(clicks) != sorted(set(clicks)) or clicks[0] < 1:
        raise ValueError(f"clicks have to be ascending numbers from 1, not {tuple(clicks)}")
    predictor.set_image(image)
    size = max(1, MAX_PIXELS // (3 * masks[0].size))
    size = 1 << (size.bit_length() - 1)
    parts = [
        {**_clicked(predictor, part, clicks), BOX: _boxed(predictor, part)}
        for part in (masks[start : start + size] for start in range(0, len(masks), size))
    ]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found[FILLED_BOX] = np.array([filled_box_iou(mask) for mask in masks])
    found[FILLED_ELLIPSE] = np.array([filled_ellipse_iou(mask) for mask in masks])
    return found


def _clicked(
    predictor: Predictor, truth: Bool[np.ndarray, "P H W"], clicks: Sequence[int]
) -> dict[str, Float64[np.ndarray, "P"]]:
    found = {}
    points: list[list[Click]] = [[] for _ in truth]
    current: np.ndarray = np.zeros_like(truth)
    low_res: list[np.ndarray | None] = [None] * len(truth)
    for number in range(1, clicks[-1] + 1):
        wrong = []
        for i, mask in enumerate(truth):
            if click := next_click(mask, current[i]):
                points[i].append(click)
                wrong.append(i)
        if wrong:
            answers = _predict(
                predictor,
                point_coords=[np.array([c[:2] for c in points[i]], np.float64) for i in wrong],
                point_labels=[np.array([c.label for c in points[i]]) for i in wrong],
                mask_input=None if number == 1 else [low_res[i] for i in wrong],
                multimask_output=number == 1,
            )
            best = answers.iou_predictions.argmax(axis=1)
            for row, i in enumerate(wrong):
                current[i] = answers.masks[row, best[row]]
                low_res[i] = answers.low_res_masks[row, best[row]][None]
            if number == 1 and 1 in clicks:
                found["1 click, oracle"] = mask_iou(answers.masks, truth[:, None]).max(axis=1)
        if number in clicks:
            name = "1 click" if number == 1 else f"{number} clicks"
            found[name] = mask_iou(current, truth)
    return found


def _boxed(predictor: Predictor, truth: Bool[np.ndarray, "P H W"]) -> Float64[np.ndarray, "P"]:
    boxes = boxes_of_masks(truth).astype(np.float64)
    answers = _predict(predictor, boxes=boxes, multimask_output=False)
    return mask_iou(answers.masks[:, 0], truth)


def _predict(predictor: Predictor, **prompts: Any) -> Answers:
    return Answers(*map(np.asarray, predictor.predict_batch(**prompts)))


def _things(
    source: Source, index: int, min_area: int, report: Report
) -> tuple[np.ndarray, Bool[np.ndarray, "P H W"]]:
    record = source.read(index)
    report.add(record.left_out)
    image = read_picture(record)
    masks = [np.zeros((0, *record.size), bool)]
    for i in range(len(record.masks)):
        try:
            mask = decode_mask(record, i)
        except BadRecordError as error:
            report.add([Finding(error.reason, error.text)])
            continue
        if mask.sum() >= min_area:
            masks.append(mask[None])
    return image, np.concatenate(masks)


def _spread(length: int, number: int | None) -> list[int]:
    if number is None or number >= length:
        return list(range(length))
    return [(i * length) // number for i in range(number)]
