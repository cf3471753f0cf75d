"""What the rooms hand to each other.

Dimension key, in shapes and in the suffixes of array names:
B pictures, P prompts on one picture, T prompt tokens, N points, M masks for one prompt,
S side of the model's input, H W height and width, h w height and width of low-resolution masks,
D channels, C crops. Points are (x, y), boxes (x0, y0, x1, y1), always in pixels.
"""

import enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int


class PointLabel(enum.IntEnum):
    """What a prompt token stands for (reference: `PromptEncoder._embed_points`, `_embed_boxes`)."""

    PADDING = -2
    """Fills an array up to its size: takes part in nothing."""
    NOT_A_POINT = -1
    """The token that SAM was trained to see after points that come without a box."""
    BACKGROUND = 0
    FOREGROUND = 1
    BOX_TOP_LEFT = 2
    BOX_BOTTOM_RIGHT = 3


class Prompts(NamedTuple):
    """Prompts in the model's frame (pixels of the resized picture, before padding).

    A box is two tokens, its corners. `samjax.prompts.pack` builds this from points, boxes and
    masks of any number. `mask_inputs` are logits at the low resolution; where `has_mask` is False
    they are ignored. Leading axes (`*L`) are whatever the caller vmaps over.
    """

    coords: Float[Array | np.ndarray, "*L T 2"]
    labels: Int[Array | np.ndarray, "*L T"]
    mask_inputs: Float[Array | np.ndarray, "*L h w"] | None = None
    has_mask: Bool[Array | np.ndarray, "*L"] | None = None


class PromptEmbeddings(NamedTuple):
    """What the prompt encoder makes of the prompts of one mask."""

    sparse: Float[Array, "*L T D"]
    dense: Float[Array, "*L H W D"]
    valid: Bool[Array, "*L T"]
    """False for padding tokens, which no attention may look at."""


class HqEmbeddings(NamedTuple):
    """What the decoder of an HQ model is given of a picture, in place of its embedding alone."""

    image_embeddings: Float[Array, "*L H W D"]
    hq_features: Float[Array, "*L h w E"]
    """Early features and embedding, fused, at the masks' resolution (`samjax.models.hq`)."""


class Predictions(NamedTuple):
    """Masks as logits at the low resolution, and the decoder's estimate of each one's IoU."""

    low_res_masks: Float[Array | np.ndarray, "*L M h w"]
    iou_predictions: Float[Array | np.ndarray, "*L M"]

    def select(self, *, multimask_output: bool) -> "Predictions":
        """The several masks of an ambiguous prompt, or the one meant for all other prompts."""
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return Predictions(self.low_res_masks[..., chosen, :, :], self.iou_predictions[..., chosen])
