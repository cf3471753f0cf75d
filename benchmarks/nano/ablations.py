"""What each ingredient of nano's training is worth, in short runs that differ in one thing.

    python -m benchmarks.nano.ablations DECODER --steps 120

Needs what `benchmarks.nano.prepare` writes. Every run is `stage1.toml` cut to a few steps, measured
on held-out pictures; rows are appended to `results/nano_ablations.csv`.
"""

import argparse
import csv
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import samjax
from benchmarks.harness import RESULTS
from benchmarks.nano.prepare import OUTPUT, START
from samjax.checkpoint import save_checkpoint
from samjax.convert.nano import initial_nano
from samjax.inference import init_params
from samjax.train.augment import Augmentation
from samjax.train.journal import read_journal
from samjax.train.loop import EVALUATIONS, LOG, PROTOCOLS, run_training
from samjax.train.run_config import RunConfig, read_toml

STAGE = Path(__file__).with_name("stage1.toml")


def as_trained(run: RunConfig) -> RunConfig:
    return run


def random_backbone(run: RunConfig) -> RunConfig:
    return run.replace(model=str(OUTPUT / "start-random"))


def random_decoder(run: RunConfig) -> RunConfig:
    return run.replace(model=str(OUTPUT / "start-random-decoder"))


def no_augmentation(run: RunConfig) -> RunConfig:
    """Every crop at the scale that the pictures are used at."""
    still = Augmentation(flip=0, scale=(2, 2), brightness=0, contrast=0, saturation=0, copy_paste=0)
    return run.replace(augmentation=still)


def few_pictures(run: RunConfig) -> RunConfig:
    """The 96 pictures of coco-train alone, a thirteenth."""
    return run.replace(data=tuple(data for data in run.data if "coco-train" in data.path))


def one_prompt(run: RunConfig) -> RunConfig:
    """One mask of a picture in a step and not eight."""
    return run.replace(num_objects=1)


VARIANTS: tuple[Callable[[RunConfig], RunConfig], ...] = (
    as_trained, random_backbone, random_decoder, no_augmentation, few_pictures, one_prompt,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    names = [variant.__name__ for variant in VARIANTS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("decoder", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--pictures", type=int, default=20, help="held-out pictures to measure on")
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    parser.add_argument("--results", type=Path, default=RESULTS / "nano_ablations.csv")
    args = parser.parse_args(argv)
    write_starts(args.decoder)
    stage = RunConfig.from_dict(read_toml(STAGE))
    short = stage.replace(
        train=dataclasses.replace(stage.train, total_steps=args.steps, warmup_steps=10),
        checkpoint_every=args.steps, evaluate_every=0, sample_pictures=0,
        validation_pictures=args.pictures,
    )  # fmt: skip
    for variant in VARIANTS:
        if variant.__name__ in args.variants:
            append(args.results, row_of(variant.__name__, variant(short)))


def write_starts(decoder: Path) -> None:
    """The untrained model with a random backbone, and with a random decoder."""
    start = initial_nano(decoder, 0, config=START)
    drawn = init_params(start.config, 1)
    encoder = {**start.params["image_encoder"], "backbone": drawn["image_encoder"]["backbone"]}
    for name, changed in (
        ("start-random", {"image_encoder": encoder}),
        ("start-random-decoder", {k: drawn[k] for k in ("prompt_encoder", "mask_decoder")}),
    ):
        model = samjax.checkpoint.Model({**start.params, **changed}, start.config)
        save_checkpoint(OUTPUT / name, model, overwrite=True)


def row_of(name: str, run: RunConfig) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        run_training(run.replace(output=folder))
        log = read_journal(Path(folder, LOG))
        found = read_journal(Path(folder, EVALUATIONS))[-1]
    return {
        "variant": name,
        "steps": run.train.total_steps,
        "minutes": round(log[-1]["seconds"] / 60, 1),
        "training_loss": round(sum(row["loss"] for row in log[-4:]) / len(log[-4:]), 4),
        **{protocol: round(found[protocol], 4) for protocol in PROTOCOLS},
        "held_out_pictures": run.validation_pictures,
    }


def append(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row)


if __name__ == "__main__":
    main()
