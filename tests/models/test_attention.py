"""The programs for attention compute one sum."""

import jax
import jax.export
import numpy as np
import pytest

from samjax.models import attention
from samjax.models.config import ImageEncoderViTConfig


def inputs(batch, height, width, heads, depth):
    rng = np.random.default_rng(0)
    shapes = [
        (batch, height, width, 3, heads, depth),
        (height, height, depth),
        (width, width, depth),
    ]
    return [jax.numpy.asarray(rng.normal(size=s).astype(np.float32)) for s in shapes]


SIZES = {
    "windows": (6, 7, 7, 2, 8),
    "one row of windows": (3, 1, 14, 2, 8),
    "large grid": (1, 32, 32, 2, 8),
    "rows that divide badly": (2, 17, 31, 1, 4),
    "wider than a piece": (1, 2, 300, 1, 4),
}


def test_the_definition():
    """Against a loop over queries in numpy."""
    qkv, r_h, r_w = inputs(1, 3, 4, 2, 8)
    found = np.asarray(attention.attend_whole(qkv, r_h, r_w))
    qkv, r_h, r_w = (np.asarray(x, np.float64) for x in (qkv, r_h, r_w))
    for row, column, head in np.ndindex(3, 4, 2):
        q = qkv[0, row, column, 0, head]
        logits = qkv[0, :, :, 1, head] @ q / 8**0.5
        logits = logits + (r_h[row] @ q)[:, None] + (r_w[column] @ q)
        weights = np.exp(logits - logits.max())
        expected = np.einsum("hw,hwd->d", weights, qkv[0, :, :, 2, head]) / weights.sum()
        np.testing.assert_allclose(found[0, row, column, head], expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("program", ["pieces", "folded"])
def test_a_program_equals_whole(size, program):
    arrays = inputs(*SIZES[size])
    whole = jax.jit(attention.attend_whole)(*arrays)
    other = jax.jit(lambda *x: attention.attend(*x, program))(*arrays)
    # Of values up to 3.2; 3.2e-6 with AVX2, less with AVX-512.
    np.testing.assert_allclose(other, whole, rtol=0, atol=4e-6)


@pytest.mark.parametrize("size", ["windows", "large grid"])
@pytest.mark.parametrize("program", ["pieces", "folded"])
def test_gradients_agree(size, program):
    arrays = inputs(*SIZES[size])

    def gradient(program):
        def loss(*x):
            return (attention.attend(*x, program) ** 2).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)

    for a, b in zip(gradient(program), gradient("whole"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("size", ["windows", "large grid"])
def test_large_logits_do_not_overflow(size):
    qkv, r_h, r_w = inputs(*SIZES[size])
    qkv = qkv * np.float32([100, 100, 1])[:, None, None]
    whole = attention.attend_whole(qkv, r_h, r_w)
    out = attention.attend_in_pieces(qkv, r_h, r_w)
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


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_folded_lowers_for_accelerators(platform):
    arrays = inputs(1, 32, 32, 2, 8)
    exported = jax.export.export(jax.jit(attention.attend_folded), platforms=[platform])(*arrays)
    assert "dot_general" in exported.mlir_module()


def test_a_program_that_does_not_exist():
    """What a user sees, whose calls are not type-checked as those of the tests are."""
    config = ImageEncoderViTConfig()
    object.__setattr__(config, "attention", "flash")
    with pytest.raises(ValueError, match="attention is 'flash'; use one of .*'auto'"):
        config.__post_init__()
