"""The public torch packages' models built from a config, to compare with."""

import functools
import importlib
import warnings
from typing import TYPE_CHECKING, Any

from samjax.models.config import ImageEncoderViTConfig, SamConfig

if TYPE_CHECKING:
    from segment_anything.modeling import Sam as ReferenceSam


def build_reference(config: SamConfig) -> "ReferenceSam":
    """Meta's `Sam` of the same architecture, or HQ-SAM's, with its own initial weights, float32, on
    the CPU.

    Raises `ImportError` that says what to install where the package is missing, and `ValueError`
    for an image encoder that no package has.
    """
    encoder = config.image_encoder
    if not isinstance(encoder, ImageEncoderViTConfig):
        raise ValueError(
            "Meta's package and HQ-SAM's are built with ViT image encoders only; there is no "
            f"original to compare a model with an {type(encoder).__name__} to."
        )
    if config.hq:
        modeling = _modeling("segment_anything_hq", "HQ-SAM's package", "segment-anything-hq timm")
    else:
        modeling = _modeling("segment_anything", "Meta's package", "segment-anything")
    import torch

    grid = (encoder.grid_size, encoder.grid_size)
    image_encoder = modeling.ImageEncoderViT(
        img_size=encoder.image_size,
        patch_size=encoder.patch_size,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.num_heads,
        mlp_ratio=_ratio(encoder.width, encoder.mlp_width),
        out_chans=encoder.out_channels,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=encoder.window_size,
        global_attn_indexes=encoder.global_layers,
    )
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=config.embed_dim,
        image_embedding_size=grid,
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=config.mask_channels,
    )
    transformer = modeling.TwoWayTransformer(
        depth=config.decoder_depth,
        embedding_dim=config.embed_dim,
        num_heads=config.decoder_heads,
        mlp_dim=config.decoder_mlp_width,
        attention_downsample_rate=config.attention_downsample_rate,
    )
    make, more = modeling.MaskDecoder, {}
    if config.hq:
        make, more = modeling.MaskDecoderHQ, {"vit_dim": encoder.early_width}
    mask_decoder = make(
        transformer_dim=config.embed_dim,
        transformer=transformer,
        num_multimask_outputs=config.num_multimask_outputs,
        iou_head_depth=config.iou_head_depth,
        iou_head_hidden_dim=config.iou_head_width,
        **more,
    )
    sam = modeling.Sam(
        image_encoder,
        prompt_encoder,
        mask_decoder,
        pixel_mean=list(config.pixel_mean),
        pixel_std=list(config.pixel_std),
    )
    sam.mask_threshold = config.mask_threshold
    return sam.eval()


def _modeling(package: str, whose: str, wheels: str) -> Any:
    try:
        importlib.import_module("torch")
        with warnings.catch_warnings():  # Of old names in timm, and of names given twice there.
            warnings.simplefilter("ignore")
            return importlib.import_module(package).modeling
    except ImportError as error:
        raise ImportError(
            f"Comparing with the original needs {whose}, which is not installed here ({error}): "
            f"pip install {wheels} torch torchvision"
        ) from error


def _ratio(width: int, mlp_width: int) -> float:
    """What `int(width * ratio)` makes `mlp_width` again; the quotient itself may round below."""
    return (mlp_width + 0.5) / width
