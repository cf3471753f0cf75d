"""How long does a click take once the picture is encoded? python -m benchmarks.one_click"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contenders, peers
from benchmarks.harness import compare, record, serve

PEERS = {
    "transformers": peers.TransformersPredictor,
    "openvino": peers.OnnxPredictor,
    "onnxruntime": peers.OnnxPredictor,
}
CLICKS = 20
"""In a timed call, each at a place of its own; a single one would be over too soon to time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    contenders.arguments(parser, repeats=3, warmup=1, peers=tuple(PEERS))
    args = contenders.check(parser, parser.parse_args())
    if args.worker:
        predictor = {"samjax": _samjax, "meta": _meta, **PEERS}[args.worker]
        serve(lambda: _clicks(predictor(args)), _save)
        return
    with tempfile.TemporaryDirectory() as folder:
        weights, saved = Path(folder, "weights"), Path(folder)
        measurements = compare(
            contenders.commands("benchmarks.one_click", args, weights),
            repeats=args.repeats, warmup=args.warmup, malloc=args.malloc, save_to=saved,
        )  # fmt: skip
        for m in measurements:
            m.facts["differing_pixels"] = _different(saved, m.contender)
    record("one_click", f"{args.model} {CLICKS} clicks", measurements, malloc=args.malloc)


def _clicks(predictor: Any) -> Callable[[], np.ndarray]:
    """The three masks of every click, at the picture's own resolution, as bits."""
    picture = contenders.draw_picture()
    predictor.set_image(picture)
    height, width = picture.shape[:2]
    rng = np.random.default_rng(0)
    points = rng.uniform((0, 0), (width, height), (CLICKS, 2)).round()

    def click(point: np.ndarray) -> np.ndarray:
        masks, _, _ = predictor.predict(point_coords=point[None], point_labels=np.array([1]))
        return np.packbits(masks)

    return lambda: np.stack([click(point) for point in points])


def _samjax(args: argparse.Namespace) -> Any:
    from samjax import SamPredictor

    return SamPredictor(contenders.load_samjax(args))


def _meta(args: argparse.Namespace) -> Any:
    import segment_anything

    return segment_anything.SamPredictor(contenders.load_meta(args))


def _save(masks: np.ndarray, path: Path) -> None:
    np.save(path.with_suffix(".npy"), masks)


def _different(folder: Path, name: str) -> int | str:
    """Pixels of all masks that are not Meta's."""
    if name == "meta" or not (folder / "meta.npy").exists():
        return ""
    ours, theirs = np.load(folder / f"{name}.npy"), np.load(folder / "meta.npy")
    return int(np.bitwise_count(ours ^ theirs).sum())


if __name__ == "__main__":
    main()
