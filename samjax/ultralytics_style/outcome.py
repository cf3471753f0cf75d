"""`Boxes` and `Masks`: what was found in one picture, an entry for each mask."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from samjax.postprocess import Rle, mask_to_polygon, rle_to_mask
from samjax.ultralytics_style.host_array import HostArray, host


class Boxes:
    """Boxes of masks, in pixels of the picture, with their scores and object numbers.

    The box of a mask goes from its first to its last pixel, as Meta's does: x1 - x0 is one less
    than the number of columns. An empty mask has the box (0, 0, 0, 0).

    Attributes:
      data: (N, 6) float32: x0, y0, x1, y1, predicted IoU, object.
      orig_shape: (height, width) of the picture.
    """

    id = None
    is_track = False

    def __init__(self, data: Float[np.ndarray, "N 6"], orig_shape: tuple[int, int]):
        self.data = host(data)
        self.orig_shape = orig_shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> "Boxes":
        return Boxes(self.data[rows(index, len(self))], self.orig_shape)

    def __iter__(self) -> Iterator["Boxes"]:
        return (self[i] for i in range(len(self)))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def xyxy(self) -> HostArray:
        """(N, 4): x0, y0, x1, y1."""
        return host(self.data[:, :4])

    @property
    def conf(self) -> HostArray:
        """(N,) predicted IoU of each mask. The model's estimate: it may be a little above 1."""
        return host(self.data[:, 4])

    @property
    def cls(self) -> HostArray:
        """(N,) which prompt a mask answers, from 0; in everything its place in the list."""
        return host(self.data[:, 5])

    @property
    def xywh(self) -> HostArray:
        """(N, 4): x and y of the centre, width, height."""
        low, high = self.data[:, :2], self.data[:, 2:4]
        return host(np.concatenate([(low + high) / 2, high - low], axis=1))

    @property
    def xyxyn(self) -> HostArray:
        """`xyxy` as shares of the picture's width and height."""
        return self.xyxy / _scale(self.orig_shape, 2)

    @property
    def xywhn(self) -> HostArray:
        """`xywh` as shares of the picture's width and height."""
        return self.xywh / _scale(self.orig_shape, 2)

    def cpu(self) -> "Boxes":
        return self

    def numpy(self) -> "Boxes":
        return self


class Masks:
    """Masks at the picture's own resolution, held as run lengths and unpacked when asked for.

    Attributes:
      rles: compressed run lengths, one for each mask.
      orig_shape: (height, width) of the picture.
      logits: (N, h, w) float32 at the model's low resolution, which `masks=` of another call
        takes; None for masks of everything.
      stability_scores: (N,) float32 for masks of everything, otherwise None.
    """

    def __init__(
        self,
        rles: list[Rle],
        orig_shape: tuple[int, int],
        *,
        logits: Float[np.ndarray, "N h w"] | None = None,
        stability_scores: Float[np.ndarray, "N"] | None = None,
    ):
        self.rles = rles
        self.orig_shape = orig_shape
        self.logits = None if logits is None else host(logits)
        self.stability_scores = None if stability_scores is None else host(stability_scores)

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, index: Any) -> "Masks":
        chosen = rows(index, len(self))
        return Masks(
            [self.rles[i] for i in chosen],
            self.orig_shape,
            logits=None if self.logits is None else self.logits[chosen],
            stability_scores=(
                None if self.stability_scores is None else self.stability_scores[chosen]
            ),
        )

    def __iter__(self) -> Iterator["Masks"]:
        return (self[i] for i in range(len(self)))

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.orig_shape)

    @property
    def data(self) -> HostArray:
        """(N, height, width) bool. Unpacked anew each time: keep it where it is used often."""
        unpacked = np.zeros(self.shape, bool)
        for i, rle in enumerate(self.rles):
            unpacked[i] = rle_to_mask(rle)
        return host(unpacked)

    @property
    def xy(self) -> list[HostArray]:
        """A polygon (K, 2) for each mask, in pixels; parts and holes are bridged
        (`samjax.postprocess.mask_to_polygon`). An empty mask has no points."""
        return [host(mask_to_polygon(rle_to_mask(rle))) for rle in self.rles]

    @property
    def xyn(self) -> list[HostArray]:
        """`xy` as shares of the picture's width and height."""
        return [polygon / _scale(self.orig_shape, 1) for polygon in self.xy]

    def cpu(self) -> "Masks":
        return self

    def numpy(self) -> "Masks":
        return self


def rows(index: Any, count: int) -> np.ndarray:
    """Row numbers that an integer, slice, list or array chooses; at least one axis, as boxes have.

    Raises `IndexError` for rows that are not there.
    """
    return np.atleast_1d(np.arange(count)[index])


def _scale(size: tuple[int, int], times: int) -> np.ndarray:
    return np.array([size[1], size[0]] * times, np.float32)
