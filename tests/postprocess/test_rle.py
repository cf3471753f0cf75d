import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything.utils import amg

from samjax.postprocess.rle import (
    area_from_rle,
    coco_encode_rle,
    compress_mask,
    compress_packed,
    mask_to_rle,
    rle_to_mask,
    uncompress_rle,
)

SHAPES = [(1, 1), (1, 9), (9, 1), (7, 5), (40, 63), (129, 200)]


def masks(shape) -> list[np.ndarray]:
    """Constant masks, noise, and blocks with runs that are longer than a column."""
    rng = np.random.default_rng(0)
    coarse = rng.random((-(-shape[0] // 20), -(-shape[1] // 20))) < 0.5
    blocks = np.kron(coarse, np.ones((20, 20), bool))[: shape[0], : shape[1]]
    noise = [rng.random(shape) < density for density in (0.02, 0.5, 0.98)]
    return [np.zeros(shape, bool), np.ones(shape, bool), blocks, *noise]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_runs_equal_the_reference(shape, order):
    for mask in masks(shape):
        rle = mask_to_rle(np.asarray(mask, order=order))
        assert rle == amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
        assert json.loads(json.dumps(rle)) == rle


def test_a_fortran_ordered_view_is_read_in_column_order():
    whole = np.random.default_rng(0).random((3, 50, 70)) < 0.5
    transposed = whole[1, :40, :60].T
    assert mask_to_rle(transposed) == mask_to_rle(np.ascontiguousarray(transposed))


@pytest.mark.parametrize("shape", SHAPES)
def test_compressed_form_equals_the_reference_and_pycocotools(shape):
    for mask in masks(shape):
        compressed = coco_encode_rle(mask_to_rle(mask))
        assert compressed == amg.coco_encode_rle(mask_to_rle(mask))
        assert compressed["counts"].encode() == coco.encode(np.asfortranarray(mask, "u1"))["counts"]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_is_compressed_as_pycocotools_does(shape, order):
    for mask in masks(shape):
        expected = coco.encode(np.asfortranarray(mask, "u1"))["counts"].decode()
        rle = compress_mask(np.asarray(mask, order=order))
        assert rle == {"size": list(shape), "counts": expected}


@pytest.mark.parametrize("origin, beyond", [((0, 0), (0, 0)), ((3, 0), (0, 2)), ((2, 5), (4, 1))])
@pytest.mark.parametrize("padded", [(64, 0), (128, 3)])
@pytest.mark.parametrize("shape", [*SHAPES, (64, 30), (128, 5), (63, 4)])
def test_a_packed_mask_is_compressed_as_pycocotools_does(shape, padded, origin, beyond):
    """The frame ends `beyond` the crop; `padded` is what bits are, in rows and columns."""
    height, width = shape
    (x0, y0), (more_rows, more_columns) = origin, beyond
    columns = np.zeros((width + padded[1], -(-height // padded[0]) * padded[0]), bool)
    whole = np.zeros((y0 + height + more_rows, x0 + width + more_columns), np.uint8, "F")
    for mask in masks(shape):
        columns[:width, :height] = mask.T
        whole[y0 : y0 + height, x0 : x0 + width] = mask
        bits = np.packbits(columns, axis=1, bitorder="little")
        rle = compress_packed(bits, shape, origin=origin, frame=whole.shape)
        assert rle == {"size": list(whole.shape), "counts": coco.encode(whole)["counts"].decode()}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_form_decodes_to_the_mask_and_its_area(shape):
    for mask in masks(shape):
        runs = mask_to_rle(mask)
        string = coco_encode_rle(runs)
        raw = {"size": string["size"], "counts": string["counts"].encode()}
        for rle in (runs, string, raw):
            decoded = rle_to_mask(rle)
            assert decoded.flags.f_contiguous
            np.testing.assert_array_equal(decoded, mask, strict=True)
            assert area_from_rle(rle) == mask.sum()
        np.testing.assert_array_equal(amg.rle_to_mask(runs), mask)


def test_a_run_of_millions_survives_compression():
    mask = np.zeros((3000, 2500), bool)
    mask[1234, 2001] = True
    rle = coco_encode_rle(mask_to_rle(mask))
    assert area_from_rle(rle) == 1
    np.testing.assert_array_equal(np.argwhere(rle_to_mask(rle)), [[1234, 2001]])


@pytest.mark.parametrize(
    "counts, message",
    [
        ([3, 4], "do not fill a mask of 4 x 5"),
        ([15, 10, -5], "do not fill a mask of 4 x 5"),
        ([], "do not fill"),
        ("", "do not fill"),
        ("00", "do not fill"),
        ("0\x014", "contain the character"),
        ("dé", "contain the character"),
        ("d0P", "end in the middle of a number"),
    ],
)
def test_damaged_runs_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        rle_to_mask({"size": [4, 5], "counts": counts})


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_a_mask_without_pixels_is_refused(shape):
    with pytest.raises(ValueError, match="has no runs"):
        mask_to_rle(np.zeros(shape, bool))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("fill", ["random", "none", "all"])
def test_compress_and_uncompress(order, fill):
    mask = {
        "random": np.random.default_rng(0).random((37, 53)) > 0.5,
        "none": np.zeros((37, 53), bool),
        "all": np.ones((37, 53), bool),
    }[fill]
    mask = np.asarray(mask, order=order)
    compressed = compress_mask(mask)
    assert compressed == coco_encode_rle(mask_to_rle(mask))
    assert uncompress_rle(compressed) == mask_to_rle(mask) == uncompress_rle(mask_to_rle(mask))


def test_compress_nothing():
    with pytest.raises(ValueError, match="0 x 5"):
        compress_mask(np.zeros((0, 5), bool))
