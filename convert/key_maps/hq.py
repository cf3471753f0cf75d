"""HQ-SAM's names, those of `segment_anything_hq`'s state dicts (and of its published files)."""

from samjax.convert.key_maps.layouts import CONV, CONV_TRANSPOSED, LINEAR, layer, norm
from samjax.convert.key_maps.meta import META
from samjax.convert.key_maps.mobile_sam import MOBILE_SAM
from samjax.convert.table import Row, Table

_THEIRS, _OURS = "mask_decoder", "mask_decoder.hq"


def _upscaling(source: str, target: str) -> list[Row]:
    return [
        *layer(f"{source}.0", f"{target}.upscale1", CONV_TRANSPOSED),
        *norm(f"{source}.1", f"{target}.norm1"),
        *layer(f"{source}.3", f"{target}.upscale2", CONV_TRANSPOSED),
    ]


HQ_ROWS = [
    Row(f"{_THEIRS}.hf_token.weight", f"{_OURS}.token"),
    *layer(f"{_THEIRS}.hf_mlp.layers.{{i}}", f"{_OURS}.mlp.layers.{{i}}", LINEAR),
    *_upscaling(f"{_THEIRS}.compress_vit_feat", f"{_OURS}.fusion.upscale_early"),
    *_upscaling(f"{_THEIRS}.embedding_encoder", f"{_OURS}.fusion.upscale_embedding"),
    *layer(f"{_THEIRS}.embedding_maskfeature.0", f"{_OURS}.mask_features.conv1", CONV),
    *norm(f"{_THEIRS}.embedding_maskfeature.1", f"{_OURS}.mask_features.norm1"),
    *layer(f"{_THEIRS}.embedding_maskfeature.3", f"{_OURS}.mask_features.conv2", CONV),
]
"""What its decoder has more than Meta's, whatever the image encoder."""

HQ = Table([*META.rows, *HQ_ROWS])
HQ_TINY_VIT = Table([*MOBILE_SAM.rows, *HQ_ROWS])
