"""`samjax info`: what a checkpoint holds and what it takes to run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samjax.cli.common import OWN_MODEL, architecture, dtypes, load_any_model, model_path, size_text
from samjax.cli.progress import waiting

if TYPE_CHECKING:
    import samjax.checkpoint
    import samjax.kinds
    import samjax.models.config
    import samjax.yolo_model

CLICKS = 64
"""Prompts of one point for which decoding is measured: the generator's default batch."""

_WIDTH = 20


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "info",
        parents=[shared],
        help="parameters, layers, sizes and memory of a model",
        description="Prints a model's architecture, parameters, sizes, and the memory that the "
        "compiled programs need.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help=f"a model's name, a file or a folder (default: {OWN_MODEL})",
    )
    parser.add_argument(
        "--no-memory",
        action="store_true",
        help="leave out the working memory, which takes two compilations",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import jax

    model = load_any_model(args.model)
    for name, value in description(model).items():
        print(f"{name:<{_WIDTH}}{value}")
    if isinstance(path := model_path(args.model), Path):
        print(f"{'size on disk':<{_WIDTH}}{size_text(_size_on_disk(path))}", flush=True)
    if args.no_memory:
        return 0
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)
    del model
    print(f"working memory, beside the parameters, on {jax.default_backend()}", flush=True)
    with waiting("compiling"):
        sizes = working_memory(shapes)
    for name, size in sizes.items():
        text = "the compiler does not say" if size is None else size_text(size)
        print(f"{'  ' + name:<{_WIDTH}}{text}", flush=True)
    return 0


def description(model: "samjax.kinds.AnyModel") -> dict[str, str]:
    """What shows in the arrays and the config, in lines."""
    import jax

    from samjax.yolo_model import YoloModel

    if isinstance(model, YoloModel):
        return _detector_lines(model)
    config = model.config
    parts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(model.params[name]))
        for name in ("image_encoder", "prompt_encoder", "mask_decoder")
    }
    return {
        "architecture": f"Segment Anything, {architecture(config) or _of_its_own_size(config)}",
        **_encoder_lines(config),
        "mask decoder": f"{config.decoder_depth} two-way blocks of width {config.embed_dim}, "
        f"{config.decoder_heads} heads, {config.num_multimask_outputs} masks for a prompt and 1"
        f"{', HQ token' if config.hq else ''}",
        "parameters": f"{model.num_parameters:,}",
        **{f"  {name.replace('_', ' ')}": f"{size:,}" for name, size in parts.items()},
        "dtype": f"{dtypes(model)}; computes in {config.computes_in}",
        "input size": f"{config.image_size} x {config.image_size} pixels",
        "image embedding": f"{config.grid_size} x {config.grid_size} x {config.embed_dim}",
        "low-res masks": f"{config.low_res_size} x {config.low_res_size}",
        "everything": _thresholds(model),
        "size in memory": size_text(model.num_bytes),
    }


def _detector_lines(model: "samjax.yolo_model.YoloModel") -> dict[str, str]:
    config = model.config
    finds = {"detect": "boxes", "segment": "boxes with masks", "obb": "oriented boxes"}
    names = ", ".join(model.names[:8]) + (", ..." if len(model.names) > 8 else "")
    masks = {}
    if config.task == "segment":
        masks = {
            "masks": f"{config.mask_channels} prototypes at a quarter of the input's resolution"
        }
    return {
        "architecture": config.name or "YOLOv8 of its own size",
        "finds": finds[config.task],
        "channels": f"{_listed(config.widths)} at strides 2, 4, 8, 16, 32",
        **masks,
        "classes": f"{config.num_classes}: {names}",
        "parameters": f"{model.num_parameters:,}, batch norms folded",
        "dtype": f"{dtypes(model)}; computes in {config.dtype}",
        "input size": "multiples of 32 pixels; 640 where none is named",
        "size in memory": size_text(model.num_bytes),
    }


def _thresholds(model: "samjax.checkpoint.Model") -> str:
    carried = model.everything.to_dict()
    return " ".join(f"{name}={value:g}" for name, value in carried.items()) or "Meta's thresholds"


def _of_its_own_size(config: "samjax.models.config.SamConfig") -> str:
    from samjax.models import EfficientNetLiteConfig, TinyViTConfig

    kinds = {TinyViTConfig: "TinyViT", EfficientNetLiteConfig: "EfficientNet-Lite"}
    return f"{kinds.get(type(config.image_encoder), 'ViT')} of its own size"


def _encoder_lines(config: "samjax.models.config.SamConfig") -> dict[str, str]:
    from samjax.models import EfficientNetLiteConfig, TinyViTConfig

    encoder = config.image_encoder
    if isinstance(encoder, EfficientNetLiteConfig):
        return {
            "image encoder": f"EfficientNet-Lite, {sum(encoder.stage_depths)} blocks in "
            f"{len(encoder.stage_depths)} stages of widths "
            f"{_listed(encoder.stage_widths)}",
            "  neck": f"strides {encoder.output_stride} to 32 at stride {encoder.output_stride}, "
            f"{encoder.neck_depth} blocks of width {encoder.out_channels}",
        }
    if isinstance(encoder, TinyViTConfig):
        return {
            "image encoder": f"TinyViT, {sum(encoder.depths)} blocks in {len(encoder.depths)} "
            f"stages of widths {_listed(encoder.widths)}, MLPs of {encoder.mlp_ratio} times that",
            "  attention": f"windows of {_listed(encoder.window_sizes)} places and "
            f"{_listed(encoder.num_heads)} heads in stages 1, 2, 3",
        }
    layers = _listed(encoder.global_layers) or "none"
    return {
        "image encoder": f"ViT, {encoder.depth} blocks of width {encoder.width}, "
        f"{encoder.num_heads} heads, MLP of {encoder.mlp_width}, "
        f"patches of {encoder.patch_size} pixels",
        "  attention": f"windows of {encoder.window_size} patches; the whole picture in "
        f"blocks {layers}",
    }


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def working_memory(model: "samjax.kinds.AnyModel") -> dict[str, int | None]:
    """Bytes for temporaries and results as the compiler states them, or None where it does not.

    Only shapes are looked at: `model` may hold `jax.ShapeDtypeStruct`.
    """
    import jax
    import jax.numpy as jnp

    from samjax.inference import decode_masks, encode_images
    from samjax.types import Prompts
    from samjax.yolo_model import YoloModel
    from samjax.yolo_model import run as run_yolo

    if isinstance(model, YoloModel):
        picture = jax.ShapeDtypeStruct((1, 640, 640, 3), "float32")
        program = run_yolo.lower(model.params, picture, config=model.config)
        return {"detect, 640 x 640": _bytes(program.compile())}
    config = model.config
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), "float32")
    prompts = jax.eval_shape(
        lambda: Prompts(
            jnp.zeros((1, CLICKS, 2, 2), jnp.float32), jnp.zeros((1, CLICKS, 2), jnp.int32)
        )
    )

    def encode(params, images):
        return encode_images(params, images, config=config)

    def decode(params, embeddings, prompts):
        return decode_masks(params, embeddings, prompts, config=config)

    embeddings = jax.eval_shape(encode, model.params, images)
    programs = {
        "encode 1 picture": jax.jit(encode).lower(model.params, images),
        f"decode {CLICKS} clicks": jax.jit(decode).lower(model.params, embeddings, prompts),
    }
    return {name: _bytes(program.compile()) for name, program in programs.items()}


def _bytes(compiled: Any) -> int | None:
    try:
        memory = compiled.memory_analysis()
    except NotImplementedError:
        return None
    if memory is None:
        return None
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def _size_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
