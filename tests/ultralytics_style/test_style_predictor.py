"""`SAM` and `Predictor` on a tiny model: the same masks as samjax's own classes give."""

import jax
import numpy as np
import pytest

import samjax
from samjax import SamAutomaticMaskGenerator, SamPredictor, inference
from samjax.images import read_image
from samjax.postprocess import rle_to_mask
from samjax.ultralytics_style import SAM, Predictor

BOX = [10, 5, 60, 50]
POINTS = [[[20, 30], [70, 40]], [[50, 10], [5, 5]]]
LABELS = [[1, 0], [1, 1]]
EVERYTHING = dict(conf_thres=0.3, stability_score_thresh=0, iou=1.0, points_stride=3)


@pytest.fixture
def picture(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.png")
    return "a.png"


@pytest.fixture(scope="module")
def sam(tiny):
    return SAM(tiny)


@pytest.fixture
def expected(tiny, picture):
    predictor = SamPredictor(tiny)
    predictor.set_image(picture)
    return predictor


def same(result, masks, ious, low_res):
    np.testing.assert_array_equal(result.masks.data, masks)
    np.testing.assert_array_equal(result.boxes.conf, ious)
    np.testing.assert_array_equal(result.masks.logits, low_res)


def test_a_box_and_points(sam, picture, expected):
    (result,) = sam(picture, bboxes=BOX)
    same(result, *expected.predict(box=BOX, multimask_output=False))
    assert result.path == picture and result.orig_shape == (60, 90)
    np.testing.assert_array_equal(result.orig_img[..., ::-1], read_image(picture))
    ys, xs = np.nonzero(result.masks.data[0])
    assert result.boxes.xyxy[0].tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]
    (result,) = sam(picture, points=POINTS, labels=LABELS)
    masks, ious, low_res = expected.predict_batch(
        np.array(POINTS, float), np.array(LABELS), multimask_output=False
    )
    same(result, masks[:, 0], ious[:, 0], low_res[:, 0])
    assert result.boxes.cls.tolist() == [0, 1] and result.names == {0: "0", 1: "1"}
    assert all(result.speed[name] >= 0 for name in ("preprocess", "inference", "postprocess"))


def test_masks_as_prompts_and_three_masks_each(sam, picture, expected):
    (first,) = sam(picture, bboxes=[BOX, BOX])
    (result,) = sam(bboxes=[BOX, BOX], masks=first.masks.logits, multimask_output=True)
    masks, ious, low_res = expected.predict_batch(
        boxes=np.array([BOX, BOX]), mask_input=np.asarray(first.masks.logits)
    )
    same(result, masks.reshape(6, 60, 90), ious.reshape(6), low_res.reshape(6, 16, 16))
    assert result.boxes.cls.tolist() == [0, 0, 0, 1, 1, 1]


def test_more_objects_than_are_in_memory_together(sam, picture, monkeypatch):
    boxes = [[i, 0, i + 40, 50] for i in (0, 20)]
    (whole,) = sam(picture, bboxes=boxes)
    monkeypatch.setattr("samjax.ultralytics_style.finding.OBJECTS_AT_ONCE", 1)
    (parts,) = sam(picture, bboxes=boxes)
    assert parts.boxes.cls.tolist() == [0, 1]
    np.testing.assert_allclose(parts.masks.logits, whole.masks.logits, rtol=0, atol=1e-5)


def test_conf_and_max_det_keep_the_object_numbers(sam, picture):
    for boxes in ([[0, 0, 40, 50], [40, 5, 80, 20]], [[40, 5, 80, 20], [0, 0, 40, 50]]):
        (both,) = sam(picture, bboxes=boxes)
        conf = both.boxes.conf.astype(float)
        (some,) = sam(picture, bboxes=boxes, conf=float(conf.mean()))
        assert some.boxes.cls.tolist() == [conf.argmax()]
        (some,) = sam(picture, bboxes=boxes, max_det=1)
        assert some.boxes.cls.tolist() == [conf.argmax()]
    (none,) = sam(picture, bboxes=boxes, conf=1)
    assert len(none) == 0 and none.masks is None


def test_no_prompt_is_everything(sam, picture, tiny):
    (result,) = sam(picture, **EVERYTHING)
    records = SamAutomaticMaskGenerator(
        tiny, points_per_side=3, pred_iou_thresh=0.3, stability_score_thresh=0, box_nms_thresh=1.0
    ).generate(picture)
    assert len(records) == len(result) > 3
    for i, record in enumerate(records):
        np.testing.assert_array_equal(result.masks.data[i], record["segmentation"])
        assert result.masks.stability_scores[i] == np.float32(record["stability_score"])
        x, y, width, height = record["bbox"]
        assert result.boxes.xyxy[i].tolist() == [x, y, x + width, y + height]
    assert result.boxes.cls.tolist() == list(range(len(records)))
    annotations = result.to_coco()["annotations"]
    np.testing.assert_array_equal(rle_to_mask(annotations[0]["segmentation"]), result.masks.data[0])
    assert {"predicted_iou", "stability_score", "score"} <= annotations[0].keys()


@pytest.mark.parametrize("nothing", [dict(bboxes=[]), dict(points=np.zeros((0, 1, 2)))])
def test_prompts_for_no_object_are_not_everything(sam, picture, nothing):
    (result,) = sam(picture, **nothing)
    assert len(result) == 0 and result.masks is None


def encodings(monkeypatch):
    calls = []
    encode = inference.encode_images
    monkeypatch.setattr(
        inference, "encode_images", lambda *args, **kw: calls.append(1) or encode(*args, **kw)
    )
    return calls


def test_the_encoder_does_not_run_again(tiny, picture, monkeypatch):
    calls = encodings(monkeypatch)
    predictor = Predictor(overrides=dict(conf=0.1, model=tiny))
    predictor.set_image(picture)
    predictor(bboxes=BOX)
    (one,) = predictor(points=[20, 30], labels=[1])
    assert len(calls) == 1 and one.path == picture
    (other,) = predictor(source=np.zeros((60, 90, 3), np.uint8), bboxes=BOX)
    (again,) = predictor(points=[20, 30], labels=[1])
    assert len(calls) == 2 and again.path == picture
    np.testing.assert_array_equal(again.masks.data, one.masks.data)
    with pytest.raises(FileNotFoundError):
        predictor.set_image("absent.png")
    assert predictor(bboxes=BOX)[0].path == picture
    predictor.reset_image()
    with pytest.raises(RuntimeError, match="there is no source, and no picture is set"):
        predictor(bboxes=BOX)
    with pytest.raises(ValueError, match="set_image takes one picture, and this is 2 pictures"):
        predictor.set_image([picture, picture])


def test_without_a_source_sam_takes_the_picture_before(tiny, picture, write, tmp_path, monkeypatch):
    model = SAM(tiny)
    with pytest.raises(RuntimeError, match="there is no source"):
        model(bboxes=BOX)
    calls = encodings(monkeypatch)
    model(picture, bboxes=BOX)
    assert model(points=[20, 30])[0].path == picture and len(calls) == 1
    model([picture, picture], bboxes=BOX)
    with pytest.raises(RuntimeError, match="there is no source"):
        model(bboxes=BOX)


def test_one_broken_picture_among_a_hundred(sam, tmp_path, write, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(100):
        write(tmp_path / f"in/{i:03}.png", seed=i)
    whole = (tmp_path / "in/041.png").read_bytes()
    (tmp_path / "in/041.png").write_bytes(whole[: len(whole) // 2])
    names = [f"in/{i:03}.png" for i in range(100)]
    results = sam(names, bboxes=BOX, verbose=False)
    assert [result.path for result in results] == names[:41] + names[42:]
    ((path, reason),) = sam.failures
    assert path == "in/041.png" and "cannot be decoded" in reason
    assert "skipped: in/041.png" in caplog.text
    assert "1 of 100 pictures not done" in caplog.text
    with pytest.raises(ValueError, match="041.png cannot be decoded"):
        sam("in/041.png", bboxes=BOX)


def test_failures_of_other_kinds(sam, tmp_path, write, caplog, monkeypatch):
    """A name that is not there, an array that is no picture, a box that only one picture has."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "small.png", (60, 90))
    write(tmp_path / "large.png", (60, 120))
    sources = ["absent.png", np.zeros((4, 5, 7), np.uint8), "small.png", "large.png"]
    results = sam(sources, bboxes=[100, 10, 119, 50])
    assert [result.path for result in results] == ["large.png"]
    assert [failure.path for failure in sam.failures] == ["absent.png", "image1.jpg", "small.png"]
    assert "lies outside the picture" in sam.failures[2].reason
    with pytest.raises(ValueError, match="2 of 2 pictures not done; the first: .*absent.png"):
        sam(["absent.png", "b.png"], bboxes=BOX)


def test_streams_are_lazy_and_checked_at_once(sam, picture):
    stream = sam([picture, "absent.png", picture], stream=True, bboxes=BOX)
    assert not isinstance(stream, list)
    assert next(stream).path == picture and not sam.failures
    assert next(stream).path == picture and len(sam.failures) == 1
    assert next(stream, None) is None
    for wrong, error in [
        (dict(source="absent.png"), FileNotFoundError),
        (dict(source=picture, bboxes=[1, 2]), ValueError),
        (dict(source=picture, conf=7), ValueError),
        (dict(source=picture, points_strid=7), TypeError),
        (dict(source=picture, crop_overlap_ratio=7), ValueError),
    ]:
        with pytest.raises(error):
            sam(**wrong, stream=True)


def test_wrong_prompts_on_a_picture(sam, picture):
    with pytest.raises(ValueError, match=r"point \(200, 3\) is outside the picture"):
        sam(picture, points=[200, 3])
    with pytest.raises(ValueError, match="a point label is .*3"):
        sam(picture, points=[20, 3], labels=[3])
    with pytest.raises(ValueError, match=r"box \(50, 5, 20, 9\) is empty"):
        sam(picture, bboxes=[50, 5, 20, 9])


def test_what_is_saved(sam, tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x/a.png", "y/a.png"):
        write(tmp_path / name)
    sources = ["x/a.png", "y/a.png"]
    for folder in ("predict", "predict2"):
        results = sam(sources, bboxes=[BOX, BOX], save=True, save_txt=True, save_crop=True)
        root = tmp_path / "runs/segment" / folder
        assert {result.save_dir for result in results} == {f"runs/segment/{folder}"}
        assert sorted(p.name for p in root.glob("*.jpg")) == ["a-2.jpg", "a.jpg"]
        assert len((root / "labels/a-2.txt").read_text().splitlines()) == 2
        assert (root / "crops/1/a_1.jpg").is_file()
    sam("x/a.png", bboxes=BOX, save=True, project="p", name="n", exist_ok=True)
    sam("x/a.png", bboxes=BOX, save=True, project="p", name="n", exist_ok=True)
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["n"]


def test_settings_of_a_predictor_and_of_a_call(tiny, picture, caplog):
    predictor = Predictor(dict(model=tiny, conf=1, imgsz=1024))
    assert len(predictor(picture, bboxes=BOX)[0]) == 0
    assert "imgsz=1024 has no effect: this model sees pictures at 64 pixels" in caplog.text
    caplog.clear()
    assert len(predictor(picture, bboxes=BOX, conf=0, imgsz=[64, 64])[0]) == 1
    assert "imgsz" not in caplog.text
    with pytest.raises(ValueError, match="task='detect'"):
        Predictor(dict(model=tiny, task="detect"))
    with pytest.raises(ValueError, match="device is 'toaster'"):
        Predictor(dict(model=tiny, device="toaster"))


def test_device_and_half_precision(sam, picture):
    (whole,) = sam(picture, bboxes=BOX)
    (half,) = sam(picture, bboxes=BOX, half=True, device="cpu")
    assert sam.model.config.dtype == "float16"
    assert sam.device == jax.devices("cpu")[0]
    difference = np.abs(half.masks.logits.astype(float) - whole.masks.logits)
    assert 0 < difference.max() < 0.02 * np.abs(whole.masks.logits).max()
    sam(picture, bboxes=BOX)
    assert sam.model.config.dtype == "float32"


def test_info(sam, tiny, capsys):
    info = sam.info()
    assert str(info) in capsys.readouterr().out
    assert info.parameters == tiny.num_parameters and info.size == tiny.num_bytes
    assert 20 < info.layers < 200 and info.image_size == 64
    sam.info(detailed=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == info.layers + 1
    sizes = [int(line.split()[-1].replace(",", "")) for line in lines[:-1]]
    assert sum(sizes) == info.parameters


def test_names_come_from_samjax():
    assert samjax.SAM is SAM and samjax.Predictor is Predictor


@pytest.mark.parametrize("name", ["absent.pt", "absent/sam"])
def test_a_model_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match=name):
        SAM(name)
