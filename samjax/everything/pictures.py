"""Pictures one after the other, each in its crops, so that the device waits for nobody.

All that goes to the device goes from the thread that asks for results, in this order: the batches
of one crop, the next crop's encoding, what is left of the first crop. Another thread reads and
resizes the crop after that, and one more compresses masks.
"""

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from samjax.embeddings import Picture, Prepared
from samjax.everything.ahead import BegunEarly, OneAhead
from samjax.everything.crops import MEASURING_THREADS, Crop, Filters, segment_crop
from samjax.everything.masks import Masks
from samjax.images import read_image
from samjax.postprocess import box_area, generate_crop_boxes, nms
from samjax.predictor import SamPredictor

Source = str | os.PathLike[str] | np.ndarray
"""A picture: a file, or an array as `SamPredictor.set_image` takes."""


class Encoded(NamedTuple):
    """A picture, and the file that has its embedding (`SamPredictor.save_embedding`)."""

    image: Source
    embedding: str | os.PathLike[str]


class Work(NamedTuple):
    """What is to be done with every picture, under the generator's names."""

    predictor: SamPredictor
    filters: Filters
    point_grids: list[Float[np.ndarray, "N 2"]]
    points_per_batch: int
    crop_n_layers: int
    crop_overlap_ratio: float
    crop_nms_thresh: float
    progress: bool


class Found(NamedTuple):
    """A picture as it was read, and the masks in it."""

    image: UInt8[np.ndarray, "H W 3"]
    masks: Masks


class _Part(NamedTuple):
    """A crop that is ready for the encoder, or has been through it; `last` of its picture, which
    takes `batches`."""

    image: UInt8[np.ndarray, "H W 3"]
    crop: Crop
    prepared: Prepared | Picture
    last: bool
    batches: int


def segment_pictures(
    work: Work, images: Iterable[Source | Encoded], after_batch: Callable[[], object]
) -> Generator[Found | Exception, None, None]:
    """What is in each picture, or what went wrong with it, in the order given.

    `after_batch` is called when a batch of points is done; what it raises ends the work, if it is
    no `Exception`. What `images` themselves raise is raised.
    """
    with (
        contextlib.closing(OneAhead(_prepared(work, images))) as parts,
        ThreadPoolExecutor(MEASURING_THREADS, "samjax-measure") as measuring,
    ):
        encoded = BegunEarly(_encoded(work.predictor, parts))

        def begin_next() -> None:
            if parts.ready:
                encoded.begin()

        for first in encoded:
            if isinstance(first, Exception):
                yield first
            else:
                yield _segment_picture(work, first, encoded, begin_next, measuring, after_batch)


def _segment_picture(
    work: Work,
    first: tuple[_Part, Picture],
    encoded: BegunEarly[tuple[_Part, Picture] | Exception],
    begin_next: Callable[[], None],
    measuring: Executor,
    after_batch: Callable[[], object],
) -> Found | Exception:
    """All crops of a picture, of which the first has been encoded, and `encoded` has the others."""
    found: list[Masks] = []
    failed: Exception | None = None
    bar = tqdm(total=first[0].batches, unit="batch", delay=2, leave=None, disable=not work.progress)

    def batch_done() -> None:
        bar.update()
        after_batch()

    with bar:
        item: tuple[_Part, Picture] | Exception = first
        while not isinstance(item, Exception):
            part, picture = item
            try:
                if failed is None:
                    masks = segment_crop(
                        work.predictor.model, part.crop, picture, work.filters,
                        points_per_batch=work.points_per_batch, measuring=measuring,
                        all_begun=begin_next, after_batch=batch_done,
                    )  # fmt: skip
                    found.append(masks)
            except Exception as error:
                failed = error
            if part.last:
                return failed or Found(part.image, _without_duplicates(work, found))
            item = next(encoded)
    return failed or item


def _without_duplicates(work: Work, found: list[Masks]) -> Masks:
    """The masks of all crops, those of smaller crops preferred."""
    masks = Masks.concatenate(found)
    if len(found) > 1:
        preference = 1.0 / box_area(masks.crop_boxes.astype(np.float32))
        masks = masks.take(nms(masks.boxes, preference, work.crop_nms_thresh))
    return masks


def _prepared(
    work: Work, images: Iterable[Source | Encoded]
) -> Generator[_Part | Exception, None, None]:
    """The crops of every picture, resized and normalized. An exception ends its picture."""
    for source in images:
        try:
            image = read_image(source.image if isinstance(source, Encoded) else source)
            size = image.shape[:2]
            boxes, layers = generate_crop_boxes(size, work.crop_n_layers, work.crop_overlap_ratio)
            grids = [work.point_grids[layer] for layer in layers]
            batches = sum(-(-len(grid) // work.points_per_batch) for grid in grids)
        except Exception as error:
            yield error
            continue
        for i, (box, grid) in enumerate(zip(boxes, grids, strict=True)):
            x0, y0, x1, y1 = box
            try:
                prepared: Prepared | Picture
                if isinstance(source, Encoded) and i == 0:  # The first crop is the whole picture.
                    prepared = work.predictor.read_embedding(source.embedding, image)
                else:
                    prepared = work.predictor.prepare(image[y0:y1, x0:x1])
            except Exception as error:
                yield error
                break
            crop = Crop(box, size, grid * np.array([[x1 - x0, y1 - y0]]))
            yield _Part(image, crop, prepared, i == len(boxes) - 1, batches)


def _encoded(
    predictor: SamPredictor, parts: Iterator[_Part | Exception]
) -> Iterator[tuple[_Part, Picture] | Exception]:
    """The same crops, on their way through the encoder. An exception ends its picture."""
    failed = False
    for part in parts:
        if isinstance(part, Exception):
            yield part
            failed = False
            continue
        if not failed:
            try:
                picture = (
                    part.prepared
                    if isinstance(part.prepared, Picture)
                    else predictor.encode(part.prepared)
                )
            except Exception as error:
                yield error
                failed = True
            else:
                yield part, picture
        failed = failed and not part.last
