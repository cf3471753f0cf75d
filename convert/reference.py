"""The public torch packages' models built from a config, to compare with."""

import functools
import importlib
import warnings
from typing import TYPE_CHECKING, Any

from samjax.models.config import ImageEncoderViTConfig, SamConfig, TinyViTConfig

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam as ReferenceSam

PUBLISHED_GRID = 64
"""Side of the only embedding that MobileSAM's encoder is written for, and HQ-SAM's copy of it."""


def build_reference(config: SamConfig) -> "ReferenceSam":
    """Meta's `Sam` of the same architecture, or HQ-SAM's or MobileSAM's, with its own initial
    weights, float32, on the CPU.

    TinyViT's attention adds a copy of its biases that it makes in `eval()`: call that again after
    the weights are changed. Raises `ImportError` that says what to install where the package is
    missing, and `ValueError` for an image encoder that no package has.
    """
    encoder = config.image_encoder
    if not isinstance(encoder, ImageEncoderViTConfig | TinyViTConfig):
        raise ValueError(
            "Meta's, HQ-SAM's and MobileSAM's packages have ViT and TinyViT image encoders; there "
            f"is no original to compare a model with an {type(encoder).__name__} to."
        )
    if config.hq:
        modeling = _modeling("segment_anything_hq", "HQ-SAM's package", "segment-anything-hq timm")
    elif isinstance(encoder, TinyViTConfig):
        modeling = _modeling("mobile_sam", "MobileSAM's package", "mobilesam-mirror timm")
    else:
        modeling = _modeling("segment_anything", "Meta's package", "segment-anything")
    if isinstance(encoder, TinyViTConfig):
        image_encoder = _tiny_vit(modeling, encoder, hq=config.hq)
    else:
        image_encoder = _vit(modeling, encoder)
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=config.embed_dim,
        image_embedding_size=(encoder.grid_size, encoder.grid_size),
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
            importlib.import_module(package)
            return importlib.import_module(f"{package}.modeling")
    except ImportError as error:
        raise ImportError(
            f"Comparing with the original needs {whose}, which is not installed here "
            f"({error}): pip install {wheels} torch torchvision"
        ) from error


def _vit(modeling: Any, encoder: ImageEncoderViTConfig) -> "torch.nn.Module":
    import torch

    return modeling.ImageEncoderViT(
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


def _ratio(width: int, mlp_width: int) -> float:
    """What `int(width * ratio)` makes `mlp_width` again; the quotient itself may round below."""
    return (mlp_width + 0.5) / width


def _tiny_vit(modeling: Any, encoder: TinyViTConfig, *, hq: bool) -> "torch.nn.Module":
    """MobileSAM's, or HQ-SAM's that also hands out what leaves the second stage.

    Both know by its width where a merge keeps the grid, and are written for pictures of 1024
    pixels: for others their own layers are called here.
    """
    import torch

    keep_the_grid = [width in (320, 448, 576) for width in encoder.widths[1:]]
    if keep_the_grid != [False, False, True] or encoder.out_channels != 256:
        raise ValueError(
            "MobileSAM's package and HQ-SAM's have TinyViTs whose last stage alone is 320, 448 or "
            "576 channels wide, and embeddings of 256; there is no original to compare "
            f"{encoder} to."
        )

    class AnySize(modeling.TinyViT):
        def forward_features(self, x: torch.Tensor) -> Any:
            x = self.patch_embed(x)
            grids = []
            for stage in self.layers:
                x = stage(x)
                grids.append(x.unflatten(1, (int(x.shape[1] ** 0.5), -1)))
            embeddings = self.neck(grids[-1].permute(0, 3, 1, 2))
            return (embeddings, [grids[1]]) if hq else embeddings

    published = encoder.grid_size == PUBLISHED_GRID
    return (modeling.TinyViT if published else AnySize)(
        img_size=encoder.image_size,
        num_classes=encoder.num_classes,
        embed_dims=list(encoder.widths),
        depths=list(encoder.depths),
        num_heads=[1, *encoder.num_heads],
        window_sizes=[1, *encoder.window_sizes],
        mlp_ratio=float(encoder.mlp_ratio),
        drop_path_rate=0.0,
        mbconv_expand_ratio=float(encoder.expansion),
    )
