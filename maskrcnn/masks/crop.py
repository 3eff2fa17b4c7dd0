"""Crop detections to a region of their image."""

from dataclasses import replace

import numpy as np

from ..types import Detections
from .rle import encode_changes
from .rle_decode import read_spans


def crop_detections(detections: Detections, region: tuple[int, int, int, int]) -> Detections:
    """Return detections in the frame of a region, with masks and areas of the part inside the region.

    Args:
        detections: N instances of an image.
        region: col_off, row_off, width, height in pixels of the image.

    Returns:
        N instances in the same order; the mask of an instance outside the region is empty.
    """
    col_off, row_off, width, height = region
    if detections.masks is None:
        found = detections
        moved = (found.boxes - np.array([col_off, row_off] * 2)).astype(np.float32)
        return Detections.of_boxes(height, width, moved, found.labels, found.scores, capped=found.capped)
    n = len(detections)
    offsets = np.zeros((n, 2), np.int64) if detections.frames is None else detections.frames[:, :2]
    masks, areas = [b""] * n, np.zeros(n, np.int64)
    mask_boxes = np.zeros((n, 4), np.int32)
    sizes = detections.mask_sizes
    for size in np.unique(sizes, axis=0):
        members = np.flatnonzero((sizes == size).all(axis=1))
        spans = read_spans([detections.masks[member] for member in members], *size.tolist())
        spans = spans.shifted(offsets[members, 0] - col_off, offsets[members, 1] - row_off)
        spans = spans.within(np.array([0, 0, width, height]))
        encoded = encode_changes(*spans.changes, len(members), height, width)
        for member, counts in zip(members.tolist(), encoded.counts, strict=True):
            masks[member] = counts
        areas[members], mask_boxes[members] = encoded.areas, encoded.boxes
    return replace(
        detections,
        height=height,
        width=width,
        boxes=(detections.boxes - np.array([col_off, row_off] * 2)).astype(np.float32),
        masks=tuple(masks),
        areas=areas,
        mask_boxes=mask_boxes,
        frames=None,
    )
