"""Positions in a window of the frame are those that the whole has there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from samjax import SamConfig
from samjax.models.prompt_encoder import PromptEncoder
from samjax.types import Prompts

WHOLE = SamConfig.nano(256)
WINDOW = SamConfig.nano(128, frame_size=256)


@pytest.fixture(scope="module")
def encoders():
    return tuple(PromptEncoder(config, rngs=nnx.Rngs(0)) for config in (WHOLE, WINDOW))


@pytest.mark.parametrize("x, y", [(0, 0), (16, 48), (128, 128)])
def test_positional_encoding_of_a_window(encoders, x, y):
    whole, window = encoders
    found = window.get_dense_pe(jnp.asarray([x, y], jnp.float32))
    cells = np.s_[y // 16 : y // 16 + 8, x // 16 : x // 16 + 8]
    np.testing.assert_allclose(found, whole.get_dense_pe()[cells], rtol=0, atol=1e-5)


def test_prompts_are_in_the_frame(encoders):
    coords, labels = jnp.asarray([[6.0, 180.0], [200.0, 15.0]]), jnp.asarray([2, 3])
    whole, window = (encoder.embed_points(Prompts(coords, labels)) for encoder in encoders)
    np.testing.assert_array_equal(whole, window)
    other = PromptEncoder(SamConfig.nano(128), rngs=nnx.Rngs(0))
    assert np.abs(other.embed_points(Prompts(coords, labels)) - whole).max() > 0.1


def test_a_window_at_the_origin_needs_none(encoders):
    window = encoders[1]
    with_origin = jax.jit(window.get_dense_pe)(jnp.zeros(2))
    np.testing.assert_allclose(window.get_dense_pe(), with_origin, rtol=0, atol=1e-6)


def test_waves_are_taken_once_for_a_column_and_once_for_a_row(encoders):
    """One sine and one cosine of each, and none in what makes pairs of them."""
    program = jax.jit(encoders[0].get_dense_pe).lower().compile().as_text()
    assert program.count(" sine(") == program.count(" cosine(") == 2
