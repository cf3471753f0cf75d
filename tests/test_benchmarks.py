"""The benchmarks' harness, with contenders that do next to nothing."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import contenders, harness
from benchmarks.everything import matched

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
    with pytest.raises(ValueError, match=r"other columns.*difference.*masks"):
        harness.record("question", "tiny", [m], folder=tmp_path)


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


@pytest.mark.slow
@pytest.mark.parametrize("question", ["image_encoder", "everything", "one_click", "start_up"])
def test_the_questions_run_on_a_tiny_model(question, tmp_path, monkeypatch):
    """As a user starts them, but for where the rows go."""
    Image.fromarray(contenders.draw_picture(60, 80)).save(tmp_path / "picture.png")
    options = ["--model", "tiny", "--repeats", "1", "--warmup", "0"]
    if question == "everything":
        options = [str(tmp_path / "picture.png"), "--points-per-side", "4", *options]
    code = (
        f"import sys; from pathlib import Path; from benchmarks import {question}, harness\n"
        f"harness.record.__kwdefaults__['folder'] = Path({str(tmp_path)!r})\n"
        f"{question}.main()"
    )
    run = [sys.executable, "-c", code, *options]
    subprocess.run(run, cwd=harness.ROOT, check=True, timeout=600)
    with (tmp_path / f"{question}.csv").open(newline="") as file:
        rows = {row["contender"]: row for row in csv.DictReader(file)}
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
