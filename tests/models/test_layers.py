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


@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 3, 4, 5), (2, 40, 32, 5)], ids=str)
def test_product_and_its_derivatives(shape):
    x, kernel, weights = draw(*shape), draw(5, 3, seed=1), draw(*shape[:-1], 3, seed=2)

    def loss(multiply):
        return lambda x, kernel: (jnp.sin(multiply(x, kernel)) * weights).sum()

    ours, plain = loss(layers.product), loss(jnp.matmul)
    np.testing.assert_array_equal(layers.product(x, kernel), x @ kernel)
    for a, b in zip(
        jax.grad(ours, (0, 1))(x, kernel), jax.grad(plain, (0, 1))(x, kernel), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1.0, np.abs(b).max()))
    # Forward over reverse, as Hessian-vector products take it.
    for f in (0, 1):
        tangent = jax.jvp(jax.grad(ours, f), (x, kernel), (x, kernel))[1]
        expected = jax.jvp(jax.grad(plain, f), (x, kernel), (x, kernel))[1]
        largest = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(tangent, expected, rtol=0, atol=2e-5 * largest)


def test_gradients_of_a_product_keep_its_precision():
    def loss(x, kernel):
        with jax.default_matmul_precision("highest"):
            return layers.product(x, kernel).sum()

    for precision, function in (("HIGHEST", loss), ("None", lambda *a: layers.product(*a).sum())):
        jaxpr = str(jax.make_jaxpr(jax.grad(function, (0, 1)))(draw(6, 5), draw(5, 3)))
        assert jaxpr.count("dot_general") == 3
        assert jaxpr.count("HIGHEST") == (0 if precision == "None" else 6)


@pytest.mark.parametrize(
    "shape, size",
    [
        ((4096, 256), None), ((1, 64, 64, 256), 1024), ((2, 40, 32, 5), 320), ((2, 7, 5), None),
        ((1, 8, 254, 3), 1016), ((1, 2053, 3), None), ((2000, 3, 3), None),
    ],
    ids=str,
)  # fmt: skip
def test_pieces_of_a_product_s_gradient(shape, size):
    assert layers._places_at_once(shape) == size


def test_product_over_several_models():
    x, kernels = draw(4, 6, 5), draw(4, 5, 3, seed=1)
    found = jax.vmap(layers.product)(x, kernels)
    np.testing.assert_allclose(found, x @ kernels, rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("platform, sums", [("cpu", "f32"), ("cuda", "bf16"), ("tpu", "bf16")])
def test_half_precision_is_multiplied_as_such(platform, sums, unit, monkeypatch):
    """On the CPU where there is a unit for it and with float32's sums; the others round in the
    product itself."""
    monkeypatch.setattr(layers, "multiplies_bfloat16", lambda: unit)
    factors = "f32" if platform == "cpu" and not unit else "bf16"
    x, kernel = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((4, 8), (8, 2)))
    program = (
        jax.jit(lambda *x: layers.product(*x))
        .trace(x, kernel)
        .lower(lowering_platforms=(platform,))
    )
    (line,) = [line for line in program.as_text().splitlines() if "dot_general" in line]
    assert f"(tensor<4x8x{factors}>, tensor<8x2x{factors}>) -> tensor<4x2x{sums}>" in line


@pytest.mark.parametrize("unit", [True, False])
def test_sums_of_half_precision_are_rounded_once(unit, monkeypatch):
    monkeypatch.setattr(layers, "multiplies_bfloat16", lambda: unit)
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((16, 512), (512, 16)))
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    found = jax.jit(lambda *x: layers.product(*x))(x, kernel)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-4)
    wide = jax.jit(lambda x, y: layers.float32_dot(jnp.matmul, x, y))(x, kernel)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, exact, rtol=0, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: layers.product(x, kernel).astype(jnp.float32).sum()))(x)
    assert gradient.dtype == jnp.bfloat16
    expected = np.asarray(kernel, np.float64).sum(axis=1)
    np.testing.assert_allclose(
        np.asarray(gradient, np.float64), np.tile(expected, (16, 1)), rtol=2**-8, atol=1e-3
    )
