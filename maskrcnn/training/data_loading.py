"""The samples of each training step: images of the stored dataset table, augmented (torch)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor
from torch.utils.data import Dataset

from ..imaging.decode import decode_image
from ..io.inputs import read_input
from ..models.networks import NETWORKS
from ..types import Pixels
from .augmentation import apply, apply_to_boxes, draw
from .config import TrainingConfig
from .dataset import LIMITS
from .losses import Target
from .network_choice import crop_of


@dataclass(frozen=True, slots=True)
class Sample:
    """One augmented image with its target."""

    image: Tensor
    """(3, side, side) float32 in [0, 1]; the side is that of `network_choice.crop_of`."""
    target: Target
    seed: int
    """Seed of the random choices in the losses."""
    image_id: int


class Samples(Dataset[Sample]):
    """The samples of a training set, indexed by (epoch, row).

    Args:
        images: the images, a table of `dataset.SCHEMA`.
        config: the training configuration, which determines the augmentation.
        architecture: of the network: whether it has masks, and resizes images to a square.
        sizes: `min_size` and `max_size` of the network.
        fill: colour that surrounds images smaller than a crop: the network's mean colour, RGB in [0, 1].
    """

    def __init__(
        self,
        images: pa.Table,
        config: TrainingConfig,
        architecture: str,
        sizes: tuple[int, int],
        fill: Sequence[float],
    ) -> None:
        self._images = images
        self._config = config
        self._side = crop_of(architecture, config.crop)
        self._has_masks = NETWORKS[architecture].has_masks
        self._is_square = NETWORKS[architecture].resize.fixed
        self._sizes = sizes
        self._fill = tuple(fill)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return the sample of an (epoch, row).

        Raises:
            ItemError, RunError: as `read_pixels`, for example if the image no longer exists.
        """
        epoch, row = key
        entry = self._images.slice(row, 1).to_pylist()[0]
        config = self._config
        generator = np.random.default_rng([config.seed, 2, epoch, row])
        shape = (entry["height"], entry["width"])
        scale, aspect = min(self._sizes[0] / min(shape), self._sizes[1] / max(shape)), 1.0
        if self._is_square:
            scale, aspect = self._side / shape[0], shape[0] / shape[1]
        drawn = draw(generator, shape, self._side, scale, config.jitter, config.flips, config.color, aspect)
        applied = apply if self._has_masks else apply_to_boxes
        objects = entry["masks" if self._has_masks else "boxes"]
        image, target = applied(
            read_pixels(entry["uri"]), objects, entry["labels"], drawn, self._side, self._fill,
            entry.get("crowds", ()),  # a training begun by version 0.2 has no such column
        )  # fmt: skip
        return Sample(image, target, int(generator.integers(2**62)), entry["image_id"])


def read_pixels(uri: str) -> Pixels:
    """Read an image; return its pixels, (height, width, 3) uint8, RGB.

    Raises:
        ItemError, RunError: as `read_input` and `decode_image`.
    """
    return decode_image(read_input(uri, LIMITS.max_bytes), LIMITS).pixels
