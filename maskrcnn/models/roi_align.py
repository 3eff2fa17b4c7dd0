"""RoIAlign over a pyramid of maps, for all boxes of a batch at once and without synchronizing with the host."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import MultiScaleRoIAlign

from .architectures.detectron2 import AdaptiveRoIAlign
from .architectures.matterport import CropAndResize


class Pyramid(NamedTuple):
    """The maps of a batch as one table, with one row per position of each map."""

    rows: Tensor
    """(R, C) float32: level by level, image by image, row by row."""
    starts: Tensor
    """(L,) int64, the first row of each level."""
    heights: Tensor
    """(L,) int64, of the maps."""
    widths: Tensor
    strides: tuple[int, int]
    """The smallest and the largest stride, pixels of the resized image; those in between are powers of two as well."""

    @staticmethod
    def of(features: dict[str, Tensor], names: Sequence[str], canvas_height: int) -> "Pyramid":
        """Return the maps with these names, finest first."""
        maps = [features[name] for name in features if name in names]
        rows = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps]).float()
        sizes = torch.tensor([[len(m), m.shape[2], m.shape[3]] for m in maps], device=rows.device)
        counts = sizes.prod(1)
        strides = (canvas_height // maps[0].shape[2], canvas_height // maps[-1].shape[2])
        return Pyramid(rows, counts.cumsum(0) - counts, sizes[:, 1], sizes[:, 2], strides)


def pyramid_of(
    features: dict[str, Tensor], aligner: MultiScaleRoIAlign, canvas_height: int
) -> "Pyramid | list[Tensor]":
    """Return the maps of a batch in the form that `pool` takes for this aligner."""
    if isinstance(aligner, AdaptiveRoIAlign):
        return [features[name].float() for name in aligner.featmap_names]
    return Pyramid.of(features, aligner.featmap_names, canvas_height)


def pool(
    pyramid: Pyramid | list[Tensor], aligner: MultiScaleRoIAlign, boxes: Tensor, image: Tensor
) -> Tensor:
    """Pool the features of each box, as torchvision's `MultiScaleRoIAlign` does.

    A pooled value is the mean of some samples, and a sample interpolates between four positions: together a weighted
    sum of rows. `embedding_bag` sums rows, all channels of a position at once, which are contiguous in memory;
    torchvision loops over the channels of a map, and over the levels.

    Args:
        pyramid: the maps, as `pyramid_of` returns them for an aligner of this class.
        aligner: determines output size, sampling ratio and the level of each box.
        boxes: (N, 4) float32, finite, pixels of the resized images; normalised for a `CropAndResize`.
        image: (N,) int64, the image of each box.

    Returns:
        (N, C, S, S) float32, channels last in memory.

    Reference: `roi_align_forward_kernel_impl` in torchvision/csrc/ops/cpu/roi_align_kernel.cpp, not aligned; the
    levels are those of https://arxiv.org/abs/1612.03144, equation 1.
    """
    if not isinstance(pyramid, Pyramid):
        adaptive: Tensor = aligner.pool(pyramid, boxes, image)
        return adaptive.contiguous(memory_format=torch.channels_last)
    places = _cropped if isinstance(aligner, CropAndResize) else _aligned
    level, (y, weight_y), (x, weight_x) = places(pyramid, aligner, boxes)
    height, width = pyramid.heights[level], pyramid.widths[level]

    # (N, rows, columns, positions of a bin along y, positions along x) and their weights.
    first = (pyramid.starts[level] + image * height * width).to(torch.int32)
    y = first[:, None, None] + y * width.to(torch.int32)[:, None, None]
    place = y[:, :, None, :, None] + x[:, None, :, None, :]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    n_terms = y.shape[2] * x.shape[2]
    pooled = F.embedding_bag(
        place.reshape(-1, n_terms), pyramid.rows, mode="sum", per_sample_weights=weight.reshape(-1, n_terms)
    )
    return pooled.view(len(boxes), *aligner.output_size, -1).permute(0, 3, 1, 2)


_Places = tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The level of each box, (N,); along y and along x, the positions that each bin reads, (N, bins, positions), and their
weights."""


def _aligned(pyramid: Pyramid, aligner: MultiScaleRoIAlign, boxes: Tensor) -> _Places:
    finest, coarsest = (int(math.log2(stride)) for stride in pyramid.strides)
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = aligner.canonical_level + torch.log2(side / aligner.canonical_scale) + 1e-6
    level = level.floor().clamp(finest, coarsest).to(torch.int64) - finest
    scale = torch.exp2(-(level + finest).to(torch.float32))
    height, width = pyramid.heights[level], pyramid.widths[level]
    n_rows, n_columns = aligner.output_size
    per_bin = aligner.sampling_ratio
    y = _samples(boxes[:, 1] * scale, boxes[:, 3] * scale, height, n_rows, per_bin)
    x = _samples(boxes[:, 0] * scale, boxes[:, 2] * scale, width, n_columns, per_bin)
    return level, y, x


def _cropped(pyramid: Pyramid, aligner: CropAndResize, boxes: Tensor) -> _Places:
    finest = pyramid.strides[0]
    level = aligner.level(boxes, pyramid.heights[0] * pyramid.widths[0] * finest**2)
    y = aligner.samples(boxes[:, 1], boxes[:, 3], pyramid.heights[level])
    x = aligner.samples(boxes[:, 0], boxes[:, 2], pyramid.widths[level])
    return level, y, x


def _samples(low: Tensor, high: Tensor, limit: Tensor, n_bins: int, per_bin: int) -> tuple[Tensor, Tensor]:
    """Return the positions along one axis that the samples of each bin read, and their weights.

    Args:
        low: (N,) the start of each box, in positions of the map.
        high: (N,) its end.
        limit: (N,) the number of positions.
        n_bins: bins per box.
        per_bin: samples per bin.

    Returns:
        (N, bins, 2 * samples) int32 and float32; the weights of a bin sum to 1, or to less at a border.
    """
    bin_size = (high - low).clamp(min=1.0) / n_bins
    nth = torch.arange(n_bins * per_bin, device=low.device)
    offset = (nth % per_bin + 0.5) / per_bin
    position = low[:, None] + (nth // per_bin) * bin_size[:, None] + offset * bin_size[:, None]
    inside = position <= limit[:, None]
    last = (limit[:, None] - 1).to(torch.int32)
    first = torch.minimum(position.to(torch.int32), last)
    weight = (position - first).where(first < last, 0.0)
    second = torch.minimum(first + 1, last)
    places = torch.stack([first, second], 2)
    weights = torch.stack([1 - weight, weight], 2) * inside[..., None] / per_bin
    shape = (len(low), n_bins, 2 * per_bin)
    return places.view(shape), weights.view(shape)
