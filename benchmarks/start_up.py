"""How long from starting a process to the first mask of a click? python -m benchmarks.start_up

Every timed call is a new process that imports, reads the weights, encodes a picture and segments
one click. samjax keeps compiled programs, as its command line does: `compile_s` is by how much the
first process was slower, which had none to find.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import contenders
from benchmarks.harness import KEEP_MEMORY, Measurement, record
from benchmarks.machine import ROOT

PEAK = "peak MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    contenders.arguments(parser, repeats=3, warmup=0)
    args = contenders.check(parser, parser.parse_args())
    if args.worker:
        {"samjax": _samjax, "meta": _meta}[args.worker](args)
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights")
        commands = contenders.commands("benchmarks.start_up", args, weights)
        environment = {**os.environ, "SAMJAX_CACHE": str(Path(folder, "cache"))}
        if args.malloc == "keep":
            environment["GLIBC_TUNABLES"] = KEEP_MEMORY
        times: dict[str, list[float]] = {name: [] for name in commands}
        peaks = dict.fromkeys(commands, 0.0)
        for _ in range(1 + args.warmup + args.repeats):
            for name, command in commands.items():
                start = time.perf_counter()
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
                )
                times[name].append(time.perf_counter() - start)
                peaks[name] = float(done.stdout.rpartition(PEAK)[2])
    measurements = [
        Measurement(name, taken[1 + args.warmup :], taken[0], peaks[name], "")
        for name, taken in times.items()
    ]
    record("start_up", args.model, measurements, malloc=args.malloc)


def _samjax(args: argparse.Namespace) -> None:
    import samjax

    samjax.keep_compiled_programs()
    _click(samjax.SamPredictor(contenders.load_samjax(args)))


def _meta(args: argparse.Namespace) -> None:
    import segment_anything

    _click(segment_anything.SamPredictor(contenders.load_meta(args)))


def _click(predictor) -> None:
    from benchmarks.harness import peak_mib

    predictor.set_image(contenders.draw_picture())
    predictor.predict(point_coords=np.array([[900.0, 600.0]]), point_labels=np.array([1]))
    print(PEAK, peak_mib(), flush=True)
    # What is left is tearing down, which nobody waits for.
    os._exit(0)


if __name__ == "__main__":
    main()
