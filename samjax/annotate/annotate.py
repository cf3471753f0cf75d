"""`auto_annotate`: a folder of pictures to labels."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from samjax.annotate.detectors import Detector, open_detector
from samjax.annotate.output import Labelled, Output, open_output
from samjax.checkpoint import Model, load
from samjax.detection import Detections
from samjax.devices import find_device
from samjax.everything.ahead import OneAhead
from samjax.failures import FAILURES, reason
from samjax.images import list_images, read_image
from samjax.locking import locked
from samjax.naming import Picture, name_pictures
from samjax.postprocess import area_from_rle
from samjax.prompted import Prompted, box_prompts, masks_of_prompts
from samjax.prompts import check_box

_log = logging.getLogger("samjax")


class Annotated(NamedTuple):
    """What `auto_annotate` did. Counts are of all pictures in `folder`, of earlier runs too, but
    for the last four, which are of this one.

    `failures` are reasons, each with its picture's path; `empty` paths of pictures in which nothing
    was found; `dropped_boxes` boxes without area, or wholly outside of their picture; `empty_masks`
    boxes in which there was no pixel of a mask.
    """

    folder: Path
    pictures: int
    masks: int
    done_now: int
    failures: list[str]
    empty: list[str]
    dropped_boxes: int
    empty_masks: int


def auto_annotate(
    data: str | os.PathLike[str],
    det_model: Any = "yolov8x.pt",
    sam_model: str | os.PathLike[str] | Model = "sam_b.pt",
    device: str | int | None = "",
    output_dir: str | os.PathLike[str] | None = None,
    conf: float = 0.25,
    iou: float = 0.45,
    imgsz: int | tuple[int, int] = 640,
    max_det: int = 300,
    classes: Sequence[int] | None = None,
    *,
    names: Mapping[int, str] | Sequence[str] | None = None,
    overlays: bool = False,
    recursive: bool = False,
    overwrite: bool = False,
    batch: int | None = None,
    progress: bool = True,
) -> Annotated:
    """Labels all pictures of a folder: boxes by a detector, a mask in each box by Segment Anything.

    The first ten arguments are Ultralytics', by their documentation.

    Args:
      data: a folder of pictures, or one picture.
      det_model: what finds boxes (`samjax.annotate.detectors.KINDS`): a YOLOv8, a COCO file, a
        folder of YOLO's label files, or a function of a picture.
      sam_model: what `samjax.load` takes, or what it returns.
      device: where SAM runs, such as "cpu" or "cuda:0"; "" leaves that to JAX.
      output_dir: by default `NAME_auto_annotate_labels` beside `data`. See
        `samjax.annotate.output` for what is in it.
      conf, iou, imgsz, max_det, classes: see `open_detector`.
      names: of the classes, where the detector has none.
      overlays: draw each picture with its masks too.
      recursive: pictures in sub-folders too.
      overwrite: begin anew where the folder is of an earlier run with other settings. Under the
        same settings a run goes on where the last one stopped.
      batch: pictures that go through SAM together; by default 1 on the CPU and 8 elsewhere.
      progress: show a bar.

    A picture that cannot be read or done is reported in samjax's log and in the result, and the
    rest is done; it is tried again by the next run. One in which nothing is found has no label
    file. Raises `FileNotFoundError` for a folder that is not there or has no pictures,
    `FileExistsError` and `ValueError` for an output folder that cannot be used, `ValueError` where
    no picture at all could be done, and what `open_detector` and `samjax.load` raise.
    """
    root = Path(data)
    folder = Path(output_dir) if output_dir is not None else default_folder(root)
    pictures = _list(root, folder, recursive)
    detector = open_detector(
        det_model, conf=conf, iou=iou, imgsz=imgsz, max_det=max_det, classes=classes, names=names
    )
    chosen = find_device(device)
    settings = {
        "det_model": _identity(det_model, detector.description),
        "sam_model": "a Model" if isinstance(sam_model, Model) else os.fspath(sam_model),
        "conf": conf, "iou": iou, "imgsz": imgsz, "max_det": max_det,
        "classes": None if classes is None else [int(number) for number in classes],
        "overlays": overlays,
    }  # fmt: skip
    open_output(folder, settings, overwrite=overwrite)  # so that loading waits for no refusal
    model = sam_model if isinstance(sam_model, Model) else load(sam_model)
    if chosen is not None:
        model = model.place(jax.sharding.SingleDeviceSharding(chosen))
    size = batch or (1 if _platform(model) == "cpu" else 8)

    def tell() -> None:
        _log.warning("samjax: waiting for another process that writes to %s", folder)

    with locked(folder / ".lock", when_waiting=tell):
        output = open_output(folder, settings, overwrite=overwrite)
        todo = output.missing(pictures)
        output.begin()
        work = _Work(detector, model, output, overlays, size)
        try:
            with tqdm(total=len(todo), unit="picture", delay=2, disable=not progress) as bar:
                work.run(todo, bar)
        finally:
            count, masks = output.finish(detector.categories)
    if work.failures and len(work.failures) == len(pictures):
        raise ValueError(
            f"none of {len(pictures)} pictures could be done; the first: {work.failures[0]}"
        )
    done_now = len(todo) - len(work.failures)
    return Annotated(
        folder, count, masks, done_now, work.failures, work.empty, work.dropped, work.blank
    )


def default_folder(data: Path) -> Path:
    """`NAME_auto_annotate_labels` beside a folder or picture NAME."""
    whole = Path(os.path.abspath(data))
    return whole.parent / f"{whole.stem}_auto_annotate_labels"


class _Found(NamedTuple):
    picture: Picture
    image: UInt8[np.ndarray, "H W 3"]
    detections: Detections


class _Work:
    """What goes through all pictures of one run, and what came of it."""

    def __init__(
        self, detector: Detector, model: Model, output: Output, overlays: bool, batch: int
    ):
        self.detector, self.model, self.output = detector, model, output
        self.overlays, self.batch = overlays, batch
        self.failures: list[str] = []
        self.empty: list[str] = []
        self.dropped = self.blank = 0

    def run(self, pictures: Sequence[Picture], bar: tqdm) -> None:
        """The next pictures are read and looked through while masks are made."""
        with contextlib.closing(OneAhead(self._batches(pictures))) as batches:
            for batch in batches:
                found = []
                for picture, one in batch:
                    if isinstance(one, FAILURES):
                        self._failed(picture, one)
                    elif isinstance(one, Exception):
                        raise one
                    else:
                        found.append(one)
                self._label(found)
                bar.update(len(batch))

    def _batches(
        self, pictures: Sequence[Picture]
    ) -> Generator[list[tuple[Picture, _Found | Exception]], None, None]:
        for start in range(0, len(pictures), self.batch):
            yield [(one, self._find(one)) for one in pictures[start : start + self.batch]]

    def _find(self, picture: Picture) -> _Found | Exception:
        try:
            image = read_image(picture.path)
            return _Found(picture, image, self.detector(picture, image))
        except Exception as error:
            return error

    def _label(self, batch: Sequence[_Found]) -> None:
        """Together, and one by one where that fails, so that only the picture at fault is lost."""
        kept = [_usable(one) for one in batch]
        boxed = [
            Prompted(one.image, box_prompts(good.boxes))
            for one, good in zip(batch, kept, strict=True) if len(good.boxes)
        ]  # fmt: skip
        try:
            masks = iter(masks_of_prompts(self.model, boxed, batch=self.batch) if boxed else [])
        except FAILURES as error:
            if len(batch) == 1:
                self._failed(batch[0].picture, error)
                return
            for one in batch:
                self._label([one])
            return
        for one, good in zip(batch, kept, strict=True):
            objects = []
            if len(good.boxes):
                rles, ious, _ = next(masks)
                objects = [
                    Labelled(rle, int(number), float(score), float(iou))
                    for rle, number, score, iou in zip(
                        rles, good.classes, good.scores, ious, strict=True
                    )
                    if area_from_rle(rle)
                ]
                self.blank += len(good.boxes) - len(objects)
            self._write(one, objects, len(one.detections.boxes) - len(good.boxes))

    def _write(self, one: _Found, objects: list[Labelled], dropped: int) -> None:
        if dropped:
            self.dropped += dropped
            _log.warning(
                "samjax: %s: %d boxes left out, which are empty or outside of the picture",
                one.picture.path, dropped,
            )  # fmt: skip
        if not objects:
            self.empty.append(str(one.picture.path))
        self.output.write(
            one.picture, one.image, objects, dropped=dropped, drawn=self.overlays,
            texts=[self._text(labelled) for labelled in objects],
        )  # fmt: skip

    def _text(self, one: Labelled) -> str:
        categories = self.detector.categories or ()
        number = one.number
        name = categories[number].name if number < len(categories) else f"class{number}"
        return name if np.isnan(one.score) else f"{name} {one.score:.2f}"

    def _failed(self, picture: Picture, error: Exception) -> None:
        self.failures.append(reason(picture.path, error))
        _log.warning("samjax: skipped: %s", self.failures[-1])


def _usable(one: _Found) -> Detections:
    """Without boxes that a picture has nothing in."""
    detections, size = one.detections, one.image.shape[:2]
    kept = np.array([_is_usable(box, size) for box in detections.boxes], bool)
    return Detections(
        detections.boxes[kept], detections.scores[kept], detections.classes[kept]
    )  # fmt: skip


def _is_usable(box: Float[np.ndarray, "4"], size: tuple[int, int]) -> bool:
    try:
        check_box(box, size)
    except ValueError:
        return False
    return True


def _list(root: Path, output: Path, recursive: bool) -> list[Picture]:
    paths = list_images(root, recursive=recursive)
    if root.is_file():
        return name_pictures([(root, PurePosixPath(root.name))])
    own = output.resolve()
    kept = [path for path in paths if own not in path.resolve().parents]
    if not kept:
        raise FileNotFoundError(f"no pictures in {root} but those in the output folder {output}")
    return name_pictures([(p, PurePosixPath(p.relative_to(root).as_posix())) for p in kept])


def _identity(source: Any, description: str) -> str:
    """The detector as settings hold it; files of boxes with their content, which may change."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix.lower() == ".json" and path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            return f"{path} (SHA-256 {digest}...)"
    return description


def _platform(model: Model) -> str:
    leaf = jax.tree.leaves(model.params)[0]
    if isinstance(leaf, jax.Array):
        return next(iter(leaf.devices())).platform
    return jax.default_backend()
