"""Segment Anything, the three modules together (reference: `Sam`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import EfficientNetLiteConfig, SamConfig, TinyViTConfig
from samjax.models.efficientnet_lite import ImageEncoderEfficientNetLite
from samjax.models.image_encoder import ImageEncoderViT
from samjax.models.mask_decoder import Attended, MaskDecoder
from samjax.models.prompt_encoder import PromptEncoder
from samjax.models.shared_picture import SharedPicture
from samjax.models.tiny_vit import ImageEncoderTinyViT
from samjax.platforms import platform_dependent
from samjax.types import HqEmbeddings, Predictions, Prompts

PROMPTS_AT_ONCE = 4
"""On the CPU, so that what belongs to a prompt stays in the cache (measured: 1 to 64)."""

FEWEST_SHARED = 16
"""Prompts of a picture from which on the CPU makes no picture for each of them: what they share has
to be made first."""


class Sam(nnx.Module):
    """Pictures and prompts to low-resolution masks and predicted IoUs.

    Pure: no file is read, nothing is compiled, nothing is remembered. Wrap calls in `jax.jit`,
    `jax.grad` or `jax.vmap` as you like, or take `samjax.inference`, which has done it.
    """

    def __init__(self, cfg: SamConfig, *, rngs: nnx.Rngs):
        self.image_encoder = _image_encoder(cfg, rngs=rngs)
        self.prompt_encoder = PromptEncoder(cfg, rngs=rngs)
        self.mask_decoder = MaskDecoder(cfg, rngs=rngs)

    def __call__(
        self, images: Float[Array | np.ndarray, "B S S 3"], prompts: Prompts
    ) -> Predictions:
        """`prompts` have leading axes (B, P); the masks come as (B, P, M, h, w)."""
        return jax.vmap(self.decode)(self.encode(jnp.asarray(images)), prompts)

    def encode(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B H W D"] | HqEmbeddings:
        """All that decoding needs to know of pictures: their embeddings, and with `SamConfig.hq`
        the HQ features too."""
        if self.mask_decoder.hq is None:
            return self.image_encoder(images)
        # `SamConfig` refuses `hq` for it.
        assert not isinstance(self.image_encoder, ImageEncoderEfficientNetLite)
        embeddings, early = self.image_encoder.with_early_features(images)
        return HqEmbeddings(embeddings, self.mask_decoder.hq.fusion(embeddings, early))

    def share(
        self,
        image_embeddings: Float[Array, "H W D"] | HqEmbeddings,
        origin: Float[Array, "2"] | None = None,
    ) -> SharedPicture:
        """What all prompts without masks share of a picture, for `decode`."""
        if isinstance(image_embeddings, HqEmbeddings):
            image_embeddings, _ = image_embeddings
        positions = self.prompt_encoder.get_dense_pe(origin)
        no_mask = self.prompt_encoder.embed_no_mask()
        return self.mask_decoder.share(image_embeddings, positions, no_mask)

    def decode(
        self,
        image_embeddings: Float[Array, "H W D"] | HqEmbeddings,
        prompts: Prompts,
        origin: Float[Array, "2"] | None = None,
        least_iou: Float[Array, ""] | None = None,
        hq_token_only: bool = False,
        shared: SharedPicture | None = None,
    ) -> Predictions:
        """Every prompt of one picture: `prompts` have one leading axis (P,). The picture is as
        `encode` gives it.

        `origin` is where the picture begins in a larger frame (`SamConfig.frame_size`), in whose
        coordinates the prompts then are. With `least_iou` the masks of a prompt are zeros where no
        multimask output has a predicted IoU above it. `hq_token_only` is the decoder's.
        `shared` is what `share` returns, where the caller keeps it.

        `MaskDecoder` is the definition. On the CPU a few prompts look at the picture together, and
        then their masks are made one prompt at a time, so that what belongs to one stays in the
        cache, and masks that are not wanted are not made. Of many prompts without masks none has a
        picture of its own (`SharedPicture`).
        """
        picture, hq_features = image_embeddings, None
        if isinstance(image_embeddings, HqEmbeddings):
            image_embeddings, hq_features = image_embeddings
        image_pe = self.prompt_encoder.get_dense_pe(origin)
        number = prompts.labels.shape[0]
        half = jnp.dtype(self.mask_decoder.dtype).itemsize < 4
        at_once = max(n for n in range(1, PROMPTS_AT_ONCE + 1) if number % n == 0)

        def attend(prompt: Prompts) -> Attended:
            embedding = self.prompt_encoder(prompt)
            return self.mask_decoder.attend(image_embeddings, image_pe, embedding)

        def masks(attended: Attended, shared: SharedPicture | None = None) -> Array:
            def all_masks() -> Array:
                return self.mask_decoder.masks(
                    attended, hq_features, hq_token_only=hq_token_only, shared=shared
                )

            if least_iou is None:
                return all_masks()
            ious, low = attended.iou_predictions, 4 * image_embeddings.shape[0]
            return jax.lax.cond(
                jnp.any(ious[1:] > least_iou),
                all_masks,
                lambda: jnp.zeros((len(ious), low, low), ious.dtype),
            )

        def together(prompts: Prompts) -> Predictions:
            attended = jax.vmap(attend)(prompts)
            return Predictions(jax.vmap(masks)(attended), attended.iou_predictions)

        def in_groups(prompts: Prompts) -> Predictions:
            sharing = shared
            if prompts.mask_inputs is not None:
                sharing = None
            elif sharing is None and number >= FEWEST_SHARED and not half:
                sharing = self.share(picture, origin)

            def look(prompt: Prompts) -> Attended:
                if sharing is None:
                    return attend(prompt)
                return self.mask_decoder.attend_shared(sharing, self.prompt_encoder(prompt))

            def group(prompts: Prompts) -> Predictions:
                attended = jax.vmap(look)(prompts)
                made = jax.lax.map(functools.partial(masks, shared=sharing), attended)
                return Predictions(made, attended.iou_predictions)

            groups = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), prompts)
            return jax.tree.map(
                lambda x: x.reshape(number, *x.shape[2:]), jax.lax.map(group, groups)
            )

        return platform_dependent(prompts, cpu=in_groups, default=together)


def _image_encoder(
    cfg: SamConfig, *, rngs: nnx.Rngs
) -> ImageEncoderViT | ImageEncoderTinyViT | ImageEncoderEfficientNetLite:
    if isinstance(cfg.image_encoder, TinyViTConfig):
        return ImageEncoderTinyViT(cfg.image_encoder, dtype=cfg.dtype, rngs=rngs)
    if isinstance(cfg.image_encoder, EfficientNetLiteConfig):
        return ImageEncoderEfficientNetLite(cfg.image_encoder, dtype=cfg.dtype, rngs=rngs)
    return ImageEncoderViT(cfg.image_encoder, dtype=cfg.dtype, rngs=rngs)
