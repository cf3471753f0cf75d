"""Settings of a run: the TOML file, single settings, and what is said about wrong ones."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from samjax.train.config import TrainConfig
from samjax.train.run_config import DataConfig, RunConfig, read_toml, with_setting
from small_runs import write_pictures

RUN = RunConfig(data=(DataConfig(path="a.json"),), output="out")


def test_a_file(tmp_path):
    (tmp_path / "settings").mkdir()
    path = tmp_path / "settings" / "run.toml"
    path.write_text(
        """
        model = "nano"
        output = "../out"
        augment = true

        [[data]]
        path = "cells.json"
        weight = 2

        [[validation]]
        path = "/elsewhere/cells.json"
        images = "pictures"

        [augmentation]
        scale = [0.5, 2]

        [train]
        trained = ["mask_decoder", "image_encoder.neck"]
        learning_rate = 1e-4
        decay_at = [0.5]
        learning_rate_multipliers = [["mask_decoder", 0.5]]
        """
    )
    run = RunConfig.from_dict(read_toml(path))
    assert run.output == str(tmp_path / "out")
    assert run.data == (DataConfig(path=str(tmp_path / "settings" / "cells.json"), weight=2.0),)
    assert run.validation[0].path == "/elsewhere/cells.json"
    assert run.validation[0].images == str(tmp_path / "settings" / "pictures")
    assert run.augmentation.scale == (0.5, 2.0)
    assert run.train == TrainConfig(
        trained=("mask_decoder", "image_encoder.neck"), learning_rate=1e-4, decay_at=(0.5,),
        learning_rate_multipliers=(("mask_decoder", 0.5),),
    )  # fmt: skip
    assert run.batch_size == 4


def test_as_json_and_back():
    assert RunConfig.from_dict(json.loads(json.dumps(RUN.to_dict()))) == RUN


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("batch_size=3", "batch_size", 3),
        ("train.learning_rate = 1e-4", "train.learning_rate", 1e-4),
        ("train.trained=lora", "train.trained", "lora"),
        ("augment=false", "augment", False),
        ("augmentation.scale=[1, 2]", "augmentation.scale", (1.0, 2.0)),
        ("output=a=b", "output", "a=b"),
    ],
)
def test_single_settings(text, name, value):
    found = RunConfig.from_dict(with_setting(RUN.to_dict(), text))
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value


def test_a_setting_leaves_the_values_it_came_from_alone():
    before = RUN.to_dict()
    with_setting(before, "train.learning_rate=1.0")
    assert before == RUN.to_dict()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"batchsize": 3}, "no setting batchsize; did you mean 'batch_size'"),
        ({"train": {"learning_rat": 1.0}}, "train.learning_rat; did you mean 'learning_rate'"),
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate is 'fast'; .* float"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it has to be int"),
        ({"batch_size": True}, "batch_size is True; it has to be int"),
        ({"augmentation": {"scale": [1]}}, r"augmentation.scale is \[1\]"),
        ({"augmentation": {"scale": [0, 1]}}, "scale has to be 0 < least"),
        ({"train": {"decay": "slow"}}, "train.decay is 'slow'"),
        ({"train": 3}, "train. has to be a table"),
        ({"data": []}, "data has to be at least one"),
        ({"data": [{"weight": 1}]}, "path is missing"),
        ({"data": [{"path": "a", "weight": -1}]}, "weight has to be above 0, not -1"),
        ({"batch_size": 0}, "batch_size has to be at least 1, not 0"),
        ({"crop_size": -8}, "crop_size has to be at least 0, not -8"),
        ({"evaluate_every": -1}, "evaluate_every has to be at least 0"),
        ({"embedding_cache": "kept"}, "augment has to be false"),
    ],
)
def test_settings_without_a_meaning(change, words):
    with pytest.raises(ValueError, match=words):
        RunConfig.from_dict(RUN.to_dict() | change)


@pytest.mark.parametrize("text", ["batch_size", "=3", "train.=3"])
def test_what_is_no_setting(text):
    with pytest.raises(ValueError, match="NAME=VALUE"):
        with_setting({}, text)


def test_a_file_that_is_no_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("batch_size: 3")
    with pytest.raises(ValueError, match="run.toml is not a TOML file"):
        read_toml(path)


def test_differences_that_matter():
    other = dataclasses.replace(
        RUN, output="elsewhere", keep=7, seed=3, train=TrainConfig(learning_rate=1.0),
        data=(*RUN.data, DataConfig(path="b.json")),
    )  # fmt: skip
    lines = RUN.differences(other)
    assert [line.split(":")[0] for line in lines] == [
        "data.1.images", "data.1.path", "data.1.weight", "seed", "train.learning_rate",
    ]  # fmt: skip
    assert not RUN.differences(dataclasses.replace(RUN, output="elsewhere", keep=7))


def test_data_of_every_kind(tmp_path):
    annotations = write_pictures(tmp_path / "coco", number=3)
    assert len(DataConfig(path=str(annotations)).open()) == 3
    moved = (tmp_path / "coco" / "images").rename(tmp_path / "pictures")
    assert len(DataConfig(path=str(annotations), images=str(moved)).open()) == 3
    with pytest.raises(ValueError, match="goes with a COCO file; .*coco is a folder"):
        DataConfig(path=str(tmp_path / "coco"), images=str(moved)).open()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DataConfig(path=str(tmp_path / "nowhere")).open()


def test_a_mask_folder_and_sa1b(tmp_path):
    (tmp_path / "cells/images").mkdir(parents=True)
    (tmp_path / "cells/masks").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "cells/images/a.png")
    Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / "cells/masks/a.png")
    assert len(DataConfig(path=str(tmp_path / "cells")).open().read(0).masks) == 1
    (tmp_path / "sa").mkdir()
    with pytest.raises(ValueError, match="sa"):
        DataConfig(path=str(tmp_path / "sa")).open()
