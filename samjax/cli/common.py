"""What the commands share: naming a model, and sizes for people to read."""

import argparse
import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samjax.cli.progress import waiting

if TYPE_CHECKING:
    import samjax.checkpoint
    import samjax.kinds
    import samjax.models.config
    import samjax.models.yolo


OWN_MODEL = "nano, which comes with samjax"
"""What is used where no model is named, as the help says it."""


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        "--checkpoint",
        help="a model's name (samjax models lists them), a .pth or .safetensors file, an Orbax or "
        f"Hugging Face folder (default: {OWN_MODEL})",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="what the model computes in; int8 is the products of a ViT in 8-bit integers and all "
        "else in bfloat16 (default: as the model says, which is float32 for all published ones)",
    )


def add_processes(parser: argparse.ArgumentParser, shared: str) -> argparse._ArgumentGroup:
    """What a command needs to work in several processes; `shared` is what they share."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed", action="store_true",
        help=f"share {shared} with other processes that are started with the same command: on "
        "Cloud TPU, Slurm and Kubernetes they find each other",
    )  # fmt: skip
    group.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: process 0's address")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I")
    return group


def is_distributed(args: argparse.Namespace) -> bool:
    """A process that is given a part of this, and not all, is told so when it looks for others."""
    given = (args.coordinator, args.num_processes, args.process_id)
    return args.distributed or any(value is not None for value in given)


def load_model(
    source: str | None, precision: "samjax.models.config.Precision | None" = None
) -> "samjax.checkpoint.Model":
    """A Segment Anything model, and says what. None is the package's own model."""
    from samjax.checkpoint import load

    return _load(source, functools.partial(load, precision=precision))


def load_any_model(source: str | None) -> "samjax.kinds.AnyModel":
    """The same of a detector too."""
    from samjax.checkpoint import load_any

    return _load(source, load_any)


def _load(source: str | None, load: Callable[[str], Any]) -> Any:
    from samjax.buckets import is_in_a_bucket
    from samjax.checkpoint import NANO, make_ready

    if source is None:
        source = NANO
        print(
            f"samjax: using {NANO}: small, for trying out; name a model such as "
            "sam_vit_b_01ec64.pth for work",
            file=sys.stderr,
        )
    if not is_in_a_bucket(source):
        make_ready(source)  # a download has a bar of its own
    with waiting(f"loading {source}"):
        model = load(source)
    print(f"loaded {source}: {summary(model)}", flush=True)
    return model


def model_path(source: str | None) -> Path | str:
    """Where it lies, as result folders record it."""
    from samjax.buckets import is_in_a_bucket
    from samjax.checkpoint import NANO, locate

    if source is not None and is_in_a_bucket(source):
        return source
    return locate(NANO if source is None else source).resolve()


def summary(model: "samjax.kinds.AnyModel") -> str:
    """Architecture, parameters and their type, such as "ViT-B, 93.7 M parameters, float32"."""
    millions = model.num_parameters / 1e6
    digits = 1 if millions >= 10 else 3
    name = architecture(model.config) or _unnamed(model.config)
    return f"{name}, {millions:.{digits}f} M parameters, {dtypes(model)}"


def architecture(
    config: "samjax.models.config.SamConfig | samjax.models.yolo.YoloConfig",
) -> str | None:
    """ "ViT-B", "HQ ViT-B" and so on, "MobileSAM", "HQ TinyViT", "nano" or "YOLOv8n-seg"; None for
    others. The input size makes no difference."""
    from samjax.models import ImageEncoderViTConfig, SamConfig
    from samjax.models.yolo import YoloConfig

    if isinstance(config, YoloConfig):
        return config.name

    def shape(config: SamConfig) -> object:
        encoder = config.image_encoder
        if not isinstance(encoder, ImageEncoderViTConfig):
            return dataclasses.replace(encoder, image_size=type(encoder).image_size)
        return (encoder.width, encoder.depth, encoder.num_heads, encoder.mlp_width,
                encoder.patch_size)  # fmt: skip

    published = {
        "ViT-B": SamConfig.vit_b(),
        "ViT-L": SamConfig.vit_l(),
        "ViT-H": SamConfig.vit_h(),
        "TinyViT" if config.hq else "MobileSAM": SamConfig.vit_t(),
        "nano": SamConfig.nano(),
    }
    name = next((name for name, other in published.items() if shape(other) == shape(config)), None)
    return f"HQ {name}" if name and config.hq else name


def dtypes(model: "samjax.kinds.AnyModel") -> str:
    """The parameters' types, the most frequent first."""
    import jax

    counts = Counter(str(leaf.dtype) for leaf in jax.tree.leaves(model.params))
    return " and ".join(name for name, _ in counts.most_common())


def size_text(number: int) -> str:
    """Bytes in a unit that leaves one to three digits before the point."""
    size = float(number)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _unnamed(config: "samjax.models.config.SamConfig | samjax.models.yolo.YoloConfig") -> str:
    from samjax.models import EfficientNetLiteConfig, TinyViTConfig
    from samjax.models.yolo import YoloConfig

    if isinstance(config, YoloConfig):
        return f"YOLOv8 of widths {', '.join(map(str, config.widths))}"

    encoder = config.image_encoder
    if isinstance(encoder, EfficientNetLiteConfig):
        return f"EfficientNet-Lite of {number(sum(encoder.stage_depths), 'block')}"
    if isinstance(encoder, TinyViTConfig):
        return f"TinyViT of {number(sum(encoder.depths), 'block')}"
    return f"ViT of {encoder.depth} blocks and width {encoder.width}"
