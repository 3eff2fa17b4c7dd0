"""The windows of a mosaic give the exact visible pixels of each object."""

import numpy as np
import pytest
from planted_images import random_instances
from pycocotools import mask as coco_mask

from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedInstance
from maskrcnn.synthetic.planted_mosaic import (
    MAX_OBJECTS,
    MosaicSegmenter,
    color_of,
    ground,
    objects_in,
    paint,
    score_of,
)
from maskrcnn.types import Detections


def scene(first: int = 0) -> tuple[np.ndarray, list[PlantedInstance]]:
    instances = random_instances(np.random.default_rng(5), 200, 260, 30)
    image = ground(200, 260)
    paint(image, instances, first)
    return image, instances


def found_in(image: np.ndarray, **options: int) -> Detections:
    [found] = MosaicSegmenter(max_detections=1000, **options).outcomes([image])
    assert isinstance(found, Detections)
    return found


@pytest.mark.parametrize("first", [0, 255, 65_530, MAX_OBJECTS - 30])
def test_an_image_shows_the_visible_pixels_of_each_object(first: int) -> None:
    image, instances = scene(first)
    owner = np.full(image.shape[:2], -1)
    for number, instance in enumerate(instances):
        crop, left, top = instance.crop(*owner.shape)
        owner[top : top + crop.shape[0], left : left + crop.shape[1]][crop] = number
    shown = {
        number - first: (category, crop, left, top) for number, category, crop, left, top in objects_in(image)
    }
    assert set(shown) == set(np.unique(owner).tolist()) - {-1}
    for number, (category, crop, left, top) in shown.items():
        mask = np.zeros(owner.shape, bool)
        mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        assert np.array_equal(mask, owner == number)
        assert PLANTED_CATEGORIES[category].id == instances[number].category_id


def test_windows_give_the_same_masks_without_jitter() -> None:
    image, _ = scene()
    whole, part = found_in(image), found_in(image[50:150, 30:230])
    masks = {
        float(score): coco_mask.decode(rle) for score, rle in zip(whole.scores, whole.rles(), strict=True)
    }
    assert len(part)
    for score, rle in zip(part.scores, part.rles(), strict=True):
        assert np.array_equal(coco_mask.decode(rle), masks[float(score)][50:150, 30:230])


def test_jitter_is_bounded_and_reproducible() -> None:
    image, _ = scene()
    exact_rle = {float(score): rle for score, rle in zip(*columns(found_in(image)), strict=True)}
    jittered = found_in(image, jitter=2)
    differing = 0
    for score, rle in zip(*columns(jittered), strict=True):
        # Padding gives objects that extend beyond the image a contour at its border.
        mask, exact = (
            np.pad(coco_mask.decode(each).astype(bool), 1) for each in (rle, exact_rle[float(score)])
        )
        differing += not np.array_equal(mask, exact)
        near = np.zeros_like(exact)
        rows, columns_ = np.nonzero(exact[:, 1:] != exact[:, :-1])
        rows_, columns__ = np.nonzero(exact[1:] != exact[:-1])
        for row, column in [*zip(rows, columns_, strict=True), *zip(rows_, columns__, strict=True)]:
            near[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5] = True
        assert not ((mask != exact) & ~near).any()
    assert differing > len(jittered) / 2
    again = found_in(image, jitter=2)
    assert again.masks == jittered.masks
    assert np.array_equal(again.boxes, jittered.boxes)


def columns(found: Detections) -> tuple[np.ndarray, list[dict[str, object]]]:
    return found.scores, found.rles()


def test_images_without_objects_give_none() -> None:
    assert objects_in(ground(40, 30)) == []
    assert len(found_in(np.zeros((5, 5, 3), np.uint8))) == 0


def test_colours_and_scores_are_within_their_bounds() -> None:
    assert color_of(MAX_OBJECTS - 1, 2) == (128 + 64 + 31, 255, 255)
    assert min(map(score_of, range(1000))) >= 0.1
    assert max(map(score_of, range(1000))) < 1
    with pytest.raises(ValueError, match="more than"):
        paint(ground(2, 2), [PlantedInstance("rectangle", 1, 1.0, 1, 1, 1, 1)], MAX_OBJECTS)
