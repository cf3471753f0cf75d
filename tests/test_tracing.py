"""Where time goes, as read from a trace of programs that are known."""

import os
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks.tracing import traced
from benchmarks.where import programs

pytestmark = pytest.mark.optimized


def test_products_and_the_rest_of_each_program(tmp_path):
    """A loop's own time is without what is done in it."""

    @jax.jit
    def multiply(x):
        return jax.lax.fori_loop(0, 4, lambda _, y: y @ x, x)

    @jax.jit
    def shape(x):
        return jnp.tanh(jnp.sort(x, axis=0))

    x = jnp.ones((700, 700)) / 700
    jax.block_until_ready((multiply(x), shape(x)))
    with traced(tmp_path):
        start = time.perf_counter()
        jax.block_until_ready((multiply(x), shape(x)))
        whole = time.perf_counter() - start
    found = programs(tmp_path)
    assert found.keys() >= {"jit_multiply", "jit_shape"}
    seconds, products = found["jit_multiply"]
    assert 0.8 * seconds < products <= seconds
    assert found["jit_shape"][0] > 0 and found["jit_shape"][1] == 0
    assert 0 < seconds + found["jit_shape"][0] < (jax.local_device_count() + os.cpu_count()) * whole
