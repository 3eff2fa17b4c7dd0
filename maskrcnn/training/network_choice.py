"""Which networks can be trained, and at which size: checked before anything is started for a training.

This module does not import torch.
"""

from ..errors import UsageError
from ..models.networks import NETWORKS, TRAINABLE
from ..models.weights.backbone_weights import with_imagenet_weights
from ..models.weights.category_names import near
from ..models.weights.published_weights import PUBLISHED
from .config import DEFAULT_CROP

__all__ = ["check_architecture", "check_trainable", "crop_of", "sizes_of"]


def check_architecture(source: str, architecture: str) -> None:
    """Check the name of a network that a training begins without a model's weights.

    Args:
        source: `imagenet` or `random`.
        architecture: what follows the colon of `--model`.

    Raises:
        UsageError: there is no such network, it cannot be trained, or no ImageNet weights fit it.
    """
    names = with_imagenet_weights() if source == "imagenet" else TRAINABLE
    if architecture in names:
        return
    # Of what is not a name, which may be a URL with a secret, nothing is repeated.
    model = f"--model {source}:{architecture if architecture.isidentifier() else '…'}"
    if architecture in TRAINABLE:
        instead = f"start from --model {architecture}, or name" if architecture in PUBLISHED else "name"
        why = f"no ImageNet weights fit the backbone of this network: {instead}"
    elif architecture in NETWORKS:
        why = "this network runs here, but cannot be trained: name"
    else:
        why = f"there is no such network{near(architecture, names)} Name"
    raise UsageError(f"{model}: {why} one of {', '.join(names)} after the colon")


def check_trainable(model: str, architecture: str) -> None:
    """Raise UsageError if the network of a model cannot be trained.

    Args:
        model: as given with `--model`.
        architecture: of that model.
    """
    if architecture not in TRAINABLE:
        what = f"{architecture} runs here, but" if architecture in NETWORKS else "it"
        raise UsageError(
            f"--model {model}: {what} cannot be trained: start from coco, imagenet:maskrcnn_resnet50_fpn, or a model "
            f"of one of the networks that can be: {', '.join(TRAINABLE)}"
        )


def sizes_of(
    architecture: str, min_size: int | None, max_size: int | None, known: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return to which size a network resizes images, as `build_network` takes it.

    Args:
        architecture: the network's.
        min_size: `--min-size`, or None.
        max_size: `--max-size`, or None.
        known: the sizes of the model that training starts from; None: those of the network.

    Raises:
        UsageError: the sizes are out of range, or the network has its own.
    """
    resize = NETWORKS[architecture].resize
    if resize.fixed:
        if min_size or max_size:
            raise UsageError(
                f"{architecture} resizes every image to {resize.max_size} x {resize.max_size} pixels: leave out "
                f"{'--min-size' if min_size else '--max-size'}"
            )
        return resize.min_size, resize.max_size
    known_min, known_max = known or (resize.min_size, resize.max_size)
    if min_size is None:
        min_size, max_size = known_min, max_size or known_max
    sizes = min_size, max_size or max(min_size, round(min_size * 5 / 3))
    if not 32 <= sizes[0] <= sizes[1]:
        raise UsageError(
            f"--min-size must be at least 32 and --max-size at least --min-size, not {sizes[0]} and {sizes[1]}"
        )
    return sizes


def crop_of(architecture: str, crop: int) -> int:
    """Return the side of a training sample, pixels: the crop's, or of an SSD that of the square it resizes images to.

    Raises:
        UsageError: another crop than the default was given for an SSD.
    """
    resize = NETWORKS[architecture].resize
    if not resize.fixed:
        return crop
    if crop not in (DEFAULT_CROP, resize.max_size):
        raise UsageError(
            f"{architecture} is trained on squares of {resize.max_size} pixels, its own size: leave out --crop"
        )
    return resize.max_size
