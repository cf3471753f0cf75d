"""Pictures for `samjax batch`, and what it has written."""

import numpy as np

from samjax.images import write_image

EASY = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}
"""Settings under which the tests' model finds something."""


def make_pictures(folder, number, start=0):
    """Rectangles on noise, of two sizes, some in a sub-folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + number):
        rng = np.random.default_rng(i)
        height, width = ((40, 60), (50, 34))[i % 2]
        image = rng.integers(0, 60, (height, width, 3), np.uint8)
        y, x = rng.integers(0, height // 2), rng.integers(0, width // 2)
        image[y : y + 15, x : x + 20] = rng.integers(100, 255, 3)
        name = f"sub/{i:04d}.png" if i % 5 == 4 else f"{i:04d}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        write_image(folder / name, image)
    return folder


def contents(folder):
    """Every file's bytes, but those about how the run went."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).parts[0] not in ("log", "report.html")
    }
