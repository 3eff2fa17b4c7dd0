"""Values are valid or do not exist."""

from typing import Any

import numpy as np
import pytest

from maskrcnn.errors import ERROR_CODES, ItemError
from maskrcnn.types import Category, Detections, InvalidDetectionsError, detection_order

COLUMNS: dict[str, Any] = {
    "boxes": np.zeros((2, 4), np.float32),
    "labels": np.ones(2, np.int32),
    "scores": np.zeros(2, np.float32),
    "masks": (b"4", b"4"),
    "areas": np.zeros(2, np.int64),
    "mask_boxes": np.zeros((2, 4), np.int32),
}


def test_columns_agree() -> None:
    detections = Detections(height=2, width=2, capped=False, **COLUMNS)
    assert len(detections) == 2
    assert repr(detections) == "<Detections: 2 instances in an image of 2 x 2 pixels>"
    assert detections.rles()[0] == {"size": [2, 2], "counts": b"4"}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("boxes", np.zeros((3, 4), np.float32)),
        ("boxes", np.zeros((2, 4), np.float64)),
        ("labels", np.ones(2, np.int64)),
        ("scores", np.zeros((2, 1), np.float32)),
        ("areas", np.zeros(1, np.int64)),
        ("mask_boxes", np.zeros((2, 4), np.int64)),
        ("masks", (b"4",)),
    ],
)
def test_a_column_of_another_shape_or_dtype_is_refused(name: str, column: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Detections(height=2, width=2, capped=False, **(COLUMNS | {name: column}))


@pytest.mark.parametrize(
    "boxes", [[[0, 0, 1, 1]], np.zeros(4, np.float32), np.zeros((1, 5), np.float32), None]
)
def test_boxes_that_are_no_array_of_four_columns_are_named(boxes: Any) -> None:
    with pytest.raises(InvalidDetectionsError, match=r"`boxes` is .*, expected an array of float32 \(N, 4\)"):
        Detections.of_boxes(9, 9, boxes, np.ones(1, np.int32), np.ones(1, np.float32), capped=False)


def test_an_edge_is_touched_by_the_mask_s_own_box() -> None:
    boxes = np.array(
        [[0, 1, 2, 2], [1, 0, 2, 2], [1, 1, 4, 2], [1, 1, 2, 3], [1, 1, 3, 2], [0, 0, 0, 0]], np.int32
    )
    columns = {
        name: np.resize(column, (6, *column.shape[1:])) for name, column in COLUMNS.items() if name != "masks"
    }
    detections = Detections(
        height=3, width=4, capped=False, **(columns | {"masks": (b"4",) * 6, "mask_boxes": boxes})
    )
    assert detections.touches_border.tolist() == [True, True, True, True, False, False]


def test_the_order_is_by_score_then_category_then_box() -> None:
    scores = np.array([0.5, 0.9, 0.5, 0.5], np.float32)
    labels = np.array([2, 1, 1, 1], np.int32)
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [5, 0, 6, 1], [2, 0, 3, 1]], np.float32)
    assert detection_order(boxes, labels, scores).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("number", [-1, 2**31])
def test_a_category_id_is_a_name_and_fits_int32(number: int) -> None:
    """COCO files may use 0; the label of the network is another number, see `ModelCard.category_ids`."""
    with pytest.raises(ValueError, match="a category id is from 0"):
        Category(number, "sky")
    assert Category(0, "sky").id == 0
    assert Category(2**31 - 1, "sky").id == np.iinfo(np.int32).max


def test_an_item_error_has_a_known_code_and_one_line() -> None:
    error = ItemError("corrupt", "bad\n  block")
    assert (error.code, error.message, str(error)) == ("corrupt", "bad block", "corrupt: bad block")
    with pytest.raises(ValueError, match="unknown error code"):
        ItemError("no_such_code", "")
    assert all(meaning for meaning in ERROR_CODES.values())
