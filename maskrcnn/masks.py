"""From what a network gives, boxes and small squares of probabilities, to run lengths: never pasted.

torchvision pastes each mask into an image-sized array of float32, pycocotools then reads all of it. Here a
mask is resized inside its box and its crop is encoded: the bytes are the same, the image's area does not
matter.

Reference: `paste_masks_in_image` in torchvision/models/detection/roi_heads.py.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from .rle import crop_to_rle, rle_areas, rle_boxes_xyxy
from .types import Detections, detection_order

THRESHOLD: Final = 0.5
"""A pixel belongs to the mask where its probability is above this."""

MAX_OVERHANG: Final = 4
"""A box is resized as a whole while it has at most so many times the pixels of the image, …"""

MAX_SMALL_PX: Final = 2**20
"""… or this many pixels."""

_MAX_COORDINATE: Final = 2**30
"""Corners further away are moved here; int64 arithmetic on them cannot overflow."""


def detections_from_network(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int32],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    *,
    height: int,
    width: int,
    capped: bool,
) -> Detections:
    """Return a network's findings in one image, in their final order, masks encoded.

    Args:
        boxes: (N, 4) xmin, ymin, xmax, ymax, pixels of the image; finite, may leave the image.
        labels: (N,) category ids.
        scores: (N,) in [0, 1].
        probabilities: (N, M, M) of the mask inside the box.
        height: of the image, pixels.
        width: of the image, pixels.
        capped: whether the limit on detections was reached.
    """
    order = detection_order(boxes, labels, scores)
    boxes = boxes[order]
    masks = encode_masks(boxes, probabilities[order], height, width)
    rles = [{"size": [height, width], "counts": mask} for mask in masks]
    return Detections(
        height=height,
        width=width,
        boxes=boxes,
        labels=labels[order],
        scores=scores[order],
        masks=masks,
        areas=rle_areas(rles),
        mask_boxes=rle_boxes_xyxy(rles),
        capped=capped,
    )


def encode_masks(
    boxes: NDArray[np.float32], probabilities: NDArray[np.float32], height: int, width: int
) -> tuple[bytes, ...]:
    """Encode each mask as `pycocotools.mask.encode(paste_masks_in_image(…) > 0.5)` would, byte for byte.

    Memory and time follow the box, not the image: some 7 bytes a pixel of one box at a time. Networks clip
    their boxes to the image; a box of more than `MAX_OVERHANG` images is resized only where it is visible, by
    the same formula, but not by the same code, so that a pixel within 1e-5 of the threshold may fall to the
    other side.

    Args:
        boxes: (N, 4) xmin, ymin, xmax, ymax, pixels of the image; finite.
        probabilities: (N, M, M).
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        N COCO compressed RLE strings over the whole image; a mask outside of it is empty.

    Raises:
        ValueError: a box is not finite.
    """
    if not np.isfinite(boxes).all():
        raise ValueError("a box is not finite")
    padded = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    frames = _frames(boxes, probabilities.shape[-1])
    encoded = []
    for probability, (xmin, ymin, xmax, ymax) in zip(padded, frames.tolist(), strict=True):
        # The visible part of the box, and where it lies within the box.
        left, right = max(xmin, 0), min(xmax, width)
        top, bottom = max(ymin, 0), min(ymax, height)
        if left >= right or top >= bottom:
            encoded.append(crop_to_rle(np.empty((0, 0), np.bool_), 0, 0, height, width))
            continue
        rows, columns = slice(top - ymin, bottom - ymin), slice(left - xmin, right - xmin)
        shape = (ymax - ymin, xmax - xmin)
        if shape[0] * shape[1] <= max(MAX_OVERHANG * height * width, MAX_SMALL_PX):
            crop = _resize(probability, shape)[rows, columns] > THRESHOLD
        else:
            crop = _resize_part(probability, shape, rows, columns) > THRESHOLD
        encoded.append(crop_to_rle(crop, left, top, height, width))
    return tuple(encoded)


def _frames(boxes: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    """Return the pixels that the padded masks cover, (N, 4) xmin, ymin, xmax, ymax, the last two exclusive.

    The operations, their order and float32 are those of `expand_boxes`: corners are truncated, not rounded.
    """
    scale = np.float32((size + 2) / size)
    half = np.float32(0.5)
    with np.errstate(over="ignore"):
        half_width = (boxes[:, 2] - boxes[:, 0]) * half * scale
        half_height = (boxes[:, 3] - boxes[:, 1]) * half * scale
        x = (boxes[:, 2] + boxes[:, 0]) * half
        y = (boxes[:, 3] + boxes[:, 1]) * half
        corners = np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=1)
    frames = np.clip(corners, -_MAX_COORDINATE, _MAX_COORDINATE).astype(np.int64)
    frames[:, 2:] += 1
    return np.asarray(frames)


def _resize(probability: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a (M, M) square to a shape, bilinear, centres aligned."""
    square = torch.from_numpy(probability)[None, None]
    resized = F.interpolate(square, size=shape, mode="bilinear", align_corners=False)
    return np.asarray(resized[0, 0].numpy())


def _resize_part(
    probability: NDArray[np.float32], shape: tuple[int, int], rows: slice, columns: slice
) -> NDArray[np.float32]:
    """Return `_resize(probability, shape)[rows, columns]`, to within 1e-5, without the rest.

    Reference: `upsample_generic_Nd_kernel_impl` in aten/src/ATen/native/cpu/UpSampleKernel.cpp.
    """
    x0, x1, wx = _taps(probability.shape[1], shape[1], columns)
    y0, y1, wy = _taps(probability.shape[0], shape[0], rows)
    along_x = probability[:, x0] * (1 - wx) + probability[:, x1] * wx  # (M, columns)
    return np.asarray(along_x[y0] * (1 - wy)[:, None] + along_x[y1] * wy[:, None])


def _taps(
    size: int, resized: int, part: slice
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return for each output position its two inputs and the weight of the second."""
    scale = np.float32(size) / np.float32(resized)
    positions = np.arange(part.start, part.stop, dtype=np.float32)
    source = np.maximum(scale * (positions + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    first = np.minimum(source.astype(np.int64), size - 1)
    weight = np.clip(source - first.astype(np.float32), 0, 1).astype(np.float32)
    return first, np.minimum(first + 1, size - 1), weight
