"""Which networks can be trained, and at which size: checked before anything is started for a training.

This module does not import torch.
"""

from ..errors import UsageError
from ..models.networks import NETWORKS, TRAINABLE
from .config import DEFAULT_CROP

__all__ = ["check_architecture", "check_trainable", "crop_of", "sizes_of"]


def check_architecture(source: str, architecture: str) -> None:
    """Raise UsageError if `--model SOURCE:ARCHITECTURE` names no network that can be trained."""
    if architecture not in TRAINABLE:
        raise UsageError(f"--model {source}:…: name one of {', '.join(TRAINABLE)} after the colon")


def check_trainable(model: str, architecture: str) -> None:
    """Raise UsageError if the network of a model cannot be trained.

    Args:
        model: as given with `--model`.
        architecture: of that model.
    """
    if architecture not in TRAINABLE:
        raise UsageError(
            f"--model {model}: {architecture} cannot be trained; start from coco, imagenet:maskrcnn_resnet50_fpn, or a "
            "model converted from torchvision, detectron2 or MMDetection"
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
