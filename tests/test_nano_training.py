"""What nano was trained with: settings that can be read, and nothing of what is held out."""

import json
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from pycocotools import mask as coco

from benchmarks.nano import surfaces, synthetic
from benchmarks.nano.add_attention import with_attention
from benchmarks.nano.add_details import with_details
from benchmarks.nano.average import average
from benchmarks.nano.enlarge import enlarged
from benchmarks.nano.prepare import split
from benchmarks.nano.touching import touching
from samjax import SamConfig
from samjax.checkpoint import Model
from samjax.datasets import decode_mask, open_source, read_picture
from samjax.inference import bind, encode_images, init_params
from samjax.models import EfficientNetLiteConfig
from samjax.models.architecture import abstract_params
from samjax.models.efficientnet_lite import upsample_twice
from samjax.models.params import flatten, unflatten
from samjax.train.run_config import RunConfig, read_toml

ROOT = Path(__file__).parents[1]
STAGES = sorted((ROOT / "benchmarks/nano").glob("stage*.toml"), key=lambda path: int(path.stem[5:]))


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_settings(path):
    run = RunConfig.from_dict(read_toml(path))
    folder = ROOT / "nano-training"
    assert Path(run.output) == folder / path.stem
    trained_on = {Path(data.path) for data in run.data}
    assert folder / "coco-mix-training.json" in trained_on
    assert not [name for name in trained_on if "held-out" in name.name]
    assert "bsds" not in path.read_text()
    assert [Path(data.path) for data in run.validation] == [folder / "coco-mix-held-out.json"]


def test_stages_follow_each_other():
    runs = [RunConfig.from_dict(read_toml(path)) for path in STAGES]
    starts = [str(ROOT / "nano-training/start"), *(f"{run.output}/model" for run in runs)]
    # The folders are not there, so that the path stays as the file has it.
    starts[2] = str(ROOT / "nano-training/stage2-details")
    starts[4] = str(ROOT / "nano-training/stage4-1024")
    starts[7] = str(ROOT / "nano-training/average67")
    starts[8] = str(ROOT / "nano-training/average78")
    starts[10] = str(ROOT / "nano-training/average78910")
    starts[11] = str(ROOT / "nano-training/average71011")
    starts[12] = str(ROOT / "nano-training/average781012")
    starts[13] = str(ROOT / "nano-training/average12_13")
    starts[14] = str(ROOT / "nano-training/average13_14")
    starts[15] = str(ROOT / "nano-training/average14_15")
    starts[16] = str(ROOT / "nano-training/attentive")
    starts[17] = str(ROOT / "nano-training/average16_17")
    starts[18] = str(ROOT / "nano-training/average17_18")
    assert [Path(run.model).parts[-2:] for run in runs] == [
        Path(start).parts[-2:] for start in starts[:-1]
    ]


@pytest.mark.slow  # compiles two of the whole backbone
def test_fine_features_change_nothing_at_first():
    config = SamConfig.nano(
        64, decoder_mlp_width=32, image_encoder=EfficientNetLiteConfig(image_size=64)
    )
    model = Model(init_params(config), config)
    wider = with_details(model)
    assert wider.config.image_encoder.detail_strides == (2, 4)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        encode_images(model.params, images, config=config),
        encode_images(wider.params, images, config=wider.config),
    )
    with pytest.raises(ValueError, match="only the image encoder of nano"):
        with_details(Model({}, SamConfig.tiny()))


@pytest.mark.slow  # compiles two of the whole backbone
def test_attention_changes_nothing_at_first():
    config = SamConfig.nano(
        64, decoder_mlp_width=32, image_encoder=EfficientNetLiteConfig(image_size=64, neck_depth=1)
    )
    model = Model(init_params(config), config)
    wider = with_attention(model)
    assert wider.config.image_encoder.neck_attention
    new = {name for name in flatten(wider.params) if name not in flatten(model.params)}
    assert {name.split(".")[:5][-1] for name in new} == {"attn"}
    images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        encode_images(model.params, images, config=config),
        encode_images(wider.params, images, config=wider.config),
    )
    with pytest.raises(ValueError, match="only the image encoder of nano"):
        with_attention(Model({}, SamConfig.tiny()))


@pytest.mark.slow  # compiles two of the whole backbone
def test_an_enlarged_model_starts_with_the_mean_of_four_cells():
    """Before the blocks of the neck; the coarsest features are smoothed in another order."""
    encoder = EfficientNetLiteConfig(image_size=64, detail_strides=(2, 4), neck_depth=1)
    config = SamConfig.nano(image_encoder=encoder, decoder_mlp_width=32)
    params = init_params(config)
    rng = np.random.default_rng(0)
    leaves = {
        name: rng.normal(size=x.shape).astype(np.float32) if ".details." in name else np.asarray(x)
        for name, x in flatten(params).items()
    }
    coarsest = "image_encoder.neck.laterals.2.kernel"
    leaves[coarsest] = np.zeros_like(leaves[coarsest])
    model = Model(unflatten(leaves), config)
    wider = enlarged(model)
    found = wider.config.image_encoder
    assert (found.image_size, found.output_stride, found.grid_size) == (128, 16, 8)
    assert found.detail_strides == (2, 4, 8)
    assert flatten(abstract_params(wider.config)).keys() == flatten(wider.params).keys()
    features = [
        jnp.asarray(rng.normal(size=(1, 128 // stride, 128 // stride, width)), jnp.float32)
        for stride, width in zip((2, 4, 8, 16, 32), (16, 24, 40, 112, 320), strict=True)
    ]
    sums = []
    for one in (model, wider):
        neck = bind(one.config, one.params).image_encoder.neck
        neck.blocks, neck.norm = nnx.List([]), lambda x: x
        sums.append(np.asarray(neck(tuple(features))))
    coarse = features[3] @ leaves["image_encoder.neck.laterals.1.kernel"]
    smoothed, cells = (
        np.asarray(x).reshape(1, 8, 2, 8, 2, 256).mean((2, 4))
        for x in (upsample_twice(coarse), sums[0])
    )
    expected = cells - smoothed + coarse
    np.testing.assert_allclose(sums[1], expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="output_stride 8"):
        enlarged(wider)


def test_average_of_two_models():
    config = SamConfig.tiny(64)
    models = [Model(init_params(config, seed), config) for seed in (0, 1)]
    mean = flatten(average(*models).params)
    one, other = (flatten(model.params) for model in models)
    for name, x in mean.items():
        np.testing.assert_allclose(x, (one[name] + other[name]) / 2, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="different architectures"):
        average(models[0], Model({}, SamConfig.tiny(128)))


@pytest.mark.parametrize(
    "plain_share, things_share, marks_share, pairs_share",
    [(0.0, 0.0, 0.0, 0.0), (0.6, 0.5, 0.0, 0.0), (0.6, 0.5, 0.7, 0.0), (0.6, 1.0, 0.7, 1.0)],
)
def test_synthetic_pictures(tmp_path, plain_share, things_share, marks_share, pairs_share):
    """Every annotation is of its picture's size, and no pixel is in two that no shape holds."""
    rng = np.random.default_rng(0)
    thing = np.zeros((80, 120), np.uint8)
    thing[10:74, 20:100] = 1
    rle = coco.encode(np.asfortranarray(thing))
    annotation = {
        "image_id": 1, "category_id": 3, "iscrowd": 0, "area": int(thing.sum()), "segmentation": rle
    }  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{**annotation, "bbox": [20, 10, 80, 64]}],
    }
    for name in "ab":
        pixels = rng.integers(0, 256, (80, 120, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    texture = surfaces.texture_of(
        [tmp_path / "a.png", tmp_path / "b.png"],
        plain_share=plain_share,
        muted_share=0.5,
        bright_share=0.5,
    )
    things = surfaces.things_of(content, tmp_path, pairs_share=pairs_share)
    path = synthetic.write(tmp_path / "out", 4, 1, texture, things, things_share, marks_share)
    source = open_source(path)
    assert len(source) == 4 and not source.report.counts
    written = json.loads(path.read_text())
    for index in range(4):
        record = source.read(index)
        assert read_picture(record).shape[:2] == record.size
        masks = np.stack([decode_mask(record, i) for i in range(len(record.masks))])
        assert len(masks) >= 2 and masks.any(0).mean() > 0.98
        # Only a part of a shape lies over another region, and it lies in one alone.
        assert masks.sum(0).max() <= 2
        areas = [a["area"] for a in written["annotations"] if a["image_id"] == index + 1]
        assert masks.sum((1, 2)).tolist() == areas and min(areas) >= synthetic.MIN_AREA
    again = synthetic.write(tmp_path / "again", 4, 1, texture, things, things_share, marks_share)
    assert again.read_text() == path.read_text()


def test_bright_grounds_are_nearly_white():
    drawn = surfaces.texture_of([], plain_share=1.0, bright_share=1.0)
    for seed in range(8):
        colour = drawn(np.random.default_rng(seed), 90, 120).mean((0, 1))
        assert 180 < colour.max() < 270 and colour.min() > colour.max() / 3
    dark = surfaces.texture_of([], plain_share=1.0)
    assert min(dark(np.random.default_rng(s), 90, 120).mean((0, 1)).max() for s in range(8)) < 180


def test_two_of_a_kind_stand_side_by_side(tmp_path):
    """Of one category, on the same ground, the second in front of a part of the first or beside."""
    pictures = {"a.png": (200, 30, 30), "b.png": (30, 30, 200), "c.png": (30, 200, 30)}
    mask = np.zeros((90, 120), np.uint8)
    mask[10:80, 20:100] = 1
    rle = coco.encode(np.asfortranarray(mask))
    content: dict = {"images": [], "annotations": []}
    for number, (name, colour) in enumerate(pictures.items()):
        Image.fromarray(np.full((90, 120, 3), colour, np.uint8)).save(tmp_path / name)
        content["images"].append({"id": number, "file_name": name})
        content["annotations"].append({
            "image_id": number, "category_id": number // 2, "iscrowd": 0, "area": int(mask.sum()),
            "segmentation": rle, "bbox": [20, 10, 80, 70],
        })  # fmt: skip
    things = surfaces.things_of(content, tmp_path, pairs_share=1.0)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        (first, share), (second, other) = things(rng, np.array([150.0, 100.0]), 80, (220, 320))
        one, two = share >= 0.5, other >= 0.5
        feet = [np.nonzero(x.any(1))[0].max() for x in (one, two)]
        assert abs(feet[0] - feet[1]) <= 0.1 * 80 + 1
        assert (one & two).sum() <= 0.45 * min(one.sum(), two.sum())
        assert (cv2.dilate(one.astype(np.uint8), np.ones((5, 5), np.uint8)) & two).any()
        # Green stands alone in its category; red and blue may change towards each other.
        green = [np.argmax(x[m].mean(0)) == 1 for x, m in ((first, one), (second, two))]
        assert green in ([True, True], [False, False])


def test_things_that_touch():
    def thing(number, columns, category=1, picture=1, crowd=0):
        mask = np.zeros((100, 200), np.uint8)
        mask[20:60, columns[0] : columns[1]] = 1
        rle = coco.encode(np.asfortranarray(mask))
        return {
            "id": number, "image_id": picture, "category_id": category, "iscrowd": crowd,
            "area": int(mask.sum()), "segmentation": rle,
        }  # fmt: skip

    content = {
        "categories": "kept",
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [
            thing(1, (0, 40)), thing(2, (43, 80)), thing(3, (120, 160)),  # 1 and 2, and one far off
            thing(4, (160, 200), category=2), thing(5, (78, 118), crowd=1),
            thing(6, (80, 90)), thing(7, (0, 40), picture=2),  # too small; another picture
        ],
    }  # fmt: skip
    found = touching(content)
    assert [annotation["id"] for annotation in found["annotations"]] == [1, 2]
    assert found["images"] == [{"id": 1}] and found["categories"] == "kept"


@pytest.mark.parametrize("name, held_out", [("coco-mix", {7, 27}), ("nuclei", {4, 27})])
def test_split(tmp_path, name, held_out):
    ids = [7, 8, 9, 4, 5, 26, 28, 27]
    content = {
        "info": "kept",
        "images": [{"id": i} for i in ids],
        "annotations": [{"id": 10 * i + n, "image_id": i} for i in ids for n in range(2)],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    counts = split(tmp_path / "all.json", tmp_path, name)
    assert counts == {"training": 6, "held-out": 2}
    parts = {
        part: json.loads((tmp_path / f"{name}-{part}.json").read_text())
        for part in ("training", "held-out")
    }
    assert {image["id"] for image in parts["held-out"]["images"]} == held_out
    assert {image["id"] for image in parts["training"]["images"]} == set(ids) - held_out
    for part in parts.values():
        assert part["info"] == "kept"
        numbers = {image["id"] for image in part["images"]}
        assert {one["image_id"] for one in part["annotations"]} == numbers
        assert len(part["annotations"]) == 2 * len(numbers)
