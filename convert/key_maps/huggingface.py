"""Hugging Face's names, those of `transformers.SamModel`, an MLP's layers counted through.

There the first and the last layer of the decoder's MLPs have names of their own, `proj_in` and
`proj_out`, and the others are counted from 0: `counted_through` and `by_ends` go from the one way
to the other. One matrix, of the positional encoding, has two names, of which `transformers` writes
the first.
"""

import re
from collections.abc import Iterable

from samjax.convert.key_maps.layouts import CONV, CONV_TRANSPOSED, LINEAR, layer, norm
from samjax.convert.table import Row, Table

POSITIONAL = "shared_image_embedding.positional_embedding"
POSITIONAL_AGAIN = "prompt_encoder.shared_embedding.positional_embedding"

_ENCODER, _OURS = "vision_encoder", "image_encoder"
_BLOCK, _OUR_BLOCK = f"{_ENCODER}.layers.{{i}}", f"{_OURS}.blocks.{{i}}"

_IMAGE_ENCODER = [
    Row(f"{_ENCODER}.pos_embed", f"{_OURS}.pos_embed"),
    *layer(f"{_ENCODER}.patch_embed.projection", f"{_OURS}.patch_embed", CONV),
    *norm(f"{_BLOCK}.layer_norm1", f"{_OUR_BLOCK}.norm1"),
    Row(f"{_BLOCK}.attn.rel_pos_{{axis:h|w}}", f"{_OUR_BLOCK}.attn.rel_pos_{{axis}}"),
    *layer(f"{_BLOCK}.attn.{{name:qkv|proj}}", f"{_OUR_BLOCK}.attn.{{name}}", LINEAR),
    *norm(f"{_BLOCK}.layer_norm2", f"{_OUR_BLOCK}.norm2"),
    *layer(f"{_BLOCK}.mlp.{{name:lin1|lin2}}", f"{_OUR_BLOCK}.mlp.{{name}}", LINEAR),
    Row(f"{_ENCODER}.neck.conv1.weight", f"{_OURS}.neck.conv1.kernel", CONV),
    *norm(f"{_ENCODER}.neck.layer_norm1", f"{_OURS}.neck.norm1"),
    Row(f"{_ENCODER}.neck.conv2.weight", f"{_OURS}.neck.conv2.kernel", CONV),
    *norm(f"{_ENCODER}.neck.layer_norm2", f"{_OURS}.neck.norm2"),
]

_PROMPT = "prompt_encoder"
_MASK, _OUR_MASK = f"{_PROMPT}.mask_embed", f"{_PROMPT}.mask_downscaling"

_PROMPT_ENCODER = [
    *layer(f"{_MASK}.conv{{i:1|2|3}}", f"{_OUR_MASK}.conv{{i}}", CONV),
    *norm(f"{_MASK}.layer_norm{{i:1|2}}", f"{_OUR_MASK}.norm{{i}}"),
    Row(f"{_PROMPT}.no_mask_embed.weight", f"{_PROMPT}.no_mask_embed"),
    Row(f"{_PROMPT}.point_embed.{{i}}.weight", f"{_PROMPT}.point_embeddings.{{i}}"),
    Row(f"{_PROMPT}.not_a_point_embed.weight", f"{_PROMPT}.not_a_point_embed"),
]


def _attention(name: str) -> list[Row]:
    projection = f"{name}.{{proj:q_proj|k_proj|v_proj|out_proj}}"
    return layer(projection, f"{name}.{{proj}}", LINEAR)


_DECODER = "mask_decoder"
_TRANSFORMER = f"{_DECODER}.transformer"
_LAYER = f"{_TRANSFORMER}.layers.{{i}}"
_UPSCALING = f"{_DECODER}.output_upscaling"
_HYPERNETWORK = f"{_DECODER}.output_hypernetworks_mlps.{{i}}.layers.{{j}}"
_IOU_HEAD = f"{_DECODER}.iou_prediction_head.layers.{{i}}"

_MASK_DECODER = [
    Row(f"{_DECODER}.iou_token.weight", f"{_DECODER}.iou_token"),
    Row(f"{_DECODER}.mask_tokens.weight", f"{_DECODER}.mask_tokens"),
    *_attention(f"{_LAYER}.self_attn"),
    *norm(f"{_LAYER}.layer_norm{{n:1|2|3|4}}", f"{_LAYER}.norm{{n}}"),
    *_attention(f"{_LAYER}.cross_attn_token_to_image"),
    *layer(f"{_LAYER}.mlp.{{name:lin1|lin2}}", f"{_LAYER}.mlp.{{name}}", LINEAR),
    *_attention(f"{_LAYER}.cross_attn_image_to_token"),
    *_attention(f"{_TRANSFORMER}.final_attn_token_to_image"),
    *norm(f"{_TRANSFORMER}.layer_norm_final_attn", f"{_TRANSFORMER}.norm_final_attn"),
    *layer(f"{_DECODER}.upscale_conv1", f"{_UPSCALING}.upscale1", CONV_TRANSPOSED),
    *layer(f"{_DECODER}.upscale_conv2", f"{_UPSCALING}.upscale2", CONV_TRANSPOSED),
    *norm(f"{_DECODER}.upscale_layer_norm", f"{_UPSCALING}.norm1"),
    *layer(_HYPERNETWORK, _HYPERNETWORK, LINEAR),
    *layer(_IOU_HEAD, _IOU_HEAD, LINEAR),
]

HUGGINGFACE = Table(
    [
        Row(POSITIONAL, f"{_PROMPT}.pe_layer.gaussian_matrix"),
        *_IMAGE_ENCODER,
        *_PROMPT_ENCODER,
        *_MASK_DECODER,
    ]
)

_MLP = rf"({_DECODER}\.(?:iou_prediction_head|output_hypernetworks_mlps\.[0-9]+))"
_COUNTED = re.compile(rf"{_MLP}\.layers\.([0-9]+)\.(\w+)")
_END = re.compile(rf"{_MLP}\.proj_(in|out)\.(\w+)")


def counted_through(names: Iterable[str]) -> dict[str, str]:
    """The table's names by those of `transformers`, for all names of one model.

    MLPs without `proj_in` and `proj_out` are left as they are: other formats' names stay.
    """
    names = list(names)
    between = _counts(names)
    with_ends = {match[1] for name in names if (match := _END.fullmatch(name))}
    counted = {}
    for name in names:
        if match := _END.fullmatch(name):
            number = 0 if match[2] == "in" else between.get(match[1], 0) + 1
            counted[name] = f"{match[1]}.layers.{number}.{match[3]}"
        elif (match := _COUNTED.fullmatch(name)) and match[1] in with_ends:
            counted[name] = f"{match[1]}.layers.{int(match[2]) + 1}.{match[3]}"
        else:
            counted[name] = name
    return counted


def by_ends(names: Iterable[str]) -> dict[str, str]:
    """The names of `transformers` by the table's, for all names of one model.

    Raises `ValueError` for an MLP of a single layer, for which `transformers` has no name.
    """
    names = list(names)
    depths = _counts(names)
    ends = {}
    for name in names:
        match = _COUNTED.fullmatch(name)
        if match is None:
            ends[name] = name
            continue
        number, depth = int(match[2]), depths[match[1]]
        if depth == 1:
            raise ValueError(f"{name} is an MLP's only layer; transformers has two at least.")
        inner = {0: "proj_in", depth - 1: "proj_out"}.get(number, f"layers.{number - 1}")
        ends[name] = f"{match[1]}.{inner}.{match[3]}"
    return ends


def _counts(names: Iterable[str]) -> dict[str, int]:
    """One more than the highest number of a layer, by MLP."""
    counts: dict[str, int] = {}
    for name in names:
        if match := _COUNTED.fullmatch(name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts
