"""The output folder of a run: what made it, and which pictures each of its shards holds.

    OUTPUT/
      settings.json       what results depend on; a run that goes on compares it with its own
      plan.jsonl          a line for each shard: its pictures and where they are
      shards/00000/       one shard, whole or not there (`samjax.batch.shards`)
      coco.json           all masks, from all shards
      errors.csv          what could not be done, and why
      report.html         the run, to look at
      log/                progress of each process, for people and for other processes

Shards are only ever added to the plan. What a shard holds follows from its line there and from the
settings, and from nothing else: not from how many devices or processes there are, when a run was
stopped, or who did it. So any process may do any shard, twice if need be, and it is the same bytes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from samjax.batch.items import Item, Listing, Problem
from samjax.images import write_json
from samjax.naming import next_folder
from samjax.writing import check_writable, differing_settings, write_beside

SETTINGS, PLAN, SHARDS, LOG = "settings.json", "plan.jsonl", "shards", "log"


class Shard(NamedTuple):
    """`first` is the number of its first picture among all."""

    number: int
    first: int
    items: list[Item]


def open_folder(folder: Path, settings: Mapping[str, Any], *, new_output: bool = False) -> Path:
    """The folder for results of these settings: `folder`, made if need be, with settings.json.

    Where `folder` is of other settings, `new_output` gives the first of `folder`2, `folder`3, ...
    that is free or of the same ones. Raises `ValueError` that names what differs, `FileExistsError`
    for a folder that is not ours, `OSError` for one that cannot be written.
    """
    check_writable(folder)
    wrong = _unusable(folder, settings)
    if wrong and not new_output:
        raise wrong
    number = 1
    chosen = folder
    while wrong:
        number += 1
        chosen = folder.with_name(f"{folder.name}{number}")
        if not chosen.exists():
            chosen = next_folder(folder.parent, chosen.name)
        check_writable(chosen)
        wrong = _unusable(chosen, settings)
    if not (chosen / SETTINGS).exists():
        write_json(chosen / SETTINGS, {"kind": "samjax batch", "settings": dict(settings)})
    (chosen / SHARDS).mkdir(exist_ok=True)
    (chosen / LOG).mkdir(exist_ok=True)
    return chosen


def extend_plan(folder: Path, listing: Listing, shard_size: int) -> list[Problem]:
    """Adds shards for pictures that are in none, and returns what is wrong with planned ones.

    A picture that has moved is read where it is now. One that is planned and is no longer there
    stays planned: the shard says that it cannot be read, unless it has been done.
    """
    shards = list(read_plan(folder))
    now = {item.key: item for item in listing.items}
    known = {item.key for shard in shards for item in shard.items}
    moved = [s._replace(items=[now.get(item.key, item) for item in s.items]) for s in shards]
    fresh = [item for item in listing.items if item.key not in known]
    first = sum(len(shard.items) for shard in shards)
    added = [
        Shard(len(shards) + i, first + start, fresh[start : start + shard_size])
        for i, start in enumerate(range(0, len(fresh), shard_size))
    ]
    if added or moved != shards:
        _write_plan(folder, moved + added)
    return listing.problems


def read_plan(folder: Path) -> Iterator[Shard]:
    """The shards, in order. Raises `ValueError` for a damaged line."""
    path = folder / PLAN
    if not path.exists():
        return
    first = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            try:
                content = json.loads(line)
                items = [Item(*row) for row in content["pictures"]]
                assert content["shard"] == number
            except (ValueError, TypeError, KeyError, AssertionError):
                raise ValueError(
                    f"{path}, line {number + 1}, is damaged. Put the file back as it was, or begin "
                    "anew in another folder."
                ) from None
            yield Shard(number, first, items)
            first += len(items)


def shard_folder(folder: Path, number: int) -> Path:
    return folder / SHARDS / f"{number:05d}"


def _write_plan(folder: Path, shards: Sequence[Shard]) -> None:
    with write_beside(folder / PLAN) as staged, staged.open("w", encoding="utf-8") as file:
        for shard in shards:
            line = {"shard": shard.number, "pictures": [list(item) for item in shard.items]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _unusable(folder: Path, settings: Mapping[str, Any]) -> Exception | None:
    entries = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    if not entries:
        return None
    try:
        content = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        assert content["kind"] == "samjax batch"
        earlier = dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        return FileExistsError(
            f"the output folder {folder} has files in it that are not of samjax batch, such as "
            f"{entries[0]}; choose another"
        )
    told = differing_settings(earlier, json.loads(json.dumps(settings)))
    if not told:
        return None
    return ValueError(
        f"{folder} has results of other settings: {told}. Use the same ones, another output "
        "folder, or --new-output (new_output=True)."
    )
