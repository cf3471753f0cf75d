"""Self-attention over a grid with a bias for the key's row and one for its column.

Several programs for the same sum, of which `ImageEncoderViTConfig.attention` picks one. `whole` is
the definition. `folded` puts the biases into longer queries and keys, which is what fused kernels
can take: softmax(q . k + b_h[row] + b_w[column]) is that of (q, b_h, b_w) . (k, 1 at the key's row,
1 at its column). `pieces` takes a window at a time, folded, and of a large grid one head and a few
rows of queries at a time, so that the logits stay in the processor's cache: a whole ViT-B picture
has 805 MB of them in each global block.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samjax.models.products import at_least_float32, float32_dot
from samjax.models.vit_config import AttentionProgram
from samjax.platforms import platform_dependent

QUERIES_AT_ONCE = 256
"""At most this many in a piece (measured: 64 to 512; 256 and 512 are the fastest)."""


def attend(
    qkv: Float[Array, "B H W 3 N d"],
    r_h: Float[Array, "H H d"],
    r_w: Float[Array, "W W d"],
    program: AttentionProgram = "auto",
) -> Float[Array, "B H W N d"]:
    """softmax(q . k / sqrt(d) + q . r_h[row of q, row of k] + q . r_w[the columns]) v, over all
    keys of the grid.

    "auto" is `pieces` on the CPU and `whole` elsewhere, chosen when the code is compiled for a
    platform.
    """
    if program != "auto":
        return _PROGRAMS[program](qkv, r_h, r_w)
    return platform_dependent(qkv, r_h, r_w, cpu=attend_in_pieces, default=attend_whole)


def attend_whole(qkv, r_h, r_w):
    """All logits at once."""
    q, k, v = (qkv[:, :, :, i] for i in range(3))
    batch, height, width, heads, depth = q.shape
    bias_h, bias_w = _biases(jnp.moveaxis(q, 3, 1), r_h, r_w)
    logits = jnp.einsum("bhwnd,bijnd->bnhwij", q * depth**-0.5, k)
    logits = logits + bias_h[..., :, None] + bias_w[..., None, :]
    shape = (batch, heads, height, width, height * width)
    weights = jax.nn.softmax(at_least_float32(logits).reshape(shape)).astype(v.dtype)
    return jnp.einsum("bnhwk,bknd->bhwnd", weights, v.reshape(batch, -1, *v.shape[3:]))


def attend_folded(qkv, r_h, r_w, *, implementation: Literal["xla", "cudnn"] | None = None):
    """As `jax.nn.dot_product_attention` has it, which knows no bias of this kind, and which takes
    values as long as the keys only, padded to a multiple of 8."""
    q, k, v = (x.swapaxes(1, 2) for x in _folded(qkv, r_h, r_w))
    length = -(-q.shape[-1] // 8) * 8
    q, k, v = (jnp.pad(x, [(0, 0)] * 3 + [(0, length - x.shape[-1])]) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation=implementation)
    return out[..., : qkv.shape[-1]].reshape(qkv[:, :, :, 0].shape)


def attend_cudnn(qkv, r_h, r_w):
    """`attend_folded` in cuDNN's fused kernel: on NVIDIA GPUs and in half precision only, and of
    more than 128 channels, as a large grid has them, from Hopper on."""
    return attend_folded(qkv, r_h, r_w, implementation="cudnn")


def attend_in_pieces(qkv, r_h, r_w):
    """A batch of small grids (windows) goes one by one with all its heads; a large grid one head
    and a few rows of queries at a time."""
    batch, height, width, _, heads, depth = qkv.shape
    if height * width <= QUERIES_AT_ONCE:
        return jax.lax.map(lambda window: _attend_window(window, r_h, r_w), qkv)
    most = max(QUERIES_AT_ONCE, width)
    rows = max(r for r in range(1, height + 1) if height % r == 0 and r * width <= most)
    scale = depth**-0.5

    def one_head(qkv):
        q, k, v = qkv
        of_queries = (q * scale, *_biases(q, r_h, r_w))
        pieces = tuple(x.reshape(-1, rows, *x.shape[1:]) for x in of_queries)
        return jax.lax.map(lambda piece: _attend_rows(piece[0], k, v, *piece[1:]), pieces)

    by_head = qkv.transpose(0, 4, 3, 1, 2, 5).reshape(batch * heads, 3, height, width, depth)
    out = jax.lax.map(one_head, by_head).reshape(batch, heads, height, width, depth)
    return out.transpose(0, 2, 3, 1, 4)


_PROGRAMS: dict[str, Callable] = {
    "whole": attend_whole,
    "folded": attend_folded,
    "cudnn": attend_cudnn,
    "pieces": attend_in_pieces,
}


def _biases(
    q: Float[Array, "*B H W d"], r_h: Float[Array, "H H d"], r_w: Float[Array, "W W d"]
) -> tuple[Float[Array, "*B H W H"], Float[Array, "*B H W W"]]:
    return jnp.einsum("...hwd,hid->...hwi", q, r_h), jnp.einsum("...hwd,wjd->...hwj", q, r_w)


def _folded(
    qkv: Float[Array, "B H W 3 N d"], r_h: Float[Array, "H H d"], r_w: Float[Array, "W W d"]
) -> tuple[Float[Array, "B N K e"], Float[Array, "B N K e"], Float[Array, "B N K d"]]:
    """Queries and keys with the biases in them, e = d + H + W, and values."""
    batch, height, width, _, heads, depth = qkv.shape
    q, k, v = jnp.moveaxis(qkv, (3, 4), (0, 2))
    q = jnp.concatenate([q * depth**-0.5, *_biases(q, r_h, r_w)], axis=-1)
    places = _one_hot(height, width, k.dtype)
    places = jnp.broadcast_to(places, (batch, heads, *places.shape))
    k = jnp.concatenate([k, places], axis=-1)
    q, k, v = (x.reshape(batch, heads, height * width, x.shape[-1]) for x in (q, k, v))
    return q, k, v


def _one_hot(height: int, width: int, dtype) -> Float[Array, "H W e"]:
    """Of each place, a 1 at its row and one at its column."""
    row = np.broadcast_to(np.eye(height)[:, None], (height, width, height))
    column = np.broadcast_to(np.eye(width)[None], (height, width, width))
    return jnp.asarray(np.concatenate([row, column], axis=-1), dtype)


@jax.checkpoint
def _attend_window(
    qkv: Float[Array, "H W 3 N d"], r_h: Float[Array, "H H d"], r_w: Float[Array, "W W d"]
) -> Float[Array, "H W N d"]:
    """One small grid. Weights are divided after they are summed up.

    Logits that are made whole by one product lie in rows of all keys, over which XLA:CPU takes
    exponentials eight times as fast as over the few of one row of the grid. Under differentiation
    they are computed again and not kept.
    """
    height, width = qkv.shape[:2]
    q, k, v = (x[0] for x in _folded(qkv[None], r_h, r_w))
    logits = float32_dot(functools.partial(jnp.einsum, "nqe,nke->nqk"), q, k)
    by_row = (*logits.shape[:2], height, width)
    largest = jax.lax.optimization_barrier(logits.reshape(by_row).max(axis=2)).max(axis=-1)
    weights = jnp.exp(logits - jax.lax.stop_gradient(largest)[..., None])
    total = jax.lax.optimization_barrier(weights.reshape(by_row).sum(axis=2)).sum(axis=-1)
    sums = functools.partial(jnp.einsum, "nqk,nkd->nqd")
    out = float32_dot(sums, weights.astype(v.dtype), v)
    out = out / total[..., None]
    return out.astype(v.dtype).swapaxes(0, 1).reshape(qkv[:, :, 0].shape)


@jax.checkpoint
def _attend_rows(
    q: Float[Array, "R W d"],
    k: Float[Array, "H W d"],
    v: Float[Array, "H W d"],
    bias_h: Float[Array, "R W H"],
    bias_w: Float[Array, "R W W"],
) -> Float[Array, "R W d"]:
    """Some rows of queries of one head. Weights are divided after they are summed up.

    Maximum and sum go over key rows first and then over columns: XLA:CPU does the first as whole
    vectors, and the barrier keeps it from making one slow reduction of the two. Under
    differentiation the logits are computed again and not kept.
    """
    height, width, depth = k.shape
    q, bias_h, bias_w = (x.reshape(-1, x.shape[-1]) for x in (q, bias_h, bias_w))
    logits = float32_dot(jnp.matmul, q, k.reshape(-1, depth).T).reshape(-1, height, width)
    logits = logits + at_least_float32(bias_h)[:, :, None] + at_least_float32(bias_w)[:, None, :]
    largest = jax.lax.optimization_barrier(logits.max(axis=1)).max(axis=-1)
    weights = jnp.exp(logits - jax.lax.stop_gradient(largest)[:, None, None])
    total = jax.lax.optimization_barrier(weights.sum(axis=1)).sum(axis=-1)
    weights = weights.reshape(-1, height * width).astype(v.dtype)
    out = float32_dot(jnp.matmul, weights, v.reshape(-1, depth))
    return (out / total[:, None]).astype(v.dtype).reshape(-1, width, depth)
