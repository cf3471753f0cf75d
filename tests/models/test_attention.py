"""The two programs for attention compute one sum."""

import jax
import jax.export
import numpy as np
import pytest

from samjax.models import attention


def inputs(batch, height, width, heads, depth):
    rng = np.random.default_rng(0)
    lead = (batch, height, width, heads)
    shapes = [(*lead, depth)] * 3 + [(*lead, height), (*lead, width)]
    return [jax.numpy.asarray(rng.normal(size=s).astype(np.float32)) for s in shapes]


SIZES = {
    "windows": (6, 7, 7, 2, 8),
    "one row of windows": (3, 1, 14, 2, 8),
    "large grid": (1, 32, 32, 2, 8),
    "rows that divide badly": (2, 17, 31, 1, 4),
    "wider than a piece": (1, 2, 300, 1, 4),
}


@pytest.mark.parametrize("size", SIZES)
def test_in_pieces_equals_whole(size):
    arrays = inputs(*SIZES[size])
    whole = jax.jit(attention.attend_whole)(*arrays)
    pieces = jax.jit(attention.attend_in_pieces)(*arrays)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=3e-6)


@pytest.mark.parametrize("size", ["windows", "large grid"])
def test_gradients_agree(size):
    arrays = inputs(*SIZES[size])

    def gradient(function):
        return jax.jit(jax.grad(lambda *x: (function(*x) ** 2).sum(), argnums=(0, 1, 2, 3, 4)))

    for a, b in zip(
        gradient(attention.attend_in_pieces)(*arrays),
        gradient(attention.attend_whole)(*arrays),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_large_logits_do_not_overflow():
    q, k, v, bias_h, bias_w = inputs(1, 32, 32, 1, 8)
    out = attention.attend_in_pieces(q * 100, k * 100, v, bias_h, bias_w)
    whole = attention.attend_whole(q * 100, k * 100, v, bias_h, bias_w)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, whole, rtol=0, atol=2e-3)


def test_the_platform_chooses():
    """On the CPU the pieces are loops; elsewhere there is one product over all keys."""
    arrays = inputs(1, 32, 32, 2, 8)
    texts = {
        platform: jax.export.export(jax.jit(attention.attend), platforms=[platform])(
            *arrays
        ).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert "stablehlo.while" in texts["cpu"]
    assert "stablehlo.while" not in texts["cuda"]
    assert "stablehlo.while" not in texts["tpu"]
