import numpy as np
import pytest

from samjax.images import overlay, read_image

GREEN, RED, WHITE = (46, 204, 64), (255, 51, 51), (255, 255, 255)


def grey(height: int = 200, width: int = 300) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def block(rows: slice, columns: slice, size: tuple[int, int] = (200, 300)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


BIG = block(slice(20, 180), slice(20, 280))
SMALL = block(slice(80, 120), slice(120, 180))


def test_without_masks_the_picture_is_copied():
    image = grey()
    drawn = overlay(image, [])
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


def test_the_smallest_mask_is_seen_whatever_the_order():
    image = grey()
    first, second = overlay(image, [BIG, SMALL]), overlay(image, [SMALL, BIG])
    for drawn in (first, second):
        assert (drawn[100, 150] != drawn[50, 50]).any()
        assert (drawn[50, 50] != image[50, 50]).any()
        np.testing.assert_array_equal(drawn[5, 5], image[5, 5])
        assert len(np.unique(drawn[90:110, 130:170].reshape(-1, 3), axis=0)) == 1
    np.testing.assert_array_equal(image, grey())


def test_masks_have_distinct_colours_and_an_outline_of_another():
    masks = [block(slice(4, 196), slice(20 * i + 2, 20 * i + 18)) for i in range(15)]
    drawn = overlay(grey(), masks, alpha=1).astype(int)
    inside = drawn[100, 10::20]
    edges = drawn[100, 2::20]
    distances = np.abs(inside[:, None] - inside).sum(-1)[~np.eye(15, dtype=bool)]
    assert distances.min() > 40
    assert (np.abs(inside - edges).sum(-1) > 40).all()


def test_a_hole_shows_the_picture():
    ring = BIG & ~SMALL
    np.testing.assert_array_equal(overlay(grey(), [ring])[100, 150], [100, 100, 100])


def test_alpha_blends_and_the_seed_picks_the_colours():
    full = overlay(grey(), [BIG], alpha=1)[50, 50].astype(float)
    quarter = overlay(grey(), [BIG], alpha=0.25)[50, 50]
    np.testing.assert_allclose(quarter, 75 + 0.25 * full, atol=0.51)
    np.testing.assert_array_equal(overlay(grey(), [BIG], alpha=0)[50, 50], [100, 100, 100])
    again = overlay(grey(), [BIG], seed=0)
    np.testing.assert_array_equal(again, overlay(grey(), [BIG]))
    assert (again != overlay(grey(), [BIG], seed=1)).any()


def test_masks_are_read_one_at_a_time_from_a_generator():
    """A mask is overwritten as soon as the next is asked for: none may be looked at again."""

    def masks():
        mask = np.empty((200, 300), bool)
        for source in (BIG, SMALL):
            mask[:] = source
            yield mask

    np.testing.assert_array_equal(overlay(grey(), masks()), overlay(grey(), [BIG, SMALL]))


def test_masks_in_fortran_order():
    expected = overlay(grey(), [BIG, SMALL])
    np.testing.assert_array_equal(
        overlay(grey(), [np.asfortranarray(BIG), np.asfortranarray(SMALL)]), expected
    )


def test_prompts_are_drawn_where_they_are():
    points, labels = np.array([[150.0, 60.0], [30.0, 150.0]]), np.array([1, 0])
    drawn = overlay(grey(), [], points=points, labels=labels)
    np.testing.assert_array_equal(drawn[60, 150], GREEN)
    np.testing.assert_array_equal(drawn[150, 30], RED)
    changed = np.argwhere((drawn[:110] != 100).any(-1))
    assert abs(changed[:, 1].mean() - 150) < 1 and (drawn == WHITE).all(-1).any()
    default = overlay(grey(), [], points=points)
    np.testing.assert_array_equal(default[150, 30], GREEN)


def test_boxes_are_drawn_on_their_sides_only():
    drawn = overlay(grey(), [], boxes=np.array([[50, 40, 250, 160]]))
    for y, x in [(40, 150), (160, 150), (100, 50), (100, 250)]:
        np.testing.assert_array_equal(drawn[y, x], GREEN)
    np.testing.assert_array_equal(drawn[100, 150], [100, 100, 100])
    np.testing.assert_array_equal(drawn[20, 20], [100, 100, 100])


def test_lines_grow_with_the_picture():
    def outline_pixels(scale):
        size = (200 * scale, 300 * scale)
        mask = block(slice(50 * scale, 150 * scale), slice(50 * scale, 250 * scale), size)
        drawn = overlay(grey(*size), [mask], alpha=0)
        return (drawn[100 * scale, : 150 * scale] != 100).any(-1).sum()

    assert outline_pixels(10) >= 2 * outline_pixels(1) > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (3, 20000)])
def test_unusual_sizes(size):
    drawn = overlay(
        grey(*size),
        [np.ones(size, bool), np.zeros(size, bool)],
        points=np.array([[0, 0], [1e12, -1e12]]),
        boxes=np.array([[0, 0, size[1] - 1, size[0] - 1]]),
    )
    assert drawn.shape == (*size, 3) and drawn.dtype == np.uint8
    assert (drawn != 100).any()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"masks": [np.zeros((200, 301), bool)]}, ValueError, r"mask 0 has shape \(200, 301\)"),
        ({"masks": [BIG, BIG * 1.0]}, TypeError, "mask 1 has dtype float64; expected bool"),
        ({"alpha": 1.5}, ValueError, r"alpha must lie in \[0, 1\], not 1.5"),
        ({"points": np.array([[1.0, np.nan]])}, ValueError, "points have NaN or infinite"),
        ({"boxes": np.array([[1, 2, 3, np.inf]])}, ValueError, "boxes have NaN or infinite"),
        ({"points": np.ones((1, 2)), "labels": np.array([2])}, ValueError, "labels must be 1"),
        ({"labels": np.array([1])}, ValueError, "labels were given without points"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        overlay(grey(), options.pop("masks", []), **options)


def test_labels_of_another_length_than_points_are_refused():
    """Without the tests' type checker, which would speak first."""
    unchecked = getattr(overlay, "__wrapped__", overlay)
    with pytest.raises(ValueError, match="3 labels for 2 points"):
        unchecked(grey(), [], points=np.ones((2, 2)), labels=np.ones(3, int))


def test_a_photo_keeps_its_size_and_its_uncovered_pixels(shared_dir):
    image = read_image(shared_dir / "data/images/truck.jpg")
    mask = block(slice(300, 800), slice(200, 1500), image.shape[:2])
    boxes, points = np.array([[180, 280, 1520, 820]]), np.array([[600, 500]])
    drawn = overlay(image, [mask], points=points, boxes=boxes)
    assert drawn.shape == image.shape
    np.testing.assert_array_equal(drawn[:270], image[:270])
    assert (drawn[500, 300] != image[500, 300]).any()
