"""What nano's training starts from: the split of the COCO pictures, and the untrained model.

    python -m benchmarks.nano.prepare DATA DECODER

DATA is the folder with coco-mix, coco-train, feralcat, nuclei and particles, DECODER the trained
decoder that MobileSAMv2 publishes. Everything goes to `nano-training`, where the settings in
`stage1.toml` and those after it look for it.

COCO pictures whose id leaves 7 when divided by 20 are held out: no stage sees them. Every fourth
picture of nuclei is held out from stage 2 on, for the fine-tuning figures.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from samjax.checkpoint import save_checkpoint
from samjax.convert.nano import initial_nano
from samjax.models import EfficientNetLiteConfig, SamConfig

OUTPUT = Path(__file__).parents[2] / "nano-training"
START = SamConfig.nano(image_encoder=EfficientNetLiteConfig.lite0())
"""An input of 512 pixels, and no features finer than the embedding."""
SPLIT = ("coco-mix", "coco-train", "nuclei")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("decoder", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    link = args.output / "data"
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(args.data, args.output))
    for name in SPLIT:
        for part, count in split(args.data / name / "instances.json", args.output, name).items():
            print(f"{name}, {part}: {count} pictures")
    start = initial_nano(args.decoder, 0, config=START)
    save_checkpoint(args.output / "start", start, overwrite=True)
    print(args.output)


def split(annotations: Path, output: Path, name: str) -> dict[str, int]:
    """Writes NAME-training.json and NAME-held-out.json, and returns their numbers of pictures."""
    content = json.loads(annotations.read_text())
    counts = {}
    chosen = {
        image["id"]
        for number, image in enumerate(content["images"])
        if (number % 4 == 3 if name == "nuclei" else image["id"] % 20 == 7)
    }
    for part, held_out in (("training", False), ("held-out", True)):
        images = [image for image in content["images"] if (image["id"] in chosen) == held_out]
        ids = {image["id"] for image in images}
        kept = [one for one in content["annotations"] if one["image_id"] in ids]
        changed = {**content, "images": images, "annotations": kept}
        (output / f"{name}-{part}.json").write_text(json.dumps(changed))
        counts[part] = len(images)
    return counts


if __name__ == "__main__":
    main()
