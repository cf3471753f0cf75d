"""The model of the package's own: its name, its place as the default, and what it does.

What concerns the name is tested with a tiny model in nano's place, so that it needs no weights.
"""

import json
import logging
import shlex
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools.coco import COCO

import samjax
from samjax import SamAutomaticMaskGenerator, SamPredictor, checkpoint
from samjax.checkpoint import NANO, Model, save_checkpoint
from samjax.cli import main
from samjax.images import read_image
from samjax.models import EverythingThresholds, SamConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten, unflatten

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.optimized,
]

ROOT = Path(__file__).parents[1]
DOGS = ROOT / "docs/dogs.jpg"
BLACK_DOG = (690, 370)
YELLOW_DOG = (452, 186, 606, 582)
LINE = (
    "samjax: using nano: small, for trying out; name a model such as sam_vit_b_01ec64.pth for work"
)
KEEP_ALL = EverythingThresholds(
    pred_iou_thresh=-10.0, stability_score_thresh=0.0, box_nms_thresh=1.0
)


@pytest.fixture(scope="session")
def tiny() -> Model:
    config, rng = SamConfig.tiny(256), np.random.default_rng(0)
    leaves = flatten(abstract_params(config))
    arrays = {n: 0.1 * rng.standard_normal(x.shape, np.float32) for n, x in leaves.items()}
    return Model(unflatten({n: jnp.asarray(x) for n, x in arrays.items()}), config, KEEP_ALL)


@pytest.fixture
def stand_in(tmp_path, tiny, monkeypatch) -> Model:
    """What lies in nano's place, in half precision; the current directory is empty."""
    model = tiny.astype("float16")
    save_checkpoint(tmp_path / "assets" / NANO, model)
    monkeypatch.setattr(checkpoint, "ASSETS", tmp_path / "assets")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    checkpoint._log_default.cache_clear()
    return model


@pytest.fixture(scope="module")
def nano() -> Model:
    if not (checkpoint.ASSETS / NANO).is_dir():
        pytest.skip("samjax/assets/nano is not in this source tree")
    return samjax.load(NANO)


def assert_equal(found: Model, expected: Model) -> None:
    for name, array in flatten(expected.params).items():
        np.testing.assert_array_equal(flatten(found.params)[name], array, err_msg=name)


def test_the_name_is_the_packages_model_in_float32(stand_in):
    for model in (samjax.load("nano"), samjax.load()):
        assert (model.config, model.everything) == (stand_in.config, KEEP_ALL)
        assert {str(x.dtype) for x in flatten(model.params).values()} == {"float32"}
        assert_equal(model, stand_in.astype("float32"))
    half = samjax.load("nano", dtype="float16")
    assert flatten(half.params)["image_encoder.pos_embed"].dtype == "float16"


def test_a_folder_of_that_name_is_a_path(stand_in):
    other = Model(stand_in.params, stand_in.config.replace(mask_threshold=0.5))
    save_checkpoint("nano", other)
    assert samjax.load("nano").config == stand_in.config
    for path in ("./nano", Path("nano"), Path("nano").absolute()):
        assert samjax.load(path).config == other.config


def test_a_tree_without_it(stand_in, tmp_path, capsys):
    shutil.rmtree(tmp_path / "assets")
    with pytest.raises(FileNotFoundError, match=r"nano is not in this installation.*checkpoint\.$"):
        samjax.load("nano")
    (tmp_path / "here/nano").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the nano in this folder is \./nano\.$"):
        SamPredictor()
    assert main(["info"]) == 2
    assert "nano is not in this installation of samjax" in capsys.readouterr().err


def test_no_model_is_nano_and_one_line_in_the_log(stand_in, caplog):
    with caplog.at_level(logging.DEBUG, logger="samjax"):
        samjax.load("nano")
        assert not caplog.records
        assert SamPredictor().model.config == stand_in.config
        generator = SamAutomaticMaskGenerator()
        assert SamAutomaticMaskGenerator(points_per_side=4).predictor.model.everything == KEEP_ALL
        samjax.load()
    assert generator.pred_iou_thresh == KEEP_ALL.pred_iou_thresh
    assert generator.crop_nms_thresh == 0.7
    (record,) = caplog.records
    assert record.name == "samjax" and record.levelno == logging.WARNING
    assert record.getMessage().startswith("samjax: no model is named, so this is nano")


def instances(path: Path) -> Path:
    """A COCO file of one square on the picture."""
    square = {"id": 1, "image_id": 1, "segmentation": [[50, 50, 250, 50, 250, 250, 50, 250]]}
    image = {"id": 1, "file_name": DOGS.name, "height": 603, "width": 1072}
    path.write_text(json.dumps({"images": [image], "annotations": [square]}))
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", DOGS, "--point", 5, 5, "--output", "out"],
        ["everything", DOGS, "--points-per-side", 2, "--output", "out"],
        ["eval", "--data", "things.json", "--images", DOGS.parent, "--output", "out"],
        ["info", "--no-memory"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_without_a_model_say_so_in_a_line(stand_in, arguments, tmp_path, capsys):
    instances(Path("things.json"))
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines().count(LINE) == 1 and "no model is named" not in err
    assert "loaded nano: ViT of 2 blocks" in out
    if arguments[0] == "eval":
        assert json.loads(Path("out/evaluation.json").read_text())["model"] == "nano"
    elif arguments[0] != "info":
        settings = json.loads(Path("out/settings.json").read_text())["settings"]
        assert settings["model"] == str((tmp_path / "assets/nano").resolve())


def test_a_model_that_is_named_takes_no_line(stand_in, capsys):
    assert main(["info", "nano", "--no-memory"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "box_nms_thresh=1" in out


def demo() -> list[list[str]]:
    """The commands of `make demo`, as make prints them."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    run = subprocess.run(
        ["make", "-n", "demo", "DEMO=no-such-folder"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [shlex.split(line) for line in run.stdout.replace("\\\n", " ").splitlines()]


def run_demo(folder: Path, *, points_per_side: int) -> None:
    """On fewer points, in a folder with the repository's pictures."""
    points = ["--points-per-side", str(points_per_side)]
    (folder / "docs").symlink_to(ROOT / "docs")
    for program, *arguments in demo():
        if program.endswith("/samjax"):
            assert main(arguments + points * (arguments[0] == "everything")) == 0


def test_the_demo_installs_the_package_and_no_extras():
    commands = demo()
    (install,) = [command for command in commands if "pip" in command]
    assert install[-2:] == ["-e", "."]
    programs = [command[1] for command in commands if command[0].endswith("/samjax")]
    assert programs == ["everything", "predict", "predict"]


def test_the_demo_writes_overlays_and_coco(stand_in):
    run_demo(Path(), points_per_side=3)
    picture = read_image(DOGS)
    for name, count in (("everything", None), ("click", 1), ("box", 1)):
        drawn = read_image(f"demo/{name}/dogs/overlay.png")
        assert drawn.shape == picture.shape and (drawn != picture).any()
        number = len(COCO(f"demo/{name}/coco.json").anns)
        assert number == count if count else number > 3


def test_the_file_is_small_and_in_half_precision(nano):
    stored = samjax.load(checkpoint.ASSETS / NANO)
    assert nano.config == SamConfig.nano()
    sizes = {str(x.dtype): 0 for x in flatten(stored.params).values()}
    for array in flatten(stored.params).values():
        sizes[str(array.dtype)] += array.size
        assert np.isfinite(array).all()
    assert sizes["float16"] > 0.98 * nano.num_parameters
    files = [file for file in checkpoint.ASSETS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6


def test_it_carries_thresholds(nano):
    carried = nano.everything.to_dict()
    assert {"pred_iou_thresh", "stability_score_thresh"} <= set(carried)


def test_half_precision_in_memory_predicts_the_same(nano):
    """What the docstring of `load` says of the type."""
    logits = []
    for model in (nano, nano.astype("float16")):
        predictor = SamPredictor(model)
        predictor.set_image(DOGS)
        logits.append(predictor.predict([BLACK_DOG], [1])[2])
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-3)


def test_the_demo_with_nano_itself(nano, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_demo(tmp_path, points_per_side=8)
    assert COCO("demo/everything/coco.json").anns
    click, box = (COCO(f"demo/{name}/coco.json") for name in ("click", "box"))
    x, y = BLACK_DOG
    assert click.annToMask(click.anns[1])[y, x]
    x0, y0, x1, y1 = YELLOW_DOG
    mask = box.annToMask(box.anns[1])
    assert mask[y0:y1, x0:x1].sum() > 0.8 * mask.sum()


def test_the_demos_prompts_are_these():
    words = " ".join(" ".join(command) for command in demo())
    assert f"--point {' '.join(map(str, BLACK_DOG))} " in words
    assert f"--box {' '.join(map(str, YELLOW_DOG))} " in words
