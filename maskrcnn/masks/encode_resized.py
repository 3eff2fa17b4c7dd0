"""Encode square masks of probabilities as run lengths in the ways of detectron2 and matterport.

torchvision rounds a box to whole pixels and resizes its mask to it (`encode`). detectron2 does not: it maps the centre
of each pixel into the unrounded box and samples the square there. The interpolation is bilinear and thus separable
into rows and columns, so the crop is a product of three matrices. Values too close to the threshold for this
arithmetic are computed again by the operator that detectron2 calls.

matterport's boxes are whole pixels, and its masks are resized to them as scikit-image does: also a matrix product.

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
"""The maximum number of pixels of a crop computed at once: about 16 MB."""


def encode_crops(boxes: Float32s, probabilities: Float32s, height: int, width: int) -> EncodedMasks:
    """Encode each mask as `pycocotools.mask.encode(paste_masks_in_image(…))` of detectron2 does.

    Args:
        boxes: (N, 4) xmin, ymin, xmax, ymax, pixels of the image; finite.
        probabilities: (N, M, M) in [0, 1].
        height: the height of the image, pixels.
        width: the width of the image, pixels.

    Returns:
        The N masks over the whole image; the mask of an empty box, or of arguments outside the image, is empty.

    Raises:
        ValueError: a box is not finite, or the image has 2^32 pixels or more.
    """
    return _encoded(_changes_of_crop, boxes, probabilities, height, width)


def encode_resized(boxes: Float32s, probabilities: Float32s, height: int, width: int) -> EncodedMasks:
    """Encode each mask as matterport's `unmold_mask` does: resize it to its box, threshold at 0.5 (inclusive).

    Args:
        boxes: (N, 4) xmin, ymin, xmax, ymax, whole pixels of the image, the last two exclusive.
        probabilities: (N, M, M) in [0, 1].
        height: the height of the image, pixels.
        width: the width of the image, pixels.

    Returns:
        The N masks over the whole image; the mask of an empty box is empty.

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
    parts = [changes_of(*arguments, height, width) for arguments in zip(boxes, probabilities, strict=True)]
    instance = np.repeat(np.arange(len(parts)), [len(column) for column, _ in parts])
    column, row = (
        np.concatenate([part[axis] for part in parts] or [np.zeros(0, np.int64)]) for axis in (0, 1)
    )
    return encode_changes(instance, column, row, len(parts), height, width)


def pasted(
    box: Float32s, probability: Float32s, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Float32s:
    """Return the probabilities of a mask at P pixels, (P,) float32.

    Args:
        box: (4,) xmin, ymin, xmax, ymax, pixels.
        probability: (M, M) probabilities inside the box.
        rows: (P,) rows of the pixels in the image.
        columns: (P,) columns of the pixels in the image.
    """
    y, x = _relative(rows, box[1], box[3]), _relative(columns, box[0], box[2])
    grid = torch.from_numpy(np.stack([x, y], axis=-1))[None, None]
    square = torch.from_numpy(np.ascontiguousarray(probability))[None, None]
    return np.asarray(F.grid_sample(square, grid, align_corners=False)[0, 0, 0].numpy())


def _changes_of_crop(box: Float32s, probability: Float32s, height: int, width: int) -> _Changes:
    """Return column and row of each change of a mask, in the form of the arguments of `encode_changes`."""
    # Outside its box a mask is never above the threshold, since the square is padded with zeros.
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
    """Return the result of `_changes_of_crop` for a box of whole pixels.

    Sums are computed in float64 and rounded to float32, as in the reference. The reference also clips the values to
    the range of the square, which the zero padding extends: this matters if the whole square is above the threshold.
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
    """Return the weights of `size` values for `count` pixels, (count, size) float64, with zero padding."""
    centre = (np.arange(count) + 0.5) * (size / count) - 0.5
    return np.asarray(np.maximum(1 - np.abs(centre[:, None] - np.arange(size)), 0))


def _relative(pixels: NDArray[np.int64], low: np.float32, high: np.float32) -> Float32s:
    """Return the positions of pixel centres in a box, from -1 to 1, in float32 and in detectron2's order."""
    centres = pixels.astype(np.float32) + np.float32(0.5)
    return np.asarray((centres - low) / (high - low) * np.float32(2) - np.float32(1))


def _weights(relative: Float32s, size: int) -> Float32s:
    """Return the weights of `size` values at each position, (P, size) float32, with zero padding."""
    source = ((relative + np.float32(1)) * np.float32(size) - np.float32(1)) / np.float32(2)
    distance = np.abs(source[:, None] - np.arange(size, dtype=np.float32))
    return np.asarray(np.maximum(np.float32(1) - distance, np.float32(0)))
