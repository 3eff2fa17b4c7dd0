"""Map the state-dict keys of other programs to torchvision's: names, shapes, and the changes that each tensor needs.

Each source has a function in `KEY_MAPPINGS`, which plans a move for each tensor of a network: all of these tensors must
be present in the file, with the right shapes, and no others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from ...errors import UsageError
from ..architectures.network_shapes import Shape, current_name
from ..networks import LIKENESS, NETWORKS, architecture_of
from ..weights.published_weights import NORM_EPS
from .keys_detectron2 import plan_detectron2
from .keys_mmdetection import plan_mmdetection
from .moves import Move, Origin, first_side

__all__ = ["KEY_MAPPINGS", "source_of", "with_eps"]


def _torchvision(_: str, tensors: Mapping[str, Tensor], __: Origin) -> tuple[str, list[Move]]:
    """Plan the moves of a torchvision state dict with its present names or those before 0.13."""
    current = {current_name(name): name for name in tensors}
    shapes = {name: tuple(tensors[former].shape) for name, former in current.items()}
    architecture = architecture_of(shapes) or architecture_of(shapes, LIKENESS)
    if architecture is None:
        # An incomplete file: guess from the heads, so that the message names the missing tensor.
        older = any(name.startswith("roi_heads.box_head.fc") for name in current)
        deep = any(name.startswith("backbone.body.layer1.0.conv3.") for name in current)
        architecture = "maskrcnn_resnet50_fpn" + ("" if older else "_v2")
        architecture = architecture if deep or not older else "maskrcnn_resnet18_fpn"
    labels = NETWORKS[architecture].labels_of(shapes) or first_side(
        tensors, "roi_heads.box_predictor.cls_score.bias"
    )
    moves = []
    for target, shape in NETWORKS[architecture].shapes(labels).items():
        if target in current or not target.endswith(".num_batches_tracked"):
            moves.append(Move(current.get(target, target), target, shape))
        else:
            moves.append(Move("", target, shape, "added", "frozen norms count no batches", torch.Tensor.long))
    return architecture, moves


def with_eps(moves: Sequence[Move], tensors: Mapping[str, Tensor], eps: float) -> list[Move]:
    """Return the moves of a network whose norms were trained with another epsilon than `NORM_EPS`.

    The weights of the norms are rescaled, so that they compute the same with `NORM_EPS`. A variance less the difference
    would not do: it would lose its digits where it is much smaller than the epsilon.
    """
    sources = {move.target: move.source for move in moves}
    return [_with_eps(move, tensors.get(sources.get(_variance_of(move.target), "")), eps) for move in moves]


def _variance_of(target: str) -> str:
    layer, _, part = target.rpartition(".")
    return f"{layer}.running_var" if part == "weight" else ""


def _with_eps(move: Move, variance: Tensor | None, eps: float) -> Move:
    if variance is None or tuple(variance.shape) != move.shape:
        return move
    exact = variance.double()
    factor = ((exact + NORM_EPS) / (exact + eps)).sqrt()
    note = f"trained with an epsilon of {eps:g}: multiplied to compensate for the {NORM_EPS:g} here"
    return Move(
        move.source,
        move.target,
        move.shape,
        "rescaled",
        note,
        lambda tensor: (tensor.double() * factor).float(),
    )


def _matterport(_: str, tensors: Mapping[str, Tensor], __: Origin) -> tuple[str, list[Move]]:
    """Plan the moves of a file of matterport, whose axes and coordinates are in another order."""
    blocks = {name[:5] for name in tensors if name.startswith("res4")}
    depth = 101 if len(blocks) > (6 + 23) / 2 else 50
    architecture = f"maskrcnn_matterport_resnet{depth}"
    scores = tensors.get("mrcnn_class_logits/kernel")
    labels = scores.shape[1] if scores is not None and scores.ndim == 2 else 2
    shapes = NETWORKS[architecture].shapes(labels)
    return architecture, [_matterport_move(target, shape) for target, shape in shapes.items()]


def _matterport_move(target: str, shape: Shape) -> Move:
    layer, _, part = target.rpartition(".")
    name = _matterport_layer(layer)
    norm = name.startswith("bn") or "_bn" in name
    source = f"{name}/{_KERAS_NORM[part] if norm else {'weight': 'kernel'}.get(part, part)}"
    boxes = name in ("rpn_bbox_pred", "mrcnn_bbox_fc")
    if len(shape) == 1:
        if boxes:
            return Move(source, target, shape, "reordered", _YX, _x_first)
        return Move(source, target, shape)
    keras_shape = (*shape[2:], shape[1], shape[0])
    axes = "axes from height, width, in, out" if len(shape) == 4 else "axes from in, out"
    if name == "mrcnn_mask_deconv":
        axes = "axes from height, width, out, in"
    if boxes:
        return Move(
            source, target, keras_shape, "transposed", f"{axes}; {_YX}", lambda t: _x_first(_out_first(t))
        )
    return Move(source, target, keras_shape, "transposed", axes, _out_first)


_YX: Final = "rows from dy, dx, dh, dw to dx, dy, dw, dh"


def _out_first(tensor: Tensor) -> Tensor:
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T


def _x_first(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, 4, *tensor.shape[1:])[:, [1, 0, 3, 2]].reshape(tensor.shape)


def _matterport_layer(layer: str) -> str:
    """Return matterport's name of a layer."""
    if layer in _MATTERPORT_LAYERS:
        return _MATTERPORT_LAYERS[layer]
    _, kind, block, *rest = layer.split(".")
    if kind == "fpn":
        level = int(rest[0]) + 2
        return f"fpn_c{level}p{level}" if block == "inner_blocks" else f"fpn_p{level}"
    index, *names = rest
    place = f"{int(block[5:]) + 1}{chr(ord('a') + int(index))}_branch"
    name = ".".join(names)
    if name.startswith("downsample"):
        return f"{'res' if name.endswith('0') else 'bn'}{place}1"
    return f"{'res' if name.startswith('conv') else 'bn'}{place}2{'abc'[int(name[-1]) - 1]}"


_KERAS_NORM: Final = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_MATTERPORT_LAYERS: Final = {
    "backbone.body.conv1": "conv1",
    "backbone.body.bn1": "bn_conv1",
    "rpn.head.conv.0.0": "rpn_conv_shared",
    "rpn.head.cls_logits": "rpn_class_raw",
    "rpn.head.bbox_pred": "rpn_bbox_pred",
    **{f"roi_heads.box_head.{kind}{i}": f"mrcnn_class_{kind}{i}" for kind in ("conv", "bn") for i in (1, 2)},
    "roi_heads.box_predictor.cls_score": "mrcnn_class_logits",
    "roi_heads.box_predictor.bbox_pred": "mrcnn_bbox_fc",
    **{f"roi_heads.mask_head.{i}.0": f"mrcnn_mask_conv{i + 1}" for i in range(4)},
    **{f"roi_heads.mask_head.{i}.1": f"mrcnn_mask_bn{i + 1}" for i in range(4)},
    "roi_heads.mask_predictor.conv5_mask": "mrcnn_mask_deconv",
    "roi_heads.mask_predictor.mask_fcn_logits": "mrcnn_mask",
}


KEY_MAPPINGS: Final[Mapping[str, Callable[[str, Mapping[str, Tensor], Origin], tuple[str, list[Move]]]]] = {
    "torchvision": _torchvision,
    "detectron2": plan_detectron2,
    "mmdetection": plan_mmdetection,
    "matterport": _matterport,
}


def source_of(uri: str, tensors: Mapping[str, Tensor], source: str) -> str:
    """Return the program that wrote these tensors, by the names of most of them."""
    starts = {
        "detectron2": ("backbone.bottom_up.", "backbone.stem.", "backbone.res", "proposal_generator."),
        "mmdetection": ("neck.", "rpn_head.", "roi_head."),
        "torchvision": ("backbone.body.", "backbone.features.", "backbone.extra."),
        "matterport": ("mrcnn_",),
    }
    counts = {name: sum(key.startswith(start) for key in tensors) for name, start in starts.items()}
    likely = max(counts, key=lambda name: counts[name])
    if not counts[likely]:
        content = f"its tensors are {', '.join(list(tensors)[:3])}, …" if tensors else "it has no tensor"
        raise UsageError(
            f"{uri} has no network of torchvision, detectron2, MMDetection or matterport: {content}"
        )
    if source not in ("auto", likely):
        raise UsageError(f"{uri} has the tensors of {likely}, not of {source}: leave --from out")
    return likely
