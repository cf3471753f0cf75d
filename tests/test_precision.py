"""What a model computes in: float32, half precision, or the products of a ViT in 8-bit integers."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from random_model import random_params
from samjax import batch, inference
from samjax.checkpoint import Model, load, save_checkpoint
from samjax.cli import main
from samjax.images import write_png
from samjax.models import ImageEncoderViTConfig, SamConfig
from samjax.models.params import flatten
from samjax.train import loop
from small_runs import TRAIN, small_run, write_model, write_pictures

PRECISIONS = ("float32", "bfloat16", "float16", "int8")


@pytest.fixture(scope="module")
def model():
    config = SamConfig.tiny(64)
    return Model(random_params(config, scale=0.1), config)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("precision") / "model"
    save_checkpoint(path, model)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    write_png(path, image)
    return path


def kernel(model):
    return flatten(model.params)["image_encoder.blocks.0.mlp.lin1.kernel"]


def test_each_precision_of_a_config():
    config = SamConfig.tiny(64)
    found = {precision: config.at_precision(precision) for precision in PRECISIONS}
    assert found["float32"] == config
    assert [c.dtype for c in found.values()] == ["float32", "bfloat16", "float16", "bfloat16"]
    assert [c.image_encoder.products for c in found.values()] == ["float"] * 3 + ["int8"]
    assert [c.computes_in for c in found.values()] == [
        "float32", "bfloat16", "float16", "bfloat16, products in int8",
    ]  # fmt: skip
    for changed in found.values():
        assert changed.at_precision("float32") == config
        assert SamConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


def test_what_is_no_precision():
    """What a user sees, whose calls are not type-checked as those of the tests are."""
    encoder = ImageEncoderViTConfig()
    object.__setattr__(encoder, "products", "int4")
    with pytest.raises(ValueError, match="products is 'int4'; use one of"):
        encoder.__post_init__()
    code = "import samjax; samjax.SamConfig.tiny().at_precision('int4')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ValueError: precision is 'int4'; use one of ('float32'," in found.stderr


@pytest.mark.parametrize("config", [SamConfig.nano(), SamConfig.vit_t()], ids=["nano", "vit_t"])
def test_8_bits_are_for_a_vit(config):
    assert config.at_precision("bfloat16").dtype == "bfloat16"
    with pytest.raises(ValueError, match="'int8' is for the products of a ViT.*use 'bfloat16'"):
        config.at_precision("int8")


def test_a_model_at_a_precision(model, saved):
    for precision in PRECISIONS:
        changed = model.at_precision(precision)
        assert changed.config == model.config.at_precision(precision)
        assert kernel(changed).dtype == changed.config.dtype
        loaded = load(saved, precision=precision)
        assert loaded.config == changed.config
        np.testing.assert_array_equal(kernel(loaded), kernel(changed))
    assert load(saved).config == model.config


def test_how_far_from_float32(model):
    """Each rounds: the root mean square of what it changes, as a share of the embeddings'."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)
    models = {precision: model.at_precision(precision) for precision in PRECISIONS}
    encoder = dataclasses.replace(model.config.image_encoder, products="int8")
    alone = model.config.replace(image_encoder=encoder)
    assert alone.computes_in == "float32, products in int8"
    models["products alone"] = dataclasses.replace(model, config=alone)
    found = {
        p: np.asarray(inference.encode_images(m.params, images, config=m.config), np.float64)
        for p, m in models.items()
    }
    size = np.sqrt((found["float32"] ** 2).mean())
    off = {p: np.sqrt(((x - found["float32"]) ** 2).mean()) / size for p, x in found.items()}
    assert 0 < off["float16"] < 0.3 * off["bfloat16"] < 0.002
    assert 1e-4 < off["products alone"] < off["bfloat16"] < 0.006 > off["int8"]
    assert (found["int8"] != found["bfloat16"]).any()


def test_saved_and_read_it_stays_what_it_was(model, tmp_path):
    save_checkpoint(tmp_path / "eight", model.at_precision("int8"))
    assert load(tmp_path / "eight").config == model.config.at_precision("int8")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_gradients_are_close_to_float32s(model, precision):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 4, 32)), jnp.float32)

    def gradient(config):
        def loss(params):
            return (inference.encode_images(params, images, config=config) * weights).sum()

        return flatten(jax.grad(loss)(model.params))["image_encoder.blocks.0.mlp.lin1.kernel"]

    found, expected = (gradient(model.config.at_precision(p)) for p in (precision, "float32"))
    found, expected = (np.asarray(x, np.float64).ravel() for x in (found, expected))
    cosine = found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected))
    assert 0.99 < cosine < 1 - 1e-9


@pytest.mark.parametrize("command", ["predict", "everything", "eval", "batch"])
def test_on_the_command_line(command, saved, picture, tmp_path, monkeypatch, capsys):
    """What a command loads is at the precision asked for."""
    seen = []

    def at_precision(self, precision):
        seen.append(precision)
        return self

    monkeypatch.setattr(Model, "at_precision", at_precision)
    write_pictures(tmp_path / "data", number=1)
    out = tmp_path / "out"
    argv = {
        "predict": [picture, "--point", "30", "20", "--output", out],
        "everything": [picture, "--output", out, "--points-per-side", "2"],
        "eval": ["--data", tmp_path / "data/instances.json"],
        "batch": [picture, out, "--points-per-side", "2"],
    }[command]
    options = ["--model", saved, "--precision", "int8"]
    assert main([str(arg) for arg in [command, *argv, *options]]) == 0
    assert set(seen) == {"int8"}


def test_results_of_another_precision_are_not_gone_on_with(saved, picture, tmp_path, capsys):
    argv = ["everything", picture, "--output", tmp_path / "out", "--model", saved]
    argv = [str(arg) for arg in [*argv, "--points-per-side", "2", "--pred-iou-thresh", "0"]]
    assert main([*argv, "--precision", "bfloat16"]) == 0
    assert main([*argv, "--resume"]) == 2
    assert "precision" in capsys.readouterr().err
    assert main([*argv, "--resume", "--precision", "bfloat16"]) == 0
    batch.run(picture, tmp_path / "batch", model=saved, precision="int8", progress=False)
    with pytest.raises(ValueError, match="model_sha256 was"):
        batch.run(picture, tmp_path / "batch", model=saved, progress=False)


def test_training(tmp_path):
    """Steps are computed in it; parameters stay float32, and the model computes as it did."""
    write_pictures(tmp_path / "data")
    write_model(tmp_path / "model")
    before = load(tmp_path / "model")
    run = small_run(
        tmp_path, tmp_path / "out", train=TRAIN.replace(total_steps=2), precision="int8",
        log_every=1, validation=(), sample_pictures=0,
    )  # fmt: skip
    for precision in PRECISIONS:
        found = loop._training_config(before, run.replace(precision=precision))
        assert found == before.config.at_precision(precision)
    assert loop._training_config(before, run.replace(precision=None)) == before.config
    loop.run_training(run, progress=False)
    trained = load(tmp_path / "out/model")
    assert trained.config == before.config
    assert {str(x.dtype) for x in jax.tree.leaves(trained.params)} == {"float32"}
    assert not np.array_equal(kernel(trained), kernel(before))
    with pytest.raises(ValueError, match="(?s)other settings.*precision: None here"):
        loop.run_training(run.replace(precision=None), progress=False)
