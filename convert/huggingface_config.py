"""Hugging Face's `config.json` and `preprocessor_config.json` from a config, and back."""

import math
from collections.abc import Mapping
from typing import Any

from samjax.models.config import ImageEncoderViTConfig, SamConfig

_ENCODER_EPSILON, _DECODER_EPSILON = 1e-6, 1e-5
_PIXELS = 255
"""Hugging Face normalizes pixels of 0 to 1."""

_VISION, _PROMPT, _DECODER = "vision_config", "prompt_encoder_config", "mask_decoder_config"


def config_to_json(config: SamConfig, dtype: str) -> dict[str, Any]:
    """Raises `ValueError` for an image encoder that `transformers.SamModel` does not have."""
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "torch_dtype": dtype,
        "initializer_range": 0.02,
        **_sections(config),
    }


def processor_to_json(config: SamConfig) -> dict[str, Any]:
    side, low_res = config.image_size, config.low_res_size
    return {
        "processor_class": "SamProcessor",
        "image_processor_type": "SamImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": side},
        "mask_size": {"longest_edge": low_res},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / _PIXELS,
        "do_normalize": True,
        "image_mean": [x / _PIXELS for x in config.pixel_mean],
        "image_std": [x / _PIXELS for x in config.pixel_std],
        "do_pad": True,
        "pad_size": {"height": side, "width": side},
        "mask_pad_size": {"height": low_res, "width": low_res},
    }


def read_config(
    values: Mapping[str, Any], processor: Mapping[str, Any], shown: SamConfig
) -> SamConfig:
    """`shown`, which the arrays' shapes show, with what only the files say.

    Raises `ValueError` that lists where `values` (of `config.json`) contradicts the arrays, or asks
    for something that samjax does not have.
    """
    decoder = values.get(_DECODER) or {}
    config = shown
    if heads := decoder.get("num_attention_heads"):
        config = config.replace(decoder_heads=heads)
    wrong = []
    for section, expected in _sections(config).items():
        found = values.get(section) or {}
        for name, value in expected.items():
            said = found.get(name, value)
            if name != "layer_norm_eps" and said is not None and said != value:
                wrong.append(f"{section}.{name} is {said!r}, and the arrays have {value!r}")
    if wrong:
        raise ValueError("config.json contradicts the arrays: " + "; ".join(wrong))
    return _with_pixels(config, processor.get("image_processor") or processor)


def _with_pixels(config: SamConfig, processor: Mapping[str, Any]) -> SamConfig:
    changes = {}
    for name, theirs in (("pixel_mean", "image_mean"), ("pixel_std", "image_std")):
        ours, values = getattr(config, name), processor.get(theirs)
        if values is None:
            continue
        found = tuple(_PIXELS * float(x) for x in values)
        if len(found) != 3:
            raise ValueError(f"{theirs} of its processor is {values}; expected three numbers.")
        if not all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(found, ours, strict=True)):
            changes[name] = found
    return config.replace(**changes) if changes else config


def _sections(config: SamConfig) -> dict[str, dict[str, Any]]:
    encoder = config.image_encoder
    if not isinstance(encoder, ImageEncoderViTConfig):
        raise ValueError(
            f"transformers.SamModel has a ViT as image encoder, not an {type(encoder).__name__}."
        )
    windows = len(encoder.global_layers) < encoder.depth
    return {
        _VISION: {
            "model_type": "sam_vision_model",
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.num_heads,
            "mlp_dim": encoder.mlp_width,
            "output_channels": encoder.out_channels,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "num_channels": 3,
            "num_pos_feats": config.embed_dim // 2,
            "scale": encoder.width // 2,
            "global_attn_indexes": list(encoder.global_layers),
            "hidden_act": "gelu",
            "layer_norm_eps": _ENCODER_EPSILON,
            "qkv_bias": True,
            "use_abs_pos": True,
            "use_rel_pos": True,
            **({"window_size": encoder.window_size} if windows else {}),
        },
        _PROMPT: {
            "model_type": "sam_prompt_encoder",
            "hidden_size": config.embed_dim,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "image_embedding_size": encoder.grid_size,
            "mask_input_channels": config.mask_channels,
            "num_point_embeddings": 4,
            "hidden_act": "gelu",
            "layer_norm_eps": _ENCODER_EPSILON,
        },
        _DECODER: {
            "model_type": "sam_mask_decoder",
            "hidden_size": config.embed_dim,
            "num_hidden_layers": config.decoder_depth,
            "num_attention_heads": config.decoder_heads,
            "mlp_dim": config.decoder_mlp_width,
            "attention_downsample_rate": config.attention_downsample_rate,
            "num_multimask_outputs": config.num_multimask_outputs,
            "iou_head_depth": config.iou_head_depth,
            "iou_head_hidden_dim": config.iou_head_width,
            "hidden_act": "relu",
            "layer_norm_eps": _DECODER_EPSILON,
        },
    }
