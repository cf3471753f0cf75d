"""`Yolo`: backbone, neck and head."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.products import at_least_float32
from samjax.models.yolo.blocks import (
    Branch,
    C2f,
    ConvSilu,
    Prototypes,
    PyramidPooling,
    Stage,
    doubled,
)
from samjax.models.yolo.config import STRIDES, YoloConfig


class YoloOutputs(NamedTuple):
    """What the head says of `A` places: the grids of strides 8, 16 and 32 one after the other, each
    row by row. `samjax.models.yolo.decode_boxes` makes boxes of it. None where the task has none.
    """

    boxes: Float[Array, "B A R"]
    """Logits of distances to the left, upper, right and lower side, `reg_max` of each."""
    classes: Float[Array, "B A C"]
    """Logits of each class."""
    mask_coefficients: Float[Array, "B A M"] | None = None
    prototypes: Float[Array, "B h w M"] | None = None
    """At stride 4. A mask's logits are its coefficients times these."""
    angles: Float[Array, "B A 1"] | None = None
    """Logits of each box's turn."""


class Yolo(nnx.Module):
    """Pictures to what each place of three grids says about them.

    Pure: no file is read, nothing is compiled. The published weights' batch norms are folded into
    the convolutions (`samjax.convert.yolo`), so that the module has none.
    """

    def __init__(self, cfg: YoloConfig, *, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=cfg.dtype, rngs=rngs)
        self.stem = ConvSilu(3, cfg.widths[0], 3, stride=2, **kw)
        self.stages = nnx.List(
            [
                Stage(d_in, d_out, depth, **kw)
                for d_in, d_out, depth in zip(cfg.widths, cfg.widths[1:], cfg.depths, strict=False)
            ]
        )
        self.pool = PyramidPooling(cfg.widths[-1], **kw)
        self.neck = Neck(cfg, **kw)
        self.head = Head(cfg, **kw)

    def __call__(self, images: Float[Array, "B H W 3"]) -> YoloOutputs:
        """`images` are RGB in 0..1, their sides multiples of 32. Raises `ValueError` for others."""
        coarsest = STRIDES[-1]
        if images.shape[1] % coarsest or images.shape[2] % coarsest:
            raise ValueError(
                f"images are {images.shape[1]} x {images.shape[2]} pixels; both have to be "
                f"multiples of {coarsest}: letterbox them."
            )
        x, features = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.head(self.neck((*features[1:-1], self.pool(x))))


class Neck(nnx.Module):
    """Coarse features to the fine ones, and these back to the coarse (PANet, Liu et al. 2018)."""

    def __init__(self, cfg: YoloConfig, **kw: Any):
        fine, middle, coarse = cfg.grid_widths
        depth = cfg.neck_depth

        def block(d_in: int, d_out: int) -> C2f:
            return C2f(d_in, d_out, depth, residual=False, **kw)

        self.up = nnx.List([block(coarse + middle, middle), block(middle + fine, fine)])
        self.down = nnx.List(
            [ConvSilu(width, width, 3, stride=2, **kw) for width in (fine, middle)]
        )
        self.blocks = nnx.List([block(fine + middle, middle), block(middle + coarse, coarse)])

    def __call__(self, features: tuple[Float[Array, "B _ _ _"], ...]) -> list[Array]:
        fine, middle, coarse = features
        middle = self.up[0](jnp.concatenate([doubled(coarse), middle], axis=-1))
        fine = self.up[1](jnp.concatenate([doubled(middle), fine], axis=-1))
        joined = [fine]
        for down, block, beside in zip(self.down, self.blocks, (middle, coarse), strict=True):
            joined.append(block(jnp.concatenate([down(joined[-1]), beside], axis=-1)))
        return joined


class Head(nnx.Module):
    """A branch for boxes, one for classes and perhaps one more, on each of the three grids."""

    def __init__(self, cfg: YoloConfig, **kw: Any):
        def branches(width: int, d_out: int) -> Any:
            return nnx.List([Branch(d_in, width, d_out, **kw) for d_in in cfg.grid_widths])

        self.boxes = branches(cfg.box_width, 4 * cfg.reg_max)
        self.classes = branches(cfg.class_width, cfg.num_classes)
        self.extras = branches(cfg.extra_width, cfg.extras) if cfg.extras else None
        fine = cfg.grid_widths[0]
        self.prototypes = (
            Prototypes(fine, cfg.prototype_width, cfg.mask_channels, **kw)
            if cfg.task == "segment"
            else None
        )

    def __call__(self, features: list[Float[Array, "B _ _ _"]]) -> YoloOutputs:
        boxes, classes = _joined(self.boxes, features), _joined(self.classes, features)
        if self.extras is None:
            return YoloOutputs(boxes, classes)
        extras = _joined(self.extras, features)
        if self.prototypes is None:
            return YoloOutputs(boxes, classes, angles=extras)
        prototypes = at_least_float32(self.prototypes(features[0]))
        return YoloOutputs(boxes, classes, extras, prototypes)


def _joined(branches: Any, features: list[Array]) -> Float[Array, "B A D"]:
    found = [branch(x) for branch, x in zip(branches, features, strict=True)]
    flat = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in found]
    return at_least_float32(jnp.concatenate(flat, axis=1))
