"""Labels for folders of pictures: a detector's boxes, and Segment Anything's masks in them."""

from samjax.annotate.annotate import Annotated, auto_annotate
from samjax.annotate.detectors import Category, open_detector

__all__ = ["Annotated", "Category", "auto_annotate", "open_detector"]
