"""Operations on spans equal those of numpy on filled masks."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from maskrcnn.masks.rle import encode_changes
from maskrcnn.masks.rle_decode import read_spans
from maskrcnn.masks.spans import Spans, ranges

PAD = 5


@st.composite
def stacks(draw: st.DrawFn, min_masks: int = 0) -> np.ndarray:
    """Draw masks of one size, (N, height, width), which may be empty, full, or touch the border."""
    shape = draw(st.tuples(st.integers(min_masks, 4), st.integers(1, 9), st.integers(1, 9)))
    return draw(hnp.arrays(np.bool_, shape, fill=st.booleans()))


def texts(masks: np.ndarray) -> list[bytes]:
    return [coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks]


def read(masks: np.ndarray) -> Spans:
    return read_spans(texts(masks), masks.shape[1], masks.shape[2])


def filled(spans: Spans, height: int, width: int, pad: int = 0) -> np.ndarray:
    """Fill masks from spans, and check the documented order of the spans."""
    masks = np.zeros((spans.n, height + 2 * pad, width + 2 * pad), np.bool_)
    for of, column, start, stop in zip(spans.of, spans.column, spans.start, spans.stop, strict=True):
        assert start < stop
        masks[of, start + pad : stop + pad, column + pad] = True
    order = np.lexsort((spans.start, spans.column, spans.of))
    assert order.tolist() == list(range(len(spans.of)))
    together = (np.diff(spans.of) == 0) & (np.diff(spans.column) == 0)
    assert (spans.start[1:] > spans.stop[:-1])[together].all()
    return masks


def neighbours(masks: np.ndarray, pixels: int) -> np.ndarray:
    """Return all pixels around each pixel, (K, N, height, width); those outside the masks are False."""
    _, height, width = masks.shape
    padded = np.pad(masks, ((0, 0), (pixels, pixels), (pixels, pixels)))
    around = range(2 * pixels + 1)
    return np.array([padded[:, y : y + height, x : x + width] for y in around for x in around])


@given(stacks())
def test_spans_round_trip_through_run_lengths(masks: np.ndarray) -> None:
    n, height, width = masks.shape
    spans = read(masks)
    assert (filled(spans, height, width) == masks).all()
    assert spans.areas.tolist() == masks.sum((1, 2)).tolist()
    encoded = encode_changes(*spans.changes, n, height, width)
    assert list(encoded.counts) == texts(masks)
    assert encoded.boxes.tolist() == spans.boxes.tolist()


def test_runs_without_a_zero_between_them_are_merged() -> None:
    rle = coco_mask.frPyObjects([{"size": [4, 2], "counts": [1, 1, 0, 2, 0, 1, 3]}], 4, 2)[0]
    spans = read_spans([rle["counts"]], 4, 2)
    assert [values.tolist() for values in spans[:4]] == [[0, 0], [0, 1], [1, 0], [4, 1]]


@pytest.mark.parametrize("text", [b"", b"0", b"21", b"~~~"])
def test_an_invalid_mask_of_the_frame_is_rejected(text: bytes) -> None:
    with pytest.raises(ValueError, match="mask 1 is not a valid mask of 2 x 4 pixels"):
        read_spans([b"21102", text], 2, 4)


def test_an_empty_box_splits_no_span() -> None:
    spans = read(np.ones((1, 2, 1), np.bool_))
    assert (filled(spans.outside(np.array([0, 1, 1, 1])), 2, 1) == 1).all()


@given(stacks(1), st.data())
def test_masks_are_selected_shifted_and_cropped(masks: np.ndarray, data: st.DataObject) -> None:
    n, height, width = masks.shape
    spans = read(masks)
    ids = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=5)), np.intp)
    taken = spans.take(ids)
    assert (filled(taken, height, width) == masks[ids]).all()
    moves = np.array(data.draw(st.lists(st.tuples(*[st.integers(-PAD, PAD)] * 2), min_size=n, max_size=n)))
    moved = filled(spans.shifted(moves[:, 0], moves[:, 1]), height, width, PAD)
    back = [
        mask[PAD + y : PAD + y + height, PAD + x : PAD + x + width]
        for mask, (x, y) in zip(moved, moves, strict=True)
    ]
    assert (np.array(back) == masks).all()
    box = np.array(data.draw(st.tuples(*[st.integers(-2, 11)] * 4)))
    y, x = np.mgrid[:height, :width]
    inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    assert (filled(spans.within(box), height, width) == (masks & inside)).all()
    if (box[:2] <= box[2:]).all():
        assert (filled(spans.outside(box), height, width) == (masks & ~inside)).all()


@given(stacks(), st.integers(0, 3))
def test_dilation_and_erosion(masks: np.ndarray, pixels: int) -> None:
    _, height, width = masks.shape
    spans = read(masks)
    grown = filled(spans.grown(pixels), height, width, PAD)
    padded = np.pad(masks, ((0, 0), (PAD, PAD), (PAD, PAD)))
    assert (grown == neighbours(padded, pixels).any(0)).all()
    assert (filled(spans.shrunk(pixels), height, width) == neighbours(masks, pixels).all(0)).all()


@given(st.data())
def test_overlaps_are_counted_per_mask(data: st.DataObject) -> None:
    ours = data.draw(stacks())
    theirs = data.draw(hnp.arrays(np.bool_, ours.shape))
    assert read(ours).overlaps(read(theirs)).tolist() == (ours & theirs).sum((1, 2)).tolist()


@given(stacks(1), st.data())
def test_unions(masks: np.ndarray, data: st.DataObject) -> None:
    n, height, width = masks.shape
    of = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    merged = filled(read(masks).merged(of, 3), height, width)
    assert (merged == [masks[of == one].any(0) for one in range(3)]).all()


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.integers(0, 2**20))
def test_operations_are_exact_far_from_the_origin(far: int, farther: int) -> None:
    moves: Callable[[int], np.ndarray] = lambda by: np.array([by])  # noqa: E731
    here = read(np.eye(5, dtype=np.bool_)[None])
    there = here.shifted(moves(far), moves(farther))
    back = there.grown(2).shrunk(1).shifted(moves(-far), moves(-farther))
    assert [v.tolist() for v in back[:4]] == [v.tolist() for v in here.grown(2).shrunk(1)[:4]]
    assert there.overlaps(there).tolist() == [5]


def test_ranges_may_be_empty() -> None:
    assert ranges(np.array([4, 9, 2]), np.array([2, 0, 1])).tolist() == [4, 5, 2]
    assert ranges(np.array([], np.int64), np.array([], np.int64)).tolist() == []
