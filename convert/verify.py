"""The original and the converted model on the same input."""

import dataclasses
import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from samjax.checkpoint import Model
from samjax.convert.pth import read_state_dict
from samjax.convert.reference import build_reference
from samjax.models.config import SamConfig
from samjax.types import HqEmbeddings, PointLabel, Predictions, Prompts

_PROMPTS, _POINTS = 3, 2


class Difference(NamedTuple):
    """The largest absolute difference, and the largest absolute value of the original."""

    largest: float
    scale: float

    @property
    def relative(self) -> float:
        return self.largest / self.scale if self.scale else self.largest


class Report(NamedTuple):
    """How far the converted model is from the original, both computing in float32."""

    image_embeddings: Difference
    low_res_masks: Difference
    iou_predictions: Difference

    @property
    def largest_relative(self) -> float:
        return max(difference.relative for difference in self)

    def __str__(self) -> str:
        lines = [
            f"{name:<18}{d.largest:>14.3e}{d.scale:>14.3e}{d.relative:>14.3e}"
            for name, d in self._asdict().items()
        ]
        return "\n".join([f"{'':<18}{'difference':>14}{'scale':>14}{'relative':>14}", *lines])


class _Outputs(NamedTuple):
    image_embeddings: Float[np.ndarray, "B H W D"]
    predictions: Predictions


def verify(pth_path: str | os.PathLike, model: Model, *, seed: int = 0) -> Report:
    """Runs Meta's package, or HQ-SAM's, from `pth_path` and samjax from `model` on one random
    picture and clicks.

    Weights of other types are brought to float32 for both. Raises `ImportError` that says what to
    install where torch or `segment_anything` is missing, and `ValueError` if the file cannot be
    read or does not hold the arrays that the model's config asks for.
    """
    rng = np.random.default_rng(seed)
    size = model.config.image_size
    image = rng.standard_normal((1, size, size, 3), dtype=np.float32)
    coords = rng.uniform(0, size, (_PROMPTS, _POINTS, 2)).astype(np.float32)
    labels = rng.integers(PointLabel.BACKGROUND, PointLabel.BOX_TOP_LEFT, (_PROMPTS, _POINTS))
    original = _run_original(pth_path, model.config, image, coords, labels)
    ours = _run_ours(model, image, coords, labels)
    return Report(
        _difference(original.image_embeddings, ours.image_embeddings),
        _difference(original.predictions.low_res_masks, ours.predictions.low_res_masks),
        _difference(original.predictions.iou_predictions, ours.predictions.iou_predictions),
    )


def _difference(original: Array | np.ndarray, ours: Array | np.ndarray) -> Difference:
    original, ours = np.asarray(original), np.asarray(ours)
    return Difference(float(np.abs(original - ours).max()), float(np.abs(original).max()))


def _run_original(
    pth_path: str | os.PathLike,
    config: SamConfig,
    image: Float[np.ndarray, "1 S S 3"],
    coords: Float[np.ndarray, "P N 2"],
    labels: Int[np.ndarray, "P N"],
) -> _Outputs:
    reference = build_reference(config)
    import torch

    try:
        reference.load_state_dict(read_state_dict(pth_path))
        reference.eval()  # MobileSAM's attention computes here what it adds to its logits.
    except RuntimeError as error:
        raise ValueError(f"{pth_path} does not fit the model's config: {error}") from error
    with torch.no_grad():
        embeddings = reference.image_encoder(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
        if config.hq:
            embeddings, intermediate = embeddings
        sparse, dense = reference.prompt_encoder(
            points=(torch.from_numpy(coords), torch.from_numpy(labels)), boxes=None, masks=None
        )
        given = (embeddings, reference.prompt_encoder.get_dense_pe(), sparse, dense)
        if config.hq:
            both = [
                reference.mask_decoder(*given, multimask_output, False, intermediate)
                for multimask_output in (False, True)
            ]
            masks, ious = (torch.cat(parts, dim=1) for parts in zip(*both, strict=True))
        else:
            masks, ious = reference.mask_decoder.predict_masks(*given)
    return _Outputs(
        embeddings.numpy().transpose(0, 2, 3, 1), Predictions(masks.numpy(), ious.numpy())
    )


def _run_ours(
    model: Model,
    image: Float[np.ndarray, "1 S S 3"],
    coords: Float[np.ndarray, "P N 2"],
    labels: Int[np.ndarray, "P N"],
) -> _Outputs:
    from samjax.inference import decode_masks, encode_images

    model = model.astype("float32")
    config = dataclasses.replace(model.config, dtype="float32")
    no_coords = np.zeros((1, _PROMPTS, 1, 2), np.float32)
    no_point = np.full((1, _PROMPTS, 1), PointLabel.NOT_A_POINT)
    prompts = Prompts(
        np.concatenate([coords[None], no_coords], axis=2),
        np.concatenate([labels[None], no_point], axis=2).astype(np.int32),
    )
    encoded = encode_images(model.params, image, config=config)
    predictions = decode_masks(model.params, encoded, prompts, config=config)
    masks, ious = (np.asarray(x)[0] for x in predictions)
    embeddings = encoded[0] if isinstance(encoded, HqEmbeddings) else encoded
    return _Outputs(np.asarray(embeddings), Predictions(masks, ious))
