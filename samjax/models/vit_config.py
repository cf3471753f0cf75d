"""The description of a ViT image encoder."""

import dataclasses
from typing import Literal, get_args

from samjax.models.sizes import check_divides

AttentionProgram = Literal["auto", "whole", "folded", "cudnn", "pieces"]
"""How a ViT's attention is computed; `samjax.models.attention` says what each is for."""
Products = Literal["float", "int8"]
"""What a ViT's projections and MLPs multiply: numbers of the model's `dtype`, or those rounded to
8-bit integers (`samjax.models.products.int8_product`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEncoderViTConfig:
    """A ViTDet-style image encoder (Segment Anything, appendix A; ViTDet, section 3).

    `image_size` and `patch_size` are in pixels, `window_size` in patches. `global_layers` are the
    indices of the blocks that attend over the whole picture; all others attend inside windows.
    Raises `ValueError` for sizes that do not fit together.
    """

    image_size: int = 1024
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    out_channels: int = 256
    window_size: int = 14
    global_layers: tuple[int, ...] = (2, 5, 8, 11)
    attention: AttentionProgram = "auto"
    products: Products = "float"

    def __post_init__(self):
        for name, kind in (("attention", AttentionProgram), ("products", Products)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {get_args(kind)}.")
        check_divides("image_size", self.image_size, "patch_size", self.patch_size)
        check_divides("width", self.width, "num_heads", self.num_heads)
        if self.window_size < 1:
            raise ValueError(
                f"window_size is {self.window_size}; it counts patches and must be at least 1. "
                "To attend over the whole picture, list the block in global_layers."
            )
        outside = [i for i in self.global_layers if not 0 <= i < self.depth]
        if outside:
            raise ValueError(f"global_layers names blocks {outside}; there are {self.depth}.")

    @property
    def grid_size(self) -> int:
        """Patches on a side of the picture, and so the side of the image embedding."""
        return self.image_size // self.patch_size

    @property
    def early_width(self) -> int | None:
        """Channels of the features that an HQ model fuses, those after the first global block."""
        return self.width if self.global_layers else None

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    def attention_size(self, layer: int) -> int:
        """Side, in patches, of the square within which block `layer` attends."""
        return self.grid_size if layer in self.global_layers else self.window_size
