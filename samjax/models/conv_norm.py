"""Convolutions without bias and the batch norm after them, NHWC.

The norm's statistics are those of an earlier training and constants here, so that what it
multiplies by goes into the kernel of the convolution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import Dtype
from samjax.models.depthwise import same_padding
from samjax.models.layers import Buffer, scaled, spread
from samjax.models.products import at_least_float32, product

Convolution = Callable[[Float[Array, "B H W D"], Float[Array, "E"]], Float[Array, "B h w E"]]
"""Of a picture, with each output channel multiplied by a factor."""


class UnfoldedConv(nnx.Module):
    """A square convolution, as one product with what lies under each place of the kernel.

    With few channels that costs little memory, and XLA:CPU has no quick program for the gradient of
    the convolution itself. `kernel` is (size, size, in, out). `padding` zeros go on every side;
    without it, as many as `same_padding` says for the picture at hand.
    """

    def __init__(
        self, d_in: int, d_out: int, size: int, *, stride: int, padding: int | None = None,
        dtype: Dtype, rngs: nnx.Rngs,
    ):  # fmt: skip
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, d_in, d_out), jnp.float32))
        self.stride = stride
        self.padding = padding
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "B H W D"], factor: Float[Array, "E"] | None = None
    ) -> Float[Array, "B h w E"]:
        """`factor` multiplies each channel of the result."""
        kernel = scaled(self.kernel[...], factor).astype(self.dtype)
        size, stride = kernel.shape[0], self.stride
        pads = [
            same_padding(n, size, stride) if self.padding is None else (self.padding, self.padding)
            for n in x.shape[1:3]
        ]
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), *pads, (0, 0)))
        rows, columns = (stride * ((n - size) // stride) + 1 for n in padded.shape[1:3])
        under = [
            padded[:, i : i + rows : stride, j : j + columns : stride]
            for i, j in np.ndindex(size, size)
        ]
        return product(jnp.concatenate(under, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


class Pointwise(nnx.Module):
    """A 1x1 convolution without bias, as the matrix product that it is."""

    def __init__(self, d_in: int, d_out: int, *, dtype: Dtype, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (d_in, d_out), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B H W D"], factor=None) -> Float[Array, "B H W E"]:
        return product(x.astype(self.dtype), scaled(self.kernel[...], factor).astype(self.dtype))


class FrozenBatchNorm(nnx.Module):
    """Batch norm with the statistics of an earlier training, which are constants here.

    `scale` and `bias` are parameters. What it multiplies by goes into the kernel of the convolution
    before it: no pass over the picture, and no sum over it for the gradient of `scale`. With
    `counted` it keeps the number of batches that its statistics are from, as torch's does; nothing
    uses that.
    """

    def __init__(
        self, width: int, *, epsilon: float = 1e-3, counted: bool = False, dtype: Dtype
    ):  # fmt: skip
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = Buffer(jnp.zeros(width))
        self.var = Buffer(jnp.ones(width))
        if counted:
            self.num_batches_tracked = Buffer(jnp.zeros(()))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(
        self, convolution: Convolution, x: Float[Array, "B H W D"]
    ) -> Float[Array, "B h w E"]:
        """What `convolution` makes of `x`, normalized."""
        scale, bias, mean, var = (
            at_least_float32(v[...]) for v in (self.scale, self.bias, self.mean, self.var)
        )
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        y = at_least_float32(convolution(x, factor))
        offset = (bias - mean * factor).astype(y.dtype)
        return (y + spread(offset, y.shape)).astype(self.dtype)
