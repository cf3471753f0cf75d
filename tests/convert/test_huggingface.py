"""Hugging Face's names against `transformers` itself: its folders read, and ours read by it."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from samjax import inference
from samjax.checkpoint import Model, load
from samjax.convert import convert, save_huggingface, save_pth, save_safetensors
from samjax.convert.huggingface import to_huggingface
from samjax.convert.key_maps.huggingface import HUGGINGFACE, by_ends, counted_through
from samjax.models import SamConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten, unflatten
from samjax.types import PointLabel, Prompts

CONFIG = SamConfig.tiny(128, decoder_heads=4)
OTHER = SamConfig.tiny(128, iou_head_depth=2, num_multimask_outputs=2, decoder_depth=1)


def random_model(config=CONFIG, seed=0, dtype=np.float32) -> Model:
    rng = np.random.default_rng(seed)
    leaves = flatten(abstract_params(config))
    return Model(
        unflatten(
            {
                n: jax.numpy.asarray(0.3 * rng.standard_normal(x.shape), dtype)
                for n, x in leaves.items()
            }
        ),
        config,
    )


def theirs(epsilon: float, seed: int = 0) -> transformers.SamModel:
    """A small `SamModel` with every array drawn anew."""
    config = transformers.SamConfig(
        vision_config=dict(
            hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=2,
            image_size=128, patch_size=16, window_size=5, global_attn_indexes=[1], mlp_dim=64,
            num_pos_feats=16,
        ),
        prompt_encoder_config=dict(hidden_size=32, image_size=128),
        mask_decoder_config=dict(
            hidden_size=32, mlp_dim=64, iou_head_hidden_dim=32, num_attention_heads=4,
            layer_norm_eps=epsilon,
        ),
    )  # fmt: skip
    model = transformers.SamModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            norm = "layer_norm" in name and name.endswith("weight")
            tensor.copy_(1 + 0.1 * noise if norm else 0.3 * noise)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(
            model.shared_image_embedding.positional_embedding
        )
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def original():
    return theirs(1e-5)


@pytest.fixture(scope="module")
def _folder(tmp_path_factory, original):
    path = tmp_path_factory.mktemp("theirs") / "sam"
    original.save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path, _folder):
    """A folder by `transformers` that the test may change."""
    return shutil.copytree(_folder, tmp_path / "sam")


def assert_same(found: Model, expected: Model) -> None:
    assert found.config == expected.config
    for name, array in flatten(expected.params).items():
        other = flatten(found.params)[name]
        assert other.dtype == array.dtype, name
        np.testing.assert_array_equal(
            np.asarray(other).view(np.uint8), np.asarray(array).view(np.uint8), err_msg=name
        )


def outputs_of_theirs(model, images, coords, labels):
    with torch.no_grad():
        out = model(
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
            input_points=torch.from_numpy(coords)[None],
            input_labels=torch.from_numpy(labels.astype(np.int64))[None],
            multimask_output=True,
        )
    return out.pred_masks.numpy()[0], out.iou_scores.numpy()[0]


def outputs_of_ours(model, images, coords, labels):
    extra = ((0, 0), (0, 1))
    prompts = Prompts(
        np.pad(coords, (*extra, (0, 0)))[None],
        np.pad(labels, extra, constant_values=PointLabel.NOT_A_POINT)[None],
    )
    embeddings = inference.encode_images(model.params, images, config=model.config)
    masks, ious = inference.decode_masks(model.params, embeddings, prompts, config=model.config)
    return np.asarray(masks)[0, :, 1:], np.asarray(ious)[0, :, 1:]


def inputs():
    rng = np.random.default_rng(3)
    images = rng.standard_normal((1, 128, 128, 3), dtype=np.float32)
    coords = rng.uniform(0, 128, (3, 2, 2)).astype(np.float32)
    return images, coords, rng.integers(0, 2, (3, 2)).astype(np.int32)


def relative(ours, theirs):
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("make", [SamConfig.vit_b, lambda: OTHER])
def test_the_table_covers_every_array_once(make):
    names = list(flatten(abstract_params(make())))
    sources = [HUGGINGFACE.find_target(name).source for name in names]
    assert len(set(sources)) == len(names)
    assert [HUGGINGFACE.find_source(source).target for source in sources] == names
    theirs = by_ends(sources)
    assert counted_through(theirs.values()) == {v: k for k, v in theirs.items()}


@pytest.mark.optimized
def test_a_folder_of_transformers_gives_the_same_masks(_folder, original, measured):
    model = load(_folder)
    assert model.config == CONFIG
    difference = relative(outputs_of_ours(model, *inputs()), outputs_of_theirs(original, *inputs()))
    assert difference < 5e-6
    measured(f"a folder of transformers, masks and scores: {difference:.1e} of the largest value")
    of_1e_6 = outputs_of_theirs(theirs(1e-6), *inputs())
    difference = relative(outputs_of_ours(model, *inputs()), of_1e_6)
    measured(f"the same, with transformers' own epsilon of 1e-6: {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.optimized
@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["tiny", "other"])
def test_transformers_reads_our_folder_and_computes_the_same(tmp_path, config, measured):
    model = random_model(config, seed=1)
    save_huggingface(tmp_path / "ours", model)
    read, info = transformers.SamModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    for name, array in to_huggingface(model).items():
        np.testing.assert_array_equal(read.state_dict()[name].numpy(), array, err_msg=name)
    difference = relative(
        outputs_of_ours(model, *inputs()), outputs_of_theirs(read.eval(), *inputs())
    )
    assert difference < 5e-6
    measured(f"transformers from our folder, masks and scores: {difference:.1e}")
    processor = transformers.SamImageProcessor.from_pretrained(tmp_path / "ours")
    assert processor.size["longest_edge"] == 128
    assert_same(load(tmp_path / "ours"), model)


def test_there_and_back_is_bit_for_bit_in_every_file(folder, tmp_path):
    convert(folder, tmp_path / "orbax")
    convert(tmp_path / "orbax", tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth")
    convert(tmp_path / "b.pth", tmp_path / "back", to="huggingface")
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept(tmp_path, dtype):
    model = random_model(seed=2).astype(dtype)
    save_huggingface(tmp_path / "half", model)
    assert_same(load(tmp_path / "half"), model)
    assert transformers.SamModel.from_pretrained(tmp_path / "half").dtype == getattr(torch, dtype)


def test_several_files_and_torch_files(folder, original, tmp_path):
    whole = load(folder)
    original.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").is_file()
    assert_same(load(tmp_path / "parts"), whole)
    next((tmp_path / "parts").glob("*-00001-of-*")).unlink()
    with pytest.raises(ValueError, match="parts lacks model-00001-of-.*which its index names"):
        load(tmp_path / "parts")
    (folder / "model.safetensors").unlink()
    torch.save(original.state_dict(), folder / "pytorch_model.bin")
    assert_same(load(folder), whole)


def test_nothing_but_a_torch_file_needs_torch(folder):
    program = (
        "import sys; sys.modules['torch'] = None; from samjax.checkpoint import load; "
        "from samjax.convert import save_huggingface; model = load(sys.argv[1]); "
        "save_huggingface(sys.argv[1] + '2', model); print(model.num_parameters)"
    )
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == str(load(folder).num_parameters), done.stderr


def test_both_names_of_the_positional_encoding(tmp_path):
    arrays = to_huggingface(random_model())
    first = "shared_image_embedding.positional_embedding"
    second = "prompt_encoder.shared_embedding.positional_embedding"
    arrays[second] = arrays[first].copy()
    save_file(arrays, tmp_path / "both.safetensors")
    assert_same(load(tmp_path / "both.safetensors"), random_model(SamConfig.tiny(128)))
    arrays[second][0, 0] += 1
    save_file(arrays, tmp_path / "differ.safetensors")
    with pytest.raises(ValueError, match="differ; they are one matrix"):
        load(tmp_path / "differ.safetensors")


def test_a_safetensors_file_in_metas_names(tmp_path):
    from samjax.convert import to_state_dict

    model = random_model(SamConfig.tiny(128))
    save_file(to_state_dict(model), tmp_path / "meta.safetensors")
    assert_same(load(tmp_path / "meta.safetensors"), model)


def test_constants_of_normalization_in_a_state_dict(tmp_path):
    from samjax.convert import from_state_dict, to_state_dict

    model = random_model(SamConfig.tiny(128))
    state_dict = to_state_dict(model)
    state_dict["pixel_mean"] = np.float32([123.675, 116.28, 103.53]).reshape(3, 1, 1)
    state_dict["pixel_std"] = np.float32([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    config = from_state_dict(state_dict).config
    assert config.pixel_mean == model.config.pixel_mean and config.pixel_std == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("content", [b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{]" * 8, None])
def test_a_safetensors_file_with_a_wrong_header(tmp_path, content):
    path = tmp_path / "model.safetensors"
    save_safetensors(path, random_model())
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged, was not copied"):
        load(path)


def test_weights_of_another_model(folder, tmp_path):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "sam2"}))
    with pytest.raises(ValueError, match="says model_type 'sam2', and samjax reads 'sam'"):
        load(folder)
    save_file({"encoder.weight": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match=r"x\.safetensors: This is not a Segment Anything.*encoder"
    ):
        load(tmp_path / "x.safetensors")


def test_a_config_that_contradicts_the_arrays(folder):
    values = json.loads((folder / "config.json").read_text())
    values["mask_decoder_config"]["iou_head_depth"] = 4
    values["vision_config"]["hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="contradicts") as error:
        load(folder)
    assert "mask_decoder_config.iou_head_depth is 4, and the arrays have 3" in str(error.value)
    assert "vision_config.hidden_act is 'relu'" in str(error.value) and str(folder) in str(
        error.value
    )


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_config(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (cannot be read|holds a list)"):
        load(folder)


def test_missing_and_unexpected_names_are_listed(folder):
    arrays = load_file(folder / "model.safetensors")
    del arrays["vision_encoder.pos_embed"]
    arrays["vision_encoder.head.weight"] = np.zeros(3, np.float32)
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit .* in Hugging Face's names") as error:
        load(folder)
    assert "1 unexpected:\n  vision_encoder.head.weight" in str(error.value)
    assert "1 missing:\n  vision_encoder.pos_embed" in str(error.value)


def test_other_normalization_is_taken_over(folder):
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    config = load(folder).config
    assert config.pixel_mean == (127.5, 127.5, 127.5) and config.pixel_std == CONFIG.pixel_std


def test_existing_targets_are_kept(tmp_path):
    model = random_model()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years")
    (tmp_path / "notes.safetensors").write_text("years")
    for save, name in ((save_huggingface, "thesis"), (save_safetensors, "notes.safetensors")):
        with pytest.raises(FileExistsError, match="exists; overwrite=True"):
            save(tmp_path / name, model)
    with pytest.raises(FileExistsError, match="is not a Hugging Face folder of a SAM model"):
        save_huggingface(tmp_path / "thesis", model, overwrite=True)
    for save, name in ((save_huggingface, "sam"), (save_safetensors, "sam.safetensors")):
        save(tmp_path / name, model)
        save(tmp_path / name, random_model(seed=5), overwrite=True)
        flat = flatten(load(tmp_path / name).params)
        np.testing.assert_array_equal(
            flat["mask_decoder.iou_token"],
            flatten(random_model(seed=5).params)["mask_decoder.iou_token"],
        )


def test_what_transformers_has_no_place_for(tmp_path):
    nano = Model(abstract_params(SamConfig.nano()), SamConfig.nano())
    empty = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), nano.params)
    with pytest.raises(ValueError, match=r"cannot be a transformers\.SamModel"):
        save_huggingface(tmp_path / "nano", Model(empty, SamConfig.nano()))
    with pytest.raises(ValueError, match="an MLP's only layer"):
        save_huggingface(tmp_path / "flat", random_model(SamConfig.tiny(128, iou_head_depth=1)))
    assert not list(tmp_path.iterdir())


def test_ultralytics_files_are_metas_names(tmp_path):
    """A plain state dict, or one beside a run's other values, and .pt as the ending."""
    from samjax.convert import to_state_dict

    model = random_model(SamConfig.tiny(128))
    state_dict = {k: torch.from_numpy(v) for k, v in to_state_dict(model).items()}
    torch.save(state_dict, tmp_path / "sam_b.pt")
    assert_same(load(tmp_path / "sam_b.pt"), model)
    torch.save({"model": state_dict, "epoch": -1, "ema": None}, tmp_path / "wrapped.pt")
    with pytest.warns(UserWarning, match="taken from 'model', and epoch, ema is left out"):
        assert_same(load(tmp_path / "wrapped.pt"), model)
    assert convert(tmp_path / "sam_b.pt", tmp_path / "sam_l.pt").format == "meta"
    save_pth(tmp_path / "again.pt", model)
    assert torch.load(tmp_path / "again.pt", weights_only=True).keys() == state_dict.keys()
