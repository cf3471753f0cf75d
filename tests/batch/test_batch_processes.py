"""Several devices, several processes, and processes that are killed."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from samjax import batch
from samjax.batch.hosts import Counts, Host, Signs, begin_session
from samjax.batch.items import list_items
from samjax.batch.reading import read_all
from several_processes import finished, processes, together
from small_batch import EASY, contents, make_pictures

pytestmark = pytest.mark.optimized

FLAGS = [word for name, value in EASY.items() for word in (f"--{name.replace('_', '-')}", value)]


WAIT = ["--host-timeout", 8]


@pytest.fixture
def command(model_folder, tmp_path):
    """A process that has begun; `devices` are simulated."""
    with processes() as start:

        def batch(output, *more, devices=1):
            return start(
                ["batch", tmp_path / "in", tmp_path / output, "--model", model_folder,
                 "--shard-size", 4, *FLAGS, *more], devices,
            )  # fmt: skip

        yield batch


@pytest.fixture
def alone(small_model, tmp_path):
    """What one device makes of forty pictures, without a stop."""
    make_pictures(tmp_path / "in", 40)
    batch.run(
        tmp_path / "in", tmp_path / "alone", model=small_model, shard_size=4, progress=False, **EASY
    )
    return contents(tmp_path / "alone")


@pytest.mark.parametrize("devices", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_several_devices_give_the_same_bytes(command, alone, tmp_path, devices):
    """A program is compiled for each device, which takes most of the time."""
    finished(command("several", devices=devices))
    assert contents(tmp_path / "several") == alone


def test_two_processes_with_two_devices_give_the_same_bytes(command, alone, tmp_path):
    pair = [command("pair", *words, *WAIT, devices=2) for words in together(2)]
    for process in pair:
        finished(process)
    assert contents(tmp_path / "pair") == alone
    counts = [
        json.loads((tmp_path / f"pair/log/session-1/process-{i}.json").read_text())["counts"]
        for i in (0, 1)
    ]
    assert [one["pictures"] for one in counts] == [20, 20]


def test_killed_again_and_again_it_ends_with_the_same_bytes(command, alone, tmp_path):
    rng = np.random.default_rng(0)
    shards = tmp_path / "out/shards"
    for number in range(3):
        process = command("out", "--workers", number % 2)
        wanted = 1 + 3 * number
        while process.poll() is None and len(list(shards.glob("0*"))) < wanted:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, process.communicate()
        readers = _children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{reader}").exists() for reader in readers):
            assert time.monotonic() < deadline, "a process that reads pictures has stayed"
            time.sleep(0.1)
    assert 0 < len(list(shards.glob("0*"))) < 10
    finished(command("out"))
    assert contents(tmp_path / "out") == alone


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_of_two_processes_is_killed(command, alone, tmp_path, lost):
    """The first one too, by which they had met."""
    pair = [command("out", *words, *WAIT) for words in together(2)]
    victim, other = pair[lost], pair[1 - lost]
    while victim.poll() is None and not (tmp_path / f"out/shards/0000{lost}").exists():
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    output = finished(other)
    assert "of processes that have ended" in output
    assert contents(tmp_path / "out") == alone


def test_a_reading_process_that_dies_is_replaced(tmp_path, caplog):
    make_pictures(tmp_path / "in", 30)
    items = list_items(tmp_path / "in").items
    found, killed = [], False
    for read in read_all(items, workers=1, ahead=1):
        found.append(read.item.key)
        if not killed:
            for child in _children(os.getpid()):
                if "resource_tracker" not in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(child, signal.SIGKILL)
                    killed = True
    assert killed and found == [item.key for item in items]
    assert "has died" in caplog.text


def _children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_who_is_gone(tmp_path, monkeypatch):
    (tmp_path / "log").mkdir()
    begin_session(tmp_path)
    with Signs(tmp_path, Host(0, 3), timeout=0.2) as mine:
        with Signs(tmp_path, Host(1, 3), timeout=0.2) as other:
            other.update(pictures=5)
            other._write()
            assert not mine.gone(1) and not mine.gone(0) and mine.all()[1].pictures == 5
            time.sleep(0.3)
            assert mine.gone(2)
        assert mine.gone(1) and mine.all()[1].state == "done"
    begin_session(tmp_path)
    assert Signs(tmp_path, Host(0, 3), timeout=1).all() == {}
    assert Counts().state == "working"
