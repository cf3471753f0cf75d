"""Sources of annotated pictures, and the stream of examples that training draws from them."""

import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from samjax.datasets import (
    REASONS,
    BadRecordError,
    Reason,
    Report,
    decode_mask,
    open_coco,
    open_mask_folder,
    open_sa1b,
    read_picture,
    scan,
)
from samjax.models import SamConfig
from samjax.postprocess import coco_encode_rle, mask_to_rle
from samjax.train.augment import Augmentation
from samjax.train.data import ExampleSettings, LoadExample, make_loader, settings_for
from samjax.train.examples import bounding_box, low_resolution, make_example

SIZE = (24, 32)
PLAIN = ExampleSettings(64, 16, 2, None)


def rectangle(top=4, left=6, bottom=16, right=20, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def rle(mask):
    return coco_encode_rle(mask_to_rle(mask))


@pytest.fixture
def coco(tmp_path):
    """Writes pictures of one grey each, 10 times their number, and a COCO file; opens it.

    `masks` is a list of segmentations for each picture; the first picture has the number 1."""

    def make(masks=None, *, folder="coco", size=SIZE, change=None):
        root = tmp_path / folder
        root.mkdir()
        masks = [[rle(rectangle())]] if masks is None else masks
        content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "thing"}]}
        for number, segmentations in enumerate(masks, start=1):
            grey = np.full((*size, 3), 10 * number, np.uint8)
            Image.fromarray(grey).save(root / f"{number}.png")
            content["images"].append(
                {"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]}
            )
            for segmentation in segmentations:
                content["annotations"].append(
                    {
                        "id": 100 + len(content["annotations"]),
                        "image_id": number,
                        "category_id": 7,
                        "iscrowd": 0,
                        "segmentation": segmentation,
                    }
                )
        if change:
            change(root, content)
        (root / "instances.json").write_text(json.dumps(content))
        return open_coco(root / "instances.json", root, name=folder)

    return make


def number_of(example) -> np.ndarray:
    """Which pictures the `coco` fixture made a batch of."""
    corner = example.image[..., 0, 0, 0] * np.float32(58.395) + np.float32(123.675)
    return np.rint(corner / 10).astype(int)


def test_all_forms_of_a_coco_mask(coco):
    mask = rectangle()
    polygon = [[6, 4, 20, 4, 20, 16, 6, 16]]
    source = coco([[polygon, mask_to_rle(mask), rle(mask)]])
    record = source.read(0)
    assert record.size == SIZE and record.source == "coco" and not record.left_out
    for index in range(3):
        np.testing.assert_array_equal(decode_mask(record, index), mask)


def test_a_polygon_in_two_parts_one_of_them_degenerate(coco):
    source = coco([[[[6, 4, 20, 4, 20, 16, 6, 16], [1, 1, 2, 2]]]])
    np.testing.assert_array_equal(decode_mask(source.read(0), 0), rectangle())
    assert not scan(source).counts


def test_sa1b(tmp_path):
    masks = [rectangle(), rectangle(0, 0, 3, 3)]
    for name in ("sa_1", "sa_2", "sa_3"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{name}.jpg")
        content = {
            "image": {
                "image_id": 1,
                "height": SIZE[0],
                "width": SIZE[1],
                "file_name": f"{name}.jpg",
            },
            "annotations": [{"id": i, "segmentation": rle(mask)} for i, mask in enumerate(masks)],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "sa_2.json").write_text("{")
    (tmp_path / "sa_3.jpg").unlink()
    source = open_sa1b(tmp_path, name="SA-1B")
    record = source.read(0)
    assert record.path.name == "sa_1.jpg" and record.source == "SA-1B"
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(decode_mask(record, index), mask)
    report = scan(source, pictures=True)
    assert (report.pictures, report.masks) == (1, 2)
    assert report.counts == {Reason.BROKEN_ANNOTATIONS: 1, Reason.MISSING_PICTURE: 1}
    assert "broken annotations" in str(report) and "sa_2.json" in str(report)


def test_real_sa1b_annotations(shared_dir, tmp_path):
    for path in (shared_dir / "data" / "sa1b").glob("sa_*.json"):
        shutil.copy(path, tmp_path)
        content = json.loads(path.read_text())
        size = content["image"]["width"], content["image"]["height"]
        Image.new("RGB", size).save(tmp_path / f"{path.stem}.jpg")
    source = open_sa1b(tmp_path)
    assert len(source) == 3
    for index in range(3):
        record = source.read(index)
        annotations = json.loads(record.path.with_suffix(".json").read_text())["annotations"]
        for i, annotation in enumerate(annotations):
            assert decode_mask(record, i).sum() == annotation["area"]


def test_mask_folder(tmp_path):
    first, second = rectangle(), rectangle(18, 1, 22, 9)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "files").mkdir(parents=True)
    for name in ("files.jpg", "numbers.png", "without.png"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / name)
    for i, mask in enumerate((first, second)):
        Image.fromarray(mask).save(tmp_path / "masks" / "files" / f"{i}.png")
    numbers = first.astype(np.uint16) * np.uint16(1000) + second.astype(np.uint16)
    Image.fromarray(numbers).save(tmp_path / "masks" / "numbers.png")
    source = open_mask_folder(tmp_path)
    assert [entry.path.name for entry in source.entries] == ["files.jpg", "numbers.png"]
    for index, expected in enumerate([(first, second), (second, first)]):
        record = source.read(index)
        assert len(record.masks) == 2
        for i, mask in enumerate(expected):
            np.testing.assert_array_equal(decode_mask(record, i), mask)
    assert source.report.counts == {Reason.NO_MASKS: 1}


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda path: Image.new("1", (5, 5), 1).save(path), Reason.MASK_SIZE),
        (lambda path: Image.new("1", SIZE[::-1]).save(path), Reason.EMPTY_MASK),
        (lambda path: path.write_text("no picture"), Reason.BROKEN_MASK),
    ],
)
def test_a_bad_file_in_a_mask_folder(tmp_path, spoil, reason):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "a").mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "a.png")
    Image.fromarray(rectangle()).save(tmp_path / "masks" / "a" / "0.png")
    spoil(tmp_path / "masks" / "a" / "1.png")
    report = scan(open_mask_folder(tmp_path))
    assert report.counts == {reason: 1}
    assert (report.pictures, report.masks) == (1, 1)
    assert str(reason) in str(report) and "1.png" in str(report)


BAD_MASKS = {
    "no run set": (rle(np.zeros(SIZE, bool)), Reason.EMPTY_MASK),
    "an empty list": ([], Reason.EMPTY_MASK),
    "outside the picture": ([[40, 2, 50, 2, 50, 9, 40, 9]], Reason.EMPTY_MASK),
    "a transposed size": (rle(rectangle().T), Reason.MASK_SIZE),
    "two points": ([[1, 1, 9, 9]], Reason.DEGENERATE_POLYGON),
    "an odd number": ([[1, 1, 9, 9, 1, 9, 4]], Reason.DEGENERATE_POLYGON),
    "a line": ([[1, 1, 5, 5, 9, 9]], Reason.DEGENERATE_POLYGON),
    "not a number": ([[1, 1, 5, float("nan"), 9, 2]], Reason.DEGENERATE_POLYGON),
    "far away": ([[1, 1, 1e12, 5, 9, 2]], Reason.DEGENERATE_POLYGON),
    "words": ([["a", 1, 5, 5, 9, 2]], Reason.DEGENERATE_POLYGON),
    "nothing": (None, Reason.BROKEN_MASK),
    "too few runs": ({"size": list(SIZE), "counts": [3, 4]}, Reason.BROKEN_MASK),
    "negative runs": ({"size": list(SIZE), "counts": [10, -5, 763]}, Reason.BROKEN_MASK),
    "a damaged string": ({"size": list(SIZE), "counts": "n\x01p"}, Reason.BROKEN_MASK),
    "a string cut off": ({"size": list(SIZE), "counts": "oW"}, Reason.BROKEN_MASK),
    "no counts": ({"size": list(SIZE)}, Reason.BROKEN_MASK),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_bad_mask_is_left_out_and_counted(coco, name):
    segmentation, reason = BAD_MASKS[name]
    source = coco([[segmentation, rle(rectangle())]])
    report = scan(source)
    assert report.counts == {reason: 1}
    assert (report.pictures, report.masks) == (1, 1)
    line = str(report).splitlines()[1]
    assert str(reason) in line and " 1 " in line and ("annotation 100" in line or "mask 0" in line)
    example = LoadExample([source], PLAIN, replace=False)((0, 0), np.random.default_rng(0))
    assert example.valid.tolist() == [True, False]
    assert example.left_out[REASONS.index(reason)] == 1 == example.left_out.sum()


def _remove(root, content):
    (root / "2.png").unlink()


def _truncate(root, content):
    path = root / "2.png"
    path.write_bytes(path.read_bytes()[:40])


def _shrink(root, content):
    Image.new("RGB", (5, 5)).save(root / "2.png")


def _crowd(root, content):
    content["annotations"][1]["iscrowd"] = 1


def _category(root, content):
    content["annotations"][1]["category_id"] = 99


def _picture(root, content):
    content["annotations"][1]["image_id"] = 99


@pytest.mark.parametrize(
    "change, reason, where",
    [
        (_remove, Reason.MISSING_PICTURE, "2.png"),
        (_truncate, Reason.BROKEN_PICTURE, "2.png"),
        (_shrink, Reason.PICTURE_SIZE, "2.png is 5 high and 5 wide"),
        (_crowd, Reason.CROWD, "annotation 101"),
        (_category, Reason.UNKNOWN_CATEGORY, "annotation 101"),
        (_picture, Reason.UNKNOWN_PICTURE, "annotation 101"),
    ],
)
def test_a_bad_record_is_left_out_and_counted(coco, change, reason, where):
    source = coco([[rle(rectangle())]] * 2, change=change)
    report = scan(source, pictures=True)
    assert report.counts == {reason: 1}
    assert (report.pictures, report.masks) == (1, 1)
    assert str(reason) in str(report) and where in str(report)
    assert str(report).startswith("coco: 1 pictures, 1 masks")


def test_a_picture_that_goes_missing_later(coco, tmp_path):
    source = coco()
    (tmp_path / "coco" / "1.png").unlink()
    with pytest.raises(BadRecordError, match="missing picture: .*1.png") as caught:
        read_picture(source.read(0))
    assert caught.value.reason is Reason.MISSING_PICTURE


def test_a_report_shows_some_places_and_counts_all(coco):
    source = coco([[[]] * 5 + [rle(rectangle())]])
    report = scan(source)
    line = str(report).splitlines()[1]
    assert report.counts[Reason.EMPTY_MASK] == 5
    assert line.count("annotation") == 3 and line.endswith(", ...")
    assert not source.report.counts, "scanning leaves the report of opening alone"


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is no COCO instances file"),
        ("[]", "is no COCO instances file"),
        ('{"images": []}', "'annotations' is missing"),
        ('{"images": [{"id": 1}], "annotations": []}', "is missing"),
        ('{"images": [], "annotations": []}', "no picture with masks that can be used"),
    ],
)
def test_a_file_that_is_not_coco(tmp_path, text, message):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_coco(path, tmp_path)
    assert str(path) in str(caught.value)


def test_folders_that_are_not_there(tmp_path):
    for opener in (open_sa1b, open_mask_folder, lambda path: open_coco(tmp_path / "a.json", path)):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            opener(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="a.json"):
        open_coco(tmp_path / "a.json", tmp_path)


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
    source = coco([[rle(rectangle())]] * 3, change=_truncate)
    loader = make_loader([source], PLAIN, batch_size=3, num_epochs=1)
    with pytest.warns(UserWarning, match="left out: broken picture: .*2.png"):
        (batch,) = loader
    assert batch.image.shape[0] == 3 and set(number_of(batch)) == {1, 3}
    report = Report("coco")
    report.add_counts(batch.left_out)
    assert report.counts == {Reason.BROKEN_PICTURE: 1}
    assert "broken picture" in str(report)


def test_validation_takes_no_other_picture(coco):
    source = coco([[rle(rectangle())]] * 3, change=_truncate)
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
