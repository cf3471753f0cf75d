"""A model's config from its arrays' shapes, and the shapes from a config."""

import functools
import math
from typing import Any

import jax
from flax import nnx

from samjax.models.config import (
    EfficientNetLiteConfig,
    ImageEncoderConfig,
    ImageEncoderViTConfig,
    SamConfig,
    TinyViTConfig,
)
from samjax.models.layers import Buffer
from samjax.models.params import Params, flatten, unflatten
from samjax.models.sam import Sam

PUBLISHED_GRID = 64
"""Side of the image embedding of every published SAM."""


def config_from_params(params: Params) -> SamConfig:
    """Reads every choice that shapes the arrays, from a few of them; the values are not looked at.

    Leaves are anything with a `shape`. What no shape shows keeps `SamConfig`'s default: the
    decoder's heads (8 in the reference), normalization, mask threshold, `dtype`; also the window
    size if every block is global, and the width of an IoU head of a single layer. A block whose
    window is the whole grid computes what a global one does, and is read as global. An encoder with
    `stages` is a TinyViT, one with a `backbone` an EfficientNet-Lite; their arrays fit every input
    size. It is taken to be that of embeddings of 64x64, which the published decoder is for, with
    nano's normalization for the latter: give the config where they are others.

    Raises `ValueError` that names the first array which is missing or contradicts the others. It
    does not compare all arrays: `differences(flatten(params), flatten(abstract_params(config)))`
    does.
    """
    sizes = _Sizes(params)
    base, encoder = _image_encoder_config(sizes, params)

    sizes.read("prompt_encoder.mask_downscaling.conv2.kernel", 2, 2, "few", "mask_channels")
    sizes.read("mask_decoder.mask_tokens", "masks", "embed_dim")
    decoder_depth = sizes.count("mask_decoder.transformer.layers")
    sizes.read("mask_decoder.transformer.layers.0.mlp.lin1.kernel", "embed_dim", "decoder_mlp")
    q_proj = "mask_decoder.transformer.final_attn_token_to_image.q_proj.kernel"
    sizes.read(q_proj, "embed_dim", "internal")
    iou_depth = sizes.count("mask_decoder.iou_prediction_head.layers")
    iou_width = SamConfig.iou_head_width
    if iou_depth > 1:
        iou_kernel = "mask_decoder.iou_prediction_head.layers.0.kernel"
        iou_width = sizes.read(iou_kernel, "embed_dim", "iou_width")["iou_width"]
    return base.replace(
        image_encoder=encoder,
        mask_channels=sizes["mask_channels"],
        decoder_depth=decoder_depth,
        decoder_mlp_width=sizes["decoder_mlp"],
        attention_downsample_rate=sizes.quotient(q_proj, "embed_dim", "internal"),
        num_multimask_outputs=sizes["masks"] - 1,
        iou_head_depth=iou_depth,
        iou_head_width=iou_width,
        hq="hq" in params["mask_decoder"],
    )


def _image_encoder_config(sizes: "_Sizes", params: Params) -> tuple[SamConfig, ImageEncoderConfig]:
    """The encoder's config, and the model's whose other choices it keeps."""
    encoder = params.get("image_encoder")
    if isinstance(encoder, dict) and "backbone" in encoder:
        return SamConfig.nano(), _efficientnet_lite_config(sizes, encoder)
    if isinstance(encoder, dict) and "stages" in encoder:
        return SamConfig.vit_t(), _tiny_vit_config(sizes)
    return SamConfig(), _vit_config(sizes)


def _efficientnet_lite_config(sizes: "_Sizes", encoder: Params) -> EfficientNetLiteConfig:
    backbone, neck = "image_encoder.backbone", "image_encoder.neck"
    sizes.read(f"{backbone}.stem.kernel", 3, 3, 3, "stem_width")
    stages = range(sizes.count(f"{backbone}.stages"))
    widths = [
        sizes.shape(f"{backbone}.stages.{stage}.0.project.kernel", "hidden", "width")[1]
        for stage in stages
    ]
    coarser = sizes.count(f"{neck}.laterals") - 1
    sizes.read(f"{neck}.laterals.{coarser}.kernel", widths[-1], "embed_dim")
    sizes.read(f"{neck}.blocks.0.mlp.lin1.kernel", "embed_dim", "neck_mlp_width")
    output_stride = 32 >> coarser
    details = range(sizes.count(f"{neck}.details") if "details" in encoder["neck"] else 0)
    patches = [
        sizes.shape(f"{neck}.details.{i}.kernel", "patch", "patch", "width", "embed_dim")[0]
        for i in details
    ]
    return EfficientNetLiteConfig(
        image_size=PUBLISHED_GRID * output_stride,
        stem_width=sizes["stem_width"],
        stage_depths=tuple(sizes.count(f"{backbone}.stages.{stage}") for stage in stages),
        stage_widths=tuple(widths),
        output_stride=output_stride,
        detail_strides=tuple(output_stride // patch for patch in patches),
        out_channels=sizes["embed_dim"],
        neck_depth=sizes.count(f"{neck}.blocks"),
        neck_mlp_width=sizes["neck_mlp_width"],
        neck_attention="attn" in encoder["neck"]["blocks"][0],
    )


def _tiny_vit_config(sizes: "_Sizes") -> TinyViTConfig:
    stages = [f"image_encoder.stages.{i}" for i in range(sizes.count("image_encoder.stages"))]
    expand = f"{stages[0]}.blocks.0.expand.conv.kernel"
    sizes.read(expand, "widths[0]", "expanded")
    num_heads, window_sizes = [], []
    for i, stage in enumerate(stages[1:], start=1):
        sizes.read(f"{stages[i - 1]}.merge.conv1.conv.kernel", f"widths[{i - 1}]", f"widths[{i}]")
        table = f"{stage}.blocks.0.attn.attention_biases"
        heads, distances = sizes.shape(table, "heads", "window_size**2")
        if math.isqrt(distances) ** 2 != distances:
            raise ValueError(f"{table} has {distances} columns; expected a square number of them.")
        num_heads.append(heads)
        window_sizes.append(math.isqrt(distances))
    mlp = f"{stages[1]}.blocks.0.mlp.lin1.kernel"
    sizes.read(mlp, "widths[1]", "mlp")
    last = f"widths[{len(stages) - 1}]"
    sizes.read("image_encoder.neck.conv1.kernel", 1, 1, last, "embed_dim")
    sizes.read("image_encoder.classifier.kernel", last, "classes")
    return TinyViTConfig(
        image_size=PUBLISHED_GRID * TinyViTConfig().output_stride,
        widths=tuple(sizes[f"widths[{i}]"] for i in range(len(stages))),
        depths=tuple(sizes.count(f"{stage}.blocks") for stage in stages),
        num_heads=tuple(num_heads),
        window_sizes=tuple(window_sizes),
        expansion=sizes.quotient(expand, "expanded", "widths[0]"),
        mlp_ratio=sizes.quotient(mlp, "mlp", "widths[1]"),
        out_channels=sizes["embed_dim"],
        num_classes=sizes["classes"],
    )


def _vit_config(sizes: "_Sizes") -> ImageEncoderViTConfig:
    sizes.read("image_encoder.pos_embed", 1, "grid", "grid", "width")
    sizes.read("image_encoder.patch_embed.kernel", "patch", "patch", 3, "width")
    sizes.read("image_encoder.neck.conv1.kernel", 1, 1, "width", "embed_dim")
    sizes.read("image_encoder.blocks.0.mlp.lin1.kernel", "width", "mlp")
    depth = sizes.count("image_encoder.blocks")
    global_layers, window_size = _attention_sizes(sizes, depth)
    return ImageEncoderViTConfig(
        image_size=sizes["grid"] * sizes["patch"],
        patch_size=sizes["patch"],
        width=sizes["width"],
        depth=depth,
        num_heads=sizes.quotient("image_encoder.blocks.0.attn.rel_pos_h", "width", "head_dim"),
        mlp_width=sizes["mlp"],
        out_channels=sizes["embed_dim"],
        window_size=window_size,
        global_layers=global_layers,
    )


def _attention_sizes(sizes: "_Sizes", depth: int) -> tuple[tuple[int, ...], int]:
    """The global blocks and the window of the others, from 2 * size - 1 rows in each block."""
    global_rows = 2 * sizes["grid"] - 1
    global_layers, window_rows = [], None
    for layer in range(depth):
        path = f"image_encoder.blocks.{layer}.attn.rel_pos_h"
        rows, _ = sizes.shape(path, "rows", "head_dim")
        if rows == global_rows:
            global_layers.append(layer)
        elif rows % 2 == 0 or rows != (window_rows or rows):
            windows = "an odd number" if window_rows is None else f"{window_rows}, as other windows"
            raise ValueError(
                f"{path} has {rows} rows; expected {global_rows} for attention over the whole "
                f"grid of {sizes['grid']}, or {windows}."
            )
        else:
            window_rows = rows
    if window_rows is None:
        return tuple(global_layers), ImageEncoderViTConfig.window_size
    return tuple(global_layers), (window_rows + 1) // 2


class _Sizes:
    """Sizes by name, collected from shapes that have to agree about them."""

    def __init__(self, params: Params):
        self._params = params
        self._known: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return self._known[name]

    def read(self, path: str, *axes: int | str) -> dict[str, int]:
        """Matches the array's shape with `axes`: numbers, and names whose sizes are remembered."""
        shape = self.shape(path, *axes)
        for axis, size in zip(axes, shape, strict=True):
            known = self._known.setdefault(axis, size) if isinstance(axis, str) else axis
            if size != known:
                raise ValueError(f"{path} has shape {shape}; expected {self._expected(axes)}.")
        return self._known

    def shape(self, path: str, *axes: int | str) -> tuple[int, ...]:
        shape = tuple(getattr(self._node(path), "shape", ()))
        if len(shape) != len(axes) or 0 in shape:
            raise ValueError(f"{path} has shape {shape}; expected {self._expected(axes)}.")
        return shape

    def count(self, path: str) -> int:
        """Entries of a list, which have to be numbered from 0 without gaps."""
        node = self._node(path)
        if not isinstance(node, dict) or sorted(node) != list(range(len(node))):
            raise ValueError(f"{path} has to hold entries 0, 1, 2, ...; it has {list(node)}.")
        return len(node)

    def quotient(self, path: str, whole: str, part: str) -> int:
        if part not in self._known:
            self._known[part] = self.shape(path, "rows", part)[-1]
        if self[whole] % self[part]:
            raise ValueError(
                f"{path} has shape {tuple(self._node(path).shape)}; its last axis has to divide "
                f"{whole}, which is {self[whole]}."
            )
        return self[whole] // self[part]

    def _node(self, path: str) -> Any:
        node: Any = self._params
        for part in path.split("."):
            try:
                node = node[int(part) if part.isdecimal() else part]
            except (KeyError, TypeError, IndexError):
                raise ValueError(f"{path} is missing from the parameters.") from None
        return node

    def _expected(self, axes: tuple[int | str, ...]) -> str:
        names = [axis for axis in dict.fromkeys(axes) if axis in self._known]
        known = " and ".join(f"{name} {self._known[name]}" for name in names)
        return f"({', '.join(map(str, axes))})" + (f" with {known}" if known else "")


def abstract_params(config: SamConfig) -> Params:
    """The nested dict of a model's arrays as `jax.ShapeDtypeStruct`, float32; takes no memory."""
    return unflatten(_abstract_leaves(config))


def buffer_names(config: SamConfig) -> frozenset[str]:
    """Dotted names of the arrays that are constants and not parameters."""
    return frozenset(flatten(nnx.to_pure_dict(nnx.state(abstract_model(config), Buffer))))


@functools.lru_cache(maxsize=16)
def abstract_model(config: SamConfig) -> Sam:
    """A module whose variables hold shapes only; shared between callers, who must not change it."""
    return nnx.eval_shape(lambda: Sam(config, rngs=_OneKey()))


class _OneKey(nnx.Rngs):
    """The same key every time, which is enough where only shapes count.

    Drawing from `nnx.Rngs` inside a trace gets slower with every draw: 7 s instead of 1 for ViT-H.
    """

    def __init__(self):
        pass

    def params(self) -> jax.Array:
        return jax.random.key(0)


@functools.lru_cache(maxsize=16)
def _abstract_leaves(config: SamConfig) -> dict[str, jax.ShapeDtypeStruct]:
    return flatten(nnx.to_pure_dict(nnx.split(abstract_model(config))[1]))
