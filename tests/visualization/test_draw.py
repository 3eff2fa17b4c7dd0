"""Pictures show masks at their positions, with names, and are legible at any size."""

import itertools

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn.types import Category, Detections
from maskrcnn.visualization.draw import contact_sheet, draw_instances, draw_mask, instance_color

CATEGORIES = (Category(1, "person"), Category(3, "car"))


def _grey(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def _detections(
    height: int, width: int, *objects: tuple[tuple[int, int, int, int], float, int]
) -> Detections:
    """Objects are (left, top, right, bottom of a rectangular mask, score, label); boxes are two pixels larger."""
    masks = []
    for (left, top, right, bottom), _, _ in objects:
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[top:bottom, left:right] = 1
        masks.append(mask)
    corners = np.array([corners for corners, _, _ in objects], np.float32).reshape(-1, 4)
    return Detections(
        height=height,
        width=width,
        boxes=corners + np.array([-2, -2, 2, 2], np.float32),
        labels=np.array([label for *_, label in objects], np.int32),
        scores=np.array([score for _, score, _ in objects], np.float32),
        masks=tuple(coco_mask.encode(mask)["counts"] for mask in masks),
        areas=np.array([mask.sum() for mask in masks], np.int64),
        mask_boxes=np.zeros((len(masks), 4), np.int32),
        capped=False,
    )


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(axis=2)


# draw_instances


def test_a_mask_is_translucent_and_has_an_outline():
    pixels = _grey(400, 600)
    picture = draw_instances(pixels, _detections(400, 600, ((200, 150, 320, 300), 0.9, 1)), CATEGORIES)
    color = np.array(instance_color(0))
    assert np.array_equal(picture[150, 260], color)  # the rim
    between = np.sign(color - 128) * (picture[225, 260].astype(int) - 128)
    assert ((between > 0) & (between < np.abs(color - 128))).all()  # the inside
    # Beyond the box (a margin of 2) and its label, nothing changes.
    assert not _changed(pixels, picture)[303:].any()
    assert not _changed(pixels, picture)[:, 325:].any()


def test_the_image_itself_is_not_changed_and_the_picture_is_deterministic():
    pixels, detections = _grey(200, 300), _detections(200, 300, ((20, 30, 90, 80), 0.9, 1))
    first, second = (draw_instances(pixels, detections, CATEGORIES) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(pixels, _grey(200, 300))


def test_low_scores_are_left_out_without_changing_other_colors():
    pixels = _grey(300, 400)
    strong, weak = ((250, 200, 300, 250), 0.9, 3), ((20, 50, 90, 120), 0.4, 1)
    both = _detections(300, 400, strong, weak)
    assert np.array_equal(
        draw_instances(pixels, both, CATEGORIES),
        draw_instances(pixels, _detections(300, 400, strong), CATEGORIES),
    )
    assert np.array_equal(draw_instances(pixels, both, CATEGORIES, min_score=0.95), pixels)

    # Without the first, the second keeps its number's colour.
    order = _detections(300, 400, ((250, 200, 300, 250), 0.3, 3), ((20, 50, 90, 120), 0.9, 1))
    assert np.array_equal(draw_instances(pixels, order, CATEGORIES)[120 - 1, 50], instance_color(1))


def test_small_objects_remain_visible_in_front_of_large_ones():
    pixels = _grey(300, 400)
    behind, front = ((10, 10, 390, 290), 0.99, 1), ((150, 100, 200, 150), 0.5, 3)
    picture = draw_instances(pixels, _detections(300, 400, behind, front), CATEGORIES)
    assert np.array_equal(picture[149, 175], instance_color(1))


def test_region_and_size():
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    detections = _detections(300, 400, ((100, 100, 200, 200), 0.9, 1))
    whole = draw_instances(pixels, detections, CATEGORIES)
    assert np.array_equal(draw_instances(pixels, detections, CATEGORIES, region=(0, 0, 400, 300)), whole)
    assert draw_instances(pixels, detections, CATEGORIES, max_side=100).shape == (75, 100, 3)
    assert draw_instances(pixels, detections, CATEGORIES, min_side=800).shape == (600, 800, 3)
    assert draw_instances(pixels, detections, CATEGORIES, region=(90, 95, 210, 205)).shape == (110, 120, 3)

    # Elsewhere there is nothing to draw.
    corner = draw_instances(pixels, detections, CATEGORIES, region=(300, 220, 400, 300))
    assert np.array_equal(corner, pixels[220:300, 300:400])


def test_a_mask_cropped_by_the_region_has_no_outline_there():
    pixels = _grey(400, 400)
    detections = _detections(400, 400, ((50, 50, 350, 350), 0.9, 1))
    picture = draw_instances(pixels, detections, CATEGORIES, region=(100, 100, 300, 300))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1  # the label
    assert np.array_equal(picture[199, 100], picture[150, 100])


@pytest.mark.slow
@pytest.mark.parametrize(("side", "line"), [(200, 1), (800, 2), (4000, 10)])
def test_lines_and_type_scale_with_the_picture(side: int, line: int):
    pixels = _grey(side, side)
    low, high = side // 4, side // 2
    picture = draw_instances(pixels, _detections(side, side, ((low, low, high, high), 0.9, 1)), CATEGORIES)
    row = picture[(low + high) // 2, low : low + 3 * line + 20]
    assert (row == instance_color(0)).all(axis=1).sum() in (line, line + max(0, line - 2))

    label = _changed(pixels, picture)[: low - 2 - line]
    assert label.any(axis=1).sum() >= max(9, side // 50)
    assert label.any(axis=1).sum() < side / 8


def test_small_pictures_have_no_labels_unless_enlarged():
    pixels = _grey(64, 64)
    detections = _detections(64, 64, ((20, 30, 40, 50), 0.9, 1))
    assert not _changed(pixels, draw_instances(pixels, detections, CATEGORIES))[:27].any()
    larger = draw_instances(pixels, detections, CATEGORIES, min_side=320)
    assert _changed(_grey(320, 320), larger)[:130].any()


def test_labels_do_not_overlap_if_there_is_room():
    pixels = _grey(400, 400)
    same = ((100, 100, 300, 300), 0.9, 1)
    one = _changed(pixels, draw_instances(pixels, _detections(400, 400, same), CATEGORIES))
    picture = draw_instances(pixels, _detections(400, 400, same, same), CATEGORIES)
    # The first stands above the box, the second inside at its top.
    above, below = picture[93, 98], picture[103, 98]
    assert one[93, 98]
    assert {tuple(above.tolist()), tuple(below.tolist())} == {instance_color(0), instance_color(1)}


def test_labels_of_an_only_category_are_left_out_where_they_would_cover_more_than_the_objects():
    pixels = _grey(400, 400)
    small = _detections(400, 400, *[((x, 100, x + 8, 108), 0.9, 1) for x in range(40, 360, 30)])
    large = _detections(400, 400, ((100, 100, 300, 300), 0.9, 1))
    for detections, labelled in ((small, False), (large, True)):
        picture = draw_instances(pixels, detections, CATEGORIES[:1])
        assert _changed(pixels, picture)[:97].any() == labelled
        assert _changed(pixels, draw_instances(pixels, detections, CATEGORIES))[:97].any()


@pytest.mark.parametrize(
    "name", ["", "\n\t", "<b>x</b>", "ein sehr, sehr langer Name " * 40, "日本語 🦒", "\x00"]
)
def test_any_name_can_be_drawn(name: str):
    detections = _detections(200, 200, ((50, 50, 99, 99), 0.9, 1))
    assert draw_instances(_grey(200, 200), detections, [Category(1, name)]).shape == (200, 200, 3)


def test_empty_masks_unknown_labels_and_no_detections():
    pixels = _grey(200, 300)
    empty = _detections(200, 300, ((50, 50, 50, 50), 0.9, 77))
    assert _changed(pixels, draw_instances(pixels, empty, CATEGORIES)).any()  # its box and number
    assert np.array_equal(draw_instances(pixels, _detections(200, 300), CATEGORIES), pixels)


def test_detections_of_another_image_are_refused():
    with pytest.raises(ValueError, match="300 x 200 pixels, but this one has 200 x 300"):
        draw_instances(_grey(300, 200), _detections(200, 300), CATEGORIES)
    with pytest.raises(ValueError, match="region"):
        draw_instances(_grey(200, 300), _detections(200, 300), CATEGORIES, region=(0, 0, 301, 200))


# Colours


def test_successive_colors_are_distinct_and_visible_on_black_and_white():
    colors = [np.array(instance_color(k)) for k in range(60)]
    for k, color in enumerate(colors):
        assert color.max() > 110, "shows on black"
        assert color.min() < 190, "shows on white"
        for other in colors[max(0, k - 4) : k]:
            assert np.abs(color - other).sum() > 90
    assert len({tuple(color) for color in colors}) == 60


# draw_mask


def test_a_highlighted_instance_keeps_its_pixels_and_the_rest_is_grey():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
    mask = np.asfortranarray(rng.random((120, 160)) < 0.5).astype(np.uint8, order="F")
    mask[40:80, 40:80] = 1
    picture = draw_mask(pixels, coco_mask.encode(mask))
    outside = picture[mask == 0]
    assert (outside == outside[:, :1]).all()
    assert np.array_equal(picture[42:78, 42:78], pixels[42:78, 42:78])


def test_counts_may_be_str_as_in_parquet():
    rle = _detections(60, 80, ((10, 10, 30, 30), 0.9, 1)).rles()[0]
    text = rle | {"counts": rle["counts"].decode("ascii")}
    assert np.array_equal(draw_mask(_grey(60, 80), text), draw_mask(_grey(60, 80), rle))


def test_a_mask_of_another_image_is_refused():
    with pytest.raises(ValueError, match=r"size \[60, 80\], the image \[80, 60\]"):
        draw_mask(_grey(80, 60), _detections(60, 80, ((1, 1, 2, 2), 0.9, 1)).rles()[0])


# contact_sheet


def test_a_contact_sheet_shows_every_image_row_by_row():
    images = [_grey(30, 40, value) for value in (10, 60, 110, 160, 210)]
    sheet = contact_sheet(images, 3, cell_px=40, gap_px=5)
    assert sheet.shape == (2 * 30 + 3 * 5, 3 * 40 + 4 * 5, 3)
    for k, (row, column) in enumerate(itertools.islice(itertools.product(range(2), range(3)), 5)):
        top, left = 5 + row * 35, 5 + column * 45
        assert np.array_equal(sheet[top : top + 30, left : left + 40], images[k])
    assert (sheet[40:70, 95:135] == 255).all()  # the sixth place is empty


def test_a_contact_sheet_reduces_large_images_and_may_be_empty():
    assert contact_sheet([_grey(1000, 500)], 4, cell_px=100, gap_px=2).shape == (104, 104, 3)
    assert (contact_sheet([], 4, cell_px=50, gap_px=1) == 255).all()
    with pytest.raises(ValueError, match="there must be at least 1"):
        contact_sheet([], 0)
