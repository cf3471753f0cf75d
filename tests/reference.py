"""Meta's models with weights to compare with: random ones, and the trained prompt decoder's.

python tests/reference.py vit_b.pth    the checkpoint of the README's benchmarks
"""

import sys
from pathlib import Path

import pytest
import torch

from samjax.convert.reference import build_reference
from samjax.models import ImageEncoderViTConfig, SamConfig

SIZE_OF_TRAINED = 0.05

_TRANSPOSED = ("output_upscaling", "compress_vit_feat", "embedding_encoder")
"""Transposed convolutions, whose weights are (in, out, row, column)."""
_NO_EMBEDDINGS = ("embedding_encoder", "embedding_maskfeature")
"""Layers of HQ-SAM's with such a name."""

_REPOSITORY = Path(__file__).parents[1]
_WEIGHTS = Path("shared/weights/prompt_guided_mask_decoder.pt")


def random_reference(config: SamConfig, seed: int) -> torch.nn.Module:
    """Meta's `Sam`, HQ-SAM's or MobileSAM's, with every array drawn from `seed`.

    Weights keep the size of what passes through them; what is added is a tenth to one of it.
    """
    model = build_reference(config)
    generator = torch.Generator().manual_seed(seed)
    state_dict = {
        name: _random(name, tensor, generator) for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state_dict)
    return model.eval().requires_grad_(False)


def trained_reference(
    config: SamConfig, seed: int, *, embedding_scale: float = 1.0
) -> torch.nn.Module:
    """`random_reference` with the trained prompt encoder and mask decoder; only the ViT is random.

    With an `embedding_scale` of `SIZE_OF_TRAINED` the embedding is as small as those that the
    decoder was trained on; otherwise it drowns the prompts, logits are large and every mask is
    noise over the whole picture, which no suppression of duplicates leaves standing. What HQ-SAM
    has more stays random. Skips the test where the weights are not there. `config` needs the
    published decoder's sizes, as `trained_config` has.
    """
    model = random_reference(config, seed)
    for parameter in model.image_encoder.neck[3].parameters():
        parameter.mul_(embedding_scale)
    trained = torch.load(_find_weights(), weights_only=True, map_location="cpu")
    model.prompt_encoder.load_state_dict(trained["PromtEncoder"])
    model.mask_decoder.load_state_dict(trained["MaskDecoder"], strict=not config.hq)
    return model


def trained_config(image_size: int = 256, **changes) -> SamConfig:
    """A narrow ViT of two blocks before a decoder of the published size."""
    encoder = ImageEncoderViTConfig(
        image_size=image_size, width=32, depth=2, num_heads=2, mlp_width=64, window_size=5,
        global_layers=(1,),
    )  # fmt: skip
    return SamConfig(image_encoder=encoder, **changes)


def _find_weights() -> Path:
    for folder in (_REPOSITORY.parent, _REPOSITORY):
        if (folder / _WEIGHTS).is_file():
            return folder / _WEIGHTS
    pytest.skip(f"{_WEIGHTS.name} is not here")


def _random(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(like.shape, generator=generator)
    if name.endswith("num_batches_tracked"):
        return (1e5 * noise.abs()).to(like.dtype)
    if name.endswith("running_var"):
        return torch.exp(0.3 * noise)
    if name.endswith(("attention_biases", "running_mean")):
        return 0.5 * noise
    if "pos_embed" in name or "rel_pos" in name or name.endswith("bias"):
        return 0.1 * noise
    is_transposed = any(part in name for part in _TRANSPOSED)
    is_embedding = "embed" in name and not any(part in name for part in _NO_EMBEDDINGS)
    if "gaussian_matrix" in name or is_embedding or "token" in name.rsplit(".", 2)[-2]:
        return noise if like.ndim == 2 else noise / like[0].numel() ** 0.5
    if like.ndim == 1:
        return 1.0 + 0.1 * noise
    fan_in = like.shape[0] if is_transposed else like[0].numel()
    return noise / fan_in**0.5


if __name__ == "__main__":
    written = trained_reference(SamConfig.vit_b(), seed=0, embedding_scale=SIZE_OF_TRAINED)
    torch.save(written.state_dict(), sys.argv[1])
