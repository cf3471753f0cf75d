"""The example of docs/text_to_mask.md as it stands there, with small models of random weights."""

import dataclasses
import json
import re
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from random_model import random_model
from samjax.checkpoint import save_checkpoint
from samjax.models.config import EverythingThresholds

PAGE = Path(__file__).parents[1] / "docs/text_to_mask.md"
CLIP = "openai/clip-vit-base-patch32"
END = "</w>"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder as `from_pretrained` takes it. The tokenizer knows letters only."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [*string.ascii_lowercase, *(letter + END for letter in string.ascii_lowercase)]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = CLIPConfig(
        text_config=dict(
            vocab_size=len(tokens), max_position_embeddings=40, projection_dim=16,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **small,
        ),
        vision_config=dict(image_size=32, patch_size=8, projection_dim=16, **small),
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    side = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(CLIPImageProcessor(**side), tokenizer).save_pretrained(folder)
    return folder


def test_the_example(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thresholds = EverythingThresholds(
        pred_iou_thresh=-100.0, stability_score_thresh=-1.0, box_nms_thresh=1.0
    )
    save_checkpoint("model", dataclasses.replace(random_model(), everything=thresholds))
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    pixels[100:200, 50:250] = 200, 30, 30
    Image.fromarray(pixels).save("picture.jpg")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert CLIP in example and '"vit_b"' in example
    names = {}
    exec(example.replace(CLIP, str(clip)).replace('"vit_b"', '"model"'), names)

    ranked = names["ranked"]
    assert len(ranked) == len(names["large"]) > 1
    assert {r["area"] > 100**2 for r in ranked} == {True}
    scores = [record["score"] for record in ranked]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    assert names["best"] == (ranked[0]["segmentation"], scores[0])


def test_the_score_is_clips_likeness(clip, tmp_path, monkeypatch):
    """Scaled cosine of the text's embedding and the crop's, whatever else is scored with it."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    definitions, _ = example.replace(CLIP, str(clip)).split("generator = ")
    names = {}
    exec(definitions, names)
    rng = np.random.default_rng(1)
    crops = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 40), (20, 70), (90, 33))]
    found = names["likeness_to"]("a dog")(crops)

    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    with torch.inference_mode():
        tokens = processor.tokenizer(["a dog"], return_tensors="pt")
        text = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        for score, crop in zip(found, crops, strict=True):
            inputs = processor.image_processor(images=crop, return_tensors="pt")
            image = model.visual_projection(model.vision_model(**inputs).pooler_output)[0]
            cosine = torch.nn.functional.cosine_similarity(text, image, dim=0)
            np.testing.assert_allclose(score, model.logit_scale.exp() * cosine, rtol=1e-4)
    assert len(set(found.tolist())) == 3
