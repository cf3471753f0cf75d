"""Gives a nano that was trained without it attention over the whole picture, weighted by zeros.

    python -m benchmarks.nano.add_attention nano-training/average14_16 nano-training/attentive

The model that is written predicts what the other one does; what is new in it can be trained.
"""

from collections.abc import Sequence

from benchmarks.nano.grow import grown, write
from samjax.checkpoint import Model


def main(argv: Sequence[str] | None = None) -> None:
    write(with_attention, __doc__, argv)


def with_attention(model: Model) -> Model:
    """In float32. Raises `ValueError` for a model without EfficientNet-Lite."""
    return grown(model, neck_attention=True)


if __name__ == "__main__":
    main()
