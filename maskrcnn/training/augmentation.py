"""Augmentation: crop, rescale and flip an image together with its masks or boxes, and change its colours (torch).

The parameters are first drawn from a seed, as a value, and then applied: the same seed gives the same sample on any
worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import functional as T  # noqa: N812

from ..masks.rle import rle_areas, rle_boxes_xywh
from ..types import Pixels
from .losses import Target

MIN_VISIBLE: Final = 0.1
"""An object is left out of a sample if less than this share of it, or fewer than four pixels, lie in the crop."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The parameters of the augmentation of one image."""

    scale: float
    """Pixels of the sample per pixel of the image."""
    left: float
    top: float
    """The upper left corner of the crop is at (`left`, `top`), in pixels of the scaled image."""
    mirrored: bool
    upside_down: bool
    brightness: float
    contrast: float
    saturation: float
    """`brightness`, `contrast` and `saturation` are factors; 1 changes nothing."""
    hue: float
    """Shift of the hue, in [-0.5, 0.5]; 0 changes nothing."""
    aspect: float = 1.0
    """Horizontal scale divided by `scale`; other than 1 for a network that resizes images to a square."""


def draw(
    generator: np.random.Generator,
    shape: tuple[int, int],
    side: int,
    base_scale: float,
    jitter: tuple[float, float],
    flips: str,
    color: float,
    aspect: float = 1.0,
) -> Augmentation:
    """Draw the parameters of the augmentation of an image.

    Args:
        generator: a generator seeded for this image.
        shape: height and width of the image, pixels.
        side: side of the crop, pixels.
        base_scale: the scale at which the network sees the image in inference.
        jitter: the smallest and the largest factor on that scale; the factor's logarithm is drawn uniformly.
        flips: one of `config.FLIPS`.
        color: strength of the colour changes; 0: none.
        aspect: horizontal scale divided by `base_scale`.
    """
    # All numbers are always drawn, so that one option does not change what is drawn for the others.
    u = generator.random(9)
    scale = base_scale * float(np.exp(np.log(jitter[0]) + u[0] * (np.log(jitter[1]) - np.log(jitter[0]))))
    scales = scale, scale * aspect
    top, left = (float(u[1 + i] * max(shape[i] * scales[i] - side, 0.0)) for i in range(2))
    brightness, contrast, saturation = (float(1 + color * 0.4 * (2 * u[i] - 1)) for i in (5, 6, 7))
    return Augmentation(
        scale=scale,
        left=left,
        top=top,
        mirrored=flips != "none" and u[3] < 0.5,
        upside_down=flips == "both" and u[4] < 0.5,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=float(color * 0.05 * (2 * u[8] - 1)),
        aspect=aspect,
    )


def apply(
    pixels: Pixels,
    masks: Sequence[bytes],
    labels: Sequence[int],
    augmentation: Augmentation,
    side: int,
    fill: Sequence[float],
    crowds: Sequence[bytes] = (),
) -> tuple[Tensor, Target]:
    """Apply an augmentation to an image, its masks and its crowds.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        masks: N COCO compressed run lengths over the image.
        labels: N labels, from 1.
        augmentation: the parameters.
        side: side of the sample, pixels.
        fill: colour of the part of the sample that the image does not cover, RGB in [0, 1].
        crowds: COCO compressed run lengths of the image's crowds.

    Returns:
        The sample, (3, side, side) float32 in [0, 1], and the boxes, labels and masks of its objects, as
        `losses.ImageLosses` takes them, with the region of the crowds if the image has any. The boxes are computed
        from the masks.
    """
    height, width = pixels.shape[:2]
    a = augmentation
    region, (rows, columns) = _region(height, width, a, side)
    sample = _sample(pixels, region, (rows, columns), a, side, fill)
    crops, shown, areas = _crops(masks, region, height, width)
    drawn = _planes(crops, (rows, columns), a, side)
    target = _target(drawn, [labels[i] for i in shown], areas, a)
    return sample, target | _crowds(crowds, (height, width), a, side)


def apply_to_boxes(
    pixels: Pixels,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    augmentation: Augmentation,
    side: int,
    fill: Sequence[float],
    crowds: Sequence[bytes] = (),
) -> tuple[Tensor, Target]:
    """Apply an augmentation to an image, its boxes and its crowds, for a network without masks.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        boxes: N boxes, xmin, ymin, xmax, ymax within the image, pixels.
        labels: N labels, from 1.
        augmentation: the parameters.
        side: side of the sample, pixels.
        fill: colour of the part of the sample that the image does not cover, RGB in [0, 1].
        crowds: COCO compressed run lengths of the image's crowds.

    Returns:
        The sample, as of `apply`, and the boxes and labels of its objects, cut to the image and the crop, with the
        region of the crowds if the image has any.
    """
    a = augmentation
    region, (rows, columns) = _region(pixels.shape[0], pixels.shape[1], a, side)
    sample = _sample(pixels, region, (rows, columns), a, side, fill)
    y0, x0, y1, x1 = region
    scale = torch.tensor([columns / (x1 - x0), rows / (y1 - y0)], dtype=torch.float64).repeat(2)
    whole = (torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) - torch.tensor([x0, y0, x0, y0])) * scale
    seen = torch.minimum(whole.clamp(min=0), torch.tensor([columns, rows, columns, rows]))
    areas = [(each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (seen, whole)]
    keep = (areas[0] >= 4) & (areas[0] >= MIN_VISIBLE * areas[1])
    seen = seen[keep]
    for flipped, low, high in ((a.mirrored, 0, 2), (a.upside_down, 1, 3)):
        if flipped:
            seen[:, [low, high]] = side - seen[:, [high, low]]
    target = {"boxes": seen.float(), "labels": torch.tensor(labels, dtype=torch.int64)[keep]}
    return sample, target | _crowds(crowds, pixels.shape[:2], a, side)


def _region(
    height: int, width: int, a: Augmentation, side: int
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Return the part of an image inside the crop, y0, x0, y1, x1, and its height and width in the sample."""
    across = a.scale * a.aspect
    x0, y0 = round(a.left / across), round(a.top / a.scale)
    x1, y1 = min(width, round((a.left + side) / across)), min(height, round((a.top + side) / a.scale))
    rows = max(1, min(side, round((y1 - y0) * a.scale)))
    columns = max(1, min(side, round((x1 - x0) * across)))
    return (y0, x0, y1, x1), (rows, columns)


def _sample(
    pixels: Pixels,
    region: tuple[int, int, int, int],
    size: tuple[int, int],
    a: Augmentation,
    side: int,
    fill: Sequence[float],
) -> Tensor:
    """Return the sample of an image; only the part of it inside the crop is resized."""
    y0, x0, y1, x1 = region
    rows, columns = size
    image = torch.from_numpy(np.ascontiguousarray(pixels[y0:y1, x0:x1])).permute(2, 0, 1).float() / 255
    image = _colored(_resized(image, rows, columns).clamp_(0, 1), a)
    sample = torch.tensor(fill, dtype=torch.float32)[:, None, None].expand(3, side, side).clone()
    sample[:, :rows, :columns] = image
    return _flipped(sample, a)


def _planes(crops: NDArray[np.uint8], size: tuple[int, int], a: Augmentation, side: int) -> Tensor:
    """Return the masks of a sample, (N, side, side) uint8, given the parts inside the crop and their size in it."""
    rows, columns = size
    planes = torch.zeros((len(crops), side, side), dtype=torch.uint8)
    if len(crops):
        planes[:, :rows, :columns] = _resized(torch.from_numpy(crops).float(), rows, columns) >= 0.5
    return _flipped(planes, a)


def _crowds(crowds: Sequence[bytes], shape: tuple[int, int], a: Augmentation, side: int) -> Target:
    """Return the region of all crowds of an image as the entry `crowds` of a target; nothing if there are none."""
    if not crowds:
        return {}
    region, size = _region(*shape, a, side)
    crops, _, _ = _crops(crowds, region, *shape)
    return {"crowds": _planes((crops.sum(0) > 0)[None].astype(np.uint8), size, a, side)[0]}


def _flipped(planes: Tensor, a: Augmentation) -> Tensor:
    for flipped, axis in ((a.mirrored, -1), (a.upside_down, -2)):
        if flipped:
            planes = planes.flip(axis)
    return planes


def _resized(planes: Tensor, rows: int, columns: int) -> Tensor:
    """Resize as the network's transform does: bilinear, without antialiasing when shrinking."""
    return F.interpolate(planes[None], size=(rows, columns), mode="bilinear", align_corners=False)[0]


def _colored(image: Tensor, a: Augmentation) -> Tensor:
    if (a.brightness, a.contrast, a.saturation, a.hue) == (1, 1, 1, 0):
        return image
    image = T.adjust_brightness(image, a.brightness)
    image = T.adjust_contrast(image, a.contrast)
    image = T.adjust_saturation(image, a.saturation)
    colored: Tensor = T.adjust_hue(image, a.hue)
    return colored


def _crops(
    masks: Sequence[bytes], region: tuple[int, int, int, int], height: int, width: int
) -> tuple[NDArray[np.uint8], list[int], list[int]]:
    """Return the masks whose boxes meet a region, cut to it; their indices; and the area of each whole mask."""
    y0, x0, y1, x1 = region
    rles = [{"size": [height, width], "counts": counts} for counts in masks]
    boxes = rle_boxes_xywh(rles)
    near = [
        i for i, (x, y, w, h) in enumerate(boxes.tolist()) if x < x1 and y < y1 and x + w > x0 and y + h > y0
    ]
    crops = [coco_mask.decode(rles[i])[y0:y1, x0:x1] for i in near]
    areas = rle_areas([rles[i] for i in near]).tolist()
    return np.stack(crops) if crops else np.zeros((0, y1 - y0, x1 - x0), np.uint8), near, areas


def _target(masks: Tensor, labels: Sequence[int], areas: Sequence[int], a: Augmentation) -> Target:
    """Return the target, with only the objects of which enough is visible (see `MIN_VISIBLE`)."""
    seen = masks.flatten(1).sum(1)
    whole = torch.tensor(areas, dtype=torch.float32) * (a.scale**2 * a.aspect)
    keep = (
        torch.where((seen >= 4) & (seen >= MIN_VISIBLE * whole))[0]
        if len(labels)
        else torch.zeros(0, dtype=torch.int64)
    )
    masks = masks[keep]
    boxes = torch.zeros((len(keep), 4), dtype=torch.float32)
    for i, mask in enumerate(masks):
        ys, xs = torch.where(mask.any(1))[0], torch.where(mask.any(0))[0]
        boxes[i] = torch.tensor([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)[keep], "masks": masks}
