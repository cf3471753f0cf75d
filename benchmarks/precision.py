"""What do bfloat16 and 8-bit weights gain, and what do they cost in mean IoU?

python -m benchmarks.precision instances.json --images pictures [--model sam_vit_b]
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
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
from samjax.models.layers import float32_dot
from samjax.models.params import flatten, unflatten
from samjax.transforms import ResizeLongestSide, normalize_and_pad

PRECISIONS = ("float32", "bfloat16", "int8")
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
    models = {name: in_precision(model, name) for name in PRECISIONS}
    seconds = in_turn({n: encoding(m) for n, m in models.items()}, args.repeats)
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
            "weights_mb": f"{sum(weight_bytes(model, name)) / 1e6:.4g}",
            **{p: f"{result.mean_iou(p):.4f}" for p in result.ious},
        }
        first, *later = seconds[name]
        measurements.append(Measurement(name, later, first, 0.0, "", facts))
    size = f"{Path(args.model or 'nano').name} {args.max_pictures} pictures"
    record("precision", size, measurements, malloc="own")


def in_precision(model: Model, name: str) -> Model:
    """bfloat16 throughout, or weights rounded to 8 bits and computed with in float32."""
    if name == "bfloat16":
        config = model.config.replace(dtype="bfloat16")
        return dataclasses.replace(model.astype("bfloat16"), config=config)
    if name == "int8":
        leaves = {n: rounded(x) if is_weight(n) else x for n, x in flatten(model.params).items()}
        return dataclasses.replace(model, params=unflatten(leaves))
    return model


def is_weight(name: str) -> bool:
    return name.endswith("kernel")


def rounded(kernel: Any) -> jax.Array:
    """To one of 255 steps, of which each output channel has its own size."""
    kernel = np.asarray(kernel, np.float32)
    step = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True) / 127
    step = np.where(step == 0, 1, step)
    return jnp.asarray(np.round(kernel / step) * step)


def weight_bytes(model: Model, name: str) -> list[float]:
    width = {"float32": 4, "bfloat16": 2, "int8": 1}[name]
    return [
        x.size * (width if name != "int8" or is_weight(n) else 4)
        for n, x in flatten(model.params).items()
    ]


def encoding(model: Model) -> Callable[[], Any]:
    config = model.config
    images = normalize_and_pad(
        ResizeLongestSide(config.image_size).apply_image(draw_picture()), config.image_size,
        pixel_mean=config.pixel_mean, pixel_std=config.pixel_std,
    )[None]  # fmt: skip
    return lambda: inference.encode_images(model.params, images, config=config)


def product(name: str) -> Callable[[], Any]:
    """A matrix product as the MLP has it; of 8-bit integers it sums in 32 bits."""
    rows, inner, columns = PRODUCT
    rng = np.random.default_rng(0)
    x, y = rng.integers(-127, 128, (rows, inner)), rng.integers(-127, 128, (inner, columns))
    dtype = jnp.dtype(name)
    if name == "int8":
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.int32))
    else:
        multiply = jax.jit(lambda a, b: float32_dot(jnp.matmul, a, b))
    a, b = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    return lambda: multiply(a, b)


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
