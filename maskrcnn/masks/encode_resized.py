"""Encode masks by the rules of detectron2 and matterport: squares of probabilities, resized to a crop, to run lengths.

torchvision moves a box to whole pixels and resizes its mask to it (`encode`). detectron2 does not: it locates each
pixel's centre in the box, and samples the square there. A pixel's value is bilinear, and separable into rows and
columns, so the crop is a product of three matrices. Values too close to the threshold for this arithmetic to decide
are computed again by the operator that detectron2 calls.

matterport's boxes are whole pixels, and its masks are resized to them as by scikit-image: a product of matrices too.

References: `paste_masks_in_image` in detectron2/layers/mask_ops.py; `unmold_mask` in matterport's mrcnn/utils.py.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from .encode import MARGIN, THRESHOLD
from .rle import EncodedMasks, crop_changes, encode_changes

Float32s = NDArray[np.float32]

_MAX_PIXELS: Final = 2**22
"""Pixels of a crop that are computed at once: some 16 MB."""


def encode_crops(boxes: Float32s, probabilities: Float32s, height: int, width: int) -> EncodedMasks:
    """Encode each mask as `pycocotools.mask.encode(paste_masks_in_image(…))` of detectron2 would.

    Args:
        boxes: (N, 4) xmin, ymin, xmax, ymax, pixels of the image; finite.
        probabilities: (N, M, M) in [0, 1].
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        the N masks over the whole image; one of an empty box, or outside of the image, is empty.

    Raises:
        ValueError: a box is not finite, or the image has 2^32 pixels or more.
    """
    return _encoded(_changes_of_crop, boxes, probabilities, height, width)


def encode_resized(boxes: Float32s, probabilities: Float32s, height: int, width: int) -> EncodedMasks:
    """Encode each mask as matterport's `unmold_mask` computes it: resized to its box, set where it is 0.5 or more.

    Args:
        boxes: (N, 4) xmin, ymin, xmax, ymax, whole pixels of the image, the last two exclusive.
        probabilities: (N, M, M) in [0, 1].
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        the N masks over the whole image; one of an empty box is empty.

    Raises:
        ValueError: a box is not finite, or the image has 2^32 pixels or more.
    """
    return _encoded(_changes_of_resized, boxes, probabilities, height, width)


_Changes = tuple[NDArray[np.int64], NDArray[np.int64]]


def _encoded(
    changes_of: Callable[[Float32s, Float32s, int, int], _Changes],
    boxes: Float32s,
    probabilities: Float32s,
    height: int,
    width: int,
) -> EncodedMasks:
    if not np.isfinite(boxes).all():
        raise ValueError("a box is not finite")
    parts = [changes_of(*one, height, width) for one in zip(boxes, probabilities, strict=True)]
    instance = np.repeat(np.arange(len(parts)), [len(column) for column, _ in parts])
    column, row = (
        np.concatenate([part[axis] for part in parts] or [np.zeros(0, np.int64)]) for axis in (0, 1)
    )
    return encode_changes(instance, column, row, len(parts), height, width)


def pasted(
    box: Float32s, probability: Float32s, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Float32s:
    """Return a mask's probability at P pixels, (P,), from a box and its (M, M) square.

    Args:
        box: (4,) xmin, ymin, xmax, ymax, pixels.
        probability: (M, M) inside the box.
        rows: (P,) of the image.
        columns: (P,) of the image.
    """
    y, x = _relative(rows, box[1], box[3]), _relative(columns, box[0], box[2])
    grid = torch.from_numpy(np.stack([x, y], axis=-1))[None, None]
    square = torch.from_numpy(np.ascontiguousarray(probability))[None, None]
    return np.asarray(F.grid_sample(square, grid, align_corners=False)[0, 0, 0].numpy())


def _changes_of_crop(box: Float32s, probability: Float32s, height: int, width: int) -> _Changes:
    """Return column and row of each change of a mask, as `encode_changes` takes them."""
    # Outside of its box a mask is never above the threshold: the square fades to zero there.
    limits = np.array([width, height, width, height])
    left, top = np.clip(np.floor(box[:2]) - 1, 0, limits[:2]).astype(np.int64).tolist()
    right, bottom = np.clip(np.ceil(box[2:]) + 1, 0, limits[:2]).astype(np.int64).tolist()
    if box[2] <= box[0] or box[3] <= box[1] or right <= left or bottom <= top:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows, columns = np.arange(top, bottom), np.arange(left, right)
    down = _weights(_relative(rows, box[1], box[3]), len(probability))
    across = _weights(_relative(columns, box[0], box[2]), len(probability)).T
    crop = np.empty((len(rows), len(columns)), np.bool_)
    step = max(_MAX_PIXELS // len(columns), 1)
    for start in range(0, len(rows), step):
        value = down[start : start + step] @ probability @ across
        above = value >= THRESHOLD
        y, x = np.nonzero(np.abs(value - np.float32(THRESHOLD)) < MARGIN)
        if len(y):
            above[y, x] = pasted(box, probability, rows[start + y], columns[x]) >= THRESHOLD
        crop[start : start + step] = above
    return crop_changes(crop, left, top)


def _changes_of_resized(box: Float32s, probability: Float32s, height: int, width: int) -> _Changes:
    """Return the changes of a mask in a box of whole pixels.

    Sums are computed in float64 and then rounded to float32, as in the reference. There, values are clipped to the
    square's range, which the zeros around it have left: this matters where all of the square is above the threshold.
    """
    x1, y1, x2, y2 = box.astype(np.int64).tolist()
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if right <= left or bottom <= top:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    crop = np.ones((bottom - top, right - left), np.bool_)
    if probability.min() < THRESHOLD:
        down = _linear_weights(y2 - y1, len(probability))[top - y1 : bottom - y1]
        across = _linear_weights(x2 - x1, len(probability))[left - x1 : right - x1].T
        step = max(_MAX_PIXELS // crop.shape[1], 1)
        for start in range(0, len(crop), step):
            value = down[start : start + step] @ probability.astype(np.float64) @ across
            crop[start : start + step] = value.astype(np.float32) >= np.float32(THRESHOLD)
    return crop_changes(crop, left, top)


def _linear_weights(count: int, size: int) -> NDArray[np.float64]:
    """Return the weight of each of `size` values for each of `count` pixels, (count, size); zeros surround them."""
    centre = (np.arange(count) + 0.5) * (size / count) - 0.5
    return np.asarray(np.maximum(1 - np.abs(centre[:, None] - np.arange(size)), 0))


def _relative(pixels: NDArray[np.int64], low: np.float32, high: np.float32) -> Float32s:
    """Return the positions of pixels' centres in a box, -1 to 1; float32, with detectron2's order of operations."""
    centres = pixels.astype(np.float32) + np.float32(0.5)
    return np.asarray((centres - low) / (high - low) * np.float32(2) - np.float32(1))


def _weights(relative: Float32s, size: int) -> Float32s:
    """Return the weight of each of `size` values at each position, (P, size); outside, values are zero."""
    source = ((relative + np.float32(1)) * np.float32(size) - np.float32(1)) / np.float32(2)
    distance = np.abs(source[:, None] - np.arange(size, dtype=np.float32))
    return np.asarray(np.maximum(np.float32(1) - distance, np.float32(0)))
