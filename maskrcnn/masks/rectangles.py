"""Masks for detections that have boxes only: the rectangle of the pixels that each box covers."""

from dataclasses import replace

import numpy as np

from ..types import Detections
from .rle import MAX_PIXELS, EncodedMasks, encode_changes
from .spans import Ints, ranges


def with_rectangles(detections: Detections) -> Detections:
    """Return detections whose masks are their boxes, so that boxes are cropped, stitched and compared like masks.

    Areas become those of the rectangles, in pixels. Detections that have masks are returned unchanged.
    """
    if detections.masks is not None:
        return detections
    boxes, frames = detections.mask_boxes.astype(np.int64), None
    if detections.height * detections.width <= MAX_PIXELS:
        masks = encode_rectangles(boxes, detections.height, detections.width)
    else:
        sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
        frames = np.concatenate([boxes[:, :2], np.maximum(sizes, 1)], axis=1).astype(np.int32)
        each = [
            encode_rectangles(np.array([[0, 0, *size]]), frame[3], frame[2])
            for size, frame in zip(sizes.tolist(), frames.tolist(), strict=True)
        ]
        counts = tuple(text for one in each for text in one.counts)
        masks = EncodedMasks(counts, sizes.prod(axis=1), boxes.astype(np.int32))
    return replace(detections, masks=masks.counts, areas=masks.areas, mask_boxes=masks.boxes, frames=frames)


def boxes_of(detections: Detections) -> Detections:
    """Return detections without their masks."""
    found = detections
    return Detections.of_boxes(
        found.height, found.width, found.boxes, found.labels, found.scores, capped=found.capped
    )


def encode_rectangles(boxes: Ints, height: int, width: int) -> EncodedMasks:
    """Return rectangles of an image as run lengths.

    Args:
        boxes: (N, 4) xmin, ymin, xmax, ymax, the last two exclusive, inside the image.
        height: the height of the image, pixels.
        width: the width of the image, pixels.

    Raises:
        ValueError: as `rle.encode_changes`.
    """
    left, top, right, bottom = boxes.T
    columns = np.where(bottom > top, np.maximum(right - left, 0), 0)
    instance = np.repeat(np.arange(len(boxes)), columns)
    rows = np.stack([top[instance], bottom[instance]], axis=1).ravel()
    return encode_changes(
        np.repeat(instance, 2), np.repeat(ranges(left, columns), 2), rows, len(boxes), height, width
    )
