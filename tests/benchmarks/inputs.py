"""Generated inputs to measure with: photo-like JPEGs, smooth masks with boxes of a stated size."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from maskrcnn.types import Pixels

COCO_SIZE: Final = (480, 640)
"""(height, width) of most photos of COCO."""
PHOTO_SIZE: Final = (3000, 4000)
"""(height, width) of a 12-megapixel photo."""

MEAN_AREA: Final = 0.038
"""Mean share of the image that a box takes, as in COCO."""

_GRAINS: Final = ((0.5, 60.0), (0.12, 28.0), (0.03, 12.0), (0.008, 7.0))
"""Of the ground: size of the spots in heights of the image, and contrast."""


def photo(height: int, width: int, seed: int) -> Pixels:
    """Return a picture with a photo's spectrum: gradients, shapes with edges, texture, the sensor's noise.

    Shape: (height, width, 3), uint8.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    ground = np.full((height, width, 3), rng.uniform(90, 150, 3), np.float32)
    for share, contrast in _GRAINS:
        cells = (max(round(height / (share * height)), 2), max(round(width / (share * height)), 2))
        for channel in range(3):
            ground[..., channel] += contrast / 2 * _spots(rng, cells, (height, width))
        ground += contrast / 2 * _spots(rng, cells, (height, width))[..., None]
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(24):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        reach = float(np.exp(rng.uniform(np.log(0.02), np.log(0.3)))) * height
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        radii = reach * rng.uniform(0.5, 1.0, len(turns))
        corners = np.stack([x + radii * np.cos(turns), y + radii * np.sin(turns)], axis=1)
        red, green, blue = (int(value) for value in rng.integers(20, 236, 3))
        draw.polygon([(float(a), float(b)) for a, b in corners], fill=(red, green, blue, 170))
    grain = rng.normal(0, 6.0, (height, width, 1)).astype(np.float32)
    return np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)


def _spots(rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return smooth noise of unit contrast, (height, width)."""
    coarse = Image.fromarray(rng.normal(0, 1, cells).astype(np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def jpeg(pixels: Pixels, quality: int = 90) -> bytes:
    """Return the bytes of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_photos(folder: Path, count: int, size: tuple[int, int], seed: int = 0) -> list[Path]:
    """Write `count` JPEGs of (height, width), and return their paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        path = folder / f"photo-{index:06d}.jpg"
        path.write_bytes(jpeg(photo(*size, seed=seed + index)))
        paths.append(path)
    return paths


def write_manifest(path: Path, images: Sequence[Path], count: int) -> Path:
    """Write a manifest of `count` rows that names the images in turn, and return its path."""
    with path.open("w", encoding="utf-8") as file:
        file.write("uri,name\n")
        for index in range(count):
            image = images[index % len(images)]
            file.write(f"{image.absolute()},{index:08d}{image.suffix}\n")
    return path


def smooth_instances(
    height: int, width: int, count: int, *, mean_area: float = MEAN_AREA, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return boxes inside an image and what a mask head might give for them.

    Sides are log-uniform between 2 % and 90 % of the image's, then scaled until the boxes' mean area is as asked. A
    mask is one blob with an uneven outline: at 640x480 and 3.8 % its run lengths take 210 characters on average,
    where those of a real Mask R-CNN on COCO, at 4.0 %, take 174.

    Args:
        mean_area: of the boxes, as a share of the image.

    Returns:
        (N, 4) xmin, ymin, xmax, ymax in pixels, and (N, 28, 28) smooth probabilities.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    sides = np.exp(rng.uniform(np.log(0.02), np.log(0.9), (count, 2)))
    for _ in range(50):  # a side cannot exceed the image's, so that one scaling is not enough
        sides = np.minimum(sides * np.sqrt(mean_area / np.mean(sides[:, 0] * sides[:, 1])), 1.0)
    sizes = sides * [width, height]
    corners = rng.uniform(0, 1, (count, 2)) * ([width, height] - sizes)
    boxes = np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)
    radius = np.hypot(*np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5)))
    coarse = (rng.normal(4, 1, (count, 5, 5)) - 3 * radius).astype(np.float32)
    bicubic = Image.Resampling.BICUBIC
    smooth = np.stack([np.asarray(Image.fromarray(square).resize((28, 28), bicubic)) for square in coarse])
    return boxes, (1 / (1 + np.exp(-smooth))).astype(np.float32)
