"""MobileSAM's names: Meta's, but for the image encoder.

Those of `mobile_sam`'s `vit_t` and of the published `mobile_sam.pt`. Every layer has rows of its
own, since the first differs from the others.
"""

from samjax.convert.key_maps.layouts import CONV, COUNT, LINEAR, POINTWISE, batch_norm, layer, norm
from samjax.convert.key_maps.meta import META
from samjax.convert.table import Row, Table, Transform

_ENCODER = "image_encoder"


def _conv_norm(source: str, target: str, kernel: Transform) -> list[Row]:
    return [
        Row(f"{source}.c.weight", f"{target}.conv.kernel", kernel),
        *batch_norm(f"{source}.bn", f"{target}.norm"),
        Row(f"{source}.bn.num_batches_tracked", f"{target}.norm.num_batches_tracked", COUNT),
    ]


def _conv_block(source: str, target: str) -> list[Row]:
    return [
        *_conv_norm(f"{source}.conv1", f"{target}.expand", POINTWISE),
        *_conv_norm(f"{source}.conv2", f"{target}.depthwise", CONV),
        *_conv_norm(f"{source}.conv3", f"{target}.project", POINTWISE),
    ]


def _attention_block(source: str, target: str) -> list[Row]:
    return [
        Row(f"{source}.attn.attention_biases", f"{target}.attn.attention_biases"),
        *norm(f"{source}.attn.norm", f"{target}.attn.norm"),
        *layer(f"{source}.attn.qkv", f"{target}.attn.qkv", LINEAR),
        *layer(f"{source}.attn.proj", f"{target}.attn.proj", LINEAR),
        *norm(f"{source}.mlp.norm", f"{target}.norm"),
        *layer(f"{source}.mlp.fc1", f"{target}.mlp.lin1", LINEAR),
        *layer(f"{source}.mlp.fc2", f"{target}.mlp.lin2", LINEAR),
        *_conv_norm(f"{source}.local_conv", f"{target}.local_conv", CONV),
    ]


def _merge(source: str, target: str) -> list[Row]:
    return [
        *_conv_norm(f"{source}.conv1", f"{target}.conv1", POINTWISE),
        *_conv_norm(f"{source}.conv2", f"{target}.conv2", CONV),
        *_conv_norm(f"{source}.conv3", f"{target}.conv3", POINTWISE),
    ]


def _stage(number: int) -> list[Row]:
    source, target = f"{_ENCODER}.layers.{number}", f"{_ENCODER}.stages.{number}"
    block = _attention_block if number else _conv_block
    rows = block(f"{source}.blocks.{{i}}", f"{target}.blocks.{{i}}")
    return rows if number == 3 else [*rows, *_merge(f"{source}.downsample", f"{target}.merge")]


_IMAGE_ENCODER = [
    *_conv_norm(f"{_ENCODER}.patch_embed.seq.0", f"{_ENCODER}.patch_embed.conv1", CONV),
    *_conv_norm(f"{_ENCODER}.patch_embed.seq.2", f"{_ENCODER}.patch_embed.conv2", CONV),
    *(row for number in range(4) for row in _stage(number)),
    Row(f"{_ENCODER}.norm_head.weight", f"{_ENCODER}.classifier.norm_scale"),
    Row(f"{_ENCODER}.norm_head.bias", f"{_ENCODER}.classifier.norm_bias"),
    *layer(f"{_ENCODER}.head", f"{_ENCODER}.classifier", LINEAR),
]

_METAS = [
    row
    for row in META.rows
    if row.source.startswith(f"{_ENCODER}.neck.") or not row.source.startswith(f"{_ENCODER}.")
]

MOBILE_SAM = Table([*_IMAGE_ENCODER, *_METAS])
