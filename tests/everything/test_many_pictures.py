"""Many pictures, in a tiny model: the records of one by one, and nothing left when it ends."""

import threading

import jax
import numpy as np
import pytest

from samjax import Model, SamAutomaticMaskGenerator, SamConfig, SamPredictor, inference
from samjax.everything import crops
from samjax.images import write_png

OPTIONS = dict(
    points_per_side=3, points_per_batch=4, pred_iou_thresh=-10.0, stability_score_thresh=0.0,
    box_nms_thresh=0.9, output_mode="coco_rle",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    config = SamConfig.tiny(64)
    return Model(inference.init_params(config), config)


@pytest.fixture(scope="module")
def generator(model):
    return SamAutomaticMaskGenerator(model, **OPTIONS)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (60, 80 + i, 3), dtype=np.uint8) for i in range(3)]


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    assert not [t.name for t in threading.enumerate() if "samjax" in t.name]


@pytest.mark.parametrize("layers", [0, 1])
def test_the_records_of_one_by_one(model, images, layers, tmp_path):
    generator = SamAutomaticMaskGenerator(
        model, **OPTIONS, crop_n_layers=layers, min_mask_region_area=5
    )
    expected = [generator.generate(image) for image in images]
    assert all(expected)
    path = tmp_path / "first.png"
    write_png(path, images[0])
    before = inference.compiled_programs()
    found = list(generator.generate_many(iter([path, *images[1:]])))
    assert inference.compiled_programs() == before
    assert len(found) == len(images)
    for (image, records), given, those in zip(found, images, expected, strict=True):
        np.testing.assert_array_equal(image, given)
        assert records == those


def test_no_pictures(generator):
    assert list(generator.generate_many([])) == []


def test_a_broken_picture_in_its_place(generator, images, tmp_path):
    given = [images[0], tmp_path / "none.png", np.zeros((0, 5, 3), np.uint8), images[1]]
    found = list(generator.generate_many(given, yield_errors=True))
    assert isinstance(found[1], FileNotFoundError) and isinstance(found[2], ValueError)
    for i in (0, 3):
        assert found[i].records == generator.generate(given[i])


def test_a_broken_picture_raised(generator, images, tmp_path):
    found = generator.generate_many([images[0], tmp_path / "none.png", images[1]])
    assert len(next(found)) == 2
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        next(found)
    assert list(found) == []


@pytest.mark.parametrize("where", ["encoding", "decoding", "compressing"])
def test_a_failure_costs_its_picture_alone(model, images, where, monkeypatch):
    """In the second of five crops of the second of three pictures."""
    generator = SamAutomaticMaskGenerator(model, **OPTIONS, crop_n_layers=1)
    expected = [generator.generate(image) for image in images]
    calls: list[int] = []

    def fail_in(owner, name, fails):
        original = getattr(owner, name)

        def failing(*args, **kwargs):
            calls.append(1)
            if fails(*args, **kwargs):
                raise MemoryError("no room")
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, failing)

    if where == "encoding":
        fail_in(inference, "encode_images", lambda *_, **__: len(calls) == 7)
    elif where == "decoding":  # three batches a crop
        fail_in(inference, "decode_masks", lambda *_, **__: len(calls) == 3 * 6 + 2)
    else:
        fail_in(crops, "compress_packed", lambda *_, frame, **__: frame == images[1].shape[:2])
    found = list(generator.generate_many(images, yield_errors=True))
    assert isinstance(found[1], MemoryError)
    assert [found[0].records, found[2].records] == [expected[0], expected[2]]


def test_an_error_of_the_iterable_is_raised(generator, images):
    def given():
        yield images[0]
        raise KeyError("mine")

    found = generator.generate_many(given(), yield_errors=True)
    assert next(found).records
    with pytest.raises(KeyError, match="mine"):
        next(found)


def test_few_pictures_ahead_and_closing_stops(generator, images):
    taken = []
    third = threading.Event()

    def given():
        for i in range(100):
            taken.append(i)
            if i == 2:
                third.set()
            yield images[0]

    found = generator.generate_many(given())
    next(found)
    assert third.wait(60)
    found.close()
    assert 3 <= len(taken) <= 4


def test_a_picture_is_done_before_the_next_one_comes(generator, images):
    """A source that is slow, such as a camera, does not hold results back."""
    seen = threading.Event()

    def given():
        yield images[0]
        assert seen.wait(60), "the first result waits for the second picture"
        yield images[1]

    found = generator.generate_many(given())
    next(found)
    seen.set()
    assert len(list(found)) == 1


def test_work_is_done_on_the_callers_device(generator, images):
    """JAX's default device is a thread's own."""
    device = jax.devices()[0]
    seen = []

    class Predictor(SamPredictor):
        def encode(self, prepared):
            seen.append(jax.config.jax_default_device)
            return super().encode(prepared)

    watched = SamAutomaticMaskGenerator(generator.predictor.model, **OPTIONS)
    watched.predictor = Predictor(watched.predictor.model)
    with jax.default_device(device):
        found = watched.generate_many(images[:1])
        next(found)
        found.close()
    assert seen == [device]
