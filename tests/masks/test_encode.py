"""Encoding inside boxes equals torchvision's paste and pycocotools' encoder, byte for byte."""

import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn.masks import encode as masks_module
from maskrcnn.masks.encode import detections_from_network, encode_masks
from maskrcnn.masks.rle import rle_areas, rle_boxes_xyxy
from maskrcnn.types import detection_order


def pasted(boxes, probabilities, height, width):
    """Return the counts of torchvision's pasted masks, encoded by pycocotools."""
    images = paste_masks_in_image(
        torch.from_numpy(probabilities)[:, None], torch.from_numpy(boxes), (height, width)
    )
    binary = (images[:, 0] > 0.5).numpy().astype(np.uint8)
    return tuple(coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in binary)


def intersects_image(boxes, height, width):
    """Return whether each padded mask intersects the image; torchvision cannot paste one that does not."""
    xmin, ymin, xmax, ymax = masks_module._frames(boxes, 28).T
    return (xmin < width) & (ymin < height) & (xmax > 0) & (ymax > 0)


def random_probabilities(rng, count):
    """Return smooth blobs, saturated blobs, noise, all ones, all zeros, and values of exactly the threshold."""
    y, x = np.mgrid[:28, :28] / 27 - 0.5
    cx, cy, r = rng.uniform(-0.5, 0.5, (3, count, 1, 1))
    blobs = 1 / (1 + np.exp(rng.uniform(1, 60, (count, 1, 1)) * ((x - cx) ** 2 + (y - cy) ** 2 - r**2)))
    noise = rng.random((count, 28, 28))
    kinds = [blobs, (blobs > 0.5), noise, np.ones_like(noise), np.zeros_like(noise), np.round(noise * 4) / 4]
    return np.choose(rng.choice(6, (count, 1, 1), p=[0.5, 0.1, 0.2, 0.05, 0.05, 0.1]), kinds).astype(
        np.float32
    )


def random_boxes(rng, count, height, width):
    """Return boxes inside, across and outside the image; thin, of zero size, inverted, on whole pixels."""
    x, y = rng.uniform(-0.3, 1.3, (2, count)) * [[width], [height]]
    w, h = rng.exponential(0.3, (2, count)) * [[width], [height]]
    thin = rng.random((2, count)) < 0.1
    w, h = np.where(thin[0], rng.uniform(0, 1.5, count), w), np.where(thin[1], rng.uniform(0, 1.5, count), h)
    w, h = (np.where(rng.random(count) < 0.03, 0, side) for side in (w, h))
    w, h = (np.where(rng.random(count) < 0.03, -side, side) for side in (w, h))
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    boxes = np.where(rng.random((count, 1)) < 0.2, np.round(boxes), boxes)
    # Half of the boxes are clipped to the image, like those of a network.
    clipped = np.clip(boxes, 0, [width, height, width, height])
    return np.where(rng.random((count, 1)) < 0.5, clipped, boxes).astype(np.float32)


def disagreements(boxes, probabilities, height, width):
    """Return the number of masks that differ from the reference, and the encoded masks; compare areas and boxes."""
    found = encode_masks(boxes, probabilities, height, width)
    rles = [{"size": [height, width], "counts": counts} for counts in found.counts]
    assert found.areas.tolist() == rle_areas(rles).tolist()
    assert found.boxes.tolist() == rle_boxes_xyxy(rles).tolist()
    visible = intersects_image(boxes, height, width)
    assert not found.areas[~visible].any()
    expected = pasted(boxes[visible], probabilities[visible], height, width)
    seen = [counts for counts, visible_ in zip(found.counts, visible, strict=True) if visible_]
    return sum(ours != theirs for ours, theirs in zip(seen, expected, strict=True)), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(1, 1, 300), (1, 97, 500), (40, 30, 3000), (97, 61, 4000), (160, 210, 3000), (300, 430, 600)],
)
def test_the_bytes_equal_those_of_paste_and_encode(height, width, count):
    rng = np.random.default_rng(height * width)
    filled = 0
    for _ in range(0, count, 100):
        boxes, probabilities = random_boxes(rng, 100, height, width), random_probabilities(rng, 100)
        differing, found = disagreements(boxes, probabilities, height, width)
        assert differing == 0
        filled += np.count_nonzero(found.areas)
    assert filled > count / 5


@pytest.mark.parametrize("fused", [True, False], ids=["as this torch", "as another torch"])
@pytest.mark.parametrize("spread", [0.0, 6e-8, 5e-7, 1e-4])
def test_values_at_the_threshold_are_decided_as_by_torch(spread, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(masks_module, "_is_fused", lambda: False)
    rng = np.random.default_rng(3)
    boxes = np.clip(random_boxes(rng, 60, 190, 230), 0, [230, 190, 230, 190]).astype(np.float32)
    steps = rng.integers(-3, 4, (60, 28, 28)) * rng.integers(0, 2, (60, 1, 1))
    probabilities = (0.5 + spread * steps).astype(np.float32)
    differing, _ = disagreements(boxes, probabilities, 190, 230)
    assert differing == 0


@pytest.mark.parametrize("limit", [10, 2**18])
def test_a_mask_full_of_undecided_pixels_is_resized_as_a_whole(limit, monkeypatch):
    monkeypatch.setattr(masks_module, "_MAX_UNDECIDED", limit)
    rng = np.random.default_rng(9)
    boxes = np.clip(random_boxes(rng, 40, 190, 230), -20, [250, 210, 250, 210]).astype(np.float32)
    probabilities = random_probabilities(rng, 40)
    probabilities[::3] = 0.5
    assert disagreements(boxes, probabilities, 190, 230)[0] == 0


def test_a_large_undecided_mask_needs_little_memory():
    tracemalloc.start()
    encode_masks(
        np.array([[0, 0, 2000, 1500]], np.float32), np.full((1, 28, 28), 0.5, np.float32), 1500, 2000
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20


def test_the_margin_exceeds_the_error_of_the_arithmetic():
    rng = np.random.default_rng(11)
    squares = np.pad(rng.random((1, 28, 28), np.float32), ((0, 0), (1, 1), (1, 1))).transpose(0, 2, 1)
    columns = 331
    x = masks_module._axis(np.array([0]), np.array([columns]), columns, 30)
    segments = masks_module._open_segments(squares, x)
    whole = masks_module._resize(
        squares[0].T, (30, columns)
    )  # the height of the square, so rows are unchanged
    values = whole[segments.square_row, segments.column]
    assert len(values) > 1000
    assert np.abs(values - segments.above).max() < masks_module.MARGIN / 5


@pytest.mark.parametrize("size", [14, 28, 56])
def test_squares_of_other_sizes_agree(size):
    rng = np.random.default_rng(size)
    boxes = np.clip(random_boxes(rng, 50, 90, 120), 0, [120, 90, 120, 90]).astype(np.float32)
    probabilities = rng.random((50, size, size), np.float32)
    assert disagreements(boxes, probabilities, 90, 120)[0] == 0


DISTANT_BOXES = [
    [-3e38, -3e38, 3e38, 3e38],
    [3e38, 3e38, 3.3e38, 3.3e38],
    [-3e38, -3e38, -2e38, -2e38],
    [3e38, 3e38, -3e38, -3e38],
    [-1e9, 10, 1e9, 20],
    [10, -40_000, 20, 40_000],
    [-1e7, -1e7, 1e7, 1e7],
    [0, 0, 0, 0],
    [-0.0, -0.0, 1e-38, 1e-38],
]


def test_distant_corners_cost_no_memory():
    boxes = np.array(DISTANT_BOXES, np.float32)
    tracemalloc.start()
    found = encode_masks(boxes, np.ones((len(boxes), 28, 28), np.float32), 48, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The strips of 10 pixels become 12 with torchvision's padding: 9.6 to 20.4 are truncated to 9 and 20.
    assert found.areas.tolist() == [48 * 64, 0, 0, 0, 64 * 12, 48 * 12, 48 * 64, 1, 1]
    assert peak < 2**20


def test_memory_does_not_depend_on_the_area_of_the_image():
    boxes = np.array([[30_000, 40_000, 30_200, 40_100]], np.float32)
    square = np.ones((1, 28, 28), np.float32)
    tracemalloc.start()
    encode_masks(boxes, square, 60_000, 60_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_boxes_that_are_not_finite_are_rejected(value):
    with pytest.raises(ValueError, match="not finite"):
        encode_masks(np.array([[0, 0, 5, value]], np.float32), np.ones((1, 28, 28), np.float32), 9, 9)


def test_detections_are_in_their_final_order_with_areas_and_touches_border():
    rng = np.random.default_rng(5)
    boxes = np.clip(random_boxes(rng, 40, 90, 120), 0, [120, 90, 120, 90]).astype(np.float32)
    labels = rng.integers(1, 4, 40).astype(np.int32)
    scores = np.round(rng.random(40), 1).astype(np.float32)
    probabilities = random_probabilities(rng, 40)
    found = detections_from_network(boxes, labels, scores, probabilities, height=90, width=120, capped=True)
    order = detection_order(boxes, labels, scores)
    assert (found.boxes == boxes[order]).all()
    assert (found.labels == labels[order]).all()
    assert (found.scores == scores[order]).all()
    assert (np.diff(found.scores) <= 0).all()
    assert found.masks == pasted(boxes[order], probabilities[order], 90, 120)
    whole = coco_mask.decode(found.rles())
    assert found.areas.tolist() == whole.sum((0, 1)).tolist()
    border = np.concatenate([whole[0], whole[-1], whole[:, 0], whole[:, -1]])
    assert found.touches_border.tolist() == border.any(0).tolist()
    assert found.capped
    assert 0 < np.count_nonzero(found.touches_border) < 40
    assert 0 in found.areas  # an empty mask is kept


def test_instances_in_many_groups_equal_those_in_one(monkeypatch):
    rng = np.random.default_rng(8)
    boxes, probabilities = random_boxes(rng, 80, 90, 120), random_probabilities(rng, 80)
    whole = encode_masks(boxes, probabilities, 90, 120)
    monkeypatch.setattr(masks_module, "_MAX_VALUES", 2000)
    parts = encode_masks(boxes, probabilities, 90, 120)
    assert parts.counts == whole.counts
    assert (parts.areas == whole.areas).all()
    assert (parts.boxes == whole.boxes).all()


def test_no_detections_have_empty_columns():
    none = np.empty(0, np.float32)
    found = detections_from_network(
        none.reshape(0, 4),
        none.astype(np.int32),
        none,
        none.reshape(0, 28, 28),
        height=5,
        width=6,
        capped=False,
    )
    assert len(found) == 0
    assert (found.height, found.width) == (5, 6)
