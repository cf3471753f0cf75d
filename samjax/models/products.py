"""Matrix products, in the order and the precision that each platform is quick in.

`product` is what layers multiply by their kernels with, `int8_product` the same of numbers that are
rounded to 8 bits, `dot` and `float32_dot` are for two arrays of activations.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from samjax.platforms import multiplies_bfloat16, platform_dependent


def at_least_float32(x: Float[Array, "*L"]) -> Float[Array, "*L"]:
    """For what half precision would spoil: softmax, positions, and what is returned."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def dot(
    function: Callable[..., Array], x: Float[Array, "*L"], y: Float[Array, "*M"]
) -> Float[Array, "*N"]:
    """`function(x, y)`, which is `jnp.matmul` or another with its `preferred_element_type`.

    Of half precision the CPU sums in float32 and rounds once: `float32_dot` has the reason.
    """
    if x.dtype.itemsize >= 4:
        return function(x, y)

    def rounded_after(x: Array, y: Array) -> Array:
        return float32_dot(function, x, y).astype(x.dtype)

    return platform_dependent(x, y, cpu=rounded_after, default=function)


def float32_dot(
    function: Callable[..., Array], x: Float[Array, "*L"], y: Float[Array, "*M"]
) -> Float[Array, "*N"]:
    """`at_least_float32(function(x, y))`, without rounding the sums.

    XLA:CPU multiplies bfloat16 as such only where its sums stay float32, and makes it float32 first
    elsewhere. The first takes from a third of the time to half as long again, by the processor:
    `samjax.platforms.bfloat16_pays`.
    """
    if x.dtype.itemsize >= 4:
        return function(x, y)

    def as_such(x: Array, y: Array) -> Array:
        return function(x, y, preferred_element_type=jnp.float32)

    def on_cpu(x: Array, y: Array) -> Array:
        if x.dtype == jnp.bfloat16 and multiplies_bfloat16():
            return as_such(x, y)
        return function(x.astype(jnp.float32), y.astype(jnp.float32))

    return platform_dependent(x, y, cpu=on_cpu, default=as_such)


def product(
    x: Float[Array, "*L D"], kernel: Float[Array | np.ndarray, "D E"]
) -> Float[Array, "*L E"]:
    """`x @ kernel`, with a gradient in the kernel's own order: the transposed `x` times the other
    gradient.

    JAX writes it the other way round, and XLA:CPU then computes what leads to the other gradient
    once more, in the order of its columns: behind a GELU that takes 20 times as long as the product
    itself. Derivatives go in reverse mode, and forward over reverse; not by `jax.jvp` alone. They
    are of the precision that is the default where this is called.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _product(precision, x, jnp.asarray(kernel))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(precision: str | None, x, kernel):
    return _multiplied(precision, x, kernel)


def _product_forward(precision: str | None, x, kernel):
    return _multiplied(precision, x, kernel), (x, kernel)


def _product_backward(precision: str | None, residuals, gradient):
    x, kernel = residuals
    whole = functools.partial(_kernel_gradient, precision)
    size = _places_at_once(x.shape)
    if size is None:
        kernel_gradient = whole(x, gradient)
    else:
        in_blocks = functools.partial(_in_blocks, whole, size)
        kernel_gradient = platform_dependent(x, gradient, cpu=in_blocks, default=whole)
    return _multiplied(precision, gradient, kernel.T), kernel_gradient


def _multiplied(precision: str | None, x, y):
    return dot(functools.partial(jnp.matmul, precision=precision), x, y)


def _kernel_gradient(precision: str | None, x, gradient):
    places = tuple(range(x.ndim - 1))
    summed = functools.partial(
        jax.lax.dot_general, dimension_numbers=((places, places), ((), ())), precision=precision
    )
    return dot(summed, x, gradient)


PLACES_AT_ONCE = 1024
"""In the gradient of a kernel on the CPU."""


def _places_at_once(shape: tuple[int, ...]) -> int | None:
    """A divisor of the places on all axes but the first, or None where one piece is best."""
    if len(shape) < 3 or shape[0] > PLACES_AT_ONCE:
        return None
    places, room = math.prod(shape[1:-1]), PLACES_AT_ONCE // shape[0]
    size = max(n for n in range(1, min(places, room) + 1) if places % n == 0)
    return size if size < places and 4 * size >= room else None


def _in_blocks(kernel_gradient: Callable, size: int, x, gradient):
    """The sum over places in pieces, in a loop.

    What turns `x` round then works in the cache, and is not fused with what made it: XLA:CPU would
    compute a whole convolution again, column by column. The first axis, which may be spread over
    devices, stays whole.
    """
    blocks = tuple(
        jnp.moveaxis(y.reshape(y.shape[0], -1, size, y.shape[-1]), 1, 0) for y in (x, gradient)
    )
    zero = jnp.zeros((x.shape[-1], gradient.shape[-1]), x.dtype)
    total, _ = jax.lax.scan(
        lambda total, block: (total + kernel_gradient(*block), None), zero, blocks
    )
    return total


_product.defvjp(_product_forward, _product_backward)


def int8_product(
    x: Float[Array, "*L D"], kernel: Float[Array | np.ndarray, "D E"]
) -> Float[Array, "*L E"]:
    """`x @ kernel` of both in 8 bits: `x` rounded to one of 255 steps by row, and `kernel` by
    column, each with the step that its largest number needs (LLM.int8(), Dettmers et al. 2022,
    section 2.1: vector-wise quantization). Sums are integers and exact.

    Gradients are those of `product`, with the rounding left out (the straight-through estimator),
    so that a model can be trained as it is to be used.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _int8_product(precision, x, jnp.asarray(kernel))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _int8_product(precision: str | None, x, kernel):
    rows, row_step = in_int8(x, axis=-1)
    columns, column_step = in_int8(kernel, axis=0)
    sums = jnp.matmul(rows, columns, preferred_element_type=jnp.int32)
    return (sums.astype(jnp.float32) * row_step * column_step).astype(x.dtype)


def _int8_product_forward(precision: str | None, x, kernel):
    return _int8_product(precision, x, kernel), (x, kernel)


_int8_product.defvjp(_int8_product_forward, _product_backward)


def in_int8(
    x: Float[Array, "*L"], *, axis: int
) -> tuple[Int8[Array, "*L"], Float[Array, "*M"]]:  # fmt: skip
    """Whole numbers of -127 to 127, and the float32 step that they count, one along `axis`."""
    x = at_least_float32(x)
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    step = jnp.where(largest > 0, largest, 1.0) / 127
    return jnp.rint(x / step).astype(jnp.int8), step
