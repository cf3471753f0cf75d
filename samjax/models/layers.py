"""What two or more modules share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import Dtype


class Buffer(nnx.Variable):
    """A constant that is stored with the parameters and never trained."""


def gelu(x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
    """The exact GELU, with the error function, as torch has it.

    `jax.nn.gelu` takes erfc, which keeps more digits of the tiny values left of -3 and costs two
    to three times as much on the CPU.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def at_least_float32(x: Float[Array, "*L"]) -> Float[Array, "*L"]:
    """For what half precision would spoil: softmax, positions, and what is returned."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def linear(d_in: int, d_out: int, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(d_in, d_out, dtype=dtype, rngs=rngs)


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
        x = at_least_float32(x)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        x = x * self.scale[...].astype(x.dtype) + self.bias[...].astype(x.dtype)
        return x.astype(self.dtype)


def conv(
    d_in: int, d_out: int, size: int, *, stride: int = 1, bias: bool = True, dtype: Dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:  # fmt: skip
    """A square NHWC convolution: `SAME` at stride 1, otherwise patches that do not overlap."""
    return nnx.Conv(
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
        d_in, *four = self.kernel.shape
        kernel = self.kernel[...].astype(self.dtype).reshape(d_in, -1)
        y = x.astype(self.dtype) @ kernel
        return y.reshape(*x.shape[:-1], *four) + self.bias[...].astype(self.dtype)


class Mlp(nnx.Module):
    """The two layers of a transformer block (reference: `MLPBlock`)."""

    def __init__(self, width: int, hidden: int, activation, *, dtype: Dtype, rngs: nnx.Rngs):
        self.lin1 = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.lin2 = linear(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        return self.lin2(self.activation(self.lin1(x)))
