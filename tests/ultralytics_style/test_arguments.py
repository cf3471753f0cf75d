"""Documented arguments: with a meaning, without one, and refused; and devices."""

import jax
import pytest

from samjax.devices import find_device
from samjax.ultralytics_style.arguments import Arguments


def test_names_of_the_generator():
    arguments = Arguments().updated(
        dict(points_stride=64, conf_thres=0.5, iou=0.6, stability_score_offset=0.95,
             crop_n_layers=1, crop_downscale_factor=2, points_batch_size=8)
    )  # fmt: skip
    assert arguments.for_everything() == {
        "points_per_side": 64, "points_per_batch": 8, "crop_n_layers": 1, "point_grids": None,
        "crop_overlap_ratio": 512 / 1500, "crop_n_points_downscale_factor": 2,
        "pred_iou_thresh": 0.5, "box_nms_thresh": 0.6, "stability_score_offset": 0.95,
    }  # fmt: skip


def test_thresholds_that_are_not_given_stay_the_models_own():
    assert not [name for name in Arguments().for_everything() if "thresh" in name]
    assert "stability_score_offset" not in Arguments().for_everything()


@pytest.mark.parametrize(
    "values, warned",
    [
        (dict(batch=8), "batch=8 has no effect: pictures go through the model one after"),
        (dict(retina_masks=False), "masks always have the picture's own resolution"),
        (dict(augment=True), "augment=True has no effect"),
        (dict(batch=1, retina_masks=True, augment=False, agnostic_nms=True), None),
        (dict(task="segment", mode="predict", classes=None, embed=None), None),
    ],
)
def test_without_a_meaning(values, warned, caplog):
    assert Arguments().updated(values) == Arguments()
    assert (warned in caplog.text) if warned else not caplog.text


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(task="detect"), "task='detect' cannot be done: this is segmentation"),
        (dict(mode="train"), "mode='train' cannot be done: samjax train"),
        (dict(classes=[0]), r"classes=\[0\] cannot be done: masks .* no classes"),
        (dict(embed=[1]), "get_image_embedding"),
        (dict(conf=25), "conf is 25; it has to be a number from 0 to 1"),
        (dict(conf="high"), "conf is 'high'"),
        (dict(iou=-0.1), "iou is -0.1"),
        (dict(vid_stride=0), "vid_stride is 0; it has to be a whole number"),
        (dict(points_stride=2.5), "points_stride is 2.5"),
        (dict(save="yes"), "save is 'yes'; it has to be True or False"),
    ],
)
def test_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Arguments().updated(values)


def test_unknown_names():
    with pytest.raises(TypeError, match="no argument 'point_stride'; did you mean points_stride?"):
        Arguments().updated(dict(point_stride=64))
    with pytest.raises(TypeError, match="no argument 'zzz'; known are .*conf"):
        Arguments().updated(dict(zzz=1))


def test_devices():
    assert find_device(None) is find_device("") is None
    assert find_device("cpu") == find_device("cpu:0") == jax.devices("cpu")[0]
    with pytest.raises(ValueError, match="device is 'mps'; use one of"):
        find_device("mps")
    with pytest.raises(ValueError, match="device cpu:99: JAX finds only"):
        find_device("cpu:99")
    with pytest.raises(ValueError, match="device is 'cpu:'"):
        find_device("cpu:")
