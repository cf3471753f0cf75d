"""`samjax batch`: large collections of pictures on all devices of any number of hosts."""

import argparse
import sys
import time
from typing import Any

from samjax.cli.common import add_model, add_processes, is_distributed, load_model, number
from samjax.cli.everything import CARRIED, GENERATOR_ARGUMENTS


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "batch",
        parents=[shared],
        help="collections of pictures, on many devices and hosts",
        description="Segments collections of pictures in shards, on all devices of any number of "
        "hosts. Given again, the command goes on where it was stopped; pictures that have been "
        "added are done too.",
    )
    parser.add_argument(
        "source", nargs="+", metavar="SOURCE",
        help="a folder (with all in it), a glob, a list of paths (.txt), a tar in WebDataset's "
        "form, an ArrayRecord file, or these in a bucket (gs://, s3://, az://)",
    )  # fmt: skip
    parser.add_argument("output", metavar="OUTPUT", help="folder for the results")
    add_model(parser)
    parser.add_argument(
        "--mode", default="everything", choices=("everything", "boxes", "points", "embeddings"),
        help="what is done to each picture (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", metavar="FILE", help="boxes or points: a COCO file, or Parquet"
    )
    parser.add_argument(
        "--formats", nargs="+", default=["sa1b", "coco"], choices=("sa1b", "coco", "parquet"),
        metavar="FORMAT",
        help="of sa1b (a JSON file for each picture), coco and parquet (default: sa1b coco)",
    )  # fmt: skip
    parser.add_argument("--overlays", action="store_true", help="draw the masks over the pictures")
    parser.add_argument(
        "--new-output", action="store_true",
        help="where OUTPUT has results of other settings, take OUTPUT2 and so on",
    )  # fmt: skip
    parser.add_argument(
        "--retry-errors", action="store_true", help="try pictures again that could not be done"
    )
    machine = parser.add_argument_group("how the machine is used")
    machine.add_argument(
        "--weights", default="replicated", choices=("replicated", "sharded"),
        help="on each device, or spread over the devices of a host (default: %(default)s)",
    )  # fmt: skip
    machine.add_argument(
        "--batch", type=int,
        help="pictures that go through the model together, but in mode everything (default: 1 on "
        "the CPU, 8 elsewhere)",
    )  # fmt: skip
    machine.add_argument(
        "--shard-size", type=int, default=64, help="pictures in a shard (default: %(default)s)"
    )
    machine.add_argument(
        "--workers", type=int, default=0,
        help="processes that read pictures (default: threads of this one)",
    )  # fmt: skip
    hosts = add_processes(parser, "the work")
    hosts.add_argument(
        "--host-timeout", type=float, default=60.0, metavar="SECONDS",
        help="without a sign of life, after which others do a process's work (default: 60)",
    )  # fmt: skip
    group = parser.add_argument_group("how masks are found, in mode everything")
    for name, (default, text) in GENERATOR_ARGUMENTS.items():
        usual = f"the model's own, or {default:.4g}" if name in CARRIED else f"{default:.4g}"
        group.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), help=f"{text} (default: {usual})"
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from samjax import batch

    given = {name: getattr(args, name) for name in GENERATOR_ARGUMENTS}
    started = time.monotonic()
    distributed = is_distributed(args)
    done = batch.run(
        args.source, args.output, model=args.model if distributed else load_model(args.model),
        mode=args.mode, prompts=args.prompts, formats=args.formats, overlays=args.overlays,
        precision=args.precision, weights=args.weights, batch=args.batch,
        shard_size=args.shard_size, workers=args.workers, distributed=distributed,
        coordinator=args.coordinator, num_processes=args.num_processes, process_id=args.process_id,
        host_timeout=args.host_timeout, retry_errors=args.retry_errors,
        new_output=args.new_output,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    print(
        f"{number(done.pictures, 'picture')} ({done.done_now} now), "
        f"{number(done.masks, 'mask')}, {time.monotonic() - started:.1f} s, in {done.folder}"
    )
    if done.errors:
        print(
            f"samjax: {number(len(done.errors), 'picture')} not done; the reasons are in "
            f"{done.folder / 'errors.csv'}",
            file=sys.stderr,
        )
    return 1 if done.errors else 0
