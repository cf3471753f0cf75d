"""Where does samjax's time go? python -m benchmarks.where WORK [--model vit_b.pth] [--picture FILE]

WORK is `encoder`, `click` or `everything`, done once to compile and then under JAX's profiler.
For each compiled program: seconds, and how many of them are matrix products and convolutions; the
rest are passes over memory. What is not in any program is the host's.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import draw_picture
from benchmarks.harness import Measurement, peak_mib, record
from benchmarks.tracing import operations, traced

CLICKS = 20
PRODUCTS = ("ynn_fusion", "dot", "convolution", "__xnn")
"""How the operations begin that XLA gives to a library of matrix products."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--model", help="a checkpoint (default: nano)")
    parser.add_argument("--picture", type=Path, help="default: one of 1200x1800 pixels, drawn")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--pred-iou-thresh", type=float)
    parser.add_argument("--stability-score-thresh", type=float)
    parser.add_argument("--box-nms-thresh", type=float)
    args = parser.parse_args()
    import jax

    import samjax
    from samjax.images import read_image

    samjax.tune_allocator()
    picture = draw_picture() if args.picture is None else read_image(args.picture)
    work = WORKS[args.work](samjax.load(args.model or "nano"), picture, args)
    start = time.perf_counter()
    jax.block_until_ready(work())
    first = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        with traced(Path(folder)):
            start = time.perf_counter()
            jax.block_until_ready(work())
            whole = time.perf_counter() - start
        found = programs(Path(folder))
    facts = dict.fromkeys(("products_s", "other_s"), "")
    measurements = [Measurement("all", [whole], first, peak_mib(), "", facts)]
    for name, (seconds, products) in sorted(found.items(), key=lambda item: -item[1][0]):
        facts = {"products_s": f"{products:.4g}", "other_s": f"{seconds - products:.4g}"}
        measurements.append(Measurement(name, [seconds], 0.0, 0.0, "", facts))
    height, width = picture.shape[:2]
    record("where", f"{args.work} {Path(args.model or 'nano').name} {width}x{height}", measurements)


def programs(folder: Path) -> dict[str, tuple[float, float]]:
    """Seconds of each program in a trace, and of its products. An operation's are its own, without
    those of operations in it; two threads at work at once count twice."""
    own: Counter[tuple[str, bool]] = Counter()
    for line in operations(folder):
        thread = [(event, stats) for event, stats in line if "hlo_module" in stats]
        around: list[tuple[float, tuple[str, bool]]] = []
        for event, stats in sorted(thread, key=lambda one: (one[0].start_ns, -one[0].end_ns)):
            while around and around[-1][0] <= event.start_ns:
                around.pop()
            if around:
                own[around[-1][1]] -= event.duration_ns
            kind = stats["hlo_module"], event.name.startswith(PRODUCTS)
            own[kind] += event.duration_ns
            around.append((event.end_ns, kind))
    return {
        name: ((own[name, True] + own[name, False]) / 1e9, own[name, True] / 1e9)
        for name in {name for name, _ in own}
    }


def _encoder(model: Any, picture: np.ndarray, args: argparse.Namespace) -> Callable[[], Any]:
    import samjax

    predictor = samjax.SamPredictor(model)

    def encode() -> Any:
        predictor.set_image(picture)
        return predictor.get_image_embedding()

    return encode


def _click(model: Any, picture: np.ndarray, args: argparse.Namespace) -> Callable[[], Any]:
    import samjax

    predictor = samjax.SamPredictor(model)
    predictor.set_image(picture)
    height, width = picture.shape[:2]
    points = np.random.default_rng(0).uniform((0, 0), (width, height), (CLICKS, 2)).round()
    return lambda: [predictor.predict(point[None], np.array([1])) for point in points]


def _everything(model: Any, picture: np.ndarray, args: argparse.Namespace) -> Callable[[], Any]:
    import samjax

    names = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    generator = samjax.SamAutomaticMaskGenerator(
        model, points_per_side=args.points_per_side, output_mode="coco_rle", **given
    )
    return lambda: len(generator.generate(picture))


WORKS = {"encoder": _encoder, "click": _click, "everything": _everything}


if __name__ == "__main__":
    main()
