"""What two or more modules share."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import Dtype
from samjax.models.products import at_least_float32, int8_product, product
from samjax.models.vit_config import Products
from samjax.platforms import platform_dependent


class Buffer(nnx.Variable):
    """A constant that is stored with the parameters and never trained."""


def gelu(x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
    """The exact GELU, with the error function, as torch has it.

    `jax.nn.gelu` takes erfc, which keeps more digits of the tiny values left of -3 and costs two
    to three times as much on the CPU.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def scaled(kernel: Float[Array, "*L E"], factor: Float[Array, "E"] | None) -> Float[Array, "*L E"]:
    """A kernel whose outputs are multiplied by `factor`."""
    return kernel if factor is None else at_least_float32(kernel) * factor


SUMMED_AT_ONCE = 1024
"""Numbers that are added up side by side in the gradient of `spread` (measured: 512 to 16384)."""


def spread(vector: Float[Array | np.ndarray, "D"], shape: tuple[int, ...]) -> Float[Array, "*L D"]:
    """`vector` at every place of an array of `shape`, which ends with its length.

    Its gradient is a sum over all places, for which XLA:CPU takes 10 to 30 times as long as for
    two sums: over blocks of `SUMMED_AT_ONCE` numbers, and within what is left. The barrier keeps
    the two apart. A block has nothing of the first of three or more axes, which may be spread over
    devices.
    """
    room, block = max(1, SUMMED_AT_ONCE // shape[-1]), shape[-1:]
    axis = len(shape) - 1
    while axis > (len(shape) > 2):
        axis -= 1
        part = max(n for n in range(1, room + 1) if shape[axis] % n == 0)
        block, room = (part, *block), room // part
        if part < shape[axis]:
            break
    blocks = shape[:axis] if axis == len(shape) - 1 else (*shape[:axis], shape[axis] // block[0])
    one = jax.lax.optimization_barrier(jnp.broadcast_to(vector, block))
    return jnp.broadcast_to(one, (*blocks, *block)).reshape(shape)


class Linear(nnx.Linear):
    """The layer of Flax with a product for its kernel that `products` names, and `spread` for its
    bias."""

    products: Products = "float"

    def __call__(self, inputs: Float[Array, "*L D"], out_sharding=None) -> Float[Array, "*L E"]:
        return self.plus_bias(self.without_bias(inputs))

    def without_bias(self, inputs: Float[Array, "*L D"]) -> Float[Array, "*L E"]:
        multiply = int8_product if self.products == "int8" else product
        return multiply(inputs.astype(self.dtype), self.kernel[...].astype(self.dtype))

    def plus_bias(self, y: Float[Array, "*L E"]) -> Float[Array, "*L E"]:
        if self.bias is None:
            return y
        return y + spread(self.bias[...].astype(self.dtype), y.shape)


def linear(
    d_in: int, d_out: int, *, bias: bool = True, products: Products = "float", dtype: Dtype,
    rngs: nnx.Rngs,
) -> Linear:  # fmt: skip
    layer = Linear(d_in, d_out, use_bias=bias, dtype=dtype, rngs=rngs)
    layer.products = products
    return layer


class LayerNorm(nnx.Module):
    """Over the last axis, which in NHWC makes it the reference's `LayerNorm2d` too.

    The variance is the mean of squared deviations, in float32: Flax's own norm prefers the quicker
    E[x^2] - E[x]^2, which loses digits, and mixes types that strict promotion forbids.
    """

    def __init__(self, width: int, *, epsilon: float, dtype: Dtype):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        x = platform_dependent(
            at_least_float32(x), cpu=functools.partial(self._normalized, _mean_in_two),
            default=functools.partial(self._normalized, _mean),
        )  # fmt: skip
        scale, bias = (spread(v[...].astype(x.dtype), x.shape) for v in (self.scale, self.bias))
        return (x * scale + bias).astype(self.dtype)

    def _normalized(self, mean: Callable[[Array], Array], x: Array) -> Array:
        x = x - mean(x)
        return x * jax.lax.rsqrt(mean(x * x) + self.epsilon)


def _mean(x: Float[Array, "*L D"]) -> Float[Array, "*L 1"]:
    return jnp.mean(x, axis=-1, keepdims=True)


MEANS_AT_ONCE = 32
"""Channels of which every so many are added up first, side by side (measured: 8 to 128)."""


def _mean_in_two(x: Float[Array, "*L D"]) -> Float[Array, "*L 1"]:
    """`_mean`, of which XLA:CPU does the first half as whole vectors and without writing what it
    adds. The barrier keeps it from making one slow reduction of the two."""
    side = max(n for n in range(1, MEANS_AT_ONCE + 1) if x.shape[-1] % n == 0)
    sums = x.reshape(*x.shape[:-1], -1, side).sum(axis=-2)
    return jax.lax.optimization_barrier(sums).sum(axis=-1, keepdims=True) / x.shape[-1]


class PatchConv(nnx.Conv):
    """A convolution over patches that do not overlap, as the matrix product that it is.

    XLA:CPU has no quick program for the gradients of the convolution itself.
    """

    def __call__(
        self, inputs: Float[Array, "*L H W D"], out_sharding=None
    ) -> Float[Array, "*L h w E"]:
        kernel = self.kernel[...].astype(self.dtype)
        size, _, d_in, d_out = kernel.shape
        *lead, height, width, _ = inputs.shape
        x = inputs.astype(self.dtype)
        x = x.reshape(*lead, height // size, size, width // size, size, d_in)
        x = jnp.moveaxis(x, -3, -4).reshape(*lead, height // size, width // size, -1)
        y = product(x, kernel.reshape(-1, d_out))
        if self.bias is None:
            return y
        return y + spread(self.bias[...].astype(self.dtype), y.shape)


def conv(
    d_in: int, d_out: int, size: int, *, stride: int = 1, bias: bool = True, dtype: Dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:  # fmt: skip
    """A square NHWC convolution: `SAME` at stride 1, otherwise patches that do not overlap."""
    kind = PatchConv if stride == size else nnx.Conv
    return kind(
        d_in, d_out, (size, size), strides=stride, padding="SAME" if stride == 1 else "VALID",
        use_bias=bias, dtype=dtype, rngs=rngs,
    )  # fmt: skip


class UpscaleTwice(nnx.Module):
    """A 2x2 transposed convolution of stride 2: each pixel becomes four of its own.

    Since no two pixels meet in the output, it is one matrix product. `kernel` is (in, row, column,
    out).
    """

    def __init__(self, d_in: int, d_out: int, *, dtype: Dtype, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0,
                                                 out_axis=(1, 2, 3))  # fmt: skip
        self.kernel = nnx.Param(init(rngs.params(), (d_in, 2, 2, d_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_out))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L 2 2 E"]:
        """Every pixel's four, by row and column."""
        return self.of_product(product(x.astype(self.dtype), self.matrix()))

    def matrix(self) -> Float[Array, "D F"]:
        """The kernel, F numbers for each pixel."""
        kernel = jnp.asarray(self.kernel[...], self.dtype)
        return kernel.reshape(len(kernel), -1)

    def of_product(self, y: Float[Array, "*L F"]) -> Float[Array, "*L 2 2 E"]:
        """The call, for pixels that are multiplied with `matrix` already."""
        y = y.reshape(*y.shape[:-1], *self.kernel.shape[1:])
        return y + spread(self.bias[...].astype(self.dtype), y.shape)


class UpscaleFourTimes(nnx.Module):
    """Two 2x2 transposed convolutions with a norm and a GELU between them.

    The sixteen pixels that become of one stay together on axes of their own, (row, column) twice:
    what is made of few of the channels is cheaper to bring into order (`in_order`) than all.
    """

    def __init__(
        self, d_in: int, hidden: int, d_out: int, *, dtype: Dtype, rngs: nnx.Rngs
    ):  # fmt: skip
        self.upscale1 = UpscaleTwice(d_in, hidden, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(hidden, epsilon=1e-6, dtype=dtype)
        self.upscale2 = UpscaleTwice(hidden, d_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L 2 2 2 2 E"]:
        return self.after_first(self.upscale1(x))

    def after_first(self, x: Float[Array, "*L 2 2 C"]) -> Float[Array, "*L 2 2 2 2 E"]:
        """The call, for what `upscale1` returns."""
        return self.upscale2(gelu(self.norm1(x)))


def in_order(x: Float[Array, "*L H W 2 2 2 2 E"]) -> Float[Array, "*L h w E"]:
    """What `UpscaleFourTimes` makes of a picture, as a picture of four times the side."""
    *lead, height, width, _, _, _, _, channels = x.shape
    first = len(lead)
    rows, columns = (first, first + 2, first + 4), (first + 1, first + 3, first + 5)
    x = x.transpose(*range(first), *rows, *columns, first + 6)
    return x.reshape(*lead, 4 * height, 4 * width, channels)


class MlpHead(nnx.Module):
    """Linear layers with ReLU between them (reference: `mask_decoder.MLP`)."""

    def __init__(
        self, d_in: int, hidden: int, d_out: int, depth: int, *, dtype: Dtype, rngs: nnx.Rngs
    ):  # fmt: skip
        sizes = [d_in, *[hidden] * (depth - 1), d_out]
        self.layers = nnx.List(
            [linear(a, b, dtype=dtype, rngs=rngs) for a, b in zip(sizes, sizes[1:], strict=False)]
        )

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L E"]:
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class Mlp(nnx.Module):
    """The two layers of a transformer block (reference: `MLPBlock`)."""

    def __init__(
        self, width: int, hidden: int, activation, *, products: Products = "float", dtype: Dtype,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.lin1 = linear(width, hidden, products=products, dtype=dtype, rngs=rngs)
        self.lin2 = linear(hidden, width, products=products, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        return self.lin2(self.activation(self.lin1(x)))
