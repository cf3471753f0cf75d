"""MobileSAM's image encoder: TinyViT and SAM's neck.

TinyViT is Wu et al. 2022, section 3.2; MobileSAM (Zhang et al. 2023, section 3.2) leaves the last
stage at the resolution of the third. Reference: `TinyViT` in `mobile_sam`.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import Dtype
from samjax.models.conv_norm import Convolution, FrozenBatchNorm, Pointwise, UnfoldedConv
from samjax.models.depthwise import DepthwiseConv
from samjax.models.image_encoder import Neck, merge_windows, split_windows
from samjax.models.layers import Buffer, LayerNorm, Mlp, gelu, linear
from samjax.models.products import at_least_float32
from samjax.models.tiny_vit_config import TinyViTConfig
from samjax.models.window_attention import attend_in_windows, distance_bias

MERGE_STRIDES = (2, 2, 1)
"""From one stage to the next."""


class ImageEncoderTinyViT(nnx.Module):
    """Pictures to image embeddings: patches, four stages, neck."""

    def __init__(self, cfg: TinyViTConfig, *, dtype: Dtype = "float32", rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.patch_embed = PatchEmbed(cfg.widths[0], **kw)
        self.stages = nnx.List([Stage(cfg, stage, **kw) for stage in range(4)])
        self.classifier = Classifier(cfg.widths[-1], cfg.num_classes)
        self.neck = Neck(cfg.widths[-1], cfg.out_channels, **kw)
        self.dtype = dtype

    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B H W D"]:
        """Normalized, zero-padded pictures to embeddings with a sixteenth of the side.

        They are float32 where the computation is in half precision.
        """
        return self.with_early_features(images)[0]

    def with_early_features(
        self, images: Float[Array, "B S S 3"]
    ) -> tuple[Float[Array, "B H W D"], Float[Array, "B H W C"]]:
        """The embeddings, and what the second stage hands on to the third."""
        _, early, _, last = self.features(images)
        return at_least_float32(self.neck(last)), early

    def features(self, images: Float[Array, "B S S 3"]) -> tuple[Float[Array, "B _ _ _"], ...]:
        """What each stage hands on: the first three as the next one takes it."""
        x = self.patch_embed(images.astype(self.dtype))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)


class Classifier(nnx.Module):
    """Of the ImageNet classes, from TinyViT's training. It is kept, and nothing uses it."""

    def __init__(self, width: int, num_classes: int):
        self.norm_scale = Buffer(jnp.ones(width))
        self.norm_bias = Buffer(jnp.zeros(width))
        self.kernel = Buffer(jnp.zeros((width, num_classes)))
        self.bias = Buffer(jnp.zeros(num_classes))


class ConvNorm(nnx.Module):
    """A convolution and the batch norm after it (reference: `Conv2d_BN`)."""

    def __init__(self, conv: Convolution, width: int, *, dtype: Dtype):
        self.conv = conv
        self.norm = FrozenBatchNorm(width, epsilon=1e-5, counted=True, dtype=dtype)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        return self.norm(self.conv, x)


def pointwise(d_in: int, d_out: int, *, dtype: Dtype, rngs: nnx.Rngs) -> ConvNorm:
    return ConvNorm(Pointwise(d_in, d_out, dtype=dtype, rngs=rngs), d_out, dtype=dtype)


def depthwise(width: int, *, stride: int = 1, dtype: Dtype, rngs: nnx.Rngs) -> ConvNorm:
    conv = DepthwiseConv(width, 3, stride=stride, padding=1, dtype=dtype, rngs=rngs)
    return ConvNorm(conv, width, dtype=dtype)


class PatchEmbed(nnx.Module):
    """To a quarter of the side, by two convolutions."""

    def __init__(self, width: int, *, dtype: Dtype, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(stride=2, padding=1, dtype=dtype, rngs=rngs)
        half = width // 2
        self.conv1 = ConvNorm(UnfoldedConv(3, half, 3, **kw), half, dtype=dtype)
        self.conv2 = ConvNorm(UnfoldedConv(half, width, 3, **kw), width, dtype=dtype)

    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B H W D"]:
        return self.conv2(gelu(self.conv1(images)))


class Stage(nnx.Module):
    """Blocks at one resolution, and what leads to the next."""

    def __init__(self, cfg: TinyViTConfig, stage: int, *, dtype: Dtype, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        width = cfg.widths[stage]
        self.blocks = nnx.List(
            [
                Block(cfg, stage, **kw) if stage else MbConv(width, cfg.expansion * width, **kw)
                for _ in range(cfg.depths[stage])
            ]
        )
        last = stage == len(cfg.widths) - 1
        self.merge = (
            None if last else Merge(width, cfg.widths[stage + 1], MERGE_STRIDES[stage], **kw)
        )

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        for block in self.blocks:
            x = block(x)
        return x if self.merge is None else self.merge(x)


class MbConv(nnx.Module):
    """Wider by a 1x1 convolution, depthwise, narrower again, beside the identity."""

    def __init__(self, width: int, hidden: int, *, dtype: Dtype, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.expand = pointwise(width, hidden, **kw)
        self.depthwise = depthwise(hidden, **kw)
        self.project = pointwise(hidden, width, **kw)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        y = gelu(self.depthwise(gelu(self.expand(x))))
        return gelu(x + self.project(y))


class Merge(nnx.Module):
    """To other channels and a coarser grid (reference: `PatchMerging`)."""

    def __init__(self, d_in: int, d_out: int, stride: int, *, dtype: Dtype, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.conv1 = pointwise(d_in, d_out, **kw)
        self.conv2 = depthwise(d_out, stride=stride, **kw)
        self.conv3 = pointwise(d_out, d_out, **kw)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        return self.conv3(gelu(self.conv2(gelu(self.conv1(x)))))


class Block(nnx.Module):
    """Attention in windows, a depthwise convolution, MLP (reference: `TinyViTBlock`)."""

    def __init__(self, cfg: TinyViTConfig, stage: int, *, dtype: Dtype, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        width = cfg.widths[stage]
        self.attn = WindowAttention(
            width, cfg.num_heads[stage - 1], cfg.window_sizes[stage - 1], **kw
        )
        self.local_conv = depthwise(width, **kw)
        self.norm = LayerNorm(width, epsilon=1e-5, dtype=dtype)
        self.mlp = Mlp(width, cfg.mlp_ratio * width, gelu, **kw)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        x = self.local_conv(x + self.attn(x))
        return x + self.mlp(self.norm(x))


class WindowAttention(nnx.Module):
    """Multi-head self-attention within windows, with a bias for each distance (reference:
    `Attention`).

    The outputs of `qkv` are query, key and value of the first head, then of the second, and so on.
    """

    def __init__(
        self, width: int, num_heads: int, window_size: int, *, dtype: Dtype, rngs: nnx.Rngs
    ):  # fmt: skip
        self.norm = LayerNorm(width, epsilon=1e-5, dtype=dtype)
        self.qkv = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = linear(width, width, dtype=dtype, rngs=rngs)
        self.attention_biases = nnx.Param(jnp.zeros((num_heads, window_size**2)))
        self.num_heads = num_heads
        self.window_size = window_size

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        """Zeros fill the windows that stick out of the grid, and attend: normalized, they are the
        bias of the norm, and only one of them has to be projected."""
        batch, height, width, _ = x.shape
        window = self.window_size
        qkv = self.qkv(self.norm(x))
        filler = self.qkv(self.norm.bias[...])
        below, right = -height % window, -width % window
        qkv = _fill(_fill(qkv, filler, 1, below), filler, 2, right)
        windows = split_windows(qkv, window)
        windows = windows.reshape(len(windows), window**2, self.num_heads, 3, -1)
        bias = distance_bias(self.attention_biases[...], window).astype(qkv.dtype)
        out = attend_in_windows(windows, bias)
        out = out.reshape(len(windows), window, window, -1)
        return self.proj(merge_windows(out, x.shape))


def _fill(
    x: Float[Array, "B H W D"], filler: Float[Array, "D"], axis: int, number: int
) -> Float[Array, "B h w D"]:
    """`number` more places at the end of `axis`."""
    shape = (*x.shape[:axis], number, *x.shape[axis + 1 :])
    return jnp.concatenate([x, jnp.broadcast_to(filler, shape)], axis) if number else x
