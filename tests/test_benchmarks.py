"""The benchmarks' harness, with contenders that do next to nothing."""

import argparse
import csv
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from benchmarks import contenders, environments, harness, peers, precision, scaling_plot
from benchmarks.everything import matched
from benchmarks.labels import found_of
from benchmarks.machine import ROOT, versions
from samjax import Model, SamConfig, inference, transforms

pytestmark = pytest.mark.optimized

WORKER = """
import sys, time
from pathlib import Path
from benchmarks.harness import serve

def prepare():
    print("libraries print what they like")
    held = bytearray({mib} * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    calls = []
    def work():
        print("at any time")
        calls.append(len(held))
        time.sleep({first} if len(calls) == 1 else {later})
        return len(calls)
    return work

serve(prepare, lambda result, path: path.write_text(str(result)))
"""


def command(first=0.0, later=0.0, mib=1):
    return [sys.executable, "-c", WORKER.format(first=first, later=later, mib=mib)]


def test_labels_without_a_pixel_are_left_out_where_they_fit_least():
    true = [np.eye(4, dtype=bool)[i : i + 1] for i in range(4)]
    assert found_of(true, true) == true
    assert found_of(true, [true[0], true[3]]) == [true[0], true[3]]
    assert found_of(true, []) == []


def test_times_memory_and_results_are_each_contenders_own(tmp_path):
    slow, fast = harness.compare(
        {"slow": command(first=0.5, later=0.1, mib=200), "fast": command(later=0.01)},
        repeats=3, warmup=1, save_to=tmp_path,
    )  # fmt: skip
    assert (slow.contender, fast.contender) == ("slow", "fast")
    assert len(slow.seconds) == len(fast.seconds) == 3
    assert 0.1 <= slow.median < 0.4
    assert 0.1 <= slow.compile_seconds <= 0.45 and fast.compile_seconds < 0.2
    assert 150 < slow.peak_mib - fast.peak_mib < 250
    assert (tmp_path / "slow").read_text() == "5"  # first, warm-up, three that count


def test_contenders_that_are_warm_have_every_call_timed(tmp_path):
    (m,) = harness.compare(
        {"warm": command()}, repeats=2, warmup=0, save_to=tmp_path, cold=False
    )  # fmt: skip
    assert (tmp_path / "warm").read_text() == "2" and len(m.seconds) == 2
    assert m.compile_seconds == 0 and m.versions == versions()


def test_contenders_take_turns(tmp_path):
    log = tmp_path / "log"
    code = (
        "import sys; from benchmarks.harness import serve\n"
        f"serve(lambda: lambda: open({str(log)!r}, 'a').write(sys.argv[1]))"
    )
    commands = {name: [sys.executable, "-c", code, name] for name in "AB"}
    harness.compare(commands, repeats=2, warmup=1)
    assert log.read_text() == "ABABABAB"


def test_work_is_over_when_the_arrays_are_there():
    code = """
import jax, jax.numpy as jnp
from benchmarks.harness import serve
f = jax.jit(lambda: [jax.lax.fori_loop(0, 200, lambda i, x: jnp.sin(x @ x), jnp.ones((300, 300)))])
serve(lambda: f)
"""
    (m,) = harness.compare({"jax": [sys.executable, "-c", code]}, repeats=1, warmup=0)
    assert m.first_seconds > m.median > 0.01, "dispatching alone takes far less than a millisecond"


def test_a_contender_that_fails_is_named(capfd):
    commands = {"good": command(), "bad": [sys.executable, "-c", "raise SystemExit('no luck')"]}
    with pytest.raises(RuntimeError, match="'bad' ended with status 1"):
        harness.compare(commands, repeats=1)
    assert "no luck" in capfd.readouterr().err
    with pytest.raises(ValueError, match="repeats is 0"):
        harness.compare(commands, repeats=0)


def test_rows_are_appended(tmp_path, capsys):
    m = harness.Measurement("samjax", [2.0, 1.0, 4.0], 5.0, 123.4, "", {"masks": 7})
    for _ in range(2):
        path = harness.record("question", "tiny", [m], folder=tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    row = rows[0]
    assert (row["median_s"], row["min_s"], row["max_s"], row["repeats"]) == ("2", "1", "4", "3")
    assert (row["compile_s"], row["peak_mib"], row["masks"]) == ("3", "123", "7")
    assert row["jax"] and row["python"] and row["cpu"] and int(row["cores"]) > 0
    assert "samjax" in capsys.readouterr().out

    m.facts = {"difference": 0}
    before = path.read_text()
    with pytest.raises(ValueError, match=r"other columns.*masks.*beside.*difference"):
        harness.record("question", "tiny", [m], folder=tmp_path)
    assert path.read_text() == before

    m.facts = {"masks": 8, "matched": 8}
    m.versions = {**m.versions, "openvino": "2026.4.1"}
    harness.record("question", "tiny", [m], folder=tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["masks"], row["matched"]) for row in rows] == [("7", ""), ("7", ""), ("8", "8")]
    assert [row["openvino"] for row in rows] == [versions()["openvino"]] * 2 + ["2026.4.1"]
    assert [path.name for path in tmp_path.iterdir()] == ["question.csv"]


def test_matched_masks_are_counted_once():
    from pycocotools import mask as coco

    def rle(start):
        mask = np.zeros((50, 50), np.uint8, order="F")
        mask[start : start + 20] = 1
        return coco.encode(mask)

    assert matched([rle(0), rle(0), rle(10)], [rle(0), rle(30)]) == 1
    assert matched([rle(0), rle(30)], [rle(30), rle(0)]) == 2
    assert matched([], [rle(0)]) == matched([rle(0)], []) == 0


def test_the_drawn_picture_is_always_the_same():
    picture = contenders.draw_picture(40, 60)
    assert picture.shape == (40, 60, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, contenders.draw_picture(40, 60))
    assert len(np.unique(picture)) > 50


@pytest.fixture
def wheel(tmp_path):
    """A package that pip installs without a network."""
    path = tmp_path / "quartz-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("quartz.py", "SIX = 6")
        info = "quartz-1.0.dist-info"
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: quartz\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return str(path)


def test_an_environment_is_made_once(tmp_path, monkeypatch, wheel):
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "environments")
    monkeypatch.setattr(environments, "REQUIREMENTS", {"quartz": (wheel,)})
    assert environments.existing("quartz") is None
    python = environments.interpreter("quartz")
    found = subprocess.run(
        [python, "-c", "import quartz; print(quartz.SIX)"], capture_output=True, text=True
    )
    assert found.stdout == "6\n"
    monkeypatch.setattr(environments, "_run", lambda *command: pytest.fail("made again"))
    assert environments.interpreter("quartz") == environments.existing("quartz") == python
    monkeypatch.setattr(environments, "REQUIREMENTS", {"quartz": (wheel, "numpy")})
    assert environments.existing("quartz") is None, "it lacks what is wanted now"


@pytest.mark.parametrize("step, reason", [("pip", "no such wheel"), ("-c", "no such library")])
def test_an_environment_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch, step, reason):
    def run(*command):
        if step in command:
            raise environments.Unavailable(reason)
        (tmp_path / "quartz").mkdir(exist_ok=True)

    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "REQUIREMENTS", {"quartz": ("quartz",)})
    monkeypatch.setattr(environments, "_run", run)
    with pytest.raises(environments.Unavailable, match=reason):
        environments.interpreter("quartz")
    assert not list(tmp_path.iterdir())


def test_the_reason_is_what_was_said_last():
    with pytest.raises(environments.Unavailable, match="^no luck$"):
        environments._run(sys.executable, "-c", "raise SystemExit('some\\nno luck')")
    with pytest.raises(environments.Unavailable, match="does not start"):
        environments._run("/no/such/python")


def test_who_cannot_take_part_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def interpreter(name):
        if name == "openvino":
            raise environments.Unavailable("no wheel for this platform")
        return f"/environments/{name}/python"

    written = {}
    monkeypatch.setattr(environments, "interpreter", interpreter)
    monkeypatch.setattr(contenders, "write_weights", lambda *model, **rest: written.update(rest))
    everyone = ["samjax", "openvino", "onnxruntime", "keras_hub"]
    args = argparse.Namespace(contenders=everyone, model="vit_b", checkpoint=None, batch=2)
    commands = contenders.commands("benchmarks.image_encoder", args, tmp_path)
    assert list(commands) == ["samjax", "onnxruntime", "keras_hub"]
    assert commands["samjax"][0] == sys.executable
    assert commands["keras_hub"][0] == "/environments/keras_hub/python"
    assert commands["keras_hub"][-2:] == ["--worker", "keras_hub"]
    assert written["formats"] == ["click.onnx", "encoder.onnx", "meta.npz"]
    assert written["batch"] == 2
    assert "openvino is left out: no wheel for this platform" in capsys.readouterr().err

    args.model = "nano"
    assert list(contenders.commands("question", args, tmp_path)) == ["samjax", "onnxruntime"]
    assert "keras_hub is left out: it has no image encoder" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(60, 80, 3), (1200, 1800, 3), (77, 33, 3)])
def test_peers_get_the_picture_that_samjax_sees(shape):
    picture = contenders.draw_picture(*shape[:2])
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    config = {"image_encoder": {"image_size": 256}, "pixel_mean": mean, "pixel_std": std}
    image, scale, inside = peers.prepare(picture, config)
    resize = transforms.ResizeLongestSide(256)
    resized = resize.apply_image(picture)
    expected = transforms.normalize_and_pad(resized, 256, pixel_mean=mean, pixel_std=std)
    np.testing.assert_array_equal(image[0].transpose(1, 2, 0), expected)
    point = np.array([[21.0, 32.5]])
    np.testing.assert_allclose(point * scale, resize.apply_coords(point, shape[:2]), rtol=1e-12)
    assert inside == resized.shape[:2]


def scaling_row(run, curve, value, how="", contender="samjax", seconds=1.0):
    facts = {"run": run, "curve": curve, "value": value, "how": how}
    return harness.Measurement(contender, [seconds], 0.0, 512.0, "", facts)


def test_the_plot_has_each_curves_last_run(tmp_path):
    for row in (
        scaling_row("2026-01", "pictures", 1, "together", seconds=9.0),
        scaling_row("2026-02", "pictures", 1, "together", seconds=2.0),
        scaling_row("2026-02", "pictures", 4, "together", seconds=7.0),
        scaling_row("2026-02", "pictures", 4, "one by one", seconds=8.0),
        scaling_row("2026-01", "prompts", 1),
        scaling_row("2026-01", "prompts", 1, contender="meta"),
        scaling_row("2026-01", "prompts", 64),
    ):
        path = harness.record("scaling", "tiny", [row], folder=tmp_path)
    found = scaling_plot.lines(path, "pictures")
    seconds = {key: {v: row["median_s"] for v, row in line.items()} for key, line in found.items()}
    assert seconds == {
        ("samjax", "together"): {1: "2", 4: "7"},
        ("samjax", "one by one"): {1: "2", 4: "8"},
    }
    measured = {curve: scaling_plot.lines(path, curve) for curve in ("pictures", "prompts")}
    assert "Meta's code was measured up to 1 prompts" in scaling_plot._caption(measured)
    scaling_plot.draw(path, tmp_path / "plot.png")
    width, height = Image.open(tmp_path / "plot.png").size
    assert width > height > 500
    with pytest.raises(FileNotFoundError, match="run python -m benchmarks.scaling first"):
        scaling_plot.draw(tmp_path / "nothing.csv", tmp_path / "plot.png")


def run(question, tmp_path, *options):
    """As a user starts it, but for where the rows go; returns them."""
    code = (
        f"import sys; from pathlib import Path; from benchmarks import {question}, harness\n"
        f"harness.record.__kwdefaults__['folder'] = Path({str(tmp_path)!r})\n"
        f"{question}.main()"
    )
    options = [*options, "--repeats", "1", "--warmup", "0"]
    subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, check=True, timeout=900)
    with (tmp_path / f"{question}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("question", ["image_encoder", "everything", "one_click", "start_up"])
def test_the_questions_run_on_a_tiny_model(question, tmp_path):
    Image.fromarray(contenders.draw_picture(60, 80)).save(tmp_path / "picture.png")
    options = ["--model", "tiny"]
    if question == "everything":
        options = [str(tmp_path / "picture.png"), "--points-per-side", "4", *options]
    rows = {row["contender"]: row for row in run(question, tmp_path, *options)}
    assert list(rows) == ["samjax", "meta"]
    if question == "image_encoder":
        assert float(rows["samjax"]["difference"]) < 1e-4
    elif question == "one_click":
        # Of 20 clicks' three masks of 1200x1800 pixels.
        assert int(rows["samjax"]["differing_pixels"]) < 20 * 3 * 1200 * 1800 * 1e-4
    elif question == "start_up":
        assert all(float(row["min_s"]) > 0.5 for row in rows.values())
    else:
        masks, theirs = int(rows["samjax"]["masks"]), int(rows["meta"]["masks"])
        assert masks == theirs == int(rows["samjax"]["matched"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("question", ["image_encoder", "one_click"])
@pytest.mark.parametrize("peer", environments.REQUIREMENTS)
def test_peers_agree_with_meta_on_a_tiny_model(question, peer, tmp_path):
    if environments.existing(peer) is None:
        pytest.skip(f"{peer}'s environment has not been made: a benchmark makes it")
    if peer == "keras_hub" and question == "one_click":
        pytest.skip("keras-hub encodes the picture again with every click")
    pytest.importorskip("onnx")
    options = ["--model", "tiny", "--contenders", "meta", peer]
    meta, row = run(question, tmp_path, *options)
    package = peer.replace("_", "-")
    assert row["contender"] == peer and row[package] and not meta[package]
    if question == "image_encoder":
        assert float(row["difference"]) < 1e-5
    else:
        assert int(row["differing_pixels"]) < 20 * 3 * 1200 * 1800 * 1e-4


@pytest.mark.slow
def test_nano_finds_metas_records(tmp_path):
    picture = str(ROOT / "docs/dogs.jpg")
    ours, meta = run("everything", tmp_path, picture, "--model", "nano", "--points-per-side", "8")
    assert ours["size"].startswith("nano trained") and "iou 0.35 stability 0.5" in ours["size"]
    assert int(ours["masks"]) == int(meta["masks"]) == int(ours["matched"]) >= 3


@pytest.mark.slow
def test_the_curves_run_on_a_tiny_model(tmp_path):
    rows = run(
        "scaling", tmp_path, "--model", "tiny", "--prompts", "1", "66", "--pictures", "1", "2",
        "--sides", "512", "--most-prompts", "2",
        "--picture", str(tmp_path / "plot.png"),
    )  # fmt: skip
    points = [(row["curve"], row["value"], row["how"], row["contender"]) for row in rows]
    assert points == [
        ("prompts", "1", "", "samjax"), ("prompts", "1", "", "meta"),
        ("prompts", "66", "", "samjax"),
        ("pictures", "1", "together", "samjax"), ("pictures", "1", "together", "meta"),
        ("pictures", "2", "together", "samjax"), ("pictures", "2", "together", "meta"),
        ("pictures", "2", "one by one", "samjax"), ("pictures", "2", "one by one", "meta"),
        ("sides", "512", "", "samjax"), ("sides", "512", "", "meta"),
    ]  # fmt: skip
    for row in rows:
        if row["contender"] == "samjax" and row["curve"] != "sides" and row["value"] != "66":
            assert float(row["difference"]) < 1e-5
    ours, meta = rows[-2:]
    assert ours["masks"] == meta["masks"] == ours["matched"] and int(meta["masks"]) > 0
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_each_precision_is_another_model():
    config = SamConfig.tiny(64)
    model = Model(inference.init_params(config), config)
    variants = precision.at_each(model)
    assert {name: variant.config for name, variant in variants.items()} == {
        name: config.at_precision(name) for name in precision.PRECISIONS
    }
    whole, half, eight = (variants[name].num_bytes for name in precision.PRECISIONS)
    assert whole > 1.9 * half == 1.9 * eight
    tiny_vit = SamConfig.vit_t(image_size=64)
    assert list(precision.at_each(Model({}, tiny_vit))) == ["float32", "bfloat16"]


def test_each_precision_multiplies_the_same(monkeypatch):
    monkeypatch.setattr(precision, "PRODUCT", (50, 64, 30))
    exact, half, eight = (
        np.asarray(precision.product(name)(), np.float64) for name in precision.PRECISIONS
    )
    assert 0 < np.abs(half - exact).max() < np.abs(eight - exact).max() < 1
