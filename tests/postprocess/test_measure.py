"""Masks measured in pieces against the whole: the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.postprocess import measure
from samjax.postprocess.masks import axis_weights

RNG = np.random.default_rng(0)


def arguments(size: tuple[int, int], masks: np.ndarray, threshold: float, offset: float):
    longest = max(size)
    padded = [-(-side // 128) * 128 for side in size]
    rows, columns = (
        axis_weights(64, 256, max(1, round(256 * side / longest)), side, more)
        for side, more in zip(size, padded, strict=True)
    )
    return (
        jnp.asarray(masks), jnp.asarray(rows), jnp.asarray(columns),
        *size, threshold, offset,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(300, 500), (128, 128), (1, 700), (600, 1), (257, 129)])
@pytest.mark.parametrize("threshold, offset", [(0.0, 1.0), (0.7, 0.3)])
@pytest.mark.parametrize("narrow", [True, False])
def test_pieces_are_the_whole(size, threshold, offset, narrow):
    smooth = np.cumsum(np.cumsum(RNG.standard_normal((3, 64, 64)), axis=1), axis=2) / 8
    masks = np.concatenate([smooth, np.full((1, 64, 64), -9.0), np.full((1, 64, 64), 9.0)])
    given = arguments(size, masks.astype(np.float32), threshold, offset)
    whole = jax.jit(measure._measured_whole)(*given)
    span = measure.piece_span(*map(np.asarray, given[1:3])) if narrow else None
    pieces = jax.jit(measure._measured_in_pieces, static_argnums=0)(span, *given)
    names = ("masks", "scores", "boxes")
    for name, ours, expected in zip(names, pieces, whole, strict=True):
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected, err_msg=name)
    seen = measure.threshold_masks(*given[:3], np.array(threshold, np.float32), span=span)
    height, width = size
    packed, scores, boxes = whole
    masks = np.unpackbits(packed, axis=-1, bitorder="little").astype(bool)
    np.testing.assert_array_equal(
        np.asarray(seen)[:, :height, :width], masks[:, :width, :height].transpose(0, 2, 1)
    )
    assert np.isnan(scores[3]) and scores[4] == 1.0
    assert boxes[3].tolist() == [0, 0, 0, 0]
    assert boxes[4].tolist() == [0, 0, width - 1, height - 1]
    assert not masks[:, width:].any() and not masks[:, :, height:].any()


@pytest.mark.parametrize(
    "low_res, image_size, inside, outside, span",
    [
        (256, 1024, (683, 1024), (1200, 1800), 8),
        (256, 1024, (768, 1024), (375, 500), 32),
        (256, 1024, (683, 1024), (67, 100), 128),
        (256, 1024, (10, 1024), (5, 1800), 8),
        (16, 64, (64, 64), (300, 300), 8),
        (16, 64, (64, 64), (20, 20), 16),
    ],
)
def test_a_piece_needs_few_columns_of_a_large_picture_and_all_of_a_small_one(
    low_res, image_size, inside, outside, span
):
    weights = [
        axis_weights(low_res, image_size, i, o, -(-o // 128) * 128)
        for i, o in zip(inside, outside, strict=True)
    ]
    assert measure.piece_span(*weights) == span
