"""Masks are augmented like their image: objects painted in distinct colours are found again under their masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.training.augmentation import Augmentation, apply, apply_to_boxes, draw

IDENTITY = Augmentation(1.0, 0.0, 0.0, False, False, 1.0, 1.0, 1.0, 0.0)
FILL = (0.0, 0.0, 0.0)
COLORS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], np.uint8)


def painted(height, width, boxes):
    """Return an image with ellipses in distinct colours on black, and their masks."""
    y, x = np.mgrid[:height, :width] + 0.5
    pixels, masks = np.zeros((height, width, 3), np.uint8), []
    for color, (x0, y0, x1, y1) in zip(COLORS, boxes, strict=False):
        inside = ((x - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + (
            (y - (y0 + y1) / 2) / ((y1 - y0) / 2)
        ) ** 2 <= 1
        pixels[inside] = color
        masks.append(inside)
    encoded = [bytes(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]) for mask in masks]
    return pixels, encoded, masks


IMAGE = painted(96, 128, [(4, 6, 40, 50), (60, 10, 120, 40), (20, 60, 60, 90), (80, 50, 126, 94)])


def test_the_identity_augmentation_changes_nothing():
    pixels, encoded, masks = painted(64, 64, [(4, 6, 40, 50), (44, 20, 60, 62)])
    image, target = apply(pixels, encoded, [3, 5], IDENTITY, 64, FILL)
    assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(target["masks"].bool().numpy(), np.stack(masks))
    assert target["labels"].tolist() == [3, 5]


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(0.5, 0.5), (0.5, 2.0), (1.7, 1.7)]),
    st.sampled_from(["none", "horizontal", "both"]),
    st.sampled_from([64, 96, 160]),
)
def test_masks_cover_their_objects(seed, jitter, flips, side):
    pixels, encoded, _ = IMAGE
    drawn = draw(np.random.default_rng(seed), pixels.shape[:2], side, 1.0, jitter, flips, 0.0)
    image, target = apply(pixels, encoded, [1, 2, 3, 4], drawn, side, FILL)
    assert image.shape == (3, side, side)
    for label, mask, box in zip(target["labels"], target["masks"].bool(), target["boxes"], strict=True):
        color = torch.tensor(COLORS[int(label) - 1] / 255).float()
        like = (image - color[:, None, None]).abs().amax(0) < 0.5
        assert float((like & mask).sum() / (like | mask).sum()) > 0.9
        rows, columns = torch.where(mask.any(1))[0], torch.where(mask.any(0))[0]
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    # Objects that are left out are hardly visible.
    for label in {1, 2, 3, 4} - set(target["labels"].tolist()):
        color = torch.tensor(COLORS[label - 1] / 255).float()
        like = (image - color[:, None, None]).abs().amax(0) < 0.5
        whole = coco_mask.area({"size": [96, 128], "counts": encoded[label - 1]}) * drawn.scale**2
        assert float(like.sum()) <= max(0.13 * float(whole), 8)


def test_a_flip_reverses_image_and_masks():
    pixels, encoded, _ = IMAGE
    unchanged = apply(pixels, encoded, [1, 2, 3, 4], IDENTITY, 128, FILL)
    for field, axis in (("mirrored", -1), ("upside_down", -2)):
        flipped = Augmentation(
            **{**{name: getattr(IDENTITY, name) for name in IDENTITY.__slots__}, field: True}
        )
        image, target = apply(pixels, encoded, [1, 2, 3, 4], flipped, 128, FILL)
        assert torch.equal(image, unchanged[0].flip(axis))
        assert torch.equal(target["masks"], unchanged[1]["masks"].flip(axis))


def test_equal_seeds_give_equal_samples():
    pixels, encoded, _ = IMAGE
    made = [
        apply(pixels, encoded, [1, 2, 3, 4],
              draw(np.random.default_rng(seed), (96, 128), 64, 1.0, (0.5, 2.0), "both", 1.0), 64, FILL)
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1]["masks"], made[1][1]["masks"])
    assert not torch.equal(made[0][0], made[2][0])


def test_color_changes_leave_the_masks_unchanged():
    pixels, encoded, _ = IMAGE
    grey = (pixels // 2 + 60).astype(np.uint8)
    strong = Augmentation(1.0, 0.0, 0.0, False, False, 1.3, 0.7, 1.4, 0.05)
    image, target = apply(grey, encoded, [1, 2, 3, 4], strong, 128, FILL)
    unchanged, same = apply(grey, encoded, [1, 2, 3, 4], IDENTITY, 128, FILL)
    assert not torch.allclose(image, unchanged, atol=0.02)
    assert torch.equal(target["masks"], same["masks"])
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_an_object_hardly_visible_in_the_crop_is_left_out():
    pixels, encoded, _ = painted(64, 64, [(2, 2, 62, 62)])
    corner = Augmentation(1.0, 0.0, 0.0, False, False, 1.0, 1.0, 1.0, 0.0)
    _, target = apply(pixels, encoded, [1], corner, 16, FILL)
    assert len(target["labels"]) == len(target["masks"]) == len(target["boxes"]) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (300, 2)])
def test_images_of_unusual_shapes_give_samples(shape):
    pixels = np.full((*shape, 3), 200, np.uint8)
    drawn = draw(np.random.default_rng(0), shape, 64, 0.5, (0.2, 3.0), "both", 1.0)
    image, target = apply(pixels, [], [], drawn, 64, (0.25, 0.5, 0.75))
    assert image.shape == (3, 64, 64)
    assert torch.isfinite(image).all()
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 64, 64)


def test_an_image_with_hundreds_of_objects_gives_a_sample():
    """pycocotools computes the areas of at most 255 masks per call."""
    boxes = [(x, y, x + 3, y + 3) for y in range(0, 64, 4) for x in range(0, 80, 4)]
    encoded = []
    for x0, y0, x1, y1 in boxes:
        mask = np.zeros((64, 80), np.uint8, order="F")
        mask[y0:y1, x0:x1] = 1
        encoded.append(bytes(coco_mask.encode(mask)["counts"]))
    assert len(encoded) > 300
    _, target = apply(np.zeros((64, 80, 3), np.uint8), encoded, [1] * len(encoded), IDENTITY, 80, FILL)
    assert target["boxes"].tolist() == [list(map(float, box)) for box in boxes]


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from(["none", "horizontal", "both"]),
    st.sampled_from([64, 96, 160]),
)
def test_boxes_are_augmented_as_their_masks_are(seed, aspect, flips, side):
    """For rectangles, the sample and the boxes are those of the masks, but for their rounding to pixels."""
    boxes = [(4, 6, 40, 50), (60, 10, 120, 40), (20, 60, 60, 90), (80, 50, 126, 94)]
    pixels, masks = np.zeros((96, 128, 3), np.uint8), []
    for color, (x0, y0, x1, y1) in zip(COLORS, boxes, strict=True):
        mask = np.zeros((96, 128), np.uint8, order="F")
        mask[y0:y1, x0:x1] = 1
        pixels[mask > 0] = color
        masks.append(bytes(coco_mask.encode(mask)["counts"]))
    drawn = draw(np.random.default_rng(seed), (96, 128), side, 1.0, (0.5, 2.0), flips, 0.5, aspect)
    of_masks = apply(pixels, masks, [1, 2, 3, 4], drawn, side, FILL)
    of_boxes = apply_to_boxes(pixels, boxes, [1, 2, 3, 4], drawn, side, FILL)
    assert torch.equal(of_masks[0], of_boxes[0])
    assert "masks" not in of_boxes[1]
    found, expected = (
        dict(zip(target["labels"].tolist(), target["boxes"], strict=True))
        for _, target in (of_boxes, of_masks)
    )
    for label in found.keys() & expected.keys():
        assert float((found[label] - expected[label]).abs().max()) <= 1.0
        assert 0 <= float(found[label].min()) <= float(found[label].max()) <= side
    for label in found.keys() ^ expected.keys():  # near the limit of what is hardly visible
        target = found.get(label, expected.get(label))
        assert float((target[2:] - target[:2]).min()) < 0.25 * side


def test_a_square_shows_the_whole_image_however_it_is_shaped():
    """As an SSD's resize does: each axis has a scale of its own."""
    pixels = np.zeros((50, 200, 3), np.uint8)
    pixels[10:30, 100:180] = COLORS[0]
    aspect = 50 / 200
    image, target = apply_to_boxes(
        pixels, [(100, 10, 180, 30)], [1], Augmentation(**{**{n: getattr(IDENTITY, n) for n in IDENTITY.__slots__},
        "scale": 100 / 50, "aspect": aspect}), 100, FILL,
    )  # fmt: skip
    assert target["boxes"].tolist() == [[50, 20, 90, 60]]
    assert float(image[0, 20:60, 50:90].min()) > 0.4
    assert float(image.sum()) == pytest.approx(40 * 40, rel=0.05)
    assert target["labels"].tolist() == [1]


def test_a_box_without_four_visible_pixels_is_left_out():
    pixels = np.zeros((64, 64, 3), np.uint8)
    boxes = [(0, 0, 64, 64), (15.5, 0, 40, 8), (2, 2, 3.5, 4), (20, 20, 30, 30), (3, 3, 8.5, 9)]
    _, target = apply_to_boxes(pixels, boxes, [1, 2, 3, 4, 5], IDENTITY, 16, FILL)
    assert target["labels"].tolist() == [5]
    assert target["boxes"].tolist() == [[3, 3, 8.5, 9]]
    _, target = apply_to_boxes(pixels, [], [], IDENTITY, 16, FILL)
    assert target["boxes"].shape == (0, 4)
