"""`samjax train`: from a command line to a model that other commands take."""

import sys

import pytest

from samjax.cli import main
from samjax.train.run_config import DataConfig
from small_runs import write_model, write_pictures

SMALL = [
    "--set", "train.num_points=0", "--set", "train.refine_within=0",
    "--set", "train.refine_at_end=0", "--set", "num_objects=2", "--set", "sample_pictures=0",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "data", number=3)
    write_model(tmp_path / "start")
    return tmp_path


def given(monkeypatch, *arguments):
    """The settings that a command line makes."""
    runs = []
    monkeypatch.setattr("samjax.train.loop.run_training", lambda run: runs.append(run) or "model")
    assert main(["train", *arguments]) == 0
    return runs[0]


def test_trains_and_continues(folder, capsys):
    out = folder / "out"
    command = [
        "train", "--model", str(folder / "start"), "--data", str(folder / "data/instances.json"),
        "--output", str(out), "--steps", "3", "--batch-size", "1", "--trained", "decoder", *SMALL,
    ]  # fmt: skip
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "model")
    assert main(["info", str(out / "model")]) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert "continuing at step 3 of 3" in capsys.readouterr().err
    assert main([*command, "--learning-rate", "0.5"]) == 2
    assert "train.learning_rate: 0.5 here" in capsys.readouterr().err


def test_flags_win_over_the_file(tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text(
        "output = 'out'\nseed = 3\nbatch_size = 8\n[[data]]\npath = 'a.json'\n"
        "[train]\ntotal_steps = 7\nlearning_rate = 0.1\n"
    )
    run = given(
        monkeypatch, str(tmp_path / "run.toml"), "--steps", "9", "--batch-size", "2",
        "--trained", "lora", "--set", "train.lora_rank=8", "--set", "keep=5",
        "--precision", "bfloat16",
    )  # fmt: skip
    assert (run.seed, run.batch_size, run.keep, run.precision) == (3, 2, 5, "bfloat16")
    assert (run.train.total_steps, run.train.learning_rate) == (9, 0.1)
    assert (run.train.trained, run.train.lora_rank) == ("lora", 8)
    assert run.output == str(tmp_path / "out")


def test_several_data(monkeypatch):
    run = given(
        monkeypatch, "--output", "out", "--data", "a.json", "pictures", "--data", "sa",
        "--validation", "b.json",
    )  # fmt: skip
    assert run.data == (DataConfig(path="a.json", images="pictures"), DataConfig(path="sa"))
    assert run.validation == (DataConfig(path="b.json"),)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--output", "out"], "--data is missing"),
        (["--data", "a"], "--output is missing"),
        (["--data", "a", "b", "c", "--output", "out"], "takes a path and a folder"),
        (["--data", "a", "--output", "o", "--set", "train.lr=1"], "no setting train.lr"),
        (["--data", "a", "--output", "o", "--trained", "neck"], "invalid choice: 'neck'"),
        (["nowhere.toml"], "nowhere.toml"),
        (["--data", "nowhere", "--output", "o"], "nowhere"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_without_the_training_libraries(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert main(["train", "--data", "a", "--output", "o"]) == 2
    assert "pip install 'samjax[train]'" in capsys.readouterr().err
