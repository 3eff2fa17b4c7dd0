"""detectron2's Mask R-CNN and Faster R-CNN C4, which have no pyramid: their heads contain the ResNet's last stage.

The networks of `mask_rcnn_R_50_C4`, `mask_rcnn_R_101_C4` and of `faster_rcnn_…`. Where they differ from those with FPN
in `detectron2`:

- The region proposal network reads the map of the fourth stage, of stride 16, with anchors of all sizes at each
  position, and 6,000 of its anchors become boxes.
- RoIAlign returns 14 x 14 bins, on which the fifth stage runs: 7 x 7 positions of 2,048 channels. Their mean is
  classified. The mask predictor, 14 x 14, gets the positions of the final boxes.
- Images are not padded.

Reference: `Res5ROIHeads` in https://github.com/facebookresearch/detectron2, modeling/roi_heads/roi_heads.py.
"""

from collections.abc import Iterator
from typing import Final, cast

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

from ..forward import Forward
from ..roi_align import Pyramid, pool
from .detectron2 import ONE_STRIDE, AdaptiveRoIAlign, OneMap, assembled, set_strides
from .rcnn_config import OneMapConfig

__all__ = ["C4Forward", "build_c4"]

_BINS: Final = 14
_AT_ONCE: Final = 64
"""The number of boxes whose features are in memory at the same time, 51 MB."""


def build_c4(
    body: str, masks: bool, num_classes: int, min_size: int, max_size: int, config: OneMapConfig
) -> FasterRCNN:
    """Build a network with random weights; the arguments are those of `build_detectron2`.

    The fifth stage is a part of the box head, from which the masks get it too. torchvision's `forward` cannot run that;
    `C4Forward` does.
    """
    resnet = get_model(body, weights=None, norm_layer=FrozenBatchNorm2d)
    set_strides(resnet, config)
    head = LastStage(resnet.layer4)
    parts = {
        "box_roi_pool": AdaptiveRoIAlign(["0"], _BINS, ONE_STRIDE),
        "box_head": head,
        "box_predictor": FastRCNNPredictor(head.out_channels, num_classes),
    }
    if masks:
        parts |= {
            "mask_head": nn.Identity(),
            "mask_predictor": MaskRCNNPredictor(head.out_channels, 256, num_classes),
        }
    return assembled(OneMap(resnet, "layer3"), masks, None, (min_size, max_size), config, **parts)


class LastStage(nn.Module):
    """The fifth stage of a ResNet, and the mean of its positions.

    Args:
        layer4: the stage.
    """

    def __init__(self, layer4: nn.Sequential) -> None:
        super().__init__()
        self.layer4 = layer4
        self.out_channels = cast(nn.Conv2d, layer4[-1].conv3).out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C) of (N, C / 2, H, W)."""
        features: Tensor = self.layer4(x)
        return features.mean((2, 3))


class C4Forward(Forward):
    """As `forward.Forward`, with heads that share the last stage of the ResNet, and run it on some boxes at a time."""

    def _predicted(
        self, pyramid: Pyramid | list[Tensor], boxes: Tensor, head: nn.Module, predictor: nn.Module
    ) -> tuple[Tensor, Tensor]:
        image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        features = torch.cat([head(part) for part in self._pooled(pyramid, boxes.flatten(0, 1), image)])
        logits, deltas = predictor(features)
        shape = (*boxes.shape[:2], -1)
        return logits.float().view(shape), deltas.float().view(shape)

    def _mask_features(self, pyramid: Pyramid | list[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        stage = self._network.roi_heads.box_head.layer4
        return torch.cat([stage(part) for part in self._pooled(pyramid, boxes, image)])

    def _pooled(self, pyramid: Pyramid | list[Tensor], boxes: Tensor, image: Tensor) -> Iterator[Tensor]:
        """Yield the features of boxes, (n, C, 14, 14), of some boxes at a time."""
        aligner = self._network.roi_heads.box_roi_pool
        parts = (torch.split(each, _AT_ONCE) for each in (boxes, image))
        for box, nth in zip(*parts, strict=True):
            yield pool(pyramid, aligner, box, nth).to(self._dtype)
