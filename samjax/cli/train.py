"""`samjax train`: fine-tunes a model on annotated pictures."""

import argparse
import importlib
from typing import Any

from samjax.cli.common import add_processes, is_distributed

PARTS = ("all", "decoder", "hq", "decoder+neck", "lora", "lora+decoder")

_FLAGS: dict[str, tuple[str, type, str]] = {
    "model": ("model", str, "what to start from: a checkpoint, or nano (default: nano)"),
    "output": ("output", str, "folder for checkpoints, log, pictures and the trained model"),
    "steps": ("train.total_steps", int, "updates to make"),
    "batch_size": ("batch_size", int, "pictures in a step"),
    "learning_rate": ("train.learning_rate", float, "of AdamW, after warm-up"),
    "precision": (
        "precision",
        str,
        "what steps compute in: float32, bfloat16, float16 or int8 (default: the model's)",
    ),
    "seed": ("seed", int, "of all that is random"),
}


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "train",
        parents=[shared],
        help="fine-tune a model on annotated pictures",
        description="Trains by simulated clicks and boxes, as the Segment Anything paper does. "
        "Settings come from a TOML file, from flags, or both; flags win. The same command goes on "
        "with a run that was stopped or killed.",
    )
    parser.add_argument("settings", nargs="?", metavar="FILE", help="a TOML file of settings")
    for flag, (name, kind, text) in _FLAGS.items():
        parser.add_argument(
            f"--{flag.replace('_', '-')}", type=kind, metavar=kind.__name__.upper(),
            help=f"{text} [{name}]",
        )  # fmt: skip
    parser.add_argument("--trained", choices=PARTS, help="what is trained [train.trained]")
    parser.add_argument(
        "--data", nargs="+", metavar=("PATH", "IMAGES"), action="append",
        help="a COCO file and, unless it is `images` beside it, the folder of its pictures; a "
        "folder in SA-1B's layout; or a folder with images and masks. Can be given again [data]",
    )  # fmt: skip
    parser.add_argument(
        "--validation", nargs="+", metavar=("PATH", "IMAGES"), action="append",
        help="likewise, for the evaluations [validation]",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="others",
        help="any other setting, such as train.weight_decay=0.05 or augment=false",
    )  # fmt: skip
    add_processes(parser, "a step's pictures")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    _check_libraries()
    from samjax.train.run_config import RunConfig, read_toml, with_setting

    values = read_toml(args.settings) if args.settings else {}
    for flag, (name, _, _) in _FLAGS.items():
        value = getattr(args, flag)
        if value is not None:
            text = f"'{value}'" if isinstance(value, str) else value
            values = with_setting(values, f"{name}={text}")
    if args.trained:
        values = with_setting(values, f"train.trained='{args.trained}'")
    for name in ("data", "validation"):
        given = getattr(args, name)
        if given is not None:
            values[name] = [_data(name, paths) for paths in given]
    for setting in args.others:
        values = with_setting(values, setting)
    for name in ("data", "output"):
        if not values.get(name):
            raise ValueError(f"--{name} is missing, and no settings file names one")
    settings = RunConfig.from_dict(values)

    if is_distributed(args):
        from samjax.processes import join

        join(args.coordinator, args.num_processes, args.process_id)

    from samjax.train.loop import run_training

    model = run_training(settings)
    print(model)
    return 0


def _check_libraries() -> None:
    """At once, and not when the first evaluation draws its curves."""
    for name in ("grain", "optax", "matplotlib"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"training needs {name}: pip install 'samjax[train]'") from error


def _data(flag: str, paths: list[str]) -> dict[str, str]:
    if len(paths) > 2:
        raise ValueError(f"--{flag} takes a path and a folder of pictures, not {paths}")
    return dict(zip(("path", "images"), paths, strict=False))
