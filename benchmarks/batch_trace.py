"""Are devices without work? python -m benchmarks.batch_trace PICTURES... [--devices 8]

`samjax.batch.run` with nano under JAX's profiler, from whose trace it is read when each device had
a program to run, from its first one to its last. Pictures are brought to one size, so that the run
before has compiled everything for every device.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import tracing
from benchmarks.harness import Measurement, record
from benchmarks.machine import ROOT

Interval = tuple[float, float]
SIZE = 640, 480


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--points-per-side", type=int, default=8)
    parser.add_argument("--trace", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trace:
        traced(args)
        return
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "benchmarks.batch_trace", *map(str, args.pictures),
                   "--points-per-side", str(args.points_per_side), "--trace", name]  # fmt: skip
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(args.devices)}
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        busy = busy_intervals(Path(name))
    measurements = []
    for device, programs in sorted(busy.items()):
        whole = (programs[-1][1] - programs[0][0]) / 1e9
        idle = 1 - sum(end - start for start, end in programs) / 1e9 / whole
        print(f"device {device}: {whole:.1f} s, {100 * idle:.1f} % without work")
        facts = {"idle_percent": f"{100 * idle:.1f}", "programs": len(programs)}
        measurements.append(Measurement(f"device {device}", [whole], whole, 0.0, "", facts))
    record("batch_trace", f"{args.devices} devices", measurements)


def traced(args: argparse.Namespace) -> None:
    from PIL import Image

    from samjax import batch, load

    model = load()
    options = dict(model=model, points_per_side=args.points_per_side, progress=False)
    with tempfile.TemporaryDirectory() as name:
        pictures = Path(name, "pictures")
        pictures.mkdir()
        for i, path in enumerate(args.pictures):
            with Image.open(path) as picture:
                picture.convert("RGB").resize(SIZE).save(pictures / f"{i:05d}.jpg")
        batch.run(pictures, f"{name}/compiled", **options)
        with tracing.traced(args.trace):
            batch.run(pictures, f"{name}/traced", **options)


def busy_intervals(folder: Path) -> dict[int, list[Interval]]:
    """Of each simulated device, when its programs ran, in nanoseconds, in order and apart."""
    runs: dict[tuple[int, int], Interval] = {}
    for event, stats in itertools.chain.from_iterable(tracing.operations(folder)):
        if "device_ordinal" not in stats:
            continue
        run = stats["device_ordinal"], stats["run_id"]
        start, end = runs.get(run, (event.start_ns, event.end_ns))
        runs[run] = min(start, event.start_ns), max(end, event.end_ns)
    busy: dict[int, list[Interval]] = {}
    for (device, _), (start, end) in sorted(runs.items(), key=lambda item: item[1]):
        programs = busy.setdefault(device, [])
        if programs and start <= programs[-1][1]:
            programs[-1] = programs[-1][0], max(end, programs[-1][1])
        else:
            programs.append((start, end))
    return busy


if __name__ == "__main__":
    main()
