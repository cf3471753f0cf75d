"""What happens to masks and boxes after the decoder."""

from samjax.postprocess.boxes import (
    box_area,
    box_xyxy_to_xywh,
    is_box_near_crop_edge,
    nms,
    uncrop_boxes_xyxy,
    uncrop_points,
)
from samjax.postprocess.crops import (
    build_all_layer_point_grids,
    build_point_grid,
    generate_crop_boxes,
    uncrop_mask,
)
from samjax.postprocess.masks import (
    axis_weights,
    masks_to_boxes,
    stability_score,
    upscale_masks,
)
from samjax.postprocess.polygons import mask_to_polygon
from samjax.postprocess.reframing import LARGEST_FRAME, reframe_rle
from samjax.postprocess.regions import remove_small_regions
from samjax.postprocess.rle import (
    Rle,
    area_from_rle,
    box_from_rle,
    coco_encode_rle,
    compress_mask,
    compress_packed,
    mask_to_rle,
    rle_to_mask,
    uncompress_rle,
)

__all__ = [
    "LARGEST_FRAME",
    "Rle",
    "area_from_rle",
    "axis_weights",
    "box_area",
    "box_from_rle",
    "box_xyxy_to_xywh",
    "build_all_layer_point_grids",
    "build_point_grid",
    "coco_encode_rle",
    "compress_mask",
    "compress_packed",
    "generate_crop_boxes",
    "is_box_near_crop_edge",
    "mask_to_polygon",
    "mask_to_rle",
    "masks_to_boxes",
    "nms",
    "reframe_rle",
    "remove_small_regions",
    "rle_to_mask",
    "stability_score",
    "uncompress_rle",
    "uncrop_boxes_xyxy",
    "uncrop_mask",
    "uncrop_points",
    "upscale_masks",
]
