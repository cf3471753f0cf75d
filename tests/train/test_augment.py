"""Augmentations: masks go where the picture goes."""

import numpy as np
import pytest
from PIL import Image

from samjax.datasets import Record
from samjax.postprocess import mask_to_rle
from samjax.train import augment
from samjax.train.augment import Augmentation, Window
from samjax.train.examples import ExampleSettings, low_resolution, make_example
from samjax.transforms import PIXEL_MEAN, PIXEL_STD

STILL = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


@pytest.fixture
def blob():
    """An uneven shape that is not its own mirror image, and a speck of its own."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:90, :130]
    mask = ((y - 40) ** 2 / 900 + (x - 50) ** 2 / 2000 < 1) & (x + y > 50)
    return mask | (rng.random(mask.shape) < 0.01)


@pytest.fixture
def record_of(tmp_path):
    """A record of a picture whose channels are its masks: red, green and blue."""

    def make(*masks, name="picture.png"):
        channels = [masks[i] if i < len(masks) else np.zeros_like(masks[0]) for i in range(3)]
        Image.fromarray(np.stack(list(map(augment.coverage, channels)), axis=-1)).save(
            tmp_path / name
        )
        rles = tuple(mask_to_rle(mask) for mask in masks)
        return Record(tmp_path / name, masks[0].shape, rles, "made")

    return make


def pixels_of(example):
    """The augmented uint8 picture, without padding."""
    values = example.image.astype(np.float64) * PIXEL_STD + PIXEL_MEAN
    height, width = example.input_size
    return np.rint(values).astype(np.uint8)[:height, :width]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [(0.1, 2.0), (0.3, 0.3), (1.0, 1.0), (1.7, 1.7)])
def test_masks_move_with_the_picture(record_of, blob, flip, scale):
    record = record_of(blob)
    settings = ExampleSettings(128, 64, 1, Augmentation(flip=flip, scale=scale, **STILL))
    sizes = set()
    for seed in range(12):
        example = make_example(record, np.random.default_rng(seed), settings)
        red = pixels_of(example)[:, :, 0]
        np.testing.assert_array_equal(low_resolution(red[None], 128, 64), example.masks)
        assert example.valid.all() and example.masks.any()
        sizes.add(tuple(example.input_size.tolist()))
    if scale[0] < scale[1]:
        assert len(sizes) > 3
    else:
        side = min(128, round(128 * scale[0]))
        assert {size[1] for size in sizes} == {side}


def test_flip_alone_is_exact(record_of, blob):
    record = record_of(blob)
    settings = ExampleSettings(130, 130, 1, Augmentation(flip=1.0, scale=(1.0, 1.0), **STILL))
    example = make_example(record, np.random.default_rng(0), settings)
    np.testing.assert_array_equal(example.masks[0, :90], blob[:, ::-1])
    np.testing.assert_array_equal(pixels_of(example)[:, :, 0], augment.coverage(blob[:, ::-1]))


def test_flips_come_with_their_probability(record_of, blob):
    record = record_of(blob)
    settings = ExampleSettings(130, 130, 1, Augmentation(flip=0.25, scale=(1.0, 1.0), **STILL))
    flipped = sum(
        np.array_equal(
            make_example(record, np.random.default_rng(seed), settings).masks[0, :90],
            blob[:, ::-1],
        )
        for seed in range(100)
    )
    assert 12 <= flipped <= 38, "three standard deviations around 25"


def test_without_augmentation_there_is_none(record_of, blob):
    record = record_of(blob)
    settings = ExampleSettings(130, 130, 1, None)
    for seed in range(5):
        example = make_example(record, np.random.default_rng(seed), settings)
        np.testing.assert_array_equal(example.masks[0, :90], blob)


def test_a_seed_gives_the_same_example(record_of, blob):
    record = record_of(blob)
    settings = ExampleSettings(64, 32, 1, Augmentation())
    one, two, other = (
        make_example(record, np.random.default_rng(seed), settings) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.image, two.image)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("size", [(90, 130), (130, 90), (1, 300), (64, 64)])
def test_jitter_windows(size):
    rng = np.random.default_rng(0)
    lefts = set()
    for _ in range(300):
        anchor = (int(rng.integers(size[0])), int(rng.integers(size[1])))
        scale = rng.uniform(0.1, 4)
        top, left, height, width, output = augment.jitter_window(rng, size, 64, scale, anchor)
        assert 0 <= top <= anchor[0] < top + height <= size[0]
        assert 0 <= left <= anchor[1] < left + width <= size[1]
        assert 1 <= min(output) and max(output) <= 64
        ratio = 64 * scale / max(size)
        for cut, side, out in zip((height, width), size, output, strict=True):
            assert abs(cut * ratio - out) <= max(0.5, ratio / 2) + 1e-9 or out == 1
            assert cut == side or abs(out - 64) <= max(1, ratio / 2)
        lefts.add(left)
    if size[1] > 64:
        assert len(lefts) > 10


def test_a_window_is_resized_as_pillow_does(blob):
    window = Window(10, 20, 60, 80, (30, 40))
    image = np.stack([augment.coverage(blob)] * 3, axis=-1)
    resized = augment.resize(image, window)
    expected = Image.fromarray(image).crop((20, 10, 100, 70)).resize((40, 30), Image.BILINEAR)
    np.testing.assert_array_equal(resized, np.array(expected))
    np.testing.assert_array_equal(augment.resize(image[:, :, 0], window), resized[:, :, 0])


def test_paste_covers():
    image = np.full((4, 6, 3), 10, np.uint8)
    masks = np.zeros((1, 4, 6), np.uint8)
    masks[0, :, :4] = 255
    other = np.full((8, 5, 3), 200, np.uint8)
    front = np.zeros((8, 5), np.uint8)
    front[2:, 3:] = 255
    front[0, 0] = 51
    pasted, covered = augment.paste(image, masks, other, front)
    expected = image.copy()
    expected[2:, 3:5] = 200
    expected[0, 0] = 48
    np.testing.assert_array_equal(pasted, expected)
    masks[0, 2:, 3] = 0
    masks[0, 0, 0] = 204
    np.testing.assert_array_equal(covered[0], masks[0])
    np.testing.assert_array_equal(covered[1, 2:, 3:5], 255)
    assert covered[1].sum() == 4 * 255 + 51


def test_an_object_is_moved_within_the_picture():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (8, 9, 3), dtype=np.uint8)
    mask = np.zeros((8, 9), np.uint8)
    mask[2:5, 3:8] = 255
    corners = set()
    for _ in range(200):
        part, share = augment.moved(rng, image, mask, (6, 6))
        top, left = np.argwhere(share)[0].tolist()
        assert share.shape == (top + 3, left + 5) and max(top + 3, left + 5) <= 6
        np.testing.assert_array_equal(share[top:, left:], 255)
        np.testing.assert_array_equal(part[top:, left:], image[2:5, 3:8])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(4) for left in range(2)}
    large, share = augment.moved(rng, image, mask, (2, 2))
    np.testing.assert_array_equal(large, image[2:5, 3:8])
    nothing = np.zeros_like(mask)
    assert augment.moved(rng, image, nothing, (6, 6))[1] is nothing


def test_copy_paste_in_an_example(record_of):
    back, front = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    back[:, :] = True
    front[16:48, 16:48] = True
    record = record_of(back, name="back.png")
    other = record_of(np.zeros_like(front), front, name="front.png")
    other = other._replace(masks=other.masks[1:])
    settings = ExampleSettings(
        64, 64, 4, Augmentation(flip=0.0, scale=(1.0, 1.0), copy_paste=1.0, **STILL)
    )
    places = set()
    for seed in range(10):
        example = make_example(record, np.random.default_rng(seed), settings, other=other)
        assert example.valid.tolist() == [True, True, False, False]
        pasted, rest = example.masks[:2]
        assert pasted.sum() == 32 * 32
        np.testing.assert_array_equal(rest, ~pasted)
        pixels = pixels_of(example)
        np.testing.assert_array_equal(pixels[:, :, 0], augment.coverage(rest))
        np.testing.assert_array_equal(pixels[:, :, 1], augment.coverage(pasted))
        places.add(tuple(np.argwhere(pasted)[0].tolist()))
    assert len(places) > 5
    alone = make_example(record, np.random.default_rng(0), settings)
    assert alone.valid.sum() == 1


def test_a_broken_picture_is_not_pasted(record_of, blob, tmp_path):
    record, other = record_of(blob), record_of(blob, name="other.png")
    other.path.write_text("no picture")
    settings = ExampleSettings(64, 32, 4, Augmentation(copy_paste=1.0))
    example = make_example(record, np.random.default_rng(0), settings, other=other)
    assert example.valid.sum() == 1 and example.left_out.sum() == 1


def test_colour():
    rng = np.random.default_rng
    image = rng(0).integers(60, 150, (20, 30, 3), dtype=np.uint8)
    assert augment.colour(rng(0), image, Augmentation(**STILL)) is image
    brightness = Augmentation(**STILL | {"brightness": 0.5})
    factor = np.float32(rng(3).uniform(0.5, 1.5))
    changed = augment.colour(rng(3), image, brightness)
    np.testing.assert_array_equal(
        changed, np.rint(np.clip(image.astype(np.float32) * factor, 0, 255)).astype(np.uint8)
    )
    grey = np.repeat(image[:, :, :1], 3, axis=2)
    saturation = augment.colour(rng(1), grey, Augmentation(**STILL | {"saturation": 1.0}))
    assert np.abs(saturation.astype(int) - grey).max() <= 1
    contrast = augment.colour(rng(1), image, Augmentation(**STILL | {"contrast": 0.5}))
    weights = np.array(augment.GREY)
    assert abs((contrast @ weights).mean() - (image @ weights).mean()) < 0.1
    assert contrast.std() != pytest.approx(image.std(), rel=0.02)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"flip": 1.5}, "flip"),
        ({"copy_paste": -0.1}, "copy_paste"),
        ({"contrast": 2.0}, "contrast"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)
