"""A baseline that a network must beat: colours that mean a category, and the connected pieces of them.

It is an honest one: what a colour means is learnt from training scenes.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..synthetic.scenes import CATEGORIES, Scene


def threshold_colors(
    scenes: list[Scene], meanings: NDArray[np.float64], share: float
) -> list[dict[str, Any]]:
    """Find objects by colour alone: pieces of pixels whose colour means a category often enough."""
    results: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        chances = meanings[_color_bins(scene.image)]
        found: list[dict[str, Any]] = []
        for category in CATEGORIES:
            chance = chances[..., category.id]
            pieces = components(chance >= share)
            numbers, areas = np.unique(pieces, return_counts=True)
            for number in numbers[(numbers > 0) & (areas >= 40)]:
                piece = pieces == number
                common = {"image_id": image_id, "category_id": category.id}
                score = float(chance[piece].mean())
                found.append(common | {"score": score, "segmentation": _encode(piece)})
        results += sorted(found, key=lambda result: -float(result["score"]))[:100]
    return results


def color_meanings(scenes: Iterable[Scene]) -> NDArray[np.float64]:
    """Learn from scenes how often a colour is which category, shape (4096, 1 + categories)."""
    counts = np.full((16**3, len(CATEGORIES) + 1), 1e-9)
    for scene in scenes:
        kinds = np.concatenate([[0], scene.category_ids])[scene.labels]
        np.add.at(counts, (_color_bins(scene.image).ravel(), kinds.ravel()), 1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _color_bins(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Bin the colours, 16 steps a channel, of the image smoothed over 3 x 3 pixels."""
    height, width, _ = pixels.shape
    around = np.pad(pixels.astype(np.intp), ((1, 1), (1, 1), (0, 0)), mode="edge")
    parts = [around[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    red, green, blue = np.moveaxis(np.sum(parts, axis=0) // (9 * 16), -1, 0)
    return np.asarray(red * 256 + green * 16 + blue)


def components(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Label the 4-connected pieces of a mask by their first pixel plus one, and 0 outside.

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
        # A label is a pixel of the same piece: jump to what that pixel is called by now.
        low = np.concatenate([[0], low.ravel(), [far]])[low]
        if np.array_equal(low, labels):
            return np.where(mask, labels, 0)
        labels = low


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    return dict(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))
