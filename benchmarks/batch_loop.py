"""A folder of pictures, segmented by `samjax batch` and by the loops that people write.

python -m benchmarks.batch_loop FOLDER [--checkpoint PTH] [--pictures 4] [--points-per-side 16]

Each contender is timed as a whole, from the start of its processes to their end: one of samjax; one
that calls Meta's generator for each picture in turn; and a process of that kind for each core.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Measurement, record
from benchmarks.machine import ROOT
from benchmarks.weights import write_weights

CORES = len(os.sched_getaffinity(0))

LOOP = """
import json, sys, torch, numpy as np
from pathlib import Path
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
weights, output, settings, threads, *pictures = sys.argv[1:]
torch.set_num_threads(int(threads))
model = sam_model_registry["vit_b"](weights)
generator = SamAutomaticMaskGenerator(
    model, **json.loads(settings), output_mode="coco_rle"
)
for path in pictures:
    masks = generator.generate(np.array(Image.open(path).convert("RGB")))
    Path(output, Path(path).stem + ".json").write_text(json.dumps(masks))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="a ViT-B of Meta's (default: random)")
    parser.add_argument("--pictures", type=int, default=4, help="the first of the folder")
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--pred-iou-thresh", type=float, default=0.88)
    parser.add_argument("--stability-score-thresh", type=float, default=0.95)
    args = parser.parse_args()
    settings = {
        name: getattr(args, name)
        for name in ("points_per_side", "pred_iou_thresh", "stability_score_thresh")
    }
    flags = [
        word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_weights("vit_b", work, checkpoint=args.checkpoint, formats=[])
        pictures = sorted(args.folder.glob("*.jpg"))[: args.pictures]
        (work / "in").mkdir()
        for picture in pictures:
            shutil.copy(picture, work / "in")
        ours = [sys.executable, "-m", "samjax", "batch", work / "in", work / "out", "--model",
                work / "samjax", *flags]  # fmt: skip
        loop = [sys.executable, "-c", LOOP, work / "meta.pth", work / "loop", json.dumps(settings)]
        (work / "loop").mkdir()
        measurements = [
            timed("samjax batch", [ours]),
            timed("Meta, one after the other", [[*loop, CORES, *pictures]]),
            timed("Meta, a process for each core",
                  [[*loop, 1, *pictures[i::CORES]] for i in range(CORES)]),
        ]  # fmt: skip
    for one in measurements:
        one.facts["pictures_per_minute"] = f"{60 * len(pictures) / one.seconds[0]:.3g}"
    side = args.points_per_side
    size = f"vit_b, {len(pictures)} pictures, {side}x{side}"
    record("batch_loop", size, measurements, malloc="own")


def timed(name: str, commands: list[list[object]]) -> Measurement:
    started = time.monotonic()
    running = [subprocess.Popen(list(map(str, command)), cwd=ROOT) for command in commands]
    if any(process.wait() for process in running):
        raise RuntimeError(f"{name} failed; what it printed stands above")
    seconds = time.monotonic() - started
    print(f"{name}: {seconds:.1f} s", flush=True)
    return Measurement(name, [seconds], seconds, 0.0, "")


if __name__ == "__main__":
    main()
