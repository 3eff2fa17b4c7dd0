"""Read the settings of a network of MMDetection from the configuration that its checkpoints contain, as Python text.

Nothing is executed: of the text, assignments of dictionaries, lists, numbers and texts are read, and the rest is left
out. What the result of a network depends on is either taken over, or must have a value that is supported, or is
refused by its name. What a configuration does not say is as in MMDetection's base configurations.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

from ...errors import UsageError
from ..architectures.rcnn_config import RCNNConfig
from .moves import Origin

__all__ = ["origin_of_text"]

_FIXED: Final[Mapping[str, tuple[Any, ...]]] = {
    "model.type": ("MaskRCNN", "FasterRCNN"),
    "model.backbone.type": ("ResNet",),
    "model.backbone.style": ("pytorch", "caffe"),
    "model.backbone.norm_cfg.type": ("BN", "SyncBN"),
    "model.backbone.strides": ([1, 2, 2, 2],),
    "model.backbone.dilations": ([1, 1, 1, 1],),
    "model.backbone.avg_down": (False,),
    "model.data_preprocessor.pad_size_divisor": (32,),
    "model.neck.type": ("FPN",),
    "model.neck.num_outs": (5,),
    "model.neck.add_extra_convs": (False,),
    "model.rpn_head.type": ("RPNHead",),
    "model.rpn_head.loss_cls.use_sigmoid": (True,),
    "model.rpn_head.anchor_generator.type": ("AnchorGenerator",),
    "model.rpn_head.anchor_generator.strides": ([4, 8, 16, 32, 64],),
    "model.rpn_head.anchor_generator.center_offset": (0,),
    "model.rpn_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
    "model.rpn_head.bbox_coder.target_means": ([0, 0, 0, 0],),
    "model.roi_head.type": ("StandardRoIHead",),
    "model.roi_head.bbox_roi_extractor.type": ("SingleRoIExtractor",),
    "model.roi_head.bbox_roi_extractor.finest_scale": (56,),
    "model.roi_head.bbox_roi_extractor.featmap_strides": ([4, 8, 16, 32],),
    "model.roi_head.bbox_roi_extractor.roi_layer.type": ("RoIAlign",),
    "model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio": (0,),
    "model.roi_head.bbox_roi_extractor.roi_layer.aligned": (True,),
    "model.roi_head.bbox_roi_extractor.roi_layer.output_size": (7,),
    "model.roi_head.mask_roi_extractor.type": ("SingleRoIExtractor",),
    "model.roi_head.mask_roi_extractor.finest_scale": (56,),
    "model.roi_head.mask_roi_extractor.featmap_strides": ([4, 8, 16, 32],),
    "model.roi_head.mask_roi_extractor.roi_layer.type": ("RoIAlign",),
    "model.roi_head.mask_roi_extractor.roi_layer.output_size": (14,),
    "model.roi_head.mask_roi_extractor.roi_layer.sampling_ratio": (0,),
    "model.roi_head.mask_roi_extractor.roi_layer.aligned": (True,),
    "model.roi_head.bbox_head.type": ("Shared2FCBBoxHead",),
    "model.roi_head.bbox_head.reg_class_agnostic": (False,),
    "model.roi_head.bbox_head.reg_decoded_bbox": (False,),
    "model.roi_head.bbox_head.loss_cls.use_sigmoid": (False,),
    "model.roi_head.bbox_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
    "model.roi_head.bbox_head.bbox_coder.target_means": ([0, 0, 0, 0],),
    "model.roi_head.mask_head.type": ("FCNMaskHead",),
    "model.roi_head.mask_head.class_agnostic": (False,),
    "model.test_cfg.rpn.min_bbox_size": (0,),
    "model.test_cfg.rpn.nms.type": ("nms",),
    "model.test_cfg.rpn.nms_across_levels": (False,),
    "model.test_cfg.rcnn.nms.type": ("nms",),
    "model.test_cfg.rcnn.mask_thr_binary": (0.5,),
}
"""Settings that must have one of some values where a configuration names them."""

_TAKEN: Final[Mapping[str, str]] = {
    "model.test_cfg.rpn.nms_pre": "pre_nms_limit",
    "model.test_cfg.rpn.max_per_img": "post_nms_limit",
    "model.test_cfg.rpn.max_num": "post_nms_limit",
    "model.test_cfg.rpn.nms.iou_threshold": "rpn_nms_threshold",
    "model.test_cfg.rpn.nms_thr": "rpn_nms_threshold",
    "model.test_cfg.rcnn.nms.iou_threshold": "nms_threshold",
    "model.test_cfg.rcnn.nms.iou_thr": "nms_threshold",
    "model.test_cfg.rcnn.score_thr": "min_score",
    "model.test_cfg.rcnn.max_per_img": "max_detections",
    "model.rpn_head.anchor_generator.ratios": "aspect_ratios",
}
"""Numbers that are taken over, by their names in `RCNNConfig`; of some there is an older key."""


def origin_of_text(uri: str, text: str, default: RCNNConfig) -> Origin:
    """Return what a configuration says of a network.

    Args:
        uri: the checkpoint's name in messages.
        text: the configuration; nothing is known from a text that is not Python.
        default: the settings where it says nothing.

    Raises:
        UsageError: a setting is not supported.
    """
    content = _assigned(text)
    flat = dict(_flattened(content))
    if "test_cfg.rcnn.score_thr" in flat:  # before version 2.8 it was not part of `model`
        flat |= {f"model.{key}": value for key, value in flat.items() if key.startswith("test_cfg.")}
    for key, supported in _FIXED.items():
        if key in flat and flat[key] is not None and flat[key] not in supported:
            only = " or ".join(map(str, supported))
            raise UsageError(
                f"{uri} was trained with {key} {str(flat[key])[:120]!r}: only {only} is supported"
            )
    for key in ("model.backbone.dcn", "model.backbone.plugins", "model.neck.norm_cfg"):
        if any(name == key or name.startswith(f"{key}.") for name in flat) and flat.get(key, 0) is not None:
            raise UsageError(f"{uri} was trained with {key}, which is not supported")
    steps = list(_steps(content.get("test_pipeline")))
    normalised = _normalisation(content, steps)
    bgr = normalised.get("to_rgb", normalised.get("bgr_to_rgb", True)) is False
    try:
        config = _config(flat, normalised, default, bgr=bgr)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{uri} has a configuration that is not supported: {error}") from error
    return Origin(config, bgr, *_sizes(uri, steps))


def _config(
    flat: Mapping[str, Any], normalised: Mapping[str, Any], default: RCNNConfig, *, bgr: bool
) -> RCNNConfig:
    """Return the settings. Raises TypeError or ValueError if a value is of another kind, or not supported."""
    values = {field.name: getattr(default, field.name) for field in fields(RCNNConfig)}
    for key, name in _TAKEN.items():
        if key in flat:
            like = values[name]
            values[name] = _numbers(flat[key]) if isinstance(like, tuple) else type(like)(flat[key])
    for name, key in (("rpn_box_weights", "rpn_head"), ("box_weights", "roi_head.bbox_head")):
        if (stds := flat.get(f"model.{key}.bbox_coder.target_stds")) is not None:
            values[name] = tuple(round(1 / std, 9) for std in _numbers(stds))
    if (scales := flat.get("model.rpn_head.anchor_generator.scales")) is not None:
        if len(scales) != 1:
            raise ValueError(f"model.rpn_head.anchor_generator.scales {scales}, of which there must be one")
        values["anchor_sizes"] = tuple(float(scales[0] * stride) for stride in (4, 8, 16, 32, 64))
    if "model.backbone.style" in flat:
        values["stride_in_1x1"] = flat["model.backbone.style"] == "caffe"
    for name, key in (("pixel_mean", "mean"), ("pixel_std", "std")):
        if key in normalised:
            values[name] = _numbers(normalised[key])[:: -1 if bgr else 1]
    return RCNNConfig(**values)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _normalisation(content: Mapping[str, Any], steps: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Return mean, deviation and order of channels: of version 3's preprocessor, else of version 2's pipeline."""
    model = content.get("model")
    found = model.get("data_preprocessor") if isinstance(model, dict) else None
    found = found or next((step for step in steps if step.get("type") == "Normalize"), None)
    found = found or content.get("img_norm_cfg")
    return found if isinstance(found, dict) else {}


def _sizes(uri: str, steps: list[dict[str, Any]]) -> tuple[int | None, int | None]:
    """Return the shorter and the longer side of resized images."""
    for step in steps:
        if step.get("type") == "Resize" and step.get("keep_ratio") is False:
            raise UsageError(f"{uri} was trained with images of another aspect ratio, which is not supported")
    for step in steps:
        scale = step.get("img_scale", step.get("scale"))
        if isinstance(scale, list) and len(scale) == 2 and all(type(side) is int for side in scale):
            return min(scale), max(scale)
    return None, None


def _steps(pipeline: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a pipeline, those within steps as well."""
    for step in pipeline if isinstance(pipeline, list) else []:
        if isinstance(step, dict):
            yield step
            yield from _steps(step.get("transforms"))


def _flattened(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values by their whole keys."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _assigned(text: str) -> dict[str, Any]:
    """Return the plain values that a Python text assigns to names."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}
    found = {}
    for line in body:
        if isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = _value(line.value)
    return found


def _value(node: ast.expr) -> Any:
    """Return the value of an expression of dictionaries, `dict(…)`, lists and constants; None of any other."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        return {
            key: _value(value) for key, value in zip(keys, node.values, strict=True) if isinstance(key, str)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each) for each in node.elts]
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
    ):
        value = node.operand.value
        return -value if isinstance(value, int | float) else None
    return node.value if isinstance(node, ast.Constant) else None
