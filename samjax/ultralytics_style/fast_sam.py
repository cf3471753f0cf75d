"""`FastSAM`: everything by one look at the picture, and what prompts choose of it."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from samjax.detection import Detections, YoloDetector, load
from samjax.devices import find_device
from samjax.postprocess import area_from_rle, rle_to_mask
from samjax.prompts import check_points
from samjax.ranking import rank_by
from samjax.ultralytics_style.arguments import Arguments
from samjax.ultralytics_style.finding import Encoded
from samjax.ultralytics_style.info import ModelInfo, describe
from samjax.ultralytics_style.loop import Failure, PictureLoop
from samjax.ultralytics_style.objects import read_objects
from samjax.ultralytics_style.outcome import Boxes, Masks
from samjax.ultralytics_style.results import Results
from samjax.ultralytics_style.sources import Frame
from samjax.yolo_model import YoloModel

DEFAULT_MODEL = "FastSAM-s.pt"
DEFAULTS: dict[str, Any] = {"conf": 0.4, "iou": 0.9, "imgsz": 1024}
"""As the paper's demonstration and Ultralytics' documentation call it."""

MAX_DET = 300

TextScore = Callable[[list[np.ndarray], str], Any]
"""Crops of (h, w, 3) uint8 RGB, and a text, to as many numbers: more is more like the text."""


class FastSAM:
    """Fast Segment Anything (Zhao et al. 2023): a YOLOv8 with masks and one class.

        model = FastSAM("FastSAM-s.pt")
        model("picture.jpg")                                 # everything
        model("picture.jpg", bboxes=[439, 437, 524, 709])    # the mask whose box is most like this
        model("picture.jpg", points=[200, 200], labels=[1])  # the masks with this point in them
        model("picture.jpg", texts="a dog", score=score)     # the mask that `score` likes best

    `model` is a name or file that `samjax.detection.load` takes, or a `YoloModel`. Raises what that
    raises, and `ValueError` for a model without masks.
    """

    task = "segment"

    def __init__(self, model: str | os.PathLike[str] | YoloModel = DEFAULT_MODEL):
        self.name = "YoloModel" if isinstance(model, YoloModel) else os.fspath(model)
        self.model: YoloModel = model if isinstance(model, YoloModel) else load(model)
        if self.model.config.task != "segment":
            raise ValueError(
                f"{self.name} finds {self.model.config.task!r} only; FastSAM is a YOLOv8 that "
                "segments, such as FastSAM-s.pt."
            )
        self._loop = PictureLoop(keep_last=True)
        self._placed: tuple[Any, YoloModel] = (None, self.model)
        self._last: tuple[Encoded, tuple[Any, ...], Detections] | None = None

    @property
    def failures(self) -> list[Failure]:
        """Pictures of the last call that could not be done."""
        return self._loop.failures

    def __call__(
        self,
        source: Any = None,
        stream: bool = False,
        bboxes: Any = None,
        points: Any = None,
        labels: Any = None,
        texts: Any = None,
        *,
        score: TextScore | None = None,
        **arguments: Any,
    ) -> list[Results] | Iterator[Results]:
        """Masks of everything, or of those what the prompts choose, the best score first.

        Args:
          source: see `samjax.ultralytics_style.sources`. Without it the call is about the picture
            of the last one, if that was on a single picture; the model does not run again.
          stream: return an iterator, which holds one picture at a time, and not a list.
          bboxes: (4,) or (N, 4): of each box the mask whose own box has the largest IoU with it.
          points: (2,) or (N, 2): all masks that hold a foreground point and no background point;
            of background points alone, all masks that hold none of them.
          labels: of the points, 1 for foreground and 0 for background; all 1 when absent.
          texts: of each text the mask that `score` gives the largest number.
          score: called with lists of pictures of the masks and a text (docs/text_to_mask.md).
          **arguments: fields of `samjax.ultralytics_style.arguments.Arguments`; `DEFAULTS` are
            conf 0.4, iou 0.9 and imgsz 1024, and max_det is 300.

        Several prompts choose what any of them does. `Results.boxes` are the detector's, with its
        scores. Raises `TypeError` and `ValueError` for wrong arguments, prompts and sources,
        `RuntimeError` where there is neither a source nor a picture, and then what `Predictor`
        does.
        """
        settings = Arguments().updated(DEFAULTS | arguments)
        prompts = _prompts(bboxes, points, labels, texts, score)
        detector, key = self._detector(settings)
        sources = self._loop.sources(source, settings)

        def find(encoded: Encoded) -> Detections:
            if self._last is None or self._last[:2] != (encoded, key):
                self._last = encoded, key, _with_pixels(detector(encoded.frame.image))
            return _chosen(self._last[2], prompts, encoded.frame.image)

        found = self._loop.run(sources, find, functools.partial(_to_results, detector), settings)
        return found if stream else list(found)

    predict = __call__

    def info(self, detailed: bool = False, verbose: bool = True) -> ModelInfo:
        """Layers, parameters and size, printed where `verbose`; `detailed` lists the layers."""
        return describe(self.name, self.model, DEFAULTS["imgsz"], detailed, verbose)

    def _detector(self, settings: Arguments) -> tuple[YoloDetector, tuple[Any, ...]]:
        """And what tells its results from those of other settings."""
        size = settings.imgsz
        imgsz = size if isinstance(size, int) else tuple(np.ravel(np.asarray(size)).tolist())
        iou = DEFAULTS["iou"] if settings.iou is None else settings.iou
        key = (settings.conf, iou, imgsz, settings.max_det, settings.device, settings.half)
        place = settings.device or None, settings.half
        if self._placed[0] != place:
            model, device = self.model, find_device(settings.device)
            if device is not None:
                model = model.place(jax.sharding.SingleDeviceSharding(device))
            if settings.half:
                config = dataclasses.replace(model.config, dtype="float16")
                model = dataclasses.replace(model, config=config)
            self._placed = place, model
        return YoloDetector(
            self._placed[1], conf=settings.conf, iou=iou,
            imgsz=imgsz[0] if isinstance(imgsz, tuple) and len(imgsz) == 1 else imgsz,
            max_det=settings.max_det or MAX_DET,
        ), key  # fmt: skip


class _Prompts(NamedTuple):
    boxes: list[np.ndarray] | None
    points: np.ndarray | None
    labels: np.ndarray | None
    texts: list[str]
    score: TextScore | None

    @property
    def everything(self) -> bool:
        return self.boxes is None and self.points is None and not self.texts


def _prompts(
    bboxes: Any, points: Any, labels: Any, texts: Any, score: TextScore | None
) -> _Prompts:
    boxes = None if bboxes is None else read_objects(bboxes, None, None, None, side=1)
    clicked = read_objects(None, points, labels, None, side=1)
    words = [texts] if isinstance(texts, str) else list(texts or ())
    if strange := [text for text in words if not isinstance(text, str)]:
        raise ValueError(f"texts hold {strange[0]!r}; expected words, or a list of them.")
    if words and score is None:
        raise ValueError(
            "texts need a function that compares pictures with a text: score=..., called with a "
            "list of crops and the text. docs/text_to_mask.md has one of CLIP."
        )
    corners = None if boxes is None else boxes.boxes
    if clicked is None:
        return _Prompts(corners, None, None, words, score)
    assert clicked.points is not None and clicked.labels is not None
    marks = np.concatenate(clicked.labels) if clicked.labels else np.zeros(0)
    if strange := [mark for mark in marks.tolist() if mark not in (0, 1)]:
        raise ValueError(f"labels hold {strange[0]}; use 1 for foreground and 0 for background.")
    places = np.concatenate(clicked.points) if clicked.points else np.zeros((0, 2))
    return _Prompts(corners, places, marks, words, score)


def _with_pixels(found: Detections) -> Detections:
    assert found.masks is not None
    return _rows(found, [i for i, rle in enumerate(found.masks) if area_from_rle(rle)])


def _rows(found: Detections, chosen: Sequence[int]) -> Detections:
    kept = np.asarray(chosen, int)
    masks = [(found.masks or [])[i] for i in chosen]
    return Detections(found.boxes[kept], found.scores[kept], found.classes[kept], masks)


def _chosen(found: Detections, prompts: _Prompts, image: np.ndarray) -> Detections:
    if prompts.points is not None and len(prompts.points):
        check_points(prompts.points, prompts.labels, (image.shape[0], image.shape[1]))
    if prompts.everything or not len(found.boxes):
        return found
    chosen: set[int] = set()
    for box in prompts.boxes or ():
        chosen.add(int(np.argmax(_ious(box, found.boxes))))
    if prompts.points is not None and prompts.labels is not None:
        chosen |= _with_points(found, prompts.points, prompts.labels)
    records = [{"segmentation": rle, "index": i} for i, rle in enumerate(found.masks or [])]
    for text in prompts.texts:
        assert prompts.score is not None
        scored = functools.partial(_scored, prompts.score, text)
        chosen.add(rank_by(records, image, scored)[0]["index"])
    return _rows(found, sorted(chosen))


def _scored(score: TextScore, text: str, crops: list[np.ndarray]) -> Any:
    return score(crops, text)


def _with_points(found: Detections, points: np.ndarray, labels: np.ndarray) -> set[int]:
    """Numbers of the masks with a foreground point and no background point in them."""
    chosen = set()
    for i, rle in enumerate(found.masks or []):
        height, width = rle["size"]
        x, y = np.minimum(np.floor(points).astype(int), (width - 1, height - 1)).T
        held = rle_to_mask(rle)[y, x]
        wanted = held[labels == 1].any() or not (labels == 1).any()
        if wanted and not held[labels == 0].any():
            chosen.add(i)
    return chosen


def _ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = areas + np.clip(box[2:] - box[:2], 0, None).prod() - shared
    return shared / np.maximum(union, 1e-9)


def _to_results(detector: YoloDetector, frame: Frame, found: Detections) -> Results:
    size = frame.image.shape[0], frame.image.shape[1]
    data = np.column_stack([found.boxes, found.scores, found.classes]).astype(np.float32)
    masks = Masks(found.masks, size) if found.masks else None
    bgr = np.ascontiguousarray(frame.image[..., ::-1])
    return Results(
        bgr, frame.path, detector.names, boxes=Boxes(data, size), masks=masks, frame=frame.number
    )
