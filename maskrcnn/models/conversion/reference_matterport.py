"""Reference implementation of matterport's Mask R-CNN, which converted networks are compared with.

Written from what matterport does, on a file's own tensors under their own names, one image, level and box after
another, in its own coordinates: y before x, and normalised, so that 0 is the centre of the first pixel of the canvas
and 1 that of the last. It shares no code with the network under test. It takes seconds per image.

Reference: https://github.com/matterport/Mask_RCNN, mrcnn/model.py and mrcnn/utils.py, version 2.1.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...types import Pixels
from ..architectures.matterport_config import MatterportConfig

__all__ = ["Molded", "ReferenceInstances", "ReferenceMatterport"]

Floats = NDArray[np.float32]
_LEVELS: Final = ("P2", "P3", "P4", "P5", "P6")


class Molded(NamedTuple):
    """An image as input of the network."""

    resized: Pixels
    """(H, W, 3) uint8, the canvas."""
    pixels: Floats
    """(H, W, 3), less the mean."""
    window: tuple[int, int, int, int]
    """y1, x1, y2, x2 of the image on the canvas, pixels."""


class ReferenceInstances(NamedTuple):
    """The instances of an image, in the pixels of the image."""

    boxes: NDArray[np.int32]
    """(N, 4) y1, x1, y2, x2, the last two exclusive."""
    labels: NDArray[np.int32]
    """(N,) from 1."""
    scores: Floats
    """(N,)"""
    masks: NDArray[np.bool_]
    """(N, H, W)"""


class ReferenceMatterport:
    """Mask R-CNN as matterport computes it.

    Args:
        tensors: of the file, by layer and name, as `conv1/kernel`, in Keras's axes.
        min_size: IMAGE_MIN_DIM.
        max_size: IMAGE_MAX_DIM.
        config: the rest of the configuration.
        labels: the classes that have names, from 1; None: all.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        min_size: int,
        max_size: int,
        config: MatterportConfig,
        labels: Sequence[int] | None = None,
    ) -> None:
        self._tensors = tensors
        self._min_size, self._max_size = min_size, max_size
        self._config = config
        n_labels = len(tensors["mrcnn_class_logits/bias"])
        self._labels = range(1, n_labels) if labels is None else labels

    # Layers

    def _conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        kernel = self._tensors[f"{name}/kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, self._tensors[f"{name}/bias"], stride, padding)

    def _normed(self, x: Tensor, name: str) -> Tensor:
        gamma, beta, mean, variance = (
            self._tensors[f"{name}/{part}"][:, None, None]
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return gamma * (x - mean) / (variance + 1e-3).sqrt() + beta

    def _dense(self, x: Tensor, name: str) -> Tensor:
        return x @ self._tensors[f"{name}/kernel"] + self._tensors[f"{name}/bias"]

    # Stages

    def molded(self, image: Pixels) -> Molded:
        """Resize an image, put it into the middle of a canvas, and subtract the mean."""
        config = self._config
        height, width = image.shape[:2]
        scale = max(1.0, self._min_size / min(height, width), config.image_min_scale)
        square = config.image_resize_mode == "square"
        if square and round(max(height, width) * scale) > self._max_size:
            scale = self._max_size / max(height, width)
        if scale != 1:
            size = round(height * scale), round(width * scale)
            image = _resized(image.astype(np.float64), *size).astype(np.uint8)  # truncates
        height, width = image.shape[:2]
        canvas = (self._max_size,) * 2 if square else (-(-height // 64) * 64, -(-width // 64) * 64)
        top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
        resized = np.zeros((*canvas, 3), np.uint8)
        resized[top : top + height, left : left + width] = image
        pixels = (resized.astype(np.float32) - np.array(config.mean_pixel)).astype(np.float32)
        return Molded(resized, pixels, (top, left, top + height, left + width))

    def backbone(self, pixels: Floats) -> dict[str, Tensor]:
        """Return C1 to C5, (1, C, H, W); C1 is the pooled output of the stem."""
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        x = self._normed(self._conv(x, "conv1", 2, 3), "bn_conv1").relu()
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)  # padding "same" of an even side pads below and right
        maps = {"C1": x}
        for stage in (2, 3, 4, 5):
            for block in "abcdefghijklmnopqrstuvw":
                name = f"{stage}{block}_branch"
                if f"res{name}2a/kernel" not in self._tensors:
                    break
                stride = 2 if block == "a" and stage > 2 else 1
                out = self._normed(self._conv(x, f"res{name}2a", stride), f"bn{name}2a").relu()
                out = self._normed(self._conv(out, f"res{name}2b", 1, 1), f"bn{name}2b").relu()
                out = self._normed(self._conv(out, f"res{name}2c"), f"bn{name}2c")
                if block == "a":
                    x = self._normed(self._conv(x, f"res{name}1", stride), f"bn{name}1")
                x = (out + x).relu()
            maps[f"C{stage}"] = x
        return maps

    def pyramid(self, backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return P2 to P6, (1, 256, H, W)."""
        maps: dict[str, Tensor] = {}
        above: Tensor | None = None
        for level in (5, 4, 3, 2):
            lateral = self._conv(backbone[f"C{level}"], f"fpn_c{level}p{level}")
            if above is not None:
                lateral = lateral + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
            above = lateral
            maps[f"P{level}"] = self._conv(above, f"fpn_p{level}", padding=1)
        maps["P6"] = maps["P5"][:, :, ::2, ::2]
        return {level: maps[level] for level in _LEVELS}

    def rpn(self, pyramid: Mapping[str, Tensor]) -> tuple[Floats, Floats, Floats]:
        """Return logits and probabilities of background and object, (A, 2), and offsets, (A, 4), of all anchors."""
        logits, offsets = [], []
        for level in _LEVELS:
            shared = self._conv(pyramid[level], "rpn_conv_shared", padding=1).relu()
            logits.append(self._conv(shared, "rpn_class_raw")[0].permute(1, 2, 0).reshape(-1, 2))
            offsets.append(self._conv(shared, "rpn_bbox_pred")[0].permute(1, 2, 0).reshape(-1, 4))
        logit = torch.cat(logits)
        return logit.numpy(), logit.softmax(1).numpy(), torch.cat(offsets).numpy()

    def anchors(self, height: int, width: int) -> NDArray[np.float64]:
        """Return y1, x1, y2, x2 of the anchors of a canvas, (A, 4) pixels."""
        anchors = []
        for index, side in enumerate(self._config.rpn_anchor_scales):
            stride = 4 * 2**index
            for y in range(0, height, stride):
                for x in range(0, width, stride):
                    for ratio in self._config.rpn_anchor_ratios:
                        h, w = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        anchors.append((y - 0.5 * h, x - 0.5 * w, y + 0.5 * h, x + 0.5 * w))
        return np.array(anchors)

    def proposals(self, scores: Floats, offsets: Floats, anchors: Floats) -> Floats:
        """Return the proposals, (P, 4), filled up with zeros.

        Args:
            scores: (A,) probability of an object.
            offsets: (A, 4)
            anchors: (A, 4) normalised.
        """
        config = self._config
        best = np.argsort(-scores, kind="stable")[: config.pre_nms_limit]
        boxes = _moved(anchors[best], offsets[best], config.rpn_bbox_std_dev).clip(0, 1)
        count = config.post_nms_rois_inference
        kept = boxes[_kept(boxes, config.rpn_nms_threshold, count)]
        return np.concatenate([kept, np.zeros((count - len(kept), 4), np.float32)])

    def pooled(self, pyramid: Mapping[str, Tensor], boxes: Floats, size: int) -> Floats:
        """Return the pooled features of boxes, each from its level, (N, size, size, 256)."""
        canvas = tuple(4 * side for side in pyramid["P2"].shape[2:])
        maps = {level: pyramid[level][0].permute(1, 2, 0).numpy() for level in _LEVELS}
        pooled = np.zeros((len(boxes), size, size, 256), np.float32)
        for index, (box, level) in enumerate(zip(boxes, self.levels(boxes, *canvas), strict=True)):
            pooled[index] = _cropped(maps[f"P{level}"], box, size)
        return pooled

    def levels(self, boxes: Floats, height: int, width: int) -> NDArray[np.int64]:
        """Return the level of each box, 2 to 5."""
        side = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        with np.errstate(divide="ignore"):
            level = 4 + np.round(np.log2(side / (224 / math.sqrt(height * width))))
        return np.asarray(level.clip(2, 5).astype(np.int64))

    def classify(self, pooled: Floats) -> tuple[Floats, Floats, Floats]:
        """Return logits and probabilities, (N, C), the background first, and offsets, (N, C, 4)."""
        x = torch.from_numpy(pooled).permute(0, 3, 1, 2)
        for layer in ("1", "2"):
            x = self._normed(self._conv(x, f"mrcnn_class_conv{layer}"), f"mrcnn_class_bn{layer}").relu()
        x = x.flatten(1)
        logits = self._dense(x, "mrcnn_class_logits")
        offsets = self._dense(x, "mrcnn_bbox_fc").view(len(x), -1, 4)
        return logits.numpy(), logits.softmax(1).numpy(), offsets.numpy()

    def refined(
        self,
        proposals: Floats,
        probabilities: Floats,
        offsets: Floats,
        window: Floats,
        min_score: float,
        max_detections: int,
    ) -> Floats:
        """Return the detections, (N, 6): normalised box, class and score, the best first.

        Args:
            proposals: (P, 4)
            probabilities: (P, C)
            offsets: (P, C, 4)
            window: (4,) normalised.
            min_score: DETECTION_MIN_CONFIDENCE.
            max_detections: DETECTION_MAX_INSTANCES.
        """
        rows = np.arange(len(proposals))
        label = probabilities.argmax(1)
        score = probabilities[rows, label]
        boxes = _moved(proposals, offsets[rows, label], self._config.bbox_std_dev)
        boxes = np.clip(boxes, window[[0, 1, 0, 1]], window[[2, 3, 2, 3]])
        kept = []
        for each in self._labels:
            own = np.flatnonzero((label == each) & (score >= min_score))
            own = own[np.argsort(-score[own], kind="stable")]
            kept += own[_kept(boxes[own], self._config.detection_nms_threshold, max_detections)].tolist()
        order = np.array(sorted(kept, key=lambda row: (-score[row], row))[:max_detections], np.int64)
        return np.concatenate([boxes, label[:, None], score[:, None]], 1).astype(np.float32)[order]

    def masks(self, pooled: Floats, labels: NDArray[np.int64]) -> Floats:
        """Return the mask probabilities of each box for its own class, (N, 28, 28)."""
        if not len(pooled):
            return np.zeros((0, 28, 28), np.float32)
        x = torch.from_numpy(pooled).permute(0, 3, 1, 2)
        for layer in ("1", "2", "3", "4"):
            x = self._normed(self._conv(x, f"mrcnn_mask_conv{layer}", 1, 1), f"mrcnn_mask_bn{layer}").relu()
        kernel = self._tensors["mrcnn_mask_deconv/kernel"].permute(3, 2, 0, 1)
        x = F.conv_transpose2d(x, kernel, self._tensors["mrcnn_mask_deconv/bias"], stride=2).relu()
        x = self._conv(x, "mrcnn_mask").sigmoid()
        return x[torch.arange(len(x)), torch.from_numpy(labels)].numpy()

    def unmolded(
        self, detections: Floats, masks: Floats, window: Floats, height: int, width: int
    ) -> ReferenceInstances:
        """Map detections to the pixels of the image, and paste their masks."""
        origin, extent = window[[0, 1, 0, 1]], (window[2:] - window[:2])[[0, 1, 0, 1]]
        scale = np.array([height - 1, width - 1, height - 1, width - 1])
        boxes = (detections[:, :4] - origin) / extent
        boxes = np.around(boxes * scale + np.array([0, 0, 1, 1])).astype(np.int32)
        kept = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        pasted = np.zeros((len(kept), height, width), np.bool_)
        for index, row in enumerate(kept):
            y1, x1, y2, x2 = boxes[row]
            square = _resized(masks[row], y2 - y1, x2 - x1)
            pasted[index, y1:y2, x1:x2] = square >= 0.5
        labels = detections[kept, 4].astype(np.int32)
        return ReferenceInstances(boxes[kept], labels, detections[kept, 5], pasted)

    def instances(
        self, image: Pixels, min_score: float = 0.7, max_detections: int = 100
    ) -> ReferenceInstances:
        """Return the final instances of an image."""
        molded = self.molded(image)
        canvas = molded.resized.shape[:2]
        window = normalised(np.array(molded.window, np.float32), *canvas)
        pyramid = self.pyramid(self.backbone(molded.pixels))
        _, probabilities, offsets = self.rpn(pyramid)
        anchors = normalised(self.anchors(*canvas), *canvas).astype(np.float32)
        proposals = self.proposals(probabilities[:, 1], offsets, anchors)
        _, scores, moves = self.classify(self.pooled(pyramid, proposals, 7))
        detections = self.refined(proposals, scores, moves, window, min_score, max_detections)
        masks = self.masks(self.pooled(pyramid, detections[:, :4], 14), detections[:, 4].astype(np.int64))
        return self.unmolded(detections, masks, window, *image.shape[:2])


def normalised(boxes: NDArray[np.floating], height: int, width: int) -> NDArray[np.floating]:
    """Return y1, x1, y2, x2 in pixels of a canvas as normalised coordinates."""
    scale = np.array([height - 1, width - 1, height - 1, width - 1], boxes.dtype)
    return np.asarray((boxes - np.array([0, 0, 1, 1], boxes.dtype)) / scale)


def _moved(boxes: Floats, offsets: Floats, deviations: tuple[float, ...]) -> Floats:
    dy, dx, dh, dw = (offsets * np.array(deviations, np.float32)).T
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    y = boxes[:, 0] + np.float32(0.5) * height + dy * height
    x = boxes[:, 1] + np.float32(0.5) * width + dx * width
    height, width = height * np.exp(dh), width * np.exp(dw)
    y, x = y - np.float32(0.5) * height, x - np.float32(0.5) * width
    return np.stack([y, x, y + height, x + width], 1)


def _kept(boxes: Floats, threshold: float, max_detections: int) -> list[int]:
    """Return the indices that greedy suppression keeps, given boxes in order; empty boxes overlap nothing."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left) and len(kept) < max_detections:
        first, left = int(left[0]), left[1:]
        kept.append(first)
        low = np.maximum(boxes[first, :2], boxes[left, :2])
        high = np.minimum(boxes[first, 2:], boxes[left, 2:])
        both = (high - low).clip(0).prod(1)
        union = areas[first] + areas[left] - both
        left = left[~((areas[left] > 0) & (areas[first] > 0) & (both > np.float32(threshold) * union))]
    return kept


def _cropped(feature: Floats, box: Floats, size: int) -> Floats:
    """Return `tf.image.crop_and_resize` of one box: one sample per bin, the outer ones on the box's edges."""
    (upper, lower, down), (left, right, across) = (
        _taps(box[axis], box[axis + 2], feature.shape[axis], size) for axis in (0, 1)
    )
    outside = np.isnan(down)[:, None] | np.isnan(across)[None]
    down, across = down[:, None, None], across[None, :, None]
    above = feature[upper][:, left] * (1 - across) + feature[upper][:, right] * across
    below = feature[lower][:, left] * (1 - across) + feature[lower][:, right] * across
    return np.asarray(np.where(outside[..., None], np.float32(0), above * (1 - down) + below * down))


def _taps(
    low: np.float32, high: np.float32, side: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Return the two positions of an axis that each sample lies between, and the weight of the second.

    The weight is NaN if rounding puts the last sample behind the last position; the reference has zeros there.
    """
    last = np.float32(side - 1)
    position = low * last + np.arange(size, dtype=np.float32) * ((high - low) * last / np.float32(size - 1))
    first = np.floor(position).astype(np.int64).clip(0, side - 1)
    weight = np.where((position < 0) | (position > last), np.float32(np.nan), position - first)
    return first, (first + 1).clip(0, side - 1), weight


def _resized(image: NDArray[np.floating], height: int, width: int) -> NDArray[np.floating]:
    """Return scikit-image's linear resize, (h, w, …): zero padding, clipped to the range of the input."""
    y, x = (
        (np.arange(n) + 0.5) * (old / n) - 0.5 for n, old in zip((height, width), image.shape, strict=False)
    )
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    each = (slice(None),) + (None,) * (image.ndim - 2)
    down, across = (y - top)[:, None][(..., *each[1:])], (x - left)[None][(..., *each[1:])]
    framed = np.pad(image.astype(np.float64), [(1, 1), (1, 1)] + [(0, 0)] * (image.ndim - 2))
    result = framed[top + 1][:, left + 1] * (1 - down) * (1 - across)
    result += framed[top + 1][:, left + 2] * (1 - down) * across
    result += framed[top + 2][:, left + 1] * down * (1 - across)
    result += framed[top + 2][:, left + 2] * down * across
    return np.asarray(result.astype(image.dtype).clip(image.min(), image.max()))
