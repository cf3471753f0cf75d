"""The two-way transformer between prompt tokens and the picture (appendix A; reference:
`TwoWayTransformer`).

Written for the tokens of one prompt. Under `jax.vmap` over prompts whatever depends on the
picture alone stays a single computation.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from samjax.models.config import SamConfig
from samjax.models.layers import LayerNorm, Mlp, linear
from samjax.models.products import at_least_float32, dot, float32_dot
from samjax.platforms import platform_dependent


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
        wanted: int | None = None,
    ) -> tuple[Float[Array, "t D"], Float[Array, "K D"]]:
        """Tokens and picture after they have looked at each other; `valid` is False at padding.

        The last time, only the first `wanted` tokens look, and these are returned: of the others
        nothing is made.
        """
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe, valid)
        queries, tokens = queries[:wanted], tokens[:wanted]
        attended = self.final_attn_token_to_image.gather(queries + tokens, keys + image_pe, keys)
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
        queries = self.attend_to_tokens(queries, query_pe, valid)
        attended = self.cross_attn_token_to_image.gather(queries + query_pe, keys + key_pe, keys)
        queries = self.after_picture(queries, attended)
        attended = self.cross_attn_image_to_token.spread(
            keys + key_pe, queries + query_pe, queries, valid
        )
        return queries, self.norm4(keys + attended)

    def attend_to_tokens(
        self, queries: Float[Array, "T D"], query_pe: Float[Array, "T D"], valid: Bool[Array, "T"]
    ) -> Float[Array, "T D"]:
        """The tokens, before they look at the picture."""
        if self.first:
            queries = self.self_attn(queries, queries, queries, valid)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries, valid)
        return self.norm1(queries)

    def after_picture(
        self, queries: Float[Array, "T D"], attended: Float[Array, "T D"]
    ) -> Float[Array, "T D"]:
        """The tokens, with what they have seen in the picture."""
        queries = self.norm2(queries + attended)
        return self.norm3(queries + self.mlp(queries))


class Attention(nnx.Module):
    """Multi-head attention, computed in `internal` channels.

    The call is the definition. `gather` and `spread` are for a few tokens on one side and a whole
    picture on the other. On the CPU they multiply the projection of the picture's pixels into the
    tokens: with T tokens and N heads, (x W) . q = x . (W q) makes of two products of the picture
    with a matrix, a transpose and N small ones a single product with T * N rows.
    """

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
        q_QNd = self.heads(self.q_proj(q))
        k_KNd = self.heads(self.k_proj(k))
        v_KNd = self.heads(self.v_proj(v))
        logits = float32_dot(functools.partial(jnp.einsum, "qnd,knd->nqk"), q_QNd, k_KNd)
        logits = logits / q_QNd.shape[-1] ** 0.5
        if valid is not None:
            logits = jnp.where(valid, logits, -jnp.inf)
        weights = jax.nn.softmax(logits).astype(v_KNd.dtype)
        context = jnp.einsum("nqk,knd->qnd", weights, v_KNd)
        return self.out_proj(context.reshape(q.shape[0], -1))

    def gather(
        self, q: Float[Array, "T D"], k: Float[Array, "K D"], v: Float[Array, "K D"]
    ) -> Float[Array, "T D"]:
        """The call, for tokens that look at a picture."""
        return platform_dependent(q, k, v, cpu=self._gather_folded, default=self.__call__)

    def spread(
        self,
        q: Float[Array, "K D"],
        k: Float[Array, "T D"],
        v: Float[Array, "T D"],
        valid: Bool[Array, "T"],
    ) -> Float[Array, "K D"]:
        """The call, for a picture that looks at tokens, of which some are `valid`."""
        return platform_dependent(q, k, v, valid, cpu=self._spread_folded, default=self.__call__)

    def _gather_folded(self, q, k, v):
        q_TNd = self.heads(self.q_proj(q))
        # The bias of k_proj adds the same to all logits of a token and vanishes in the softmax.
        rows_TND = jnp.einsum("tnd,Dnd->tnD", q_TNd, self.kernel(self.k_proj))
        logits = _of_all_pairs(rows_TND.reshape(-1, k.shape[-1]), k)
        weights, totals = softmax_parts(logits / q_TNd.shape[-1] ** 0.5)
        context = float32_dot(jnp.matmul, weights.astype(v.dtype), v) / totals[:, None]
        context = context.astype(v.dtype).reshape(rows_TND.shape)
        context = jnp.einsum("tnD,Dnd->tnd", context, self.kernel(self.v_proj))
        context = context.reshape(q.shape[0], -1) + self.bias(self.v_proj)
        return self.out_proj(context)

    def _spread_folded(self, q, k, v, valid):
        k_TNd = self.heads(self.k_proj(k))
        v_TNd = self.heads(self.v_proj(v))
        rows_TND = jnp.einsum("tnd,Dnd->tnD", k_TNd, self.kernel(self.q_proj))
        offsets_TN = jnp.einsum("tnd,nd->tn", k_TNd, self.heads(self.bias(self.q_proj)[None])[0])
        logits = _of_all_pairs(rows_TND.reshape(-1, q.shape[-1]), q)
        logits = logits.reshape(*offsets_TN.shape, -1) + at_least_float32(offsets_TN)[:, :, None]
        logits = logits / k_TNd.shape[-1] ** 0.5
        logits = jnp.where(valid[:, None, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=0).astype(q.dtype).reshape(-1, q.shape[0])
        values_TND = jnp.einsum("tnd,ndD->tnD", v_TNd, self.out_kernel())
        values = values_TND.reshape(len(weights), -1)
        return dot(jnp.matmul, weights.T, values) + self.bias(self.out_proj)

    def kernel(self, projection: nnx.Linear) -> Float[Array, "D N d"]:
        kernel = jnp.asarray(projection.kernel[...], projection.dtype)
        return kernel.reshape(kernel.shape[0], self.num_heads, -1)

    def out_kernel(self) -> Float[Array, "N d D"]:
        kernel = jnp.asarray(self.out_proj.kernel[...], self.out_proj.dtype)
        return kernel.reshape(self.num_heads, -1, kernel.shape[-1])

    def bias(self, projection: nnx.Linear) -> Float[Array, "D"]:
        assert projection.bias is not None
        return jnp.asarray(projection.bias[...], projection.dtype)

    def heads(self, x: Float[Array, "L D"]) -> Float[Array, "L N d"]:
        return x.reshape(x.shape[0], self.num_heads, -1)


def _of_all_pairs(x: Float[Array, "R D"], y: Float[Array, "K D"]) -> Float[Array, "R K"]:
    """`x @ y.T` in float32, but without the transpose, for which XLA:CPU makes a slow copy."""
    pairs = functools.partial(jax.lax.dot_general, dimension_numbers=(((1,), (1,)), ((), ())))
    return float32_dot(pairs, x, y)


def softmax_parts(
    logits: Float[Array, "R K"],
) -> tuple[Float[Array, "R K"], Float[Array, "R"]]:
    """Weights of a softmax over the last axis, and what they have to be divided by.

    Maximum and sum go over one half of the axis and then over the other: XLA:CPU does the first as
    whole vectors, and the barrier keeps it from making one slow reduction of the two.
    """
    count = logits.shape[-1]
    side = max(n for n in range(1, int(count**0.5) + 1) if count % n == 0)
    parts = logits.reshape(-1, side, count // side)
    largest = jax.lax.optimization_barrier(parts.max(axis=1)).max(axis=-1)
    weights = jnp.exp(parts - jax.lax.stop_gradient(largest)[:, None, None])
    total = jax.lax.optimization_barrier(weights.sum(axis=1)).sum(axis=-1)
    return weights.reshape(logits.shape), total


def _cross_attention(cfg: SamConfig, *, rngs: nnx.Rngs) -> Attention:
    return Attention(cfg.embed_dim, cfg.embed_dim // cfg.attention_downsample_rate, cfg, rngs=rngs)


def _norm(cfg: SamConfig) -> LayerNorm:
    return LayerNorm(cfg.embed_dim, epsilon=1e-5, dtype=cfg.dtype)
