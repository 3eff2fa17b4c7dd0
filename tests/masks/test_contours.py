"""Contours, rasterized again by rasterio and validated by shapely."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from maskrcnn.masks.contours import Rings, trace
from maskrcnn.masks.rle_decode import read_spans
from maskrcnn.masks.spans import Spans

rasterio = pytest.importorskip("rasterio")
shapely = pytest.importorskip("shapely")
from rasterio.features import rasterize, shapes  # noqa: E402

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.lists(hnp.arrays(np.bool_, shape), min_size=1, max_size=5)
)
DIAGONAL = np.eye(3, dtype=np.bool_)
TOUCHING_RING = np.array([[0, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], np.bool_)
TOUCHING_HOLES = np.pad(~DIAGONAL, 1, constant_values=True)
NESTED = np.pad(np.pad(np.pad(np.ones((1, 1), np.bool_), 1), 2, constant_values=True), 1)
HOLE_MEETS_BORDER = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]], np.bool_)
CHECKERS = np.indices((8, 9)).sum(axis=0) % 2 == 0
STAIRS = np.tri(7, dtype=np.bool_)


def traced(masks: list[np.ndarray]) -> Rings:
    texts = [coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks]
    return trace(read_spans(texts, *masks[0].shape))


def polygons_of(rings: Rings) -> tuple[np.ndarray, np.ndarray]:
    """Return the polygons in pixel coordinates, and the mask of each."""
    lines = shapely.linearrings(np.stack([rings.columns, rings.rows], axis=1), indices=rings.ring)
    return shapely.polygons(lines, indices=rings.polygon), rings.mask


def with_edge_cases(test):
    for masks in (
        [DIAGONAL, DIAGONAL[::-1]],
        [TOUCHING_RING],
        [TOUCHING_HOLES],
        [NESTED],
        [HOLE_MEETS_BORDER],
    ):
        test = example(masks)(test)
    return example([CHECKERS, ~CHECKERS])(example([STAIRS, STAIRS[::-1], STAIRS.T])(test))


@pytest.mark.slow
@given(MASKS)
@with_edge_cases
@settings(max_examples=300)
def test_rasterized_polygons_equal_their_masks(masks: list[np.ndarray]) -> None:
    polygons, owner = polygons_of(traced(masks))
    assert sorted(set(owner)) == [number for number, mask in enumerate(masks) if mask.any()]
    for number, mask in enumerate(masks):
        own = polygons[owner == number]
        assert shapely.is_valid(own).all()
        assert shapely.is_valid(shapely.multipolygons(own))
        assert shapely.area(own).sum() == mask.sum()
        rasterized = rasterize(list(own), out_shape=mask.shape) if len(own) else np.zeros(mask.shape)
        assert np.array_equal(rasterized, mask)


@pytest.mark.slow
@given(MASKS)
@with_edge_cases
def test_polygons_are_the_4_connected_components(masks: list[np.ndarray]) -> None:
    """GDAL polygonizes the masks to the same polygons."""
    polygons, owner = polygons_of(traced(masks))
    for number, mask in enumerate(masks):
        theirs = [shapely.geometry.shape(s) for s, _ in shapes(mask.astype(np.uint8), mask, connectivity=4)]
        ours = polygons[owner == number]
        assert len(ours) == len(theirs)
        for polygon in theirs:
            assert sum(polygon.equals(own) for own in ours) == 1


@given(MASKS)
def test_every_corner_is_a_turn_and_shells_run_clockwise_on_the_screen(masks: list[np.ndarray]) -> None:
    rings = traced(masks)
    polygons, _ = polygons_of(rings)
    # Rows point down: counterclockwise in coordinates is clockwise on the screen.
    assert shapely.is_ccw(shapely.get_exterior_ring(polygons)).all()
    inner = [hole for polygon in polygons for hole in polygon.interiors]
    assert not shapely.is_ccw(inner).any()
    for ring in np.unique(rings.ring):
        of_ring = rings.ring == ring
        corners = np.stack([rings.columns[of_ring], rings.rows[of_ring]], axis=1)
        steps = np.roll(corners, -1, axis=0) - corners
        assert ((steps == 0).sum(axis=1) == 1).all()
        assert ((steps[:, 0] == 0) != (np.roll(steps[:, 0], -1) == 0)).all()
        assert len(np.unique(corners, axis=0)) == len(corners)


def test_masks_far_from_the_origin_or_with_negative_coordinates_are_traced() -> None:
    spans = Spans(
        *(np.array(v) for v in ([0, 1, 1], [-5, 7, 8], [-3, 2**40, 2**40], [4, 2**40 + 1, 2**40 + 1])), 2
    )
    polygons, owner = polygons_of(trace(spans))
    assert owner.tolist() == [0, 1]
    assert shapely.bounds(polygons).tolist() == [[-5, -3, -4, 4], [7, 2**40, 9, 2**40 + 1]]


def test_empty_masks_have_no_contour() -> None:
    empty = np.empty(0, np.int64)
    rings = trace(Spans(empty, empty, empty, empty, 3))
    assert [len(column) for column in rings] == [0] * 5


def test_the_cost_of_a_large_mask_depends_on_its_contour() -> None:
    """A comb of 20,000 teeth in an image of a billion pixels is one ring of 80,000 corners."""
    columns = np.arange(40_001)
    spans = Spans(
        np.zeros_like(columns), columns, np.zeros_like(columns), np.where(columns % 2, 1, 25_000), 1
    )
    rings = trace(spans)
    assert len(rings.polygon) == len(rings.mask) == 1
    assert len(rings.rows) == 80_004
    [polygon], _ = polygons_of(rings)
    assert polygon.area == 20_001 * 25_000 + 20_000


def test_contours_that_touch_themselves_become_shells_with_holes() -> None:
    polygons, _ = polygons_of(traced([TOUCHING_RING]))
    assert [len(polygon.interiors) for polygon in polygons] == [1]
    polygons, _ = polygons_of(traced([TOUCHING_HOLES]))
    assert [len(polygon.interiors) for polygon in polygons] == [3]
    polygons, owner = polygons_of(traced([DIAGONAL]))
    assert len(polygons) == 3
    assert set(owner) == {0}
