"""Gives a nano that was trained without them the features of strides 2 and 4, weighted by zeros.

    python -m benchmarks.nano.add_details nano-training/stage2/model nano-training/stage2-details

The model that is written predicts what the other one does; what is new in it can be trained.
"""

from collections.abc import Sequence

from benchmarks.nano.grow import grown, write
from samjax.checkpoint import Model


def main(argv: Sequence[str] | None = None) -> None:
    write(with_details, __doc__, argv)


def with_details(model: Model) -> Model:
    """In float32. Raises `ValueError` for a model without EfficientNet-Lite."""
    return grown(model, detail_strides=(2, 4))


if __name__ == "__main__":
    main()
