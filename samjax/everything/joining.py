"""The masks of a picture's tiles, put together to the masks of the picture.

Two masks of two tiles belong to one thing where they agree in what the tiles share: where their
IoU there is above a threshold. The best agreement comes first; a thing has at most one mask of each
tile, because a tile's own masks have been told apart already. Masks are run lengths throughout.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from samjax.everything.masks import compressed, encode
from samjax.everything.tiles import Box, common
from samjax.postprocess import (
    Rle,
    box_from_rle,
    box_xyxy_to_xywh,
    reframe_rle,
)


class _Piece(NamedTuple):
    """One of a tile's records, and its compressed mask in the tile's frame."""

    tile: int
    record: Mapping[str, Any]
    rle: Rle


class _Agreement(NamedTuple):
    """How two pieces agree: IoU in what their tiles share, then IoU of all of them."""

    shared_iou: float
    whole_iou: float
    a: int
    b: int


class Joining:
    """Takes the tiles' records in any order, and gives the picture's.

    It holds the compressed masks, and for tiles whose neighbours have not come yet what of each
    mask the two share.
    """

    def __init__(self, tiles: Sequence[Box], merge_iou: float):
        self._tiles = tiles
        self._merge_iou = merge_iou
        self._pieces: list[_Piece] = []
        self._waiting: dict[tuple[int, int], list[tuple[int, Rle]]] = {}
        self._agreements: list[_Agreement] = []

    def add(self, tile: int, records: Sequence[Mapping[str, Any]]) -> None:
        """The generator's records of a tile, of any output mode, in the tile's coordinates."""
        first = len(self._pieces)
        self._pieces += [_Piece(tile, r, compressed(r["segmentation"])) for r in records]
        pieces = range(first, len(self._pieces))
        for other, box in enumerate(self._tiles):
            shared = None if other == tile else common(self._tiles[tile], box)
            if shared is None:
                continue
            seen = [(i, self._within(i, shared)) for i in pieces]
            seen = [(i, rle) for i, rle in seen if coco.area(rle)]
            theirs = self._waiting.pop((other, tile), None)
            if theirs is None:
                self._waiting[tile, other] = seen
            else:
                self._compare(theirs, seen)

    def records(self, size: tuple[int, int], output_mode: str) -> list[dict[str, Any]]:
        """One of the generator's records for each mask in the picture of that (height, width)."""
        return [self._record(group, size, output_mode) for group in self._groups()]

    def _within(self, piece: int, box: Box) -> Rle:
        tile, _, rle = self._pieces[piece]
        x, y, _, _ = self._tiles[tile]
        return reframe_rle(rle, (box[0] - x, box[1] - y, box[2] - x, box[3] - y))

    def _compare(self, ours: list[tuple[int, Rle]], theirs: list[tuple[int, Rle]]) -> None:
        if not ours or not theirs:
            return
        ious = coco.iou([rle for _, rle in ours], [rle for _, rle in theirs], [0] * len(theirs))
        for i, j in np.argwhere(ious > self._merge_iou):
            (a, rle_a), (b, rle_b), iou = ours[i], theirs[j], float(ious[i, j])
            shared = iou / (1 + iou) * (int(coco.area(rle_a)) + int(coco.area(rle_b)))
            both = self._pieces[a].record["area"] + self._pieces[b].record["area"]
            self._agreements.append(_Agreement(iou, shared / (both - shared), a, b))

    def _groups(self) -> list[list[int]]:
        """The pieces of each thing, in the order in which they came."""
        groups = {i: [i] for i in range(len(self._pieces))}
        root = list(groups)
        best_first = sorted(self._agreements, key=lambda x: (-x.shared_iou, -x.whole_iou))
        for _, _, a, b in best_first:
            a, b = sorted((root[a], root[b]))
            if a == b or self._tiles_of(groups[a]) & self._tiles_of(groups[b]):
                continue
            for piece in groups[b]:
                root[piece] = a
            groups[a] += groups.pop(b)
        return [sorted(group) for group in groups.values()]

    def _tiles_of(self, group: list[int]) -> set[int]:
        return {self._pieces[piece].tile for piece in group}

    def _record(self, group: list[int], size: tuple[int, int], output_mode: str) -> dict[str, Any]:
        pieces = [self._pieces[i] for i in group]
        placed = [self._within(i, (0, 0, size[1], size[0])) for i in group]
        if len(group) > 1:
            union = compressed(coco.merge(placed))
            alone = self._stands_for_all(pieces, placed, union)
            if alone is None:
                return self._united(pieces, union, output_mode)
            pieces, placed = [pieces[alone]], [placed[alone]]
        (piece,), (rle,) = pieces, placed
        offset = self._tiles[piece.tile][:2]
        return {
            **piece.record,
            "segmentation": encode(rle, output_mode),
            "bbox": _moved(piece.record["bbox"], offset),
            "point_coords": [_moved(point, offset) for point in piece.record["point_coords"]],
            "crop_box": _moved(piece.record["crop_box"], offset),
        }

    def _stands_for_all(self, pieces: list[_Piece], placed: list[Rle], union: Rle) -> int | None:
        """The best of those that no tile cuts off, if it is about as large as all together."""
        whole = [i for i, piece in enumerate(pieces) if not self._is_cut(piece)]
        best = max(whole, key=lambda i: pieces[i].record["predicted_iou"], default=None)
        if best is None or coco.area(placed[best]) <= self._merge_iou * coco.area(union):
            return None
        return best

    def _is_cut(self, piece: _Piece) -> bool:
        """Whether it touches a side of its tile that is not the picture's."""
        x0, y0, x1, y1 = self._tiles[piece.tile]
        left, top, right, bottom = box_from_rle(piece.rle).tolist()
        width, height = (max(box[side] for box in self._tiles) for side in (2, 3))
        return (
            (left == 0 and x0 > 0)
            or (top == 0 and y0 > 0)
            or (x0 + right + 1 == x1 < width)
            or (y0 + bottom + 1 == y1 < height)
        )

    def _united(self, pieces: list[_Piece], rle: Rle, output_mode: str) -> dict[str, Any]:
        records = [piece.record for piece in pieces]
        offsets = [self._tiles[piece.tile][:2] for piece in pieces]
        areas = [record["area"] for record in records]

        def mean(key: str) -> float:
            return float(np.average([record[key] for record in records], weights=areas))

        crops = np.array(
            [_moved(r["crop_box"], offset) for r, offset in zip(records, offsets, strict=True)]
        )
        x0, y0 = crops[:, :2].min(axis=0)
        x1, y1 = (crops[:, :2] + crops[:, 2:]).max(axis=0)
        return {
            "segmentation": encode(rle, output_mode),
            "area": int(coco.area(rle)),
            "bbox": box_xyxy_to_xywh(box_from_rle(rle)).tolist(),
            "predicted_iou": mean("predicted_iou"),
            "point_coords": [
                _moved(point, offset)
                for record, offset in zip(records, offsets, strict=True)
                for point in record["point_coords"]
            ],
            "stability_score": mean("stability_score"),
            "crop_box": [int(x0), int(y0), int(x1 - x0), int(y1 - y0)],
        }


def _moved(numbers: Sequence[float], offset: tuple[int, int]) -> list[float]:
    """A point or a box (x, y, ...) of a tile in the picture's coordinates."""
    x, y, *rest = numbers
    return [x + offset[0], y + offset[1], *rest]
