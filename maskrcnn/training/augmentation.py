"""Augmentation: a part of an image at another scale, flipped, in other colours, and its masks alike (torch).

What is done is drawn first, as a value, from a seed; then applied: the same seed gives the same sample on any worker.
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
"""An object of which a crop shows less than this share, or less than four pixels, is not learned from there."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to one image."""

    scale: float
    """Pixels of the sample for one of the image."""
    left: float
    top: float
    """Corner of the crop, in pixels of the scaled image."""
    mirrored: bool
    upside_down: bool
    brightness: float
    contrast: float
    saturation: float
    """Factors; 1 leaves all as it is."""
    hue: float
    """Turn of the hue, in [-0.5, 0.5]; 0 leaves it."""


def draw(
    generator: np.random.Generator,
    shape: tuple[int, int],
    side: int,
    base_scale: float,
    jitter: tuple[float, float],
    flips: str,
    color: float,
) -> Augmentation:
    """Draw what is done to an image.

    Args:
        generator: seeded by the image.
        shape: height and width of the image, pixels.
        side: of the crop, pixels.
        base_scale: at which the network will see the image.
        jitter: the smallest and the largest factor on that scale, which is drawn evenly in its logarithm.
        flips: one of `recipe.FLIPS`.
        color: how strongly colours change, from 0.
    """
    # All is drawn always, so that an option does not change what the others draw.
    u = generator.random(9)
    scale = base_scale * float(np.exp(np.log(jitter[0]) + u[0] * (np.log(jitter[1]) - np.log(jitter[0]))))
    top, left = (float(u[1 + i] * max(shape[i] * scale - side, 0.0)) for i in range(2))
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
    )


def apply(
    pixels: Pixels,
    masks: Sequence[bytes],
    labels: Sequence[int],
    augmentation: Augmentation,
    side: int,
    ground: Sequence[float],
) -> tuple[Tensor, Target]:
    """Make a sample.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        masks: N COCO compressed run lengths over the image.
        labels: N, from 1.
        augmentation: what to do.
        side: of the sample, pixels.
        ground: what the image does not cover, RGB in [0, 1].

    Returns:
        (3, side, side) float32 in [0, 1], and boxes, labels and masks of what is to be seen there, as
        `losses.ImageLosses` takes them. Boxes are those of the masks.
    """
    height, width = pixels.shape[:2]
    a = augmentation
    # Of the image, only what the crop shows is resized.
    x0, y0 = round(a.left / a.scale), round(a.top / a.scale)
    x1, y1 = (min(n, round((at + side) / a.scale)) for n, at in ((width, a.left), (height, a.top)))
    rows, columns = (max(1, min(side, round((end - start) * a.scale))) for start, end in ((y0, y1), (x0, x1)))
    image = torch.from_numpy(np.ascontiguousarray(pixels[y0:y1, x0:x1])).permute(2, 0, 1).float() / 255
    image = _colored(_resized(image, rows, columns).clamp_(0, 1), a)
    crops, shown, areas = _crops(masks, (y0, x0, y1, x1), height, width)
    small = (
        _resized(torch.from_numpy(crops).float(), rows, columns) >= 0.5
        if len(shown)
        else torch.zeros(0, rows, columns)
    )

    sample = torch.tensor(ground, dtype=torch.float32)[:, None, None].expand(3, side, side).clone()
    sample[:, :rows, :columns] = image
    drawn = torch.zeros((len(shown), side, side), dtype=torch.uint8)
    drawn[:, :rows, :columns] = small
    for flipped, axis in ((a.mirrored, -1), (a.upside_down, -2)):
        if flipped:
            sample, drawn = sample.flip(axis), drawn.flip(axis)
    return sample, _target(drawn, [labels[i] for i in shown], areas, a.scale)


def _resized(planes: Tensor, rows: int, columns: int) -> Tensor:
    """Resize as the network's transform does, without smoothing what is shrunk."""
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
    """Return what a region shows of masks, which of them it shows, and the whole area of each of these."""
    y0, x0, y1, x1 = region
    rles = [{"size": [height, width], "counts": counts} for counts in masks]
    boxes = rle_boxes_xywh(rles)
    near = [
        i for i, (x, y, w, h) in enumerate(boxes.tolist()) if x < x1 and y < y1 and x + w > x0 and y + h > y0
    ]
    crops = [coco_mask.decode(rles[i])[y0:y1, x0:x1] for i in near]
    areas = rle_areas([rles[i] for i in near]).tolist()
    return np.stack(crops) if crops else np.zeros((0, y1 - y0, x1 - x0), np.uint8), near, areas


def _target(masks: Tensor, labels: Sequence[int], areas: Sequence[int], scale: float) -> Target:
    """Return the target of the objects of which enough is seen."""
    seen = masks.flatten(1).sum(1)
    whole = torch.tensor(areas, dtype=torch.float32) * scale**2
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
