"""What do bfloat16 and products of 8-bit integers gain, and what do they cost in mean IoU?

python -m benchmarks.precision instances.json --images pictures [--model sam_vit_b]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import samjax
from benchmarks.contenders import draw_picture
from benchmarks.harness import Measurement, record
from samjax import inference
from samjax.checkpoint import Model
from samjax.datasets import open_source
from samjax.evaluate import evaluate
from samjax.models import ImageEncoderViTConfig
from samjax.models.config import Precision
from samjax.models.products import float32_dot, int8_product
from samjax.transforms import ResizeLongestSide, normalize_and_pad

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
PRODUCT = (4096, 768, 3072)
"""Rows, columns and results of the product that is timed: ViT-B's MLP on one picture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a COCO file or another source that samjax eval takes")
    parser.add_argument("--images", help="folder of a COCO file's pictures")
    parser.add_argument("--model", help="a checkpoint (default: nano)")
    parser.add_argument("--max-pictures", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    samjax.tune_allocator()
    model = samjax.load(args.model or "nano")
    models = at_each(model)
    works = {name: encoding(variant) for name, variant in models.items()}
    seconds = in_turn(works, args.repeats)
    products = in_turn({name: product(name) for name in PRECISIONS}, 10 * args.repeats)
    measurements = []
    for name, variant in models.items():
        result = evaluate(
            samjax.SamPredictor(variant), open_source(args.data, args.images),
            max_pictures=args.max_pictures, progress=True,
        )  # fmt: skip
        print(f"{name}\n{result.table()}")
        facts = {
            "product_ms": f"{1e3 * statistics.median(products[name][1:]):.3g}",
            "embeddings_off": f"{off(works[name](), works['float32']()):.2g}",
            "weights_mb": f"{variant.num_bytes / 1e6:.4g}",
            **{p: f"{result.mean_iou(p):.4f}" for p in result.ious},
        }
        first, *later = seconds[name]
        measurements.append(Measurement(name, later, first, 0.0, "", facts))
    size = f"{Path(args.model or 'nano').name} {args.max_pictures} pictures"
    record("precision", size, measurements, malloc="own")


def at_each(model: Model) -> dict[str, Model]:
    """Those precisions that the model has: 8-bit products are for a ViT."""
    is_vit = isinstance(model.config.image_encoder, ImageEncoderViTConfig)
    return {name: model.at_precision(name) for name in PRECISIONS if is_vit or name != "int8"}


def encoding(model: Model) -> Callable[[], Any]:
    config = model.config
    images = normalize_and_pad(
        ResizeLongestSide(config.image_size).apply_image(draw_picture()), config.image_size,
        pixel_mean=config.pixel_mean, pixel_std=config.pixel_std,
    )[None]  # fmt: skip
    return lambda: inference.encode_images(model.params, images, config=config)


def off(found: jax.Array, exact: jax.Array) -> float:
    """Root mean square of the difference, as a share of the exact one's."""
    return float(jnp.sqrt(((found - exact) ** 2).mean() / (exact**2).mean()))


def product(name: Precision) -> Callable[[], Any]:
    """A matrix product as the MLP has it; with 8-bit integers, the rounding too."""
    rows, inner, columns = PRODUCT
    rng = np.random.default_rng(0)
    dtype = "bfloat16" if name == "int8" else name
    x = jnp.asarray(rng.standard_normal((rows, inner)), dtype)
    kernel = jnp.asarray(rng.standard_normal((inner, columns)), dtype)
    multiply = jax.jit(int8_product if name == "int8" else partial(float32_dot, jnp.matmul))
    return lambda: multiply(x, kernel)


def in_turn(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, A B C A B C; the first call compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            jax.block_until_ready(work())
            seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
