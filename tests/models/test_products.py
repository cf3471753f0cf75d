"""Matrix products and their gradients, in each precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.models import products


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 3, 4, 5), (2, 40, 32, 5)], ids=str)
def test_product_and_its_derivatives(shape):
    x, kernel, weights = draw(*shape), draw(5, 3, seed=1), draw(*shape[:-1], 3, seed=2)

    def loss(multiply):
        return lambda x, kernel: (jnp.sin(multiply(x, kernel)) * weights).sum()

    ours, plain = loss(products.product), loss(jnp.matmul)
    np.testing.assert_array_equal(products.product(x, kernel), x @ kernel)
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
            return products.product(x, kernel).sum()

    for precision, function in (("HIGHEST", loss), ("None", lambda *a: products.product(*a).sum())):
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
    assert products._places_at_once(shape) == size


def test_product_over_several_models():
    x, kernels = draw(4, 6, 5), draw(4, 5, 3, seed=1)
    found = jax.vmap(products.product)(x, kernels)
    np.testing.assert_allclose(found, x @ kernels, rtol=0, atol=1e-5)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("platform, sums", [("cpu", "f32"), ("cuda", "bf16"), ("tpu", "bf16")])
def test_half_precision_is_multiplied_as_such(platform, sums, unit, monkeypatch):
    """On the CPU where there is a unit for it and with float32's sums; the others round in the
    product itself."""
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: unit)
    factors = "f32" if platform == "cpu" and not unit else "bf16"
    x, kernel = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((4, 8), (8, 2)))
    program = (
        jax.jit(lambda *x: products.product(*x))
        .trace(x, kernel)
        .lower(lowering_platforms=(platform,))
    )
    (line,) = [line for line in program.as_text().splitlines() if "dot_general" in line]
    assert f"(tensor<4x8x{factors}>, tensor<8x2x{factors}>) -> tensor<4x2x{sums}>" in line


@pytest.mark.parametrize("unit", [True, False])
def test_sums_of_half_precision_are_rounded_once(unit, monkeypatch):
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: unit)
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((16, 512), (512, 16)))
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    found = jax.jit(lambda *x: products.product(*x))(x, kernel)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-4)
    wide = jax.jit(lambda x, y: products.float32_dot(jnp.matmul, x, y))(x, kernel)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, exact, rtol=0, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: products.product(x, kernel).astype(jnp.float32).sum()))(x)
    assert gradient.dtype == jnp.bfloat16
    expected = np.asarray(kernel, np.float64).sum(axis=1)
    np.testing.assert_allclose(
        np.asarray(gradient, np.float64), np.tile(expected, (16, 1)), rtol=2**-8, atol=1e-3
    )


ROWS = (2, 3, 50, 64)


def test_a_product_of_8_bit_integers():
    """Each number is off by at most half a step of its row or column."""
    x, kernel = draw(*ROWS), draw(64, 24, seed=1) * jnp.arange(24.0)
    x = x.at[0, 0, 0].set(0.0).at[1, 2, 3, 5].set(1000.0)
    found = np.asarray(jax.jit(products.int8_product)(x, kernel), np.float64)
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    row = np.abs(x).max(axis=-1, keepdims=True) / 127
    column = np.abs(kernel).max(axis=0) / 127
    off = row / 2 * np.abs(kernel).sum(axis=0) + column / 2 * np.abs(x).sum(-1, keepdims=True)
    off = 1.0001 * (off + len(kernel) * row * column / 4) + 1e-6
    assert (np.abs(found - x @ kernel) <= off).all()
    assert np.abs(found - x @ kernel).max() > 0.01  # it does round
    assert not found[0, 0, 0].any() and not found[..., 0].any()


def test_whole_numbers_are_multiplied_exactly():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.integers(-127, 128, s), jnp.float32) for s in (ROWS, (64, 9)))
    x, kernel = x.at[..., 0].set(127.0), kernel.at[0].set(-127.0)
    np.testing.assert_array_equal(products.int8_product(x, kernel), x @ kernel)
    half = products.int8_product(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, (x @ kernel).astype(jnp.bfloat16))


def test_gradients_leave_rounding_out():
    x, kernel, weights = draw(*ROWS), draw(64, 24, seed=1), draw(*ROWS[:-1], 24, seed=2)

    def gradients(multiply):
        def loss(x, kernel):
            return (multiply(x, kernel) * weights).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)

    for found, expected in zip(
        gradients(products.int8_product), gradients(products.product), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_integers_are_multiplied_as_such(platform, dtype):
    x, kernel = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((4, 8), (8, 2)))
    program = jax.jit(products.int8_product).trace(x, kernel)
    text = program.lower(lowering_platforms=(platform,)).as_text()
    (line,) = [line for line in text.splitlines() if "dot_general" in line]
    assert "(tensor<4x8xi8>, tensor<8x2xi8>) -> tensor<4x2xi32>" in line
