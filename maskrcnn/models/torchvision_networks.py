"""Builders of the networks that torchvision's own functions make up; `networks.NETWORKS` names them."""

from typing import cast

from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

__all__ = ["build_resnet18", "build_resnet50", "build_resnet50_v2"]


def build_resnet50(labels: int, min_size: int, max_size: int) -> MaskRCNN:
    """Build torchvision's `maskrcnn_resnet50_fpn` with random weights; the arguments are those of `Network.build`."""
    network = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=labels, min_size=min_size, max_size=max_size
    )
    return cast(MaskRCNN, network)


def build_resnet50_v2(labels: int, min_size: int, max_size: int) -> MaskRCNN:
    """Build torchvision's `maskrcnn_resnet50_fpn_v2` with random weights, as `build_resnet50`."""
    network = maskrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=labels, min_size=min_size, max_size=max_size
    )
    return cast(MaskRCNN, network)


def build_resnet18(labels: int, min_size: int, max_size: int) -> MaskRCNN:
    """Build a Mask R-CNN with ResNet-18 and FPN, with random weights, as `build_resnet50`."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return MaskRCNN(backbone, labels, min_size=min_size, max_size=max_size)
