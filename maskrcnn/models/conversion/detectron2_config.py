"""Read the settings of a network of detectron2 from the configuration that its trainer wrote, `config.yaml`.

Each key that the result of a network depends on is either taken over, or must have the one value that is supported, or
is refused by its name. Keys of training, of data and of other networks have no effect.
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, cast

import yaml

from ...errors import UsageError
from ..architectures.rcnn_config import RCNNConfig
from ..networks import NETWORKS
from ..weights.checkpoint_files import read_text

__all__ = ["Detectron2Settings", "parsed", "read_settings"]


@dataclass(frozen=True, slots=True)
class Detectron2Settings:
    """What a configuration says of a network."""

    uri: str
    values: Mapping[str, Any]
    """The values by their whole keys."""
    bgr: bool
    """Whether the network reads blue first."""
    min_size: int | None
    """The length that the shorter side of an image is resized to, pixels; None: it does not say."""
    max_size: int | None

    def applied_to(self, architecture: str) -> RCNNConfig:
        """Return the settings of a network: those of the model zoo, but for what the configuration says.

        Args:
            architecture: one of detectron2's in `networks.NETWORKS`.

        Raises:
            UsageError: a value is not supported, or not valid.
        """
        default = cast(RCNNConfig, NETWORKS[architecture].config)
        fixed = {**_FIXED, **(NETWORKS[architecture].detectron2 or {})}
        for key, value in self.values.items():
            if key not in _TAKEN and key not in _CHECKED:
                self._check(key, value, fixed, architecture)
        values: dict[str, Any] = {}
        keys: dict[str, str] = {}
        for key, (name, read) in _TAKEN.items():
            if key in self.values and key not in _WITHOUT_EFFECT[default.stages > 1]:
                values[name] = _read(self.uri, key, self.values[key], read)
                keys[name] = key
        if "anchor_sizes" in values:
            values["anchor_sizes"] = _read(
                self.uri, _SIZES, values["anchor_sizes"], partial(_of_levels, default.levels)
            )
        for name in ("pixel_mean", "pixel_std"):
            if name in values and self.bgr:
                values[name] = values[name][::-1]
        try:
            return replace(default, **values)
        except ValueError as error:
            field, problem = str(error).split(" ", 1)
            raise UsageError(f"--config {self.uri}: {keys[field]} {problem}") from error

    def check(self, shown: Mapping[str, Any]) -> None:
        """Raise UsageError if a key has another value than the tensors show.

        Args:
            shown: the values by key.
        """
        for key, read in _CHECKED.items():
            value = _read(self.uri, key, self.values[key], read) if key in self.values else None
            if value is not None and key in shown and shown[key] != value:
                raise UsageError(
                    f"--config {self.uri} is not that of these weights: {key} is {value}, and they have {shown[key]}"
                )

    def _check(self, key: str, value: Any, fixed: Mapping[str, tuple[Any, ...]], architecture: str) -> None:
        """Raise UsageError for a key of the network that is not known, or whose value is not supported."""
        if key in fixed:
            others = _same_types(value, fixed[key])
            if others and not any(type(value) is type(other) and value == other for other in others):
                supported = " or ".join(str(other) or "''" for other in fixed[key])
                raise UsageError(
                    f"--config {self.uri}: {key} {str(value)[:120]!r} is not supported for {architecture}, the network "
                    f"of these weights: only {supported} is"
                )
            return
        first, *rest = key.split(".")
        section = ".".join(key.split(".")[:2])
        elsewhere = len(rest) > 1 and rest[0] in _ELSEWHERE
        elsewhere = elsewhere and not any(each.startswith(f"{section}.") for each in fixed)
        if first != "MODEL" or not rest or elsewhere:
            return
        known = rest[-1] in _OF_TRAINING and (len(rest) == 1 or rest[0] in _SECTIONS)
        if not known:
            raise UsageError(
                f"--config {self.uri}: {key} is not known, and may change what the network computes"
            )


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(_number(each) for each in _listed(value))


def _listed(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("is not a list")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("is not a number")
    return float(value)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("is not a whole number")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("is not true or false")
    return value


def _sizes(value: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(_numbers(level) for level in _listed(value))


def _of_levels(count: int, levels: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the sizes of anchors: one for each level, or all of the only one."""
    if count == 1 and len(levels) != 1:
        raise ValueError("is not supported: there must be one list of sizes")
    if count > 1 and (len(levels) != count or any(len(level) != 1 for level in levels)):
        raise ValueError("is not supported: there must be one size for each of five levels")
    return tuple(size for level in levels for size in level)


def _ratios(value: Any) -> tuple[float, ...]:
    levels = {_numbers(level) for level in _listed(value)}
    if len(levels) != 1:
        raise ValueError("is not supported: the ratios must be the same on all levels")
    return levels.pop()


def _stages(value: Any) -> tuple[float, ...]:
    """Return the numbers of all stages of a cascade."""
    return tuple(number for stage in _listed(value) for number in _numbers(stage))


_SIZES: Final = "MODEL.ANCHOR_GENERATOR.SIZES"
_TAKEN: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "MODEL.PIXEL_MEAN": ("pixel_mean", _numbers),
    "MODEL.PIXEL_STD": ("pixel_std", _numbers),
    "MODEL.RESNETS.STRIDE_IN_1X1": ("stride_in_1x1", _flag),
    _SIZES: ("anchor_sizes", _sizes),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ("aspect_ratios", _ratios),
    "MODEL.RPN.BBOX_REG_WEIGHTS": ("rpn_box_weights", _numbers),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": ("pre_nms_limit", _whole),
    "MODEL.RPN.POST_NMS_TOPK_TEST": ("post_nms_limit", _whole),
    "MODEL.RPN.NMS_THRESH": ("rpn_nms_threshold", _number),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": ("nms_threshold", _number),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ("min_score", _number),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": ("box_weights", _numbers),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": ("box_weights", _stages),
    "TEST.DETECTIONS_PER_IMAGE": ("max_detections", _whole),
}
"""Keys that are taken over: the name in `RCNNConfig`, and what reads the value."""
_WITHOUT_EFFECT: Final = {
    False: ("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS",),
    True: ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",),
}
"""Which of these keys have no effect, by whether the network has a cascade."""

_CHECKED: Final[Mapping[str, Callable[[Any], Any]]] = {
    "MODEL.MASK_ON": _flag,
    "MODEL.RESNETS.DEPTH": _whole,
    "MODEL.RESNETS.NUM_GROUPS": _whole,
    "MODEL.ROI_HEADS.NUM_CLASSES": _whole,
}
"""Keys whose values the tensors show as well."""

_LEVELS: Final = ["p2", "p3", "p4", "p5", "p6"]
_STAGES: Final = ["res2", "res3", "res4", "res5"]
_FIXED: Final[Mapping[str, tuple[Any, ...]]] = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.LOAD_PROPOSALS": (False,),
    "MODEL.BACKBONE.NAME": ("build_resnet_fpn_backbone",),
    "MODEL.RESNETS.OUT_FEATURES": (_STAGES,),
    "MODEL.RESNETS.WIDTH_PER_GROUP": (64, 8),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "SyncBN", "nnSyncBN"),
    "MODEL.RESNETS.RES5_DILATION": (1,),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": (256,),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": (64,),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([False] * 4,),
    "MODEL.FPN.IN_FEATURES": (_STAGES,),
    "MODEL.FPN.OUT_CHANNELS": (256,),
    "MODEL.FPN.NORM": ("",),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (0,),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.ANCHOR_GENERATOR.OFFSET": (0,),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.IN_FEATURES": (_LEVELS,),
    "MODEL.RPN.CONV_DIMS": ([-1], [256]),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads",),
    "MODEL.ROI_HEADS.IN_FEATURES": (_LEVELS[:4],),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "MODEL.ROI_BOX_HEAD.NUM_FC": (2,),
    "MODEL.ROI_BOX_HEAD.FC_DIM": (1024,),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0,),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": (7,),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": (0,),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False,),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (False,),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": (4,),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": (256,),
    "MODEL.ROI_MASK_HEAD.NORM": ("",),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": (14,),
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": (0,),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": (False,),
    "INPUT.FORMAT": ("BGR", "RGB"),
    "_BASE_": ("Base-RCNN-FPN.yaml",),
}
"""Keys that must have one of some values; `Network.detectron2` has those of other networks than with FPN."""

_BASES: Final = ("Base-RCNN-FPN.yaml", "Base-RCNN-C4.yaml", "Base-RCNN-DilatedC5.yaml")
"""Those of the model zoo, whose values are the defaults here."""
_MOST: Final = 10_000
"""The number of values that a configuration may have; detectron2's has some 200."""
_OF_TRAINING: Final = (
    "ANGLES BATCH_SIZE_PER_IMAGE BBOX_REG_LOSS_TYPE BBOX_REG_LOSS_WEIGHT BOUNDARY_THRESH CONV_DIM DEFORM_MODULATED "
    "DEFORM_NUM_GROUPS DEVICE FED_LOSS_FREQ_WEIGHT_POWER FED_LOSS_NUM_CLASSES FREEZE_AT IOU_LABELS IOU_THRESHOLDS "
    "LOSS_WEIGHT NORM POSITIVE_FRACTION POST_NMS_TOPK_TRAIN PRE_NMS_TOPK_TRAIN PROPOSAL_APPEND_GT SMOOTH_L1_BETA "
    "TRAIN_ON_PRED_BOXES USE_FED_LOSS WEIGHTS"
).split()
"""The last parts of keys of a network that have no effect on its results, or only with others that are refused."""
_SECTIONS: Final = ("BACKBONE", "RESNETS", "FPN", "PROPOSAL_GENERATOR", "ANCHOR_GENERATOR", "RPN", "ROI_HEADS",
                    "ROI_BOX_HEAD", "ROI_MASK_HEAD")  # fmt: skip
_ELSEWHERE: Final = ("ROI_BOX_CASCADE_HEAD", "ROI_KEYPOINT_HEAD", "SEM_SEG_HEAD", "PANOPTIC_FPN", "RETINANET")
"""Sections of other networks; every complete configuration has them."""


def read_settings(uri: str) -> Detectron2Settings:
    """Read a configuration, local or remote.

    Raises:
        UsageError: it cannot be read, is not YAML of detectron2, or has a value that is not supported.
    """
    return parsed(uri, read_text(uri, "configuration"))


def parsed(uri: str, text: str) -> Detectron2Settings:
    """Return what a configuration says; errors are those of `read_settings`.

    Args:
        uri: its name in messages.
        text: the YAML.
    """
    try:
        content = yaml.safe_load(
            text.replace("!!python/tuple", "")
        )  # which older versions of detectron2 wrote
        if _count(content, {}) > _MOST:
            raise UsageError(
                f"--config {uri} has more than {_MOST:,} values: give a configuration of detectron2"
            )
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"--config {uri} cannot be read as YAML: {reason}") from error
    if not isinstance(content, dict) or not isinstance(content.get("MODEL"), dict):
        raise UsageError(
            f"--config {uri} is not a configuration of detectron2, which has a section MODEL: give the config.yaml "
            "that its trainer wrote"
        )
    flat = _flattened(content)
    if "_BASE_" in flat:
        flat["_BASE_"] = str(base := flat["_BASE_"]).rpartition("/")[2]
        if flat["_BASE_"] not in _BASES:
            raise UsageError(
                f"--config {uri} continues {str(base)[:120]!r}: give the config.yaml that the trainer wrote, which is "
                "whole"
            )
    if flat.get("MODEL.MASK_ON") is False:
        flat = {key: value for key, value in flat.items() if not key.startswith("MODEL.ROI_MASK_HEAD.")}
    low, high = (
        _read(uri, key, flat[key], _whole) if key in flat else None
        for key in ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")
    )
    if low == 0:
        raise UsageError(
            f"--config {uri}: INPUT.MIN_SIZE_TEST 0, images that are not resized, is not supported"
        )
    return Detectron2Settings(uri, flat, flat.get("INPUT.FORMAT", "BGR") == "BGR", low, high)


def _read(uri: str, key: str, value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise UsageError(f"--config {uri}: {key} {str(value)[:120]} {error}") from error


def _same_types(value: Any, others: tuple[Any, ...]) -> list[Any]:
    """Return the others, numbers of the type of a number that is equal to it: 0.0 is as good as 0."""
    return [type(value)(other) if type(value) is float and type(other) is int else other for other in others]


def _count(value: Any, known: dict[int, int]) -> int:
    """Return the number of values in a value; in one that contains itself more than `_MOST`.

    Args:
        value: that YAML stands for, which may contain the same list many times.
        known: the number by the id of a dictionary or list; it is filled.
    """
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST + 1
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(each, known) for each in parts)
    return known[id(value)]


def _flattened(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values by their whole keys, with texts of Python's tuples and lists as such."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _literal(value)
    return flat


def _literal(value: Any) -> Any:
    """Return what a text of Python's syntax stands for, as detectron2 reads it; another value as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("(", "["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
    return [_literal(each) for each in value] if isinstance(value, list | tuple) else value
