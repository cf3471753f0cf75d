"""Tokens and picture to masks and their quality (appendix A; reference: `MaskDecoder`)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from samjax.models.config import SamConfig
from samjax.models.layers import LayerNorm, UpscaleTwice, at_least_float32, gelu, linear
from samjax.models.transformer import TwoWayTransformer
from samjax.types import Predictions, PromptEmbeddings


class MaskDecoder(nnx.Module):
    """Decodes the masks of one prompt; use `jax.vmap` for many."""

    def __init__(self, cfg: SamConfig, *, rngs: nnx.Rngs):
        width = cfg.embed_dim
        init = nnx.initializers.normal(1.0)
        self.transformer = TwoWayTransformer(cfg, rngs=rngs)
        self.iou_token = nnx.Param(init(rngs.params(), (1, width), jnp.float32))
        self.mask_tokens = nnx.Param(init(rngs.params(), (cfg.num_mask_tokens, width), jnp.float32))
        self.output_upscaling = OutputUpscaling(cfg, rngs=rngs)
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
        self.dtype = cfg.dtype

    def __call__(
        self,
        image_embeddings: Float[Array, "H W D"],
        image_pe: Float[Array, "H W D"],
        prompt: PromptEmbeddings,
    ) -> Predictions:
        """All of the prompt's masks: the single one first, then the multimask outputs.

        Which of them count is the caller's choice: `Predictions.select`.
        """
        tokens, image = self.attend(image_embeddings, image_pe, prompt)
        return Predictions(self.masks(tokens, image), self.iou_predictions(tokens))

    def attend(
        self,
        image_embeddings: Float[Array, "H W D"],
        image_pe: Float[Array, "H W D"],
        prompt: PromptEmbeddings,
    ) -> tuple[Float[Array, "T D"], Float[Array, "H W D"]]:
        """Runs the transformer over [IoU token, mask tokens, prompt tokens] and the picture."""
        output_tokens = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])
        tokens = jnp.concatenate([output_tokens.astype(self.dtype), prompt.sparse])
        valid = jnp.concatenate([jnp.ones(len(output_tokens), bool), prompt.valid])
        image = image_embeddings.astype(self.dtype) + prompt.dense
        flat = (-1, image.shape[-1])
        tokens, keys = self.transformer(
            image.reshape(flat), image_pe.astype(self.dtype).reshape(flat), tokens, valid
        )
        return tokens, keys.reshape(image.shape)

    def masks(
        self, tokens: Float[Array, "T D"], image: Float[Array, "H W D"]
    ) -> Float[Array, "M h w"]:
        upscaled = self.output_upscaling(image)
        hyper_in = jnp.stack(
            [mlp(tokens[1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        )
        masks = at_least_float32(upscaled @ hyper_in.T)
        rows, columns = (4 * n for n in image.shape[:2])
        return masks.transpose(6, 0, 2, 4, 1, 3, 5).reshape(-1, rows, columns)

    def iou_predictions(self, tokens: Float[Array, "T D"]) -> Float[Array, "M"]:
        return at_least_float32(self.iou_prediction_head(tokens[0]))


class OutputUpscaling(nnx.Module):
    """The picture at four times the side and an eighth of the channels.

    The sixteen pixels that become of one stay together on axes of their own, (row, column) twice:
    the few masks that are made of them are cheaper to bring into order than all channels.
    """

    def __init__(self, cfg: SamConfig, *, rngs: nnx.Rngs):
        kw: dict[str, Any] = dict(dtype=cfg.dtype, rngs=rngs)
        width = cfg.embed_dim
        self.upscale1 = UpscaleTwice(width, width // 4, **kw)
        self.norm1 = LayerNorm(width // 4, epsilon=1e-6, dtype=cfg.dtype)
        self.upscale2 = UpscaleTwice(width // 4, width // 8, **kw)

    def __call__(self, x: Float[Array, "H W D"]) -> Float[Array, "H W 2 2 2 2 E"]:
        return gelu(self.upscale2(gelu(self.norm1(self.upscale1(x)))))


class MlpHead(nnx.Module):
    """Linear layers with ReLU between them (reference: `mask_decoder.MLP`)."""

    def __init__(
        self, d_in: int, hidden: int, d_out: int, depth: int, *, dtype, rngs: nnx.Rngs
    ):  # fmt: skip
        sizes = [d_in, *[hidden] * (depth - 1), d_out]
        self.layers = nnx.List(
            [linear(a, b, dtype=dtype, rngs=rngs) for a, b in zip(sizes, sizes[1:], strict=False)]
        )

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L E"]:
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)
