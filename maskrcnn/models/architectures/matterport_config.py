"""The part of matterport's `InferenceConfig` that a network depends on, and the options that replace the rest.

This module does not import torch: a model's file has the configuration in its header.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from ...errors import UsageError

__all__ = ["ELSEWHERE", "STRIDE", "MatterportConfig", "configured"]

STRIDE: Final = 64
"""The stride of the coarsest map, pixels: the sides of canvases are multiples of it."""


@dataclass(frozen=True, slots=True)
class MatterportConfig:
    """The settings that a network was trained with; the names are those of `InferenceConfig` in lower case."""

    image_resize_mode: str = "square"
    """`square`: to `max_size` on both sides; `pad64`: to the next multiples of 64."""
    image_min_scale: float = 0.0
    """The minimum factor by which images are enlarged; 0: no minimum."""
    mean_pixel: tuple[float, ...] = (123.7, 116.8, 103.9)
    """The mean of red, green and blue, from 0 to 255."""
    rpn_anchor_scales: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """The side of the anchors of each level, pixels of the canvas."""
    rpn_anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Width by height."""
    rpn_bbox_std_dev: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    """The factors of the offsets dy, dx, log dh, log dw, from anchors to proposals, …"""
    bbox_std_dev: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    """… and from proposals to boxes."""
    pre_nms_limit: int = 6000
    """The number of anchors that become boxes, …"""
    rpn_nms_threshold: float = 0.7
    """… of which those with a higher IoU with a better one are suppressed, …"""
    post_nms_rois_inference: int = 1000
    """… and of the rest at most this number is kept."""
    detection_nms_threshold: float = 0.3
    """Instances of a class with a higher IoU with a better one are suppressed."""

    def __post_init__(self) -> None:
        for name, count in _COUNTS.items():
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name.upper()} must have {count} numbers, not {len(getattr(self, name))}")
        for name in ("rpn_nms_threshold", "detection_nms_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name.upper()} must be above 0 and at most 1, not {getattr(self, name)}")
        for name in ("rpn_anchor_scales", "rpn_anchor_ratios", "rpn_bbox_std_dev", "bbox_std_dev"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name.upper()} must be above 0")
        if not (min(self.mean_pixel) >= 0 and max(self.mean_pixel) <= 255):
            raise ValueError("MEAN_PIXEL must be from 0 to 255")
        if min(self.pre_nms_limit, self.post_nms_rois_inference) < 1:
            raise ValueError("PRE_NMS_LIMIT and POST_NMS_ROIS_INFERENCE must be at least 1")
        if self.image_resize_mode not in ("square", "pad64"):
            raise ValueError(f"IMAGE_RESIZE_MODE must be square or pad64, not {self.image_resize_mode!r}")
        if not 0 <= self.image_min_scale <= 64:
            raise ValueError(f"IMAGE_MIN_SCALE must be from 0 to 64, not {self.image_min_scale}")

    def to_json(self) -> str:
        """Return the JSON of a model's file."""
        return json.dumps(asdict(self))


_COUNTS: Final = {
    "mean_pixel": 3,
    "rpn_anchor_scales": 5,
    "rpn_anchor_ratios": 3,
    "rpn_bbox_std_dev": 4,
    "bbox_std_dev": 4,
}

ELSEWHERE: Final[Mapping[str, str]] = {
    "IMAGE_MIN_DIM": "--min-size of convert",
    "IMAGE_MAX_DIM": "--max-size of convert",
    "IMAGE_SHAPE": "--max-size of convert",
    "DETECTION_MIN_CONFIDENCE": "--min-score of segment",
    "DETECTION_MAX_INSTANCES": "--max-detections of segment",
    "IMAGES_PER_GPU": "--batch-size of segment",
    "BATCH_SIZE": "--batch-size of segment",
    "GPU_COUNT": "--actors of segment",
    "NUM_CLASSES": "read from the file",
    "BACKBONE": "read from the file",
    "NAME": "the name of OUT",
}
"""Names of `InferenceConfig` and what replaces each of them."""

_FIXED: Final = {
    "BACKBONE_STRIDES", "COMPUTE_BACKBONE_SHAPE", "FPN_CLASSIF_FC_LAYERS_SIZE", "IMAGE_CHANNEL_COUNT",
    "IMAGE_META_SIZE", "MASK_POOL_SIZE", "MASK_SHAPE", "POOL_SIZE", "RPN_ANCHOR_STRIDE", "TOP_DOWN_PYRAMID_SIZE",
}  # fmt: skip
"""Names whose value is always matterport's default here."""
_OF_TRAINING: Final = {
    "GRADIENT_CLIP_NORM", "LEARNING_MOMENTUM", "LEARNING_RATE", "LOSS_WEIGHTS", "MAX_GT_INSTANCES", "MINI_MASK_SHAPE",
    "POST_NMS_ROIS_TRAINING", "ROI_POSITIVE_RATIO", "RPN_TRAIN_ANCHORS_PER_IMAGE", "STEPS_PER_EPOCH", "TRAIN_BN",
    "TRAIN_ROIS_PER_IMAGE", "USE_MINI_MASK", "USE_RPN_ROIS", "VALIDATION_STEPS", "WEIGHT_DECAY",
}  # fmt: skip


def configured(assignments: Sequence[str]) -> MatterportConfig:
    """Return the default configuration with some values changed.

    Args:
        assignments: such as `RPN_ANCHOR_SCALES=8,16,32,64,128`.

    Raises:
        UsageError: a name does not exist or cannot be set, or its value is not valid.
    """
    known = {field.name.upper(): field.default for field in fields(MatterportConfig)}
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip().upper()
        if name in ELSEWHERE:
            raise UsageError(f"--set {name} is not possible: it is {ELSEWHERE[name]}")
        if name in _FIXED:
            raise UsageError(
                f"--set {name} is not possible: leave it out, it always has matterport's default here"
            )
        if name in _OF_TRAINING:
            raise UsageError(f"--set {name} is not possible: leave it out, it is for training only")
        if name.lower() in values:
            raise UsageError(f"--set {name} is given twice: give it once")
        if not equals or name not in known:
            raise UsageError(f"--set {assignment}: give NAME=VALUE with one of {', '.join(known)}")
        try:
            values[name.lower()] = _value(known[name], text)
        except ValueError as error:
            raise UsageError(f"--set {assignment}: {error}") from error
    try:
        return MatterportConfig(**values)
    except ValueError as error:
        raise UsageError(f"--set: {error}") from error


def _value(like: Any, text: str) -> Any:
    if isinstance(like, str):
        return text.strip()
    if isinstance(like, tuple):
        bare = re.sub(r"^ *(np|numpy)\.array|[()\[\]]", "", text)
        return tuple(_number(part) for part in bare.strip().rstrip(",").split(","))
    number = _number(text)
    if isinstance(like, int) and not number.is_integer():
        raise ValueError(f"{text} is not a whole number")
    return type(like)(number)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number
