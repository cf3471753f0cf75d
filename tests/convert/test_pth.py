"""Torch files that are fine, odd, damaged, foreign or malicious."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reference import random_reference
from samjax.checkpoint import load
from samjax.convert import convert, from_state_dict, load_pth, save_pth, to_state_dict
from samjax.models import SamConfig
from samjax.models.params import flatten

TOKEN = "mask_decoder.iou_token.weight"
PROJ = "image_encoder.blocks.1.attn.proj.weight"


@pytest.fixture(scope="module")
def _state_dict():
    return random_reference(SamConfig.tiny(), seed=0).state_dict()


@pytest.fixture
def state_dict(_state_dict):
    return {name: tensor.clone() for name, tensor in _state_dict.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


def same(model, state_dict) -> bool:
    found = to_state_dict(model)
    return all(np.array_equal(found[k], v) for k, v in state_dict.items()) and len(found) == len(
        state_dict
    )


class RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def write_malicious(kind: str, path: Path, state_dict: dict, witness: Path) -> None:
    content = {**state_dict, "extra": RunsCode(witness)}
    if kind == "zip":
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(RunsCode(witness), protocol=int(kind[-1])))


@pytest.mark.parametrize("read", [load, load_pth])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle 2", "pickle 4", "pickle 5"])
def test_a_file_that_runs_code_is_refused_and_nothing_is_run(
    path, tmp_path, state_dict, kind, read
):
    witness = tmp_path / "it ran"
    write_malicious(kind, path, state_dict, witness)
    with pytest.raises(ValueError, match=r"refused, and nothing in it was run.*any code"):
        read(path)
    assert not witness.exists()


def test_the_malicious_file_of_these_tests_does_run_code(tmp_path, path):
    write_malicious("pickle 2", path, {}, tmp_path / "it ran")
    pickle.loads(path.read_bytes())
    assert (tmp_path / "it ran").exists()


def test_the_refusal_names_what_would_run(path, state_dict):
    write_malicious("zip", path, state_dict, path)
    with pytest.raises(ValueError, match=r"posix\.system") as error:
        load(path)
    assert "weights_only" not in str(error.value)


def test_a_whole_module_is_refused(path):
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"refused.*torch\.nn\.modules\.linear\.Linear"):
        load(path)


def test_a_torchscript_archive_is_refused(path):
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(ValueError, match="refused.*TorchScript"):
        load(path)


def test_the_file_format_before_torch_1_6(path, state_dict):
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:1] == b"\x80"
    assert same(load(path), state_dict)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.9, 0.9999])
def test_a_truncated_file(path, state_dict, legacy, share):
    torch.save(state_dict, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="damaged|not copied to its end"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is an empty file"), (b"hello, I am text\n" * 9, "torch file; it starts with b'hello")],
)
def test_an_empty_file_and_a_text_file(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(path)
    with pytest.raises(ValueError, match="is not a torch file"):
        load_pth(path)


def test_another_zip_archive(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="is not a torch file"):
        load(tmp_path / "arrays.npz")


def test_no_such_file(tmp_path):
    for read in (load, load_pth):
        with pytest.raises(FileNotFoundError, match=r"There is no .*nowhere\.pth"):
            read(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_training_checkpoint_is_unwrapped_and_says_so(path, state_dict, wrapper):
    torch.save({"epoch": 3, wrapper: state_dict, "optimizer": {"state": {}}}, path)
    with pytest.warns(
        UserWarning, match=f"taken from '{wrapper}', and epoch, optimizer is left out"
    ):
        assert same(load(path), state_dict)


def test_the_prefix_of_data_parallel_is_dropped_and_says_so(path, state_dict):
    torch.save({f"module.{name}": tensor for name, tensor in state_dict.items()}, path)
    with pytest.warns(UserWarning, match="'module.' of every name is dropped"):
        assert same(load(path), state_dict)


def test_both_at_once(path, state_dict):
    torch.save({"model": {f"module.{k}": v for k, v in state_dict.items()}}, path)
    with pytest.warns(UserWarning, match="taken from 'model'.*'module.'"):
        assert same(load(path), state_dict)


def test_another_architecture_is_one_clear_error(path):
    layers = {f"layer{i}.0.conv1.weight": torch.zeros(8, 8, 3, 3) for i in range(1, 5)}
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7), **layers}, path)
    with pytest.raises(
        ValueError, match="not a Segment Anything checkpoint.*conv1.weight"
    ) as error:
        load(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_decoder_alone_is_not_a_checkpoint(path, state_dict):
    torch.save({"PromtEncoder": state_dict, "MaskDecoder": state_dict}, path)
    with pytest.raises(ValueError, match=r"(?s)not a Segment Anything.*MaskDecoder: is a dict"):
        load(path)


def test_half_filled(path, state_dict):
    half = {name: tensor for name, tensor in state_dict.items() if "mask_decoder" not in name}
    half.pop("image_encoder.pos_embed")
    torch.save(half, path)
    with pytest.raises(ValueError, match="does not fit") as error:
        load(path)
    text = str(error.value)
    assert "missing:" in text and "  image_encoder.pos_embed" in text
    assert "  mask_decoder.transformer.layers.0.self_attn.q_proj.weight" in text
    assert "more" in text and len(text.splitlines()) < 20


def test_everything_that_does_not_fit_is_in_one_error(path, state_dict):
    del state_dict[TOKEN]
    state_dict["image_encoder.head.weight"] = torch.zeros(3)
    state_dict["image_encoder.blocks.0.attn.qkv.weight"] = torch.zeros(5)
    state_dict["epoch"] = 3
    state_dict["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 32, dtype=torch.int32)
    torch.save(state_dict, path)
    with pytest.raises(ValueError, match="does not fit") as error:
        load(path)
    for line in (
        f"  {TOKEN}",
        "  image_encoder.head.weight",
        "  image_encoder.blocks.0.attn.qkv.weight: (5,), expected 2 axes",
        "  epoch: is a int; expected an array",
        "no_mask_embed.weight: has type int32; expected float32, float16 or bfloat16",
    ):
        assert line in str(error.value)


def test_shapes_that_do_not_fit_are_in_metas_layout(path, state_dict):
    state_dict["mask_decoder.output_upscaling.0.weight"] = torch.zeros(32, 8, 3, 3)
    state_dict["image_encoder.blocks.1.mlp.lin2.weight"] = torch.zeros(32, 63)
    torch.save(state_dict, path)
    with pytest.raises(ValueError, match="2 of the wrong shape") as error:
        load(path)
    assert "output_upscaling.0.weight: (32, 8, 3, 3), expected (32, 8, 2, 2)" in str(error.value)
    assert "blocks.1.mlp.lin2.weight: (32, 63), expected (32, 64)" in str(error.value)


def test_an_entry_too_few_in_a_list_shows_in_the_shapes(path, state_dict):
    """Names alone do not tell how many hypernetworks there should be; the mask tokens do."""
    prefix = "mask_decoder.output_hypernetworks_mlps.3."
    fewer = {name: tensor for name, tensor in state_dict.items() if not name.startswith(prefix)}
    torch.save(fewer, path)
    with pytest.raises(ValueError, match=r"(?s)6 missing:.*hypernetworks_mlps\.3\.layers\.0"):
        load(path)


def test_shapes_that_contradict_each_other(path, state_dict):
    state_dict["image_encoder.pos_embed"] = torch.zeros(1, 16, 16, 48)
    torch.save(state_dict, path)
    with pytest.raises(ValueError, match=r"(?s)architecture cannot be read.*patch_embed.*width 48"):
        load(path)


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {}, {1: torch.zeros(3)}])
def test_something_that_is_no_state_dict(path, content):
    torch.save(content, path)
    with pytest.raises(ValueError, match="expected a state dict|no state dict|it is empty"):
        load(path)


def test_a_sparse_tensor_is_named(path, state_dict):
    state_dict[TOKEN] = state_dict[TOKEN].to_sparse()
    torch.save(state_dict, path)
    with pytest.raises(ValueError, match=f"{TOKEN}: is a sparse or quantized tensor"):
        load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named_and_kept(path, state_dict, value, dtype):
    state_dict[PROJ] = state_dict[PROJ].to(dtype)
    state_dict[PROJ][3, 4] = value
    torch.save(state_dict, path)
    with pytest.warns(UserWarning, match=rf"(?s)NaN or infinite.*1 tensors:\n  {PROJ}"):
        kernel = load(path).params["image_encoder"]["blocks"][1]["attn"]["proj"]["kernel"]
    np.testing.assert_array_equal(float(kernel[4, 3]), value)


def test_tensors_that_are_views_parameters_or_not_contiguous(path, state_dict):
    state_dict[PROJ] = torch.nn.Parameter(state_dict[PROJ].T.contiguous().T)
    torch.save(state_dict, path)
    assert same(load(path), {k: v.detach() for k, v in state_dict.items()})


def test_an_existing_target_is_kept(path, state_dict):
    model = from_state_dict(state_dict)
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"model\.pth exists; overwrite=True"):
        save_pth(path, model)
    with pytest.raises(FileExistsError, match="not a torch file, so it is not replaced"):
        save_pth(path, model, overwrite=True)
    assert path.read_bytes() == b"precious"
    path.unlink()
    save_pth(path, model)
    state_dict[TOKEN] += 1
    save_pth(path, from_state_dict(state_dict), overwrite=True)
    assert same(load(path), state_dict)
    assert [p.name for p in path.parent.iterdir()] == ["model.pth"]


def test_a_save_that_fails_leaves_the_old_file(path, state_dict, monkeypatch):
    model = from_state_dict(state_dict)
    save_pth(path, model)
    before = path.read_bytes()

    def fail_halfway(_, target):
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail_halfway)
    with pytest.raises(OSError, match="No space left"):
        save_pth(path, model, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.pth"]


def test_a_file_may_be_converted_onto_itself(path, state_dict):
    torch.save(state_dict, path)
    convert(path, path, overwrite=True)
    assert same(load(path), state_dict)


def test_the_file_can_change_once_it_is_loaded(path, state_dict):
    """Tensors are mapped from the file while it is read; the model must not be."""
    torch.save(state_dict, path)
    model = load(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert same(model, state_dict)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import samjax.convert
from samjax.checkpoint import load
try:
    load(sys.argv[1])
except ImportError as error:
    print(error)
"""


def test_without_torch_the_error_says_what_to_install(path, state_dict):
    torch.save(state_dict, path)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "pip install 'samjax[convert]'" in result.stdout, result.stderr


def test_types_are_those_of_the_file_unless_another_is_asked_for(path, state_dict):
    torch.save({name: tensor.half() for name, tensor in state_dict.items()}, path)
    assert {x.dtype for x in flatten(load(path).params).values()} == {np.dtype("float16")}
    cast = load(path, dtype="bfloat16")
    assert cast.config == SamConfig.tiny()
    dtypes = {name: str(x.dtype) for name, x in flatten(cast.params).items()}
    assert dtypes.pop("prompt_encoder.pe_layer.gaussian_matrix") == "float16"
    assert set(dtypes.values()) == {"bfloat16"}
