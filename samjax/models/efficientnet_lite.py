"""nano's image encoder: EfficientNet-Lite and a small neck.

The backbone is EfficientNet (Tan and Le 2019, table 1; its blocks are those of MobileNetV2,
section 3) in its Lite form: no squeeze-and-excitation, ReLU6 for swish, a stem and a last stage
that do not grow with the depth multiplier. Names and shapes are those of the public weights.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import NECK_HEADS, Dtype, EfficientNetLiteConfig
from samjax.models.conv_norm import FrozenBatchNorm, Pointwise, UnfoldedConv
from samjax.models.depthwise import DepthwiseConv
from samjax.models.layers import LayerNorm, Mlp, PatchConv, gelu, linear
from samjax.models.products import at_least_float32, dot, float32_dot

KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
EXPANSION = 6
"""Of every stage but the first, which does not expand."""

FIRST_SCALE = 0.1
"""Of the embedding: that of a trained encoder is about as small, and its decoder expects it."""


class ImageEncoderEfficientNetLite(nnx.Module):
    """Pictures to image embeddings: backbone, its last features at one stride, neck."""

    def __init__(self, cfg: EfficientNetLiteConfig, *, dtype: Dtype = "float32", rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.backbone = EfficientNetLite(cfg, **kw)
        self.neck = Neck(cfg, **kw)
        self.dtype = dtype

    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B H W D"]:
        """Pictures as ((x - 127) / 128), zero-padded, to embeddings of an `output_stride`-th side.

        They are float32 where the computation is in half precision.
        """
        return at_least_float32(self.neck(self.backbone(images.astype(self.dtype))))


class EfficientNetLite(nnx.Module):
    """The backbone without its classifier."""

    def __init__(self, cfg: EfficientNetLiteConfig, *, dtype: Dtype = "float32", rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.stem = UnfoldedConv(3, cfg.stem_width, 3, stride=2, **kw)
        self.stem_norm = FrozenBatchNorm(cfg.stem_width, dtype=dtype)
        stages, d_in = [], cfg.stem_width
        for stage, (depth, width) in enumerate(
            zip(cfg.stage_depths, cfg.stage_widths, strict=True)
        ):
            blocks = []
            for block in range(depth):
                blocks.append(
                    MbConv(
                        d_in, width, KERNELS[stage], stride=STRIDES[stage] if block == 0 else 1,
                        expansion=EXPANSION if stage else 1, **kw,
                    )
                )  # fmt: skip
                d_in = width
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)

    def __call__(self, x: Float[Array, "B S S 3"]) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Features of strides 2, 4, 8, 16 and 32: the last ones of that size."""
        x = relu6(self.stem_norm(self.stem, x))
        features = []
        for blocks, stride in zip(self.stages, STRIDES, strict=True):
            if stride > 1:
                features.append(x)
            for block in blocks:
                x = block(x)
        return (*features, x)


class MbConv(nnx.Module):
    """Wider by a 1x1 convolution, depthwise, narrower again (MobileNetV2, figure 4)."""

    def __init__(
        self, d_in: int, d_out: int, size: int, *, stride: int, expansion: int, dtype: Dtype,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        hidden = expansion * d_in
        self.expand = Pointwise(d_in, hidden, **kw) if expansion > 1 else None
        self.expand_norm = FrozenBatchNorm(hidden, dtype=dtype) if expansion > 1 else None
        self.depthwise = DepthwiseConv(hidden, size, stride=stride, **kw)
        self.depthwise_norm = FrozenBatchNorm(hidden, dtype=dtype)
        self.project = Pointwise(hidden, d_out, **kw)
        self.project_norm = FrozenBatchNorm(d_out, dtype=dtype)
        self.residual = stride == 1 and d_in == d_out

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = relu6(self.expand_norm(self.expand, y))
        y = relu6(self.depthwise_norm(self.depthwise, y))
        y = self.project_norm(self.project, y)
        return x + y if self.residual else y


class Neck(nnx.Module):
    """Brings the coarse features to the finest of them, sums, and smooths (Lin et al. 2017).

    Features that are finer than the embedding come as patches of it. They start with zeros.
    """

    def __init__(self, cfg: EfficientNetLiteConfig, *, dtype: Dtype = "float32", rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        channels = cfg.out_channels
        self.details = nnx.List(
            [
                PatchConv(
                    width, channels, (size, size), strides=size, use_bias=False,
                    kernel_init=nnx.initializers.zeros, **kw,
                )
                for size, width in cfg.details
            ]
        )  # fmt: skip
        self.laterals = nnx.List([linear(width, channels, **kw) for width in cfg.feature_widths])
        self.blocks = nnx.List(
            [
                NeckBlock(channels, cfg.neck_mlp_width, attention=cfg.neck_attention, **kw)
                for _ in range(cfg.neck_depth)
            ]
        )
        self.norm = LayerNorm(channels, epsilon=1e-6, dtype=dtype)
        self.norm.scale[...] = jnp.full(channels, FIRST_SCALE)

    def __call__(self, features: tuple[Float[Array, "B _ _ _"], ...]) -> Float[Array, "B H W D"]:
        """`features` go from fine to coarse, each of half the side."""
        used = features[-len(self.laterals) :]
        same_width = [lateral(x) for lateral, x in zip(self.laterals, used, strict=True)]
        x = same_width[-1]
        for finer in reversed(same_width[:-1]):
            x = upsample_twice(x) + finer
        for detail in self.details:
            patch = detail.kernel.shape[0]
            (fine,) = (f for f in features if f.shape[1] == patch * x.shape[1])
            x = x + detail(fine)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class NeckBlock(nnx.Module):
    """Depthwise 5x5, norm and MLP beside the identity (ConvNeXt, figure 4), and before them, with
    `attention`, a look at the whole picture."""

    def __init__(self, width: int, hidden: int, *, attention: bool, dtype: Dtype, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.attn = PooledAttention(width, **kw) if attention else None
        self.depthwise = DepthwiseConv(width, 5, **kw)
        self.norm = LayerNorm(width, epsilon=1e-6, dtype=dtype)
        self.mlp = Mlp(width, hidden, gelu, **kw)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        if self.attn is not None:
            x = x + self.attn(x)
        return x + self.mlp(self.norm(self.depthwise(x)))


POOLED = 4
"""Places on a side of what `PooledAttention` looks at as one."""


class PooledAttention(nnx.Module):
    """Each place looks at the means of 4x4 places (PVT v2, section 3.1: attention whose keys and
    values are averages), so that what is alike in a picture can become alike in its embedding.

    What is like a place is what counts, not where it is: windows of a picture train it for whole
    ones. Its last projection starts with zeros.
    """

    def __init__(self, width: int, *, dtype: Dtype, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=1e-6, dtype=dtype)
        self.q_proj = linear(width, width, **kw)
        self.kv_proj = linear(width, 2 * width, **kw)
        self.out_proj = linear(width, width, **kw)
        self.out_proj.kernel[...] = jnp.zeros((width, width))

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        x = self.norm(x)
        q = self.q_proj(x).reshape(len(x), -1, NECK_HEADS, x.shape[-1] // NECK_HEADS)
        kv = self.kv_proj(pooled(x))
        k, v = jnp.moveaxis(kv.reshape(len(x), -1, 2, *q.shape[2:]), 2, 0)
        logits = float32_dot(functools.partial(jnp.einsum, "bqnd,bknd->bnqk"), q, k)
        weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5).astype(v.dtype)
        context = dot(functools.partial(jnp.einsum, "bnqk,bknd->bqnd"), weights, v)
        return self.out_proj(context.reshape(x.shape))


def pooled(x: Float[Array, "B H W D"]) -> Float[Array, "B h w D"]:
    """Means of `POOLED` x `POOLED` places, or of as many at most as fit a side."""
    batch, height, width, channels = x.shape
    rows, columns = (
        max(n for n in range(1, POOLED + 1) if side % n == 0) for side in (height, width)
    )
    blocks = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return at_least_float32(blocks).mean(axis=(2, 4)).astype(x.dtype)


@jax.custom_vjp
def relu6(x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
    """Between 0 and 6. At both ends the gradient is zero, as torch has it.

    The backward pass knows from the result alone where that is: `x` need not be kept.
    """
    return jnp.clip(x, 0, 6)


def _relu6_forward(x):
    y = jnp.clip(x, 0, 6)
    return y, y


def _relu6_backward(y, gradient):
    return (jnp.where((y > 0) & (y < 6), gradient, jnp.zeros((), gradient.dtype)),)


relu6.defvjp(_relu6_forward, _relu6_backward)


def upsample_twice(x: Float[Array, "B H W D"]) -> Float[Array, "B H2 W2 D"]:
    """Twice the side, bilinear between pixel centres, as torch has it without `align_corners`."""
    return _double(_double(x, 1), 2)


def _double(x: Float[Array, "B H W D"], axis: int) -> Float[Array, "B h w D"]:
    """Each pixel becomes two, each of them a quarter of the way to the neighbour on its side."""
    last = x.shape[axis]
    first_repeated = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last_repeated = jax.lax.slice_in_dim(x, last - 1, last, axis=axis)
    before = jnp.concatenate(
        [first_repeated, jax.lax.slice_in_dim(x, 0, last - 1, axis=axis)], axis
    )
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, last, axis=axis), last_repeated], axis)
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * last, *x.shape[axis + 1 :])
