"""The description of a YOLOv8."""

import dataclasses
from typing import Any, Literal

from samjax.models.config import Dtype, from_fields
from samjax.models.sizes import check_divides

Size = Literal["n", "s", "m", "l", "x"]
Task = Literal["detect", "segment", "obb"]

STRIDES = (8, 16, 32)
"""Of the three grids that the head predicts at."""

_PUBLISHED: dict[Size, tuple[float, float, int]] = {
    "n": (1 / 3, 1 / 4, 1024),
    "s": (1 / 3, 1 / 2, 1024),
    "m": (2 / 3, 3 / 4, 768),
    "l": (1, 1, 512),
    "x": (1, 5 / 4, 512),
}
"""Of each published size: depth and width as shares of those of l, and the most channels before
that share is taken."""

_WIDTHS = (64, 128, 256, 512, 1024)
_DEPTHS = (3, 6, 6, 3)
_PROTOTYPE_WIDTH = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class YoloConfig:
    """A YOLOv8 (Jocher et al. 2023), by the sizes that its arrays have.

    `widths` are the channels at strides 2, 4, 8, 16 and 32, `depths` the bottlenecks at strides 4
    to 32, `neck_depth` those of each of the neck's four blocks. Each side of a box is a
    distribution over `reg_max` distances (generalized focal loss, Li et al. 2020). A "segment"
    model has `mask_channels` prototypes of masks (YOLACT, Bolya et al. 2019), an "obb" model an
    angle for each box. `dtype` is what is computed in. The defaults are those of YOLOv8n on COCO.
    Raises `ValueError` for sizes that do not fit together.
    """

    task: Task = "detect"
    num_classes: int = 80
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    depths: tuple[int, ...] = (1, 2, 2, 1)
    neck_depth: int = 1
    reg_max: int = 16
    mask_channels: int = 32
    prototype_width: int = 64
    dtype: Dtype = "float32"

    def __post_init__(self):
        if self.task not in ("detect", "segment", "obb"):
            raise ValueError(f"task is {self.task!r}; use 'detect', 'segment' or 'obb'.")
        for name, length in (("widths", 5), ("depths", 4)):
            sizes = getattr(self, name)
            if len(sizes) != length or min(sizes) < 1:
                raise ValueError(f"{name} is {sizes}; it has to be {length} numbers of at least 1.")
        for i, width in enumerate(self.widths):
            check_divides(f"widths[{i}]", width, "half of it goes first", 2)
        for name in ("num_classes", "neck_depth", "reg_max", "mask_channels", "prototype_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1.")

    @classmethod
    def published(cls, size: Size, task: Task = "detect", num_classes: int = 80) -> "YoloConfig":
        """A published size. Raises `ValueError` for another letter."""
        if size not in _PUBLISHED:
            raise ValueError(f"size is {size!r}; use one of {', '.join(_PUBLISHED)}.")
        depth, width, most = _PUBLISHED[size]
        neck = max(1, round(_DEPTHS[0] * depth))
        return cls(
            task=task,
            num_classes=num_classes,
            widths=tuple(_eights(min(w, most) * width) for w in _WIDTHS),
            depths=tuple(max(1, round(d * depth)) for d in _DEPTHS),
            neck_depth=neck,
            prototype_width=_eights(min(_PROTOTYPE_WIDTH, most) * width),
        )

    @property
    def name(self) -> str | None:
        """Of a published size, such as "YOLOv8n-seg", whatever its classes; None for others."""
        suffix = {"detect": "", "segment": "-seg", "obb": "-obb"}[self.task]
        for size in _PUBLISHED:
            published = self.published(size, self.task, self.num_classes)
            if dataclasses.replace(published, dtype=self.dtype) == self:
                return f"YOLOv8{size}{suffix}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "YoloConfig":
        """Raises `ValueError` that names the fields which are unknown."""
        return from_fields(cls, values)

    @property
    def grid_widths(self) -> tuple[int, ...]:
        """Channels of the features that the head sees, at `STRIDES`."""
        return self.widths[2:]

    @property
    def box_width(self) -> int:
        return max(16, self.widths[2] // 4, 4 * self.reg_max)

    @property
    def class_width(self) -> int:
        return max(self.widths[2], min(self.num_classes, 100))

    @property
    def extras(self) -> int:
        """Numbers of a place beside its box and classes: mask coefficients, or the angle."""
        return {"detect": 0, "segment": self.mask_channels, "obb": 1}[self.task]

    @property
    def extra_width(self) -> int:
        return max(self.widths[2] // 4, self.extras)


def _eights(width: float) -> int:
    return -(-int(width) // 8) * 8
