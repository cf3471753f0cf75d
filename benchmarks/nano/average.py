"""The mean of two models' parameters, such as that of one before and after a stage of training.

    python -m benchmarks.nano.average A B TARGET

On the way between a model and what fine-tuning on other pictures made of it often lies one that is
better than either (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import samjax
from samjax.checkpoint import Model, save_checkpoint
from samjax.models.params import flatten, unflatten


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("target", type=Path)
    args = parser.parse_args(argv)
    mean = average(samjax.load(args.first), samjax.load(args.second))
    save_checkpoint(args.target, mean, overwrite=True)
    print(args.target)


def average(first: Model, second: Model) -> Model:
    """In float32. Raises `ValueError` for models of two architectures."""
    if first.config != second.config:
        raise ValueError("the two models have different architectures; nothing to average")
    ours, theirs = (flatten(model.astype("float32").params) for model in (first, second))
    leaves = {
        name: np.asarray((np.asarray(x) + np.asarray(theirs[name])) / 2) for name, x in ours.items()
    }
    return Model(unflatten(leaves), second.config, second.everything)


if __name__ == "__main__":
    main()
