"""Does the cost of a picture grow with their number? python -m benchmarks.batch_growth

`samjax batch` with 50, 200, 800 and 2,000 pictures of 64 pixels a side, a small model of random
numbers: what is measured is all that is not the model's work.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.batch_torture import SETTINGS, write_model, write_pictures
from benchmarks.harness import Measurement, record
from benchmarks.machine import ROOT

RUN = """
import sys
from samjax.cli import main
from benchmarks.harness import peak_mib
code = main()  # as the program itself, which keeps what it compiles
print(f"peak {peak_mib()}")
raise SystemExit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pictures", type=int, nargs="+", default=[50, 200, 800, 2000])
    args = parser.parse_args()
    measurements = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_model(work / "model")
        write_pictures(work / "first", 2)
        once(work, "first")  # compiles
        start_up, _ = once(work, "first", "again")
        for number in args.pictures:
            write_pictures(work / str(number), number)
            seconds, peak = once(work, str(number))
            each = (seconds - start_up) / number
            facts = {"pictures": number, "ms_each": f"{1000 * each:.1f}"}
            print(f"{number} pictures: {1000 * each:.1f} ms each, {peak:.0f} MiB", flush=True)
            measurements.append(Measurement("samjax", [seconds], seconds, peak, "", facts))
    record("batch_growth", "64 pixels", measurements)


def once(work: Path, pictures: str, out: str | None = None) -> tuple[float, float]:
    """Seconds of a whole process, and the most memory that it held, in MiB."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUN, "batch", str(work / pictures),
         str(work / f"{out or pictures}-out"), "--model", str(work / "model"), *SETTINGS],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    seconds = time.monotonic() - started
    return seconds, float(done.stdout.rpartition("peak ")[2])


if __name__ == "__main__":
    main()
