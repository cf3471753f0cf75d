"""The learning curves of all stages in one: `docs/nano-curves.png`, and the numbers in `results`.

    python -m benchmarks.nano.curves

Steps are counted from the first stage on.
"""

from pathlib import Path

from benchmarks.harness import RESULTS
from benchmarks.nano.prepare import OUTPUT
from samjax.train.journal import Journal, draw_curves, read_journal
from samjax.train.loop import EVALUATIONS, LOG

PICTURE = Path(__file__).parents[2] / "docs/nano-curves.png"


def main() -> None:
    folders = (path for path in OUTPUT.glob("stage*") if (path / LOG).exists())
    stages = sorted(folders, key=lambda path: int(path.name.removeprefix("stage")))
    joined = [join(stages, name, RESULTS / f"nano_{name}") for name in (LOG, EVALUATIONS)]
    draw_curves(PICTURE, *joined)
    print(PICTURE)


def join(stages: list[Path], name: str, path: Path) -> Journal:
    """One journal of what the stages wrote under a name, at `path`."""
    written = [(stage, read_journal(stage / name)) for stage in stages]
    columns = dict.fromkeys(column for _, rows in written for row in rows for column in row)
    if not columns:
        raise FileNotFoundError(f"no stage has written {name} to {OUTPUT}")
    path.unlink(missing_ok=True)
    journal = Journal(path, tuple(columns)[1:], step=0)
    start = 0
    for stage, rows in written:
        for row in rows:
            journal.add(start + int(row["step"]), {k: v for k, v in row.items() if k != "step"})
        start += int(read_journal(stage / LOG)[-1]["step"])
    return journal


if __name__ == "__main__":
    main()
