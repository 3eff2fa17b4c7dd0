"""Decoded run lengths equal those of pycocotools; invalid ones are never read beyond their end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from maskrcnn.masks.rle import rle_areas, rle_boxes_xyxy
from maskrcnn.masks.rle_decode import ReadMasks, read_masks

MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def read(texts: list[bytes], sizes: list[list[int]]) -> ReadMasks:
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    heights, widths = np.array(sizes, np.int32).reshape(-1, 2).T
    return read_masks(np.frombuffer(b"".join(texts), np.uint8), offsets, heights, widths)


def encoded(mask: np.ndarray) -> dict[str, object]:
    rle: dict[str, object] = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle


def read_rles(rles: list[dict[str, object]]) -> ReadMasks:
    return read([rle["counts"] for rle in rles], [rle["size"] for rle in rles])  # type: ignore[misc]


def assert_equal_to_pycocotools(rles: list[dict[str, object]]) -> None:
    masks = read_rles(rles)
    assert masks.intact.all()
    assert masks.areas.tolist() == rle_areas(rles).tolist()
    assert masks.boxes.tolist() == rle_boxes_xyxy(rles).tolist()


@given(st.lists(MASKS, max_size=5))
def test_areas_and_boxes_equal_those_of_pycocotools(masks: list[np.ndarray]) -> None:
    assert_equal_to_pycocotools([encoded(mask) for mask in masks])


@pytest.mark.parametrize("density", [0.0, 0.001, 0.5, 1.0])
def test_long_runs_and_noise_are_read(density: float) -> None:
    rng = np.random.default_rng(5)
    shapes = [(1, 1), (1, 900), (900, 1), (333, 211), (2000, 1500)]
    assert_equal_to_pycocotools([encoded(rng.random(shape) < density) for shape in shapes])


def test_the_largest_image_is_read() -> None:
    side = 2**16 - 1
    rle = coco_mask.frPyObjects([{"size": [side, side], "counts": [0, side * side]}], side, side)[0]
    masks = read_rles([rle])
    assert masks.intact.all()
    assert masks.areas.tolist() == [side * side]
    assert masks.boxes.tolist() == [[0, 0, side, side]]


@given(st.lists(MASKS, min_size=2, max_size=5), st.data())
def test_a_damaged_text_is_recognized_and_affects_no_other(
    masks: list[np.ndarray], data: st.DataObject
) -> None:
    rles = [encoded(mask) for mask in masks]
    undamaged = read_rles(rles)
    which = data.draw(st.integers(0, len(rles) - 1))
    text = bytes(rles[which]["counts"])  # type: ignore[call-overload]
    rles[which]["counts"] = data.draw(
        st.sampled_from([text[:-1], text + b"1", text[:-1] + b"P", b"", b"\xff" + text[1:], b"P" * 40 + text])
    )
    masks_read = read_rles(rles)
    others = np.arange(len(rles)) != which
    assert not masks_read.intact[which]
    assert masks_read.areas[which] == 0
    assert masks_read.boxes[which].tolist() == [0, 0, 0, 0]
    for ours, theirs in zip(masks_read, undamaged, strict=True):
        assert (ours[others] == theirs[others]).all()


@given(st.binary(max_size=60), st.integers(-1, 40), st.integers(-1, 40))
@settings(max_examples=300)
def test_any_bytes_are_a_valid_or_an_invalid_mask(text: bytes, height: int, width: int) -> None:
    masks = read([text, b"04"], [[height, width], [2, 2]])
    assert masks.intact[1]
    assert masks.areas[1] == 4
    if masks.intact[0]:
        rle = {"size": [height, width], "counts": text}
        assert coco_mask.decode(rle).sum() == masks.areas[0] <= height * width
        assert rle_boxes_xyxy([rle]).tolist() == masks.boxes[:1].tolist()
    else:
        assert masks.areas[0] == 0


def test_a_mask_of_another_size_is_invalid() -> None:
    mask = np.zeros((4, 6), np.bool_)
    mask[1:3, 2:4] = True
    counts = encoded(mask)["counts"]
    sizes = [[4, 6], [6, 4], [4, 5], [0, 6], [-4, -6], [2**31 - 1, 2**31 - 1]]
    masks = read([counts] * len(sizes), sizes)  # type: ignore[list-item]
    assert masks.intact.tolist() == [True, True, False, False, False, False]
