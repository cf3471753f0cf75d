"""The names of `efficientnet-lite-pytorch`, with blocks counted within their stage.

The package counts them through: `_blocks.3` is `_blocks.2.0` here, if the stages before it have
one block and two.
"""

from samjax.convert.key_maps.layouts import CONV, POINTWISE, batch_norm
from samjax.convert.table import Row, Table

_SOURCE, _TARGET = "_blocks.{i}.{j}", "stages.{i}.{j}"

EFFICIENTNET_LITE = Table(
    [
        Row("_conv_stem.weight", "stem.kernel", CONV),
        *batch_norm("_bn0", "stem_norm"),
        Row(f"{_SOURCE}._expand_conv.weight", f"{_TARGET}.expand.kernel", POINTWISE),
        *batch_norm(f"{_SOURCE}._bn0", f"{_TARGET}.expand_norm"),
        Row(f"{_SOURCE}._depthwise_conv.weight", f"{_TARGET}.depthwise.kernel", CONV),
        *batch_norm(f"{_SOURCE}._bn1", f"{_TARGET}.depthwise_norm"),
        Row(f"{_SOURCE}._project_conv.weight", f"{_TARGET}.project.kernel", POINTWISE),
        *batch_norm(f"{_SOURCE}._bn2", f"{_TARGET}.project_norm"),
    ]
)
