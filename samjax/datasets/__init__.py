"""Annotated pictures from COCO files, SA-1B folders and folders of mask PNGs."""

from samjax.datasets.opening import open_source
from samjax.datasets.records import (
    REASONS,
    BadRecordError,
    Finding,
    Reason,
    Record,
    Report,
    decode_mask,
    read_picture,
)
from samjax.datasets.sources import Source, open_coco, open_mask_folder, open_sa1b, scan

__all__ = [
    "REASONS",
    "BadRecordError",
    "Finding",
    "Reason",
    "Record",
    "Report",
    "Source",
    "decode_mask",
    "open_coco",
    "open_mask_folder",
    "open_sa1b",
    "open_source",
    "read_picture",
    "scan",
]
