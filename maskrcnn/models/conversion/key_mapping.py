"""Map the state-dict keys of other programs to torchvision's: names, shapes, and the changes that each tensor needs.

Each source has a function in `KEY_MAPPINGS`, which plans a move for each tensor of a network: all of these tensors must
be present in the file, with the right shapes, and no others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...errors import UsageError
from ..detectron2 import PIXEL_MEAN, SIZES, cell_anchors
from ..network_shapes import Shape, current_name
from ..networks import LIKENESS, NETWORKS, architecture_of
from ..published_weights import NORM_EPS

__all__ = ["KEY_MAPPINGS", "Move", "Step", "detectron2_names", "moved", "source_of", "with_eps"]

DETECTRON2: Final = "maskrcnn_resnet50_fpn_detectron2"


@dataclass(frozen=True, slots=True)
class Step:
    """The conversion of one tensor, for the report."""

    source: str
    """Its name in the source; empty if the source does not have it."""
    target: str
    """Its name in the output file; empty if it was dropped."""
    action: str
    """taken, flipped, transposed, reordered, padded, rescaled, added or dropped."""
    shape: Shape
    """Its shape in the source."""
    new_shape: Shape
    """Its shape in the output file."""
    note: str
    """The reason, if it was not taken unchanged."""


@dataclass(frozen=True, slots=True)
class Move:
    """The target of a tensor, and the change that it needs."""

    source: str
    target: str
    shape: Shape
    action: str = "taken"
    note: str = ""
    change: Callable[[Tensor], Tensor] | None = None


def _torchvision(_: str, tensors: Mapping[str, Tensor]) -> tuple[str, list[Move]]:
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
    labels = NETWORKS[architecture].labels_of(shapes) or _first(
        tensors, "roi_heads.box_predictor.cls_score.bias"
    )
    moves = []
    for target, shape in NETWORKS[architecture].shapes(labels).items():
        if target in current or not target.endswith(".num_batches_tracked"):
            moves.append(Move(current.get(target, target), target, shape))
        else:
            moves.append(Move("", target, shape, "added", "frozen norms count no batches", torch.Tensor.long))
    return architecture, moves


def _first(tensors: Mapping[str, Tensor], name: str) -> int:
    """Return the first dimension of a tensor; 2 if it is missing, which is reported later."""
    return tensors[name].shape[0] if name in tensors and tensors[name].ndim else 2


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


def detectron2_names(labels: int) -> dict[str, tuple[str, Shape]]:
    """Return the tensors of detectron2's Mask R-CNN R50-FPN: name to torchvision's name and shape in the source.

    Args:
        labels: the number of labels of the network, the background included.
    """
    names = {}
    for target, shape in NETWORKS[DETECTRON2].shapes(labels).items():
        layer, _, part = target.rpartition(".")
        source = _detectron2_layer(layer)
        if source.startswith("roi_heads.box_predictor.bbox_pred"):
            shape = (shape[0] - 4, *shape[1:])  # noqa: PLW2901
        if source.startswith("roi_heads.mask_head.predictor"):
            shape = (shape[0] - 1, *shape[1:])  # noqa: PLW2901
        names[f"{source}.{part}"] = (target, shape)
    return names


def _detectron2_layer(layer: str) -> str:
    """Return detectron2's name of a layer."""
    if layer in _DETECTRON2_LAYERS:
        return _DETECTRON2_LAYERS[layer]
    _, kind, *rest = layer.split(".")
    if kind == "fpn":
        block, level = rest[0], int(rest[1]) + 2
        return f"backbone.fpn_{'lateral' if block == 'inner_blocks' else 'output'}{level}"
    stage, block, *names = rest
    name = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}.get(".".join(names), names[0])
    name = f"conv{name[2:]}.norm" if name.startswith("bn") else name
    return f"backbone.bottom_up.res{int(stage[5:]) + 1}.{block}.{name}"


_DETECTRON2_LAYERS: Final = {
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


def _detectron2(uri: str, tensors: Mapping[str, Tensor]) -> tuple[str, list[Move]]:
    """Plan the moves of detectron2's R50-FPN."""
    labels = _first(tensors, "roi_heads.box_predictor.cls_score.weight")
    moves = [_detectron2_move(*item) for item in detectron2_names(labels).items()]
    extra = _detectron2_constants()
    for name in tensors:
        if name in extra:
            expected = extra[name]
            if tuple(tensors[name].shape) != tuple(expected.shape):
                raise UsageError(_misshapen(uri, name, tensors[name], tuple(expected.shape)))
            if not torch.allclose(tensors[name].float(), expected, rtol=1e-5, atol=1e-4):
                raise UsageError(
                    f"{uri}: the tensor {name} differs from the model zoo's R50-FPN, the only supported configuration"
                )
            moves.append(
                Move(name, "", tuple(expected.shape), "dropped", "a constant that the network has too")
            )
        elif name.endswith(".norm.num_batches_tracked"):
            moves.append(Move(name, "", (), "dropped", "a frozen norm counts no batches"))
    return DETECTRON2, moves


def _detectron2_move(source: str, placed: tuple[str, Shape]) -> Move:
    target, shape = placed
    if source == "backbone.bottom_up.stem.conv1.weight":
        note = "input channels from BGR to RGB"
        return Move(source, target, shape, "flipped", note, lambda tensor: tensor.flip(1))
    if source.startswith("roi_heads.box_predictor.cls_score"):
        return Move(source, target, shape, "reordered", "background from last to first", _last_first)
    if source.startswith("roi_heads.box_predictor.bbox_pred"):
        return Move(source, target, shape, "padded", "4 rows of zeros for the background", _padding(4))
    if source.startswith("roi_heads.mask_head.predictor"):
        return Move(source, target, shape, "padded", "a row of zeros for the background", _padding(1))
    return Move(source, target, shape)


def _last_first(tensor: Tensor) -> Tensor:
    return tensor.roll(1, 0)


def _padding(rows: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat([tensor.new_zeros(rows, *tensor.shape[1:]), tensor])


def _detectron2_constants() -> dict[str, Tensor]:
    """Return the constants that older checkpoints contain besides weights."""
    mean = torch.tensor(PIXEL_MEAN[::-1])[:, None, None]
    anchors = "proposal_generator.anchor_generator.cell_anchors"
    return {"pixel_mean": mean, "pixel_std": torch.ones_like(mean)} | {
        f"{anchors}.{level}": torch.tensor(cell_anchors(size)) for level, size in enumerate(SIZES)
    }


def _matterport(_: str, tensors: Mapping[str, Tensor]) -> tuple[str, list[Move]]:
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


KEY_MAPPINGS: Final[Mapping[str, Callable[[str, Mapping[str, Tensor]], tuple[str, list[Move]]]]] = {
    "torchvision": _torchvision,
    "detectron2": _detectron2,
    "matterport": _matterport,
}


def moved(uri: str, tensors: Mapping[str, Tensor], moves: list[Move]) -> tuple[dict[str, Tensor], list[Step]]:
    """Return the converted tensors by their new names, and the steps.

    Raises:
        UsageError: a tensor is missing, unknown, or has the wrong shape.
    """
    wanted = {move.source for move in moves if move.source}
    faults = [f"lacks the tensor {name}" for name in wanted - tensors.keys()]
    faults = [min(faults) + _others(len(faults))] if faults else []
    unknown = tensors.keys() - wanted
    if unknown:
        faults.append(f"has the unknown tensor {min(unknown)}{_others(len(unknown))}")
    if faults:
        raise UsageError(f"{uri} does not fit: it {', and '.join(faults)}")
    placed, steps = {}, []
    for move in moves:
        tensor = tensors[move.source] if move.source else torch.zeros(move.shape)
        if tuple(tensor.shape) != move.shape:
            raise UsageError(_misshapen(uri, move.source, tensor, move.shape))
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UsageError(
                f"{uri}: the tensor {move.source} is not finite: the training diverged, or its values exceed float32"
            )
        if move.target.endswith("running_var") and bool((tensor < 0).any()):
            raise UsageError(f"{uri}: the tensor {move.source} contains variances, of which one is negative")
        new = move.change(tensor) if move.change is not None else tensor
        if move.action == "rescaled" and not torch.isfinite(new).all():
            raise UsageError(
                f"{uri}: with this --norm-eps the norm of {move.source} is infinite, since a variance is 0"
            )
        if move.target:
            placed[move.target] = (new.float() if new.is_floating_point() else new).contiguous()
        new_shape = tuple(new.shape) if move.target else ()
        shape = move.shape if move.source else ()
        steps.append(Step(move.source, move.target, move.action, shape, new_shape, move.note))
    return placed, steps


def _others(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def _misshapen(uri: str, name: str, tensor: Tensor, expected: Shape) -> str:
    return f"{uri}: the tensor {name} has the shape {tuple(tensor.shape)}, not {expected}"


def source_of(uri: str, tensors: Mapping[str, Tensor], source: str) -> str:
    """Return the program that wrote these tensors, by the names of most of them."""
    starts = {"detectron2": "backbone.bottom_up.", "torchvision": "backbone.body.", "matterport": "mrcnn_"}
    counts = {name: sum(key.startswith(start) for key in tensors) for name, start in starts.items()}
    likely = max(counts, key=lambda name: counts[name])
    if not counts[likely]:
        content = f"its tensors are {', '.join(list(tensors)[:3])}, …" if tensors else "it has no tensor"
        raise UsageError(f"{uri} has no Mask R-CNN of torchvision, detectron2 or matterport: {content}")
    if source not in ("auto", likely):
        raise UsageError(f"{uri} has the tensors of {likely}, not of {source}: leave --from out")
    return likely
