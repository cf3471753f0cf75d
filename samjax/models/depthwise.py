"""Depthwise convolutions, NHWC: every channel with a kernel of its own (MobileNet, section 3.1).

Two programs for the same sum. `grouped` is the definition, and what GPU and TPU compilers like.
`shifted` adds up the picture's k * k shifted copies, each times one tap: XLA:CPU makes a single
loop of that, and takes 10 to 60 times as long for a convolution with as many groups as channels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import Dtype
from samjax.models.layers import scaled
from samjax.models.products import at_least_float32
from samjax.platforms import platform_dependent

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros above and below, and left and right of the picture."""


class DepthwiseConv(nnx.Module):
    """A square depthwise convolution without bias.

    `kernel` is (size, size, 1, channels). `padding` zeros go on every side; without it, as many as
    `same_padding` says for the picture at hand.
    """

    def __init__(
        self, channels: int, size: int, *, stride: int = 1, padding: int | None = None,
        dtype: Dtype, rngs: nnx.Rngs,
    ):  # fmt: skip
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1),
                                                 out_axis=3)  # fmt: skip
        self.kernel = nnx.Param(init(rngs.params(), (size, size, 1, channels), jnp.float32))
        self.stride = stride
        self.padding = padding
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "B H W D"], factor: Float[Array, "D"] | None = None
    ) -> Float[Array, "B h w D"]:
        """`factor` multiplies each channel of the result."""
        kernel = scaled(self.kernel[...], factor).astype(self.dtype)
        if self.padding is None:
            height, width = (same_padding(n, kernel.shape[0], self.stride) for n in x.shape[1:3])
        else:
            height = width = (self.padding, self.padding)
        x = x.astype(self.dtype)
        return depthwise_conv(x, kernel, stride=self.stride, padding=(height, width))


def depthwise_conv(
    x: Float[Array, "B H W D"], kernel: Float[Array, "k l 1 D"], *, stride: int, padding: Padding
) -> Float[Array, "B h w D"]:
    """The sum over (i, j) of `x` at (stride * row + i, stride * column + j) times `kernel[i, j]`.

    `x` and `kernel` are of one type, which the result has too; half precision is summed up in
    float32. The program is chosen when the code is compiled for a platform. Derivatives
    go in reverse mode only (`jax.grad`, `jax.vjp`; not `jax.jvp`).
    """
    return platform_dependent(
        x, kernel, cpu=lambda x, kernel: shifted(x, kernel, stride, padding),
        default=lambda x, kernel: grouped(x, kernel, stride, padding),
    )  # fmt: skip


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after for ceil(length / stride) results, the odd one after (TensorFlow)."""
    zeros = max((-(-length // stride) - 1) * stride + size - length, 0)
    return zeros // 2, zeros - zeros // 2


def grouped(x, kernel, stride: int, padding: Padding):
    """One convolution with a group for each channel."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted(x, kernel, stride: int, padding: Padding):
    """The sum written out."""
    return _shifted(x, kernel, stride, padding)


def _shifted(x, kernel, stride: int, padding: Padding):
    padded = _pad(x, padding)
    height, width = _output_size(padded, kernel, stride)
    total = jnp.zeros((), at_least_float32(x).dtype)
    for i, j in np.ndindex(kernel.shape[:2]):
        piece = at_least_float32(_strided(padded, (i, j), (height, width), stride))
        total = total + piece * at_least_float32(kernel[i, j, 0])
    return total.astype(x.dtype)


def _shifted_forward(x, kernel, stride: int, padding: Padding):
    return _shifted(x, kernel, stride, padding), (x, kernel)


def _shifted_backward(stride: int, padding: Padding, residuals, gradient):
    x, kernel = residuals
    x_gradient = _picture_gradient(x, kernel, gradient, stride, padding)
    return x_gradient, _kernel_gradient(x, kernel, gradient, stride, padding)


def _picture_gradient(x, kernel, gradient, stride: int, padding: Padding):
    """The gradient, spread out again by the stride, convolved with the kernel turned round.

    Automatic differentiation writes a padded copy for each tap instead. The barriers keep XLA:CPU
    from computing the sum again in every loop that reads it.
    """
    zero = jnp.zeros((), gradient.dtype)
    edges = []
    for axis, (before, _) in enumerate(padding, start=1):
        size = kernel.shape[axis - 1]
        spread = stride * (gradient.shape[axis] - 1) + 1
        first = size - 1 - before
        edges.append((first, x.shape[axis] + size - 1 - spread - first, stride - 1))
    spread_out = jax.lax.pad(gradient, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    turned = jnp.flip(kernel, (0, 1))
    spread_out = jax.lax.optimization_barrier(spread_out)
    return jax.lax.optimization_barrier(_shifted(spread_out, turned, 1, ((0, 0), (0, 0))))


def _kernel_gradient(x, kernel, gradient, stride: int, padding: Padding):
    """Row by row, all taps at a time, so that sums over the picture stay in the cache.

    What automatic differentiation writes, one pass over the picture for each tap, takes five times
    as long.
    """
    padded = _pad(x, padding)
    height, width = gradient.shape[1:3]
    taps = list(np.ndindex(kernel.shape[:2]))

    def add_row(sums, n):
        start = (n // height, n % height * stride, 0, 0)
        rows = jax.lax.dynamic_slice(padded, start, (1, kernel.shape[0], *padded.shape[2:]))
        row = jax.lax.dynamic_slice(
            gradient, (n // height, n % height, 0, 0), (1, 1, *gradient.shape[2:])
        )
        rows, row = at_least_float32(rows), at_least_float32(row)
        return [
            total + _strided(rows, tap, (1, width), stride) * row
            for total, tap in zip(sums, taps, strict=True)
        ], None

    zero = jnp.zeros((1, 1, width, x.shape[3]), at_least_float32(x).dtype)
    sums, _ = jax.lax.scan(
        add_row, [zero] * len(taps), jnp.arange(x.shape[0] * height, dtype=jnp.int32)
    )
    totals = jnp.stack([total.sum(axis=(0, 1, 2)) for total in sums])
    return totals.reshape(kernel.shape).astype(kernel.dtype)


shifted.defvjp(_shifted_forward, _shifted_backward)


def _pad(x, padding: Padding):
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _output_size(padded, kernel, stride: int) -> tuple[int, int]:
    sizes = zip(padded.shape[1:3], kernel.shape[:2], strict=True)
    height, width = ((n - size) // stride + 1 for n, size in sizes)
    return height, width


def _strided(x, start: tuple[int, int], size: tuple[int, int], stride: int):
    """`size` pixels from `start` on, `stride` apart."""
    ends = [i + stride * (n - 1) + 1 for i, n in zip(start, size, strict=True)]
    return jax.lax.slice(x, (0, *start, 0), (x.shape[0], *ends, x.shape[3]), (1, stride, stride, 1))
