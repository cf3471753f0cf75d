"""The work at one point of a curve of `scaling`, for samjax and for Meta's code.

Each function gets the arguments, prepares and warms up, and returns what is timed.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import contenders
from benchmarks.weights import read_config

BATCH = 64
"""Prompts decoded at a time, which is both generators' default."""


def _embedding(args: argparse.Namespace) -> np.ndarray:
    return np.load(args.weights / "embedding.npy")


def _clicks(args: argparse.Namespace) -> list[np.ndarray]:
    """Batches of (P, 2) points in the model's own square."""
    size = read_config(args.weights)["image_encoder"]["image_size"]
    points = np.random.default_rng(0).uniform(0, size, (args.value, 2)).astype(np.float32)
    return [points[start : start + BATCH] for start in range(0, args.value, BATCH)]


def samjax_prompts(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    import jax

    from samjax import inference, prompts

    model = contenders.load_samjax(args)
    embedding = jax.device_put(_embedding(args).transpose(0, 2, 3, 1))
    one = np.array([1])

    def decode(points: np.ndarray) -> np.ndarray:
        packed = prompts.pack([prompts.tokens(point[None], one) for point in points])
        found = inference.decode_masks(
            model.params, embedding, jax.tree.map(lambda x: x[None], packed), config=model.config
        )
        found = jax.block_until_ready(found)
        return np.asarray(found.iou_predictions)[0, : len(points), 1:]

    return _batches(decode, _clicks(args))


def meta_prompts(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    import torch

    model = contenders.load_meta(args)
    embedding = torch.from_numpy(_embedding(args)).to(model.device)

    @torch.inference_mode()
    def decode(points: np.ndarray) -> np.ndarray:
        coords = torch.from_numpy(points)[:, None].to(model.device)
        labels = torch.ones(len(points), 1, dtype=torch.int, device=model.device)
        sparse, dense = model.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
        _, ious = model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return ious.cpu().numpy()

    return _batches(decode, _clicks(args))


def _batches(
    decode: Callable[[np.ndarray], np.ndarray], clicks: list[np.ndarray]
) -> Callable[[], np.ndarray]:
    for size in {len(points): points for points in clicks}.values():
        decode(size)
    return lambda: np.concatenate([decode(points) for points in clicks])


def _pictures(args: argparse.Namespace) -> np.ndarray:
    size = read_config(args.weights)["image_encoder"]["image_size"]
    shape = (args.value, size, size, 3)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def samjax_pictures(args: argparse.Namespace) -> Callable[[], Any]:
    import jax

    from samjax import inference

    model = contenders.load_samjax(args)
    images = jax.device_put(_pictures(args))
    pieces = [images] if args.how == "together" else [images[i : i + 1] for i in range(args.value)]
    encode = jax.jit(functools.partial(inference.encode_images, config=model.config))
    compiled = encode.lower(model.params, pieces[0]).compile()
    if args.how != "together":
        jax.block_until_ready(compiled(model.params, pieces[0]))
    return lambda: np.concatenate([np.asarray(compiled(model.params, piece)) for piece in pieces])


def meta_pictures(args: argparse.Namespace) -> Callable[[], Any]:
    import torch

    model = contenders.load_meta(args)
    images = torch.from_numpy(np.ascontiguousarray(_pictures(args).transpose(0, 3, 1, 2)))
    pieces = images.split(args.value if args.how == "together" else 1)

    @torch.inference_mode()
    def encode(piece: torch.Tensor) -> np.ndarray:
        return model.image_encoder(piece.to(model.device)).permute(0, 2, 3, 1).cpu().numpy()

    encode(pieces[0][:1])
    return lambda: np.concatenate([encode(piece) for piece in pieces])


def _generator(args: argparse.Namespace, maker: Any, model: Any) -> Any:
    # Each of those that nano carries is named, so that both are asked for the same.
    thresholds = {
        "pred_iou_thresh": 0.35, "stability_score_thresh": 0.5, "min_mask_region_area": 0
    }  # fmt: skip
    return maker(
        model, points_per_side=args.points_per_side, points_per_batch=16, output_mode="coco_rle",
        **thresholds,
    )  # fmt: skip


def samjax_sides(args: argparse.Namespace) -> Callable[[], list[dict]]:
    import jax

    from samjax.automatic_mask_generator import SamAutomaticMaskGenerator
    from samjax.embeddings import Picture, Prepared
    from samjax.upscaler import Upscaler

    model = contenders.load_samjax(args)
    generator = _generator(args, SamAutomaticMaskGenerator, model)
    features = jax.device_put(_embedding(args).transpose(0, 2, 3, 1))

    def encode(prepared: Prepared) -> Picture:
        _, size, inside, pixels = prepared
        upscaler = Upscaler(model.config, inside, size)
        return Picture(features, size, inside, upscaler, pixels)

    generator.predictor.encode = encode
    return _everything(generator, args)


def meta_sides(args: argparse.Namespace) -> Callable[[], list[dict]]:
    import segment_anything
    import torch

    model = contenders.load_meta(args)
    generator = _generator(args, segment_anything.SamAutomaticMaskGenerator, model)
    predictor = generator.predictor
    features = torch.from_numpy(_embedding(args)).to(model.device)

    def set_encoded(image: Any) -> None:
        predictor.features, predictor.is_image_set = features, True
        predictor.original_size = (args.value,) * 2
        predictor.input_size = (model.image_encoder.img_size,) * 2

    predictor.set_image = set_encoded
    return _everything(generator, args)


def _everything(generator: Any, args: argparse.Namespace) -> Callable[[], list[dict]]:
    picture = np.zeros((args.value, args.value, 3), np.uint8)  # its size counts, not its content
    generator.generate(picture)
    return lambda: generator.generate(picture)


WORK: dict[tuple[str, str], Callable[[argparse.Namespace], Callable[[], Any]]] = {
    ("prompts", "samjax"): samjax_prompts,
    ("prompts", "meta"): meta_prompts,
    ("pictures", "samjax"): samjax_pictures,
    ("pictures", "meta"): meta_pictures,
    ("sides", "samjax"): samjax_sides,
    ("sides", "meta"): meta_sides,
}
