"""A baseline that a network must beat: classify pixels by colour alone, and take connected components as objects.

The category frequencies of each colour are estimated from training scenes, so that the baseline is a fair one.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..synthetic.scene_parts import CATEGORIES
from ..synthetic.scenes import Scene


def threshold_colors(
    scenes: list[Scene], frequencies: NDArray[np.float64], share: float
) -> list[dict[str, Any]]:
    """Find objects by colour alone: connected pixels whose colours often enough belong to a category.

    Args:
        scenes: the images; scene number i, from 1, has the image id i.
        frequencies: the frequencies of the categories, as returned by `category_frequencies`.
        share: the smallest frequency of a category at which a pixel counts as that category, in [0, 1].

    Returns:
        COCO results, at most 100 per scene; the score is the mean frequency over the component.
    """
    results: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        shares = frequencies[_color_bins(scene.image)]
        detections: list[dict[str, Any]] = []
        for category in CATEGORIES:
            of_category = shares[..., category.id]
            labeled = components(of_category >= share)
            numbers, areas = np.unique(labeled, return_counts=True)
            for number in numbers[(numbers > 0) & (areas >= 40)]:
                component = labeled == number
                common = {"image_id": image_id, "category_id": category.id}
                score = float(of_category[component].mean())
                detections.append(common | {"score": score, "segmentation": encode_mask(component)})
        results += sorted(detections, key=lambda result: -float(result["score"]))[:100]
    return results


def category_frequencies(scenes: Iterable[Scene]) -> NDArray[np.float64]:
    """Estimate from scenes the frequency of each category for each colour bin, shape (4096, 1 + categories)."""
    counts = np.full((16**3, len(CATEGORIES) + 1), 1e-9)
    for scene in scenes:
        kinds = np.concatenate([[0], scene.category_ids])[scene.labels]
        np.add.at(counts, (_color_bins(scene.image).ravel(), kinds.ravel()), 1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _color_bins(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the colour bin of each pixel: 16 bins per channel, after averaging over 3 x 3 pixels."""
    height, width, _ = pixels.shape
    around = np.pad(pixels.astype(np.intp), ((1, 1), (1, 1), (0, 0)), mode="edge")
    parts = [around[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    red, green, blue = np.moveaxis(np.sum(parts, axis=0) // (9 * 16), -1, 0)
    return np.asarray(red * 256 + green * 16 + blue)


def components(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Label the 4-connected components of a mask with the index of their first pixel plus one; 0 is outside.

    >>> components(np.array([[True, False, True], [True, False, False]]))
    array([[1, 0, 3],
           [1, 0, 0]])
    """
    far = mask.size + 1
    labels = np.where(mask, np.arange(1, far).reshape(mask.shape), far)
    while True:
        around = np.pad(labels, 1, constant_values=far)
        beside = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
        low = np.where(mask, np.minimum.reduce([labels, *beside]), far)
        # A label is the index of a pixel of the same component: replace it with that pixel's present label.
        low = np.concatenate([[0], low.ravel(), [far]])[low]
        if np.array_equal(low, labels):
            return np.where(mask, labels, 0)
        labels = low


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask, (height, width) bool, as a compressed RLE in COCO form."""
    return dict(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))
