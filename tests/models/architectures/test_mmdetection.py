"""The parts of MMDetection's networks that detectron2's do not have, each against another implementation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import boxes_in, maps_of
from PIL import Image
from torchvision.models.detection._utils import BoxCoder

from maskrcnn.models.architectures.detectron2 import CellAnchors
from maskrcnn.models.architectures.mmdetection import ClampedBoxCoder, FinestScaleRoIAlign, RescaleTransform
from maskrcnn.models.conversion.reference_mmdetection import ReferenceMMDetection, _decoded, _pooled, resized
from maskrcnn.models.model import build_network

SIDES = st.integers(1, 40)


@settings(max_examples=40)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_bytes_are_resized_exactly_as_by_the_reference_implementation(height, width, rows, columns, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    transform = RescaleTransform(8, 8)
    found = transform.resampled(torch.from_numpy(image).permute(2, 0, 1), (rows, columns))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), resized(image, (rows, columns)))


def test_a_resize_reads_the_four_nearest_pixels_only():
    image = np.random.default_rng(1).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    larger = resized(image, (120, 180)).astype(int)
    pillow = np.asarray(Image.fromarray(image).resize((180, 120), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(larger - pillow).max() <= 1  # Pillow's filter widens only when it shrinks
    halves = resized(image, (30, 45)).astype(float)
    means = image.reshape(30, 2, 45, 2, 3).mean((1, 3))
    assert np.abs(halves - means).max() <= 0.5
    thirds = resized(image, (20, 30))
    assert np.array_equal(thirds, image[1::3, 1::3])


@given(st.integers(0, 255), SIDES, SIDES)
def test_one_colour_stays_that_colour(value, rows, columns):
    found = RescaleTransform(8, 8).resampled(torch.full((3, 7, 5), value, dtype=torch.uint8), (rows, columns))
    assert found.unique().tolist() == pytest.approx([value], abs=1)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_shorter_side_is_800_or_the_longer_one_1333(height, width):
    found = RescaleTransform(800, 1333).resized(height, width)
    assert min(found) == 800 or max(found) == 1333
    assert max(found) <= 1333


def test_boxes_shrink_no_more_than_they_grow():
    torch.manual_seed(0)
    boxes = boxes_in((200, 300), 50)
    offsets = torch.randn(50, 4) * torch.tensor([1.0, 1.0, 30.0, 30.0])
    weights = (10.0, 10.0, 5.0, 5.0)
    found = ClampedBoxCoder(weights).decode_single(offsets, boxes)
    torch.testing.assert_close(found, _decoded(boxes, offsets, weights), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(found, BoxCoder(weights).decode_single(offsets, boxes))
    least = ClampedBoxCoder((1.0,) * 4).decode_single(
        torch.full((1, 8), -99.0), torch.tensor([[0.0, 0, 100, 100]])
    )
    assert (least[0, 2] - least[0, 0]).item() == pytest.approx(100 * 16 / 1000, rel=1e-3)
    assert math.isfinite(least.sum())


@pytest.mark.parametrize("bins", [7, 14])
def test_pooling_equals_the_reference_implementation(bins):
    torch.manual_seed(0)
    maps = maps_of((256, 384), 3, n_images=1)
    boxes = boxes_in((256, 384), 60)
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    found = FinestScaleRoIAlign(list(maps), bins)(maps, [boxes], [(256, 384)])
    torch.testing.assert_close(found, _pooled(maps, boxes, bins), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("side", "level"), [(10, 0), (111.9, 0), (112, 1), (224, 2), (447.9, 2), (448, 3), (2000, 3)]
)
def test_the_level_of_a_box_follows_its_scale(side, level):
    assert FinestScaleRoIAlign.level(torch.tensor([[0.0, 0, side, side]])).tolist() == [level]


def test_anchors_are_those_of_the_reference_implementation():
    reference = ReferenceMMDetection({}, 8, 8)
    anchors = CellAnchors()
    for level, grid in enumerate([(4, 5), (2, 3), (2, 2), (1, 2), (1, 1)]):
        stride = torch.tensor(4 * 2**level)
        every = anchors.grid_anchors([list(grid)] * 5, [[stride, stride]] * 5)[level]
        torch.testing.assert_close(every, reference._anchors(level, *grid), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_it_can_be_trained_for_a_step():
    torch.manual_seed(0)
    network = build_network("maskrcnn_resnet50_fpn_mmdetection", 2, 64, 96).train()
    masks = torch.zeros(1, 70, 90, dtype=torch.uint8)
    masks[0, 10:40, 20:60] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 60, 40]]), "labels": torch.tensor([1]), "masks": masks}
    losses = network([torch.rand(3, 70, 90)], [target])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
