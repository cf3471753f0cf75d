"""Segment everything in a picture that is larger than the model sees, tile by tile."""

import contextlib
from collections.abc import Generator, Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from samjax.automatic_mask_generator import Segmented
from samjax.everything.joining import Joining
from samjax.everything.masks import OUTPUT_MODES
from samjax.everything.pictures import Source
from samjax.everything.tiles import tile_boxes
from samjax.images import read_image
from samjax.postprocess import LARGEST_FRAME

MOST_PIXELS_OF_BITMAPS = 2**24
"""In larger pictures "binary_mask" is refused: each of thousands of masks takes 16 MB or more."""


@runtime_checkable
class GeneratesMany(Protocol):
    """What is asked of the generator of a tile's masks; `SamAutomaticMaskGenerator` has it."""

    def generate_many(
        self, images: Iterable[Source], *, yield_errors: bool = False
    ) -> Generator[Segmented | Exception, None, None]: ...


class TiledMaskGenerator:
    """Everything in pictures of any size, in overlapping tiles, with whole masks across them.

    A picture is held whole, as uint8 (300 MB for 10,000 x 10,000 pixels); beside it are two or
    three tiles and the masks, as run lengths. Masks of two tiles are one where their IoU in what
    the tiles share is above `merge_iou`, which joins what a tile's border cuts and suppresses what
    two tiles have found; of a thing that one tile has whole, that tile's mask is kept. A mask that
    nothing continues stays as it is. A thing that has no pixel where tiles overlap, or that one
    tile sees as one and the other as several, is not joined. A picture no larger than a tile has
    the generator's own masks.

    Args:
      generator: of a tile's masks, of any output mode; its thresholds and grid are for one tile.
      tile: pixels of the picture along a side of a tile.
      overlap: what neighbours share at least, as a share of `tile` in 0..0.5. A thing is found
        whole if it is smaller than that.
      merge_iou: in 0..1.
      output_mode: "coco_rle", "uncompressed_rle" or "binary_mask", the last in pictures of at most
        2**24 pixels.
      progress: show a progress bar when it takes more than two seconds.

    Raises `ValueError` naming the argument that is out of range.
    """

    def __init__(
        self,
        generator: GeneratesMany,
        *,
        tile: int = 1024,
        overlap: float = 0.25,
        merge_iou: float = 0.7,
        output_mode: str = "coco_rle",
        progress: bool = False,
    ):
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode is {output_mode!r}; use one of {OUTPUT_MODES}.")
        if not 0 <= merge_iou <= 1:
            raise ValueError(f"merge_iou is {merge_iou}; it is an IoU in [0, 1].")
        tile_boxes((1, 1), tile, overlap)
        self.generator = generator
        self.tile = tile
        self.overlap = overlap
        self.merge_iou = merge_iou
        self.output_mode = output_mode
        self.progress = progress

    def generate(self, image: Source) -> list[dict[str, Any]]:
        """Segments everything in a picture: a file, or an array as `SamPredictor.set_image` takes.

        Returns one record for each mask with the keys of `SamAutomaticMaskGenerator.generate`, in
        the whole picture's coordinates. A mask joined of several tiles' has the points of all of
        them, their scores averaged by area, and the box around their crops as `crop_box`.

        Raises what `read_image` raises, and `ValueError` for a picture of 2**32 pixels or more, or
        one that is too large for "binary_mask".
        """
        return self._segmented(read_image(image)).records

    def generate_many(
        self, images: Iterable[Source], *, yield_errors: bool = False
    ) -> Generator[Segmented | Exception, None, None]:
        """`generate` for one picture after the other, with the picture as it was read.

        Yields as `SamAutomaticMaskGenerator.generate_many` does. Within a picture the next tile is
        encoded while one is decoded; the next picture is not begun.
        """
        for source in images:
            try:
                found: Segmented | Exception = self._segmented(read_image(source))
            except Exception as error:
                if not yield_errors:
                    raise
                found = error
            yield found

    def _segmented(self, image: UInt8[np.ndarray, "H W 3"]) -> Segmented:
        height, width, _ = image.shape
        pixels = height * width
        if pixels > LARGEST_FRAME:
            raise ValueError(
                f"the picture has {width} x {height} pixels; COCO's run lengths count up to "
                f"{LARGEST_FRAME}. Cut it into several."
            )
        if self.output_mode == "binary_mask" and pixels > MOST_PIXELS_OF_BITMAPS:
            raise ValueError(
                f"output_mode 'binary_mask' is for pictures of at most {MOST_PIXELS_OF_BITMAPS} "
                f"pixels, and this one has {width} x {height}, {pixels} bytes for each mask; use "
                "'coco_rle', and decode the masks that are wanted with samjax.postprocess."
            )
        boxes = tile_boxes((height, width), self.tile, self.overlap)
        joining = Joining(boxes, self.merge_iou)
        tiles = (image[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes)
        bar = tqdm(total=len(boxes), unit="tile", delay=2, leave=None, disable=not self.progress)
        with bar, contextlib.closing(self.generator.generate_many(tiles)) as found:
            for i, one in enumerate(found):
                if isinstance(one, Exception):
                    raise one
                joining.add(i, one.records)
                bar.update()
        return Segmented(image, joining.records((height, width), self.output_mode))
