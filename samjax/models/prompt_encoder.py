"""Points, boxes and masks to embeddings (Segment Anything, appendix A; `PromptEncoder`)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import SamConfig
from samjax.models.layers import Buffer, LayerNorm, conv, gelu, spread
from samjax.models.products import at_least_float32
from samjax.types import PointLabel, PromptEmbeddings, Prompts


class PromptEncoder(nnx.Module):
    """Embeds the prompts of one mask; use `jax.vmap` for many.

    Coordinates are embedded in float32 whatever the computation's type: in bfloat16 a position
    in a picture of 1024 pixels is known to 4 pixels only.
    """

    def __init__(self, cfg: SamConfig, *, rngs: nnx.Rngs):
        width = cfg.embed_dim
        embedding = nnx.initializers.normal(1.0)

        def token():
            return nnx.Param(embedding(rngs.params(), (1, width), jnp.float32))

        self.pe_layer = PositionEmbeddingRandom(width // 2, rngs=rngs)
        self.point_embeddings = nnx.List([token() for _ in range(4)])
        self.not_a_point_embed = token()
        self.no_mask_embed = token()
        self.mask_downscaling = MaskDownscaling(cfg, rngs=rngs)
        self.frame_size = cfg.frame_size or cfg.image_size
        self.stride = cfg.image_size / cfg.grid_size
        self.grid_size = cfg.grid_size
        self.dtype = cfg.dtype

    def __call__(self, prompts: Prompts) -> PromptEmbeddings:
        """`prompts` are those of one mask: coords (T, 2), labels (T,), mask_inputs (h, w)."""
        return PromptEmbeddings(
            self.embed_points(prompts).astype(self.dtype),
            self.embed_mask(prompts).astype(self.dtype),
            prompts.labels != PointLabel.PADDING,
        )

    def embed_points(self, prompts: Prompts) -> Float[Array, "T D"]:
        labels_T = prompts.labels[:, None]
        position = self.pe_layer((jnp.asarray(prompts.coords) + 0.5) / self.frame_size)
        kinds = [self.not_a_point_embed[...], *(e[...] for e in self.point_embeddings)]
        kind = jnp.concatenate(kinds).astype(position.dtype)[jnp.maximum(prompts.labels + 1, 0)]
        position = jnp.where(labels_T >= PointLabel.BACKGROUND, position, 0.0)
        return position + jnp.where(labels_T == PointLabel.PADDING, 0.0, kind)

    def embed_mask(self, prompts: Prompts) -> Float[Array, "H W D"]:
        no_mask = self.embed_no_mask()
        if prompts.mask_inputs is None:
            return no_mask
        mask = self.mask_downscaling(jnp.asarray(prompts.mask_inputs)[..., None])
        return mask if prompts.has_mask is None else jnp.where(prompts.has_mask, mask, no_mask)

    def embed_no_mask(self) -> Float[Array, "H W D"]:
        no_mask = self.no_mask_embed[0].astype(self.dtype)
        return spread(no_mask, (self.grid_size, self.grid_size, no_mask.size))

    def get_dense_pe(self, origin: Float[Array, "2"] | None = None) -> Float[Array, "H W D"]:
        """Positional encoding of the centres of the image embedding's cells.

        `origin` is the (x, y) of the input's first pixel within the frame, if it is a part of it.
        """
        centres = (np.arange(self.grid_size) + 0.5) * (self.stride / self.frame_size)
        x = y = jnp.asarray(centres)
        if origin is not None:
            x, y = x + origin[0] / self.frame_size, y + origin[1] / self.frame_size
        return self.pe_layer.grid(x, y).astype(self.dtype)


class PositionEmbeddingRandom(nnx.Module):
    """Random Fourier features of positions (Tancik et al. 2020)."""

    def __init__(self, num_features: int, *, rngs: nnx.Rngs):
        shape = (2, num_features)
        self.gaussian_matrix = Buffer(jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(self, xy: Float[Array, "*L 2"]) -> Float[Array, "*L D"]:
        """`xy` lie in [0, 1]."""
        angle = jnp.matmul(_turns(xy), self._matrix(xy), precision="highest")
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    def grid(self, x: Float[Array, "W"], y: Float[Array, "H"]) -> Float[Array, "H W D"]:
        """The call, for all pairs of an `x` and a `y`: of the angles' sums, so that sines and
        cosines are taken once for a column and once for a row. In one array behind a barrier they
        stay so; XLA:CPU would take them again for each pair."""
        along_x, along_y = self._matrix(x)
        angles = _turns(x)[:, None] * along_x, _turns(y)[:, None] * along_y
        waves = jnp.concatenate([wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)])
        of_x, of_y = jnp.split(jax.lax.optimization_barrier(waves), [2 * len(x)])
        sin_x, cos_x = jnp.split(of_x, 2)
        sin_y, cos_y = jnp.split(of_y[:, None], 2)
        return jnp.concatenate(
            [sin_x * cos_y + cos_x * sin_y, cos_x * cos_y - sin_x * sin_y], axis=-1
        )

    def _matrix(self, xy: Float[Array, "..."]) -> Float[Array, "2 F"]:
        return jnp.asarray(self.gaussian_matrix[...], at_least_float32(xy).dtype)


def _turns(position: Float[Array, "*L"]) -> Float[Array, "*L"]:
    return 2.0 * np.pi * (2.0 * at_least_float32(position) - 1.0)


class MaskDownscaling(nnx.Module):
    """A low-resolution mask to the size and width of the image embedding."""

    def __init__(self, cfg: SamConfig, *, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=cfg.dtype, rngs=rngs)
        few, many = cfg.mask_channels // 4, cfg.mask_channels
        self.conv1 = conv(1, few, 2, stride=2, **kw)
        self.norm1 = LayerNorm(few, epsilon=1e-6, dtype=cfg.dtype)
        self.conv2 = conv(few, many, 2, stride=2, **kw)
        self.norm2 = LayerNorm(many, epsilon=1e-6, dtype=cfg.dtype)
        self.conv3 = conv(many, cfg.embed_dim, 1, **kw)

    def __call__(self, mask: Float[Array, "h w 1"]) -> Float[Array, "H W D"]:
        x = gelu(self.norm1(self.conv1(mask)))
        x = gelu(self.norm2(self.conv2(x)))
        return self.conv3(x)
