"""Compare a converted network with a reference implementation of its source, stage by stage.

For detectron2 the reference is `reference_detectron2`, written from what detectron2 does; detectron2 itself is not run.
For torchvision it is torchvision's own network.

Each stage gets as input what the reference computed in the stages before, so that a difference shows up in the stage
that causes it. The code under test is the fast path that runs use: folded, rearranged, pooled as sums of rows. Finally
both process whole images, from pixels to instances.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision.models.detection.image_list import ImageList

from ...types import Detections, Pixels
from ..architectures.torchvision_networks import Detector
from ..forward import Forward
from ..fuse import for_cpu, fused
from ..model import Model
from ..registry import NO_CATEGORY
from ..roi_align import pyramid_of
from ..segmenter import MaskRCNNSegmenter
from .reference_detectron2 import Instances, best, clipped

__all__ = [
    "Row",
    "StockTorchvision",
    "compare",
    "displacement",
    "generated_images",
    "matched_row",
    "stage_row",
]


@dataclass(frozen=True, slots=True)
class Row:
    """The largest difference of one stage over all images."""

    stage: str
    difference: float
    unit: str
    limit: float
    """The difference that rounding can cause; a larger one is an error."""
    compared: int
    """The number of values or instances."""

    @property
    def within_limit(self) -> bool:
        """Whether the difference is within the limit, and something was compared."""
        return self.difference <= self.limit and self.compared > 0

    def joined(self, other: "Row") -> "Row":
        """Return the row of this stage over the images of both."""
        worst = max(self.difference, other.difference)
        return Row(self.stage, worst, self.unit, self.limit, self.compared + other.compared)

    def to_json(self) -> dict[str, Any]:
        """Return the fields and whether the stage is within its limit."""
        return asdict(self) | {"sound": self.within_limit}


class Reference(Protocol):
    """A network in stages. Boxes are in pixels of the resized image, labels count from the background, 0."""

    def prepared(self, image: Pixels) -> Tensor:
        """Return (3, h, w), resized and normalised, RGB."""

    def features(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the maps "0" to "3" and "pool" of a padded (1, 3, H, W)."""

    def rpn_head(self, features: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness (1, A, H, W) and offsets (1, 4 * A, H, W) of each map."""

    def proposals(self, features: dict[str, Tensor], batch: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (P, 4), the best first."""

    def heads(
        self, features: dict[str, Tensor], proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return probabilities (P, C + 1) and boxes (P, C, 4) of the C classes, within the image."""

    def masks(
        self, features: dict[str, Tensor], boxes: Tensor, labels: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return (N, 28, 28) probabilities."""

    def instances(self, image: Pixels) -> Instances:
        """Return the final instances of an image."""


# --- torchvision --------------------------------------------------------------------------------------------


class StockTorchvision:
    """torchvision's own network; its parts are called as its own `forward` calls them."""

    def __init__(self, network: Detector) -> None:
        self._network = network.eval()

    def prepared(self, image: Pixels) -> Tensor:
        """Normalise and resize."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        images, _ = self._network.transform([pixels])
        height, width = images.image_sizes[0]
        prepared: Tensor = images.tensors[0, :, :height, :width]
        return prepared

    def features(self, batch: Tensor) -> dict[str, Tensor]:
        """Run the backbone with its pyramid."""
        features: dict[str, Tensor] = self._network.backbone(batch)
        return features

    def rpn_head(self, features: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run the region proposal network's convolutions."""
        objectness, offsets = self._network.rpn.head(list(features.values()))
        return objectness, offsets

    def proposals(self, features: dict[str, Tensor], batch: Tensor, size: tuple[int, int]) -> Tensor:
        """Run the region proposal network."""
        boxes, _ = self._network.rpn(ImageList(batch, [size]), features)
        proposals: Tensor = boxes[0]
        return proposals

    def heads(
        self, features: dict[str, Tensor], proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Classify proposals and refine their boxes."""
        roi = self._network.roi_heads
        pooled = roi.box_roi_pool(features, [proposals], [size])
        logits, deltas = roi.box_predictor(roi.box_head(pooled))
        boxes = roi.box_coder.decode(deltas, [proposals])[:, 1:]
        return logits.softmax(1), clipped(boxes.reshape(-1, 4), size).view_as(boxes)

    def masks(
        self, features: dict[str, Tensor], boxes: Tensor, labels: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Run the mask head on boxes."""
        roi = self._network.roi_heads
        logits = roi.mask_predictor(roi.mask_head(roi.mask_roi_pool(features, [boxes], [size])))
        masks: Tensor = logits[torch.arange(len(labels)), labels].sigmoid()
        return masks

    def instances(self, image: Pixels) -> Instances:
        """Return the final instances of an image."""
        (found,) = self._network([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255])
        masks = (found["masks"][:, 0] > 0.5).numpy() if "masks" in found else None
        return Instances(found["boxes"], found["labels"], found["scores"], masks)


# --- comparing ----------------------------------------------------------------------------------------------

_RELATIVE: Final = "of the largest value"
_PROPOSAL_PX: Final = 0.05
_OUTLINE_PX: Final = 0.1


def generated_images() -> list[Pixels]:
    """Return two images, one wide and one high: rectangles on smooth colours."""
    images = []
    for seed, (height, width) in enumerate(((240, 330), (300, 210))):
        rng = np.random.Generator(np.random.PCG64(seed))
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        image = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
        for _ in range(14):
            y, x = rng.integers(0, height - 20), rng.integers(0, width - 20)
            h, w = rng.integers(12, 110, 2)
            image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
        images.append(image)
    return images


@torch.inference_mode()
def compare(reference: Reference, model: Model, images: Sequence[Pixels]) -> list[Row]:
    """Compare a model's fast path with a reference on images.

    Returns:
        one row per stage, in the order of the stages.
    """
    rows: dict[str, Row] = {}
    min_score, max_detections = own_limits(model.module)
    segmenter = MaskRCNNSegmenter(model, min_score=min_score, max_detections=max_detections)
    for image in images:
        for row in [
            *_stages(reference, model, segmenter, image),
            *_final_rows(reference, segmenter, model, image),
        ]:
            rows[row.stage] = row.joined(rows[row.stage]) if row.stage in rows else row
    return list(rows.values())


def _stages(reference: Reference, model: Model, segmenter: MaskRCNNSegmenter, image: Pixels) -> list[Row]:
    network, forward = for_cpu(fused(model.module)), segmenter.forward
    prepared = reference.prepared(image)
    size = (prepared.shape[1], prepared.shape[2])
    batch, sizes = segmenter.batch_of([image])
    own = batch[0, :, : int(sizes[0, 0]), : int(sizes[0, 1])]
    if own.shape != prepared.shape:
        return [Row("resized and normalised", math.inf, "of the input's deviation", 0, own.numel())]
    deviation = float(prepared.std())
    difference = (own - prepared).abs()
    rows = [
        Row(
            "resized and normalised, mean",
            float(difference.mean()) / deviation,
            "of the input's deviation",
            1e-4,
            difference.numel(),
        )
    ]

    batch = F.pad(prepared, (0, batch.shape[3] - size[1], 0, batch.shape[2] - size[0]))[None]
    features = reference.features(batch)
    found = network.backbone(batch.contiguous(memory_format=torch.channels_last))
    for name, expected in features.items():
        rows.append(stage_row(f"features {name}", found[name], expected))
    if not isinstance(forward, Forward):
        return rows
    for what, values, reference_values in zip(
        ("RPN objectness", "RPN offsets"),
        network.rpn.head(list(features.values())),
        reference.rpn_head(features),
        strict=True,
    ):
        rows.append(stage_row(what, _flat(values), _flat(reference_values)))

    proposals = reference.proposals(features, batch, size)
    limits = torch.tensor([[size[1], size[0], size[1], size[0]]], dtype=torch.float32)
    boxes, present, _ = forward.propose(features, (batch.shape[2], batch.shape[3]), limits)
    rows.append(matched_row(boxes[0][present[0]], proposals, _PROPOSAL_PX))

    roi = network.roi_heads
    pyramid = pyramid_of(features, roi.box_roi_pool, batch.shape[2])
    logits, deltas, refined, _ = forward.classify(pyramid, proposals[None], limits)
    probabilities, expected = reference.heads(features, proposals, size)
    decoded = roi.box_coder.decode(deltas.reshape(len(proposals), -1), [refined[0]])[:, 1:]
    decoded = clipped(decoded.reshape(-1, 4), size).view_as(expected)
    rows.append(stage_row("class probabilities", logits[0].softmax(1), probabilities, "absolute", 1e-4))
    rows.append(stage_row("boxes of all classes", decoded, expected, "px", 0.05))

    if not segmenter.has_masks:
        return rows
    box, label, _ = best(probabilities, expected, min_score=0.05, max_detections=30)
    squares = reference.masks(features, box, label, size)
    actual = forward.probabilities(pyramid, torch.zeros(len(box), dtype=torch.int64), box, label)
    rows.append(stage_row("mask probabilities", actual.view_as(squares), squares, "absolute", 1e-3))
    return rows


def _flat(maps: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in maps])


def stage_row(stage: str, found: Tensor, expected: Tensor, unit: str = _RELATIVE, limit: float = 1e-4) -> Row:
    """Return the largest difference of two tensors, relative to the largest expected value or absolute."""
    if found.shape != expected.shape:
        return Row(stage, math.inf, unit, limit, found.numel())
    if not expected.numel():
        return Row(stage, 0.0, unit, limit, 0)
    scale = float(expected.abs().max()) if unit == _RELATIVE else 1.0
    return Row(
        stage, float((found - expected).abs().max()) / max(scale, 1e-30), unit, limit, expected.numel()
    )


def matched_row(found: Tensor, expected: Tensor, near: float) -> Row:
    """Compare proposals as sets: those of almost equal scores may swap, and one may be displaced at the limit."""
    if not len(expected) or not len(found):
        return Row("proposals, unmatched", float(len(expected) + len(found)), "fraction", 0.01, len(expected))
    nearest = torch.cdist(expected, found, p=math.inf).amin(1)
    share = float((nearest > near).float().mean())
    surplus = abs(len(found) - len(expected)) / len(expected)
    return Row("proposals, unmatched", max(share, surplus), "fraction", 0.01, len(expected))


def _final_rows(reference: Reference, segmenter: MaskRCNNSegmenter, model: Model, image: Pixels) -> list[Row]:
    """Compare the final instances, from pixels to run lengths."""
    expected = reference.instances(image)
    (found,) = segmenter.segment([image])
    ids = torch.tensor(model.card.category_ids)
    used = ids[expected.labels] != NO_CATEGORY
    matched, unmatched, score, displaced = 0, 0, 0.0, 0.0
    # At the limit of their number rounding decides which instances are the last.
    _, limit = own_limits(model.module)
    floor = float(expected.scores.min()) + 1e-3 if len(expected.scores) >= limit else 0.0
    for index in used.nonzero().flatten().tolist():
        near = _nearest(found, int(ids[expected.labels[index]]), expected.boxes[index].numpy())
        if near is None:
            unmatched += int(expected.scores[index] > floor)
            continue
        matched += 1
        score = max(score, abs(float(found.scores[near]) - float(expected.scores[index])))
        if expected.masks is not None:
            rle = {"size": [found.height, found.width], "counts": found.counts[near]}
            displaced = max(displaced, displacement(coco_mask.decode(rle) > 0, expected.masks[index]))
    total = matched + unmatched
    rows = [
        Row("instances, unmatched", unmatched / max(total, 1), "fraction", 0.02, total),
        Row("instances, scores", score, "absolute", 5e-3, matched),
    ]
    if expected.masks is not None:
        rows.append(Row("instances, outlines of masks", displaced, "px", _OUTLINE_PX, matched))
    return rows


def own_limits(network: Detector) -> tuple[float, int]:
    """Return the minimum score of a network of torchvision, and its maximum number of detections."""
    heads = network.roi_heads if hasattr(network, "roi_heads") else network
    return float(heads.score_thresh), int(heads.detections_per_img)


def _nearest(found: Detections, category: int, box: NDArray[np.float32]) -> int | None:
    """Return the instance of this category whose box is nearest, within 1 px plus a hundredth of its size; or None."""
    difference = np.abs(found.boxes - box).max(1, initial=0.0)
    difference = np.where(found.labels == category, difference, np.inf)
    if not len(difference) or difference.min() > 1 + 0.01 * float((box[2:] - box[:2]).max()):
        return None
    return int(difference.argmin())


def displacement(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    """Return the displacement of the outline of a mask, in pixels, on the average along it.

    Rounding changes pixels whose probability is next to the threshold, and these lie along the outline: there are as
    many as it has pixels, times its displacement. The share of the mask's area would depend on its size. One pixel is
    left out, which in a mask of a few pixels is a large part of any outline.

    Args:
        found: (H, W).
        expected: (H, W).
    """
    inside = np.pad(expected, 1)
    outline = int((inside[1:] != inside[:-1]).sum() + (inside[:, 1:] != inside[:, :-1]).sum())
    differing = int((found != expected).sum())
    return max(differing - 1, 0) / max(outline, 1)
