"""Map the tensors of MMDetection's networks with FPN, versions 2 and 3, to torchvision's names."""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from ..architectures.network_shapes import Shape
from ..architectures.rcnn_config import MMDETECTION, RCNNConfig
from ..networks import NETWORKS
from .keys_detectron2 import config_of_zoo
from .moves import Move, Origin, first_side, last_first, padding, shapes_of

__all__ = ["mmdetection_names", "plan_mmdetection"]

_SCORES: Final = "roi_head.bbox_head.fc_cls.weight"


def mmdetection_names(
    labels: int,
    architecture: str = "maskrcnn_resnet50_fpn_mmdetection",
    config: RCNNConfig = MMDETECTION,
) -> dict[str, tuple[str, Shape]]:
    """Return the tensors of a network of MMDetection: name to torchvision's name and shape in the source.

    Args:
        labels: the number of labels of the network, the background included.
        architecture: one of MMDetection's in `networks.NETWORKS`.
        config: its settings.
    """
    names = {}
    for target, shape in NETWORKS[architecture].shapes_with(labels, config).items():
        layer, _, part = target.rpartition(".")
        source = _layer(layer)
        background = {"roi_head.bbox_head.fc_reg": 4, "roi_head.mask_head.conv_logits": 1}.get(source, 0)
        names[f"{source}.{part}"] = (target, (shape[0] - background, *shape[1:]))
    return names


def _layer(layer: str) -> str:
    """Return MMDetection's name of a layer."""
    if layer in _LAYERS:
        return _LAYERS[layer]
    if layer.startswith("backbone.fpn."):
        _, _, block, level, _ = layer.split(".")
        return f"neck.{'lateral' if block == 'inner_blocks' else 'fpn'}_convs.{level}.conv"
    return layer.replace("backbone.body.", "backbone.", 1)


_LAYERS: Final = {
    "rpn.head.conv.0.0": "rpn_head.rpn_conv",
    "rpn.head.cls_logits": "rpn_head.rpn_cls",
    "rpn.head.bbox_pred": "rpn_head.rpn_reg",
    "roi_heads.box_head.fc6": "roi_head.bbox_head.shared_fcs.0",
    "roi_heads.box_head.fc7": "roi_head.bbox_head.shared_fcs.1",
    "roi_heads.box_predictor.cls_score": "roi_head.bbox_head.fc_cls",
    "roi_heads.box_predictor.bbox_pred": "roi_head.bbox_head.fc_reg",
    **{f"roi_heads.mask_head.{i}.0": f"roi_head.mask_head.convs.{i}.conv" for i in range(4)},
    "roi_heads.mask_predictor.conv5_mask": "roi_head.mask_head.upsample",
    "roi_heads.mask_predictor.mask_fcn_logits": "roi_head.mask_head.conv_logits",
}


def _architecture(shapes: Mapping[str, Shape]) -> str:
    """Return which of MMDetection's networks tensors are most like."""
    body = "resnet101" if any(name.startswith("backbone.layer3.6.") for name in shapes) else "resnet50"
    masks = any(name.startswith("roi_head.mask_head.") for name in shapes)
    return f"{'mask' if masks else 'faster'}rcnn_{body}_fpn_mmdetection"


def plan_mmdetection(_: str, tensors: Mapping[str, Tensor], origin: Origin) -> tuple[str, list[Move]]:
    """Plan the moves of a network of MMDetection with FPN."""
    architecture = _architecture(shapes_of(tensors))
    config = origin.config or config_of_zoo(architecture)
    names = mmdetection_names(first_side(tensors, _SCORES), architecture, config)
    moves = [_move(*item, bgr=origin.bgr is True) for item in names.items()]
    for name, tensor in tensors.items():
        if name.endswith(".num_batches_tracked"):
            moves.append(Move(name, "", tuple(tensor.shape), "dropped", "a frozen norm counts no batches"))
        elif name.startswith("ema_"):
            moves.append(Move(name, "", tuple(tensor.shape), "dropped", "an average of another tensor"))
    return architecture, moves


def _move(source: str, placed: tuple[str, Shape], *, bgr: bool) -> Move:
    target, shape = placed
    if source == "backbone.conv1.weight" and bgr:
        note = "input channels from BGR to RGB"
        return Move(source, target, shape, "flipped", note, lambda tensor: tensor.flip(1))
    if source.startswith("roi_head.bbox_head.fc_cls"):
        return Move(source, target, shape, "reordered", "background from last to first", last_first)
    if source.startswith("roi_head.bbox_head.fc_reg"):
        return Move(source, target, shape, "padded", "4 rows of zeros for the background", padding(4))
    if source.startswith("roi_head.mask_head.conv_logits"):
        return Move(source, target, shape, "padded", "a row of zeros for the background", padding(1))
    return Move(source, target, shape)
