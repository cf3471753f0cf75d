"""How long does it take to encode a picture? python -m benchmarks.image_encoder [--model vit_b]"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contenders, peers
from benchmarks.harness import compare, record, serve
from benchmarks.weights import read_config

PEERS = {
    "transformers": peers.transformers_encoder,
    "openvino": peers.onnx_encoder,
    "onnxruntime": peers.onnx_encoder,
    "keras_hub": peers.keras_hub_encoder,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    contenders.arguments(parser, repeats=3, warmup=1, peers=tuple(PEERS))
    parser.add_argument("--batch", type=int, default=1, help="pictures in a call")
    args = contenders.check(parser, parser.parse_args())
    if args.worker:
        prepare = {"samjax": _samjax, "meta": _meta, **PEERS}[args.worker]
        serve(lambda: prepare(args, _pictures(args)), _save)
        return
    with tempfile.TemporaryDirectory() as folder:
        weights, saved = Path(folder, "weights"), Path(folder)
        measurements = compare(
            contenders.commands("benchmarks.image_encoder", args, weights),
            repeats=args.repeats, warmup=args.warmup, malloc=args.malloc, save_to=saved,
        )  # fmt: skip
        for m in measurements:
            m.facts["difference"] = _difference(saved, m.contender)
    record("image_encoder", f"{args.model} batch {args.batch}", measurements, malloc=args.malloc)


def _pictures(args: argparse.Namespace) -> np.ndarray:
    size = read_config(args.weights)["image_encoder"]["image_size"]
    shape = (args.batch, size, size, 3)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _samjax(args: argparse.Namespace, pictures: np.ndarray) -> Callable[[], Any]:
    import jax

    from samjax import inference

    model = contenders.load_samjax(args)
    images = jax.device_put(pictures)
    return lambda: inference.encode_images(model.params, images, config=model.config)


def _meta(args: argparse.Namespace, pictures: np.ndarray) -> Callable[[], Any]:
    import torch

    model = contenders.load_meta(args)
    images = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    images = images.to(model.device)

    @torch.inference_mode()
    def encode() -> Any:
        return model.image_encoder(images).permute(0, 2, 3, 1)

    return encode


def _save(embeddings: Any, path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.asarray(getattr(embeddings, "cpu", lambda: embeddings)()))


def _difference(folder: Path, name: str) -> str:
    """The largest difference from Meta's embedding, as a share of its largest value."""
    if name == "meta" or not (folder / "meta.npy").exists():
        return ""
    ours, theirs = np.load(folder / f"{name}.npy"), np.load(folder / "meta.npy")
    return f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.1e}"


if __name__ == "__main__":
    main()
