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
from samjax.models.layers import at_least_float32

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

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w D"]:
        kernel = self.kernel[...].astype(self.dtype)
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
    float32. The program is chosen when the code is compiled for a platform.
    """
    return jax.lax.platform_dependent(
        x, kernel, cpu=functools.partial(shifted, stride=stride, padding=padding),
        default=functools.partial(grouped, stride=stride, padding=padding),
    )  # fmt: skip


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after for ceil(length / stride) results, the odd one after (TensorFlow)."""
    zeros = max((-(-length // stride) - 1) * stride + size - length, 0)
    return zeros // 2, zeros - zeros // 2


def grouped(x, kernel, *, stride: int, padding: Padding):
    """One convolution with a group for each channel."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip


def shifted(x, kernel, *, stride: int, padding: Padding):
    """The sum written out."""
    rows, columns = kernel.shape[:2]
    height, width = (
        (n + sum(zeros) - size) // stride + 1
        for n, zeros, size in zip(x.shape[1:3], padding, (rows, columns), strict=True)
    )
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    total = jnp.zeros((), at_least_float32(x).dtype)
    for i, j in np.ndindex(rows, columns):
        last = (i + stride * (height - 1) + 1, j + stride * (width - 1) + 1)
        piece = jax.lax.slice(
            padded, (0, i, j, 0), (x.shape[0], *last, x.shape[3]), (1, stride, stride, 1)
        )
        total = total + at_least_float32(piece) * at_least_float32(kernel[i, j, 0])
    return total.astype(x.dtype)
