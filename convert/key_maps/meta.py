"""Meta's names, those of `segment_anything`'s state dicts (and of its published `.pth` files)."""

from samjax.convert.key_maps.layouts import CONV as _CONV
from samjax.convert.key_maps.layouts import CONV_TRANSPOSED as _CONV_TRANSPOSED
from samjax.convert.key_maps.layouts import LINEAR as _LINEAR
from samjax.convert.key_maps.layouts import layer as _layer
from samjax.convert.key_maps.layouts import norm as _norm
from samjax.convert.table import Row, Table

_ENCODER = "image_encoder"
_BLOCK = f"{_ENCODER}.blocks.{{i}}"

_IMAGE_ENCODER = [
    Row(f"{_ENCODER}.pos_embed", f"{_ENCODER}.pos_embed"),
    *_layer(f"{_ENCODER}.patch_embed.proj", f"{_ENCODER}.patch_embed", _CONV),
    *_norm(f"{_BLOCK}.norm1", f"{_BLOCK}.norm1"),
    Row(f"{_BLOCK}.attn.rel_pos_{{axis:h|w}}", f"{_BLOCK}.attn.rel_pos_{{axis}}"),
    *_layer(f"{_BLOCK}.attn.{{name:qkv|proj}}", f"{_BLOCK}.attn.{{name}}", _LINEAR),
    *_norm(f"{_BLOCK}.norm2", f"{_BLOCK}.norm2"),
    *_layer(f"{_BLOCK}.mlp.{{name:lin1|lin2}}", f"{_BLOCK}.mlp.{{name}}", _LINEAR),
    Row(f"{_ENCODER}.neck.0.weight", f"{_ENCODER}.neck.conv1.kernel", _CONV),
    *_norm(f"{_ENCODER}.neck.1", f"{_ENCODER}.neck.norm1"),
    Row(f"{_ENCODER}.neck.2.weight", f"{_ENCODER}.neck.conv2.kernel", _CONV),
    *_norm(f"{_ENCODER}.neck.3", f"{_ENCODER}.neck.norm2"),
]

_PROMPT = "prompt_encoder"
_DOWNSCALING = f"{_PROMPT}.mask_downscaling"

_PROMPT_ENCODER = [
    Row(
        f"{_PROMPT}.pe_layer.positional_encoding_gaussian_matrix",
        f"{_PROMPT}.pe_layer.gaussian_matrix",
    ),
    Row(f"{_PROMPT}.point_embeddings.{{i}}.weight", f"{_PROMPT}.point_embeddings.{{i}}"),
    Row(f"{_PROMPT}.not_a_point_embed.weight", f"{_PROMPT}.not_a_point_embed"),
    *_layer(f"{_DOWNSCALING}.0", f"{_DOWNSCALING}.conv1", _CONV),
    *_norm(f"{_DOWNSCALING}.1", f"{_DOWNSCALING}.norm1"),
    *_layer(f"{_DOWNSCALING}.3", f"{_DOWNSCALING}.conv2", _CONV),
    *_norm(f"{_DOWNSCALING}.4", f"{_DOWNSCALING}.norm2"),
    *_layer(f"{_DOWNSCALING}.6", f"{_DOWNSCALING}.conv3", _CONV),
    Row(f"{_PROMPT}.no_mask_embed.weight", f"{_PROMPT}.no_mask_embed"),
]


def _attention(name: str) -> list[Row]:
    projection = f"{name}.{{proj:q_proj|k_proj|v_proj|out_proj}}"
    return _layer(projection, f"{name}.{{proj}}", _LINEAR)


def _same_norm(name: str) -> list[Row]:
    return _norm(name, name)


_DECODER = "mask_decoder"
_TRANSFORMER = f"{_DECODER}.transformer"
_LAYER = f"{_TRANSFORMER}.layers.{{i}}"
_UPSCALING = f"{_DECODER}.output_upscaling"
_HYPERNETWORK = f"{_DECODER}.output_hypernetworks_mlps.{{i}}.layers.{{j}}"
_IOU_HEAD = f"{_DECODER}.iou_prediction_head.layers.{{i}}"

_MASK_DECODER = [
    *_attention(f"{_LAYER}.self_attn"),
    *_same_norm(f"{_LAYER}.norm1"),
    *_attention(f"{_LAYER}.cross_attn_token_to_image"),
    *_same_norm(f"{_LAYER}.norm2"),
    *_layer(f"{_LAYER}.mlp.{{name:lin1|lin2}}", f"{_LAYER}.mlp.{{name}}", _LINEAR),
    *_same_norm(f"{_LAYER}.norm3"),
    *_same_norm(f"{_LAYER}.norm4"),
    *_attention(f"{_LAYER}.cross_attn_image_to_token"),
    *_attention(f"{_TRANSFORMER}.final_attn_token_to_image"),
    *_same_norm(f"{_TRANSFORMER}.norm_final_attn"),
    Row(f"{_DECODER}.iou_token.weight", f"{_DECODER}.iou_token"),
    Row(f"{_DECODER}.mask_tokens.weight", f"{_DECODER}.mask_tokens"),
    *_layer(f"{_UPSCALING}.0", f"{_UPSCALING}.upscale1", _CONV_TRANSPOSED),
    *_norm(f"{_UPSCALING}.1", f"{_UPSCALING}.norm1"),
    *_layer(f"{_UPSCALING}.3", f"{_UPSCALING}.upscale2", _CONV_TRANSPOSED),
    *_layer(_HYPERNETWORK, _HYPERNETWORK, _LINEAR),
    *_layer(_IOU_HEAD, _IOU_HEAD, _LINEAR),
]

META = Table([*_IMAGE_ENCODER, *_PROMPT_ENCODER, *_MASK_DECODER])
