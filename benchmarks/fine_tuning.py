"""What a few minutes of training do: decoder alone, LoRA, and everything.

    python -m benchmarks.fine_tuning TRAINING.json HELD_OUT.json --images DIR

Trains nano (or --model) on one COCO file and measures the mean IoU of clicks and boxes on another,
before and after. Rows are appended to `results/fine_tuning.csv`.
"""

import argparse
import csv
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import samjax
from benchmarks.harness import RESULTS
from samjax.evaluate import evaluate
from samjax.models.params import flatten
from samjax.train.augment import Augmentation
from samjax.train.config import TrainConfig
from samjax.train.journal import read_journal
from samjax.train.loop import EVALUATIONS, LOG, PROTOCOLS, run_training
from samjax.train.run_config import DataConfig, RunConfig

RATES = {"decoder": 2e-4, "lora": 2e-3, "all": 1.5e-4}
"""Learning rates; LoRA's factors start at zero and take larger steps (Hu et al. 2021)."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("training")
    parser.add_argument("held_out")
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pictures", type=int, default=5, help="held-out pictures to measure on")
    parser.add_argument("--parts", nargs="+", default=list(RATES))
    parser.add_argument("--results", type=Path, default=RESULTS / "fine_tuning.csv")
    args = parser.parse_args(argv)
    held_out = DataConfig(path=args.held_out, images=args.images)
    predictor = samjax.SamPredictor(samjax.load(args.model))
    found = evaluate(predictor, held_out.open(), max_pictures=args.pictures, progress=True)
    before = {protocol: found.mean_iou(protocol) for protocol in PROTOCOLS}
    rows = [row_of("none", 0, 0.0, before, args)]
    for part in args.parts:
        rows.append(fine_tuned(part, held_out, args))
    new = not args.results.exists()
    with args.results.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


def fine_tuned(part: str, held_out: DataConfig, args: argparse.Namespace) -> dict[str, Any]:
    train = TrainConfig(
        trained=part, learning_rate=RATES[part], total_steps=args.steps, warmup_steps=5,
        decay="cosine", num_points=1, refine_within=0, refine_at_end=0, weight_decay=0.01,
        first_point_probability=0.75, ema_decay=0.95,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = RunConfig(
            data=(DataConfig(path=args.training, images=args.images),), validation=(held_out,),
            output=folder, model=args.model, batch_size=2, num_objects=24,
            train=train.replace(accumulate=2), augmentation=Augmentation(scale=(0.8, 1.25)),
            checkpoint_every=args.steps, evaluate_every=0, validation_pictures=args.pictures,
            sample_pictures=0,
        )  # fmt: skip
        run_training(run)
        seconds = read_journal(Path(folder, LOG))[-1]["seconds"]
        after = read_journal(Path(folder, EVALUATIONS))[-1]
    return row_of(part, args.steps, seconds, after, args)


def row_of(
    part: str, steps: int, seconds: float, ious: dict[str, float], args: argparse.Namespace
) -> dict[str, Any]:
    return {
        "trained": part,
        "steps": steps,
        "minutes": round(seconds / 60, 1),
        **{protocol: round(ious[protocol], 4) for protocol in PROTOCOLS},
        "model": args.model,
        "numbers_in_model": sum(
            np.size(x) for x in flatten(samjax.load(args.model).params).values()
        ),
        "held_out_pictures": args.pictures,
        "machine": platform.processor() or platform.machine(),
    }


if __name__ == "__main__":
    main()
