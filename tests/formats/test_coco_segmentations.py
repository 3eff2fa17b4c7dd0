"""A `segmentation` is read, or named by what it is instead."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.formats import coco_segmentations as kinds
from maskrcnn.formats.coco_segmentations import polygon_areas, read_segmentation

TRIANGLE = [1.5, 2.0, 9.0, 2.0, 9.0, 9.5]
PAIRS = [[1.5, 2.0], [9.0, 2.0], [9.0, 9.5]]
RUNS = {"size": [4, 5], "counts": [3, 2, 15]}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        # polygons
        (TRIANGLE, kinds.ONE_LIST),
        (["1", "2", "9", "2", "9", "8"], kinds.ONE_LIST),
        (PAIRS, kinds.PAIRS),
        ([[1, 2], [3, 4]], kinds.PAIRS),
        ([PAIRS], kinds.PAIRS),
        ([PAIRS, TRIANGLE], kinds.PAIRS),
        ([[{"x": 1, "y": 2}, {"x": 3, "y": 2}, {"x": 3, "y": 4}]], kinds.PAIRS),
        ([{"x": 1, "y": 2}, {"x": 3, "y": 2}, {"x": 3, "y": 4}], kinds.PAIRS),
        ([[str(number) for number in TRIANGLE]], kinds.TEXTS),
        ([["1e3", " 2.5", "-3", "4", "5", "6", "7"]], kinds.TEXTS),
        ([["a"] * 6], kinds.NO_NUMBERS),
        ([[None] * 6], kinds.NO_NUMBERS),
        ([[*TRIANGLE, "1", "2"]], kinds.NO_NUMBERS),
        ([[*TRIANGLE, 1]], kinds.ODD_COUNT),
        ([TRIANGLE, [*TRIANGLE, 1]], kinds.ODD_COUNT),
        ([[1, 2, 3, 4]], kinds.FEW_POINTS),
        ([[1, 2, 3, 4, 5]], kinds.FEW_POINTS),
        ([[]], kinds.FEW_POINTS),
        ([TRIANGLE, []], kinds.FEW_POINTS),
        ([TRIANGLE, "1 2 3"], kinds.NOT_A_LIST),
        ([TRIANGLE, None], kinds.NOT_A_LIST),
        ([[1, 2, 3, 4, 5, float("nan")]], kinds.NOT_FINITE),
        ([[1, 2, 3, 4, 5, 10**400]], kinds.NOT_FINITE),
        # run lengths
        ([RUNS], kinds.IN_A_LIST),
        ([RUNS, RUNS], kinds.IN_A_LIST),
        ({"counts": [3, 2, 15]}, kinds.NO_SIZE),
        ({"counts": "32?", "size": None}, kinds.NO_SIZE),
        (RUNS | {"size": ["4", "5"]}, kinds.TEXT_SIZE),
        (RUNS | {"size": [4, 5, 1]}, kinds.BAD_SIZE),
        (RUNS | {"size": [4.5, 5]}, kinds.BAD_SIZE),
        (RUNS | {"size": "4x5"}, kinds.BAD_SIZE),
        (RUNS | {"size": {"height": 4, "width": 5}}, kinds.BAD_SIZE),
        (RUNS | {"size": [0, 5]}, kinds.OTHER_SIZE),
        (RUNS | {"size": [10**12, 2]}, kinds.OTHER_SIZE),
        ({"size": [4, 5]}, kinds.NO_COUNTS),
        (RUNS | {"counts": str(b"32?")}, kinds.BYTES),
        (RUNS | {"counts": str(b"3'2?")}, kinds.BYTES),
        (RUNS | {"counts": ["3", "2", "15"]}, kinds.TEXT_COUNTS),
        (RUNS | {"counts": [3, 2, 14]}, kinds.DAMAGED),
        (RUNS | {"counts": [-3, 8, 15]}, kinds.DAMAGED),
        (RUNS | {"counts": []}, kinds.DAMAGED),
        (RUNS | {"counts": 20}, kinds.DAMAGED),
        # neither
        ("[[1, 2, 3, 4, 5, 6]]", kinds.TEXT),
        (7, kinds.NEITHER),
        (True, kinds.NEITHER),
    ],
    ids=str,
)
def test_what_is_no_segmentation_is_named_by_what_it_is(value: Any, kind: str) -> None:
    assert read_segmentation(value) == kind


@pytest.mark.parametrize("value", [None, [], {}, "", 0, False])
def test_nothing_is_no_segmentation_and_no_fault(value: Any) -> None:
    assert read_segmentation(value) == kinds.NONE


def test_polygons_and_run_lengths_keep_what_they_say() -> None:
    shape = read_segmentation([TRIANGLE, [0, 0, 4, 0, 4, 4, 0, 4]])
    assert isinstance(shape, kinds.Shape)
    assert shape.rings == [6, 8]
    assert np.frombuffer(shape.data or b"").tolist() == [*TRIANGLE, 0, 0, 4, 0, 4, 4, 0, 4]
    shape = read_segmentation(RUNS)
    assert isinstance(shape, kinds.Shape)
    assert (shape.height, shape.width, shape.rings) == (4, 5, [])
    assert coco_mask.decode({"size": [4, 5], "counts": shape.data}).sum() == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["7", "b'x'", "oops", ""]),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.sampled_from(["size", "counts", "x", "y"]), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(JSON)
def test_every_json_value_is_a_shape_or_is_named(value: Any) -> None:
    shape = read_segmentation(value)
    if isinstance(shape, str):
        assert shape in vars(kinds).values()
    else:
        assert (shape.data is None) == (not value)


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(1, 50), st.integers(1, 50)),
            max_size=3,
        ),
        max_size=4,
    )
)
def test_the_areas_of_rectangles_are_sums_of_their_products(
    polygons: list[list[tuple[int, int, int, int]]],
) -> None:
    data = [
        np.array([[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes], np.float64).tobytes()
        for boxes in polygons
    ]
    areas = polygon_areas(data, [[8] * len(boxes) for boxes in polygons])
    expected = [sum(w * h for *_, w, h in boxes) or np.nan for boxes in polygons]
    assert areas.tolist() == pytest.approx(expected, nan_ok=True)


def test_rings_of_several_lengths_are_kept_apart() -> None:
    triangle, square = [0.0, 0, 4, 0, 4, 4], [10.0, 10, 13, 10, 13, 13, 10, 13]
    data = [np.array([*triangle, *square]).tobytes(), b"3", np.array(square).tobytes()]
    assert polygon_areas(data, [[6, 8], [], [8]]).tolist() == pytest.approx([17, np.nan, 9], nan_ok=True)
