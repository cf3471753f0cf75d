"""The public backbone in torch with random arrays, and nano's own, to compare the two."""

import jax
import torch
from efficientnet_lite_pytorch import EfficientNet
from flax import nnx
from torch import nn

from random_model import abstract_module
from samjax.models import ImageEncoderEfficientNetLite


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


def backbone_features(cfg, arrays, images):
    """What nano's backbone makes of pictures with `arrays`."""
    graphdef = nnx.split(abstract_module(ImageEncoderEfficientNetLite, cfg).backbone)[0]
    return jax.jit(lambda arrays, images: nnx.merge(graphdef, arrays)(images))(arrays, images)
