"""The parts of YOLOv8, NHWC. Batch norms are folded into the convolutions before them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import Dtype


class Conv(nnx.Module):
    """A square convolution with bias, padded so that stride 1 keeps the size.

    `kernel` is (size, size, in, out).
    """

    gain = 1.0
    """Of the first random kernels' variance."""

    def __init__(
        self, d_in: int, d_out: int, size: int = 1, *, stride: int = 1, dtype: Dtype,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        init = nnx.initializers.variance_scaling(self.gain, "fan_in", "truncated_normal")
        self.kernel = nnx.Param(init(rngs.params(), (size, size, d_in, d_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_out))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        kernel = self.kernel[...].astype(self.dtype)
        pad = (kernel.shape[0] // 2,) * 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (self.stride, self.stride), (pad, pad),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return y + self.bias[...].astype(self.dtype)


class ConvSilu(Conv):
    """`Conv`, and SiLU after it."""

    gain = 1 / 0.3557
    """SiLU leaves so much of a unit normal's mean square: without batch norm a signal would be lost
    on its way through sixty of them."""

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        return jax.nn.silu(super().__call__(x))


class Bottleneck(nnx.Module):
    """Two 3x3 convolutions, added to what goes in where `residual`."""

    def __init__(self, width: int, *, residual: bool, dtype: Dtype, rngs: nnx.Rngs):
        self.conv1 = ConvSilu(width, width, 3, dtype=dtype, rngs=rngs)
        self.conv2 = ConvSilu(width, width, 3, dtype=dtype, rngs=rngs)
        self.residual = residual

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        y = self.conv2(self.conv1(x))
        return x + y if self.residual else y


class C2f(nnx.Module):
    """A cross-stage block: half of the channels go through bottlenecks one after the other, and
    what each of them gives is joined to both halves."""

    def __init__(
        self, d_in: int, d_out: int, depth: int, *, residual: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        half = d_out // 2
        self.conv1 = ConvSilu(d_in, 2 * half, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [Bottleneck(half, residual=residual, dtype=dtype, rngs=rngs) for _ in range(depth)]
        )
        self.conv2 = ConvSilu((2 + depth) * half, d_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        parts = jnp.split(self.conv1(x), 2, axis=-1)
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.conv2(jnp.concatenate(parts, axis=-1))


class PyramidPooling(nnx.Module):
    """Maxima over 5, 9 and 13 places beside the features (SPPF: each the maximum over 5 of the one
    before)."""

    def __init__(self, width: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv1 = ConvSilu(width, width // 2, dtype=dtype, rngs=rngs)
        self.conv2 = ConvSilu(4 * (width // 2), width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        pooled = [self.conv1(x)]
        for _ in range(3):
            pooled.append(nnx.max_pool(pooled[-1], (5, 5), (1, 1), "SAME"))
        return self.conv2(jnp.concatenate(pooled, axis=-1))


class Stage(nnx.Module):
    """Half the resolution, then `C2f`."""

    def __init__(
        self, d_in: int, d_out: int, depth: int, *, dtype: Dtype, rngs: nnx.Rngs
    ):  # fmt: skip
        self.down = ConvSilu(d_in, d_out, 3, stride=2, dtype=dtype, rngs=rngs)
        self.block = C2f(d_out, d_out, depth, residual=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        return self.block(self.down(x))


class Branch(nnx.Module):
    """What the head says of each place of a grid: two 3x3 convolutions and a 1x1."""

    def __init__(self, d_in: int, width: int, d_out: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv1 = ConvSilu(d_in, width, 3, dtype=dtype, rngs=rngs)
        self.conv2 = ConvSilu(width, width, 3, dtype=dtype, rngs=rngs)
        self.conv3 = Conv(width, d_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        return self.conv3(self.conv2(self.conv1(x)))


class Prototypes(nnx.Module):
    """Masks of the whole picture at stride 4, of which those of objects are sums.

    `upsample_kernel` is (2, 2, in, out): the four places that each place becomes.
    """

    def __init__(self, d_in: int, width: int, d_out: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv1 = ConvSilu(d_in, width, 3, dtype=dtype, rngs=rngs)
        init = nnx.initializers.lecun_normal()
        self.upsample_kernel = nnx.Param(init(rngs.params(), (2, 2, width, width), jnp.float32))
        self.upsample_bias = nnx.Param(jnp.zeros(width))
        self.conv2 = ConvSilu(width, width, 3, dtype=dtype, rngs=rngs)
        self.conv3 = ConvSilu(width, d_out, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        x = self.conv1(x)
        batch, height, width, _ = x.shape
        kernel = self.upsample_kernel[...].astype(self.dtype)
        x = jnp.einsum("bhwd,ijde->bhiwje", x, kernel)
        x = x.reshape(batch, 2 * height, 2 * width, -1) + self.upsample_bias[...].astype(self.dtype)
        return self.conv3(self.conv2(x))


def doubled(x: Float[Array, "B H W D"]) -> Float[Array, "B h w D"]:
    """Each place twice along both axes."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
