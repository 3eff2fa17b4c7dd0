"""Weight initialization: build a network with a head for the dataset's classes, and fill it from a model (torch).

Each tensor is copied; or copied in part, by rows (those of the background and of classes of the same name); or new.
The notes of a `Start` list which.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.ssd import SSD

from ..errors import UsageError, plural
from ..models.architectures.torchvision_networks import Detector
from ..models.model import Model, build_network, load_model
from ..models.networks import NETWORKS
from ..models.registry import GENERATED, ModelCard
from ..models.weights.imagenet import load_imagenet
from ..types import Category
from .config import STAGES
from .network_choice import check_architecture, check_trainable, sizes_of


@dataclass(frozen=True, slots=True)
class Start:
    """A network to train, and the origin of its weights."""

    network: Detector
    architecture: str
    min_size: int
    max_size: int
    notes: tuple[str, ...]
    """Which weights were copied and which are new, one line each."""

    @property
    def has_masks(self) -> bool:
        """Whether the network detects masks; else boxes only."""
        return NETWORKS[self.architecture].has_masks


def start(
    model: str, categories: Sequence[Category], min_size: int | None = None, max_size: int | None = None
) -> Start:
    """Build the network to train, and initialize its weights.

    Args:
        model: `imagenet:ARCHITECTURE` (ImageNet weights in the backbone only), `random:ARCHITECTURE`, or a model as
            `load_model` takes it.
        categories: the categories of the dataset; label 1 is the first.
        min_size: length to which the shorter side of an image is resized, pixels; None: that of the model or network.
        max_size: maximum length of the longer side after resizing, pixels; None: that of the model, or five thirds of
            `min_size`.

    Raises:
        UsageError: there is no such model or architecture, it cannot be trained, its weights are not available, or the
            sizes are out of range.
    """
    source, _, architecture = model.partition(":")
    if source in GENERATED:
        check_architecture(source, architecture)
        sizes = sizes_of(architecture, min_size, max_size)
        network = build_network(architecture, len(categories) + 1, *sizes)
        if source == "imagenet":
            load_imagenet(network, architecture)
        weights = "ImageNet weights" if source == "imagenet" else "random weights"
        notes = (f"{architecture}: the backbone has {weights}; all other layers are new, for "
                 f"{plural(len(categories), 'class', 'classes')}",)  # fmt: skip
        return Start(network, architecture, *sizes, notes)
    loaded = load_model(model)
    check_trainable(model, loaded.card.architecture)
    known = loaded.card.min_size, loaded.card.max_size
    sizes = sizes_of(loaded.card.architecture, min_size, max_size, known)
    network = build_network(loaded.card.architecture, len(categories) + 1, *sizes, loaded.card.config)
    return Start(network, loaded.card.architecture, *sizes, _take_over(network, loaded, categories))


def _take_over(network: Detector, loaded: Model, categories: Sequence[Category]) -> tuple[str, ...]:
    """Fill a network from a model with other classes; return notes on which weights were copied."""
    ours, theirs = network.state_dict(), _with_default_eps(loaded.module, network)
    rows = _shared_rows(loaded.card, categories)
    of_classes = _of_classes(loaded.card, len(categories) + 1)
    one_stage = not isinstance(network, FasterRCNN)
    state, partial = dict(theirs), []
    for name, tensor in ours.items():
        if name not in of_classes:
            if name not in theirs or theirs[name].shape != tensor.shape:
                raise UsageError(
                    f"{loaded.card.name}: the tensor {name} does not fit {loaded.card.architecture}; "
                    "name another --model"
                )
            continue
        # The rows of new classes begin with small weights, so that the first steps do not spoil the copied weights. Of
        # a detector of one stage they begin as torchvision initializes them, since focal loss needs its biases.
        mixed = tensor.clone() if one_stage else torch.randn_like(tensor) * (0.01 if tensor.ndim > 1 else 0.0)
        to, of = (
            _by_label(rows_of, labels, one_stage=one_stage)
            for rows_of, labels in (
                (mixed, len(categories) + 1),
                (theirs[name], len(loaded.card.category_ids)),
            )
        )
        for label, known in rows.items():
            to[:, label] = of[:, known]
        state[name] = mixed
        partial.append(name)
    network.load_state_dict(state)
    shared = [categories[label - 1].name for label in rows if label]
    named = f" ({', '.join(shared[:10])})" if shared else ""
    return (
        f"{loaded.card.name} ({loaded.card.architecture}) has {plural(len(loaded.categories), 'class', 'classes')}, "
        f"the dataset {len(categories)}, {len(shared)} of the same name{named}",
        f"{plural(len(ours) - len(partial), 'tensor')} copied unchanged; in the {plural(len(partial), 'tensor')} of "
        f"the head, the rows of the background and of {plural(len(shared), 'class', 'classes')} copied, the others "
        f"new: {', '.join(partial)}",
    )


def _of_classes(card: ModelCard, labels: int) -> set[str]:
    """Return the tensors of a network whose rows belong to labels: their number of rows depends on that of labels."""
    shapes, others = (NETWORKS[card.architecture].shapes_with(n, card.config) for n in (labels, labels + 1))
    return {name for name, shape in shapes.items() if others[name] != shape}


def _by_label(tensor: Tensor, labels: int, *, one_stage: bool) -> Tensor:
    """Return a view of rows that belong to labels, (groups, labels, rows of a label, …).

    A detector of one stage has the rows of all labels for each of its anchors.
    """
    groups = len(tensor) // labels if one_stage else 1
    return tensor.view(groups, labels, -1, *tensor.shape[1:])


def _shared_rows(card: ModelCard, categories: Sequence[Category]) -> dict[int, int]:
    """Return the model's label by the dataset's label, for the background and each class name that both have."""
    id_of = {category.name: category.id for category in card.categories}
    label_of = {number: label for label, number in enumerate(card.category_ids) if label}
    known = {label: label_of[id_of[category.name]]
             for label, category in enumerate(categories, start=1) if category.name in id_of}  # fmt: skip
    return {0: 0, **known}


def _with_default_eps(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network, with its norms rescaled where the target's batch norms have another epsilon."""
    state = copy.copy(source.state_dict())
    layers = dict(target.named_modules())
    for name, layer in source.named_modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.eps != layers[name].eps:
            # In the variance itself the difference would be lost where it is much smaller than the epsilon.
            variance, weight = state[f"{name}.running_var"].double(), state[f"{name}.weight"]
            factor = ((variance + layers[name].eps) / (variance + layer.eps)).sqrt()
            state[f"{name}.weight"] = (weight.double() * factor).to(weight.dtype)
    return state


def freeze(network: Detector, stages: int) -> int:
    """Freeze the first stages of the backbone and all batch norms; return the number of trainable weights.

    Batches are too small to estimate the statistics of batch norms, and the estimates would depend on the distribution
    of images over workers. After each call of the network's `train`, call `freeze_batch_norm_statistics`. Group norms
    are trained.

    The `STAGES` stages of a backbone, of which each but the first begins where the resolution is halved:

    - ResNet: the first convolution, and its four layers.
    - EfficientNet-Lite0, MobileNetV3: the blocks up to each block of stride 2.
    - VGG-16: the convolutions up to each pooling, conv1 to conv5. Those that SSD adds, fc6 and later, are not frozen.

    Raises:
        UsageError: `stages` is not in 0 to `STAGES`.
    """
    if not 0 <= stages <= STAGES:
        raise UsageError(
            f"--freeze is the number of frozen stages of the backbone: give 0 to {STAGES}, not {stages}"
        )
    for module in _stages(network)[:stages]:
        for part in module:
            part.requires_grad_(False)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.requires_grad_(False)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def freeze_batch_norm_statistics(network: nn.Module) -> None:
    """Make batch norms use their stored statistics in training too: set them to evaluation mode."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


@contextmanager
def batch_norm_statistics_taken(network: nn.Module) -> Iterator[None]:
    """Within this, the batch norms of a network take their statistics from what passes through them.

    Those of a network with random weights do not fit them: with them, the maps of a deep network vanish or grow, and a
    MobileNet does not learn at all.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all passes
        norm.train()
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _stages(network: Detector) -> list[list[nn.Module]]:
    """Return the modules of each of the `STAGES` stages of the backbone."""
    if isinstance(network, SSD):
        return _stages_of_ssd(network.backbone)
    body = network.backbone.body
    layers = dict(body.named_children())
    if "stem" in layers:
        blocks = list(body.blocks)
        stages = _divided(blocks, (0, 1, 3, 5, 11))
        return [[body.stem, *stages[0]], *stages[1:]]
    if "conv1" not in layers:
        return _divided(list(layers.values()), _MOBILENET)
    first = [body.conv1, body.bn1]
    return [first, *([getattr(body, f"layer{i}")] for i in range(1, STAGES))]


_MOBILENET: Final = (0, 2, 4, 7, 13)
"""The first block of each stage of MobileNetV3-Large."""


def _stages_of_ssd(backbone: Any) -> list[list[nn.Module]]:
    if isinstance(
        backbone.features[0], nn.Sequential
    ):  # SSDLite: divided within the first block of the last stage
        return _divided([*backbone.features[0], *backbone.features[1]], _MOBILENET)
    layers = [*backbone.features, *backbone.extra[0][:-1]]
    poolings = [at for at, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    return _divided(layers, (0, *poolings))


def _divided(blocks: list[nn.Module], begins: Sequence[int]) -> list[list[nn.Module]]:
    return [blocks[begin:end] for begin, end in itertools.pairwise((*begins, len(blocks)))]


def backbone_parameters(network: Detector) -> list[nn.Parameter]:
    """Return the trainable weights of the backbone: of its stages, see `freeze`."""
    parts = [part for stage in _stages(network) for part in stage]
    return [p for part in parts for p in part.parameters() if p.requires_grad]
