"""Embeddings in files: the same masks as from the picture, and for that model and picture alone."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import samjax
from samjax import Model, SamConfig, inference
from samjax.embeddings import encoder_digest

PICTURE = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
CLICK = {"point_coords": [[40, 50]], "point_labels": [1]}


def make_model(seed: int = 0, **changes) -> Model:
    config = SamConfig.tiny(64, **changes)
    return Model(inference.init_params(config, seed), config)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "hq"])
def model(request):
    return make_model(hq=request.param)


@pytest.fixture
def saved(model, tmp_path):
    predictor = samjax.SamPredictor(model)
    predictor.set_image(PICTURE)
    predictor.save_embedding(tmp_path / "picture.safetensors")
    return predictor, tmp_path / "picture.safetensors"


def test_clicks_on_it_give_the_same_bits(model, saved):
    encoded, path = saved
    loaded = samjax.SamPredictor(model)
    loaded.load_embedding(path, PICTURE)
    assert loaded.original_size == (90, 130) and loaded.input_size == encoded.input_size
    for ours, expected in zip(loaded.predict(**CLICK), encoded.predict(**CLICK), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("crop_n_layers", [0, 1])
def test_everything_is_the_same_and_the_picture_is_not_encoded(
    model, saved, crop_n_layers, monkeypatch
):
    generator = samjax.SamAutomaticMaskGenerator(
        model, 4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=0.9,
        crop_n_layers=crop_n_layers, output_mode="coco_rle",
    )  # fmt: skip
    expected = generator.generate(PICTURE)
    encoded = []
    encode = inference.encode_images
    monkeypatch.setattr(
        inference, "encode_images", lambda *a, **kw: encoded.append(1) or encode(*a, **kw)
    )
    assert generator.generate(PICTURE, embedding=saved[1]) == expected
    assert len(encoded) == (4 if crop_n_layers else 0)
    assert expected


def test_without_the_picture_nothing_is_compared(model, saved):
    loaded = samjax.SamPredictor(model)
    loaded.load_embedding(saved[1])
    assert loaded.is_image_set


def test_another_picture_is_refused(model, saved, tmp_path):
    predictor, path = saved
    other = PICTURE.copy()
    other[0, 0, 0] ^= 1
    for given, message in [(other, "90x130, other ones"), (PICTURE[:80], "has 80x130")]:
        loaded = samjax.SamPredictor(model)
        with pytest.raises(ValueError, match=f"is of another picture.*{message}"):
            loaded.load_embedding(path, given)
        assert not loaded.is_image_set
    Image.fromarray(other).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match="is of another picture"):
        samjax.SamAutomaticMaskGenerator(model, 2).generate(tmp_path / "other.png", embedding=path)
    before = predictor.picture
    with pytest.raises(ValueError, match="is of another picture"):
        predictor.load_embedding(path, other)
    assert predictor.picture is before


def test_another_model_is_refused(model, saved):
    others = [
        make_model(seed=1, hq=model.config.hq),
        Model(model.params, model.config.replace(dtype="bfloat16")),
        Model(model.params, model.config.replace(pixel_mean=(0.0, 0.0, 0.0))),
        model.astype("bfloat16"),
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"was encoded by another model.*set_image"):
            samjax.SamPredictor(other).load_embedding(saved[1], PICTURE)


def test_a_predictor_that_is_given_another_model(saved):
    """It goes by the model that it has now."""
    predictor, path = saved
    before, predictor.model = predictor.model, make_model(seed=1, hq=predictor.model.config.hq)
    try:
        with pytest.raises(ValueError, match="was encoded by another model"):
            predictor.load_embedding(path)
    finally:
        predictor.model = before
    predictor.load_embedding(path)


def test_the_decoder_may_have_been_trained_on(model, saved):
    params = inference.init_params(model.config, 1)
    other = {**params, "image_encoder": model.params["image_encoder"]}
    if model.config.hq:
        decoder = {**params["mask_decoder"], "hq": model.params["mask_decoder"]["hq"]}
        other["mask_decoder"] = decoder
    assert encoder_digest(Model(other, model.config)) == encoder_digest(model)
    samjax.SamPredictor(Model(other, model.config)).load_embedding(saved[1], PICTURE)


def test_nothing_is_lost(model, saved, tmp_path):
    predictor, path = saved
    content = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        predictor.save_embedding(path)
    text = tmp_path / "notes.txt"
    text.write_text("mine")
    with pytest.raises(FileExistsError, match="is not an embedding of samjax's"):
        predictor.save_embedding(text, overwrite=True)
    assert text.read_text() == "mine" and path.read_bytes() == content
    path.write_bytes(content[:-1])
    with pytest.raises(FileExistsError, match="is not an embedding of samjax's"):
        predictor.save_embedding(path, overwrite=True)
    path.write_bytes(content)
    predictor.save_embedding(path, overwrite=True)
    predictor.load_embedding(path, PICTURE)
    with pytest.raises(RuntimeError, match="call set_image"):
        samjax.SamPredictor(model).save_embedding(tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_files_that_are_no_embedding(model, saved, tmp_path):
    _, path = saved
    predictor = samjax.SamPredictor(model)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        predictor.load_embedding(tmp_path / "missing")
    bad = tmp_path / "bad"
    for content in (b"", b"text", path.read_bytes()[:-100]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="no embedding, or damaged"):
            predictor.load_embedding(bad)
    save_file({"x": np.zeros(3)}, bad)
    with pytest.raises(ValueError, match="no embedding of samjax's"):
        predictor.load_embedding(bad)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    save_file(load_file(path), bad, metadata | {"format": "2"})
    with pytest.raises(ValueError, match="has format 2.*update it"):
        predictor.load_embedding(bad)
