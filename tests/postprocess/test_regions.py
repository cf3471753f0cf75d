import numpy as np
import pytest
from segment_anything.utils import amg

from samjax.postprocess.regions import remove_small_regions


@pytest.mark.parametrize("mode", ["holes", "islands"])
@pytest.mark.parametrize("area_thresh", [0, 1, 2, 5.5, 40, 10_000])
@pytest.mark.parametrize("density", [0.0, 0.03, 0.3, 0.6, 0.97, 1.0])
def test_equals_the_reference(mode, area_thresh, density):
    for seed in range(3):
        mask = np.random.default_rng(seed).random((41, 58)) < density
        cleaned, changed = remove_small_regions(mask, area_thresh, mode)
        expected, expected_change = amg.remove_small_regions(mask, area_thresh, mode)
        assert changed is expected_change
        np.testing.assert_array_equal(cleaned, expected, strict=True)


def test_diagonal_pixels_are_one_region():
    mask = np.zeros((8, 8), bool)
    mask[[1, 2, 3], [1, 2, 3]] = True
    mask[6, 6] = True
    cleaned, changed = remove_small_regions(mask, 3, "islands")
    assert changed
    np.testing.assert_array_equal(np.argwhere(cleaned), [[1, 1], [2, 2], [3, 3]])


def test_the_first_of_equally_small_islands_stays():
    mask = np.zeros((5, 9), bool)
    mask[2, [1, 4, 7]] = True
    cleaned, changed = remove_small_regions(mask, 10, "islands")
    assert changed
    np.testing.assert_array_equal(np.argwhere(cleaned), [[2, 1]])


def test_an_unchanged_mask_is_returned_itself_and_a_changed_one_is_not_written_to():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    same, changed = remove_small_regions(mask, 5, "islands")
    assert same is mask and not changed
    mask[4, 4] = False
    filled, changed = remove_small_regions(mask, 5, "holes")
    assert changed and filled[4, 4] and not mask[4, 4]


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'holes' or 'islands', not 'bumps'"):
        remove_small_regions(np.zeros((3, 3), bool), 5, "bumps")
