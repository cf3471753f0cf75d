"""Checkpoint directories: what is saved comes back, and nothing is lost or half-read."""

import dataclasses
import errno
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from samjax.checkpoint import FORMAT_VERSION, Model, load, read_thresholds, save_checkpoint
from samjax.models import EverythingThresholds, SamConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten, unflatten

CONFIG = SamConfig.tiny(decoder_heads=4, mask_threshold=0.5, dtype="bfloat16")


def random_model(config: SamConfig = CONFIG, seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    leaves = flatten(abstract_params(config))
    arrays = {n: rng.standard_normal(leaf.shape, np.float32) for n, leaf in leaves.items()}
    return Model(unflatten({n: jnp.asarray(x) for n, x in arrays.items()}), config)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model()


@pytest.fixture(scope="module")
def _saved(tmp_path_factory, model) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    save_checkpoint(path, model)
    return path


@pytest.fixture
def saved(tmp_path, _saved) -> Path:
    """A checkpoint that the test may change."""
    return shutil.copytree(_saved, tmp_path / "model")


def assert_same(found: Model, expected: Model) -> None:
    assert found.config == expected.config
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for name, array in flatten(expected.params).items():
        other = flatten(found.params)[name]
        assert other.dtype == array.dtype, name
        np.testing.assert_array_equal(
            np.asarray(other).view(np.uint8), np.asarray(array).view(np.uint8), err_msg=name
        )


def rewrite(path: Path, **changes) -> None:
    file = path / "samjax.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_saved_comes_back(tmp_path, model, dtype):
    model = model.astype(dtype)
    save_checkpoint(tmp_path / "new" / "folders" / "model", model)
    assert_same(load(tmp_path / "new" / "folders" / "model"), model)
    assert [p.name for p in (tmp_path / "new" / "folders").iterdir()] == ["model"]


def test_paths_may_be_strings_and_relative(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("model", model)
    assert_same(load("model"), model)


def test_numpy_arrays_can_be_saved(tmp_path, model):
    save_checkpoint(tmp_path / "model", Model(jax.tree.map(np.asarray, model.params), CONFIG))
    assert_same(load(tmp_path / "model"), model)


def test_nothing_tells_where_it_was_written(_saved):
    files = [file for file in _saved.rglob("*") if file.is_file()]
    assert files and not [file for file in files if bytes(_saved.parent) in file.read_bytes()]


def test_the_architecture_needs_not_be_readable_from_shapes(saved):
    assert load(saved).config.decoder_heads == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_casts_parameters_and_nothing_else(saved, model, dtype):
    found = load(saved, dtype=dtype)
    assert found.config == CONFIG
    for name, array in flatten(model.params).items():
        constant = name == "prompt_encoder.pe_layer.gaussian_matrix"
        expected = array if constant else array.astype(dtype)
        other = flatten(found.params)[name]
        assert other.dtype == expected.dtype, name
        np.testing.assert_array_equal(other, expected, err_msg=name)


def test_an_unknown_dtype(saved):
    with pytest.raises(ValueError, match="'float64'; use 'float32'"):
        getattr(load, "__wrapped__", load)(saved, dtype="float64")


def test_a_model_passes_through_jit_and_grad(model):
    assert_same(jax.jit(lambda m: m)(model), model)

    def loss(m):
        assert m.config == CONFIG
        return jnp.sum(m.params["image_encoder"]["pos_embed"] ** 2)

    gradient = jax.jit(jax.grad(loss))(model)
    expected = 2 * model.params["image_encoder"]["pos_embed"]
    np.testing.assert_array_equal(gradient.params["image_encoder"]["pos_embed"], expected)
    assert not gradient.params["mask_decoder"]["iou_token"].any()


def test_the_sizes_of_a_model(model):
    assert Model.from_params(model.params).config == SamConfig.tiny()
    assert model.num_parameters == sum(x.size for x in flatten(model.params).values())
    assert model.num_bytes == 4 * model.num_parameters
    assert Model(abstract_params(SamConfig.vit_b()), SamConfig.vit_b()).num_parameters == 93735728


def test_loading_a_directory_never_imports_torch(saved):
    program = (
        "import sys; from samjax.checkpoint import load; load(sys.argv[1]); "
        "print('torch' in sys.modules, 'samjax.convert' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(saved)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_thresholds_are_carried(tmp_path, model):
    thresholds = EverythingThresholds(pred_iou_thresh=0.4, crop_nms_thresh=1.0)
    carrying = dataclasses.replace(model, everything=thresholds)
    save_checkpoint(tmp_path / "model", carrying)
    assert_same(load(tmp_path / "model"), carrying)
    assert load(tmp_path / "model", dtype="bfloat16").everything == thresholds
    assert jax.jit(lambda m: m)(carrying).everything == thresholds
    assert read_thresholds(tmp_path / "model") == thresholds


def test_a_checkpoint_without_thresholds_is_as_before(saved, model):
    assert "everything" not in json.loads((saved / "samjax.json").read_text())
    assert load(saved).everything == model.everything == EverythingThresholds()
    assert read_thresholds(saved) == read_thresholds(saved / "nowhere") == EverythingThresholds()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"points_per_side": 8}, "a model carries no points_per_side; this samjax knows pred_iou"),
        ({"pred_iou_thresh": math.nan}, "pred_iou_thresh is nan; it has to be a finite number"),
        ({"pred_iou_thresh": "high"}, r"(?s)thresholds in its samjax\.json cannot be used.*high"),
        (["pred_iou_thresh"], r"thresholds in its samjax\.json cannot be used"),
    ],
)
def test_thresholds_that_cannot_be_used(saved, content, message):
    rewrite(saved, everything=content)
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_no_such_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no .*nowhere"):
        load(tmp_path / "nowhere")


def test_an_empty_directory(tmp_path):
    with pytest.raises(ValueError, match="is an empty directory"):
        load(tmp_path)


def test_a_directory_of_something_else(tmp_path):
    (tmp_path / "holiday.txt").write_text("sun")
    with pytest.raises(ValueError, match=r"has no samjax\.json: it is not a checkpoint"):
        load(tmp_path)


def test_an_orbax_directory_of_somebody_else(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "theirs", {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"has no samjax\.json"):
        load(tmp_path / "theirs")


def test_every_file_of_a_checkpoint_has_to_be_whole(saved, model):
    files = sorted(path for path in (saved / "params").rglob("*") if path.is_file())
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        for damaged in (None, content[:-1]):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            name = file.relative_to(saved).as_posix()
            with pytest.raises(ValueError, match=rf"(?s)not copied to its end.*{name}: "):
                load(saved)
            file.write_bytes(content)
    assert_same(load(saved), model)


def test_arrays_that_orbax_cannot_read(saved):
    file = saved / "params" / "_METADATA"
    file.write_bytes(b"?" * file.stat().st_size)
    with pytest.raises(ValueError, match="damaged.*Its arrays cannot be read"):
        load(saved)


def test_arrays_that_were_not_copied(saved):
    shutil.rmtree(saved / "params")
    with pytest.raises(ValueError, match=r"(?s)not copied to its end.*: missing, expected"):
        load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format_version": "x"}', "\x00"])
def test_a_damaged_description(saved, text):
    (saved / "samjax.json").write_text(text)
    with pytest.raises(ValueError, match=r"damaged.*Its samjax\.json cannot be read"):
        load(saved)


def test_a_newer_format(saved):
    rewrite(saved, format_version=FORMAT_VERSION + 1, config={"unheard": "of"})
    with pytest.raises(ValueError, match="newer samjax .format 2.*pip install --upgrade samjax"):
        load(saved)


def test_a_config_with_unknown_fields(saved):
    rewrite(saved, config=CONFIG.to_dict() | {"unheard": 1})
    with pytest.raises(ValueError, match=r"config in its samjax\.json.*unheard"):
        load(saved)


def test_a_config_that_does_not_fit_the_arrays(saved):
    config = SamConfig.tiny(mask_channels=8, num_multimask_outputs=4, iou_head_depth=2)
    rewrite(saved, config=config.to_dict())
    with pytest.raises(ValueError, match="arrays that do not fit its config") as error:
        load(saved)
    text = str(error.value)
    assert "6 missing:" in text
    assert "  mask_decoder.output_hypernetworks_mlps.4.layers.0.bias" in text
    assert "2 unexpected:" in text
    assert "  mask_decoder.mask_tokens: (4, 32), expected (5, 32)" in text
    assert str(saved) in text


def test_a_model_that_contradicts_itself_is_not_saved(tmp_path, model):
    broken = Model(model.params, SamConfig.tiny(512))
    with pytest.raises(ValueError, match=r"(?s)The model has arrays.*pos_embed"):
        save_checkpoint(tmp_path / "model", broken)
    assert not any(tmp_path.iterdir())


def test_an_existing_target_is_kept_unless_overwrite(saved, model):
    other = random_model(seed=1)
    with pytest.raises(FileExistsError, match="model exists; overwrite=True"):
        save_checkpoint(saved, other)
    assert_same(load(saved), model)
    save_checkpoint(saved, other, overwrite=True)
    assert_same(load(saved), other)
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_an_empty_directory_may_be_filled(tmp_path, model):
    (tmp_path / "model").mkdir()
    save_checkpoint(tmp_path / "model", model)
    assert_same(load(tmp_path / "model"), model)


def test_overwrite_replaces_nothing_but_checkpoints(tmp_path, model):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years")
    (tmp_path / "file").write_text("years")
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="not a checkpoint directory.*not replaced"):
            save_checkpoint(tmp_path / name, model, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years"
    assert (tmp_path / "file").read_text() == "years"


@pytest.mark.parametrize("when", ["arrays", "description", "rename"])
def test_a_save_that_fails_leaves_what_was_there(saved, model, monkeypatch, when):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "arrays":
        monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
    elif when == "description":
        monkeypatch.setattr(Path, "write_text", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, random_model(seed=1), overwrite=True)
    monkeypatch.undo()
    assert_same(load(saved), model)
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


KILLED = """
import os, sys
from pathlib import Path
from samjax.checkpoint import Model, load, save_checkpoint
model = load(sys.argv[1])
Path.write_text = lambda *args: os._exit(9)
save_checkpoint(sys.argv[2], model, overwrite=True)
"""


@pytest.mark.parametrize("exists", [True, False])
def test_a_save_that_is_killed_half_way(saved, tmp_path, model, exists):
    target = tmp_path / "target"
    if exists:
        save_checkpoint(target, model)
    command = [sys.executable, "-c", KILLED, str(saved), str(target)]
    assert subprocess.run(command, capture_output=True).returncode == 9
    half = next(p for p in tmp_path.glob(".target.*.partial")) / "target"
    assert (half / "params").exists()
    with pytest.raises(ValueError, match="not written or copied to its end"):
        load(half)
    if exists:
        assert_same(load(target), model)
    else:
        assert not target.exists()


def test_a_target_that_cannot_be_written(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Cannot write .*file/model: "):
        save_checkpoint(tmp_path / "file" / "model", model)


def test_a_folder_without_permission(tmp_path, model, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(PermissionError, match="Cannot write .*model: Permission denied"):
        save_checkpoint(tmp_path / "model", model)
