"""The ViT image encoder (Segment Anything, appendix A; reference: `ImageEncoderViT`)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from samjax.models.attention import attend
from samjax.models.config import Dtype, ImageEncoderViTConfig
from samjax.models.layers import LayerNorm, Mlp, conv, gelu, linear
from samjax.models.products import at_least_float32


class ImageEncoderViT(nnx.Module):
    """Pictures to image embeddings: patches, transformer blocks, neck."""

    def __init__(self, cfg: ImageEncoderViTConfig, *, dtype: Dtype = "float32", rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        grid = cfg.grid_size
        init = nnx.initializers.truncated_normal(0.02)
        self.patch_embed = conv(3, cfg.width, cfg.patch_size, stride=cfg.patch_size, **kw)
        self.pos_embed = nnx.Param(init(rngs.params(), (1, grid, grid, cfg.width), jnp.float32))
        self.blocks = nnx.List([Block(cfg, layer, **kw) for layer in range(cfg.depth)])
        self.neck = Neck(cfg.width, cfg.out_channels, **kw)
        self.first_global = min(cfg.global_layers, default=cfg.depth - 1)
        self.dtype = dtype

    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B H W D"]:
        """Normalized, zero-padded pictures to embeddings with a `patch_size`-th of the side.

        They are float32 where the computation is in half precision.
        """
        return self.with_early_features(images)[0]

    def with_early_features(
        self, images: Float[Array, "B S S 3"]
    ) -> tuple[Float[Array, "B H W D"], Float[Array, "B H W C"]]:
        """The embeddings, and what leaves the first block that attends over the whole picture (of
        one without such a block, the last)."""
        x_BHWD = self.patch_embed(images.astype(self.dtype))
        x_BHWD = x_BHWD + self.pos_embed[...].astype(self.dtype)
        for layer, block in enumerate(self.blocks):
            x_BHWD = block(x_BHWD)
            if layer == self.first_global:
                early_BHWD = x_BHWD
        return at_least_float32(self.neck(x_BHWD)), early_BHWD


class Neck(nnx.Module):
    """Brings the transformer's channels to the decoder's."""

    def __init__(self, width: int, channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.conv1 = conv(width, channels, 1, bias=False, **kw)
        self.norm1 = LayerNorm(channels, epsilon=1e-6, dtype=dtype)
        self.conv2 = conv(channels, channels, 3, bias=False, **kw)
        self.norm2 = LayerNorm(channels, epsilon=1e-6, dtype=dtype)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))


class Block(nnx.Module):
    """One pre-norm transformer block, over windows or over the whole picture."""

    def __init__(
        self, cfg: ImageEncoderViTConfig, layer: int, *, dtype: Dtype, rngs: nnx.Rngs
    ):  # fmt: skip
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.window_size = None if layer in cfg.global_layers else cfg.window_size
        self.norm1 = LayerNorm(cfg.width, epsilon=1e-6, dtype=dtype)
        self.attn = RelativePositionAttention(cfg, cfg.attention_size(layer), **kw)
        self.norm2 = LayerNorm(cfg.width, epsilon=1e-6, dtype=dtype)
        self.mlp = Mlp(cfg.width, cfg.mlp_width, gelu, products=cfg.products, **kw)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        x = x + self.attn(self.norm1(x), self.window_size)
        return x + self.mlp(self.norm2(x))


class RelativePositionAttention(nnx.Module):
    """Multi-head self-attention with decomposed relative positions (MViTv2, section 4.1).

    The bias of a query for a key is q . R_h[their row offset] + q . R_w[their column offset],
    with the query as it is, before it is scaled.
    """

    def __init__(
        self, cfg: ImageEncoderViTConfig, size: int, *, dtype: Dtype, rngs: nnx.Rngs
    ):  # fmt: skip
        kw: dict[str, Any] = dict(products=cfg.products, dtype=dtype, rngs=rngs)
        self.qkv = linear(cfg.width, 3 * cfg.width, **kw)
        self.proj = linear(cfg.width, cfg.width, **kw)
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * size - 1, cfg.head_dim)))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * size - 1, cfg.head_dim)))
        self.num_heads = cfg.num_heads
        self.program = cfg.attention

    def __call__(
        self, x_BHWD: Float[Array, "B H W D"], window_size: int | None = None
    ) -> Float[Array, "B H W D"]:
        """Attends over the whole grid, or within windows.

        Windows that stick out of the grid are filled with zeros before the projection, of which
        the bias remains: so only real places are projected.
        """
        qkv = self.qkv.without_bias(x_BHWD)
        if window_size is not None:
            qkv = split_windows(qkv, window_size)
        qkv = self.qkv.plus_bias(qkv)
        qkv = qkv.reshape(*qkv.shape[:-1], 3, self.num_heads, -1)
        r_h = relative_positions(self.rel_pos_h[...], qkv.shape[1]).astype(qkv.dtype)
        r_w = relative_positions(self.rel_pos_w[...], qkv.shape[2]).astype(qkv.dtype)
        out = attend(qkv, r_h, r_w, self.program)
        out = out.reshape(*out.shape[:3], -1)
        if window_size is not None:
            out = merge_windows(out, x_BHWD.shape)
        return self.proj(out)


def relative_positions(
    table: Float[Array | np.ndarray, "L d"], size: int
) -> Float[Array, "size size d"]:
    """Rows of `table` by the offset of a query (first axis) from a key (second axis).

    A table for another size is brought to `2 * size - 1` rows by linear interpolation
    (reference: `get_rel_pos`).
    """
    table = jnp.asarray(table)
    length = 2 * size - 1
    if table.shape[0] != length:
        table = jax.image.resize(table, (length, table.shape[1]), "linear", antialias=False)
    return table[_offsets(size)]


def _offsets(size: int) -> Int[np.ndarray, "size size"]:
    return np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1


def split_windows(x: Float[Array, "B H W D"], window: int) -> Float[Array, "BW w w D"]:
    """Cuts into `window` x `window` pieces; zeros fill the last ones, and do attend."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // window), -(-width // window)
    x = jnp.pad(x, ((0, 0), (0, rows * window - height), (0, columns * window - width), (0, 0)))
    x = x.reshape(batch, rows, window, columns, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window, window, channels)


def merge_windows(
    windows: Float[Array, "BW w w D"], shape: tuple[int, ...]
) -> Float[Array, "B H W D"]:
    """The inverse of `split_windows`: `shape` is that of the array before it was cut."""
    batch, height, width, channels = shape
    window = windows.shape[1]
    rows, columns = -(-height // window), -(-width // window)
    x = windows.reshape(batch, rows, columns, window, window, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * window, columns * window, channels)
    return x[:, :height, :width]
