"""Windows that cover a picture."""

import itertools

import numpy as np
import pytest

from samjax.everything.tiles import common, tile_boxes


@pytest.mark.parametrize(
    "size, tile, overlap",
    [((100, 100), 30, 0.25), ((31, 29), 30, 0.5), ((97, 301), 64, 0.1), ((5, 400), 64, 0.25),
     ((64, 64), 64, 0.25), ((1, 1), 64, 0.25), ((100, 65), 64, 0.0)],
)  # fmt: skip
def test_they_cover_all_at_one_size_and_share_what_was_asked(size, tile, overlap):
    boxes = tile_boxes(size, tile, overlap)
    covered = np.zeros(size, bool)
    for x0, y0, x1, y1 in boxes:
        assert (y1 - y0, x1 - x0) == tuple(min(tile, side) for side in size)
        covered[y0:y1, x0:x1] = True
        assert 0 <= x0 and 0 <= y0 and x1 <= size[1] and y1 <= size[0]
    assert covered.all()
    assert len(set(boxes)) == len(boxes)
    for low, high in ((0, 2), (1, 3)):
        stretches = sorted({(box[low], box[high]) for box in boxes})
        for (_, end), (start, _) in itertools.pairwise(stretches):
            assert end - start >= round(tile * overlap)


def test_no_more_than_needed():
    assert tile_boxes((1024, 1792), 1024, 0.25) == [(0, 0, 1024, 1024), (768, 0, 1792, 1024)]
    assert len(tile_boxes((10_000, 10_000), 1024, 0.25)) == 13**2


def test_common():
    assert common((0, 0, 4, 4), (2, 3, 6, 6)) == (2, 3, 4, 4)
    assert common((0, 0, 4, 4), (4, 0, 6, 6)) is None


@pytest.mark.parametrize(
    "tile, overlap, name", [(1, 0.25, "tile"), (64, -0.1, "overlap"), (64, 0.6, "overlap")]
)
def test_out_of_range(tile, overlap, name):
    with pytest.raises(ValueError, match=name):
        tile_boxes((10, 10), tile, overlap)
