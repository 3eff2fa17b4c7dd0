"""Map the tensors of detectron2's networks to torchvision's names."""

import re
from collections.abc import Mapping
from typing import Final, cast

import torch
from torch import Tensor

from ...errors import UsageError
from ..architectures.detectron2 import cell_anchors
from ..architectures.network_shapes import Shape
from ..architectures.rcnn_config import RCNNConfig
from ..networks import NETWORKS
from .moves import Move, Origin, last_first, misshapen, padding, shapes_of

__all__ = ["architecture_of_detectron2", "config_of_zoo", "detectron2_names", "plan_detectron2"]


def config_of_zoo(architecture: str) -> RCNNConfig:
    """Return the settings that a network of detectron2 or MMDetection has in its model zoo."""
    return cast(RCNNConfig, NETWORKS[architecture].config)


def detectron2_names(
    labels: int,
    architecture: str = "maskrcnn_resnet50_fpn_detectron2",
    config: RCNNConfig | None = None,
) -> dict[str, tuple[str, Shape]]:
    """Return the tensors of a network of detectron2: name to torchvision's name and shape in the source.

    Args:
        labels: the number of labels of the network, the background included.
        architecture: one of detectron2's in `networks.NETWORKS`.
        config: its settings; None: those of the model zoo.
    """
    shapes = NETWORKS[architecture].shapes_with(labels, config)
    body = "backbone.bottom_up" if "backbone.fpn.inner_blocks.0.0.weight" in shapes else "backbone"
    names = {}
    for target, shape in shapes.items():
        layer, _, part = target.rpartition(".")
        names[f"{_layer(layer, body)}.{part}"] = (
            target,
            (shape[0] - _background(target, shape, labels), *shape[1:]),
        )
    return names


def _background(target: str, shape: Shape, labels: int) -> int:
    """Return the number of rows of a tensor that are the background's, for which detectron2 has none."""
    if ".bbox_pred." in target and target.startswith("roi_heads.") and shape[0] == 4 * labels:
        return 4
    return 1 if ".mask_fcn_logits." in target else 0


def _layer(layer: str, body: str) -> str:
    """Return detectron2's name of a layer.

    Args:
        layer: torchvision's.
        body: detectron2's name of the ResNet.
    """
    if layer in _LAYERS:
        return _LAYERS[layer].replace("BODY", body)
    if found := _DENSE.fullmatch(layer):
        return f"roi_heads.box_head{found[1]}.fc{int(found[2]) - 5}"
    if found := _PYRAMID.fullmatch(layer):
        return f"backbone.fpn_{'lateral' if found[1] == 'inner' else 'output'}{int(found[2]) + 2}"
    if found := _RESNET.fullmatch(layer):
        place = body if found[1] == "backbone.body" else "roi_heads"
        return f"{place}.res{int(found[2]) + 1}.{found[3]}.{_BLOCK[found[4]]}"
    return layer


_DENSE: Final = re.compile(r"roi_heads\.box_head(\.\d|)\.fc(\d)")
_PYRAMID: Final = re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0")
_RESNET: Final = re.compile(r"(backbone\.body|roi_heads\.box_head)\.layer(\d)\.(\d+)\.(.+)")
_BLOCK: Final = {
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
    **{f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)},
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}
_LAYERS: Final = {
    "backbone.body.conv1": "BODY.stem.conv1",
    "backbone.body.bn1": "BODY.stem.conv1.norm",
    "rpn.head.conv.0.0": "proposal_generator.rpn_head.conv",
    "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
    "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    **{f"roi_heads.mask_head.{i}.0": f"roi_heads.mask_head.mask_fcn{i + 1}" for i in range(4)},
    "roi_heads.mask_predictor.conv5_mask": "roi_heads.mask_head.deconv",
    "roi_heads.mask_predictor.mask_fcn_logits": "roi_heads.mask_head.predictor",
}


def architecture_of_detectron2(shapes: Mapping[str, Shape]) -> str:
    """Return which of detectron2's networks tensors are most like; of equal ones the first in the table."""
    likeness = {}
    for architecture, network in NETWORKS.items():
        if network.detectron2 is not None:
            names = detectron2_names(network.labels_of(shapes) or 2, architecture)
            expected = {name: shape for name, (_, shape) in names.items()}
            likeness[architecture] = len(expected.items() & shapes.items()) / (len(expected) + len(shapes))
    return max(likeness, key=lambda architecture: likeness[architecture])


def plan_detectron2(uri: str, tensors: Mapping[str, Tensor], origin: Origin) -> tuple[str, list[Move]]:
    """Plan the moves of a network of detectron2."""
    architecture = architecture_of_detectron2(shapes_of(tensors))
    config = origin.config or config_of_zoo(architecture)
    bgr = origin.bgr is not False
    labels = NETWORKS[architecture].labels_of(shapes_of(tensors)) or 2
    shapes = NETWORKS[architecture].shapes_with(labels, config)
    moves = [
        _move(source, target, shape, shapes[target], bgr=bgr)
        for source, (target, shape) in detectron2_names(labels, architecture, config).items()
    ]
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


def _move(source: str, target: str, shape: Shape, new_shape: Shape, *, bgr: bool) -> Move:
    """Return the move of a tensor; rows that it lacks are those of the background."""
    if source.endswith("stem.conv1.weight") and bgr:
        note = "input channels from BGR to RGB"
        return Move(source, target, shape, "flipped", note, lambda tensor: tensor.flip(1))
    if ".cls_score." in source:
        return Move(source, target, shape, "reordered", "background from last to first", last_first)
    if shape != new_shape:
        rows = new_shape[0] - shape[0]
        note = f"{'a row' if rows == 1 else f'{rows} rows'} of zeros for the background"
        return Move(source, target, shape, "padded", note, padding(rows))
    return Move(source, target, shape)


def _constants(config: RCNNConfig, *, bgr: bool) -> dict[str, Tensor]:
    """Return the constants that older checkpoints contain besides weights."""
    step = -1 if bgr else 1
    mean, std = (
        torch.tensor(values[::step])[:, None, None] for values in (config.pixel_mean, config.pixel_std)
    )
    anchors = "proposal_generator.anchor_generator.cell_anchors"
    return {"pixel_mean": mean, "pixel_std": std} | {
        f"{anchors}.{level}": torch.tensor(
            [anchor for size in sizes for anchor in cell_anchors(size, config.aspect_ratios)]
        )
        for level, sizes in enumerate(config.sizes_by_level)
    }
