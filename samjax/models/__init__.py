"""Flax NNX modules: pure, without I/O, jit or state. Layouts are NHWC, points (x, y)."""

from samjax.models.config import (
    EfficientNetLiteConfig,
    EverythingThresholds,
    ImageEncoderViTConfig,
    SamConfig,
    TinyViTConfig,
)
from samjax.models.efficientnet_lite import ImageEncoderEfficientNetLite
from samjax.models.image_encoder import ImageEncoderViT
from samjax.models.layers import Buffer
from samjax.models.mask_decoder import MaskDecoder
from samjax.models.prompt_encoder import PromptEncoder
from samjax.models.sam import Sam
from samjax.models.tiny_vit import ImageEncoderTinyViT
from samjax.models.transformer import TwoWayTransformer

__all__ = [
    "Buffer",
    "EfficientNetLiteConfig",
    "EverythingThresholds",
    "ImageEncoderEfficientNetLite",
    "ImageEncoderTinyViT",
    "ImageEncoderViT",
    "ImageEncoderViTConfig",
    "MaskDecoder",
    "PromptEncoder",
    "Sam",
    "SamConfig",
    "TinyViTConfig",
    "TwoWayTransformer",
]
