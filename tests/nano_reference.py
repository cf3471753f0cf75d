"""nano's image encoder in torch, for comparison: the public backbone and the neck once more."""

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from reference import random_reference
from samjax.convert.efficientnet_lite import backbone_to_state_dict
from samjax.convert.nano import decoder_to_state_dicts
from samjax.models import EfficientNetLiteConfig, ImageEncoderViTConfig, SamConfig


def random_backbone(number: int, image_size: int, seed: int) -> nn.Module:
    """The public package's model with every array drawn from `seed`, none left at zero or one."""
    # Given the size, the package pads every convolution as TensorFlow pads at that size.
    model = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=image_size)
    generator = torch.Generator().manual_seed(seed)
    for name, x in model.state_dict().items():
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=generator)
            if name.endswith("running_var"):
                x.copy_(torch.exp(0.3 * noise))
            elif x.ndim > 1:
                x.copy_(noise * (2 / x[0].numel()) ** 0.5)
            else:
                x.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * noise)
    return model.eval()


def features(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The last features of strides 2, 4, 8, 16 and 32."""
    x = model._swish(model._bn0(model._conv_stem(images)))
    found = []
    for block in model._blocks:
        y = block(x)
        if y.shape[-1] < x.shape[-1]:
            found.append(x)
        x = y
    return [*found, x]


class TorchEncoder(nn.Module):
    """Backbone and neck with the arrays of `params["image_encoder"]`."""

    def __init__(self, params: dict, cfg: EfficientNetLiteConfig, number: int):
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
        self.neck, self.details = params["neck"], cfg.details

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        neck = self.neck
        found = features(self.backbone, images)
        used = found[-len(neck["laterals"]) :]
        x = None
        for i, feature in reversed(list(enumerate(used))):
            lateral = linear(neck["laterals"][i], feature.movedim(1, -1)).movedim(-1, 1)
            if x is not None:
                x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
                lateral = lateral + x
            x = lateral
        details = zip(neck.get("details", {}).values(), self.details, strict=True)
        for detail, (patch, width) in details:
            kernel = tensor(detail["kernel"]).permute(3, 2, 0, 1)
            (fine,) = (y for y in found if y.shape[-1] == patch * x.shape[-1])
            assert fine.shape[1] == width
            x = x + nn.functional.conv2d(fine, kernel, stride=patch)
        for block in neck["blocks"].values():
            kernel = tensor(block["depthwise"]["kernel"]).permute(3, 2, 0, 1)
            y = nn.functional.conv2d(x, kernel, padding=2, groups=len(kernel)).movedim(1, -1)
            y = linear(block["mlp"]["lin1"], norm(block["norm"], y))
            x = x + linear(block["mlp"]["lin2"], nn.functional.gelu(y)).movedim(-1, 1)
        return norm(neck["norm"], x.movedim(1, -1)).movedim(-1, 1)


def torch_nano(params: dict, config: SamConfig, number: int) -> nn.Module:
    """Meta's `Sam` with their prompt encoder and decoder, and `TorchEncoder` before them."""
    vit = ImageEncoderViTConfig(
        image_size=config.image_size, patch_size=config.image_encoder.output_stride, width=16,
        depth=1, num_heads=1, mlp_width=16, global_layers=(),
    )  # fmt: skip
    sam = random_reference(config.replace(image_encoder=vit), seed=0)
    sam.image_encoder = TorchEncoder(params["image_encoder"], config.image_encoder, number)
    decoder = decoder_to_state_dicts(params)
    for module, part in ((sam.prompt_encoder, "PromtEncoder"), (sam.mask_decoder, "MaskDecoder")):
        module.load_state_dict({name: torch.from_numpy(x) for name, x in decoder[part].items()})
    return sam.eval().requires_grad_(False)


def linear(layer: dict, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(x, tensor(layer["kernel"]).T, tensor(layer["bias"]))


def norm(layer: dict, x: torch.Tensor) -> torch.Tensor:
    scale, bias = tensor(layer["scale"]), tensor(layer["bias"])
    return nn.functional.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-6)


def tensor(x) -> torch.Tensor:
    return torch.from_numpy(np.array(x))
