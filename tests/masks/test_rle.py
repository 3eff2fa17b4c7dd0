"""Run lengths equal those of pycocotools' encoder, byte for byte."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from maskrcnn.masks.rle import crop_to_rle, rle_areas, rle_boxes_xywh, rle_boxes_xyxy


@st.composite
def crops(draw):
    """Draw a crop of an image, which often touches or spans its borders."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    h, w = draw(st.integers(0, height)), draw(st.integers(0, width))
    top, left = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
    return draw(hnp.arrays(np.bool_, (h, w))), left, top, height, width


def full_mask(crop, left, top, height, width):
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return mask


def encoded(mask):
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


@given(crops())
def test_the_bytes_equal_those_of_pycocotools_for_the_whole_mask(case):
    assert crop_to_rle(*case) == encoded(full_mask(*case))["counts"]


@given(crops())
def test_areas_and_boxes_equal_those_of_the_whole_mask(case):
    mask = full_mask(*case)
    height, width = mask.shape
    rle = {"size": [height, width], "counts": crop_to_rle(*case)}
    assert rle_areas([rle]).tolist() == [mask.sum()]
    rows, columns = np.nonzero(mask)
    if len(rows):
        xmin, ymin = columns.min(), rows.min()
        tight = [xmin, ymin, columns.max() + 1, rows.max() + 1]
    else:
        tight = [0, 0, 0, 0]
    assert rle_boxes_xyxy([rle]).tolist() == [tight]
    assert rle_boxes_xywh([rle]).tolist() == [[*tight[:2], tight[2] - tight[0], tight[3] - tight[1]]]


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (333, 211)])
def test_long_runs_and_noise_agree_with_pycocotools(shape, density):
    mask = np.random.default_rng(7).random(shape) < density
    assert crop_to_rle(mask, 0, 0, *shape) == encoded(mask)["counts"]


def test_an_empty_mask_is_one_run_of_zeros():
    rle = crop_to_rle(np.zeros((0, 0), np.bool_), 0, 0, 5, 7)
    assert rle == encoded(np.zeros((5, 7)))["counts"]
    assert coco_mask.frPyObjects({"size": [5, 7], "counts": [35]}, 5, 7)["counts"] == rle


def test_memory_does_not_depend_on_the_area_of_the_image():
    crop = np.ones((20, 30), np.bool_)
    tracemalloc.start()
    counts = crop_to_rle(crop, 40_000, 50_000, 65_000, 66_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    rle = {"size": [65_000, 66_000], "counts": counts}
    assert rle_areas([rle]).tolist() == [600]
    assert rle_boxes_xywh([rle]).tolist() == [[40_000, 50_000, 30, 20]]


@pytest.mark.parametrize("count", [255, 256, 1000])
def test_any_number_of_masks_is_measured(count):
    rng = np.random.default_rng(count)
    masks = rng.random((count, 9, 8)) < 0.4
    rles = [{"size": [9, 8], "counts": crop_to_rle(mask, 0, 0, 9, 8)} for mask in masks]
    assert rle_areas(rles).tolist() == masks.sum((1, 2)).tolist()
    assert len(rle_boxes_xywh(rles)) == len(rle_boxes_xyxy(rles)) == count


def test_no_masks_give_empty_columns():
    assert rle_areas([]).shape == (0,)
    assert rle_boxes_xywh([]).shape == (0, 4)
    assert rle_boxes_xyxy([]).shape == (0, 4)
    assert rle_boxes_xyxy([]).dtype == np.int32


@pytest.mark.parametrize(
    ("left", "top", "height", "width", "message"),
    [
        (-1, 0, 9, 9, "extends beyond"),
        (0, -1, 9, 9, "extends beyond"),
        (7, 0, 9, 9, "extends beyond"),
        (0, 8, 9, 9, "extends beyond"),
        (0, 0, 65_536, 65_536, "do not fit"),
    ],
)
def test_a_crop_beyond_the_image_or_an_image_too_large_is_rejected(left, top, height, width, message):
    with pytest.raises(ValueError, match=message):
        crop_to_rle(np.ones((2, 3), np.bool_), left, top, height, width)
