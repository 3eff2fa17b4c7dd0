"""Builders of the networks that torchvision's own functions make up; `networks.NETWORKS` names them."""

from typing import TypeAlias, cast

from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.ssd import SSD

__all__ = ["Detector", "build_fixed", "build_resnet_fpn", "build_torchvision"]

Detector: TypeAlias = FasterRCNN | RetinaNet | FCOS | SSD
"""Every network: a `MaskRCNN` is a `FasterRCNN` with masks."""


def build_torchvision(name: str, labels: int, min_size: int, max_size: int) -> Detector:
    """Build a detector of torchvision with random weights.

    Args:
        name: of its function in `torchvision.models.detection`.
        labels: as of `Network.build`, as are the other arguments.
        min_size: the shorter side of an image after the resize, pixels.
        max_size: the limit for its longer side, pixels.
    """
    network = get_model(
        name, weights=None, weights_backbone=None, num_classes=labels, min_size=min_size, max_size=max_size
    )
    return cast(Detector, network)


def build_fixed(name: str, labels: int, min_size: int, max_size: int) -> Detector:
    """Build an SSD of torchvision, which resizes every image to the size that it was made for."""
    del min_size, max_size
    return cast(Detector, get_model(name, weights=None, weights_backbone=None, num_classes=labels))


def build_resnet_fpn(backbone: str, labels: int, min_size: int, max_size: int) -> MaskRCNN:
    """Build a Mask R-CNN with a ResNet and FPN, with random weights.

    Args:
        backbone: the name of the ResNet's function in `torchvision.models`.
        labels: as of `Network.build`, as are the other arguments.
        min_size: the shorter side of an image after the resize, pixels.
        max_size: the limit for its longer side, pixels.
    """
    body = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return MaskRCNN(body, labels, min_size=min_size, max_size=max_size)
