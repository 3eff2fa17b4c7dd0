"""Weight initialization: build a network with a head for the dataset's classes, and fill it from a model (torch).

Each tensor is copied; or copied in part, by rows (those of the background and of classes of the same name); or new.
The notes of a `Start` list which.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from ..errors import UsageError, plural
from ..models.model import Model, build_network, load_model
from ..models.networks import NETWORKS
from ..models.registry import GENERATED, ModelCard
from ..models.weights.imagenet import load_imagenet
from ..types import Category
from .config import STAGES

HEAD: Final = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred",
               "roi_heads.mask_predictor.mask_fcn_logits")  # fmt: skip
"""The layers whose rows belong to classes: one row per class, or four."""


@dataclass(frozen=True, slots=True)
class Start:
    """A network to train, and the origin of its weights."""

    network: MaskRCNN
    architecture: str
    min_size: int
    max_size: int
    notes: tuple[str, ...]
    """Which weights were copied and which are new, one line each."""


def start(
    model: str, categories: Sequence[Category], min_size: int | None = None, max_size: int | None = None
) -> Start:
    """Build the network to train, and initialize its weights.

    Args:
        model: `imagenet:ARCHITECTURE` (ImageNet weights in the backbone only), `random:ARCHITECTURE`, or a model as
            `load_model` takes it.
        categories: the categories of the dataset; label 1 is the first.
        min_size: length to which the shorter side of an image is resized, pixels; None: that of the model, or 800.
        max_size: maximum length of the longer side after resizing, pixels; None: that of the model, or five thirds of
            `min_size`.

    Raises:
        UsageError: there is no such model or architecture, it cannot be trained, its weights are not available, or the
            sizes are out of range.
    """
    source, _, architecture = model.partition(":")
    if source in GENERATED:
        if architecture not in NETWORKS:
            raise UsageError(f"--model {source}:…: name one of {', '.join(NETWORKS)} after the colon")
        _check_trainable(model, architecture)
        sizes = _sizes(min_size, max_size, 800, 1333)
        network = build_network(architecture, len(categories) + 1, *sizes)
        if source == "imagenet":
            load_imagenet(network, architecture)
        weights = "ImageNet weights" if source == "imagenet" else "random weights"
        notes = (f"{architecture}: the backbone has {weights}; pyramid, RPN and heads are new, for "
                 f"{plural(len(categories), 'class', 'classes')}",)  # fmt: skip
        return Start(network, architecture, *sizes, notes)
    loaded = load_model(model)
    _check_trainable(model, loaded.card.architecture)
    sizes = _sizes(min_size, max_size, loaded.card.min_size, loaded.card.max_size)
    network = build_network(loaded.card.architecture, len(categories) + 1, *sizes, loaded.card.config)
    return Start(network, loaded.card.architecture, *sizes, _take_over(network, loaded, categories))


def _check_trainable(model: str, architecture: str) -> None:
    """Raise UsageError for an architecture that cannot be trained."""
    if not NETWORKS[architecture].trainable:
        raise UsageError(
            f"--model {model}: a {architecture} cannot be trained; start from "
            "imagenet:maskrcnn_resnet50_fpn, coco, or a converted detectron2 model"
        )


def _sizes(min_size: int | None, max_size: int | None, known_min: int, known_max: int) -> tuple[int, int]:
    if min_size is None:
        min_size, max_size = known_min, max_size or known_max
    sizes = min_size, max_size or max(min_size, round(min_size * 5 / 3))
    if not 32 <= sizes[0] <= sizes[1]:
        raise UsageError(
            f"--min-size must be at least 32 and --max-size at least --min-size, not {sizes[0]} and {sizes[1]}"
        )
    return sizes


def _take_over(network: MaskRCNN, loaded: Model, categories: Sequence[Category]) -> tuple[str, ...]:
    """Fill a network from a model with other classes; return notes on which weights were copied."""
    ours, theirs = network.state_dict(), _with_default_eps(loaded.module, network)
    rows = _shared_rows(loaded.card, categories)
    state, partial = dict(theirs), []
    for name, tensor in ours.items():
        layer = name.rpartition(".")[0]
        if layer not in HEAD:
            if name not in theirs or theirs[name].shape != tensor.shape:
                raise UsageError(
                    f"{loaded.card.name}: the tensor {name} does not fit {loaded.card.architecture}; "
                    "name another --model"
                )
            continue
        each = tensor.shape[0] // (len(categories) + 1)
        # The rows of new classes begin with small weights, so that the first steps do not spoil the copied weights.
        mixed = torch.randn_like(tensor) * (0.01 if tensor.ndim > 1 else 0.0)
        for label, known in rows.items():
            mixed[label * each : (label + 1) * each] = theirs[name][known * each : (known + 1) * each]
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


def freeze(network: MaskRCNN, stages: int) -> int:
    """Freeze the first stages of the backbone and all batch norms; return the number of trainable weights.

    Batches are too small to estimate the statistics of batch norms, and the estimates would depend on the distribution
    of images over workers. After each call of `MaskRCNN.train`, call `freeze_batch_norm_statistics`.

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


def _stages(network: MaskRCNN) -> list[list[nn.Module]]:
    """Return the modules of each of the `STAGES` stages of the backbone."""
    body = network.backbone.body
    if "stem" in dict(body.named_children()):
        blocks = list(body.blocks)
        ends = (0, 1, 3, 5, 11, len(blocks))
        stages = [blocks[begin:end] for begin, end in itertools.pairwise(ends)]
        return [[body.stem, *stages[0]], *stages[1:]]
    first = [body.conv1, body.bn1]
    return [first, *([getattr(body, f"layer{i}")] for i in range(1, STAGES))]


def backbone_parameters(network: MaskRCNN) -> list[nn.Parameter]:
    """Return the trainable weights of the backbone."""
    return [p for p in network.backbone.body.parameters() if p.requires_grad]


def finite(tensors: dict[str, Tensor]) -> bool:
    """Return whether no tensor has a value that is NaN or infinite."""
    return all(
        bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()
    )
