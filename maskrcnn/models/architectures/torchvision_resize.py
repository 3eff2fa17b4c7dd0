"""torchvision's normalisation and resize of one image, which reads only the pixels that it needs."""

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["prepared", "shrunk"]

_SPARSE: Final = 0.5
"""A resize by a smaller factor reads only some of the pixels."""


def prepared(pixels: Tensor, size: tuple[int, int], mean: Tensor, std: Tensor) -> Tensor:
    """Return an image normalised and resized, (3, height, width) float32.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        size: height and width of the result.
        mean: (3, 1, 1) float32, of values from 0 to 1.
        std: (3, 1, 1) float32, what they are divided by.

    Reference: `GeneralizedRCNNTransform`, which normalises also those pixels that its resize does not read.
    """
    if size[0] < _SPARSE * pixels.shape[0] and size[1] < _SPARSE * pixels.shape[1]:
        return shrunk(pixels, size, mean, std)
    image = (pixels.permute(2, 0, 1).to(torch.float32) / 255 - mean) / std
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def shrunk(pixels: Tensor, size: tuple[int, int], mean: Tensor, std: Tensor) -> Tensor:
    """Return the result of `prepared` by reading the four neighbours of each new pixel only."""
    (y, wy), (x, wx) = (_neighbours(n, m, pixels.device) for n, m in zip(pixels.shape, size, strict=False))
    near = pixels[y][:, x].permute(2, 0, 1).to(torch.float32)
    near = ((near / 255 - mean) / std).view(3, 2, size[0], 2, size[1])
    rows = near[:, :, :, 0] * (1 - wx) + near[:, :, :, 1] * wx
    return rows[:, 0] * (1 - wy)[:, None] + rows[:, 1] * wy[:, None]


def _neighbours(n: int, resized: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the two pixels that each new pixel reads, (2 * resized,) first and second, and the weight of the second.

    Reference: `area_pixel_compute_source_index` in aten/src/ATen/native/UpSample.h; float32 as there.
    """
    scale = float(np.float32(n / resized))
    position = (torch.arange(resized, device=device, dtype=torch.float32) + 0.5) * scale - 0.5
    position = position.clamp(min=0)
    first = position.to(torch.int64).clamp(max=n - 1)
    return torch.cat([first, (first + 1).clamp(max=n - 1)]), position - first
