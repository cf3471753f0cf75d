"""What the questions share: weights, pictures, command lines. Heavy imports stay in functions."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from benchmarks.harness import ROOT, Malloc

if TYPE_CHECKING:
    from samjax.models import SamConfig

CONTENDERS = ("samjax", "meta")
MODELS = ("vit_b", "vit_l", "vit_h", "vit_t", "tiny")


def arguments(
    parser: argparse.ArgumentParser, *, repeats: int, warmup: int
) -> argparse.ArgumentParser:
    """Adds what every question takes."""
    parser.add_argument(
        "--model", choices=MODELS, default="vit_b", help="size of the ViT, or vit_t for MobileSAM"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="a .pth file in Meta's format; default: random weights"
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed calls of each")
    parser.add_argument("--warmup", type=int, default=warmup, help="untimed ones after the first")
    parser.add_argument(
        "--malloc", choices=get_args(Malloc), default="own",
        help="'own': samjax calls tune_allocator, as its command line does, and others run as they "
        "are; 'keep': all of them keep freed memory; 'default': none does",
    )  # fmt: skip
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    return parser


def commands(module: str, args: argparse.Namespace, weights: Path) -> dict[str, list[str]]:
    """How to start each contender: this program again, with the same arguments."""
    again = [sys.executable, "-m", module, *sys.argv[1:], "--weights", str(weights), "--worker"]
    return {name: [*again, name] for name in args.contenders}


def prepare_weights(args: argparse.Namespace, folder: Path) -> None:
    """Writes the same weights for all contenders, in a process that is not measured."""
    command = [sys.executable, "-m", "benchmarks.contenders", args.model, str(folder)]
    if args.checkpoint is not None:
        command += ["--checkpoint", str(args.checkpoint.absolute())]
    subprocess.run(command, check=True, cwd=ROOT)


def config(model: str) -> "SamConfig":
    from samjax.models import SamConfig

    return {
        "vit_b": SamConfig.vit_b,
        "vit_l": SamConfig.vit_l,
        "vit_h": SamConfig.vit_h,
        "vit_t": SamConfig.vit_t,
        "tiny": SamConfig.tiny,
    }[model]()


def load_meta(args: argparse.Namespace) -> Any:
    """Meta's model, or MobileSAM's, on a GPU where torch sees one."""
    import torch

    from samjax.convert.reference import build_reference

    model = build_reference(config(args.model))
    model.load_state_dict(torch.load(args.weights / "meta.pth", weights_only=True))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device).requires_grad_(False)


def load_samjax(args: argparse.Namespace) -> Any:
    import samjax

    if args.malloc == "own":
        samjax.tune_allocator()
    return samjax.load(args.weights / "samjax")


def draw_picture(height: int = 1200, width: int = 1800, seed: int = 0) -> np.ndarray:
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


def _write_weights() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()

    import torch

    from samjax.checkpoint import save_checkpoint
    from samjax.convert import from_state_dict
    from samjax.convert.reference import build_reference

    torch.manual_seed(0)
    reference = build_reference(config(args.model))
    if args.checkpoint is None:
        for parameter in reference.parameters():
            if not parameter.any():  # position embeddings and biases, which would hide mistakes
                torch.nn.init.normal_(parameter, std=0.02)
    else:
        reference.load_state_dict(torch.load(args.checkpoint, weights_only=True))
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.save(reference.state_dict(), args.folder / "meta.pth")
    save_checkpoint(args.folder / "samjax", from_state_dict(reference.state_dict()))


if __name__ == "__main__":
    _write_weights()
