"""Self-attention within windows, with a learned bias for the distance of two places."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from samjax.models.products import at_least_float32
from samjax.platforms import platform_dependent

LOGITS_AT_ONCE = 200_000
"""About as many on the CPU, where 800 kB stay in the processor's cache; at least a window's."""


def attend_in_windows(
    qkv: Float[Array, "B K N 3 d"], bias: Float[Array, "N K K"]
) -> Float[Array, "B K N d"]:
    """softmax(q . k / sqrt(d) + bias) v over the K places of each of B windows.

    All windows together, but on the CPU, where the program is chosen when the code is compiled for
    it: a few at a time.
    """
    return platform_dependent(qkv, bias, cpu=attend_in_pieces, default=attend_whole)


def attend_whole(qkv, bias):
    """All logits at once."""
    q, k, v = (qkv[:, :, :, i] for i in range(3))
    logits = jnp.einsum("bqnd,bknd->bnqk", q * q.shape[-1] ** -0.5, k) + bias
    weights = jax.nn.softmax(at_least_float32(logits)).astype(v.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)


def attend_in_pieces(qkv, bias):
    """Under differentiation the logits are computed again and not kept."""
    windows, tokens = qkv.shape[:2]
    most = max(1, LOGITS_AT_ONCE // bias.size)
    at_once = max(n for n in range(1, most + 1) if windows % n == 0)
    pieces = qkv.reshape(-1, at_once, *qkv.shape[1:])
    some = jax.checkpoint(functools.partial(attend_whole, bias=bias))
    return jax.lax.map(some, pieces).reshape(windows, tokens, *qkv.shape[2:3], qkv.shape[4])


def distance_bias(table: Float[Array, "N L"], window_size: int) -> Float[Array, "N K K"]:
    """Of each pair of places the number for their distance, |dy| * window_size + |dx|."""
    return table[:, _distances(window_size)]


def _distances(size: int) -> Int[np.ndarray, "K K"]:
    y, x = np.divmod(np.arange(size * size), size)
    return size * np.abs(y[:, None] - y) + np.abs(x[:, None] - x)
