"""The stream of examples that training draws from its sources."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from samjax.datasets import (
    REASONS,
    BadRecordError,
    Reason,
    Report,
    open_coco,
)
from samjax.models import SamConfig
from samjax.train.augment import Augmentation
from samjax.train.data import ExampleSettings, LoadExample, make_loader, settings_for
from samjax.train.examples import bounding_box, low_resolution, make_example
from small_coco import PLAIN, rectangle, rle, truncate_a_picture


def number_of(example) -> np.ndarray:
    """Which pictures the `coco` fixture made a batch of."""
    corner = example.image[..., 0, 0, 0] * np.float32(58.395) + np.float32(123.675)
    return np.rint(corner / 10).astype(int)


def test_shapes_and_types_of_an_example(coco):
    source = coco([[rle(rectangle())] * 3])
    config = settings_for(SamConfig.tiny(256), num_objects=5)
    example = make_example(source.read(0), np.random.default_rng(0), config)
    assert example.image.shape == (256, 256, 3) and example.image.dtype == np.float32
    assert example.masks.shape == (5, 64, 64) and example.masks.dtype == bool
    assert example.valid.tolist() == [True] * 3 + [False] * 2
    assert not example.masks[3:].any()
    assert example.input_size.tolist() == [192, 256] and example.input_size.dtype == np.int32
    assert not example.image[192:].any() and example.image[:192].all()
    mask = np.zeros((64, 64), bool)
    mask[4 * 2 : 16 * 2, 6 * 2 : 20 * 2] = True
    np.testing.assert_array_equal(example.masks[0], mask)
    assert example.boxes[:3].tolist() == [[48, 32, 159, 127]] * 3 and not example.boxes[3:].any()


def test_the_box_of_what_is_hardly_covered():
    coverage = np.zeros((9, 12), np.uint8)
    coverage[2, 3:8] = 127
    assert bounding_box(coverage) == (3, 2, 7, 2)
    coverage[4, 5] = 128
    assert bounding_box(coverage) == (5, 4, 5, 4)
    with pytest.raises(ValueError, match="no box"):
        bounding_box(np.zeros((9, 12), np.uint8))


def test_half_a_cell_is_enough():
    coverages = np.zeros((3, 8, 8), np.uint8)
    coverages[0, :2, :4] = 255
    coverages[1, :2, :4] = 255
    coverages[1, 0, 0] = 254
    coverages[2, 4:, 4:] = 128
    low = low_resolution(coverages, 8, 2)
    assert low.tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]]


def test_objects_are_drawn_up_to_their_number(coco):
    masks = [rectangle(0, i, 8, i + 8) for i in range(20)]
    record = coco([[rle(mask) for mask in masks]]).read(0)
    settings = ExampleSettings(32, 32, 4, None)
    seen = set()
    for seed in range(40):
        example = make_example(record, np.random.default_rng(seed), settings)
        lefts = [int(np.flatnonzero(mask.any(axis=0))[0]) for mask in example.masks]
        assert len(set(lefts)) == 4 and example.valid.all()
        seen.update(lefts)
    assert seen == set(range(20))


def test_a_mask_that_vanishes_is_dropped(coco):
    speck = rectangle(0, 0, 1, 1, (240, 320))
    thing = rectangle(40, 40, 200, 200, (240, 320))
    source = coco([[rle(speck), rle(thing)], [rle(speck)]], size=(240, 320))
    example = make_example(source.read(0), np.random.default_rng(0), PLAIN)
    assert example.valid.tolist() == [True, False]
    assert example.left_out[REASONS.index(Reason.VANISHED)] == 1 == example.left_out.sum()
    with pytest.raises(BadRecordError, match="area 0 after resize"):
        make_example(source.read(1), np.random.default_rng(0), PLAIN)


def many(coco, number, folder="coco"):
    return coco([[rle(rectangle())]] * number, folder=folder)


def test_an_epoch_has_each_picture_once_and_the_next_another_order(coco):
    loader = make_loader([many(coco, 12)], PLAIN, batch_size=3, num_epochs=2)
    numbers = np.concatenate([number_of(batch) for batch in loader])
    assert sorted(numbers[:12]) == sorted(numbers[12:]) == list(range(1, 13))
    assert numbers[:12].tolist() != numbers[12:].tolist()
    again = make_loader([many(coco, 12, "b")], PLAIN, batch_size=3, num_epochs=2)
    np.testing.assert_array_equal(numbers, np.concatenate([number_of(b) for b in again]))
    other = make_loader([many(coco, 12, "c")], PLAIN, batch_size=3, num_epochs=2, seed=1)
    assert numbers.tolist() != np.concatenate([number_of(b) for b in other]).tolist()


def test_two_processes_share_an_epoch(coco):
    source = many(coco, 13)
    parts = [
        np.concatenate(
            [
                number_of(batch)
                for batch in make_loader(
                    [source], PLAIN, batch_size=2, num_epochs=1, process_index=i, process_count=2
                )
            ]
        )
        for i in range(2)
    ]
    assert sorted(map(len, parts)) == [6, 7]
    assert sorted(np.concatenate(parts)) == list(range(1, 14))


def test_a_restored_position_continues_with_the_same_examples(coco):
    source = many(coco, 10)
    settings = ExampleSettings(32, 8, 2, Augmentation(copy_paste=0.5))

    def batches():
        return iter(make_loader([source], settings, batch_size=3, seed=5))

    iterator = batches()
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(6)]
    restored = batches()
    next(restored)
    restored.set_state(state)
    for batch in expected:
        for left, right in zip(batch, next(restored), strict=True):
            np.testing.assert_array_equal(left, right)
    first = next(batches())
    assert not np.array_equal(first.image, expected[0].image)


def test_a_broken_picture_is_replaced_and_counted(coco):
    source = coco([[rle(rectangle())]] * 3, change=truncate_a_picture)
    loader = make_loader([source], PLAIN, batch_size=3, num_epochs=1)
    with pytest.warns(UserWarning, match="left out: broken picture: .*2.png"):
        (batch,) = loader
    assert batch.image.shape[0] == 3 and set(number_of(batch)) == {1, 3}
    report = Report("coco")
    report.add_counts(batch.left_out)
    assert report.counts == {Reason.BROKEN_PICTURE: 1}
    assert "broken picture" in str(report)


def test_validation_takes_no_other_picture(coco):
    source = coco([[rle(rectangle())]] * 3, change=truncate_a_picture)
    loader = make_loader(
        [source], PLAIN, batch_size=3, num_epochs=1, shuffle=False, replace_bad=False
    )
    with pytest.warns(UserWarning, match="broken picture"):
        (batch,) = loader
    assert batch.valid.tolist() == [[True, False], [False, False], [True, False]]
    assert number_of(batch)[[0, 2]].tolist() == [1, 3]


def test_nothing_but_bad_records(coco):
    source = coco([[[]]])
    load = LoadExample([source], PLAIN, replace=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="50 records of coco in a row cannot be used.*empty"):
            load((0, 0), np.random.default_rng(0))


def test_sources_are_mixed_by_weight(coco):
    square = coco([[rle(rectangle(size=(32, 32)))]] * 9, folder="square", size=(32, 32))
    sources = [many(coco, 4), square]
    loader = iter(make_loader(sources, PLAIN, batch_size=40, weights=[3, 1]))
    batch = next(loader)
    square = batch.input_size[:, 0] == 64
    assert square.sum() == 10
    assert sorted(number_of(batch)[~square][:4]) == [1, 2, 3, 4]
    both = make_loader(sources, PLAIN, batch_size=13, num_epochs=1)
    (batch,) = both
    assert (batch.input_size[:, 0] == 64).sum() == 9


def test_remainders(coco):
    source = many(coco, 7)
    sizes = [len(b.image) for b in make_loader([source], PLAIN, batch_size=3, num_epochs=1)]
    assert sizes == [3, 3, 1]
    dropped = make_loader([source], PLAIN, batch_size=3, num_epochs=1, drop_remainder=True)
    assert [len(b.image) for b in dropped] == [3, 3]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size has to be at least 1"),
        ({"weights": [1, 2]}, "1 sources need as many weights"),
        ({"weights": [-1]}, "weights above 0"),
        ({"weights": [1], "num_epochs": 1}, "has no epochs"),
        ({"process_index": 2, "process_count": 2}, "no process 2 among 2"),
    ],
)
def test_loader_arguments(coco, arguments, message):
    source = coco()
    with pytest.raises(ValueError, match=message):
        make_loader([source], PLAIN, **{"batch_size": 1, **arguments})
    with pytest.raises(ValueError, match="no source"):
        make_loader([], PLAIN, batch_size=1)


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="does not divide"):
        ExampleSettings(100, 30)
    with pytest.raises(ValueError, match="num_objects"):
        ExampleSettings(64, 16, 0)


@pytest.mark.slow
def test_worker_processes_load_the_same(coco):
    source = many(coco, 10)
    settings = ExampleSettings(32, 8, 2, Augmentation())
    alone = make_loader([source], settings, batch_size=2, num_epochs=1, seed=3)
    workers = make_loader([source], settings, batch_size=2, num_epochs=1, seed=3, num_workers=2)
    for left, right in zip(alone, workers, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


def test_only_training_needs_grain():
    code = (
        "import sys, samjax.datasets, samjax.evaluate, samjax.cli.eval, samjax.train\n"
        "assert not {'grain', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_data(shared_dir):
    folder = shared_dir / "data" / "coco-mix"
    source = open_coco(folder / "instances.json", folder / "images", name="coco-mix")
    assert len(source) == 1124 and source.report.counts == {Reason.CROWD: 143}
    settings = ExampleSettings(256, 128, 6, Augmentation(copy_paste=0.5))
    iterator = iter(make_loader([source], settings, batch_size=4))
    for _ in range(5):
        batch = next(iterator)
        assert batch.valid[:, 0].all() and np.isfinite(batch.image).all()
        np.testing.assert_array_equal(batch.masks.any(axis=(2, 3)), batch.valid)
