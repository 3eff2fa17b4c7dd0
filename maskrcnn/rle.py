"""Masks as COCO's compressed run lengths, made from a crop at a cost that the image's area does not enter.

A COCO mask is read column by column: counts of zeros and ones in turn, zeros first, packed into ASCII.

Reference: `maskApi.c` of pycocotools, whose bytes these are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

MAX_PIXELS = 2**32 - 1
"""A count is a uint32: no larger image can be written as one mask."""


def crop_to_rle(crop: NDArray[np.bool_], left: int, top: int, height: int, width: int) -> bytes:
    """Encode a mask that is zero outside of a crop.

    >>> crop_to_rle(np.array([[True, True]]), left=1, top=0, height=2, width=4)
    b'21102'

    Args:
        crop: (h, w) bool, the mask inside the crop; may be empty.
        left: column of the image where the crop begins, pixels.
        top: row of the image where the crop begins, pixels.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        the `counts` of `pycocotools.mask.encode` for the whole (height, width) mask, byte for byte.

    Raises:
        ValueError: the crop does not lie within the image, or the image has 2^32 pixels or more.
    """
    h, w = crop.shape
    if not (0 <= left <= width - w and 0 <= top <= height - h):
        raise ValueError(f"a crop of {h} x {w} at row {top}, column {left} leaves {height} x {width} pixels")
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels do not fit a COCO mask")
    starts, ends = _runs(crop, left, top, height)
    counts = np.empty(2 * len(starts) + 1, np.int64)
    counts[0:-1:2] = starts
    counts[1::2] = ends
    counts[-1] = height * width
    counts[1:] -= counts[:-1].copy()
    if len(counts) > 1 and counts[-1] == 0:  # pycocotools writes no zeros after a mask that ends the image
        counts = counts[:-1]
    uncompressed = {"size": [height, width], "counts": counts.astype(np.uint32)}
    encoded: bytes = coco_mask.frPyObjects(uncompressed, height, width)["counts"]
    return encoded


def rle_areas(rles: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """Return the number of pixels of each mask, (N,); `rles` as from `Detections.rles`."""
    # pycocotools 2.0.11 with numpy 2 overflows at 256 masks (its count becomes a uint8), though not for boxes.
    chunks = [coco_mask.area(list(rles[start : start + 255])) for start in range(0, len(rles), 255)]
    return np.concatenate([np.empty(0, np.int64), *chunks]).astype(np.int64)


def rle_boxes_xywh(rles: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Return the tight box of each mask, (N, 4) xmin, ymin, width, height in pixels; zeros if it is empty."""
    return np.array(coco_mask.toBbox(list(rles)), dtype=np.float64).reshape(-1, 4)


def rle_boxes_xyxy(rles: Sequence[dict[str, Any]]) -> NDArray[np.int32]:
    """Return the tight box of each mask, (N, 4) xmin, ymin, xmax, ymax in pixels, the last two exclusive."""
    boxes = rle_boxes_xywh(rles)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.int32)


def _runs(
    crop: NDArray[np.bool_], left: int, top: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the runs of ones start and end in the image's column-major order."""
    h, w = crop.shape
    padded = np.zeros((h + 2, w), np.bool_)
    padded[1:-1] = crop
    # A column changes value an even number of times: starts and ends take turns.
    changes = np.flatnonzero(padded[1:] != padded[:-1])
    rows, columns = np.divmod(changes, max(w, 1))
    positions = np.sort((columns + left) * height + rows + top)
    starts, ends = positions[0::2], positions[1::2]
    if h < height:
        return starts, ends
    # Where the crop spans the image's height, a run may go on at the top of the next column.
    apart = starts[1:] != ends[:-1]
    first, last = np.ones(len(starts), np.bool_), np.ones(len(ends), np.bool_)
    first[1:], last[:-1] = apart, apart
    return starts[first], ends[last]
