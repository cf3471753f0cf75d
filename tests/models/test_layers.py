"""What the layers compute, and their gradients, against the plain way to write them."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.models import layers

SHAPES = [(5,), (1, 5), (6, 5), (4096, 256), (2, 64, 64, 32), (2, 3, 5, 2, 2, 7), (3, 4, 2048)]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spread_is_a_broadcast_and_its_gradient_a_sum(shape):
    vector, weights = draw(shape[-1]), draw(*shape, seed=1)
    np.testing.assert_array_equal(layers.spread(vector, shape), jnp.broadcast_to(vector, shape))
    found = jax.jit(jax.grad(lambda v: (layers.spread(v, shape) * weights).sum()))(vector)
    expected = np.asarray(weights, np.float64).sum(tuple(range(len(shape) - 1)))
    scale = np.abs(np.asarray(weights)).sum(tuple(range(len(shape) - 1))).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)


def test_the_first_axis_stays_whole():
    """It may be spread over devices, which a block across pictures would bring together."""
    jaxpr = jax.make_jaxpr(lambda v: layers.spread(v, (8, 2, 2, 4)))(draw(4))
    shapes = [equation.outvars[0].aval.shape for equation in jaxpr.eqns]
    assert shapes == [(2, 2, 4), (2, 2, 4), (8, 1, 2, 2, 4), (8, 2, 2, 4)]


@pytest.mark.parametrize("size, bias", [(1, True), (2, True), (2, False), (4, False)])
def test_patches_are_a_convolution(size, bias):
    rngs = nnx.Rngs(0)
    ours = layers.conv(3, 6, size, stride=size, bias=bias, dtype="float32", rngs=rngs)
    assert isinstance(ours, layers.PatchConv)
    x = draw(2, 8, 12, 3)
    found = ours(x)
    expected = nnx.Conv.__call__(ours, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    # A picture alone, as the prompt encoder has its masks.
    np.testing.assert_allclose(ours(x[0]), expected[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("width", [1, 8, 37, 48, 256, 768])
def test_a_norm_and_its_gradients(width):
    """37 has no divisor to sum by, 48 and 768 have one of 24 and 32; far from zero, where
    E[x^2] - E[x]^2 would lose its digits."""
    norm = layers.LayerNorm(width, epsilon=1e-6, dtype="float32")
    norm.scale[...], norm.bias[...] = draw(width, seed=1), draw(width, seed=2)
    x, weights = draw(3, 50, width) + 100.0, draw(3, 50, width, seed=3)

    def plain(x):
        x = x - x.mean(-1, keepdims=True)
        return x / ((x**2).mean(-1, keepdims=True) + 1e-6) ** 0.5 * scale + bias

    scale, bias = (np.asarray(v[...], np.float64) for v in (norm.scale, norm.bias))
    with jax.enable_x64(True):
        wide, wide_weights = (jnp.asarray(v, jnp.float64) for v in (x, weights))
        expected = plain(wide)
        gradient = jax.grad(lambda x: (plain(x) * wide_weights).sum())(wide)
    # Numbers near 100 are 8e-6 apart; those of the norm are multiplied by up to 3.
    np.testing.assert_allclose(jax.jit(norm)(x), expected, rtol=0, atol=1e-4)
    found = jax.jit(jax.grad(lambda x: (norm(x) * weights).sum()))(x)
    np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-4)
