"""The two-way transformer between prompt tokens and the picture (appendix A; reference:
`TwoWayTransformer`).

Written for the tokens of one prompt. Under `jax.vmap` over prompts whatever depends on the
picture alone stays a single computation.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from samjax.models.config import SamConfig
from samjax.models.layers import LayerNorm, Mlp, at_least_float32, linear


class TwoWayTransformer(nnx.Module):
    def __init__(self, cfg: SamConfig, *, rngs: nnx.Rngs):
        layers = [
            TwoWayAttentionBlock(cfg, first=layer == 0, rngs=rngs)
            for layer in range(cfg.decoder_depth)
        ]
        self.layers = nnx.List(layers)
        self.final_attn_token_to_image = _cross_attention(cfg, rngs=rngs)
        self.norm_final_attn = _norm(cfg)

    def __call__(
        self,
        image: Float[Array, "K D"],
        image_pe: Float[Array, "K D"],
        tokens: Float[Array, "T D"],
        valid: Bool[Array, "T"],
    ) -> tuple[Float[Array, "T D"], Float[Array, "K D"]]:
        """Tokens and picture after they have looked at each other; `valid` is False at padding."""
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe, valid)
        attended = self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries + attended), keys


class TwoWayAttentionBlock(nnx.Module):
    """Self-attention of the tokens, tokens to picture, MLP on the tokens, picture to tokens."""

    def __init__(self, cfg: SamConfig, *, first: bool, rngs: nnx.Rngs):
        self.self_attn = Attention(cfg.embed_dim, cfg.embed_dim, cfg, rngs=rngs)
        self.norm1 = _norm(cfg)
        self.cross_attn_token_to_image = _cross_attention(cfg, rngs=rngs)
        self.norm2 = _norm(cfg)
        self.mlp = Mlp(
            cfg.embed_dim, cfg.decoder_mlp_width, jax.nn.relu, dtype=cfg.dtype, rngs=rngs
        )
        self.norm3 = _norm(cfg)
        self.cross_attn_image_to_token = _cross_attention(cfg, rngs=rngs)
        self.norm4 = _norm(cfg)
        self.first = first

    def __call__(
        self,
        queries: Float[Array, "T D"],
        keys: Float[Array, "K D"],
        query_pe: Float[Array, "T D"],
        key_pe: Float[Array, "K D"],
        valid: Bool[Array, "T"],
    ) -> tuple[Float[Array, "T D"], Float[Array, "K D"]]:
        if self.first:
            queries = self.self_attn(queries, queries, queries, valid)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries, valid)
        queries = self.norm1(queries)

        attended = self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys)
        queries = self.norm2(queries + attended)
        queries = self.norm3(queries + self.mlp(queries))

        attended = self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries, valid)
        return queries, self.norm4(keys + attended)


class Attention(nnx.Module):
    """Multi-head attention, computed in `internal` channels."""

    def __init__(self, width: int, internal: int, cfg: SamConfig, *, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=cfg.dtype, rngs=rngs)
        self.q_proj = linear(width, internal, **kw)
        self.k_proj = linear(width, internal, **kw)
        self.v_proj = linear(width, internal, **kw)
        self.out_proj = linear(internal, width, **kw)
        self.num_heads = cfg.decoder_heads

    def __call__(
        self,
        q: Float[Array, "Q D"],
        k: Float[Array, "K D"],
        v: Float[Array, "K D"],
        valid: Bool[Array, "K"] | None = None,
    ) -> Float[Array, "Q D"]:
        """Keys where `valid` is False get no weight at all."""
        q_QNd = self._heads(self.q_proj(q))
        k_KNd = self._heads(self.k_proj(k))
        v_KNd = self._heads(self.v_proj(v))
        logits = at_least_float32(jnp.einsum("qnd,knd->nqk", q_QNd, k_KNd))
        logits = logits / q_QNd.shape[-1] ** 0.5
        if valid is not None:
            logits = jnp.where(valid, logits, -jnp.inf)
        weights = jax.nn.softmax(logits).astype(v_KNd.dtype)
        context = jnp.einsum("nqk,knd->qnd", weights, v_KNd)
        return self.out_proj(context.reshape(q.shape[0], -1))

    def _heads(self, x: Float[Array, "L D"]) -> Float[Array, "L N d"]:
        return x.reshape(x.shape[0], self.num_heads, -1)


def _cross_attention(cfg: SamConfig, *, rngs: nnx.Rngs) -> Attention:
    return Attention(cfg.embed_dim, cfg.embed_dim // cfg.attention_downsample_rate, cfg, rngs=rngs)


def _norm(cfg: SamConfig) -> LayerNorm:
    return LayerNorm(cfg.embed_dim, epsilon=1e-5, dtype=cfg.dtype)
