"""Reference implementation of MMDetection's networks with ResNets and FPN, which converted networks are compared with.

Written from what MMDetection, mmcv and OpenCV do, on a checkpoint's own tensors under their own names, one image, box
and pair after another; it shares no code with the network under test. Suppression, the weights of RoIAlign's samples
and the pasting of masks are those of `reference_detectron2`.

References: https://github.com/open-mmlab/mmdetection, configs/_base_/models/mask-rcnn_r50_fpn.py and models/;
https://github.com/opencv/opencv, modules/imgproc/src/resize.cpp.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...types import Pixels
from ..architectures.rcnn_config import MMDETECTION, RCNNConfig
from .reference_detectron2 import Instances, best, clipped, padded, pasted, pooled_on_map, suppressed

__all__ = ["ReferenceMMDetection", "resized"]


class ReferenceMMDetection:
    """Mask R-CNN or Faster R-CNN with FPN as MMDetection computes it, on its own tensors, which also say its depth.

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
        config: RCNNConfig = MMDETECTION,
        *,
        bgr: bool = False,
    ) -> None:
        self._tensors = {name: tensor.float() for name, tensor in tensors.items()}
        self._min_size, self._max_size = min_size, max_size
        self._config, self._bgr = config, bgr

    def _of(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]

    def _normed(
        self, x: Tensor, convolution: str, norm: str, stride: int = 1, padding: int = 0, *, groups: int = 1
    ) -> Tensor:
        """Apply a convolution and its norm."""
        x = F.conv2d(x, self._tensors[f"{convolution}.weight"], None, stride, padding, groups=groups)
        mean, var = self._tensors[f"{norm}.running_mean"], self._tensors[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, *self._of(norm), eps=1e-5)

    def prepared(self, image: Pixels) -> Tensor:
        """Resize as OpenCV does, and normalise."""
        height, width = image.shape[:2]
        scale = min(self._max_size / max(height, width), self._min_size / min(height, width))
        shape = int(height * scale + 0.5), int(width * scale + 0.5)
        pixels = resized(image, shape).astype(np.float32)
        mean, std = (
            np.array(values, np.float32) for values in (self._config.pixel_mean, self._config.pixel_std)
        )
        return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)

    def features(self, batch: Tensor) -> dict[str, Tensor]:
        """Run the backbone with its pyramid."""
        x = batch.flip(1) if self._bgr else batch
        x = self._normed(x, "backbone.conv1", "backbone.bn1", 2, 3).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        levels = []
        for stage in (1, 2, 3, 4):
            blocks = {
                name.split(".")[2] for name in self._tensors if name.startswith(f"backbone.layer{stage}.")
            }
            for index in range(len(blocks)):
                x = self._block(x, f"backbone.layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1)
            levels.append(x)
        laterals = [F.conv2d(x, *self._of(f"neck.lateral_convs.{i}.conv")) for i, x in enumerate(levels)]
        for i in (3, 2, 1):
            shape = laterals[i - 1].shape[2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=shape, mode="nearest")
        maps = [F.conv2d(x, *self._of(f"neck.fpn_convs.{i}.conv"), padding=1) for i, x in enumerate(laterals)]
        maps.append(F.max_pool2d(maps[-1], 1, stride=2))
        return dict(zip(("0", "1", "2", "3", "pool"), maps, strict=True))

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        """Run a block; its `style` is pytorch or, with the stride in the first convolution, caffe."""
        first, second = (stride, 1) if self._config.stride_in_1x1 else (1, stride)
        out = self._normed(x, f"{name}.conv1", f"{name}.bn1", first).relu()
        groups = out.shape[1] // self._tensors[f"{name}.conv2.weight"].shape[1]
        out = self._normed(out, f"{name}.conv2", f"{name}.bn2", second, 1, groups=groups).relu()
        out = self._normed(out, f"{name}.conv3", f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self._tensors:
            x = self._normed(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
        return (out + x).relu()

    def rpn_head(self, features: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run the region proposal network's convolutions."""
        hidden = [F.conv2d(x, *self._of("rpn_head.rpn_conv"), padding=1).relu() for x in features.values()]
        return (
            [F.conv2d(x, *self._of("rpn_head.rpn_cls")) for x in hidden],
            [F.conv2d(x, *self._of("rpn_head.rpn_reg")) for x in hidden],
        )

    def proposals(self, features: dict[str, Tensor], batch: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the best proposals out of the best of each level."""
        del batch
        config = self._config
        boxes, scores = [], []
        for level, (logits, deltas) in enumerate(zip(*self.rpn_head(features), strict=True)):
            # Ordered by logits, since sigmoids of high ones are equal in float32.
            logit = logits[0].permute(1, 2, 0).reshape(-1)
            top = logit.sort(descending=True, stable=True).indices[: config.pre_nms_limit]
            delta = deltas[0].permute(1, 2, 0).reshape(-1, 4)[top]
            anchors = self._anchors(level, logits.shape[2], logits.shape[3])[top]
            box = clipped(_decoded(anchors, delta, config.rpn_box_weights), size)
            valid = ((box[:, 2] - box[:, 0]) > 0) & ((box[:, 3] - box[:, 1]) > 0)
            box, logit = box[valid], logit[top][valid]
            kept = suppressed(box, logit, config.rpn_nms_threshold)
            boxes.append(box[kept])
            scores.append(logit[kept])
        order = torch.cat(scores).sort(descending=True, stable=True).indices
        return torch.cat(boxes)[order[: config.post_nms_limit]]

    def _anchors(self, level: int, height: int, width: int) -> Tensor:
        """Return the anchors of a level, whose first position is centred at the corner of the image."""
        stride = (4, 8, 16, 32, 64)[level]
        scale = self._config.anchor_sizes[level] / stride  # 8 in MMDetection's configurations
        anchors = []
        for y in range(height):
            for x in range(width):
                for ratio in self._config.aspect_ratios:
                    w, h = stride * scale / math.sqrt(ratio), stride * scale * math.sqrt(ratio)
                    centre_x, centre_y = x * stride, y * stride
                    anchors.append([centre_x - w / 2, centre_y - h / 2, centre_x + w / 2, centre_y + h / 2])
        return torch.tensor(anchors)

    def heads(
        self, features: dict[str, Tensor], proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Classify proposals and refine their boxes."""
        head = "roi_head.bbox_head."
        x = _pooled(features, proposals, 7).flatten(1)
        for layer in ("shared_fcs.0", "shared_fcs.1"):
            x = F.linear(x, *self._of(f"{head}{layer}")).relu()
        scores = F.linear(x, *self._of(f"{head}fc_cls")).softmax(1)
        deltas = F.linear(x, *self._of(f"{head}fc_reg"))
        classes = scores.shape[1] - 1
        offsets = deltas.view(len(x), classes, 4).reshape(-1, 4)
        boxes = _decoded(proposals.repeat_interleave(classes, 0), offsets, self._config.box_weights)
        boxes = clipped(boxes, size).view(-1, classes, 4)
        return torch.cat([scores[:, classes:], scores[:, :classes]], 1), boxes  # its background is last

    def masks(
        self, features: dict[str, Tensor], boxes: Tensor, labels: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Run the mask head on boxes."""
        del size
        x = _pooled(features, boxes, 14)
        for index in range(4):
            x = F.conv2d(x, *self._of(f"roi_head.mask_head.convs.{index}.conv"), padding=1).relu()
        x = F.conv_transpose2d(x, *self._of("roi_head.mask_head.upsample"), stride=2).relu()
        logits = F.conv2d(x, *self._of("roi_head.mask_head.conv_logits"))
        return logits[torch.arange(len(labels)), labels - 1].sigmoid()

    def instances(self, image: Pixels) -> Instances:
        """Return the final instances of an image, with masks pasted; without those whose box is empty."""
        prepared = self.prepared(image)
        size = (prepared.shape[1], prepared.shape[2])
        features = self.features(padded(prepared))
        probabilities, every = self.heads(features, self.proposals(features, prepared, size), size)
        config, (height, width) = self._config, image.shape[:2]
        chosen = best(probabilities, every, config.min_score, config.max_detections, config.nms_threshold)
        boxes, labels, scores = chosen
        there = boxes / torch.tensor([size[1] / width, size[0] / height]).repeat(2)
        if "roi_head.mask_head.conv_logits.weight" not in self._tensors:
            return Instances(there, labels, scores, None)
        squares = self.masks(features, boxes, labels, size)
        masks = [pasted(box, square, height, width) for box, square in zip(there, squares, strict=True)]
        empty = np.zeros((0, height, width), np.bool_)
        return Instances(there, labels, scores, np.stack(masks) if masks else empty)


def resized(image: Pixels, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image as OpenCV does with INTER_LINEAR, pixel by pixel of each axis, in whole numbers.

    Args:
        image: (H, W, 3).
        shape: height and width of the result.
    """
    height, width = image.shape[:2]
    source = image.astype(np.int64)
    rows = np.zeros((height, shape[1], 3), np.int64)
    for x in range(shape[1]):
        place = np.float32((x + 0.5) * (1.0 / (shape[1] / width)) - 0.5)
        left = math.floor(place)
        part = np.float32(place - left)
        if left < 0:
            left, part = 0, np.float32(0)
        if left >= width - 1:
            left, part = width - 1, np.float32(0)
        one, other = (int(np.rint(np.float32(w) * 2048)) for w in (np.float32(1) - part, part))
        rows[:, x] = source[:, left] * one + source[:, min(left + 1, width - 1)] * other
    result = np.zeros((*shape, 3), np.int64)
    for y in range(shape[0]):
        place = np.float32((y + 0.5) * (1.0 / (shape[0] / height)) - 0.5)
        top = math.floor(place)
        part = np.float32(place - top)
        one, other = (int(np.rint(np.float32(w) * 2048)) for w in (np.float32(1) - part, part))
        upper, lower = (rows[min(max(at, 0), height - 1)] >> 4 for at in (top, top + 1))
        result[y] = ((upper * one >> 16) + (lower * other >> 16) + 2) >> 2
    return result.astype(np.uint8)


def _decoded(boxes: Tensor, deltas: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Move boxes by dx, dy in units of their size, and scale them by exp(dw), exp(dh), 16 / 1000 to 1000 / 16."""
    deltas = deltas * torch.tensor([1 / weight for weight in weights])  # `target_stds`
    limit = abs(math.log(16 / 1000))
    centres = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = centres + sides * deltas[:, :2]
    sides = sides * deltas[:, 2:].clamp(-limit, limit).exp()
    return torch.cat([centres - sides * 0.5, centres + sides * 0.5], 1)


def _pooled(features: Mapping[str, Tensor], boxes: Tensor, bins: int) -> Tensor:
    """Return aligned RoIAlign with `sampling_ratio` 0, each box on the level of its scale: (N, C, bins, bins)."""
    pooled = []
    for box in boxes:
        scale = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        level = min(max(math.floor(math.log2(scale / 56 + 1e-6)), 0), 3)
        pooled.append(pooled_on_map(features[str(level)][0], box / (4 * 2**level), bins))
    channels = features["0"].shape[1]
    return torch.stack(pooled) if pooled else torch.zeros(0, channels, bins, bins)
