"""Generated images on which a model is checked."""

import functools
from typing import Literal

import numpy as np

from ...synthetic.planted import PlantedInstance, plant
from ...synthetic.scenes import render_scene
from ...types import Pixels

__all__ = ["sample_images"]


@functools.cache
def sample_images() -> tuple[Pixels, ...]:
    """Return generated images: three of one size, then others of several shapes, noise, and one colour."""
    scenes = [render_scene(seed, 640).image for seed in (30_000_001, 30_000_002)]
    random = np.random.default_rng(0)
    shapes: tuple[Literal["rectangle", "ellipse"], ...] = ("rectangle", "ellipse")
    objects = [
        PlantedInstance(
            shapes[n % 2], (1, 2, 5)[n % 3], 0.5 + n / 20, 90.0 + 165 * (n // 3), 70.0 + 165 * (n % 3), 70, 50
        )
        for n in range(9)
    ]
    planted = plant((480, 640), objects)
    return (
        *(scene[:480] for scene in scenes),
        planted,
        scenes[0][:, :480],
        scenes[1][100:196, 200:328],
        scenes[1][:400, 300:348],
        random.integers(0, 256, (256, 320, 3), np.uint8),
        np.full((200, 200, 3), 128, np.uint8),
    )
