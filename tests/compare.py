"""Records of everything against the reference's."""

import numpy as np

KEYS = {
    "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box",
}  # fmt: skip


def iou(a, b):
    union = np.logical_or(a, b).sum()
    return np.logical_and(a, b).sum() / union if union else 1.0


def check_same(ours, theirs):
    """The same records in any order: ties in the suppression have none.

    A record is found again by its point, its crop and its mask. Returns how many mask pixels
    differ, and how many stability scores differ by more than 1e-4. Such a score is that of a small
    mask, in which a pixel or two that lie on the score's thresholds are worth more.
    """
    assert len(ours) == len(theirs)
    left = list(theirs)
    flipped, scores = 0, 0
    for record in ours:
        assert set(record) == KEYS
        same_place = [
            other for other in left
            if other["point_coords"] == record["point_coords"]
            and other["crop_box"] == record["crop_box"]
        ]  # fmt: skip
        assert same_place, f"no record of the reference at {record['point_coords']}"
        other = max(same_place, key=lambda o: iou(o["segmentation"], record["segmentation"]))
        left = [o for o in left if o is not other]
        assert iou(other["segmentation"], record["segmentation"]) >= 0.999
        assert other["bbox"] == record["bbox"]
        assert abs(other["predicted_iou"] - record["predicted_iou"]) < 1e-4
        score, difference = record["stability_score"], other["stability_score"]
        difference = abs(difference - score)
        if difference > 1e-4:
            assert difference * record["area"] <= 2
            scores += 1
        difference = (other["segmentation"] != record["segmentation"]).sum()
        assert abs(other["area"] - record["area"]) <= difference
        assert record["area"] == record["segmentation"].sum()
        flipped += difference
    return flipped, scores
