"""What is learned from in each step: images of the frozen table, augmented (torch)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor
from torch.utils.data import Dataset

from ..imaging.decode import decode_image
from ..io.inputs import read_input
from ..types import Pixels
from .augmentation import apply, draw
from .config import TrainingConfig
from .dataset import LIMITS
from .losses import Target


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to learn from."""

    image: Tensor
    """(3, crop, crop) float32 in [0, 1]."""
    target: Target
    seed: int
    """Of what the losses draw."""
    image_id: int


class Samples(Dataset[Sample]):
    """The samples of a training set, by (epoch, row).

    Args:
        images: of `dataset.SCHEMA`.
        recipe: how they are augmented.
        sizes: min_size and max_size of the network.
        ground: its mean colour, RGB in [0, 1], which stands beside small images.
    """

    def __init__(
        self, images: pa.Table, recipe: TrainingConfig, sizes: tuple[int, int], ground: Sequence[float]
    ) -> None:
        self._images = images
        self._recipe = recipe
        self._sizes = sizes
        self._ground = tuple(ground)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return a sample. Raises RunError or ItemError where its image has gone."""
        epoch, row = key
        entry = self._images.slice(row, 1).to_pylist()[0]
        recipe = self._recipe
        generator = np.random.default_rng([recipe.seed, 2, epoch, row])
        shape = (entry["height"], entry["width"])
        scale = min(self._sizes[0] / min(shape), self._sizes[1] / max(shape))
        drawn = draw(generator, shape, recipe.crop, scale, recipe.jitter, recipe.flips, recipe.color)
        image, target = apply(
            read_pixels(entry["uri"]), entry["masks"], entry["labels"], drawn, recipe.crop, self._ground
        )
        return Sample(image, target, int(generator.integers(2**62)), entry["image_id"])


def read_pixels(uri: str) -> Pixels:
    """Read an image. Raises ItemError and RunError as `read_input` and `decode_image` do."""
    return decode_image(read_input(uri, LIMITS.max_bytes), LIMITS).pixels
