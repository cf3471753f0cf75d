"""`samjax everything`: all masks of pictures and folders (reference: `scripts/amg.py`)."""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from samjax.cli.common import add_model, architecture, load_model, model_path, number

if TYPE_CHECKING:
    import samjax.automatic_mask_generator
    import samjax.checkpoint
    import samjax.results
    import samjax.tiled_mask_generator

GENERATOR_ARGUMENTS: dict[str, tuple[float, str]] = {
    "points_per_side": (32, "points along a side of the grid"),
    "points_per_batch": (64, "points decoded at a time"),
    "pred_iou_thresh": (0.88, "keep masks whose predicted IoU is above this"),
    "stability_score_thresh": (0.95, "keep masks whose stability score is at least this"),
    "stability_score_offset": (1.0, "shift of the threshold for that score, in logits"),
    "box_nms_thresh": (0.7, "overlap of boxes above which the worse mask goes"),
    "crop_n_layers": (0, "layers of crops on which the model runs again"),
    "crop_nms_thresh": (0.7, "as --box-nms-thresh, between crops"),
    "crop_overlap_ratio": (512 / 1500, "overlap of the first layer's crops"),
    "crop_n_points_downscale_factor": (1, "division of the points per side in each layer"),
    "min_mask_region_area": (0, "fill holes and drop islands below this, in pixels"),
}
"""Arguments of `SamAutomaticMaskGenerator` that are flags: default (its type is theirs), help."""

CARRIED = (
    "pred_iou_thresh",
    "stability_score_thresh",
    "stability_score_offset",
    "box_nms_thresh",
    "crop_nms_thresh",
    "min_mask_region_area",
)
"""Those that a model may carry, and whose flag is None where it is not given."""

MOST_PIXELS = 2**31
"""Of a picture that is segmented in tiles: 6 GB. Pillow's own limit is for pictures of all kinds
of origin."""

_MODEL_TYPES = {"vit_b": "ViT-B", "vit_l": "ViT-L", "vit_h": "ViT-H", "default": "ViT-H"}


class _Tally(NamedTuple):
    failures: list[str]
    empty: list[str]


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "everything",
        parents=[shared],
        help="all masks of pictures and folders",
        description="Segments everything in pictures, given as files and folders.",
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="a picture or a folder")
    parser.add_argument(
        "--input", nargs="+", action="extend", default=[], metavar="INPUT", help="the same"
    )
    parser.add_argument("--recursive", action="store_true", help="pictures in sub-folders too")
    add_model(parser)
    parser.add_argument(
        "--model-type",
        choices=tuple(_MODEL_TYPES),
        help="not needed; an error if the model is another",
    )
    parser.add_argument(
        "--device", choices=("cpu", "gpu", "cuda", "tpu"), help="where to run; by default JAX's own"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace results in the folder")
    existing.add_argument(
        "--resume", action="store_true", help="do only the pictures that are missing there"
    )
    parser.add_argument(
        "--convert-to-rle", action="store_true", help="write no PNG masks, RLE in JSON only"
    )
    group = parser.add_argument_group("how masks are found")
    for name, (default, text) in GENERATOR_ARGUMENTS.items():
        carried = name in CARRIED
        usual = f"the model's own, or {default:.4g}" if carried else f"{default:.4g}"
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=None if carried else default,
            help=f"{text} (default: {usual})",
        )
    tiles = parser.add_argument_group("pictures larger than the model sees")
    tiles.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="segment in overlapping tiles of that many pixels of the picture a side, and join the "
        "masks across them; pictures of up to 2 billion pixels are read",
    )
    tiles.add_argument(
        "--tile-overlap",
        type=float,
        metavar="SHARE",
        help="what neighbouring tiles share, of a side (default: 0.25)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.tile is None:
        if args.tile_overlap is not None:
            raise ValueError("--tile-overlap is for tiles; give their size with --tile too")
        return _run(args)
    from samjax.everything.tiles import tile_boxes
    from samjax.images import reading_up_to

    if args.tile_overlap is None:
        args.tile_overlap = 0.25
    tile_boxes((1, 1), args.tile, args.tile_overlap)
    with reading_up_to(MOST_PIXELS):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from samjax import results
    from samjax.automatic_mask_generator import SamAutomaticMaskGenerator
    from samjax.checkpoint import read_thresholds
    from samjax.images import read_image
    from samjax.postprocess import generate_crop_boxes

    sources = args.inputs + args.input
    if not sources:
        raise ValueError("there is no input; give pictures or folders")
    pictures = results.list_pictures(sources, recursive=args.recursive)
    if len(pictures) == 1:
        read_image(pictures[0].path)
    generate_crop_boxes((1, 1), args.crop_n_layers, args.crop_overlap_ratio)
    arguments = _arguments(args, read_thresholds(model_path(args.model)).to_dict())
    output = results.open_run(
        args.output,
        _settings(args, arguments),
        pictures,
        overwrite=args.overwrite,
        resume=args.resume,
    )
    todo = results.missing(output, pictures)

    started = time.monotonic()
    with _device(args.device):
        model = load_model(args.model, args.precision)
        _check_model_type(args.model_type, model)
        one_by_one = SamAutomaticMaskGenerator(
            model, **arguments, output_mode="coco_rle", progress=args.tile is None
        )
        generator = one_by_one if args.tile is None else _in_tiles(one_by_one, args)
        results.begin(output)
        try:
            tally = _process(generator, output, todo, mask_files=not args.convert_to_rle)
        finally:
            done, masks = results.write_coco(output)
    _report(tally)
    earlier = done - len(todo) + len(tally.failures)
    skipped = f" ({earlier} done earlier)" if earlier else ""
    seconds = time.monotonic() - started
    print(
        f"{number(done, 'picture')}{skipped}, {number(masks, 'mask')}, {seconds:.1f} s, "
        f"in {output.folder}"
    )
    return 1 if tally.failures else 0


def _in_tiles(
    generator: "samjax.automatic_mask_generator.SamAutomaticMaskGenerator", args: argparse.Namespace
) -> "samjax.tiled_mask_generator.TiledMaskGenerator":
    from samjax.tiled_mask_generator import TiledMaskGenerator

    return TiledMaskGenerator(generator, tile=args.tile, overlap=args.tile_overlap, progress=True)


def _arguments(args: argparse.Namespace, carried: dict[str, float]) -> dict[str, Any]:
    """The generator's: a flag that is given, or what the model carries, or Meta's default."""
    defaults = {name: default for name, (default, _) in GENERATOR_ARGUMENTS.items()}
    flags = {name: getattr(args, name) for name in GENERATOR_ARGUMENTS}
    given = {name: value for name, value in flags.items() if value is not None}
    return defaults | carried | given


def _settings(args: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    """What results depend on. `points_per_batch` is left out, so that a run that ran out of memory
    can be resumed with less."""
    return {
        "command": "everything",
        "model": str(model_path(args.model)),
        **{name: value for name, value in arguments.items() if name != "points_per_batch"},
        "convert_to_rle": args.convert_to_rle,
        **({} if args.precision is None else {"precision": args.precision}),
        **({} if args.tile is None else {"tile": args.tile, "tile_overlap": args.tile_overlap}),
    }


def _process(
    generator: "samjax.tiled_mask_generator.GeneratesMany",
    output: "samjax.results.Run",
    pictures: "Sequence[samjax.results.Picture]",
    *,
    mask_files: bool,
) -> _Tally:
    """Reports a picture that cannot be done and goes on; errors of the output folder are raised."""
    from samjax.failures import FAILURES, reason
    from samjax.results import write_picture

    tally = _Tally([], [])
    paths = [picture.path for picture in pictures]
    bar = tqdm(pictures, unit="picture", delay=2, disable=len(pictures) < 2)
    with contextlib.closing(generator.generate_many(paths, yield_errors=True)) as results:
        for picture, found in zip(bar, results, strict=True):
            if isinstance(found, FAILURES):
                tally.failures.append(reason(picture.path, found))
                tqdm.write(f"samjax: skipped: {tally.failures[-1]}", file=sys.stderr)
                continue
            if isinstance(found, Exception):
                raise found
            image, records = found
            write_picture(output, picture, image, records, mask_files=mask_files)
            if not records:
                tally.empty.append(str(picture.path))
    return tally


def _report(tally: _Tally) -> None:
    if tally.empty:
        print(
            f"nothing found in {number(len(tally.empty), 'picture')} ({_some(tally.empty)}): lower "
            "--pred-iou-thresh or --stability-score-thresh"
        )
    if tally.failures:
        lines = [f"samjax: {number(len(tally.failures), 'picture')} not done:", *tally.failures]
        print("\n  ".join(lines), file=sys.stderr)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check_model_type(model_type: str | None, model: "samjax.checkpoint.Model") -> None:
    found = architecture(model.config) or "of another size"
    if model_type is not None and found != _MODEL_TYPES[model_type]:
        raise ValueError(
            f"--model-type {model_type} is {_MODEL_TYPES[model_type]}, but the model is {found}; "
            "leave --model-type out, or give the checkpoint that you meant"
        )


@contextlib.contextmanager
def _device(platform: str | None):
    """Makes that platform's first device JAX's default."""
    import jax

    from samjax.devices import find_device

    try:
        device = find_device(platform)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    with jax.default_device(device):
        yield
