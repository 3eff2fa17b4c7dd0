"""Boxes as masks: the rectangle of the pixels that a box covers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from maskrcnn.masks.crop import crop_detections
from maskrcnn.masks.rectangles import boxes_of, with_rectangles
from maskrcnn.types import Detections

HEIGHT, WIDTH = 23, 31
SIDES = hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=st.floats(-9, 40, width=16))


def of_boxes(boxes: np.ndarray, height: int = HEIGHT, width: int = WIDTH) -> Detections:
    n = len(boxes)
    return Detections.of_boxes(
        height, width, boxes, np.arange(n, dtype=np.int32), np.ones(n, np.float32), capped=False
    )


@given(SIDES)
def test_a_mask_has_the_pixels_that_its_box_covers(boxes: np.ndarray) -> None:
    found = with_rectangles(of_boxes(boxes))
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    for (xmin, ymin, xmax, ymax), rle, area, pixels in zip(
        boxes.tolist(), found.rles(), found.areas, found.mask_boxes.tolist(), strict=True
    ):
        inside = (xs >= np.floor(xmin)) & (xs < np.ceil(xmax)) & (ys >= np.floor(ymin)) & (ys < np.ceil(ymax))
        assert np.array_equal(coco_mask.decode(rle), inside)
        assert area == inside.sum()
        if area:
            rows, columns = np.nonzero(inside)
            assert pixels == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@given(SIDES)
def test_masks_that_are_there_stay_and_can_be_left_out(boxes: np.ndarray) -> None:
    plain = of_boxes(boxes)
    filled = with_rectangles(plain)
    assert with_rectangles(filled) is filled
    again = boxes_of(filled)
    assert again.masks is None
    assert np.array_equal(again.boxes, plain.boxes)
    assert np.array_equal(again.areas, plain.areas)


def test_in_a_raster_of_more_pixels_than_a_mask_may_have_each_has_its_frame() -> None:
    found = with_rectangles(of_boxes(np.array([[70_000.2, 3, 70_003, 5]], np.float32), 70_000, 70_010))
    assert found.frames is not None
    assert found.frames.tolist() == [[70_000, 3, 3, 2]]
    assert coco_mask.decode(found.rles()[0]).all()
    assert found.areas.tolist() == [6]


def test_cropped_boxes_stay_boxes() -> None:
    found = crop_detections(of_boxes(np.array([[2, 3, 10, 9]], np.float32)), (4, 5, 20, 10))
    assert found.masks is None
    assert found.boxes.tolist() == [[-2, -2, 6, 4]]
    assert found.mask_boxes.tolist() == [[0, 0, 6, 4]]
