"""`samjax predict`: masks of the objects that points and boxes show, or of everything."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from samjax.cli.common import add_model, load_model, model_path
from samjax.cli.progress import waiting

PROJECT, NAME = "runs/segment", "predict"
"""Where results go when no folder is named: a new one, with a number from the second on."""

STABILITY_OFFSET = 1.0
"""In logits, as the generator's default."""


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "predict",
        parents=[shared],
        help="masks of what points and boxes show",
        description="Masks of one picture. All points belong to one object, and so does a box "
        "that is given with them; several boxes without points are an object each. Coordinates "
        "are in pixels of the picture. Without points and boxes: all masks of the picture, as "
        "samjax everything finds them.",
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture")
    add_model(parser)
    parser.add_argument(
        "--point",
        nargs="+",
        type=float,
        action="append",
        default=[],
        metavar=("X Y", "LABEL"),
        help="a point; LABEL is 1 for the object (default), 0 for the background",
    )
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        action="append",
        default=[],
        metavar=("X1", "Y1", "X2", "Y2"),
        help="a box around an object",
    )
    parser.add_argument(
        "--mask-input", metavar="NPY", help="low-resolution logits, as --save-logits writes them"
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument(
        "--multimask",
        action="store_true",
        default=None,
        help="let the model find several masks of each object (default for a single point)",
    )
    number.add_argument(
        "--single",
        dest="multimask",
        action="store_false",
        help="let it find one (default for all other prompts)",
    )
    parser.add_argument(
        "--all-masks",
        action="store_true",
        help="write all masks that were found, not only the one of the highest predicted IoU",
    )
    parser.add_argument(
        "--hq-token-only",
        action="store_true",
        help="of an HQ-SAM model, the masks of its HQ token alone, as for pictures of one thing",
    )
    parser.add_argument(
        "--save-logits",
        action="store_true",
        help="write low-resolution logits for --mask-input, ID_low_res.npy",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help=f"folder for the results (default: {PROJECT}/{NAME}, {NAME}2, ...)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results in the folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from samjax import results
    from samjax.images import read_image
    from samjax.naming import next_folder

    prompts = _prompts(args)
    settings = {"command": "predict", "model": str(model_path(args.model))}
    if args.precision is not None:
        settings["precision"] = args.precision
    pictures = results.list_pictures([args.image])
    image = read_image(args.image)
    _check(prompts, image.shape[:2])
    output = results.open_run(
        args.output or next_folder(PROJECT, NAME),
        settings,
        pictures,
        overwrite=args.overwrite,
        resumable=False,
    )
    model = load_model(args.model, args.precision)
    records, low_res_masks = (
        _found(model, image, prompts, args) if prompts else (_everything(model, image), [])
    )
    results.begin(output)
    folder = results.write_picture(
        output,
        pictures[0],
        image,
        records,
        low_res_masks=low_res_masks if args.save_logits else (),
        points=prompts[0].get("point_coords") if prompts else None,
        labels=prompts[0].get("point_labels") if prompts else None,
        boxes=np.array(args.box) if args.box else None,
    )
    results.write_coco(output)
    for i, record in enumerate(records):
        print(_line(record, folder / f"{i}.png"))
    print(f"overlay: {folder / 'overlay.png'}")
    return 0


def _prompts(args: argparse.Namespace) -> list[dict[str, np.ndarray]]:
    """Arguments of `SamPredictor.predict` for each object; none for everything."""
    wrong = next((point for point in args.point if len(point) not in (2, 3)), None)
    if wrong:
        raise ValueError(f"--point has {len(wrong)} numbers {wrong}; give X Y or X Y LABEL")
    labels = np.array([point[2] if len(point) == 3 else 1 for point in args.point])
    if strange := [label for label in labels.tolist() if label not in (0, 1)]:
        raise ValueError(
            f"the LABEL of a --point is {strange[0]:g}; it has to be 1 (object) or 0 (background)"
        )
    if len(args.box) > 1 and (args.point or args.mask_input):
        raise ValueError(
            f"{len(args.box)} boxes are as many objects, and points or a mask cannot tell to which "
            "they belong: give one --box with them, or run once for each object"
        )
    if not (args.point or args.box or args.mask_input):
        given = {"--multimask": args.multimask, "--single": args.multimask is False,
                 "--all-masks": args.all_masks, "--save-logits": args.save_logits,
                 "--hq-token-only": args.hq_token_only}  # fmt: skip
        if idle := [flag for flag, is_given in given.items() if is_given]:
            raise ValueError(
                f"{idle[0]} is for an object that is shown; give --point X Y, --box X1 Y1 X2 Y2 or "
                "--mask-input, or leave it out for everything"
            )
        return []
    if len(args.box) > 1:
        return [{"box": np.array(box)} for box in args.box]
    prompt = {}
    if args.point:
        prompt["point_coords"] = np.array([point[:2] for point in args.point])
        prompt["point_labels"] = labels.astype(np.int32)
    if args.box:
        prompt["box"] = np.array(args.box[0])
    if args.mask_input:
        prompt["mask_input"] = _load_mask(args.mask_input)
    return [prompt]


def _load_mask(path: str) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is no .npy file of low-resolution logits (see --save-logits)")
    return array


def _check(prompts: list[dict[str, np.ndarray]], size: tuple[int, int]) -> None:
    """What `predict` would refuse, before a model is loaded for it."""
    from samjax.prompts import check_box, check_points

    for prompt in prompts:
        if "point_coords" in prompt:
            check_points(prompt["point_coords"], prompt["point_labels"], size)
        if "box" in prompt:
            check_box(prompt["box"], size)


def _everything(model: Any, image: np.ndarray) -> list[dict[str, Any]]:
    from samjax.automatic_mask_generator import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(model, output_mode="coco_rle", progress=True)
    return generator.generate(image)


def _found(
    model: Any, image: np.ndarray, prompts: list[dict[str, np.ndarray]], args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Records of the objects that are shown, and low-resolution logits."""
    from samjax.predictor import SamPredictor

    predictor = SamPredictor(model)
    with waiting(f"encoding {args.image}"):
        predictor.set_image(image)
    multimask = _is_one_point(prompts) if args.multimask is None else args.multimask
    records, low_res_masks = [], []
    for prompt in tqdm(prompts, unit="object", delay=2, disable=len(prompts) < 2):
        asked = prompt | {"multimask_output": multimask, "hq_token_only": args.hq_token_only}
        for record, low_res in _masks(predictor, asked, every=args.all_masks):
            records.append(record)
            low_res_masks.append(low_res)
    return records, low_res_masks


def _is_one_point(prompts: list[dict[str, np.ndarray]]) -> bool:
    return list(prompts[0]) == ["point_coords", "point_labels"] and (
        len(prompts[0]["point_coords"]) == 1
    )


def _masks(
    predictor: Any, prompt: dict[str, Any], *, every: bool
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """A record as the generator's, and (1, h, w) low-resolution logits, for each mask kept.

    `prompt` are arguments of `SamPredictor.predict`.
    """
    from samjax.postprocess import (
        area_from_rle,
        box_xyxy_to_xywh,
        coco_encode_rle,
        mask_to_rle,
        masks_to_boxes,
        stability_score,
    )

    logits, ious, low_res = predictor.predict(**prompt, return_logits=True)
    kept = range(len(ious)) if every else [int(ious.argmax())]
    height, width = logits.shape[1:]
    points = prompt.get("point_coords", np.zeros((0, 2))).tolist()
    found = []
    for i in kept:
        mask = logits[i] > predictor.mask_threshold
        rle = mask_to_rle(mask)
        stability = float(stability_score(logits[i], predictor.mask_threshold, STABILITY_OFFSET))
        record = {
            "segmentation": coco_encode_rle(rle),
            "area": area_from_rle(rle),
            "bbox": box_xyxy_to_xywh(np.asarray(masks_to_boxes(mask))).tolist(),
            "predicted_iou": float(ious[i]),
            "point_coords": points,
            "stability_score": stability if np.isfinite(stability) else 0.0,
            "crop_box": [0, 0, width, height],
        }
        found.append((record, low_res[i : i + 1]))
    return found


def _line(record: dict[str, Any], path: Path) -> str:
    x, y, width, height = record["bbox"]
    return (
        f"{path}: {record['area']} pixels, box {x} {y} {x + width} {y + height}, "
        f"predicted IoU {record['predicted_iou']:.3f}"
    )
