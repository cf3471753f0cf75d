"""nano in torch, for comparison: the public backbone, the neck once more, and Meta's decoder.

What builds it needs samjax; the module that it builds does not, so that a process that has torch
alone can read it from a file.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

if TYPE_CHECKING:
    from samjax.models import EfficientNetLiteConfig, SamConfig
    from samjax.models.params import Params


def features(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """The last features of strides 2, 4, 8, 16 and 32 of the public package's model."""
    x = model._swish(model._bn0(model._conv_stem(images)))
    found = []
    for block in model._blocks:
        y = block(x)
        if y.shape[-1] < x.shape[-1]:
            found.append(x)
        x = y
    return [*found, x]


class Block(nn.Module):
    """Attention where there is some, a depthwise convolution and an MLP on each cell, added to what
    comes in."""

    def __init__(self, params: dict[str, Any]):
        super().__init__()
        self.attn = Attention(params["attn"]) if "attn" in params else None
        self.depthwise = conv(params["depthwise"]["kernel"], padding=2, depthwise=True)
        self.norm = norm(params["norm"])
        self.lin1, self.lin2 = linear(params["mlp"]["lin1"]), linear(params["mlp"]["lin2"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.attn is not None:
            x = x + self.attn(x)
        y = self.norm(self.depthwise(x).movedim(1, -1))
        return x + self.lin2(nn.functional.gelu(self.lin1(y))).movedim(-1, 1)


class Attention(nn.Module):
    """Of every cell, in four heads, to the means of 4x4 cells."""

    def __init__(self, params: dict[str, Any]):
        super().__init__()
        self.norm = norm(params["norm"])
        self.q_proj, self.kv_proj = linear(params["q_proj"]), linear(params["kv_proj"])
        self.out_proj = linear(params["out_proj"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        x = self.norm(x.movedim(1, -1))
        means = nn.functional.avg_pool2d(x.movedim(-1, 1), 4).flatten(2).mT
        queries = self.q_proj(x.flatten(1, 2))
        q, k, v = (
            y.unflatten(-1, (4, -1)).transpose(1, 2)
            for y in (queries, *self.kv_proj(means).chunk(2, dim=-1))
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return y.mT.unflatten(2, (height, width))


class TorchEncoder(nn.Module):
    """Backbone and neck with the arrays of `params["image_encoder"]`."""

    def __init__(self, params: "Params", cfg: "EfficientNetLiteConfig", number: int):
        from samjax.convert.efficientnet_lite import backbone_to_state_dict

        super().__init__()
        self.img_size = cfg.image_size
        self.backbone = EfficientNet.from_name(
            f"efficientnet-lite{number}", image_size=cfg.image_size
        )
        arrays = backbone_to_state_dict(params["backbone"], cfg)
        tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
        missing, unexpected = self.backbone.load_state_dict(tensors, strict=False)
        assert not unexpected
        assert all(
            n.startswith(("_conv_head", "_bn1", "_fc")) or "num_batches" in n for n in missing
        )
        neck: Any = params["neck"]
        details = neck.get("details", {})
        self.laterals = nn.ModuleList([linear(layer) for layer in _ordered(neck["laterals"])])
        self.patches = cfg.details
        self.details = nn.ModuleList(
            [
                conv(layer["kernel"], stride=patch)
                for layer, (patch, _) in zip(_ordered(details), cfg.details, strict=True)
            ]
        )
        self.blocks = nn.Sequential(*[Block(block) for block in _ordered(neck["blocks"])])
        self.norm = norm(neck["norm"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = features(self.backbone, images)
        used = found[-len(self.laterals) :]
        x = None
        for lateral, feature in reversed(list(zip(self.laterals, used, strict=True))):
            y = lateral(feature.movedim(1, -1)).movedim(-1, 1)
            if x is not None:
                y = y + nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
            x = y
        assert x is not None
        for detail, (patch, _) in zip(self.details, self.patches, strict=True):
            (fine,) = (y for y in found if y.shape[-1] == patch * x.shape[-1])
            x = x + detail(fine)
        x = self.blocks(x)
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def torch_nano(params: "Params", config: "SamConfig", number: int = 0) -> nn.Module:
    """Meta's `Sam` with their prompt encoder and decoder, and `TorchEncoder` before them.

    `number` is the EfficientNet-Lite's, which has to be `config`'s.
    """
    from samjax.convert.nano import decoder_to_state_dicts
    from samjax.convert.reference import build_reference
    from samjax.models import EfficientNetLiteConfig, ImageEncoderViTConfig

    encoder = config.image_encoder
    assert isinstance(encoder, EfficientNetLiteConfig)
    vit = ImageEncoderViTConfig(
        image_size=config.image_size, patch_size=encoder.output_stride, width=16, depth=1,
        num_heads=1, mlp_width=16, out_channels=encoder.out_channels, global_layers=(),
    )  # fmt: skip
    sam = build_reference(config.replace(image_encoder=vit))
    sam.image_encoder = TorchEncoder(params["image_encoder"], encoder, number)
    decoder = decoder_to_state_dicts(params)
    for module, part in ((sam.prompt_encoder, "PromtEncoder"), (sam.mask_decoder, "MaskDecoder")):
        module.load_state_dict({name: torch.from_numpy(x) for name, x in decoder[part].items()})
    return sam.eval().requires_grad_(False)


def linear(layer: dict[str, Any]) -> nn.Linear:
    weight = tensor(layer["kernel"]).T.contiguous()
    module = nn.Linear(weight.shape[1], weight.shape[0])
    module.load_state_dict({"weight": weight, "bias": tensor(layer["bias"])})
    return module


def conv(kernel: Any, *, stride: int = 1, padding: int = 0, depthwise: bool = False) -> nn.Conv2d:
    weight = tensor(kernel).permute(3, 2, 0, 1).contiguous()
    groups = len(weight) if depthwise else 1
    module = nn.Conv2d(
        weight.shape[1] * groups, len(weight), weight.shape[2], stride=stride, padding=padding,
        groups=groups, bias=False,
    )  # fmt: skip
    module.load_state_dict({"weight": weight})
    return module


def norm(layer: dict[str, Any]) -> nn.LayerNorm:
    scale = tensor(layer["scale"])
    module = nn.LayerNorm(len(scale), eps=1e-6)
    module.load_state_dict({"weight": scale, "bias": tensor(layer["bias"])})
    return module


def tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def _ordered(layers: dict) -> list:
    """The layers of a list, whose keys are its indices."""
    return [layers[i] for i in sorted(layers, key=int)]
