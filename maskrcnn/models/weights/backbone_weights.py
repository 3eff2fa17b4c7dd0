"""Which networks have ImageNet weights for their backbone, and whether these are there, without torch."""

from importlib.util import find_spec

from ...errors import UsageError
from ..network_entry import PackagedWeights
from ..networks import NETWORKS
from .published_weights import PublishedWeights, is_cached, read_published

__all__ = [
    "check_imagenet",
    "imagenet_weights_of",
    "missing_package",
    "needs_imagenet_download",
    "with_imagenet_weights",
]


def with_imagenet_weights() -> tuple[str, ...]:
    """Return the networks that `imagenet:ARCHITECTURE` can name."""
    return tuple(
        name
        for name, network in NETWORKS.items()
        if network.trainable and network.backbone_weights is not None
    )


def imagenet_weights_of(architecture: str) -> PublishedWeights | PackagedWeights:
    """Return the ImageNet weights of a network's backbone.

    Raises:
        UsageError: none fit it.
    """
    weights = NETWORKS[architecture].backbone_weights
    if weights is None:
        raise UsageError(
            f"no ImageNet weights fit the backbone of {architecture}: start from another model, or name one of "
            f"{', '.join(with_imagenet_weights())} after `imagenet:`"
        )
    return weights


def needs_imagenet_download(architecture: str) -> bool:
    """Return whether the ImageNet weights of a network must first be downloaded. Raises UsageError if none fit it."""
    weights = imagenet_weights_of(architecture)
    return isinstance(weights, PublishedWeights) and not is_cached(weights)


def check_imagenet(architecture: str) -> None:
    """Look whether the ImageNet weights of a network are there; download them if they are not in torch's cache.

    Raises:
        UsageError: none fit it, or they are missing or damaged; the message says what to do.
    """
    weights = imagenet_weights_of(architecture)
    if isinstance(weights, PublishedWeights):
        read_published(weights, f"imagenet:{architecture}")
    elif find_spec(weights.package) is None:
        raise missing_package(architecture, weights)


def missing_package(architecture: str, weights: PackagedWeights) -> UsageError:
    """Return the error for weights whose package is not installed."""
    return UsageError(f"the ImageNet weights of {architecture} are missing: {weights.install}")
