"""Results of matterport's own code under TensorFlow, for generated weights and images: tests/data/matterport.

`faulty_stages` compares the fast path with them; each stage gets as input the stored results of the one before.
"""

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn.models.architectures.matterport_config import MatterportConfig
from maskrcnn.models.conversion.key_mapping import KEY_MAPPINGS
from maskrcnn.models.conversion.moves import Origin, moved
from maskrcnn.models.conversion.parity_matterport import FastStages
from maskrcnn.models.conversion.reference_matterport import normalised
from maskrcnn.models.model import Model, build_network
from maskrcnn.models.registry import COCO_CATEGORIES, NO_CATEGORY, ModelCard
from maskrcnn.types import Detections, Pixels

HERE = Path(__file__).parent / "data" / "matterport"
SIZES = {"resnet50": (320, 384), "resnet101": (800, 1024)}


@functools.cache
def script(name: str) -> ModuleType:
    """Return one of the oracle's own scripts."""
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors_of(backbone: str) -> dict[str, Tensor]:
    """Return the generated tensors, as a reader of the `.h5` returns them."""
    return {
        f"{layer}/{base}": torch.from_numpy(array)
        for _, layer, base, array in script("make_weights").generate(backbone)
    }


def model_of(
    backbone: str,
    tensors: dict[str, Tensor],
    config: MatterportConfig | None = None,
    sizes: tuple[int, int] | None = None,
) -> Model:
    """Return the network of these tensors."""
    sizes = sizes or SIZES[backbone]
    architecture, moves = KEY_MAPPINGS["matterport"]("oracle.h5", tensors, Origin())
    network = build_network(architecture, 81, *sizes, config)
    network.load_state_dict(moved("oracle.h5", tensors, moves)[0])
    ids = (NO_CATEGORY, *(category.id for category in COCO_CATEGORIES))
    card = ModelCard("oracle", None, "", architecture, COCO_CATEGORIES, ids, *sizes, None, config)
    return Model(network.eval().requires_grad_(False), card)


@dataclass(frozen=True)
class Tolerances:
    """The largest differences that rounding can cause, from section 6 of the oracle's README."""

    features: float
    logits: float
    proposals: float
    detections: float
    masks: float
    pixels: int
    swapped: float = 0.0
    """Instances whose scores differ by less than this may swap."""


TOLERANCES = {
    "resnet50": Tolerances(2e-4, 5e-4, 1e-3, 1e-4, 2e-3, 2),
    "resnet101": Tolerances(1e-3, 2e-3, 1e-3, 1e-3, 2e-2, 10, 2e-4),
}


class Stored:
    """The stored numbers of one image."""

    def __init__(self, backbone: str, image: str) -> None:
        names = {"resnet50": HERE / "expected_r50_384.npz", "resnet101": HERE / "expected_r101_1024.npz"}
        self._file = np.load(names[backbone])
        self._image = image
        self.pixels: Pixels = script("make_images").make_image(image)

    def __getitem__(self, key: str) -> NDArray[Any]:
        return np.asarray(self._file[f"{self._image}/{key}"])

    def sampled(self, key: str, found: NDArray[Any]) -> float:
        """Return the largest difference of a tensor's sampled values."""
        return far(found[tuple(self[f"{key}_idx"].T)], self[f"{key}_val"])

    def masks(self) -> NDArray[np.bool_]:
        """Return the first ten masks, pasted."""
        height, width = self["image_shape"][:2]
        count = min(10, len(self["final_rois"]))
        bits = np.unpackbits(self["final_masks_first10_packed"])[: count * height * width]
        return bits.reshape(count, height, width).astype(np.bool_)

    def detections(self) -> NDArray[np.float32]:
        """Return (N, 6) without the rows of zeros."""
        rows = self["det_conf070"]
        return rows[rows[:, 4] > 0]


def images_of(backbone: str) -> list[str]:
    """Return the names of the images of a network."""
    config = {
        "resnet50": ["a_152x220", "b_384x384", "c_400x300", "d_200x210"],
        "resnet101": ["e_480x640", "d_200x210"],
    }
    return config[backbone]


def far(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference, infinity where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0))


def faulty_stages(fast: FastStages, stored: Stored, allowed: Tolerances) -> Iterator[tuple[str, float]]:
    """Yield each stage whose numbers differ from the stored ones, and its difference."""
    for stage, difference, limit in differences(fast, stored, allowed):
        if not difference <= limit:
            yield stage, difference


def differences(fast: FastStages, stored: Stored, allowed: Tolerances) -> Iterator[tuple[str, float, float]]:
    """Yield stage, largest difference, and the limit of rounding."""
    mold = script("preprocess_reference").mold
    molded = mold(stored["resized_u8"])
    yield "molded", far(fast.molded(stored.pixels), molded), 0.0
    maps = fast.features(molded)
    for name, feature in maps.items():
        yield name, stored.sampled(name, feature[0].permute(1, 2, 0).numpy()), allowed.features
    chosen = stored["anchor_idx"]
    logits, offsets = fast.rpn(maps)
    yield "rpn_logits", far(logits[chosen], stored["rpn_logits"]), allowed.features
    yield "rpn_bbox", far(offsets[chosen], stored["rpn_bbox"]), allowed.features
    anchors = fast.anchors(maps)
    yield "anchor_count", abs(len(anchors) - int(stored["anchor_count"])), 0
    yield "anchors_norm", far(anchors[chosen], stored["anchors_norm"]), 1e-6
    rois, found = stored["rois"], fast.proposals(maps)
    yield "rois", max(np.abs(rois - row).max(1).min() for row in found), allowed.proposals
    yield "rois", max(np.abs(found - row).max(1).min() for row in rois), allowed.proposals
    pooled = fast.pooled(maps, rois, 7)
    yield "roi_feat", stored.sampled("roi_feat", pooled), allowed.features
    logits, offsets = fast.classify(pooled)
    yield "cls_logits", far(logits[:40], stored["cls_logits_first40"]), allowed.logits
    yield "bbox", far(offsets[:40].reshape(40, -1), stored["bbox_first40"].reshape(40, -1)), allowed.logits
    sure = stored["cls_maxprob"] - stored["cls_prob_second"] > 1e-3
    yield "cls_argmax", float((logits.argmax(1) != stored["cls_argmax"])[sure].sum()), 0
    height, width = stored["resized_u8"].shape[:2]
    window = normalised(stored["window"].astype(np.float32), height, width)
    detections = stored.detections()
    yield "det_conf070", far(fast.refined(rois, logits, offsets, window), detections), allowed.detections
    boxes, labels = detections[:, :4], detections[:, 4].astype(np.int64)
    yield (
        "mask_feat",
        stored.sampled("mask_feat", fast.pooled(maps, stored["det_conf070"][:, :4], 14)),
        allowed.features,
    )
    masks, squares = fast.masks(maps, boxes, labels), stored["det_masks28_first24"]
    count = min(len(squares), len(labels))
    yield "det_masks28", far(masks[:count], squares[:count]), allowed.masks
    yield from _final(fast, stored, allowed)


def _final(fast: FastStages, stored: Stored, allowed: Tolerances) -> Iterator[tuple[str, float, float]]:
    """Compare the results that a run would store, masks by their run lengths."""
    from pycocotools import mask as coco_mask

    (found,) = fast.segmenter.segment([stored.pixels])
    ids = np.array([0, *(category.id for category in COCO_CATEGORIES)])[stored["final_class_ids"]]
    rois = stored["final_rois"][:, [1, 0, 3, 2]]
    order = _order(found, ids, rois, stored["final_scores"], allowed.swapped)
    yield "final_class_ids", far(found.labels[order], ids), 0
    yield "final_rois", far(found.boxes[order], rois), 0
    yield "final_scores", far(found.scores[order], stored["final_scores"]), allowed.detections
    yield "final_mask_area", far(found.areas[order], stored["final_mask_area"]), allowed.pixels
    masks = stored.masks()
    decoded = [
        coco_mask.decode(rle).astype(np.bool_) for rle in [found.rles()[row] for row in order[: len(masks)]]
    ]
    away = [int((mine != theirs).sum()) for mine, theirs in zip(decoded, masks, strict=True)]
    yield "final_masks", max(away, default=0), allowed.pixels


def _order(
    found: Detections, labels: NDArray[Any], rois: NDArray[Any], scores: NDArray[Any], swapped: float
) -> list[int]:
    """Return the rows of what was found in the reference's order, where only detections of almost equal scores swapped.

    In one image of the deeper network two scores are 1.3e-4 apart; with float64 throughout, they swap too.
    """
    order = list(range(len(found)))
    for row in range(min(len(order), len(labels)) - 1):
        here, following = order[row], order[row + 1]
        same = found.labels[here] == labels[row] and np.array_equal(found.boxes[here], rois[row])
        if not same and scores[row] - scores[row + 1] < swapped:
            order[row], order[row + 1] = following, here
    return order
