"""The peers, each in its own environment, which has neither samjax nor Meta's package.

An encoder takes (B, S, S, 3) normalized pictures and gives (B, h, w, D) embeddings, as a function
of nothing to time. A predictor has Meta's `set_image` and `predict`, as much as a click needs.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import cores
from benchmarks.weights import read_config

Encode = Callable[[], Any]

_TRANSFORMERS_NAMES = (
    ("image_encoder.", "vision_encoder."),
    (".patch_embed.proj.", ".patch_embed.projection."),
    (".blocks.", ".layers."),
    (".norm_final_attn.", ".layer_norm_final_attn."),
    *((f".norm{i}.", f".layer_norm{i}.") for i in (1, 2, 3, 4)),
    *((f".neck.{i}.", f".neck.{name}.") for i, name in
      enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2"))),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
     "shared_image_embedding.positional_embedding"),
    (".point_embeddings.", ".point_embed."),
    *((f".mask_downscaling.{i}.", f".mask_embed.{name}.") for i, name in
      ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3"))),
    *((f".output_upscaling.{i}.", f".{name}.") for i, name in
      ((0, "upscale_conv1"), (1, "upscale_layer_norm"), (3, "upscale_conv2"))),
)  # fmt: skip
"""Meta's names and those of `SamModel`, which names its own modules otherwise."""


def transformers_model(args: argparse.Namespace) -> Any:
    """transformers' `SamModel` with Meta's weights, every one of which has to find its place."""
    import torch
    import transformers

    torch.set_num_threads(cores())
    config = read_config(args.weights)
    encoder = config["image_encoder"]
    size = {name: encoder[name] for name in ("image_size", "patch_size")}
    width = encoder["out_channels"]
    model = transformers.SamModel(
        transformers.SamConfig(
            vision_config=dict(
                hidden_size=encoder["width"],
                output_channels=width,
                num_hidden_layers=encoder["depth"],
                num_attention_heads=encoder["num_heads"],
                mlp_dim=encoder["mlp_width"],
                window_size=encoder["window_size"],
                global_attn_indexes=encoder["global_layers"],
                num_pos_feats=width // 2,
                **size,
            ),
            prompt_encoder_config=dict(
                hidden_size=width, mask_input_channels=config["mask_channels"], **size
            ),
            mask_decoder_config=dict(
                hidden_size=width,
                mlp_dim=config["decoder_mlp_width"],
                num_hidden_layers=config["decoder_depth"],
                num_attention_heads=config["decoder_heads"],
                attention_downsample_rate=config["attention_downsample_rate"],
                num_multimask_outputs=config["num_multimask_outputs"],
                iou_head_depth=config["iou_head_depth"],
                iou_head_hidden_dim=config["iou_head_width"],
            ),
        )
    )
    theirs = torch.load(args.weights / "meta.pth", weights_only=True)
    renamed = {_transformers_name(name): x for name, x in theirs.items()}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    missing = [n for n in missing if n != "prompt_encoder.shared_embedding.positional_embedding"]
    if missing or unexpected:
        raise ValueError(f"transformers' SamModel: missing {missing}, unexpected {unexpected}")
    return model.eval().requires_grad_(False)


def _transformers_name(name: str) -> str:
    for theirs, ours in _TRANSFORMERS_NAMES:
        name = name.replace(theirs, ours)
    head, middle, tail = name.rpartition(".layers.")
    if "iou_prediction_head" in head or "hypernetworks_mlps" in head:
        index, _, rest = tail.partition(".")
        place = {"0": "proj_in", "2": "proj_out"}.get(index, f"layers.{int(index) - 1}")
        return f"{head}.{place}.{rest}"
    return name


def transformers_encoder(args: argparse.Namespace, pictures: np.ndarray) -> Encode:
    import torch

    model = transformers_model(args)
    images = torch.from_numpy(_channels_first(pictures))

    @torch.inference_mode()
    def encode() -> Any:
        return model.get_image_embeddings(images).permute(0, 2, 3, 1)

    return encode


def openvino_session(path: Path) -> Callable[[dict[str, np.ndarray]], Any]:
    """In float32, which is not what it takes by itself where the processor has bfloat16."""
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(path, "CPU", options)
    request = model.create_infer_request()
    return lambda inputs: request.infer(inputs)[0]


def onnxruntime_session(path: Path) -> Callable[[dict[str, np.ndarray]], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (first, *_) = (output.name for output in session.get_outputs())
    return lambda inputs: session.run([first], inputs)[0]


SESSIONS = {"openvino": openvino_session, "onnxruntime": onnxruntime_session}


def onnx_encoder(args: argparse.Namespace, pictures: np.ndarray) -> Encode:
    """Meta's encoder, exported by torch, in OpenVINO or ONNX Runtime."""
    run = SESSIONS[args.worker](args.weights / "encoder.onnx")
    inputs = {"images": _channels_first(pictures)}
    return lambda: run(inputs).transpose(0, 2, 3, 1)


def keras_hub_encoder(args: argparse.Namespace, pictures: np.ndarray) -> Encode:
    """keras-hub's `ViTDetBackbone`, SAM's image encoder there, on JAX, with Meta's weights."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras_hub

    config = read_config(args.weights)["image_encoder"]
    size = config["image_size"]
    model = keras_hub.models.ViTDetBackbone(
        hidden_size=config["width"],
        num_layers=config["depth"],
        intermediate_dim=config["mlp_width"],
        num_heads=config["num_heads"],
        global_attention_layer_indices=list(config["global_layers"]),
        image_shape=(size, size, 3),
        patch_size=config["patch_size"],
        num_output_channels=config["out_channels"],
        window_size=config["window_size"],
    )
    with np.load(args.weights / "meta.npz") as arrays:
        ordered = iter(_keras_weights(arrays, config["depth"]))
        for layer in model.layers:  # `model.weights` has them in another order
            layer.set_weights([next(ordered) for _ in layer.weights])
    # It takes 0..1 and normalizes by itself, with these.
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = (pictures * std + mean).astype(np.float32)
    return lambda: model.predict_on_batch(images)


def _keras_weights(arrays: Any, depth: int) -> list[np.ndarray]:
    """Meta's arrays in the order and the layout of the weights of `ViTDetBackbone.layers`."""

    def get(name: str) -> np.ndarray:
        x = arrays[f"image_encoder.{name}"]
        if x.ndim == 4 and name.endswith("weight"):
            return x.transpose(2, 3, 1, 0)
        return x.T if x.ndim == 2 and name.endswith("weight") else x

    both = ("weight", "bias")
    block = [f"{layer}.{kind}" for layer in ("norm1", "norm2", "attn.qkv", "attn.proj")
             for kind in both]  # fmt: skip
    block += ["attn.rel_pos_h", "attn.rel_pos_w"]
    block += [f"mlp.{layer}.{kind}" for layer in ("lin1", "lin2") for kind in both]
    names = [f"patch_embed.proj.{kind}" for kind in both] + ["pos_embed"]
    names += [f"blocks.{i}.{name}" for i in range(depth) for name in block]
    names += ["neck.0.weight", *(f"neck.1.{k}" for k in both)]
    names += ["neck.2.weight", *(f"neck.3.{k}" for k in both)]
    return [get(name) for name in names]


class TransformersPredictor:
    """A click as transformers' documentation shows it, its image embedding kept."""

    def __init__(self, args: argparse.Namespace):
        from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

        self.config, self.model = read_config(args.weights), transformers_model(args)
        size = self.config["image_encoder"]["image_size"]
        self.processor = SamImageProcessorPil(pad_size={"height": size, "width": size})

    def set_image(self, picture: np.ndarray) -> None:
        import torch

        image, self.scale, self.input_size = prepare(picture, self.config)
        self.original_size = picture.shape[:2]
        with torch.inference_mode():
            self.embeddings = self.model.get_image_embeddings(torch.from_numpy(image))

    def predict(self, *, point_coords: np.ndarray, point_labels: np.ndarray) -> tuple:
        import torch

        points = torch.from_numpy((point_coords * self.scale)[None, None].astype(np.float32))
        labels = torch.from_numpy(point_labels[None, None])
        with torch.inference_mode():
            found = self.model(
                image_embeddings=self.embeddings, input_points=points, input_labels=labels
            )
            (masks,) = self.processor.post_process_masks(
                [found.pred_masks[0]], [self.original_size], [self.input_size]
            )
        return masks[0].numpy(), found.iou_scores[0, 0].numpy(), found.pred_masks[0, 0].numpy()


class OnnxPredictor:
    """Meta's encoder and its ONNX model for a click, in OpenVINO or ONNX Runtime.

    The click's model brings all four masks to full resolution, one more than the others do: that
    is how Meta exports it.
    """

    def __init__(self, args: argparse.Namespace):
        self.config, session = read_config(args.weights), SESSIONS[args.worker]
        self.encode = session(args.weights / "encoder.onnx")
        self.click = session(args.weights / "click.onnx")
        encoder = self.config["image_encoder"]
        patch = encoder.get("patch_size") or encoder["output_stride"]
        side = 4 * encoder["image_size"] // patch
        self.no_mask = np.zeros((1, 1, side, side), np.float32)

    def set_image(self, picture: np.ndarray) -> None:
        image, self.scale, _ = prepare(picture, self.config)
        self.embeddings = np.array(self.encode({"images": image}))
        self.size = np.array(picture.shape[:2], np.float32)

    def predict(self, *, point_coords: np.ndarray, point_labels: np.ndarray) -> tuple:
        points = np.concatenate([point_coords * self.scale, np.zeros((1, 2))])[None]
        masks = self.click(
            {
                "image_embeddings": self.embeddings,
                "point_coords": points.astype(np.float32),
                "point_labels": np.append(point_labels, -1)[None].astype(np.float32),
                "mask_input": self.no_mask,
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": self.size,
            }
        )
        return masks[0, 1:] > self.config["mask_threshold"], None, None


def prepare(picture: np.ndarray, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, tuple]:
    """A picture as Meta's predictor prepares it: (1, 3, S, S) float32, resized to the longest
    side, normalized, padded with zeros; by what coordinates (x, y) grow; and (height, width)."""
    from PIL import Image

    size = config["image_encoder"]["image_size"]
    height, width = picture.shape[:2]
    new = [int(side * size / max(height, width) + 0.5) for side in (height, width)]
    resized = np.asarray(Image.fromarray(picture).resize(new[::-1], Image.Resampling.BILINEAR))
    mean, std = np.float32(config["pixel_mean"]), np.float32(config["pixel_std"])
    image = np.zeros((1, 3, size, size), np.float32)
    image[0, :, : new[0], : new[1]] = ((resized - mean) / std).transpose(2, 0, 1)
    return image, np.array([new[1] / width, new[0] / height]), tuple(new)


def _channels_first(pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
