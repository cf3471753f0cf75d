"""The two programs for a depthwise convolution compute one sum."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from samjax.models import depthwise

SIZES = {
    "3x3": ((2, 8, 8, 6), 3, 1, None),
    "5x5": ((1, 9, 13, 4), 5, 1, None),
    "7x7, larger than the picture": ((1, 4, 4, 3), 7, 1, None),
    "stride 2, even": ((2, 8, 12, 6), 3, 2, None),
    "stride 2, odd": ((1, 9, 7, 6), 5, 2, None),
    "stride 2 as torch pads": ((2, 8, 9, 6), 3, 2, 1),
    "no padding": ((1, 8, 9, 6), 3, 2, 0),
    "one pixel": ((1, 1, 1, 5), 3, 1, None),
}


def inputs(name):
    shape, size, stride, padding = SIZES[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, shape[-1])), jnp.float32)
    if padding is None:
        return x, kernel, stride, tuple(depthwise.same_padding(n, size, stride) for n in shape[1:3])
    return x, kernel, stride, ((padding, padding), (padding, padding))


@pytest.mark.parametrize("name", SIZES)
def test_the_sums_and_their_gradients_agree(name):
    x, kernel, stride, padding = inputs(name)
    expected = depthwise.grouped(x, kernel, stride, padding)
    found = jax.jit(depthwise.shifted, static_argnums=(2, 3))(x, kernel, stride, padding)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())

    weights = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape), jnp.float32)

    def gradients(program):
        return jax.jit(
            jax.grad(lambda x, k: (weights * program(x, k, stride, padding)).sum(), (0, 1))
        )(x, kernel)

    for a, b in zip(gradients(depthwise.shifted), gradients(depthwise.grouped), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_same_padding_is_that_of_the_compiler():
    x, kernel, stride, padding = inputs("stride 2, odd")
    named = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip
    np.testing.assert_array_equal(depthwise.grouped(x, kernel, stride, padding), named)
    assert depthwise.same_padding(512, 3, 2) == (0, 1)
    assert depthwise.same_padding(512, 5, 2) == (1, 2)
    assert depthwise.same_padding(15, 5, 2) == (2, 2)


def test_half_precision_is_summed_up_in_float32():
    """25 ones and a small number: in bfloat16 sums beyond 16 the steps are an eighth."""
    x = jnp.ones((1, 5, 5, 1), jnp.bfloat16)
    kernel = jnp.full((5, 5, 1, 1), 1.0078125, jnp.bfloat16)
    options = (1, ((0, 0), (0, 0)))
    out, gradient = jax.value_and_grad(
        lambda k: depthwise.shifted(x, k, *options).astype(jnp.float32).sum()
    )(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert float(out) == float(jnp.asarray(25 * 1.0078125, jnp.bfloat16))


def test_many_pictures_equal_one_by_one():
    x, kernel, stride, padding = inputs("stride 2, even")

    def gradient(kernel, x):
        return jax.grad(lambda k: (depthwise.shifted(x, k, stride, padding) ** 2).sum())(kernel)

    each = jax.vmap(gradient, in_axes=(None, 0))(kernel, x[:, None])
    whole = gradient(kernel, x)
    np.testing.assert_allclose(each.sum(0), whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_the_platform_chooses():
    """A convolution with groups, but on the CPU, which gets none even for the gradients."""
    x, kernel, stride, padding = inputs("5x5")

    def gradients(x, kernel):
        def loss(x, kernel):
            return depthwise.depthwise_conv(x, kernel, stride=stride, padding=padding).sum()

        return jax.grad(loss, (0, 1))(x, kernel)

    for platform in ("cpu", "cuda", "tpu"):
        exported = jax.export.export(jax.jit(gradients), platforms=[platform])(x, kernel)
        assert ("stablehlo.convolution" in exported.mlir_module()) == (platform != "cpu")


@pytest.mark.parametrize("padding, expected", [(None, (1, 5, 4, 6)), (0, (1, 4, 3, 6))])
def test_the_module_pads_by_the_picture_or_as_told(padding, expected):
    conv = depthwise.DepthwiseConv(
        6, 3, stride=2, padding=padding, dtype="float32", rngs=nnx.Rngs(0)
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 8, 6)), jnp.float32)
    assert conv(x).shape == expected
