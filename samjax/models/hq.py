"""What HQ-SAM adds to the mask decoder (Ke et al. 2023, "Segment Anything in High Quality", section
3.2; reference: `segment_anything_hq`'s `MaskDecoderHQ`)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import SamConfig
from samjax.models.layers import LayerNorm, MlpHead, UpscaleFourTimes, conv, gelu, in_order
from samjax.models.products import at_least_float32


class HqBranch(nnx.Module):
    """A token of its own among the decoder's, and the fine features that its mask is made of."""

    def __init__(self, cfg: SamConfig, *, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=cfg.dtype, rngs=rngs)
        width = cfg.embed_dim
        init = nnx.initializers.normal(1.0)
        self.token = nnx.Param(init(rngs.params(), (1, width), jnp.float32))
        self.mlp = MlpHead(width, width, width // 8, 3, **kw)
        self.fusion = HqFusion(cfg, rngs=rngs)
        self.mask_features = MaskFeatures(width // 8, width // 4, **kw)

    def mask(
        self,
        upscaled: Float[Array, "h w E"],
        token: Float[Array, "D"],
        hq_features: Float[Array, "h w E"],
    ) -> Float[Array, "h w"]:
        """The HQ token's logits for one prompt.

        `upscaled` are the decoder's features of the picture, `token` the HQ token after the
        transformer, `hq_features` what `fusion` has made of the picture.
        """
        channels = self.mlp(token)
        of_picture = at_least_float32(hq_features.astype(channels.dtype) @ channels)
        return self.mask_features.weighed(upscaled, channels) + of_picture


class HqFusion(nnx.Module):
    """Early features and the final embedding of a picture, together at four times the side.

    Nothing of a prompt is in it: it is computed once for a picture.
    """

    def __init__(self, cfg: SamConfig, *, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=cfg.dtype, rngs=rngs)
        width, early_width = cfg.embed_dim, cfg.image_encoder.early_width
        assert early_width is not None  # `SamConfig` has seen to it.
        self.upscale_early = UpscaleFourTimes(early_width, width, width // 8, **kw)
        self.upscale_embedding = UpscaleFourTimes(width, width // 4, width // 8, **kw)

    def __call__(
        self,
        image_embeddings: Float[Array, "B H W D"],
        early_features: Float[Array, "B H W C"],
    ) -> Float[Array, "B h w E"]:
        early = self.upscale_early(early_features)
        return at_least_float32(in_order(self.upscale_embedding(image_embeddings) + early))


class MaskFeatures(nnx.Module):
    """Two 3x3 convolutions with a norm and a GELU between them."""

    def __init__(self, width: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.conv1 = conv(width, hidden, 3, **kw)
        self.norm1 = LayerNorm(hidden, epsilon=1e-6, dtype=dtype)
        self.conv2 = conv(hidden, width, 3, **kw)

    def __call__(self, x: Float[Array, "h w E"]) -> Float[Array, "h w E"]:
        return self.conv2(gelu(self.norm1(self.conv1(x))))

    def weighed(
        self, x: Float[Array, "h w E"], channels: Float[Array, "E"]
    ) -> Float[Array, "h w"]:  # fmt: skip
        """The call, times `channels`, which are put into the second convolution: nine numbers of
        each pixel are left of it, in place of nine for each channel."""
        x = gelu(self.norm1(self.conv1(x)))
        height, width, hidden = x.shape
        kernel = self.conv2.kernel[...].astype(x.dtype) @ channels
        taps = at_least_float32(kernel.reshape(9, hidden) @ x.reshape(-1, hidden).T)
        taps = jnp.pad(taps.reshape(9, height, width), ((0, 0), (1, 1), (1, 1)))
        total = sum(
            taps[3 * row + column, row : row + height, column : column + width]
            for row in range(3)
            for column in range(3)
        )
        assert self.conv2.bias is not None
        return total + at_least_float32(self.conv2.bias[...].astype(x.dtype) @ channels)
