"""How torch lays out what several formats have, as rows and transforms for their tables.

Torch keeps linear weights as (out, in), convolutions as (out, in, row, column) and transposed
convolutions as (in, out, row, column). A transposed convolution of stride 2 with a 2x2 kernel
needs no flip here, since `UpscaleTwice` writes each tap where torch does.
"""

from samjax.convert.table import Row, Transform, permute

LINEAR = permute(1, 0)
CONV = permute(2, 3, 1, 0)
CONV_TRANSPOSED = permute(0, 2, 3, 1)


def layer(source: str, target: str, kernel: Transform) -> list[Row]:
    """A layer with a bias."""
    return [
        Row(f"{source}.weight", f"{target}.kernel", kernel),
        Row(f"{source}.bias", f"{target}.bias"),
    ]


def norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}.scale"), Row(f"{source}.bias", f"{target}.bias")]
