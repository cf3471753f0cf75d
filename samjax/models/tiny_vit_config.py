"""The description of MobileSAM's image encoder."""

import dataclasses

from samjax.models.sizes import check_divides


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyViTConfig:
    """TinyViT (Wu et al. 2022, section 3.2) with SAM's neck, as in MobileSAM (Zhang et al. 2023).

    Four stages at strides 4, 8, 16 and 16, of `depths` blocks and `widths` channels. The first is
    convolutional. The blocks of the others attend within windows of `window_sizes` places, with
    `num_heads`. `image_size` is in pixels and has to be a multiple of 16; no array's shape depends
    on it. `num_classes` is the size of a classifier that nothing uses, and the published file
    holds. The defaults are the published TinyViT-5M. Raises `ValueError` for sizes that do not fit
    together.
    """

    image_size: int = 1024
    widths: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (4, 5, 10)
    window_sizes: tuple[int, ...] = (7, 14, 7)
    expansion: int = 4
    """How much wider the first stage's blocks are inside."""
    mlp_ratio: int = 4
    """How much wider the MLPs of the others are inside."""
    out_channels: int = 256
    num_classes: int = 1000

    def __post_init__(self):
        check_divides("image_size", self.image_size, "the coarsest stride", self.output_stride)
        for name, length in (("widths", 4), ("depths", 4), ("num_heads", 3), ("window_sizes", 3)):
            sizes = getattr(self, name)
            if len(sizes) != length or min(sizes) < 1:
                raise ValueError(f"{name} is {sizes}; it has to be {length} numbers of at least 1.")
        check_divides("widths[0]", self.widths[0], "half of it goes first", 2)
        for stage, heads in enumerate(self.num_heads, start=1):
            check_divides(f"widths[{stage}]", self.widths[stage], "num_heads", heads)
        for name in ("expansion", "mlp_ratio", "out_channels", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1.")

    @property
    def output_stride(self) -> int:
        return 16

    @property
    def early_width(self) -> int:
        """Channels of the features that an HQ model fuses."""
        return self.widths[2]

    @property
    def grid_size(self) -> int:
        """Side of the image embedding."""
        return self.image_size // self.output_stride
