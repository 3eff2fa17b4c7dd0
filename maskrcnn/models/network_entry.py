"""What is known of a network before torch is imported: the type of the entries of `networks.NETWORKS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .architectures.network_config import NetworkConfig
from .architectures.network_shapes import Shape
from .architectures.rcnn_config import RCNNConfig
from .weights.published_weights import PublishedWeights

if TYPE_CHECKING:
    from .architectures.torchvision_networks import Detector
    from .forward import Forward
    from .forward_one_stage import OneStageForward

__all__ = ["ClassScores", "Network", "PackagedWeights", "Resize"]


@dataclass(frozen=True, slots=True)
class Resize:
    """How a network brings an image to its size, as far as it is decided before the network is built."""

    min_size: int = 800
    """The default for the shorter side, pixels, …"""
    max_size: int = 1333
    """… unless the longer side would then exceed this."""
    multiple: int = 1
    """`max_size` must be a multiple of this."""
    fixed: bool = False
    """Whether every image becomes a square of `max_size`, whatever its shape; the size cannot be changed."""


@dataclass(frozen=True, slots=True)
class ClassScores:
    """The tensor that shows the number of labels of a network."""

    tensor: str = "roi_heads.box_predictor.cls_score.weight"
    anchors: int = 1
    """Its first dimension is the number of labels, the background included, times this."""


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
    """`module:function` in this package; called with `arguments`, labels, min_size and max_size, and with the
    configuration where the network has one."""
    shapes: Callable[..., dict[str, Shape]]
    """The tensors by name, given the number of labels, the background included."""
    arguments: tuple[Any, ...] = ()
    """The builder's first arguments."""
    resize: Resize = Resize()
    class_scores: ClassScores = ClassScores()
    forward: str = "forward:Forward"
    """`module:class` in this package that runs it."""
    has_masks: bool = True
    """Whether it detects masks; else boxes only."""
    from_state_dict: bool = False
    """Whether files with the bare state dict of torchvision's network are read."""
    trainable: bool = True
    """Whether its losses are implemented here."""
    backbone_weights: PublishedWeights | PackagedWeights | None = None
    """ImageNet weights of its backbone; None: no published weights fit it."""
    config: NetworkConfig | None = None
    """The default of the configuration that its file holds; None: it has none."""
    detectron2: Mapping[str, tuple[Any, ...]] | None = None
    """The values that detectron2's configuration may have at some keys, where they are not those of a Mask R-CNN with
    FPN; none: any value, without effect. None: it is not a network of detectron2."""

    def build(self, labels: int, min_size: int, max_size: int, config: NetworkConfig | None) -> "Detector":
        """Build it with random weights; imports torch.

        Args:
            labels: the background (0) included.
            min_size: the shorter side of an image after the resize, pixels.
            max_size: the limit for its longer side, pixels.
            config: of a network that has one; None: the default. Other networks ignore it.
        """
        build = _imported(self.builder)
        settings = () if self.config is None else (config or self.config,)
        network: Detector = build(*self.arguments, labels, min_size, max_size, *settings)
        return network

    def shapes_with(self, labels: int, config: NetworkConfig | None = None) -> dict[str, Shape]:
        """Return the tensors by name, given the number of labels and the configuration; None: the default."""
        config = config or self.config
        if isinstance(config, RCNNConfig):
            return self.shapes(labels, anchors=config.anchors)
        return self.shapes(labels)

    def labels_of(self, shapes: Mapping[str, Shape]) -> int:
        """Return the number of labels, the background included, that tensors show; 0 if they do not."""
        of_classes = shapes.get(self.class_scores.tensor, ())
        return of_classes[0] // self.class_scores.anchors if of_classes else 0

    def forward_class(self) -> "type[Forward | OneStageForward]":
        """Return the class that runs it; imports torch."""
        found: type[Forward | OneStageForward] = _imported(self.forward)
        return found


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(f".{module}", __package__), attribute)
