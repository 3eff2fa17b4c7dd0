"""Checkpoints of other programs, under their keys, with random weights that detect something."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn.models.architectures.rcnn_config import RCNNConfig
from maskrcnn.models.conversion.keys_detectron2 import config_of_zoo, detectron2_names
from maskrcnn.models.conversion.keys_mmdetection import mmdetection_names
from maskrcnn.models.conversion.parity import Reference, generated_images
from maskrcnn.models.conversion.reference_detectron2 import ReferenceDetectron2, padded
from maskrcnn.models.conversion.reference_mmdetection import ReferenceMMDetection

SIZES = (96, 160)
"""The sizes that images are resized to in tests: small, so that the reference implementation takes seconds."""


def detectron2_tensors(
    classes: int = 4,
    seed: int = 0,
    architecture: str = "maskrcnn_resnet50_fpn_detectron2",
    config: RCNNConfig | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of a network of detectron2; scores differ between proposals and are high somewhere."""
    torch.manual_seed(seed)
    config = config or config_of_zoo(architecture)
    names = detectron2_names(classes + 1, architecture, config)
    tensors = {name: _filled(name, shape) for name, (_, shape) in names.items()}
    features, proposals, size = _inputs_of_heads(reference := ReferenceDetectron2(tensors, *SIZES, config))
    if "roi_heads.box_predictor.cls_score.weight" in tensors:
        probabilities, _ = reference.heads(features, proposals, size)
        return _apart(tensors, probabilities.roll(-1, 1), "roi_heads.box_predictor.cls_score")
    for stage in range(3):
        probabilities, _ = reference._box_head(features, proposals, f".{stage}")
        tensors = _apart(tensors, probabilities, f"roi_heads.box_predictor.{stage}.cls_score")
    return tensors


def mmdetection_tensors(
    classes: int = 4,
    seed: int = 0,
    architecture: str = "maskrcnn_resnet50_fpn_mmdetection",
    config: RCNNConfig | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of a network of MMDetection; scores differ between proposals and are high somewhere."""
    torch.manual_seed(seed)
    config = config or config_of_zoo(architecture)
    names = mmdetection_names(classes + 1, architecture, config)
    tensors = {name: _filled(name, shape) for name, (_, shape) in names.items()}
    features, proposals, size = _inputs_of_heads(reference := ReferenceMMDetection(tensors, *SIZES, config))
    probabilities, _ = reference.heads(features, proposals, size)
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for name in names
        if name.endswith("running_var")
    }
    return _apart(tensors, probabilities.roll(-1, 1), "roi_head.bbox_head.fc_cls") | counters


def _inputs_of_heads(reference: Reference) -> tuple[dict[str, Tensor], Tensor, tuple[int, int]]:
    """Return the features of an image, 60 proposals in it, and its size."""
    prepared = reference.prepared(generated_images()[0])
    size = (prepared.shape[1], prepared.shape[2])
    features = reference.features(padded(prepared))
    return features, reference.proposals(features, prepared, size)[:60], size


def _apart(tensors: dict[str, Tensor], probabilities: Tensor, scores: str) -> dict[str, Tensor]:
    """Return the tensors with those of the layer that returns scores such that scores are apart.

    Args:
        tensors: of the network.
        probabilities: (N, labels) of proposals, the background last.
        scores: the name of the layer.
    """
    logits = probabilities.log()
    factor = 3 / float(logits.std(0).mean())
    tensors[f"{scores}.bias"] = factor * (tensors[f"{scores}.bias"] - logits.mean(0))
    tensors[f"{scores}.weight"] = factor * tensors[f"{scores}.weight"]
    return tensors


def _filled(name: str, shape: tuple[int, ...]) -> Tensor:
    part = name.rpartition(".")[2]
    if part in ("running_var", "running_mean", "bias"):
        return torch.rand(shape) + 0.5 if part == "running_var" else 0.1 * torch.randn(shape)
    if ".norm." in name or ".bn" in name or ".downsample.1." in name:
        return torch.rand(shape) * 0.4 + 0.2
    gain = (
        0.02
        if "stem" in name or name == "backbone.conv1.weight"
        else 0.3
        if "deltas" in name or "bbox_pred" in name or "_reg" in name
        else 1.4
    )
    fan_in = int(np.prod(shape[1:])) if "deconv" not in name and "upsample" not in name else shape[0]
    return torch.randn(shape) * gain / fan_in**0.5


def zoo_pickle(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the content of a `.pkl` of the model zoo."""
    arrays: dict[str, NDArray[np.float32]] = {name: tensor.numpy() for name, tensor in tensors.items()}
    return {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": False}
