"""YOLOv8 in torch under the published names, with batch norms that are not folded.

Written for the tests from the published architecture, with torch's own modules.
"""

import torch
from torch import nn


class Conv(nn.Module):
    def __init__(self, d_in, d_out, size=1, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(d_out, eps=1e-3)

    def forward(self, x):
        return nn.functional.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, width, residual):
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width, 3), Conv(width, width, 3)
        self.residual = residual

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.residual else y


class C2f(nn.Module):
    def __init__(self, d_in, d_out, depth, residual):
        super().__init__()
        self.cv1 = Conv(d_in, d_out)
        self.m = nn.ModuleList([Bottleneck(d_out // 2, residual) for _ in range(depth)])
        self.cv2 = Conv(d_out // 2 * (2 + depth), d_out)

    def forward(self, x):
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Pool(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(width // 2 * 4, width)

    def forward(self, x):
        parts = [self.cv1(x)]
        parts += [nn.functional.max_pool2d(parts[0], n, 1, n // 2) for n in (5, 9, 13)]
        return self.cv2(torch.cat(parts, 1))


class Proto(nn.Module):
    def __init__(self, d_in, width, d_out):
        super().__init__()
        self.cv1, self.cv2 = Conv(d_in, width, 3), Conv(width, width, 3)
        self.upsample = nn.ConvTranspose2d(width, width, 2, 2)
        self.cv3 = Conv(width, d_out)

    def forward(self, x):
        return self.cv3(self.cv2(self.upsample(self.cv1(x))))


class Distances(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.conv = nn.Conv2d(count, 1, 1, bias=False)
        self.conv.weight.data = torch.arange(count, dtype=torch.float).reshape(1, count, 1, 1)


class Head(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        widths = cfg.grid_widths

        def branches(width, d_out):
            return nn.ModuleList([
                nn.Sequential(Conv(d, width, 3), Conv(width, width, 3), nn.Conv2d(width, d_out, 1))
                for d in widths
            ])  # fmt: skip

        box_width = max(16, widths[0] // 4, 4 * cfg.reg_max)
        self.cv2 = branches(box_width, 4 * cfg.reg_max)
        self.cv3 = branches(max(widths[0], min(cfg.num_classes, 100)), cfg.num_classes)
        self.dfl = Distances(cfg.reg_max)
        if cfg.task == "segment":
            self.proto = Proto(widths[0], cfg.prototype_width, cfg.mask_channels)
            self.cv4 = branches(max(widths[0] // 4, cfg.mask_channels), cfg.mask_channels)
        if cfg.task == "obb":
            self.cv4 = branches(max(widths[0] // 4, 1), 1)

    def forward(self, features):
        def joined(branches):
            found = [branch(x) for branch, x in zip(branches, features, strict=True)]
            return torch.cat([x.flatten(2) for x in found], 2).transpose(1, 2)

        outputs = {"boxes": joined(self.cv2), "classes": joined(self.cv3)}
        if hasattr(self, "cv4"):
            outputs["extras"] = joined(self.cv4)
        if hasattr(self, "proto"):
            outputs["prototypes"] = self.proto(features[0]).permute(0, 2, 3, 1)
        return outputs


class Nothing(nn.Module):
    """In the places of the published list that hold no weights."""


class Yolo(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        w, (fine, middle, coarse), depth = cfg.widths, cfg.grid_widths, cfg.neck_depth
        layers = [Conv(3, w[0], 3, 2)]
        for i in range(4):
            layers += [Conv(w[i], w[i + 1], 3, 2), C2f(w[i + 1], w[i + 1], cfg.depths[i], True)]
        layers += [Pool(w[-1]), Nothing(), Nothing(), C2f(coarse + middle, middle, depth, False)]
        layers += [Nothing(), Nothing(), C2f(middle + fine, fine, depth, False)]
        layers += [Conv(fine, fine, 3, 2), Nothing(), C2f(fine + middle, middle, depth, False)]
        layers += [
            Conv(middle, middle, 3, 2),
            Nothing(),
            C2f(middle + coarse, coarse, depth, False),
        ]
        self.model = nn.Sequential(*layers, Head(cfg))
        self.names = {i: f"thing {i}" for i in range(cfg.num_classes)}

    def forward(self, x):
        m, kept = self.model, {}
        for i in range(10):
            x = kept[i] = m[i](x)
        up = nn.functional.interpolate
        twelve = m[12](torch.cat([up(kept[9], scale_factor=2), kept[6]], 1))
        fine = m[15](torch.cat([up(twelve, scale_factor=2), kept[4]], 1))
        middle = m[18](torch.cat([m[16](fine), twelve], 1))
        coarse = m[21](torch.cat([m[19](middle), kept[9]], 1))
        return m[22]([fine, middle, coarse])


def build(cfg, seed=0):
    """With random weights, and statistics that a norm could have."""
    torch.manual_seed(seed)
    model = Yolo(cfg).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model
