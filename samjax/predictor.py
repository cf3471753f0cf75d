"""`SamPredictor`: click, box or mask on one picture (reference: `SamPredictor`)."""

import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from samjax import embeddings, inference, prompts
from samjax.checkpoint import Model, load
from samjax.embeddings import Picture, Prepared, pixels_digest
from samjax.images import read_image
from samjax.transforms import ResizeLongestSide, normalize_and_pad
from samjax.types import HqEmbeddings, Predictions
from samjax.upscaler import Upscaler

MAX_PROMPTS = 64
"""Prompts decoded in one call of the compiled code; more go in several calls."""


Masks = Bool[np.ndarray, "... H W"] | Float[np.ndarray, "... H W"]


class SamPredictor:
    """Encodes a picture once, then answers any number of prompts on it.

    Method names, arguments, defaults and return values are the reference's; arrays are NumPy's.
    Coordinates are in pixels of the picture as it was given. `model` is what `samjax.load` returns;
    without one it is the package's own, nano.
    """

    def __init__(self, model: Model | None = None):
        self.model = load() if model is None else model
        self.transform = ResizeLongestSide(self.model.config.image_size)
        self._digested: tuple[Model | None, str] = (None, "")
        self.reset_image()

    @property
    def mask_threshold(self) -> float:
        return self.model.config.mask_threshold

    @property
    def device(self) -> jax.Device:
        """The device on which the parameters lie, or would be put."""
        leaf = jax.tree.leaves(self.model.params)[0]
        return next(iter(leaf.devices())) if isinstance(leaf, jax.Array) else jax.devices()[0]

    def reset_image(self) -> None:
        """Forgets the picture."""
        self._picture: Picture | None = None

    @property
    def is_image_set(self) -> bool:
        return self._picture is not None

    @property
    def picture(self) -> Picture:
        """The picture that is set; raises `RuntimeError` when there is none."""
        if self._picture is None:
            raise RuntimeError("no picture is set; call set_image(picture) first.")
        return self._picture

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the picture that is set."""
        return self.picture.original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the picture within the model's square."""
        return self.picture.input_size

    @property
    def features(self) -> Float[Array, "1 h w D"]:
        """The picture's embedding on the device, channels last."""
        features = self.picture.features
        return features[0] if isinstance(features, HqEmbeddings) else features

    def set_image(
        self, image: str | os.PathLike[str] | np.ndarray, image_format: str = "RGB"
    ) -> None:
        """Computes the embedding of a picture, given as a file or an array.

        Arrays are (H, W, 3) uint8 in 0..255; grey, RGBA, 16-bit and float in [0, 1] are brought
        to that. `image_format` is the channel order of an array, "RGB" or "BGR"; files know
        theirs. Should anything fail, the picture that was set before stays set. Raises what
        `samjax.images.read_image` raises.
        """
        self._picture = self.encode(self.prepare(read_image(image, image_format=image_format)))

    def prepare(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Prepared:
        """Resizes and normalizes; what `set_image` does on the host. The predictor stays as it is,
        here and in `encode`, and both may be called on any thread."""
        config = self.model.config
        resized = self.transform.apply_image(pixels)
        batch = normalize_and_pad(
            resized, config.image_size, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std
        )[None]
        return Prepared(batch, pixels.shape[:2], resized.shape[:2], pixels_digest(pixels))

    def encode(self, prepared: Prepared) -> Picture:
        """Sends a picture through the image encoder, and does not wait for it."""
        config = self.model.config
        features = inference.encode_images(self.model.params, prepared.batch, config=config)
        upscaler = Upscaler(config, prepared.input_size, prepared.original_size)
        return Picture(
            features, prepared.original_size, prepared.input_size, upscaler, prepared.pixels
        )

    def save_embedding(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the embedding of the picture that is set to a file, for `load_embedding` and
        `SamAutomaticMaskGenerator.generate(..., embedding=...)`.

        Safetensors, in the type that it was computed in: 4 MB for Meta's models in float32. Raises
        `RuntimeError` when no picture is set, `FileExistsError` where there is a file already and
        `overwrite` is not given (with it only an embedding is replaced), and `OSError`.
        """
        embeddings.write_embedding(path, self.picture, self._encoder_digest, overwrite=overwrite)

    def load_embedding(
        self,
        path: str | os.PathLike[str],
        image: str | os.PathLike[str] | np.ndarray | None = None,
        image_format: str = "RGB",
    ) -> None:
        """Sets the picture whose embedding `save_embedding` wrote; the image encoder does not run.

        With `image` it is also made sure that it is this picture's. Should anything fail, the
        picture that was set before stays set. Raises `FileNotFoundError`, and `ValueError` for
        another model or picture and for a file that is damaged or no embedding.
        """
        pixels = None if image is None else read_image(image, image_format=image_format)
        self._picture = self.read_embedding(path, pixels)

    def read_embedding(
        self, path: str | os.PathLike[str], pixels: UInt8[np.ndarray, "H W 3"] | None = None
    ) -> Picture:
        """What `load_embedding` sets; the predictor stays as it is."""
        return embeddings.read_embedding(path, self.model.config, self._encoder_digest, pixels)

    @property
    def _encoder_digest(self) -> str:
        """Computed once for a model."""
        model, digest = self._digested
        if model is not self.model:
            digest = embeddings.encoder_digest(self.model)
            self._digested = self.model, digest
        return digest

    def get_image_embedding(self) -> Float[np.ndarray, "1 D h w"]:
        """The picture's embedding, channels first as the reference returns it.

        `features` holds it as samjax uses it, channels last, on the device.
        """
        return np.asarray(self.features).transpose(0, 3, 1, 2)

    def predict(
        self,
        point_coords: np.ndarray | Sequence | None = None,
        point_labels: np.ndarray | Sequence | None = None,
        box: np.ndarray | Sequence | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        hq_token_only: bool = False,
    ) -> tuple[Masks, Float[np.ndarray, "C"], Float[np.ndarray, "C h w"]]:
        """Masks of one object.

        `point_coords` are (N, 2), with `point_labels` (N,) 1 for the object and 0 for the
        background; `box` is (x0, y0, x1, y1); `mask_input` is (1, h, w) logits, as the third
        value of an earlier call. Returns (C, H, W) masks, boolean or with `return_logits` float32
        logits; the predicted IoU of each; and the (C, h, w) low-resolution logits. C is 3 with
        `multimask_output` (best for a single point), otherwise 1. An HQ model returns one mask
        always, with `multimask_output` that of the three which has the highest predicted IoU, and
        adds its HQ token's logits, or with `hq_token_only` returns those.

        Raises `RuntimeError` before `set_image`, `ValueError` for prompts that are missing, of
        the wrong shape or length, not finite, or outside the picture, and for `hq_token_only` of a
        model without an HQ token.
        """
        masks, iou_predictions, low_res_masks = self.predict_batch(
            None if point_coords is None else [point_coords],
            None if point_labels is None else [point_labels],
            None if box is None else [np.reshape(box, -1)],
            None if mask_input is None else [mask_input],
            multimask_output,
            return_logits,
            hq_token_only,
        )
        return masks[0], iou_predictions[0], low_res_masks[0]

    def predict_batch(
        self,
        point_coords: np.ndarray | Sequence | None = None,
        point_labels: np.ndarray | Sequence | None = None,
        boxes: np.ndarray | Sequence | None = None,
        mask_input: np.ndarray | Sequence | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        hq_token_only: bool = False,
    ) -> tuple[Masks, Float[np.ndarray, "P C"], Float[np.ndarray, "P C h w"]]:
        """Masks of many objects, one for each prompt.

        Arrays (P, N, 2), (P, N), (P, 4) and (P, 1, h, w), or sequences of P entries in which any
        may be None and the numbers of points may differ. Returns and errors are `predict`'s with
        an axis P in front. (The reference's counterpart is `predict_torch`, which takes
        coordinates of the resized picture; these are the picture's own.)
        """
        picture = self.picture
        given = {
            "point_coords": point_coords,
            "point_labels": point_labels,
            "boxes": boxes,
            "mask_input": mask_input,
        }
        objects = self._objects(given)
        predictions = self._decode(
            [self._tokens(points, labels, box) for points, labels, box, _ in objects],
            [self._mask(mask) for *_, mask in objects],
            hq_token_only,
        )
        chosen = predictions.select(multimask_output=multimask_output)
        upscale = picture.upscaler.logits
        if not return_logits:
            upscale = functools.partial(picture.upscaler.masks, mask_threshold=self.mask_threshold)
        masks = np.stack([upscale(low_res_masks) for low_res_masks in chosen.low_res_masks])
        return masks, np.asarray(chosen.iou_predictions), np.asarray(chosen.low_res_masks)

    def _decode(
        self, tokens: list[prompts.Tokens], masks: list[np.ndarray | None], hq_token_only: bool
    ) -> Predictions:
        """All masks of each prompt, computed in parts of at most `MAX_PROMPTS`."""
        low_res, ious = [], []
        for start in range(0, len(tokens), MAX_PROMPTS):
            part = slice(start, start + MAX_PROMPTS)
            packed = prompts.pack(tokens[part], masks[part])
            packed = jax.tree.map(lambda x: x[None], packed)
            result = inference.decode_masks(
                self.model.params, self.picture.features, packed, config=self.model.config,
                hq_token_only=hq_token_only,
            )  # fmt: skip
            count = len(tokens[part])
            low_res.append(np.asarray(result.low_res_masks)[0, :count])
            ious.append(np.asarray(result.iou_predictions)[0, :count])
        return Predictions(np.concatenate(low_res), np.concatenate(ious))

    def _objects(self, given: dict) -> list[tuple]:
        """One (points, labels, box, mask) for each object, None where nothing was given."""
        counts = {name: len(value) for name, value in given.items() if value is not None}
        if not counts:
            raise ValueError("there is no prompt; give point_coords with point_labels, a box, or "
                             "a mask_input.")  # fmt: skip
        if len(set(counts.values())) > 1 or 0 in counts.values():
            raise ValueError(
                f"the prompts are for different numbers of objects, or none: {counts}."
            )
        number = next(iter(counts.values()))
        columns = [[None] * number if value is None else value for value in given.values()]
        objects = list(zip(*columns, strict=True))
        for i, prompt in enumerate(objects):
            if all(value is None for value in prompt):
                raise ValueError(f"object {i} of {number} has no prompt.")
        return objects

    def _tokens(self, point_coords, point_labels, box) -> prompts.Tokens:
        """Checked, and brought to the model's frame."""
        size = self.original_size
        if point_coords is not None or point_labels is not None:
            point_coords, point_labels = prompts.check_points(point_coords, point_labels, size)
            point_coords = self.transform.apply_coords(point_coords, size)
        if box is not None:
            box = self.transform.apply_boxes(prompts.check_box(box, size), size)[0]
        return prompts.tokens(point_coords, point_labels, box)

    def _mask(self, mask_input) -> Float[np.ndarray, "h w"] | None:
        if mask_input is None:
            return None
        return prompts.check_mask(mask_input, self.model.config.low_res_size)
