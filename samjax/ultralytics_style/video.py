"""Videos, frame by frame."""

import logging
import os
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import UInt8

VIDEO_SUFFIXES = frozenset(".asf .avi .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split())
"""Suffixes, in lower case, by which a video is known."""


def read_frames(
    path: str | os.PathLike[str], *, name: str, stride: int = 1
) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """Every `stride`-th frame as RGB, with its number from 0; `name` is for messages.

    One frame is in memory at a time. A video that ends before the number of frames that it states
    is reported in samjax's log. Raises `ValueError` for what OpenCV cannot open, and for a video
    without frames.
    """
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise ValueError(
                f"{name} cannot be opened as a video: it is damaged, or in a format that OpenCV "
                "cannot read here"
            )
        number = 0
        while capture.grab():
            if number % stride == 0:
                there, frame = capture.retrieve()
                if not there:
                    break
                yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            number += 1
        stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()
    if number == 0:
        raise ValueError(f"{name} has no frames that can be read")
    if number < stated:
        logging.getLogger("samjax").warning(
            "samjax: %s ends after %d of the %d frames that it states", name, number, stated
        )
