"""Reference implementation of detectron2's networks with ResNets, which converted networks are compared with.

Written from what detectron2 does, on a checkpoint's own tensors under their own names, one image, box and pair after
another; it shares no code with the network under test. It takes seconds per image.

References: https://github.com/facebookresearch/detectron2, modeling/ and layers/; configs/Base-RCNN-FPN.yaml.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...types import Pixels
from ..architectures.rcnn_config import DETECTRON2, OneMapConfig, RCNNConfig

__all__ = [
    "Instances",
    "ReferenceDetectron2",
    "best",
    "clipped",
    "padded",
    "pasted",
    "pooled_on_map",
    "suppressed",
]


_RES5: Final = "roi_heads.res5"
"""The last stage of the ResNet, where it is a part of the heads."""


@dataclass(frozen=True, slots=True)
class Instances:
    """The instances that a reference finds in an image, in the pixels of the image."""

    boxes: Tensor
    """(N, 4) xmin, ymin, xmax, ymax."""
    labels: Tensor
    """(N,) from 1."""
    scores: Tensor
    """(N,)"""
    masks: NDArray[np.bool_] | None
    """(N, H, W); None: boxes only."""


class ReferenceDetectron2:
    """Mask R-CNN, Faster R-CNN or Cascade R-CNN as detectron2 computes it, on its own tensors.

    They also say its depth, and whether it has a pyramid, a cascade of box heads, or the last stage in its heads (C4).

    Args:
        tensors: of the checkpoint, by their names there.
        min_size: the length that the shorter side is resized to, pixels, …
        max_size: … unless the longer side would then exceed this.
        config: its settings.
        bgr: whether it reads blue first.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        min_size: int,
        max_size: int,
        config: RCNNConfig = DETECTRON2,
        *,
        bgr: bool = True,
    ) -> None:
        self._tensors = {name: tensor.float() for name, tensor in tensors.items()}
        self._min_size, self._max_size = min_size, max_size
        self._config, self._bgr = config, bgr
        self._has_pyramid = "backbone.fpn_lateral2.weight" in tensors

    def _of(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]

    def _normed(self, x: Tensor, name: str, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        """Apply a convolution, whose weight shows its groups, and its frozen norm."""
        kernel = self._tensors[f"{name}.weight"]
        x = F.conv2d(x, kernel, None, stride, padding, dilation, x.shape[1] // kernel.shape[1])
        weight, bias, mean, var = (
            self._tensors[f"{name}.norm.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def prepared(self, image: Pixels) -> Tensor:
        """Resize with Pillow, and normalise."""
        height, width = image.shape[:2]
        scale = self._min_size / min(height, width)
        if scale * max(height, width) > self._max_size:
            scale = self._max_size / max(height, width)
        size = int(width * scale + 0.5), int(height * scale + 0.5)
        resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        mean = np.array(self._config.pixel_mean, np.float32)
        std = np.array(self._config.pixel_std, np.float32)
        return torch.from_numpy((resized.astype(np.float32) - mean) / std).permute(2, 0, 1)

    def features(self, batch: Tensor) -> dict[str, Tensor]:
        """Run the backbone with its pyramid."""
        prefix = "backbone.bottom_up." if self._has_pyramid else "backbone."
        x = batch.flip(1) if self._bgr else batch
        x = self._normed(x, f"{prefix}stem.conv1", 2, 3).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        levels = []
        for stage in (2, 3, 4, 5):
            x = self._stage(x, f"{prefix}res{stage}")
            levels.append(x)
        if not self._has_pyramid:
            return {"0": x}
        above: Tensor | None = None
        maps: list[Tensor] = []
        for level in (5, 4, 3, 2):
            lateral = F.conv2d(levels[level - 2], *self._of(f"backbone.fpn_lateral{level}"))
            above = (
                lateral if above is None else lateral + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
            )
            maps.insert(0, F.conv2d(above, *self._of(f"backbone.fpn_output{level}"), padding=1))
        maps.append(maps[-1][:, :, ::2, ::2])
        return dict(zip(("0", "1", "2", "3", "pool"), maps, strict=True))

    def _stage(self, x: Tensor, name: str) -> Tensor:
        """Run a stage of the ResNet; one that is not there returns its input."""
        last = name.endswith("res5") and isinstance(self._config, OneMapConfig)
        dilation = cast(OneMapConfig, self._config).res5_dilation if last else 1
        halves = not name.endswith("res2") and dilation == 1
        index = 0
        while f"{name}.{index}.conv1.weight" in self._tensors:
            block, stride = f"{name}.{index}.", 2 if halves and index == 0 else 1
            first, second = (stride, 1) if self._config.stride_in_1x1 else (1, stride)
            out = self._normed(x, f"{block}conv1", first).relu()
            out = self._normed(out, f"{block}conv2", second, dilation, dilation).relu()
            out = self._normed(out, f"{block}conv3")
            x = (out + (self._normed(x, f"{block}shortcut", stride) if index == 0 else x)).relu()
            index += 1
        return x

    def rpn_head(self, features: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run the region proposal network's convolutions."""
        head = "proposal_generator.rpn_head."
        hidden = [F.conv2d(x, *self._of(f"{head}conv"), padding=1).relu() for x in features.values()]
        return (
            [F.conv2d(x, *self._of(f"{head}objectness_logits")) for x in hidden],
            [F.conv2d(x, *self._of(f"{head}anchor_deltas")) for x in hidden],
        )

    def proposals(self, features: dict[str, Tensor], batch: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the best proposals out of the best of each level."""
        del batch
        config = self._config
        boxes, scores = [], []
        for level, (logits, deltas) in enumerate(zip(*self.rpn_head(features), strict=True)):
            _, a, height, width = logits.shape
            logit = logits[0].permute(1, 2, 0).reshape(-1)
            delta = deltas[0].view(a, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
            top = logit.sort(descending=True, stable=True).indices[: config.pre_nms_limit]
            stride = 4 * 2**level if self._has_pyramid else 16
            anchors = _anchors(stride, height, width, config.sizes_by_level[level], config.aspect_ratios)
            delta = delta[top] / torch.tensor(config.rpn_box_weights)
            box = clipped(_moved(anchors[top], delta), size)
            wide = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
            box, logit = box[wide], logit[top][wide]
            kept = suppressed(box, logit, config.rpn_nms_threshold)
            boxes.append(box[kept])
            scores.append(logit[kept])
        order = torch.cat(scores).sort(descending=True, stable=True).indices
        return torch.cat(boxes)[order[: config.post_nms_limit]]

    def heads(
        self, features: dict[str, Tensor], proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Classify proposals and refine their boxes."""
        if "roi_heads.box_head.0.fc1.weight" in self._tensors:
            return self._cascade(features, proposals, size)
        scores, deltas = self._box_head(features, proposals, "")
        deltas = deltas.view(len(proposals), -1, 4)
        classes = deltas.shape[1]
        weights = torch.tensor(self._config.box_weights)
        boxes = _moved(proposals.repeat_interleave(classes, 0), (deltas / weights).reshape(-1, 4))
        boxes = clipped(boxes, size).view(-1, classes, 4)
        return _background_first(scores), boxes

    def _box_head(self, features: dict[str, Tensor], boxes: Tensor, stage: str) -> tuple[Tensor, Tensor]:
        """Return the probabilities and the offsets of a box head, whose names have the stage in them, such as `.0`."""
        if f"roi_heads.box_head{stage}.fc1.weight" in self._tensors:
            x = _pooled(features, boxes, 7).flatten(1)
            for layer in ("fc1", "fc2"):
                x = F.linear(x, *self._of(f"roi_heads.box_head{stage}.{layer}")).relu()
        else:
            parts = torch.split(boxes, 50)  # the features of all boxes would take 800 MB
            x = torch.cat([self._stage(_pooled(features, part, 14), _RES5).mean((2, 3)) for part in parts])
        scores = F.linear(x, *self._of(f"roi_heads.box_predictor{stage}.cls_score")).softmax(1)
        return scores, F.linear(x, *self._of(f"roi_heads.box_predictor{stage}.bbox_pred"))

    def _cascade(
        self, features: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Run three box heads, each on the boxes of the one before; average their probabilities."""
        probabilities = []
        for stage in range(3):
            scores, deltas = self._box_head(features, boxes, f".{stage}")
            probabilities.append(scores)
            weights = torch.tensor(self._config.box_weights[4 * stage : 4 * stage + 4])
            boxes = clipped(_moved(boxes, deltas / weights), size)
        mean = torch.stack(probabilities).mean(0)
        return _background_first(mean), boxes[:, None].repeat(1, mean.shape[1] - 1, 1)

    def masks(
        self, features: dict[str, Tensor], boxes: Tensor, labels: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Run the mask head on boxes."""
        del size
        x = self._stage(_pooled(features, boxes, 14), _RES5)
        for index in range(1, 5):
            if f"roi_heads.mask_head.mask_fcn{index}.weight" in self._tensors:
                x = F.conv2d(x, *self._of(f"roi_heads.mask_head.mask_fcn{index}"), padding=1).relu()
        x = F.conv_transpose2d(x, *self._of("roi_heads.mask_head.deconv"), stride=2).relu()
        logits = F.conv2d(x, *self._of("roi_heads.mask_head.predictor"))
        return logits[torch.arange(len(labels)), labels - 1].sigmoid()

    def instances(self, image: Pixels) -> Instances:
        """Return the final instances of an image, with masks pasted."""
        prepared = self.prepared(image)
        size = (prepared.shape[1], prepared.shape[2])
        features = self.features(padded(prepared) if self._has_pyramid else prepared[None])
        probabilities, every = self.heads(features, self.proposals(features, prepared, size), size)
        config, (height, width) = self._config, image.shape[:2]
        chosen = best(probabilities, every, config.min_score, config.max_detections, config.nms_threshold)
        boxes, labels, scores = chosen
        scale = torch.tensor([width / size[1], height / size[0]]).repeat(2)
        if "roi_heads.mask_head.predictor.weight" not in self._tensors:
            return Instances(clipped(boxes * scale, (height, width)), labels, scores, None)
        squares = self.masks(features, boxes, labels, size)
        boxes = clipped(boxes * scale, (height, width))
        masks = [pasted(box, square, height, width) for box, square in zip(boxes, squares, strict=True)]
        empty = np.zeros((0, height, width), np.bool_)
        return Instances(boxes, labels, scores, np.stack(masks) if masks else empty)


def _background_first(scores: Tensor) -> Tensor:
    """Return scores, (N, C + 1), with the background first, which detectron2 has last."""
    return torch.cat([scores[:, -1:], scores[:, :-1]], 1)


def _anchors(
    stride: int, height: int, width: int, sides: Sequence[float], ratios: Sequence[float] = (0.5, 1.0, 2.0)
) -> Tensor:
    """Return the anchors of a map, row by row, at each position all ratios of one side after another: (N, 4)."""
    anchors = []
    for side in sides:
        for ratio in ratios:
            w = math.sqrt(side * side / ratio)
            h = ratio * w
            anchors.append([-w / 2, -h / 2, w / 2, h / 2])
    y, x = np.mgrid[:height, :width].astype(np.float32) * stride
    shifts = torch.from_numpy(np.stack([x, y, x, y], -1).reshape(-1, 1, 4))
    return (shifts + torch.tensor(anchors)).reshape(-1, 4)


def _moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Move boxes by dx, dy in units of their size, and scale them by exp(dw), exp(dh), at most 1000 / 16."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x = deltas[:, 0] * width + boxes[:, 0] + 0.5 * width
    y = deltas[:, 1] * height + boxes[:, 1] + 0.5 * height
    w = width * deltas[:, 2].clamp(max=math.log(1000 / 16)).exp()
    h = height * deltas[:, 3].clamp(max=math.log(1000 / 16)).exp()
    return torch.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], 1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes, (N, 4), clipped to an image of this height and width."""
    height, width = size
    return torch.stack([boxes[:, i].clamp(0, (width, height)[i % 2]) for i in range(4)], 1)


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the indices that greedy suppression keeps, the best first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = scores.sort(descending=True, stable=True).indices
    kept = []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(first)
        low, high = (
            torch.maximum(boxes[first, :2], boxes[left, :2]),
            torch.minimum(boxes[first, 2:], boxes[left, 2:]),
        )
        both = (high - low).clamp(min=0).prod(1)
        left = left[~(both / (areas[first] + areas[left] - both) > threshold)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


def _pooled(features: Mapping[str, Tensor], boxes: Tensor, bins: int) -> Tensor:
    """Return aligned RoIAlign with one sample per pixel of a bin: (N, C, bins, bins)."""
    pooled = []
    for box in boxes:
        if len(features) == 1:
            pooled.append(pooled_on_map(features["0"][0], box / 16, bins))
            continue
        width, height = (box[2] - box[0]).item(), (box[3] - box[1]).item()
        level = math.floor(4 + math.log2(max(math.sqrt(width * height) / 224 + 1e-8, 1e-30)))
        index = min(max(level, 2), 5) - 2
        pooled.append(pooled_on_map(features[str(index)][0], box / (4 * 2**index), bins))
    channels = features["0"].shape[1]
    return torch.stack(pooled) if pooled else torch.zeros(0, channels, bins, bins)


def pooled_on_map(feature: Tensor, box: Tensor, bins: int) -> Tensor:
    """Return RoIAlign of one box, in positions of a map (C, H, W), aligned: (C, bins, bins)."""
    aligned = box - 0.5
    down = _bins(aligned[1].item(), aligned[3].item(), feature.shape[1], bins)
    across = _bins(aligned[0].item(), aligned[2].item(), feature.shape[2], bins)
    y, x = (slice(*_span(weights)) for weights in (down, across))
    return torch.einsum("by,cyx,ax->cba", down[:, y], feature[:, y, x], across[:, x])


def _span(weights: Tensor) -> tuple[int, int]:
    """Return the range of positions, end exclusive, that have a weight in any bin."""
    places = weights.any(0).nonzero().flatten().tolist()
    return (places[0], places[-1] + 1) if places else (0, 1)


def _bins(low: float, high: float, limit: int, bins: int) -> Tensor:
    """Return the weight of each position along an axis of a map in each bin, (bins, limit)."""
    weights = torch.zeros(bins, limit)
    side = (high - low) / bins
    samples = math.ceil((high - low) / bins)
    for index in range(bins * samples):
        position = low + (index // samples) * side + (index % samples + 0.5) * side / samples
        if not -1 <= position <= limit:
            continue
        position = min(max(position, 0.0), limit - 1.0)
        first = int(position)
        weights[index // samples, first] += (1 - (position - first)) / samples
        if first + 1 < limit:
            weights[index // samples, first + 1] += (position - first) / samples
    return weights


def best(
    probabilities: Tensor, boxes: Tensor, min_score: float, max_detections: int, nms_threshold: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, labels and scores of the best instances of an image, suppressed class by class."""
    found = []
    for index in range(1, probabilities.shape[1]):
        above = (probabilities[:, index] > min_score).nonzero().flatten()
        box, score = boxes[above, index - 1], probabilities[above, index]
        kept = suppressed(box, score, nms_threshold)
        found.append((box[kept], torch.full((len(kept),), index), score[kept]))
    box, label, score = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = score.sort(descending=True, stable=True).indices[:max_detections]
    order = order[((box[order, 2] > box[order, 0]) & (box[order, 3] > box[order, 1]))]
    return box[order], label[order], score[order]


def pasted(box: Tensor, square: Tensor, height: int, width: int) -> NDArray[np.bool_]:
    """Return a mask over the image: the square sampled at each pixel's centre, bilinear, with zero padding."""
    side = len(square)
    padded = np.pad(square.double().numpy(), 1)
    x0, y0, x1, y1 = box.double().tolist()
    x = (np.arange(width) + 0.5 - x0) / (x1 - x0) * side - 0.5
    y = (np.arange(height) + 0.5 - y0) / (y1 - y0) * side - 0.5
    x, y = np.clip(x, -1, side) + 1, np.clip(y, -1, side) + 1
    left, top = np.minimum(x.astype(int), side), np.minimum(y.astype(int), side)
    wx, wy = x - left, (y - top)[:, None]
    upper = padded[top][:, left] * (1 - wx) + padded[top][:, left + 1] * wx
    lower = padded[top + 1][:, left] * (1 - wx) + padded[top + 1][:, left + 1] * wx
    return np.asarray(upper * (1 - wy) + lower * wy >= 0.5)


def padded(image: Tensor) -> Tensor:
    """Return a batch of one, padded with zeros to multiples of 32."""
    return F.pad(image, (0, -image.shape[2] % 32, 0, -image.shape[1] % 32))[None]
