"""Build networks, and load and save models: one safetensors file each.

Every network is one of torchvision's classes: `.transform`, `.backbone`, `.rpn` and `.roi_heads`, or `.head`, are what
torchvision's documentation says. Of matterport's networks only these parts work; `forward_matterport` has the steps
between them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UsageError, plural
from ..types import Category
from .architectures.network_config import NetworkConfig
from .architectures.torchvision_networks import Detector
from .networks import NETWORKS
from .own.own_code import OwnNetwork
from .registry import ModelCard, ModelFile, is_own_file, read_model, resolve
from .weights.checkpoint_files import Checkpoint, read_checkpoint
from .weights.embedded_models import EmbeddedModel
from .weights.published_weights import NORM_EPS, PublishedModel, norm_eps_of

__all__ = ["Model", "build_network", "load_model", "save_model", "set_norm_eps", "tensors_of"]


def build_network(
    architecture: str,
    num_classes: int,
    min_size: int,
    max_size: int,
    config: NetworkConfig | None = None,
) -> Detector:
    """Build a network with random weights.

    Args:
        architecture: one of `networks.ARCHITECTURES`.
        num_classes: labels, the background (0) included.
        min_size: the length that the shorter side of an image is resized to, pixels, …
        max_size: … unless the longer side would then exceed this.
        config: of a network that has one, see `network_entry.Network.config`; None: its default.

    Raises:
        ValueError: there is no such architecture, or `max_size` does not fit it.
    """
    if architecture not in NETWORKS:
        raise ValueError(f"unknown architecture {architecture!r}; known are {', '.join(NETWORKS)}")
    return NETWORKS[architecture].build(num_classes, min_size, max_size, config)


def save_model(
    path: str | Path,
    network: Detector,
    architecture: str,
    categories: Sequence[Category],
    min_size: int,
    max_size: int,
    provenance: Mapping[str, object],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a model as one safetensors file: its tensors, and metadata from which it is rebuilt.

    Args:
        path: the file to write.
        network: built by `build_network` with these sizes.
        architecture: one of `networks.ARCHITECTURES`.
        categories: of the labels 1, 2, …, in their order.
        min_size: as passed to `build_network`.
        max_size: as passed to `build_network`.
        provenance: the origin of the weights; must be serializable as JSON.
        dtype: of the floating-point tensors in the file.
    """
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    metadata = {
        "format": "maskrcnn-ray",
        "version": "1",
        "architecture": architecture,
        "categories": json.dumps([{"id": category.id, "name": category.name} for category in categories]),
        "min_size": str(min_size),
        "max_size": str(max_size),
        "provenance": json.dumps(dict(provenance)),
    }
    if NETWORKS[architecture].config is not None:
        metadata["config"] = network.config.to_json()
    save_file(tensors, str(path), metadata=metadata)


# --- loading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """A network and its description."""

    module: Detector
    """A torchvision network, float32, on the CPU, in eval mode; nothing is folded or patched."""

    card: ModelCard

    def __repr__(self) -> str:
        """Return its name, network and number of categories."""
        return f"<Model {self.card.name!r}: {self.card.architecture}, {plural(len(self.categories), 'category')}>"

    @property
    def categories(self) -> tuple[Category, ...]:
        """The categories that it detects."""
        return self.card.categories

    @property
    def sha256(self) -> str:
        """The sha256 of the weights file, hexadecimal."""
        return self.card.sha256


def load_model(name: str, labels: str | None = None, *, expected_sha256: str | None = None) -> Model:
    """Load a model; no code in its file is executed.

    Args:
        name: `coco`, `coco-v1`, `scenes`, `nuclei`, or the path or URL of a weights file: one that `save_model` wrote,
            or a `.pth`, `.pt`, `.ckpt`, `.bin` or `.safetensors` file with the state dict of torchvision's
            `maskrcnn_resnet50_fpn`, `maskrcnn_resnet50_fpn_v2` or its like with ResNet-18, as such or in the
            dictionaries and under the prefixes of training scripts.
        labels: for files that do not name their categories: path or URL of a text file that names a category on each
            line, from label 1; a blank line or `N/A` marks an unused label.
        expected_sha256: of the weights file; a file with another one is refused.

    Raises:
        UsageError: there is no such model, or its file is not valid; the message says what to do.
        RunError: its store cannot be read at all.
    """
    source = resolve(name)
    if isinstance(source, OwnNetwork):
        raise UsageError(f"{name} is built by its factory: call that, with maskrcnn.SegmenterOptions()")
    if not isinstance(source, EmbeddedModel | PublishedModel | ModelFile):
        raise UsageError(f"{name} is not a network; use PlantedSegmenter")
    card, data = read_model(name, labels)
    if expected_sha256 is not None and card.sha256 != expected_sha256:
        raise UsageError(f"{name} has changed: its sha256 is {card.sha256}, not {expected_sha256}")
    network = build_network(
        card.architecture, len(card.category_ids), card.min_size, card.max_size, card.config
    )
    if is_own_file(source, data):
        _fill(name, network, load_safetensors(data))
        return Model(network.eval(), card)
    checkpoint = read_checkpoint(name, data)
    _fill(name, network, tensors_of(name, checkpoint, data))
    eps = norm_eps_of(card.architecture, checkpoint, card.sha256)
    if eps not in (None, NORM_EPS):  # an SSDLite is built with another one
        set_norm_eps(network, eps)
    return Model(network.eval(), card)


def set_norm_eps(network: nn.Module, eps: float) -> None:
    """Set the epsilon of all batch norms of a network."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = eps


def tensors_of(name: str, checkpoint: Checkpoint, data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their names in the network; of `torch.save`'s files they are views.

    Args:
        name: the file's name in messages.
        checkpoint: what `read_checkpoint` returned for the file.
        data: the file's bytes.

    Raises:
        UsageError: the file is damaged.
    """
    if checkpoint.file is None:
        stored = load_safetensors(data)
        return {name: stored[key] for name, key in checkpoint.names.items()}
    storages: dict[tuple[str, str], Tensor] = {}
    tensors = {}
    for key, saved in checkpoint.saved.items():
        place = saved.storage, saved.dtype
        try:
            if place not in storages:
                numbers = bytearray(checkpoint.file.storage(saved.storage))
                dtype = getattr(torch, saved.dtype)
                storages[place] = (
                    torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
                )
            tensors[key] = storages[place].as_strided(saved.shape, saved.strides, saved.offset)
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{name} is damaged: the tensor {key} does not fit its numbers") from error
    return tensors


def _fill(name: str, network: Detector, tensors: Mapping[str, Tensor]) -> None:
    """Load all tensors into the network, as float32."""
    tensors = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1].strip()
        raise UsageError(f"{name} does not fit its network: {last}") from error
