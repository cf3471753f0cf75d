"""`samjax models`: what can be loaded by name, and what of it is here."""

import argparse
from typing import Any

from samjax.cli.common import size_text


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "models",
        parents=[shared],
        help="models that can be loaded by name",
        description="Lists the published models that can be named wherever a model is asked for: "
        "their files' sizes and licences, and what is in the cache folder already.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from samjax.cache import cache_folder
    from samjax.fetch import describe_checksum, parts_on_disk
    from samjax.zoo import PUBLISHED

    lines = [("NAME", "ALSO", "PUBLISHER", "LICENCE", "DOWNLOAD", "CHECKSUM", "HERE"),
             ("nano", "", "samjax", "Apache-2.0", "", "", "with samjax")]  # fmt: skip
    for model in PUBLISHED:
        kept, waiting = parts_on_disk(model.name)
        here = f"converted, {size_text(kept)}" if kept else ""
        here = here or (f"{size_text(waiting)} downloaded" if waiting else "no")
        size = size_text(model.file.size) if model.file and model.file.size else "?"
        lines.append((
            model.name, ", ".join(model.names[1:]), model.publisher, model.licence or "?", size,
            describe_checksum(model), here,
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(f"\nA model is downloaded when it is first used, and kept in {cache_folder()}")
    print("(SAMJAX_CACHE). hf://OWNER/MODEL takes any Segment Anything model of Hugging Face.")
    return 0
