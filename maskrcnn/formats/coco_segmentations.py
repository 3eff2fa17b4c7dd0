"""The `segmentation` of an annotation, polygons or run lengths, read from JSON: what is wrong with one is named.

What other programs write in its place is distinguished by its form, since each form is corrected in another way.
"""

import itertools
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..masks.rle import MAX_PIXELS
from .coco_findings import integer_of, is_number_as_text

NEITHER: Final = "segmentation that is neither polygons nor run lengths"
TEXT: Final = "segmentation that is a text (COCO's is a list or an object, not in quotes)"
ONE_LIST: Final = "segmentation that is one list of numbers (COCO's is a list of polygons, each a list)"
IN_A_LIST: Final = "run lengths in a list (COCO's are one object with `size` and `counts`, in no list)"
PAIRS: Final = "polygon whose points are lists or objects (COCO's polygon is one list x, y, x, y, …)"
NOT_A_LIST: Final = "polygon that is not a list of numbers"
FEW_POINTS: Final = "polygon of fewer than three points"
ODD_COUNT: Final = "polygon of an odd count of numbers (each point has x and y)"
TEXTS: Final = "polygon whose coordinates are texts (write numbers, without quotes)"
NO_NUMBERS: Final = "polygon with a coordinate that is not a number"
NOT_FINITE: Final = "polygon with a point that is not finite"
NO_SIZE: Final = "run lengths without `size`, the list of height and width"
TEXT_SIZE: Final = "run lengths whose `size` has texts (write numbers, without quotes)"
BAD_SIZE: Final = "run lengths whose `size` is not a list of two integers, height and width"
OTHER_SIZE: Final = "mask of another size than its image"
NO_COUNTS: Final = "run lengths without `counts`"
BYTES: Final = "run lengths whose `counts` is the Python text of bytes, b'…' (write counts.decode())"
TEXT_COUNTS: Final = "run lengths whose `counts` are texts (write numbers, without quotes)"
DAMAGED: Final = "mask whose run lengths are damaged"


class Shape(NamedTuple):
    """A segmentation that may be one; whether compressed run lengths are, is checked for all masks at once."""

    height: int
    """The height that run lengths state, …"""
    width: int
    """… and the width; zeros for polygons."""
    data: bytes | None
    """Compressed run lengths, or the float64 of all rings of a polygon; None where there is no segmentation."""
    rings: list[int]
    """The count of numbers of each ring; empty for run lengths."""


NONE: Final = Shape(0, 0, None, [])


def read_segmentation(value: Any) -> Shape | str:
    """Return what an annotation has under `segmentation`, or what is wrong with it."""
    if not value:
        return NONE
    if isinstance(value, dict):
        return _run_lengths(value)
    if not isinstance(value, list):
        return TEXT if isinstance(value, str) else NEITHER
    if all(_is_number(number) or is_number_as_text(number) for number in value):
        return ONE_LIST
    if any(isinstance(entry, dict) and "counts" in entry for entry in value):
        return IN_A_LIST
    return _polygons(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def polygon_areas(data: Sequence[bytes], rings: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return (n,) the areas that polygons enclose, sums over their rings, square pixels; NaN where there is no ring.

    Args:
        data: (n,) of a `Shape` each.
        rings: likewise.
    """
    polygons = [(points, counts) for points, counts in zip(data, rings, strict=True) if counts]
    areas = np.full(len(rings), np.nan)
    if not polygons:
        return areas
    x, y = np.frombuffer(b"".join(points for points, _ in polygons)).reshape(-1, 2).T
    counts = np.array([count // 2 for _, counts in polygons for count in counts])
    ends = np.cumsum(counts)
    following = np.arange(1, len(x) + 1)
    following[ends - 1] = ends - counts  # after the last point of a ring comes its first
    doubled = np.add.reduceat(x * y[following] - y * x[following], ends - counts)
    firsts = np.cumsum([0, *(len(counts) for _, counts in polygons)])[:-1]
    areas[[bool(counts) for counts in rings]] = np.add.reduceat(np.abs(doubled), firsts) / 2
    return areas


def _polygons(rings: Sequence[Any]) -> Shape | str:
    if not all(isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 for ring in rings):
        return _misshapen(rings)
    try:
        points = array("d", itertools.chain.from_iterable(rings))
    except TypeError:
        return _misshapen(rings)
    except OverflowError:
        return NOT_FINITE
    if not all(map(math.isfinite, points)):
        return NOT_FINITE
    return Shape(0, 0, points.tobytes(), [len(ring) for ring in rings])


def _misshapen(rings: Sequence[Any]) -> str:
    """Return what is wrong with polygons of which one is not a list of numbers, two for each point."""
    lists = [ring for ring in rings if isinstance(ring, list)]
    numbers = [number for ring in lists for number in ring]
    pairs = len(rings) > 1 and all(len(ring) == 2 for ring in lists)
    points = (
        all(isinstance(ring, dict) for ring in rings)
        or any(isinstance(number, list | dict) for number in numbers)
        or (len(lists) == len(rings) and pairs and all(map(_is_number, numbers)))
    )
    kinds = (
        (points, PAIRS),
        (len(lists) < len(rings), NOT_A_LIST),
        (numbers and all(map(is_number_as_text, numbers)), TEXTS),
        (not all(map(_is_number, numbers)), NO_NUMBERS),
        (any(len(ring) < 6 for ring in lists), FEW_POINTS),
    )
    return next((kind for wrong, kind in kinds if wrong), ODD_COUNT)


def _run_lengths(value: Mapping[str, Any]) -> Shape | str:
    sides = _sides(value.get("size"))
    if isinstance(sides, str):
        return sides
    height, width = sides
    counts = value.get("counts")
    if isinstance(counts, str) and counts[:2] not in ("b'", 'b"'):
        return Shape(height, width, counts.encode("ascii", "replace"), [])
    runs = [integer_of(run) for run in counts] if isinstance(counts, list) else []
    if any(run is None or run < 0 for run in runs) or sum(run or 0 for run in runs) != height * width:
        return _not_counts(counts)
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return Shape(height, width, bytes(rle["counts"]), [])


def _sides(size: Any) -> tuple[int, int] | str:
    """Return the height and the width that run lengths state, or what is wrong with them."""
    if size is None:
        return NO_SIZE
    sides = [integer_of(side) for side in size] if isinstance(size, list) else []
    if len(sides) != 2 or (height := sides[0]) is None or (width := sides[1]) is None:
        texts = isinstance(size, list) and len(size) == 2 and all(map(is_number_as_text, size))
        return TEXT_SIZE if texts else BAD_SIZE
    return (height, width) if min(height, width) >= 1 and height * width <= MAX_PIXELS else OTHER_SIZE


def _not_counts(counts: Any) -> str:
    """Return what is wrong with `counts` that are not the run lengths of their mask."""
    if isinstance(counts, str):
        return BYTES
    if isinstance(counts, list) and counts and all(map(is_number_as_text, counts)):
        return TEXT_COUNTS
    return NO_COUNTS if counts is None else DAMAGED
