"""MMDetection's Mask R-CNN and Faster R-CNN with FPN: detectron2's network where they are equal.

The networks of `mask_rcnn_r50_fpn`, `mask_rcnn_r101_fpn` and of `faster_rcnn_…`, of MMDetection 2 and 3. Anchors,
their distances, limits, suppression, RoIAlign and the pasting of masks are those of `detectron2`. Where they differ:

| | detectron2 | MMDetection |
|---|---|---|
| resize | Pillow's bilinear filter | OpenCV's: four neighbours per pixel, in whole numbers |
| size after it | rounded after each of two steps | rounded once |
| scales of boxes | at most 1000 / 16 | also at least 16 / 1000 |
| level of a box | log2(side / 224 + 1e-8) + 4 | log2(side / 56 + 1e-6) + 2 |
| empty boxes | dropped after the limit on detections | kept; here they are dropped as well |

References: https://github.com/open-mmlab/mmdetection, models/; https://github.com/open-mmlab/mmcv, image/geometric.py;
https://github.com/opencv/opencv, modules/imgproc/src/resize.cpp.
"""

import math
from typing import Final

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BoxCoder

from .detectron2 import AdaptiveRoIAlign, ShortestEdgeTransform, build_detectron2
from .rcnn_config import RCNNConfig

__all__ = ["ClampedBoxCoder", "FinestScaleRoIAlign", "RescaleTransform", "build_mmdetection"]

_CLIP: Final = math.log(1000 / 16)
_COEFFICIENTS: Final = 2048
"""OpenCV's weights of bytes are multiples of one of this."""


def build_mmdetection(
    body: str, masks: bool, num_classes: int, min_size: int, max_size: int, config: RCNNConfig
) -> FasterRCNN:
    """Build a network with random weights; the arguments are those of `build_detectron2`."""
    network = build_detectron2(body, masks, num_classes, min_size, max_size, config)
    network.transform = RescaleTransform(min_size, max_size, config.pixel_mean, config.pixel_std)
    network.rpn.box_coder = ClampedBoxCoder(config.rpn_box_weights)
    heads = network.roi_heads
    heads.box_coder = ClampedBoxCoder(config.box_weights)
    heads.box_roi_pool = FinestScaleRoIAlign(heads.box_roi_pool.featmap_names, 7)
    if masks:
        heads.mask_roi_pool = FinestScaleRoIAlign(heads.mask_roi_pool.featmap_names, 14)
    return network


class ClampedBoxCoder(BoxCoder):  # type: ignore[misc]  # torchvision has no types
    """A box coder that limits how much a box shrinks, as much as how much it grows."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes that offsets from `boxes` lead to; as torchvision's.

        Args:
            rel_codes: (N, C * 4), the offsets.
            boxes: (N, 4), pixels.
        """
        codes = rel_codes.view(len(rel_codes), -1, 4)
        low = codes.new_tensor([-math.inf, -math.inf, *(-_CLIP * weight for weight in self.weights[2:])])
        decoded: Tensor = super().decode_single(torch.maximum(codes, low).view_as(rel_codes), boxes)
        return decoded


class FinestScaleRoIAlign(AdaptiveRoIAlign):
    """`AdaptiveRoIAlign` that rounds the levels of boxes as MMDetection does."""

    @staticmethod
    def level(boxes: Tensor) -> Tensor:
        """Return the level of each box, (N,) float32 from 0 to 3."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        return torch.log2(side / 56 + 1e-6).floor().clamp(0, 3)


class RescaleTransform(ShortestEdgeTransform):
    """Resizes bytes as OpenCV does; all else as `ShortestEdgeTransform`."""

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return an image's size after the resize.

        Reference: `rescale_size` in mmcv/image/geometric.py.
        """
        smallest = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        scale = min(self.max_size / max(height, width), smallest / min(height, width))
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def resampled(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return an image resized, (3, height, width) float32, whole numbers.

        Sums are computed as OpenCV computes them, with weights of 11 bits: first along rows, and along columns without
        the lowest 4 bits of those sums.

        Args:
            image: (3, H, W) uint8.
            size: height and width of the result.
        """
        top, down = _neighbours(image.shape[1], size[0], image.device)
        left, across = _neighbours(image.shape[2], size[1], image.device, at_border=True)
        rows = image.to(torch.int32)
        rows = rows[:, :, left[0]] * across[0] + rows[:, :, left[1]] * across[1]
        rows >>= 4
        first = (rows[:, top[0]] * down[0][:, None]) >> 16
        second = (rows[:, top[1]] * down[1][:, None]) >> 16
        return ((first + second + 2) >> 2).clamp(0, 255).float()


def _neighbours(
    before: int, after: int, device: torch.device, *, at_border: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the two pixels that each new pixel reads, (2, after) int64, and their weights of 2048, (2, after) int32.

    Args:
        before: the number of pixels along an axis.
        after: that of new pixels.
        device: of the result.
        at_border: whether a new pixel beyond the first or last pixel has the weight of one alone, as along rows; else
            it reads the same pixel twice.
    """
    position = ((torch.arange(after, dtype=torch.float64) + 0.5) * (1 / (after / before)) - 0.5).float()
    first = position.floor()
    part = position - first
    if at_border:
        part = part.where((first >= 0) & (first < before - 1), 0.0)
    weight = torch.stack([1 - part, part]).mul(_COEFFICIENTS).round().to(torch.int32)
    places = torch.stack([first, first + 1]).clamp(0, before - 1).long()
    return places.to(device), weight.to(device)
