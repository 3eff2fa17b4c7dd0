"""Compare a network converted from matterport with a reference implementation, stage by stage, as `parity` does.

The reference is `reference_matterport`, on the file's own tensors; TensorFlow is not run. The code under test is the
fast path. Each stage gets as input what the reference computed in the stages before, so that a difference shows up in
the stage that causes it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from ...types import Detections, Pixels
from ..forward_matterport import MatterportForward
from ..model import Model
from ..roi_align import pool, pyramid_of
from ..segmenter import MaskRCNNSegmenter
from .parity import Row, matched_row, stage_row
from .reference_matterport import ReferenceInstances, ReferenceMatterport, normalised

__all__ = ["FastStages", "compare_matterport"]

Floats = NDArray[np.float32]
_MAPS: Final = {"0": "P2", "1": "P3", "2": "P4", "3": "P5", "pool": "P6"}
_MIN_SCORE: Final = 0.7
_YX: Final = [1, 0, 3, 2]


class FastStages:
    """The fast path of a converted network, one stage at a time, in the reference's order of axes and coordinates.

    Args:
        model: with one of matterport's architectures.
        min_score: DETECTION_MIN_CONFIDENCE.
    """

    def __init__(self, model: Model, min_score: float = _MIN_SCORE) -> None:
        self.segmenter = MaskRCNNSegmenter(model, min_score=min_score)
        steps = self.segmenter.forward
        if not isinstance(steps, MatterportForward):
            raise TypeError(f"{model.card.architecture} is not an architecture of matterport")
        self.forward: MatterportForward = steps
        self._network = steps.network

    @torch.inference_mode()
    def molded(self, image: Pixels) -> Floats:
        """Return an image on its canvas, (H, W, 3), less the mean."""
        batch, _ = self.segmenter.batch_of([image])
        return np.asarray(batch[0].permute(1, 2, 0).numpy())

    @torch.inference_mode()
    def features(self, molded: Floats) -> dict[str, Tensor]:
        """Return C1 to C5 and P2 to P6, (1, C, H, W)."""
        found: dict[str, Tensor] = {}
        body = self._network.backbone.body
        names = {"maxpool": "C1", "layer1": "C2", "layer2": "C3", "layer3": "C4", "layer4": "C5"}
        hooks = [
            body[layer].register_forward_hook(
                lambda _, __, out, name=name: found.__setitem__(name, out.clone())
            )
            for layer, name in names.items()
        ]
        batch = torch.from_numpy(molded).permute(2, 0, 1)[None]
        maps = self._network.backbone(batch.contiguous(memory_format=torch.channels_last))
        for hook in hooks:
            hook.remove()
        return found | {name: maps[key] for key, name in _MAPS.items()}

    @torch.inference_mode()
    def rpn(self, pyramid: Mapping[str, Tensor]) -> tuple[Floats, Floats]:
        """Return logits, (A, 2), and offsets, (A, 4)."""
        logits, offsets = (
            torch.cat([m[0].permute(1, 2, 0).flatten() for m in maps])
            for maps in self._network.rpn.head([pyramid[name] for name in _MAPS.values()])
        )
        return logits.view(-1, 2).numpy(), offsets.view(-1, 4)[:, _YX].numpy()

    def anchors(self, pyramid: Mapping[str, Tensor]) -> Floats:
        """Return the anchors, (A, 4) normalised."""
        grids = tuple((pyramid[name].shape[2], pyramid[name].shape[3]) for name in _MAPS.values())
        anchors: Floats = torch.cat(self.forward._anchors(_canvas(pyramid), grids))[:, _YX].numpy()  # noqa: SLF001
        return anchors

    @torch.inference_mode()
    def proposals(self, pyramid: Mapping[str, Tensor]) -> Floats:
        """Return the proposals, (P, 4) normalised, the best first."""
        maps = {key: pyramid[name] for key, name in _MAPS.items()}
        boxes, _, _ = self.forward.propose(maps, _canvas(pyramid), torch.empty(1, 4))
        return np.asarray(boxes[0][:, _YX].numpy())

    @torch.inference_mode()
    def pooled(self, pyramid: Mapping[str, Tensor], boxes: Floats, size: int) -> Floats:
        """Return the pooled features of boxes, (N, size, size, 256)."""
        heads = self._network.roi_heads
        aligner = heads.box_roi_pool if size == 7 else heads.mask_roi_pool
        rows = pyramid_of(self._maps(pyramid), aligner, _canvas(pyramid)[0])
        image = torch.zeros(len(boxes), dtype=torch.int64)
        return np.asarray(pool(rows, aligner, _xyxy(boxes), image).permute(0, 2, 3, 1).numpy())

    @torch.inference_mode()
    def classify(self, pooled: Floats) -> tuple[Floats, Floats]:
        """Return logits, (N, C), and offsets, (N, C, 4)."""
        heads = self._network.roi_heads
        x = torch.from_numpy(np.ascontiguousarray(pooled)).permute(0, 3, 1, 2)
        logits, offsets = heads.box_predictor(heads.box_head(x))
        return logits.numpy(), offsets.view(len(x), -1, 4)[..., _YX].numpy()

    @torch.inference_mode()
    def refined(self, proposals: Floats, logits: Floats, offsets: Floats, window: Floats) -> Floats:
        """Return the detections, (N, 6): normalised box, class and score, the best first."""
        _, boxes, labels, scores = self.forward.choose(
            torch.from_numpy(logits)[None],
            torch.from_numpy(np.ascontiguousarray(offsets[..., _YX])).view(1, len(logits), -1),
            _xyxy(proposals)[None],
            torch.ones(1, len(proposals), dtype=torch.bool),
            _xyxy(window[None]),
        )
        return np.asarray(torch.cat([boxes[:, _YX], labels[:, None], scores[:, None]], 1).numpy())

    @torch.inference_mode()
    def masks(self, pyramid: Mapping[str, Tensor], boxes: Floats, labels: NDArray[np.int64]) -> Floats:
        """Return the mask probabilities of each box for its own class, (N, 28, 28)."""
        aligner = self._network.roi_heads.mask_roi_pool
        rows = pyramid_of(self._maps(pyramid), aligner, _canvas(pyramid)[0])
        image = torch.zeros(len(boxes), dtype=torch.int64)
        masks = self.forward.probabilities(rows, image, _xyxy(boxes), torch.from_numpy(labels))
        return np.asarray(masks.numpy())

    def pasted(self, detections: Floats, masks: Floats, height: int, width: int) -> list[dict[str, Any]]:
        """Return the masks of detections in an image of this size, as run lengths; empty boxes have none."""
        squares = masks.reshape(len(masks), -1)
        images = np.zeros((len(masks), 1), np.float32)
        rows = np.concatenate([images, detections[:, 4:6], detections[:, _YX], squares], 1)
        return self.segmenter._detections_of(rows, height, width).rles()  # noqa: SLF001

    def _maps(self, pyramid: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: pyramid[name] for key, name in _MAPS.items() if key != "pool"}


def _canvas(pyramid: Mapping[str, Tensor]) -> tuple[int, int]:
    return 4 * pyramid["P2"].shape[2], 4 * pyramid["P2"].shape[3]


def _xyxy(boxes: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(boxes[:, _YX]))


@torch.inference_mode()
def compare_matterport(reference: ReferenceMatterport, model: Model, images: Sequence[Pixels]) -> list[Row]:
    """Compare a model's fast path with a reference on images.

    Returns:
        one row per stage, in the order of the stages.
    """
    fast = FastStages(model)
    rows: dict[str, Row] = {}
    for image in images:
        for row in _stages(reference, fast, model, image):
            rows[row.stage] = row.joined(rows[row.stage]) if row.stage in rows else row
    return list(rows.values())


def _stages(reference: ReferenceMatterport, fast: FastStages, model: Model, image: Pixels) -> list[Row]:
    """Return one row per stage for one image."""
    molded = reference.molded(image)
    canvas = molded.resized.shape[:2]
    own = fast.molded(image)
    rows = [_row("resized and padded", own, molded.pixels, "of 255", 1e-4)]
    if own.shape != molded.pixels.shape:
        return rows
    backbone = reference.backbone(molded.pixels)
    pyramid = reference.pyramid(backbone)
    found = fast.features(molded.pixels)
    rows += [stage_row(f"features {name}", found[name], each) for name, each in (backbone | pyramid).items()]
    logits, scores, offsets = reference.rpn(pyramid)
    for what, values, reference_values in zip(
        ("logits", "offsets"), fast.rpn(pyramid), (logits, offsets), strict=True
    ):
        rows.append(_row(f"RPN {what}", values, reference_values))
    anchors = normalised(reference.anchors(*canvas), *canvas).astype(np.float32)
    rows.append(_row("anchors", fast.anchors(pyramid) * max(canvas), anchors * max(canvas), "px", 1e-2))
    proposals = reference.proposals(scores[:, 1], offsets, anchors)
    actual = fast.proposals(pyramid)
    rows.append(matched_row(torch.from_numpy(actual), torch.from_numpy(proposals), 1e-4))
    pooled = reference.pooled(pyramid, proposals, 7)
    rows.append(_row("pooled regions", fast.pooled(pyramid, proposals, 7), pooled))
    logits, scores, moves = reference.classify(pooled)
    for what, values, reference_values in zip(
        ("logits", "offsets"), fast.classify(pooled), (logits, moves), strict=True
    ):
        rows.append(_row(f"class {what}", values, reference_values))
    window = normalised(np.array(molded.window, np.float32), *canvas)
    detections = reference.refined(proposals, scores, moves, window, _MIN_SCORE, 100)
    rows.append(_of_detections(fast.refined(proposals, logits, moves, window), detections))
    labels = detections[:, 4].astype(np.int64)
    masks = reference.masks(reference.pooled(pyramid, detections[:, :4], 14), labels)
    rows.append(
        _row("mask probabilities", fast.masks(pyramid, detections[:, :4], labels), masks, "absolute", 1e-3)
    )
    expected = reference.unmolded(detections, masks, window, *image.shape[:2])
    pasted = fast.pasted(detections, masks, *image.shape[:2])
    difference = [_differing_pixels(rle, mask) for rle, mask in zip(pasted, expected.masks, strict=True)]
    rows.append(Row("masks in the image", float(max(difference, default=0)), "px", 2.0, len(difference)))
    # Whether the last sample of a box that ends with the canvas lies behind it depends on the last bit of its start.
    low, high = expected.boxes[:, 2:] == image.shape[:2], np.array(molded.window[2:]) == canvas
    return rows + _final_rows(expected, fast.segmenter.segment([image])[0], model, (low & high).any(1))


def _row(stage: str, found: Floats, expected: Floats, *rest: object) -> Row:
    return stage_row(stage, torch.from_numpy(found), torch.from_numpy(expected), *rest)  # type: ignore[arg-type]


def _of_detections(found: Floats, expected: Floats) -> Row:
    if len(found) != len(expected):
        return Row("choice of instances", math.inf, "absolute", 1e-4, len(expected))
    return _row("choice of instances", found, expected, "absolute", 1e-4)


def _differing_pixels(rle: dict[str, Any], mask: NDArray[np.bool_]) -> int:
    return int((coco_mask.decode(rle) != mask).sum())


def _final_rows(
    expected: ReferenceInstances, found: Detections, model: Model, ambiguous: NDArray[np.bool_]
) -> list[Row]:
    """Compare the final instances as sets, since those of almost equal scores may swap; skip `ambiguous` masks."""
    labels = np.array(model.card.category_ids)[expected.labels]
    left = set(range(len(found)))
    rles = found.rles()
    score, pixels, matched, n_compared = 0.0, 0, 0, 0
    for index, (label, box) in enumerate(zip(labels, expected.boxes[:, _YX], strict=True)):
        candidates = [
            row for row in left if found.labels[row] == label and np.abs(found.boxes[row] - box).max() <= 1
        ]
        if not candidates:
            continue
        difference = {
            row: abs(float(found.scores[row]) - float(expected.scores[index])) for row in candidates
        }
        row = min(candidates, key=lambda each: difference[each])
        left.remove(row)
        matched += 1
        score = max(score, difference[row])
        if not ambiguous[index]:
            pixels, n_compared = (
                max(pixels, _differing_pixels(rles[row], expected.masks[index])),
                n_compared + 1,
            )
    total = max(len(labels), len(found))
    return [
        Row("instances, unmatched", (total - matched) / max(total, 1), "fraction", 0.05, total),
        Row("instances, scores", score, "absolute", 1e-2, matched),
        Row("instances, masks", float(pixels), "px", 20.0, n_compared),
    ]
