"""What is done to each picture on one device (or on one mesh of devices that share the weights)."""

import io
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from samjax import inference
from samjax.automatic_mask_generator import SamAutomaticMaskGenerator
from samjax.batch.prompt_files import PromptFile
from samjax.batch.reading import Read
from samjax.batch.shards import Result
from samjax.failures import FAILURES
from samjax.images import overlay
from samjax.model import Model
from samjax.postprocess import area_from_rle, box_from_rle, box_xyxy_to_xywh, rle_to_mask
from samjax.predictor import SamPredictor
from samjax.prompted import Masks, Prompted, masks_of_prompts
from samjax.types import HqEmbeddings

MODES = ("everything", "boxes", "points", "embeddings")
SAMPLE_SIDE = 320
"""Of a sample for the report, in pixels at most."""

Outcome = tuple[Read, Result | Exception]


class Task(NamedTuple):
    """`generator` are arguments of `SamAutomaticMaskGenerator`; `prompts` are for the modes that
    need them; `batch` pictures go through the model together, but in mode "everything"."""

    mode: str
    generator: dict[str, Any]
    prompts: PromptFile | None
    batch: int
    overlays: bool


def outcomes(task: Task, model: Model, groups: Iterable[list[Read]]) -> Iterator[Outcome]:
    """What comes of each picture that has been read, in the order given. A group goes together."""
    if task.mode == "everything":
        yield from _everything(task, model, groups)
        return
    of_group = _embeddings if task.mode == "embeddings" else _prompted
    for group in groups:
        yield from _together(of_group, task, model, group)


def drawn(read: Read, result: Result, *, whole: bool, sample: bool) -> Result:
    """With the picture and its masks as JPEG files: `whole`, and small as a sample."""
    if not (whole or sample):
        return result
    assert read.image is not None
    picture = read.image
    if result.records:
        masks = (rle_to_mask(record["segmentation"]) for record in result.records)
        picture = overlay(read.image, masks)
    small = None
    if sample:
        scale = min(1.0, SAMPLE_SIDE / max(picture.shape[:2]))
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        small = _jpeg(np.array(Image.fromarray(picture).resize((width, height))))
    return result._replace(overlay=_jpeg(picture) if whole else None, sample=small)


def _jpeg(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=88)
    return file.getvalue()


def _everything(task: Task, model: Model, groups: Iterable[list[Read]]) -> Iterator[Outcome]:
    generator = SamAutomaticMaskGenerator(model, **task.generator, output_mode="coco_rle")
    begun: deque[Read] = deque()

    def images() -> Generator[np.ndarray, None, None]:
        for group in groups:
            for read in group:
                begun.append(read)
                assert read.image is not None
                yield read.image

    for found in generator.generate_many(images(), yield_errors=True):
        read = begun.popleft()
        if isinstance(found, Exception):
            yield read, found
        else:
            yield read, Result(found.image.shape[:2], found.records)


def _together(of_group: Any, task: Task, model: Model, group: Sequence[Read]) -> Iterator[Outcome]:
    """One by one where that fails, so that only the picture at fault is lost."""
    try:
        done = list(of_group(task, model, group))
    except FAILURES as error:
        if len(group) == 1:
            yield group[0], error
            return
        for read in group:
            yield from _together(of_group, task, model, [read])
        return
    yield from done


def _prompted(task: Task, model: Model, group: Sequence[Read]) -> Iterator[Outcome]:
    assert task.prompts is not None
    wanted: list[tuple[Read, Prompted]] = []
    other: dict[int, Result | Exception] = {}
    for read in group:
        assert read.image is not None
        size = read.image.shape[:2]
        try:
            prompts = task.prompts(read.item.key, size)
        except ValueError as error:
            other[read.number] = error
            continue
        if prompts:
            wanted.append((read, Prompted(read.image, prompts)))
        else:
            other[read.number] = Result(size, [])
    masks: list[Masks] = []
    if wanted:
        masks = masks_of_prompts(
            model, [prompted for _, prompted in wanted], batch=task.batch,
            best_of_three=task.mode == "points",
        )  # fmt: skip
    found = {
        read.number: Result(prompted.image.shape[:2], _records(prompted, of_one))
        for (read, prompted), of_one in zip(wanted, masks, strict=True)
    }
    for read in group:
        yield read, (other | found)[read.number]


def _records(prompted: Prompted, masks: Masks) -> list[dict[str, Any]]:
    """One for each prompt, in order, with the generator's keys; a mask may be empty."""
    height, width = prompted.image.shape[:2]
    return [
        {
            "segmentation": rle,
            "area": int(area_from_rle(rle)),
            "bbox": box_xyxy_to_xywh(box_from_rle(rle)).tolist(),
            "predicted_iou": float(iou),
            "point_coords": one.coords[one.labels == 1].tolist(),
            "stability_score": float(stability),
            "crop_box": [0, 0, width, height],
        }
        for one, rle, iou, stability in zip(prompted.tokens, *masks, strict=True)
    ]


def _embeddings(task: Task, model: Model, group: Sequence[Read]) -> Iterator[Outcome]:
    predictor = SamPredictor(model)
    images = []
    for read in group:
        assert read.image is not None
        images.append(predictor.prepare(read.image).batch)
    rows = np.concatenate([*images, *[images[-1]] * (task.batch - len(images))])
    found = inference.encode_images(model.params, rows, config=model.config)
    arrays = found._asdict() if isinstance(found, HqEmbeddings) else {"image_embeddings": found}
    on_host = {name: np.asarray(array) for name, array in arrays.items()}
    for i, read in enumerate(group):
        assert read.image is not None
        yield read, Result(read.image.shape[:2], [], {n: x[i] for n, x in on_host.items()})
