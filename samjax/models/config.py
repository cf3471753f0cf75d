"""Frozen descriptions of the models. A config holds every choice that shapes a module."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from samjax.models.sizes import check_divides
from samjax.models.tiny_vit_config import TinyViTConfig
from samjax.models.vit_config import ImageEncoderViTConfig, Products

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]
"""What a model computes in. "int8" is a ViT's products in 8-bit integers and all else in
bfloat16."""

NECK_HEADS = 4
"""Of the attention in an EfficientNet-Lite's neck."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientNetLiteConfig:
    """EfficientNet-Lite (Tan and Le 2019, table 1) and a neck that sums its coarse features.

    Seven stages of `stage_depths` blocks that end in `stage_widths` channels, after a first
    convolution to `stem_width`; kernels, strides and expansion are the same in every variant. The
    embedding's side is an `output_stride`-th (4, 8, 16 or 32) of `image_size`, which is in pixels
    and has to be a multiple of 32. The defaults are Lite0. Raises `ValueError` for sizes that do
    not fit together.
    """

    image_size: int = 512
    stem_width: int = 32
    stage_depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    stage_widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    output_stride: int = 8
    out_channels: int = 256
    neck_depth: int = 3
    neck_mlp_width: int = 256
    neck_attention: bool = False
    """Whether the neck's blocks look at the whole picture, with `NECK_HEADS` heads."""
    detail_strides: tuple[int, ...] = ()
    """Strides finer than `output_stride`, of 2, 4 and 8, whose features the embedding has too."""

    def __post_init__(self):
        check_divides("image_size", self.image_size, "the coarsest stride", 32)
        if self.output_stride not in (4, 8, 16, 32):
            raise ValueError(f"output_stride is {self.output_stride}; use 4, 8, 16 or 32.")
        for name in ("stage_depths", "stage_widths"):
            sizes = getattr(self, name)
            if len(sizes) != 7 or min(sizes) < 1:
                raise ValueError(f"{name} is {sizes}; it has to be 7 numbers of at least 1.")
        finer = [stride for stride in (2, 4, 8) if stride < self.output_stride]
        if not set(self.detail_strides) <= set(finer):
            raise ValueError(
                f"detail_strides is {self.detail_strides}; with output_stride "
                f"{self.output_stride} it can have {finer}."
            )
        for name in ("stem_width", "out_channels", "neck_depth", "neck_mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1.")
        if self.neck_attention:
            check_divides(
                "out_channels", self.out_channels, "the heads of neck_attention", NECK_HEADS
            )

    @property
    def grid_size(self) -> int:
        """Side of the image embedding."""
        return self.image_size // self.output_stride

    @property
    def early_width(self) -> None:
        """It hands out no early features for an HQ model."""

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """Channels of the features that are summed, those of stride `output_stride` first."""
        by_stride = {4: 1, 8: 2, 16: 4, 32: 6}
        return tuple(
            self.stage_widths[stage]
            for stride, stage in by_stride.items()
            if stride >= self.output_stride
        )

    @property
    def details(self) -> tuple[tuple[int, int], ...]:
        """Of the features in `detail_strides`, pixels on a cell's side, and channels."""
        widths = dict(zip((2, 4, 8), self.stage_widths, strict=False))
        return tuple((self.output_stride // s, widths[s]) for s in self.detail_strides)

    @classmethod
    def lite0(cls, **changes: Any) -> "EfficientNetLiteConfig":
        return cls(**changes)

    @classmethod
    def lite1(cls, **changes: Any) -> "EfficientNetLiteConfig":
        return cls(**{"stage_depths": (1, 3, 3, 4, 4, 5, 1)} | changes)

    @classmethod
    def lite2(cls, **changes: Any) -> "EfficientNetLiteConfig":
        widths = (16, 24, 48, 88, 120, 208, 352)
        return cls.lite1(**{"stage_widths": widths} | changes)


ImageEncoderConfig = ImageEncoderViTConfig | TinyViTConfig | EfficientNetLiteConfig

_LITE_PIXELS: dict[str, Any] = {
    "pixel_mean": (127.0, 127.0, 127.0),
    "pixel_std": (128.0, 128.0, 128.0),
}
_KINDS: dict[str, type] = {
    "vit": ImageEncoderViTConfig,
    "tiny_vit": TinyViTConfig,
    "efficientnet_lite": EfficientNetLiteConfig,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Segment Anything: an image encoder, the prompt encoder and the two-way mask decoder.

    The type of `image_encoder` says which one it is. `dtype` is what the modules compute in;
    parameters keep the type they have. "float64" needs `jax_enable_x64`. `pixel_mean` and
    `pixel_std` are RGB in 0..255. `mask_threshold` is the logit above which a pixel is mask.
    """

    image_encoder: ImageEncoderConfig = ImageEncoderViTConfig()
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_width: int = 256
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    mask_threshold: float = 0.0
    dtype: Dtype = "float32"
    hq: bool = False
    """Whether the decoder has HQ-SAM's token, and its features (`samjax.models.hq`)."""
    frame_size: int | None = None
    """Side in pixels of the square whose positions are encoded, if it is not the input: training
    may show a window of the input, somewhere in it."""

    def __post_init__(self):
        check_divides("embed_dim", self.embed_dim, "attention_downsample_rate * decoder_heads",
                       self.attention_downsample_rate * self.decoder_heads)  # fmt: skip
        check_divides("embed_dim", self.embed_dim, "8", 8)
        if self.dtype not in get_args(Dtype):
            raise ValueError(f"dtype is {self.dtype!r}; use one of {get_args(Dtype)}.")
        if self.hq and (self.image_encoder.early_width is None or self.num_multimask_outputs < 1):
            raise ValueError(
                "hq needs features from early in the image encoder and a multimask output; "
                f"num_multimask_outputs is {self.num_multimask_outputs}, and image_encoder is an "
                f"{type(self.image_encoder).__name__}. A ViT with global_layers and a TinyViT have "
                "such features."
            )

    @property
    def embed_dim(self) -> int:
        return self.image_encoder.out_channels

    @property
    def image_size(self) -> int:
        """Side in pixels of the square the image encoder sees."""
        return self.image_encoder.image_size

    @property
    def grid_size(self) -> int:
        return self.image_encoder.grid_size

    @property
    def low_res_size(self) -> int:
        """Side of the low-resolution masks, which are also what a mask prompt has to be."""
        return 4 * self.grid_size

    @property
    def computes_in(self) -> str:
        """For people: the type, and the products if they are of another."""
        products = getattr(self.image_encoder, "products", "float")
        return self.dtype if products == "float" else f"{self.dtype}, products in {products}"

    @property
    def num_mask_tokens(self) -> int:
        return self.num_multimask_outputs + 1

    def replace(self, **changes: Any) -> "SamConfig":
        return dataclasses.replace(self, **changes)

    def at_precision(self, precision: Precision) -> "SamConfig":
        """The same model, computed in that. Raises `ValueError` for "int8" without a ViT."""
        if precision not in get_args(Precision):
            raise ValueError(f"precision is {precision!r}; use one of {get_args(Precision)}.")
        int8 = precision == "int8"
        changed = self.replace(dtype="bfloat16" if int8 else precision)
        if isinstance(self.image_encoder, ImageEncoderViTConfig):
            products: Products = "int8" if int8 else "float"
            encoder = dataclasses.replace(self.image_encoder, products=products)
            return changed.replace(image_encoder=encoder)
        if int8:
            raise ValueError(
                "precision 'int8' is for the products of a ViT, and this model's image encoder is "
                f"an {type(self.image_encoder).__name__}; use 'bfloat16'."
            )
        return changed

    @classmethod
    def vit_b(cls, **changes: Any) -> "SamConfig":
        return cls(image_encoder=ImageEncoderViTConfig(), **changes)

    @classmethod
    def vit_l(cls, **changes: Any) -> "SamConfig":
        encoder = ImageEncoderViTConfig(
            width=1024, depth=24, num_heads=16, mlp_width=4096, global_layers=(5, 11, 17, 23)
        )
        return cls(image_encoder=encoder, **changes)

    @classmethod
    def vit_h(cls, **changes: Any) -> "SamConfig":
        encoder = ImageEncoderViTConfig(
            width=1280, depth=32, num_heads=16, mlp_width=5120, global_layers=(7, 15, 23, 31)
        )
        return cls(image_encoder=encoder, **changes)

    @classmethod
    def vit_t(cls, image_size: int = 1024, **changes: Any) -> "SamConfig":
        """MobileSAM: TinyViT before the published decoder."""
        return cls(**{"image_encoder": TinyViTConfig(image_size=image_size)} | changes)

    @classmethod
    def tiny(cls, image_size: int = 256, **changes: Any) -> "SamConfig":
        """A few thousand parameters in the encoder: for tests and for trying out code."""
        encoder = ImageEncoderViTConfig(
            image_size=image_size, width=32, depth=2, num_heads=2, mlp_width=64, out_channels=32,
            window_size=5, global_layers=(1,),
        )  # fmt: skip
        return cls(image_encoder=encoder, decoder_mlp_width=64, iou_head_width=32, **changes)

    @classmethod
    def nano(cls, image_size: int = 1024, **changes: Any) -> "SamConfig":
        """EfficientNet-Lite0 before the published decoder; pixels are (x - 127) / 128."""
        encoder = EfficientNetLiteConfig.lite0(
            image_size=image_size, output_stride=16, detail_strides=(2, 4, 8), neck_attention=True
        )
        return cls(**_LITE_PIXELS | {"image_encoder": encoder} | changes)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        values = dataclasses.asdict(self)
        kind = next(kind for kind, cls in _KINDS.items() if type(self.image_encoder) is cls)
        return {**values, "image_encoder": {"kind": kind, **values["image_encoder"]}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SamConfig":
        """An image encoder without a kind is a ViT.

        Raises `ValueError` that names the fields, or the kind, which are unknown.
        """
        values = dict(values)
        encoder = dict(values.pop("image_encoder", {}))
        kind = encoder.pop("kind", "vit")
        if kind not in _KINDS:
            raise ValueError(
                f"image_encoder is of kind {kind!r}; this samjax knows {list(_KINDS)}. "
                "Was it saved by a newer one?"
            )
        return from_fields(cls, {**values, "image_encoder": from_fields(_KINDS[kind], encoder)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EverythingThresholds:
    """What suits a model when everything is segmented, under `SamAutomaticMaskGenerator`'s names.

    None where Meta's default does. Raises `ValueError` for what is not a finite number.
    """

    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    stability_score_offset: float | None = None
    box_nms_thresh: float | None = None
    crop_nms_thresh: float | None = None
    min_mask_region_area: float | None = None

    def __post_init__(self):
        for name, value in self.to_dict().items():
            if not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise ValueError(f"{name} is {value!r}; it has to be a finite number.")

    def to_dict(self) -> dict[str, float]:
        """Those that are not None; `from_dict` reads them back."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "EverythingThresholds":
        """Raises `ValueError` that names what a model cannot carry."""
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(
                f"a model carries no {', '.join(unknown)}; this samjax knows {', '.join(names)}."
            )
        return cls(**values)


def from_fields(cls: type, values: dict[str, Any]) -> Any:
    """A config from plain JSON values. Raises `ValueError` that names the fields it has not."""
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown}; was it saved by a newer samjax?")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
