"""One run in several processes: what they share, and that they stop together."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest

import quick
import samjax
from samjax.models.params import flatten
from samjax.train.journal import read_journal
from several_processes import finished, processes, together
from small_runs import write_model, write_pictures

STEPS = 40
OF_A_PROCESS = ("seconds", "left_out")
"""Columns of the log that tell of process 0 since it began."""
SETTINGS = f"""
model = "model"
batch_size = 2
num_objects = 2
log_every = 1
checkpoint_every = 5
evaluate_every = 0
sample_pictures = 0

[[data]]
path = "data/instances.json"

[train]
trained = "decoder"
num_points = 0
refine_within = 0
refine_at_end = 0
learning_rate = 1e-3
warmup_steps = 2
total_steps = {STEPS}
ema_decay = 0.9
layer_decay = 1.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_pictures(folder / "data")
    write_model(folder / "model")
    (folder / "run.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def train(folder):
    """Starts `samjax train` in processes that keep their programs together."""
    with processes() as start:

        def begin(output, *words, devices=1):
            words = ["train", folder / "run.toml", "--output", folder / output, *words]
            return start(
                words, devices, SAMJAX_CACHE=str(folder / "programs"), XLA_FLAGS=quick.FLAGS
            )

        yield begin


@pytest.fixture(scope="module")
def whole(folder, train):
    """What one process with two devices makes of it, without a stop."""
    finished(train("whole", devices=2))
    return folder / "whole"


def same(one, other):
    a, b = (flatten(samjax.load(output / "model").params) for output in (one, other))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    rows, others = (
        [{**row, **dict.fromkeys(OF_A_PROCESS, 0)} for row in read_journal(output / "log.csv")]
        for output in (one, other)
    )
    assert rows == others


@pytest.mark.parametrize("stopped", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_two_processes_train_and_stop_as_one(folder, whole, train, stopped):
    """SIGTERM comes to one of them alone; two or one go on, to the bits of one."""
    name = f"pair{stopped}"
    pair = [train(name, *words) for words in together(2)]
    log = folder / name / "log.csv"
    while len(read_journal(log)) < 7:
        assert all(process.poll() is None for process in pair), pair[0].communicate()
        time.sleep(0.01)
    pair[stopped].send_signal(signal.SIGTERM)
    first, second = (finished(process, 130) for process in pair)
    done = len(read_journal(log))
    assert 7 <= done < STEPS
    assert f"stopped after step {done}" in first and "stopped after" not in second
    assert str(done) in os.listdir(folder / name / "checkpoints")
    assert samjax.load(folder / name / "model").params
    if stopped:
        finished(train(name, devices=2))
    else:
        for process in [train(name, *words) for words in together(2)]:
            finished(process)
    same(whole, folder / name)


@pytest.mark.slow
def test_a_killed_process_ends_the_other(folder, train):
    """Without it no step can be finished."""
    pair = [train("killed", *words) for words in together(2)]
    while len(read_journal(folder / "killed" / "log.csv")) < 3:
        assert all(process.poll() is None for process in pair), pair[0].communicate()
        time.sleep(0.01)
    pair[1].kill()
    try:
        pair[0].communicate(timeout=240)
    except subprocess.TimeoutExpired:
        pytest.fail("the other process waits for ever")
    assert pair[0].returncode not in (0, None)


@pytest.mark.parametrize("words", [
    ["--coordinator", "127.0.0.1:1", "--num-processes", 2],
    ["--num-processes", 2, "--process-id", 1],
])  # fmt: skip
def test_processes_that_are_not_there(folder, train, words):
    output = finished(train("alone", *words), 2)
    assert "the other processes cannot be found" in output
    assert not (folder / "alone").exists()
