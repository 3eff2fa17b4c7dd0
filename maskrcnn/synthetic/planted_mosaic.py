"""Rasters whose pixels encode the object they show, and a segmenter that reads it in any window.

They are used as large images in tests that do not need the network: the correct result of a window follows from its
pixels alone. The ground truth consists of the visible pixels; it is exact, and survives lossless formats only.

The colour of an object's pixels encodes its category and its number, from 0: red is 128 + 32 * category + bits 16 to
20 of the number, green is bits 8 to 15, blue is bits 0 to 7. Pixels with less red are ground.
"""

import zlib
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..masks.rle import crop_to_rle
from ..types import Detections, Pixels
from .planted import PLANTED_CATEGORIES, PlantedInstance, PlantedSegmenter, best_of

_OBJECT: Final = 128
MAX_OBJECTS: Final = 2**21


def paint(image: Pixels, instances: Sequence[PlantedInstance], first: int = 0) -> None:
    """Draw objects into an image, later ones over earlier ones; they are numbered from `first`.

    Raises:
        ValueError: a number is 2^21 or more.
    """
    if first + len(instances) > MAX_OBJECTS:
        raise ValueError(f"more than {MAX_OBJECTS} objects")
    ids = [category.id for category in PLANTED_CATEGORIES]
    for number, instance in enumerate(instances, first):
        crop, left, top = instance.crop(*image.shape[:2])
        image[top : top + crop.shape[0], left : left + crop.shape[1]][crop] = color_of(
            number, ids.index(instance.category_id)
        )


def color_of(number: int, category: int) -> tuple[int, int, int]:
    """Return the RGB colour of an object, given the index of its category in `PLANTED_CATEGORIES`."""
    return _OBJECT + 32 * category + (number >> 16), number >> 8 & 255, number & 255


def ground(height: int, width: int) -> Pixels:
    """Return ground without objects, (height, width, 3) uint8: a chequered pattern."""
    rows, columns = np.arange(height)[:, None], np.arange(width)
    shade = (rows // 16 + columns // 16) % 2 * 12
    return np.stack([shade + 60, shade + 76, shade + 56], axis=2).astype(np.uint8)


def objects_in(image: Pixels) -> list[tuple[int, int, NDArray[np.bool_], int, int]]:
    """Return the objects in a part of a mosaic: number, index of the category, cropped mask, crop's left and top."""
    red = image[..., 0]
    at = np.flatnonzero(red >= _OBJECT)
    flat = image.reshape(-1, 3)[at].astype(np.int64)
    key = (flat[:, 0] - _OBJECT) << 16 | flat[:, 1] << 8 | flat[:, 2]
    order = np.argsort(key, kind="stable")
    keys, starts = np.unique(key[order], return_index=True)
    found = []
    # `np.split` returns one part even of an empty array, so the lengths may differ.
    for value, pixels in zip(keys.tolist(), np.split(at[order], starts[1:]), strict=False):
        if value >> 21 >= len(PLANTED_CATEGORIES):  # not a pixel of a mosaic
            continue
        row, column = np.divmod(pixels, image.shape[1])
        top, left = int(row.min()), int(column.min())
        crop = np.zeros((int(row.max()) + 1 - top, int(column.max()) + 1 - left), np.bool_)
        crop[row - top, column - left] = True
        found.append((value & MAX_OBJECTS - 1, value >> 21, crop, left, top))
    return found


def score_of(number: int) -> float:
    """Return the score of an object, in [0.1, 1)."""
    return 0.1 + 0.9 * (number * 2_654_435_761 % 2**16) / 2**16


class MosaicSegmenter(PlantedSegmenter):
    """A `types.Segmenter` that detects the objects in a window of a mosaic.

    Args:
        jitter: the maximum number of pixels by which the mask of an object is shifted, dilated or eroded in a window;
            its box is jittered by as much.
        sleep_s: seconds to sleep for each window, to simulate a slow network.
        min_score: instances that do not score above this are dropped.
        max_detections: the maximum number of detections per window, the best by score.
        keep: names of the categories to keep; empty: all.
        has_masks: whether its detections have masks; else they have boxes only.
    """

    def __init__(
        self,
        jitter: int = 0,
        sleep_s: float = 0.0,
        min_score: float = 0.05,
        max_detections: int = 100,
        keep: Collection[str] = (),
        *,
        has_masks: bool = True,
    ) -> None:
        super().__init__(PLANTED_CATEGORIES, sleep_s, min_score, max_detections, keep, has_masks=has_masks)
        self._jitter = jitter

    def _segment(self, image: Pixels) -> Detections:
        self._sleep()
        height, width = image.shape[:2]
        # The jitter of a window is the same each time, and differs between windows.
        rng = np.random.default_rng(zlib.crc32(image.tobytes()))
        masks, labels, scores = [], [], []
        for number, category, crop, left, top in objects_in(image):
            label, score = PLANTED_CATEGORIES[category].id, score_of(number)
            if label not in self._kept_ids or np.float32(score) <= np.float32(self._min_score):
                continue
            if self._jitter:
                crop, left, top = _jittered(rng, self._jitter, crop, left, top, height, width)  # noqa: PLW2901
            if crop.any():
                masks.append(crop_to_rle(crop, left, top, height, width))
                labels.append(label)
                scores.append(score)

        def moved(boxes: NDArray[np.int32]) -> NDArray[np.float32]:
            by = rng.uniform(-self._jitter, self._jitter, boxes.shape)
            return np.asarray(np.clip(boxes + by, 0, [width, height, width, height]), np.float32)

        columns = np.array(labels, np.int32), np.array(scores, np.float32)
        return best_of(masks, *columns, height, width, self._max_detections, moved)


def _jittered(
    rng: np.random.Generator,
    jitter: int,
    crop: NDArray[np.bool_],
    left: int,
    top: int,
    height: int,
    width: int,
) -> tuple[NDArray[np.bool_], int, int]:
    """Return a mask shifted, dilated or eroded by up to `jitter` pixels and clipped to the window, its left and top."""
    padded = np.pad(crop, jitter)
    by = int(rng.integers(0, jitter + 1))
    kind = int(rng.integers(3))
    if kind == 0:
        padded = np.roll(padded, rng.integers(-jitter, jitter + 1, 2), axis=(0, 1))
    for _ in range(by if kind else 0):
        padded = _dilated(padded) if kind == 1 else ~_dilated(~padded)
    rows, columns = np.arange(padded.shape[0]) + top - jitter, np.arange(padded.shape[1]) + left - jitter
    inside = padded[(rows >= 0) & (rows < height)][:, (columns >= 0) & (columns < width)]
    return inside, max(left - jitter, 0), max(top - jitter, 0)


def _dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Dilate a mask by one pixel to the left, right, top and bottom."""
    dilated = mask.copy()
    dilated[1:] |= mask[:-1]
    dilated[:-1] |= mask[1:]
    dilated[:, 1:] |= mask[:, :-1]
    dilated[:, :-1] |= mask[:, 1:]
    return dilated
