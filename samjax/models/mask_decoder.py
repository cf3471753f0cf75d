"""Tokens and picture to masks and their quality (appendix A; reference: `MaskDecoder`)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from samjax.models.config import SamConfig
from samjax.models.hq import HqBranch
from samjax.models.layers import MlpHead, UpscaleFourTimes, gelu, in_order
from samjax.models.products import at_least_float32, float32_dot
from samjax.models.shared_picture import Factored, SharedPicture, attend, product, share_picture
from samjax.models.transformer import TwoWayTransformer
from samjax.types import Predictions, PromptEmbeddings


class Attended(NamedTuple):
    """The decoder's own tokens and the picture after they and the prompt's have looked at each
    other, and the IoUs of M masks.

    `chosen` are the mask tokens whose masks these are; None is all of them, in order. The picture
    is factored where `MaskDecoder.attend_shared` made it.
    """

    tokens: Float[Array, "*L T D"]
    image: Float[Array, "*L H W D"] | Factored
    iou_predictions: Float[Array, "*L M"]
    chosen: Int[Array, "*L M"] | None = None


class MaskDecoder(nnx.Module):
    """Decodes the masks of one prompt; use `jax.vmap` for many.

    With `SamConfig.hq` there are two masks, as in HQ-SAM: the single one, and that of the multimask
    outputs which has the highest predicted IoU. To the logits of both those of the HQ token are
    added, or they are these alone (`hq_token_only`).
    """

    def __init__(self, cfg: SamConfig, *, rngs: nnx.Rngs):
        width = cfg.embed_dim
        init = nnx.initializers.normal(1.0)
        self.transformer = TwoWayTransformer(cfg, rngs=rngs)
        self.iou_token = nnx.Param(init(rngs.params(), (1, width), jnp.float32))
        self.mask_tokens = nnx.Param(init(rngs.params(), (cfg.num_mask_tokens, width), jnp.float32))
        self.output_upscaling = UpscaleFourTimes(
            width, width // 4, width // 8, dtype=cfg.dtype, rngs=rngs
        )
        self.output_hypernetworks_mlps = nnx.List(
            [
                MlpHead(width, width, width // 8, 3, dtype=cfg.dtype, rngs=rngs)
                for _ in range(cfg.num_mask_tokens)
            ]
        )
        self.iou_prediction_head = MlpHead(
            width, cfg.iou_head_width, cfg.num_mask_tokens, cfg.iou_head_depth, dtype=cfg.dtype,
            rngs=rngs,
        )  # fmt: skip
        self.hq = HqBranch(cfg, rngs=rngs) if cfg.hq else None
        self.dtype = cfg.dtype

    def __call__(
        self,
        image_embeddings: Float[Array, "H W D"],
        image_pe: Float[Array, "H W D"],
        prompt: PromptEmbeddings,
        hq_features: Float[Array, "h w E"] | None = None,
    ) -> Predictions:
        """All of the prompt's masks: the single one first, then the multimask outputs.

        Which of them count is the caller's choice: `Predictions.select`.
        """
        attended = self.attend(image_embeddings, image_pe, prompt)
        return Predictions(self.masks(attended, hq_features), attended.iou_predictions)

    def attend(
        self,
        image_embeddings: Float[Array, "H W D"],
        image_pe: Float[Array, "H W D"],
        prompt: PromptEmbeddings,
    ) -> Attended:
        """Runs the transformer over [IoU token, mask tokens, HQ token, prompt tokens] and the
        picture, and predicts the masks' IoUs."""
        image = image_embeddings.astype(self.dtype) + prompt.dense
        flat = (-1, image.shape[-1])

        def transformer(*tokens: Any) -> tuple[Array, Array]:
            positions = image_pe.astype(self.dtype).reshape(flat)
            queries, keys = self.transformer(image.reshape(flat), positions, *tokens)
            return queries, keys.reshape(image.shape)

        return self._attend(transformer, prompt)

    def share(
        self,
        image_embeddings: Float[Array, "H W D"],
        image_pe: Float[Array, "H W D"],
        dense: Float[Array, "H W D"],
    ) -> SharedPicture:
        """For `attend_shared`, where all prompts have the same `dense` embedding."""
        return share_picture(
            self.transformer, image_embeddings.astype(self.dtype) + dense,
            image_pe.astype(self.dtype), self.output_upscaling.upscale1.matrix(),
        )  # fmt: skip

    def attend_shared(self, shared: SharedPicture, prompt: PromptEmbeddings) -> Attended:
        """`attend`, for many prompts of one picture; the prompt's own `dense` is not looked at."""
        return self._attend(functools.partial(attend, self.transformer, shared), prompt)

    def _attend(
        self, transformer: Callable[..., tuple[Array, Any]], prompt: PromptEmbeddings
    ) -> Attended:
        own = [self.iou_token[...], self.mask_tokens[...]]
        if self.hq is not None:
            own.append(self.hq.token[...])
        output_tokens = jnp.concatenate(own)
        tokens = jnp.concatenate([output_tokens.astype(self.dtype), prompt.sparse])
        valid = jnp.concatenate([jnp.ones(len(output_tokens), bool), prompt.valid])
        tokens, image = transformer(tokens, valid, len(output_tokens))
        ious = at_least_float32(self.iou_prediction_head(tokens[0]))
        attended = Attended(tokens, image, ious)
        if self.hq is None:
            return attended
        chosen = jnp.stack([jnp.zeros((), jnp.int32), 1 + jnp.argmax(ious[1:]).astype(jnp.int32)])
        return attended._replace(iou_predictions=ious[chosen], chosen=chosen)

    def masks(
        self,
        attended: Attended,
        hq_features: Float[Array, "h w E"] | None = None,
        *,
        hq_token_only: bool = False,
        shared: SharedPicture | None = None,
    ) -> Float[Array, "M h w"]:
        """Logits of the masks whose IoUs `attended` has; with `SamConfig.hq` of `hq_features` too
        (`HqFusion`), and with `shared` if `attend_shared` made it."""
        tokens, image, _, chosen = attended
        upscaling = self.output_upscaling
        if isinstance(image, Factored):
            assert shared is not None
            first = upscaling.upscale1.of_product(
                product(shared, image, upscaling.upscale1.matrix())
            )
        else:
            first = upscaling.upscale1(image)
        upscaled = gelu(upscaling.after_first(first))
        hyper_in = jnp.stack(
            [mlp(tokens[1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        )
        if chosen is not None:
            hyper_in = hyper_in[chosen]
        masks = float32_dot(jnp.matmul, upscaled, hyper_in.T)
        rows, columns = (4 * n for n in upscaled.shape[:2])
        masks = masks.transpose(6, 0, 2, 4, 1, 3, 5).reshape(-1, rows, columns)
        if self.hq is None:
            return masks
        assert hq_features is not None
        token = tokens[1 + len(self.output_hypernetworks_mlps)]
        fine = self.hq.mask(in_order(upscaled), token, hq_features)
        return jnp.broadcast_to(fine, masks.shape) if hq_token_only else masks + fine
