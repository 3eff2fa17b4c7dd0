"""The settings that the networks of detectron2 and MMDetection depend on besides their tensors.

This module does not import torch: a model's file has the configuration in its header.
"""

import json
from dataclasses import asdict, dataclass
from typing import ClassVar, Final

__all__ = ["CAFFE2", "CASCADE", "DETECTRON2", "MMDETECTION", "CascadeConfig", "OneMapConfig", "RCNNConfig"]


@dataclass(frozen=True, slots=True)
class RCNNConfig:
    """The settings of a Faster or Mask R-CNN; the defaults are those of detectron2's ResNets with FPN."""

    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    """The mean of red, green and blue, from 0 to 255, that is subtracted from an image, …"""
    pixel_std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """… and what it is then divided by."""
    stride_in_1x1: bool = True
    """Whether a block that halves the map does so in its first 1x1 convolution, not in its 3x3 convolution."""
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """The side of the square anchors, pixels of the resized image: one for each level of a pyramid."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height by width, on every level."""
    rpn_box_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    """The divisors of the offsets dx, dy, log dw, log dh, from anchors to proposals, …"""
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    """… and from proposals to boxes; four for each stage."""
    pre_nms_limit: int = 1000
    """The number of anchors of each level that become boxes, …"""
    rpn_nms_threshold: float = 0.7
    """… of which those with a higher IoU with a better one of their level are suppressed, …"""
    post_nms_limit: int = 1000
    """… and of the rest at most this number is kept in an image."""
    nms_threshold: float = 0.5
    """Instances of a class with a higher IoU with a better one are suppressed."""
    min_score: float = 0.05
    """The minimum score with which the network was evaluated, …"""
    max_detections: int = 100
    """… and the maximum number of instances of an image; a run has its own options for both."""

    stages: ClassVar[int] = 1
    """The number of box heads, each of which refines the boxes of the one before."""
    levels: ClassVar[int] = 5
    """The number of maps that the region proposal network reads."""

    @property
    def sizes_by_level(self) -> tuple[tuple[float, ...], ...]:
        """The sides of the square anchors of each level."""
        return (self.anchor_sizes,) if self.levels == 1 else tuple((size,) for size in self.anchor_sizes)

    @property
    def anchors(self) -> int:
        """The number of anchors at each position of a map."""
        return len(self.sizes_by_level[0]) * len(self.aspect_ratios)

    def __post_init__(self) -> None:
        counts = _COUNTS | {"box_weights": 4 * self.stages}
        if self.levels > 1:
            counts["anchor_sizes"] = self.levels
        for name, count in counts.items():
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} must have {count} numbers, not {len(getattr(self, name))}")
        for name in ("rpn_nms_threshold", "nms_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")
        for name in ("pixel_std", "anchor_sizes", "aspect_ratios", "rpn_box_weights", "box_weights"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must be above 0")
        for name in ("pre_nms_limit", "post_nms_limit", "max_detections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be from 0 to 1, not {self.min_score}")

    def to_json(self) -> str:
        """Return the JSON of a model's file."""
        return json.dumps(asdict(self))


_COUNTS: Final = {"pixel_mean": 3, "pixel_std": 3, "rpn_box_weights": 4}


@dataclass(frozen=True, slots=True)
class CascadeConfig(RCNNConfig):
    """The settings of a Cascade R-CNN with FPN; the defaults are those of detectron2's."""

    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0, 20.0, 20.0, 10.0, 10.0, 30.0, 30.0, 15.0, 15.0)

    stages: ClassVar[int] = 3


@dataclass(frozen=True, slots=True)
class OneMapConfig(RCNNConfig):
    """The settings of a network without FPN, all of whose anchors are on one map; the defaults are detectron2's."""

    pre_nms_limit: int = 6000
    res5_dilation: int = 1
    """The dilation of the last stage of the ResNet; with 2 it does not halve the map."""

    levels: ClassVar[int] = 1


DETECTRON2: Final = RCNNConfig()
"""The settings of the model zoo's R50-FPN and R101-FPN."""
CAFFE2: Final = RCNNConfig(pixel_std=(58.395, 57.12, 57.375), stride_in_1x1=False)
"""Those of its X101-32x8d-FPN, whose backbone was trained with Caffe2."""
CASCADE: Final = CascadeConfig()
"""Those of its Cascade Mask R-CNN R50-FPN."""
MMDETECTION: Final = RCNNConfig(pixel_std=(58.395, 57.12, 57.375), stride_in_1x1=False)
"""Those of MMDetection's configurations with `style='pytorch'`."""
