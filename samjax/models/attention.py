"""Self-attention over a grid with a bias for the key's row and one for its column.

Two programs for the same sum. `attend_whole` is the definition, and what GPU and TPU compilers
like. `attend_in_pieces` takes one head and a few rows of queries at a time, so that the logits
stay in the processor's cache: a whole ViT-B picture has 805 MB of them in each global block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from samjax.models.layers import at_least_float32

QUERIES_AT_ONCE = 256
"""At most this many in a piece (measured: 64 to 512; 256 and 512 are the fastest)."""


def attend(
    q: Float[Array, "B H W N d"],
    k: Float[Array, "B H W N d"],
    v: Float[Array, "B H W N d"],
    bias_h: Float[Array, "B H W N H"],
    bias_w: Float[Array, "B H W N W"],
) -> Float[Array, "B H W N d"]:
    """softmax(q . k + bias_h[row of k] + bias_w[column of k]) over all keys of the grid, times v.

    `q` is scaled already. The program is chosen when the code is compiled for a platform.
    """
    return jax.lax.platform_dependent(
        q, k, v, bias_h, bias_w, cpu=attend_in_pieces, default=attend_whole
    )


def attend_whole(q, k, v, bias_h, bias_w):
    """All logits at once."""
    batch, height, width, heads, _ = q.shape
    logits = jnp.einsum("bhwnd,bijnd->bnhwij", q, k)
    logits = logits + jnp.einsum("bhwni->bnhwi", bias_h)[..., :, None]
    logits = logits + jnp.einsum("bhwnj->bnhwj", bias_w)[..., None, :]
    shape = (batch, heads, height, width, height * width)
    weights = jax.nn.softmax(at_least_float32(logits).reshape(shape)).astype(v.dtype)
    return jnp.einsum("bnhwk,bknd->bhwnd", weights, v.reshape(batch, -1, *v.shape[3:]))


def attend_in_pieces(q, k, v, bias_h, bias_w):
    """A batch of small grids (windows) goes one by one with all its heads; a large grid one head
    and a few rows of queries at a time."""
    q, k, v, bias_h, bias_w = (x.transpose(0, 3, 1, 2, 4) for x in (q, k, v, bias_h, bias_w))
    batch, heads, height, width, _ = q.shape
    if height * width <= QUERIES_AT_ONCE:
        out = jax.lax.map(lambda x: jax.vmap(_attend_rows)(*x), (q, k, v, bias_h, bias_w))
    else:
        rows = max(r for r in range(1, height + 1) if height % r == 0 and r * width <= max(
            QUERIES_AT_ONCE, width))  # fmt: skip

        def one_head(x):
            q, k, v, bias_h, bias_w = x
            pieces = jax.tree.map(
                lambda y: y.reshape(height // rows, rows, *y.shape[1:]), (q, bias_h, bias_w)
            )
            return jax.lax.map(lambda p: _attend_rows(p[0], k, v, p[1], p[2]), pieces)

        flat = jax.tree.map(
            lambda y: y.reshape(batch * heads, *y.shape[2:]), (q, k, v, bias_h, bias_w)
        )
        out = jax.lax.map(one_head, flat)
    return out.reshape(q.shape).transpose(0, 2, 3, 1, 4)


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
    logits = at_least_float32(q @ k.reshape(-1, depth).T).reshape(-1, height, width)
    logits = logits + at_least_float32(bias_h)[:, :, None] + at_least_float32(bias_w)[:, None, :]
    largest = jax.lax.optimization_barrier(logits.max(axis=1)).max(axis=-1)
    weights = jnp.exp(logits - jax.lax.stop_gradient(largest)[:, None, None])
    total = jax.lax.optimization_barrier(weights.sum(axis=1)).sum(axis=-1)
    out = weights.reshape(-1, height * width).astype(v.dtype) @ v.reshape(-1, depth)
    return (at_least_float32(out) / total[:, None]).astype(v.dtype).reshape(-1, width, depth)
