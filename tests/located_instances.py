"""Instances of rasters, and where these lie."""

import numpy as np
import pyarrow as pa
import pyproj
from pycocotools import mask as coco_mask
from rasterio.transform import Affine

from maskrcnn.schema import INSTANCES

UTM = pyproj.CRS.from_epsg(32618).to_wkt()
NORTH_UP = (0.5, 0.0, 500_000.0, 0.0, -0.5, 4_000_000.0)
ROTATED = tuple(Affine.translation(3e5, 5e6) @ Affine.rotation(33) @ Affine.scale(2.0, -3.0))[:6]


def counts_of(mask):
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]


def instances_of(masks, *, image_id=1, frames=None):
    """Rows of `instances` for masks of one raster, or of frames of their own (col_off, row_off)."""
    n = len(masks)
    rows = {
        "id": np.arange(1, n + 1),
        "image_id": [image_id] * n,
        "instance": np.arange(n, dtype=np.int32),
        "category_id": [3] * n,
        "category": pa.array(["roof"] * n).dictionary_encode(),
        "score": np.linspace(1, 0, n, dtype=np.float32),
        "box": [{"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1}] * n,
        "area": [int(mask.sum()) for mask in masks],
        "mask_box": [{"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1}] * n,
        "segmentation": [{"size": list(m.shape), "counts": counts_of(m).decode()} for m in masks],
        "frame": [
            None
            if frames is None
            else {"col_off": at[0], "row_off": at[1], "width": m.shape[1], "height": m.shape[0]}
            for m, at in zip(masks, frames or [None] * n, strict=True)
        ],
        "touches_border": [False] * n,
    }
    return pa.table([pa.array(rows[f.name], f.type) for f in INSTANCES], schema=INSTANCES)


def blob(height=3, width=2):
    return np.ones((height, width), np.bool_)
