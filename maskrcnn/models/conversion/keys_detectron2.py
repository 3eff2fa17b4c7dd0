"""Map the tensors of detectron2's networks with FPN to torchvision's names."""

from collections.abc import Mapping
from typing import Final, cast

import torch
from torch import Tensor

from ...errors import UsageError
from ..architectures.detectron2 import cell_anchors
from ..architectures.network_shapes import Shape
from ..architectures.rcnn_config import DETECTRON2, RCNNConfig
from ..networks import NETWORKS
from .moves import Move, Origin, first_side, last_first, misshapen, padding, shapes_of

__all__ = ["architecture_of_detectron2", "config_of_zoo", "detectron2_names", "plan_detectron2"]


def config_of_zoo(architecture: str) -> RCNNConfig:
    """Return the settings that a network of detectron2 or MMDetection has in its model zoo."""
    return cast(RCNNConfig, NETWORKS[architecture].config)


def detectron2_names(
    labels: int,
    architecture: str = "maskrcnn_resnet50_fpn_detectron2",
    config: RCNNConfig = DETECTRON2,
) -> dict[str, tuple[str, Shape]]:
    """Return the tensors of a network of detectron2: name to torchvision's name and shape in the source.

    Args:
        labels: the number of labels of the network, the background included.
        architecture: one of detectron2's in `networks.NETWORKS`.
        config: its settings.
    """
    names = {}
    for target, shape in NETWORKS[architecture].shapes_with(labels, config).items():
        layer, _, part = target.rpartition(".")
        source = _layer(layer)
        if source.startswith("roi_heads.box_predictor.bbox_pred"):
            shape = (shape[0] - 4, *shape[1:])  # noqa: PLW2901
        if source.startswith("roi_heads.mask_head.predictor"):
            shape = (shape[0] - 1, *shape[1:])  # noqa: PLW2901
        names[f"{source}.{part}"] = (target, shape)
    return names


def _layer(layer: str) -> str:
    """Return detectron2's name of a layer."""
    if layer in _LAYERS:
        return _LAYERS[layer]
    _, kind, *rest = layer.split(".")
    if kind == "fpn":
        block, level = rest[0], int(rest[1]) + 2
        return f"backbone.fpn_{'lateral' if block == 'inner_blocks' else 'output'}{level}"
    stage, block, *names = rest
    name = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}.get(".".join(names), names[0])
    name = f"conv{name[2:]}.norm" if name.startswith("bn") else name
    return f"backbone.bottom_up.res{int(stage[5:]) + 1}.{block}.{name}"


_LAYERS: Final = {
    "backbone.body.conv1": "backbone.bottom_up.stem.conv1",
    "backbone.body.bn1": "backbone.bottom_up.stem.conv1.norm",
    "rpn.head.conv.0.0": "proposal_generator.rpn_head.conv",
    "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
    "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    "roi_heads.box_head.fc6": "roi_heads.box_head.fc1",
    "roi_heads.box_head.fc7": "roi_heads.box_head.fc2",
    "roi_heads.box_predictor.cls_score": "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred": "roi_heads.box_predictor.bbox_pred",
    **{f"roi_heads.mask_head.{i}.0": f"roi_heads.mask_head.mask_fcn{i + 1}" for i in range(4)},
    "roi_heads.mask_predictor.conv5_mask": "roi_heads.mask_head.deconv",
    "roi_heads.mask_predictor.mask_fcn_logits": "roi_heads.mask_head.predictor",
}


def architecture_of_detectron2(shapes: Mapping[str, Shape]) -> str:
    """Return which of detectron2's networks tensors are most like."""
    deep = any(name.startswith("backbone.bottom_up.res4.6.") for name in shapes)
    groups = shapes.get("backbone.bottom_up.res2.0.conv2.weight", (0, 64))[1:2] != (64,)
    body = "resnext101_32x8d" if groups else "resnet101" if deep else "resnet50"
    masks = any(name.startswith("roi_heads.mask_head.") for name in shapes)
    return f"{'mask' if masks else 'faster'}rcnn_{body}_fpn_detectron2"


def plan_detectron2(uri: str, tensors: Mapping[str, Tensor], origin: Origin) -> tuple[str, list[Move]]:
    """Plan the moves of a network of detectron2 with FPN."""
    architecture = architecture_of_detectron2(shapes_of(tensors))
    config = origin.config or config_of_zoo(architecture)
    bgr = origin.bgr is not False
    labels = first_side(tensors, "roi_heads.box_predictor.cls_score.weight")
    names = detectron2_names(labels, architecture, config)
    moves = [_move(*item, bgr=bgr) for item in names.items()]
    extra = _constants(config, bgr=bgr)
    for name in tensors:
        if name in extra:
            expected = extra[name]
            if tuple(tensors[name].shape) != tuple(expected.shape):
                raise UsageError(misshapen(uri, name, tensors[name], tuple(expected.shape)))
            if not torch.allclose(tensors[name].float(), expected, rtol=1e-5, atol=1e-4):
                raise UsageError(
                    f"{uri}: the tensor {name} differs from the settings of {architecture}: give the configuration "
                    "that it was trained with as --config"
                )
            moves.append(
                Move(name, "", tuple(expected.shape), "dropped", "a constant that the network has too")
            )
        elif name.endswith(".norm.num_batches_tracked"):
            moves.append(Move(name, "", (), "dropped", "a frozen norm counts no batches"))
    return architecture, moves


def _move(source: str, placed: tuple[str, Shape], *, bgr: bool) -> Move:
    target, shape = placed
    if source == "backbone.bottom_up.stem.conv1.weight" and bgr:
        note = "input channels from BGR to RGB"
        return Move(source, target, shape, "flipped", note, lambda tensor: tensor.flip(1))
    if source.startswith("roi_heads.box_predictor.cls_score"):
        return Move(source, target, shape, "reordered", "background from last to first", last_first)
    if source.startswith("roi_heads.box_predictor.bbox_pred"):
        return Move(source, target, shape, "padded", "4 rows of zeros for the background", padding(4))
    if source.startswith("roi_heads.mask_head.predictor"):
        return Move(source, target, shape, "padded", "a row of zeros for the background", padding(1))
    return Move(source, target, shape)


def _constants(config: RCNNConfig, *, bgr: bool) -> dict[str, Tensor]:
    """Return the constants that older checkpoints contain besides weights."""
    step = -1 if bgr else 1
    mean, std = (
        torch.tensor(values[::step])[:, None, None] for values in (config.pixel_mean, config.pixel_std)
    )
    anchors = "proposal_generator.anchor_generator.cell_anchors"
    return {"pixel_mean": mean, "pixel_std": std} | {
        f"{anchors}.{level}": torch.tensor(cell_anchors(size, config.aspect_ratios))
        for level, size in enumerate(config.anchor_sizes)
    }
