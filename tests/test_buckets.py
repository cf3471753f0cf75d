"""Paths in a bucket, whose place is taken by fsspec's file system in memory."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from memory_bucket import use_bucket
from samjax.checkpoint import Model, load, read_thresholds, save_checkpoint
from samjax.cli import main
from samjax.convert import convert, save_huggingface
from samjax.models import EverythingThresholds, SamConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten, unflatten


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(0)
    config = SamConfig.tiny(64)
    leaves = flatten(abstract_params(config))
    arrays = {n: jnp.asarray(rng.standard_normal(x.shape, np.float32)) for n, x in leaves.items()}
    return Model(unflatten(arrays), config, EverythingThresholds(pred_iou_thresh=0.4))


@pytest.fixture
def bucket(monkeypatch):
    return use_bucket(monkeypatch)


def assert_same(found: Model, expected: Model) -> None:
    assert found.config == expected.config and found.everything == expected.everything
    for name, array in flatten(expected.params).items():
        np.testing.assert_array_equal(flatten(found.params)[name], array, err_msg=name)


@pytest.mark.parametrize("as_path", [str, epath.Path])
def test_what_is_saved_in_a_bucket_comes_back(bucket, model, as_path):
    path = as_path("gs://bucket/folder/model")
    save_checkpoint(path, model)
    assert_same(load(path), model)
    assert load(path, dtype="bfloat16").params["mask_decoder"]["iou_token"].dtype == "bfloat16"
    assert read_thresholds(path) == model.everything
    assert list(bucket.store)[-1].endswith("folder/model/samjax.json")
    assert len(bucket.store) > 5


def test_nothing_in_a_bucket_is_replaced(bucket, model):
    save_checkpoint("gs://bucket/model", model)
    before = dict(bucket.store)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="gs://bucket/model exists.*is not replaced"):
            save_checkpoint("gs://bucket/model", model, overwrite=overwrite)
    assert bucket.store == before


def test_a_copy_that_breaks_off_is_no_checkpoint(bucket, model):
    save_checkpoint("gs://bucket/model", model)
    last = next(name for name in bucket.store if name.endswith("samjax.json"))
    del bucket.store[last]
    with pytest.raises(ValueError, match=r"gs://bucket/model has no samjax\.json"):
        load("gs://bucket/model")
    assert read_thresholds("gs://bucket/model") == EverythingThresholds()


def test_damage_is_told_with_the_path_in_the_bucket(bucket, model):
    save_checkpoint("gs://bucket/model", model)
    del bucket.store[next(name for name in bucket.store if name.endswith("params/_METADATA"))]
    with pytest.raises(ValueError, match="gs://bucket/model is damaged") as error:
        load("gs://bucket/model")
    assert "params/_METADATA: missing" in str(error.value) and "/tmp" not in str(error.value)


def test_no_such_path(bucket):
    with pytest.raises(FileNotFoundError, match="There is no gs://bucket/nothing"):
        load("gs://bucket/nothing")


def test_other_formats_are_read_from_a_bucket(bucket, model, tmp_path):
    save_huggingface(tmp_path / "sam", model)
    for file in (tmp_path / "sam").iterdir():
        bucket().pipe_file(f"gs://bucket/sam/{file.name}", file.read_bytes())
    plain = dataclasses.replace(model, everything=EverythingThresholds())
    assert_same(load("gs://bucket/sam/model.safetensors"), plain)
    assert_same(load("gs://bucket/sam"), plain)


def test_converting_to_a_bucket_and_from_it(bucket, model, tmp_path, capsys):
    save_checkpoint(tmp_path / "model", model)
    assert main(["convert", str(tmp_path / "model"), "gs://bucket/converted"]) == 0
    assert "to gs://bucket/converted (orbax)" in capsys.readouterr().out
    assert main(["convert", "gs://bucket/converted", str(tmp_path / "back")]) == 0
    assert_same(load(tmp_path / "back"), model)
    assert main(["info", "gs://bucket/converted", "--no-memory"]) == 0
    with pytest.raises(ValueError, match="in a bucket, where only Orbax folders are written"):
        convert(tmp_path / "model", "gs://bucket/model.pth")


@pytest.mark.parametrize("scheme, library", [("gs", "gcsfs"), ("s3", "s3fs"), ("az", "adlfs")])
def test_a_library_that_is_missing(model, scheme, library, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    for use in (load, lambda path: save_checkpoint(path, model)):
        with pytest.raises(ImportError, match=f"needs {library}: pip install {library}"):
            use(f"{scheme}://bucket/model")
