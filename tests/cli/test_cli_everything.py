"""`samjax everything`."""

import dataclasses
import errno
import inspect
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from samjax import SamAutomaticMaskGenerator, TiledMaskGenerator, results
from samjax.automatic_mask_generator import Segmented
from samjax.checkpoint import Model, save_checkpoint
from samjax.cli import everything as command
from samjax.cli import main
from samjax.images import read_image, write_png
from samjax.models import EverythingThresholds

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KEEP_ALL = "--pred-iou-thresh -10 --stability-score-thresh 0 --box-nms-thresh 1".split()
POINTS = "--points-per-side 4 --points-per-batch 16".split()


@pytest.fixture
def everything(checkpoint, tmp_path):
    """Runs the command with the output folder `out`."""

    def run(*arguments: object, model=checkpoint, keep=KEEP_ALL, last=()) -> int:
        argv = [*arguments, "--model", model, "--output", tmp_path / "out", *POINTS, *keep, *last]
        return main(["everything", *map(str, argv)])

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def annotations(folder) -> list[dict]:
    return json.loads((folder / "annotations.json").read_text())["annotations"]


def test_flags_and_defaults_are_the_generators():
    parameters = inspect.signature(SamAutomaticMaskGenerator.__init__).parameters
    defaults = {name: default for name, (default, _) in command.GENERATOR_ARGUMENTS.items()}
    theirs = {name: p.default for name, p in parameters.items() if name in defaults}
    assert defaults == theirs
    left_out = set(parameters) - set(defaults)
    assert left_out == {"self", "model", "point_grids", "output_mode", "progress"}
    assert all(isinstance(theirs[name], type(value)) for name, value in defaults.items())
    assert list(command.CARRIED) == [f.name for f in dataclasses.fields(EverythingThresholds)]


def test_help_shows_metas_defaults_and_whose_come_first(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        main(["everything", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, (default, what) in command.GENERATOR_ARGUMENTS.items():
        usual = "the model's own, or " * (name in command.CARRIED) + f"{default:.4g}"
        flag = f"--{name.replace('_', '-')} {name.upper()}"
        assert f"{flag} {what} (default: {usual})" in text


def test_a_flag_wins_over_the_model_and_the_model_over_metas_default(
    everything, draw, tmp_path, tiny_model, monkeypatch
):
    thresholds = EverythingThresholds(
        pred_iou_thresh=-10.0, stability_score_thresh=0.25, min_mask_region_area=30
    )
    save_checkpoint(tmp_path / "own", dataclasses.replace(tiny_model, everything=thresholds))
    made = []

    class Generator(SamAutomaticMaskGenerator):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("samjax.automatic_mask_generator.SamAutomaticMaskGenerator", Generator)
    flags = ["--stability-score-thresh", "0.95"]
    assert everything(draw("a.png"), model=tmp_path / "own", keep=flags) == 0
    expected = {
        "pred_iou_thresh": -10.0,
        "stability_score_thresh": 0.95,
        "stability_score_offset": 1.0,
        "box_nms_thresh": 0.7,
        "crop_nms_thresh": 0.7,
        "min_mask_region_area": 30.0,
    }
    assert {name: getattr(made[0], name) for name in command.CARRIED} == expected
    settings = json.loads((tmp_path / "out/settings.json").read_text())["settings"]
    assert {name: settings[name] for name in command.CARRIED} == expected


def test_files_and_folders(everything, draw, tmp_path, tiny_model, out, capsys):
    draw("in/a.png", "in/sub/a.png", "b.png")
    assert everything(tmp_path / "in", "--recursive", "--input", tmp_path / "b.png") == 0
    text = capsys.readouterr().out
    generator = SamAutomaticMaskGenerator(
        tiny_model, 4, 16, pred_iou_thresh=-10, stability_score_thresh=0, box_nms_thresh=1.0
    )
    coco = COCO(out / "coco.json")
    total = 0
    for image in coco.dataset["images"]:
        name = image["file_name"].removesuffix(".png")
        source = tmp_path / "b.png" if name == "b" else tmp_path / "in" / image["file_name"]
        records = generator.generate(source)
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert len(found) == len(records) == len(annotations(out / name)) > 20
        for i, record in enumerate(records):
            png = np.array(Image.open(out / name / f"{i}.png"))
            np.testing.assert_array_equal(png, record["segmentation"] * np.uint8(255))
            np.testing.assert_array_equal(coco.annToMask(found[i]), record["segmentation"])
            written = {k: v for k, v in annotations(out / name)[i].items() if k in record}
            assert written | {"segmentation": None} == record | {"segmentation": None}
        total += len(records)
    assert sorted(i["file_name"] for i in coco.dataset["images"]) == ["a.png", "b.png", "sub/a.png"]
    lines = text.splitlines()
    assert lines[0].startswith("loaded ") and "0.103 M parameters, float32" in lines[0]
    assert lines[1].startswith(f"3 pictures, {total} masks, ") and lines[1].endswith(f"in {out}")


def test_every_flag_reaches_the_generator(everything, draw, monkeypatch):
    given = {}

    class Generator:
        def __init__(self, model, **arguments):
            given.update(arguments)

        def generate_many(self, images, *, yield_errors):
            assert yield_errors
            for image in images:
                yield Segmented(read_image(image), [])

    monkeypatch.setattr("samjax.automatic_mask_generator.SamAutomaticMaskGenerator", Generator)
    values = {name: type(d)(i + 2) for i, (name, (d, _)) in enumerate(
        command.GENERATOR_ARGUMENTS.items())}  # fmt: skip
    values["crop_overlap_ratio"] = 0.25
    flags = [str(x) for k, v in values.items() for x in (f"--{k.replace('_', '-')}", v)]
    assert everything(draw("a.png"), last=flags) == 0
    assert given == values | {"output_mode": "coco_rle", "progress": True}


def test_rle_only(everything, draw, out):
    assert everything(draw("a.png"), "--convert-to-rle") == 0
    assert {path.name for path in (out / "a").iterdir()} == {
        "annotations.json", "metadata.csv", "overlay.png"}  # fmt: skip
    assert len(COCO(out / "coco.json").anns) == len(annotations(out / "a")) > 20


def test_two_pictures_with_one_stem(everything, draw, tmp_path, out):
    draw("in/photo.png", "in/photo.jpg")
    assert everything(tmp_path / "in") == 0
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"photo.png", "photo.jpg"}
    names = [image["file_name"] for image in COCO(out / "coco.json").dataset["images"]]
    assert sorted(names) == ["photo.jpg", "photo.png"]


def test_broken_pictures_among_many(everything, draw, tmp_path, out, capsys):
    draw("in/a.png", "in/z.png")
    (tmp_path / "in/broken.png").write_text("hello")
    (tmp_path / "in/cut.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:2000])
    assert everything(tmp_path / "in") == 1
    captured = capsys.readouterr()
    assert len(COCO(out / "coco.json").imgs) == 2
    assert not (out / "broken").exists() and (out / "z/overlay.png").exists()
    assert "\n2 pictures, " in captured.out
    summary = captured.err[captured.err.index("2 pictures not done:") :]
    for text in (captured.err.replace(summary, ""), summary):
        assert f"{tmp_path / 'in/broken.png'} is not a picture" in text
        assert f"{tmp_path / 'in/cut.png'} cannot be decoded" in text


def test_a_picture_in_which_nothing_is_found(everything, draw, out, capsys):
    picture = draw("a.png")
    assert everything(picture, keep=["--pred-iou-thresh", "99"]) == 0
    assert annotations(out / "a") == []
    np.testing.assert_array_equal(
        np.array(Image.open(out / "a/overlay.png")), np.array(Image.open(picture))
    )
    text = capsys.readouterr().out
    assert f"nothing found in 1 picture ({picture}): lower --pred-iou-thresh" in text
    assert "\n1 picture, 0 masks, " in text


def interrupt(monkeypatch, error: BaseException, name: str = "overlay.png"):
    """Makes the second picture's file of that name fail."""
    calls = []

    def write(path, array):
        calls.extend([path] if path.name == name else [])
        if len(calls) == 2:
            raise error
        write_png(path, array)

    monkeypatch.setattr(results, "write_png", write)


@pytest.mark.parametrize(
    "error, code, message",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
    ],
)
def test_a_run_that_ends_in_the_middle_and_resumes(
    everything, draw, tmp_path, out, capsys, monkeypatch, error, code, message
):
    draw("in/a.png", "in/b.png", "in/c.png")
    with monkeypatch.context() as patch:
        interrupt(patch, error)
        assert everything(tmp_path / "in") == code
    assert message in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"a", "coco.json", "settings.json"}
    assert len(COCO(out / "coco.json").imgs) == 1
    untouched = (out / "a/overlay.png").stat().st_mtime_ns

    assert everything(tmp_path / "in") == 2
    assert "--overwrite" in (err := capsys.readouterr().err) and "--resume" in err
    assert everything(tmp_path / "in", "--resume", last=["--box-nms-thresh", "0.5"]) == 2
    assert "box_nms_thresh was 1.0 and is now 0.5" in capsys.readouterr().err
    assert everything(tmp_path / "in", "--resume", last=["--points-per-batch", "8"]) == 0
    assert "\n3 pictures (1 done earlier), " in capsys.readouterr().out
    assert (out / "a/overlay.png").stat().st_mtime_ns == untouched
    assert len(COCO(out / "coco.json").imgs) == 3


def test_an_unexpected_error_leaves_what_is_done(everything, draw, tmp_path, out, monkeypatch):
    draw("in/a.png", "in/b.png")
    interrupt(monkeypatch, KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        everything(tmp_path / "in")
    assert len(COCO(out / "coco.json").imgs) == 1


def test_resume_with_another_model(everything, draw, tmp_path, capsys):
    picture = draw("a.png")
    assert everything(picture) == 0
    assert everything(picture, "--resume", model=tmp_path / "other") == 2
    err = capsys.readouterr().err
    assert "model was" in err and str(tmp_path / "other") in err


def test_overwrite(everything, draw, out):
    picture = draw("a.png")
    assert everything(picture) == 0
    number = len(annotations(out / "a"))
    assert everything(picture, "--overwrite", keep=["--pred-iou-thresh", "99"]) == 0
    assert number > 0 and annotations(out / "a") == []
    assert not (out / "a/0.png").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model-type", "vit_h"], "--model-type vit_h is ViT-H, but the model is of another"),
        (["--crop-overlap-ratio", "2"], "overlap ratio must lie in [0, 1]"),
        (["--points-per-side", "0"], "point grid of crop layer 0 would be empty: 0 points"),
        (["--points-per-batch", "0"], "points_per_batch is 0"),
        (["--crop-n-layers", "-1"], "crop layers must not be negative, as -1"),
        (["--device", "tpu"], "--device tpu: JAX finds none here, only cpu"),
        (["--device", "toaster"], "invalid choice: 'toaster'"),
    ],
)
def test_bad_options(everything, draw, capsys, options, message):
    assert everything(draw("a.png"), keep=options) == 2
    assert message in capsys.readouterr().err


def test_the_model_type_and_device_that_are_there(everything, draw, monkeypatch, out):
    monkeypatch.setitem(command._MODEL_TYPES, "vit_b", "of another size")
    assert everything(draw("a.png"), "--model-type", "vit_b", "--device", "cpu") == 0
    assert (out / "coco.json").exists()


@pytest.mark.parametrize("name, config", [("vit_b", "vit_b"), ("default", "vit_h")])
def test_the_model_type_of_published_sizes(name, config):
    from samjax.models import SamConfig

    model = Model({}, getattr(SamConfig, config)())
    command._check_model_type(name, model)
    with pytest.raises(
        ValueError, match=f"vit_l is ViT-L, but the model is ViT-{config[-1].upper()}"
    ):
        command._check_model_type("vit_l", model)


@pytest.mark.parametrize(
    "source, message",
    [(None, "there is no input"), ("none.png", "no such file or folder"),
     ("empty", "no pictures in"), ("text.png", "text.png is not a picture")],
)  # fmt: skip
def test_bad_inputs_are_found_before_a_model_is_loaded(
    everything, tmp_path, capsys, source, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("hello")
    sources = [] if source is None else [tmp_path / source]
    assert everything(*sources, model=tmp_path / "no-model") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_found_before_a_model_is_loaded(
    everything, draw, tmp_path, capsys
):
    (tmp_path / "out").write_text("mine")
    assert everything(draw("a.png"), "--overwrite", model=tmp_path / "no-model") == 2
    assert "file in its place" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_no_model(everything, draw, tmp_path, capsys):
    assert everything(draw("a.png"), model=tmp_path / "no-model") == 2
    assert "There is no" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_in_tiles(everything, draw, tmp_path, tiny_model, out):
    picture = draw("a.png")
    assert everything(picture, "--tile", "64", "--tile-overlap", "0.5") == 0
    generator = SamAutomaticMaskGenerator(
        tiny_model, 4, 16, pred_iou_thresh=-10, stability_score_thresh=0, box_nms_thresh=1.0
    )
    records = TiledMaskGenerator(generator, tile=64, overlap=0.5).generate(picture)
    assert any(record["crop_box"] == [0, 0, 64, 60] for record in records)
    written = annotations(out / "a")
    assert [record["segmentation"] for record in written] == [r["segmentation"] for r in records]
    assert all(record["segmentation"]["size"] == [60, 90] for record in written)
    settings = json.loads((out / "settings.json").read_text())["settings"]
    assert (settings["tile"], settings["tile_overlap"]) == (64, 0.5)


def test_resume_with_other_tiles(everything, draw, capsys):
    picture = draw("a.png")
    assert everything(picture, "--tile", "64") == 0
    assert everything(picture, "--resume") == 2
    assert "tile was 64 and is now None" in capsys.readouterr().err
    assert everything(picture, "--resume", "--tile", "64", "--tile-overlap", "0.25") == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tile", "1"], "a tile has 1 pixels"),
        (["--tile", "64", "--tile-overlap", "0.7"], "overlap is 0.7"),
        (["--tile-overlap", "0.25"], "--tile"),
    ],
)
def test_tiles_that_cannot_be(everything, draw, out, capsys, flags, message):
    assert everything(draw("a.png"), *flags) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_pillows_limit_is_for_pictures_without_tiles(everything, draw, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    picture = draw("a.png")
    assert everything(picture) == 2
    assert "--tile" in capsys.readouterr().err
    assert everything(picture, "--tile", "64") == 0
    assert Image.MAX_IMAGE_PIXELS == 2000
