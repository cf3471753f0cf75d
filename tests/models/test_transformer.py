"""The decoder's attention between a few tokens and a picture, in both of its programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from random_model import random_module
from samjax.models import SamConfig
from samjax.models.transformer import Attention, TwoWayTransformer

CONFIG = SamConfig.vit_b()


@pytest.fixture(scope="module")
def attention():
    module = Attention(CONFIG.embed_dim, CONFIG.embed_dim // 2, CONFIG, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        bias = getattr(module, name).bias
        bias[...] = jnp.asarray(rng.normal(size=bias.shape), jnp.float32)
    return module


@pytest.fixture(scope="module")
def sides():
    """Seven tokens, 256 pixels, and the two again as values."""
    rng = np.random.default_rng(2)
    shapes = ((7, 256), (256, 256), (7, 256), (256, 256))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


VALID = jnp.array([True, True, False, True, True, False, True])


def gather(attention, sides):
    tokens, pixels, _, values = sides
    return (tokens, pixels, values), attention._gather_folded


def spread(attention, sides):
    tokens, pixels, values, _ = sides
    return (pixels, tokens, values, VALID), attention._spread_folded


@pytest.mark.parametrize("direction", [gather, spread])
def test_folded_equals_the_definition(attention, sides, direction):
    arguments, folded = direction(attention, sides)
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(attention(*arguments))
        actual = np.asarray(folded(*arguments))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("direction", [gather, spread])
def test_folded_has_the_same_gradients(attention, sides, direction):
    arguments, folded = direction(attention, sides)
    valid = arguments[3:]

    def gradients(function):
        return jax.grad(lambda *x: jnp.sum(jnp.sin(function(*x, *valid))), argnums=(0, 1, 2))

    with jax.default_matmul_precision("highest"):
        expected = gradients(attention)(*arguments[:3])
        actual = gradients(folded)(*arguments[:3])
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("direction", [gather, spread])
def test_the_cpu_runs_the_folded_one(attention, sides, direction):
    arguments, folded = direction(attention, sides)
    chosen = getattr(attention, direction.__name__)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(jax.jit(chosen)(*arguments), jax.jit(folded)(*arguments))


def test_the_picture_is_not_turned_round():
    """XLA:CPU would take longer for a transposed copy of it than for the products."""
    graphdef, state = random_module(TwoWayTransformer, CONFIG)
    pixels, tokens = (jax.ShapeDtypeStruct((n, 256), jnp.float32) for n in (4096, 7))
    valid = jax.ShapeDtypeStruct((7,), bool)

    def look(state, image, image_pe, tokens, valid):
        return nnx.merge(graphdef, state)(image, image_pe, tokens, valid)

    # As `decode_masks` has it for a single prompt.
    single = jax.vmap(look, in_axes=(None, None, None, 0, 0))
    tokens, valid = (jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in (tokens, valid))
    program = jax.jit(single).lower(state, pixels, pixels, tokens, valid).compile().as_text()
    assert "4096" in program and "f32[256,4096]" not in program


def test_tokens_that_nobody_wants_change_nothing():
    transformer = nnx.merge(*random_module(TwoWayTransformer, CONFIG))
    rng = np.random.default_rng(3)
    image, image_pe, tokens = (
        jnp.asarray(rng.normal(size=(n, 256)), jnp.float32) for n in (256, 256, 7)
    )
    look = nnx.jit(TwoWayTransformer.__call__, static_argnames="wanted")
    every, keys = look(transformer, image, image_pe, tokens, VALID)
    some, same_keys = look(transformer, image, image_pe, tokens, VALID, wanted=5)
    assert every.shape == (7, 256) and some.shape == (5, 256)
    np.testing.assert_allclose(some, every[:5], rtol=0, atol=1e-5)
    np.testing.assert_allclose(same_keys, keys, rtol=0, atol=1e-5)
