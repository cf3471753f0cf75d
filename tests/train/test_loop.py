"""Whole runs: what they leave, and that they survive being killed, stopped, and full disks."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

import samjax
from samjax import SamConfig
from samjax.models.params import flatten
from samjax.train import loop
from samjax.train.checkpoints import CheckpointError
from samjax.train.journal import read_journal
from samjax.train.run_config import DataConfig
from samjax.train.step import train_step
from small_runs import TRAIN, small_run, write_model, write_pictures

DECODER = TRAIN.replace(trained="decoder")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Programs on disk, so that the process to be killed need not compile them once more."""
    folder = tmp_path_factory.mktemp("compiled")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compiled):
    folder = tmp_path_factory.mktemp("run")
    write_pictures(folder / "data")
    write_pictures(folder / "validation", number=2, seed=1)
    write_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """A run that nothing has interrupted."""
    run = small_run(folder, folder / "whole")
    loop.run_training(run, progress=False)
    return run


def params_of(run):
    return flatten(samjax.load(f"{run.output}/model").params)


def same_run(one, other):
    """Parameters, checkpoints' arrays and logs without the time, all bit for bit."""
    a, b = params_of(one), params_of(other)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for one_row, other_row in zip(log(one), log(other), strict=True):
        assert one_row.keys() == other_row.keys()
        assert {**one_row, "seconds": 0} == {**other_row, "seconds": 0}


def log(run):
    return read_journal(loop.Path(run.output, loop.LOG))


def test_what_a_run_leaves(folder, whole):
    rows = log(whole)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert sorted(os.listdir(f"{whole.output}/checkpoints")) == ["12", "9"]
    before, after = flatten(samjax.load(folder / "model").params), params_of(whole)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert "mask_decoder.iou_token" in changed
    assert "prompt_encoder.pe_layer.gaussian_matrix" not in changed
    assert Image.open(f"{whole.output}/curves.png").size[0] > 600


def test_evaluations_and_samples(folder, tmp_path):
    validation = (DataConfig(path=str(folder / "validation" / "instances.json")),)
    run = small_run(
        folder, tmp_path / "out", validation=validation, evaluate_every=6, sample_pictures=2
    )
    loop.run_training(run, progress=False)
    rows = read_journal(tmp_path / "out" / loop.EVALUATIONS)
    assert [row["step"] for row in rows] == [6, 12]
    for row in rows:
        assert all(0 <= row[protocol] <= 1 for protocol in loop.PROTOCOLS)
        assert row["1 click, oracle"] >= row["1 click"]
    for step in (6, 12):
        sheet = Image.open(tmp_path / "out" / "samples" / f"step_{step:07}.png")
        # Two rows of three square panels.
        assert sheet.size == (3 * 480 + 2 * 8, 2 * (480 + 8))
    assert np.ptp(np.asarray(sheet)) > 100


def test_killed_in_the_middle_it_continues_to_the_same_bits(folder, whole, tmp_path, compiled):
    run = small_run(folder, tmp_path / "out")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(run.to_dict()))
    program = (
        "import json, sys; from samjax.train.run_config import RunConfig;"
        "from samjax.train import loop; import time;"
        "old = loop._Run._write_log;"
        "loop._Run._write_log = lambda *a: (time.sleep(0.3), old(*a))[1];"
        "loop.run_training(RunConfig.from_dict(json.load(open(sys.argv[1]))), progress=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(settings)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compiled)},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 600
        while len(log(run)) < 7:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 7 <= len(log(run)) < 12
    assert not (tmp_path / "out" / "model").exists()
    loop.run_training(run, progress=False)
    same_run(whole, run)


def test_a_finished_run_has_nothing_to_do(whole, capsys):
    before = params_of(whole)
    loop.run_training(whole, progress=False)
    assert "continuing at step 12 of 12" in capsys.readouterr().err
    after = params_of(whole)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_continues_to_the_same_bits(
    folder, whole, tmp_path, monkeypatch, capsys, number
):
    run = small_run(folder, tmp_path / "out", log_every=4)
    taken = []

    def interrupted(config, train):
        step = train_step(config, train)

        def count(state, batch):
            taken.append(1)
            if len(taken) == 5:
                os.kill(os.getpid(), number)
            return step(state, batch)

        return count

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.run_training(run, progress=False)
    assert len(taken) == 5
    said = capsys.readouterr().err
    assert "stopped after step 5" in said and str(tmp_path / "out" / "model") in said
    so_far = params_of(run)
    assert so_far.keys() == params_of(whole).keys()
    assert sorted(os.listdir(tmp_path / "out" / "checkpoints")) == ["3", "5"]
    loop.run_training(dataclasses.replace(run, log_every=1), progress=False)
    a, b = params_of(whole), params_of(run)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_full_disk(folder, whole, tmp_path, monkeypatch):
    """Files cannot grow beyond a few kilobytes while steps 6 and 9 are saved; step 3 survives, and
    step 12 is written when there is room again."""
    run = small_run(folder, tmp_path / "out")
    real = loop.Checkpoints.save
    listed = {}

    def limited(self, state, loader):
        step = int(state.step)
        room = resource.getrlimit(resource.RLIMIT_FSIZE)
        if step in (6, 9):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, room[1]))
        try:
            real(self, state, loader)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, room)
            listed[step] = sorted(os.listdir(self.folder))

    monkeypatch.setattr(loop.Checkpoints, "save", limited)
    with pytest.warns(UserWarning, match="step 6 could not be written.*The last is step 3's") as w:
        loop.run_training(run, progress=False)
    assert sum("could not be written" in str(one.message) for one in w) == 2
    assert listed == {3: ["3"], 6: ["3"], 9: ["3"], 12: ["12", "3"]}
    same_run(whole, run)


def test_a_disk_that_stays_full(folder, tmp_path, monkeypatch):
    run = small_run(folder, tmp_path / "out", checkpoint_every=12)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(CheckpointError, match="No space left on device.*none before"):
        loop.run_training(run, progress=False)


def test_a_damaged_checkpoint_is_passed_over(folder, whole, tmp_path):
    shutil.copytree(whole.output, tmp_path / "out")
    run = small_run(folder, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "model")
    for path in (tmp_path / "out" / "checkpoints" / "12" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="step 12 .* is damaged"):
        loop.run_training(run, progress=False)
    same_run(whole, run)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"batch_size": 1}, r"batch_size: 1 here, 2 there"),
        ({"train": TRAIN.replace(learning_rate=2e-3)}, r"train.learning_rate: 0.002 here, 0.001"),
        ({"seed": 5}, "seed: 5 here, 0 there"),
    ],
)
def test_a_run_with_other_settings_is_not_continued(folder, whole, change, words):
    with pytest.raises(ValueError, match=f"(?s)other settings.*{words}"):
        loop.run_training(dataclasses.replace(whole, **change), progress=False)


def test_a_run_of_another_architecture_is_not_continued(folder, whole, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "kept")
    shutil.rmtree(folder / "model")
    write_model(folder / "model", SamConfig.tiny(128))
    try:
        with pytest.raises(ValueError, match="(?s)other settings.*architecture: image_encoder"):
            loop.run_training(whole, progress=False)
    finally:
        shutil.rmtree(folder / "model")
        shutil.copytree(tmp_path / "kept", folder / "model")


def test_a_run_from_before_a_config_had_all_its_fields(folder, whole, tmp_path):
    """What it does not say is the default."""
    shutil.copytree(whole.output, tmp_path / "out")
    paths = sorted((tmp_path / "out/checkpoints").glob("*/run/metadata"))
    for path in paths:
        found = json.loads(path.read_text())
        del found["config"]["image_encoder"]["products"]
        path.write_text(json.dumps(found))
    assert paths
    loop.run_training(dataclasses.replace(whole, output=str(tmp_path / "out")), progress=False)


def test_frozen_arrays_that_have_changed(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    write_model(tmp_path / "model")
    run = small_run(tmp_path, tmp_path / "out", train=DECODER)
    loop.run_training(run, progress=False)
    shutil.rmtree(tmp_path / "model")
    write_model(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match="frozen arrays of .* are others"):
        loop.run_training(run, progress=False)


def test_a_loss_that_is_not_a_number(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    model = samjax.load(folder / "model")
    model.params["mask_decoder"]["iou_token"] *= np.nan
    samjax.save_checkpoint(tmp_path / "model", model)
    run = small_run(tmp_path, tmp_path / "out", log_every=2)
    with pytest.raises(loop.DivergedError, match="loss became nan .*no checkpoint .*0.001 now"):
        loop.run_training(run, progress=False)


def test_kept_embeddings_train_as_pictures_do(folder, tmp_path):
    plain = small_run(folder, tmp_path / "plain", train=DECODER, augment=False)
    cached = dataclasses.replace(
        plain, output=str(tmp_path / "cached"), embedding_cache=str(tmp_path / "kept")
    )
    loop.run_training(plain, progress=False)
    loop.run_training(cached, progress=False)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 5
    for one, other in zip(log(plain), log(cached), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    a, b = params_of(plain), params_of(cached)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=2e-5, err_msg=name)


def test_kept_embeddings_are_computed_once(folder, tmp_path, monkeypatch):
    run = small_run(
        folder, tmp_path / "one", train=DECODER, augment=False,
        embedding_cache=str(tmp_path / "kept"),
    )  # fmt: skip
    loop.run_training(run, progress=False)

    def encode(*args, **kwargs):
        raise AssertionError("encoded again")

    monkeypatch.setattr("samjax.train.embeddings.inference.encode_images", encode)
    loop.run_training(dataclasses.replace(run, output=str(tmp_path / "two")), progress=False)


def test_embeddings_of_an_encoder_in_training(folder, tmp_path):
    run = small_run(folder, tmp_path, augment=False, embedding_cache=str(tmp_path / "kept"))
    with pytest.raises(ValueError, match="where the whole image encoder is frozen.*'all'"):
        loop.run_training(run, progress=False)


def test_another_input_size(folder, tmp_path):
    run = small_run(folder, tmp_path, image_size=128)
    with pytest.raises(ValueError, match="(?s)the input is 128, the model's 64.*pos_embed"):
        loop.run_training(run, progress=False)


@pytest.mark.slow
def test_windows_of_the_input(folder, tmp_path, monkeypatch):
    """They are of their own size, and have their positions in the whole input."""
    config = SamConfig.nano(128, decoder_mlp_width=32)
    model = write_model(tmp_path / "nano", config)
    seen = []
    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *a: seen.append(a[0]) or step(*a))
    train = TRAIN.replace(total_steps=1, trained="decoder", num_points=0)
    run = small_run(folder, tmp_path / "out", model=str(model), crop_size=64, train=train)
    trained = samjax.load(loop.run_training(run, progress=False))
    assert (seen[0].image_size, seen[0].frame_size) == (64, 128)
    assert trained.config == config
    with pytest.raises(ValueError, match="crop_size is 256; .* at most the input's 128 pixels"):
        loop.run_training(run.replace(crop_size=256, output=str(tmp_path / "other")))


def test_seven_pictures_on_several_devices(folder, tmp_path, monkeypatch):
    devices = jax.devices() * 4
    monkeypatch.setattr(loop.jax, "devices", lambda: devices)
    with pytest.raises(ValueError, match="batch_size is 7; 4 devices"):
        loop.run_training(small_run(folder, tmp_path, batch_size=7), progress=False)
