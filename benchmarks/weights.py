"""Writes the same weights for every contender: python -m benchmarks.weights MODEL FOLDER

`FOLDER` then holds `samjax`, a checkpoint of samjax's; `meta.pth`, Meta's state dict; `meta.pt`,
Meta's model as it is, where its package has no name for it; and what `--formats` asks for:
`encoder.onnx` and `click.onnx`, exported as Meta exports them, `meta.npz` for those who have no
torch, and `embedding.npy`, of a square picture that is drawn, (1, D, h, w).
"""

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import ROOT

if TYPE_CHECKING:
    from samjax.models import SamConfig

MODELS = ("vit_b", "vit_l", "vit_h", "vit_t", "tiny", "nano")
FORMATS = ("encoder.onnx", "click.onnx", "meta.npz", "embedding.npy")
PUBLISHED = ("vit_b", "vit_l", "vit_h")
"""Those that Meta's package builds by name."""


def write_weights(
    model: str, folder: Path, *, checkpoint: Path | None, formats: list[str], batch: int = 1
) -> None:
    """In a process of its own, so that nothing of it is measured."""
    command = [sys.executable, "-m", "benchmarks.weights", model, str(folder)]
    command += ["--batch", str(batch), "--formats", *formats]
    if checkpoint is not None:
        command += ["--checkpoint", str(checkpoint.absolute())]
    subprocess.run(command, check=True, cwd=ROOT)


def read_config(folder: Path) -> dict[str, Any]:
    """`SamConfig.to_dict()` of the model in a folder, without samjax."""
    return json.loads((folder / "samjax/samjax.json").read_text())["config"]


def config(model: str) -> "SamConfig":
    from samjax.models import SamConfig

    return {
        "vit_b": SamConfig.vit_b,
        "vit_l": SamConfig.vit_l,
        "vit_h": SamConfig.vit_h,
        "vit_t": SamConfig.vit_t,
        "tiny": SamConfig.tiny,
    }[model]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=())
    parser.add_argument("--batch", type=int, default=1, help="pictures that encoder.onnx takes")
    args = parser.parse_args()

    import torch

    from samjax.checkpoint import save_checkpoint

    args.folder.mkdir(parents=True, exist_ok=True)
    reference, model = _nano() if args.model == "nano" else _vit(args.model, args.checkpoint)
    save_checkpoint(args.folder / "samjax", model)
    torch.save(reference.state_dict(), args.folder / "meta.pth")
    if args.model not in PUBLISHED:
        torch.save(reference, args.folder / "meta.pt")
    writers = {
        "encoder.onnx": _encoder, "click.onnx": _click, "meta.npz": _arrays,
        "embedding.npy": _embedding,
    }  # fmt: skip
    for name in args.formats:
        writers[name](reference, args.folder / name, args.batch)


def _vit(name: str, checkpoint: Path | None) -> tuple[Any, Any]:
    import torch

    from samjax.convert import from_state_dict
    from samjax.convert.reference import build_reference

    torch.manual_seed(0)
    reference = build_reference(config(name))
    if checkpoint is None:
        for parameter in reference.parameters():
            if not parameter.any():  # position embeddings and biases, which would hide mistakes
                torch.nn.init.normal_(parameter, std=0.02)
    else:
        reference.load_state_dict(torch.load(checkpoint, weights_only=True))
    return reference.eval().requires_grad_(False), from_state_dict(reference.state_dict())


def _nano() -> tuple[Any, Any]:
    from benchmarks.nano_in_torch import torch_nano
    from samjax.checkpoint import load

    model = load("nano")
    return torch_nano(model.params, model.config), model


def _arrays(reference: Any, path: Path, batch: int) -> None:
    import numpy as np

    np.savez(path, **{name: x.numpy() for name, x in reference.state_dict().items()})


def _embedding(reference: Any, path: Path, batch: int) -> None:
    import numpy as np
    import segment_anything

    from benchmarks.contenders import draw_picture

    predictor = segment_anything.SamPredictor(reference)
    side = reference.image_encoder.img_size
    predictor.set_image(draw_picture(side, side))
    np.save(path, predictor.get_image_embedding().numpy())


def _encoder(reference: Any, path: Path, batch: int) -> None:
    import torch

    size = reference.image_encoder.img_size
    _export(
        reference.image_encoder, path, {"images": torch.zeros(batch, 3, size, size)}, ["embeddings"]
    )


def _click(reference: Any, path: Path, batch: int) -> None:
    """Of one click: `segment_anything.utils.onnx`, which gives all four masks, for pictures of the
    size of `draw_picture`, which tracing makes constants."""
    import torch
    from segment_anything.utils.onnx import SamOnnxModel

    from benchmarks.contenders import PICTURE_SIZE

    decoder = reference.prompt_encoder
    _export(
        SamOnnxModel(reference, return_single_mask=False),
        path,
        {
            "image_embeddings": torch.randn(1, decoder.embed_dim, *decoder.image_embedding_size),
            "point_coords": torch.tensor([[[100.0, 100.0], [0.0, 0.0]]]),
            "point_labels": torch.tensor([[1.0, -1.0]]),
            "mask_input": torch.zeros(1, 1, *decoder.mask_input_size),
            "has_mask_input": torch.zeros(1),
            "orig_im_size": torch.tensor(PICTURE_SIZE, dtype=torch.float32),
        },
        ["masks", "iou_predictions", "low_res_masks"],
    )


def _export(module: Any, path: Path, inputs: dict[str, Any], outputs: list[str]) -> None:
    import torch

    with warnings.catch_warnings():  # sizes become constants, which is what is wanted
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, tuple(inputs.values()), path, input_names=list(inputs), output_names=outputs,
            opset_version=17, dynamo=False,
        )  # fmt: skip


if __name__ == "__main__":
    main()
