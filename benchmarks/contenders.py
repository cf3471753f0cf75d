"""What the questions share: who takes part, pictures, command lines. Heavy imports stay in
functions."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks import environments
from benchmarks.harness import Malloc
from benchmarks.machine import cores
from benchmarks.weights import MODELS, PUBLISHED, write_weights

HERE = ("samjax", "meta")
"""Contenders that the project's own environment has; peers have one each (`environments`)."""
NEEDS = {
    "openvino": ("encoder.onnx", "click.onnx"),
    "onnxruntime": ("encoder.onnx", "click.onnx"),
    "keras_hub": ("meta.npz",),
}
"""What `weights` writes for them beside Meta's state dict."""
VIT_ONLY = ("transformers", "keras_hub")
PICTURE_SIZE = (1200, 1800)
"""Height and width of the picture that is drawn where none is given."""


def arguments(
    parser: argparse.ArgumentParser, *, repeats: int, warmup: int, peers: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Adds what every question takes. `peers` answer it too, besides samjax and Meta's code."""
    parser.add_argument(
        "--model", choices=MODELS, default="vit_b", help="size of the ViT, vit_t or nano"
    )
    parser.add_argument(
        "--checkpoint", type=Path,
        help="a .pth file in Meta's format; default: random weights, and nano's own",
    )  # fmt: skip
    parser.add_argument(
        "--contenders", nargs="+", choices=(*HERE, *peers, *(("all",) if peers else ())),
        default=HERE, help="a peer's environment is made when it first takes part",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=repeats, help="timed calls of each")
    parser.add_argument("--warmup", type=int, default=warmup, help="untimed ones after the first")
    parser.add_argument(
        "--malloc", choices=get_args(Malloc), default="own",
        help="'own': samjax calls tune_allocator, as its command line does, and others run as they "
        "are; 'keep': all of them keep freed memory; 'default': none does",
    )  # fmt: skip
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(peers=tuple(peers))
    return parser


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """The arguments, with "all" spelled out. Ends the program for those that contradict."""
    if args.checkpoint is not None and args.model == "nano":
        parser.error("nano has weights of its own; --checkpoint is for the others.")
    if args.checkpoint is not None and not args.checkpoint.is_file():
        parser.error(f"there is no checkpoint {args.checkpoint}")
    if "all" in args.contenders:
        args.contenders = [*HERE, *args.peers]
    return args


def commands(
    module: str, args: argparse.Namespace, weights: Path, *, formats: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Writes the weights and says how to start each contender: this program again, with the same
    arguments, by the Python that has it. Who cannot take part is named and left out. `formats` of
    the weights are written beside those that contenders need."""
    pythons = {}
    for name in args.contenders:
        try:
            if name in VIT_ONLY and args.model in ("nano", "vit_t"):
                raise environments.Unavailable(f"it has no image encoder like {args.model}'s")
            pythons[name] = sys.executable if name in HERE else str(environments.interpreter(name))
        except environments.Unavailable as reason:
            print(f"{name} is left out: {reason}", file=sys.stderr)
    if not pythons:
        raise SystemExit("there is nobody to measure.")
    write_weights(
        args.model, weights, checkpoint=args.checkpoint, batch=getattr(args, "batch", 1),
        formats=sorted({*formats, *(name for peer in pythons for name in NEEDS.get(peer, ()))}),
    )  # fmt: skip
    again = ["-m", module, *sys.argv[1:], "--weights", str(weights), "--worker"]
    return {name: [python, *again, name] for name, python in pythons.items()}


def load_meta(args: argparse.Namespace) -> Any:
    """Meta's model as its users load it, on a GPU where torch sees one; nothing of JAX with it."""
    import segment_anything
    import torch

    torch.set_num_threads(cores())
    if args.model in PUBLISHED:
        build = segment_anything.sam_model_registry[args.model]
        model = build(checkpoint=args.weights / "meta.pth")
    else:
        model = torch.load(args.weights / "meta.pt", weights_only=False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)


def load_samjax(args: argparse.Namespace) -> Any:
    import samjax

    if args.malloc == "own":
        samjax.tune_allocator()
    return samjax.load(args.weights / "samjax")


def draw_picture(
    height: int = PICTURE_SIZE[0], width: int = PICTURE_SIZE[1], seed: int = 0
) -> np.ndarray:
    """Discs and boxes of many sizes on a gradient, with a little noise: uint8, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = np.stack([80 + 100 * x / width, 90 + 80 * y / height, np.full_like(x, 120)], axis=-1)
    for i in range(60):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        a, b = rng.uniform(0.01, 0.15, 2) * min(height, width)
        dx, dy = np.abs(x - cx) / a, np.abs(y - cy) / b
        inside = dx**2 + dy**2 < 1 if i % 2 else np.maximum(dx, dy) < 1
        picture[inside] = rng.uniform(0, 255, 3)
    picture += rng.normal(0, 4, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)
