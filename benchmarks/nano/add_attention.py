"""Gives a nano that was trained without it attention over the whole picture, weighted by zeros.

    python -m benchmarks.nano.add_attention nano-training/average14_16 nano-training/attentive

The model that is written predicts what the other one does; what is new in it can be trained.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import samjax
from benchmarks.nano.add_details import grown
from samjax.checkpoint import Model, save_checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("target", type=Path)
    args = parser.parse_args(argv)
    save_checkpoint(args.target, with_attention(samjax.load(args.source)), overwrite=True)
    print(args.target)


def with_attention(model: Model) -> Model:
    """In float32. Raises `ValueError` for a model without EfficientNet-Lite."""
    return grown(model, neck_attention=True)


if __name__ == "__main__":
    main()
