"""Encoding by crops equals detectron2's pasting over the whole image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from maskrcnn.masks import encode_resized
from maskrcnn.masks.encode_resized import encode_crops, pasted


def pasted_by_detectron2(boxes, squares, height, width):
    """Return each mask over the whole image, (N, height, width) bool, by the operator that detectron2 calls."""
    x0, y0, x1, y1 = torch.from_numpy(boxes).split(1, dim=1)
    y = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
    x = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
    n = len(boxes)
    grid = torch.stack([x[:, None].expand(n, height, width), y[:, :, None].expand(n, height, width)], 3)
    return (F.grid_sample(torch.from_numpy(squares)[:, None], grid, align_corners=False)[:, 0] >= 0.5).numpy()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), size=st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_the_bytes_equal_those_of_the_whole_image(seed, size):
    rng = np.random.default_rng(seed)
    height, width = size
    corners = rng.uniform(-20, max(size) + 20, (30, 2))
    sides = np.exp(rng.uniform(-3, 5, (30, 2)))
    boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
    coarse = rng.random((30, 1, 7, 7), np.float32)
    squares = F.interpolate(torch.from_numpy(coarse), size=28, mode="bilinear")[:, 0].numpy()
    squares[:5] = 0.5
    squares[5:8] = 1.0
    found = encode_crops(boxes, squares, height, width)
    expected = [
        coco_mask.encode(np.asfortranarray(m, np.uint8))
        for m in pasted_by_detectron2(boxes, squares, height, width)
    ]
    assert list(found.counts) == [rle["counts"] for rle in expected]
    assert found.areas.tolist() == coco_mask.area(expected).tolist()


def test_a_large_mask_is_computed_in_strips_and_is_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    boxes, squares = np.array([[3.2, 5.1, 70.9, 55.5]], np.float32), rng.random((1, 28, 28), np.float32)
    whole = encode_crops(boxes, squares, 60, 80)
    monkeypatch.setattr(encode_resized, "_MAX_PIXELS", 100)
    assert encode_crops(boxes, squares, 60, 80).counts == whole.counts
    assert whole.areas[0] > 100


def test_the_mask_of_an_empty_box_or_of_one_outside_the_image_is_empty():
    boxes = np.array([[5, 5, 5, 9], [200, 200, 220, 220], [-30, -30, -20, -20]], np.float32)
    assert encode_crops(boxes, np.ones((3, 28, 28), np.float32), 40, 40).areas.tolist() == [0, 0, 0]
    assert encode_crops(boxes[:0], np.ones((0, 28, 28), np.float32), 40, 40).counts == ()


def test_a_box_that_is_not_finite_is_rejected():
    with pytest.raises(ValueError, match="not finite"):
        encode_crops(np.array([[0, 0, np.nan, 1]], np.float32), np.ones((1, 28, 28), np.float32), 40, 40)


def test_a_full_square_fills_its_box():
    box, square = np.array([10, 20, 30, 50], np.float32), np.ones((28, 28), np.float32)
    inside = pasted(box, square, np.array([20, 35, 49]), np.array([10, 20, 29]))
    outside = pasted(box, square, np.array([19, 50, 35, 35]), np.array([20, 20, 9, 30]))
    assert inside.min() >= 0.5 > outside.max()
