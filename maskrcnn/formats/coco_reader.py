"""A COCO ground truth as columns, read in pieces: a file of any size costs what its columns cost.

`json.loads` of 300 MB takes over 2 GB. Here the text is decoded some megabytes at a time, an annotation at a time,
and what is kept of it is numbers and the bytes of its shape.
"""

import codecs
import itertools
import json
import math
import operator
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import UsageError
from ..io.sources import open_source, usage_errors

_READ_CHARACTERS: Final = 2**22
_BATCH: Final = 8192
_LISTS: Final = ("images", "annotations", "categories")
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_NEAR_END: Final = 16
"""Characters: a fault so near to the end of what was read may be the end's."""

ANNOTATIONS: Final = pa.schema(
    [
        ("number", pa.int64()),
        ("image", pa.int32()),
        ("category", pa.int32()),
        ("crowd", pa.bool_()),
        ("area", pa.float64()),
        *[(side, pa.float64()) for side in ("x", "y", "width", "height")],
        ("mask_height", pa.int32()),
        ("mask_width", pa.int32()),
        ("shape", pa.large_binary()),
        ("rings", pa.list_(pa.int32())),
    ]
)
"""`number` is the place in the file, from 1; `image` and `category` are places in the truth's lists. `shape` is a
compressed RLE of mask_height x mask_width pixels; or, where `rings` has the count of numbers of each ring, their
float64 one behind the other; or null."""


@dataclass(frozen=True, slots=True)
class GroundTruthCategory:
    """A category of the ground truth."""

    id: int
    name: str | None


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What a COCO dataset says."""

    image_ids: Sequence[Any]
    """Whole numbers or texts, each once."""
    names: Sequence[str | None]
    """`file_name` of each image."""
    sizes: NDArray[np.int32]
    """(N, 2) height and width of each image in pixels; zeros where they are not stated."""
    categories: Sequence[GroundTruthCategory]
    annotations: pa.Table
    """`ANNOTATIONS`, in the order of the file."""

    @property
    def has_masks(self) -> bool:
        """Whether the annotations have shapes, and not only boxes."""
        return not len(self.annotations) or self.annotations["shape"].null_count == 0


def read_ground_truth(source: str) -> GroundTruth:
    """Read a ground truth in COCO dataset form.

    Args:
        source: a path or a url.

    Raises:
        UsageError: it cannot be read, or is no COCO dataset; the message names the first fault.
    """
    with usage_errors(source), open_source(source) as file:
        return _truth(file, source)


def _truth(file: BinaryIO, source: str) -> GroundTruth:
    images: list[dict[str, Any]] = []
    categories: list[dict[str, Any]] = []
    batches: list[_Batch] = []
    seen = set()
    for name, entries in _members(_Text(file), source):
        seen.add(name)
        if name == "annotations":
            first = sum(len(batch.rows) for batch in batches) + 1
            batches += [_batch(entries, first)] if entries else []
        elif name == "images":
            images += [{key: entry.get(key) for key in _IMAGE_KEYS} for entry in entries]
        else:
            categories += entries
    if absent := [name for name in _LISTS if name not in seen]:
        raise UsageError(f"{source} is not a COCO dataset: {', '.join(absent)} missing")
    ids = [_id_of(image, "an image") for image in images]
    known = [GroundTruthCategory(_id_of(c, "a category"), _name_of(c)) for c in categories]
    if len({type(value) for value in ids}) > 1 or any(isinstance(category.id, str) for category in known):
        raise UsageError("the truth's ids are numbers here and texts there; categories have numbers")
    if not known:
        raise UsageError(f"{source} has no categories")
    _refuse_doubles(ids, "images of the id")
    _refuse_doubles([category.id for category in known], "categories of the id")
    annotations = pa.concat_tables([ANNOTATIONS.empty_table(), *(batch.rows for batch in batches)])
    for column, listed, what in (
        ("image", ids, "an image"),
        ("category", [category.id for category in known], "a category"),
    ):
        places = [_places(getattr(batch, column), listed, batch.rows, what) for batch in batches]
        places = pa.chunked_array(places, pa.int32())
        annotations = annotations.set_column(ANNOTATIONS.get_field_index(column), column, places)
    _check_shapes(annotations)
    names = [image["file_name"] if isinstance(image["file_name"], str) else None for image in images]
    sizes = [[_side(image["height"]), _side(image["width"])] for image in images]
    return GroundTruth(ids, names, np.array(sizes, np.int32).reshape(-1, 2), known, annotations)


_IMAGE_KEYS: Final = ("id", "file_name", "height", "width")


def _side(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value < 2**31 else 0


def _id_of(entry: dict[str, Any], what: str) -> Any:
    value = entry.get("id")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UsageError(f"the truth has {what} without an id: {json.dumps(entry)[:120]}")
    return value


def _name_of(category: dict[str, Any]) -> str | None:
    name = category.get("name")
    return name if isinstance(name, str) and name.strip() else None


def _refuse_doubles(values: Sequence[Any], what: str) -> None:
    if len(set(values)) != len(values):
        again = next(value for place, value in enumerate(values) if value in values[:place])
        raise UsageError(f"the truth has two {what} {again}")


# Annotations


@dataclass(frozen=True, slots=True)
class _Batch:
    rows: pa.Table
    """Without places in the lists, which may stand behind the annotations."""
    image: list[Any]
    category: list[Any]


def _batch(entries: Sequence[dict[str, Any]], first: int) -> _Batch:
    required = ("image_id", "category_id", "area", "bbox")
    for number, entry in enumerate(entries, first):
        if any(key not in entry for key in required):
            absent = ", ".join(key for key in required if key not in entry)
            raise UsageError(f"{_called(number, entry)} lacks {absent}")
    numbers = np.array(
        [_numbers(entry, number) for number, entry in enumerate(entries, first)], np.float64
    ).reshape(-1, 5)
    shapes = [_shape(entry, number) for number, entry in enumerate(entries, first)]
    n = len(entries)
    arrays = [
        pa.array(range(first, first + n), pa.int64()),
        pa.nulls(n, pa.int32()),
        pa.nulls(n, pa.int32()),
        pa.array([bool(entry.get("iscrowd")) for entry in entries]),
        *(pa.array(column) for column in numbers.T),
        pa.array([shape[0] for shape in shapes], pa.int32()),
        pa.array([shape[1] for shape in shapes], pa.int32()),
        pa.array([shape[2] for shape in shapes], pa.large_binary()),
        pa.array([shape[3] for shape in shapes], pa.list_(pa.int32())),
    ]
    rows = pa.table(arrays, schema=ANNOTATIONS)
    return _Batch(rows, [entry["image_id"] for entry in entries], [entry["category_id"] for entry in entries])


def _called(number: int, entry: Mapping[str, Any]) -> str:
    return f"annotation {number} of the truth (id {entry.get('id', 'none')})"


def _numbers(entry: Mapping[str, Any], number: int) -> tuple[float, ...]:
    area, box = entry["area"], entry["bbox"]
    values = (area, *box) if isinstance(box, list) else (area,)
    try:
        right = len(values) == 5 and all(map(math.isfinite, values))
    except (TypeError, OverflowError):
        right = False
    if not right or area < 0:
        raise UsageError(
            f"{_called(number, entry)} has the area {area} and the bbox {json.dumps(box)[:80]}; "
            "they are a number and a list of four, finite"
        )
    return values


def _shape(entry: Mapping[str, Any], number: int) -> tuple[int, int, bytes | None, list[int]]:
    """Return mask height, mask width, shape and rings, as in `ANNOTATIONS`."""
    shape = entry.get("segmentation")
    if not shape:
        return 0, 0, None, []
    try:
        if isinstance(shape, dict):
            height, width = _size(shape["size"])
            counts = shape["counts"]
            if isinstance(counts, list):
                counts = coco_mask.frPyObjects(shape, height, width)["counts"]
            return height, width, counts if isinstance(counts, bytes) else counts.encode("ascii"), []
        lengths = [len(ring) for ring in shape]
        if min(lengths) < 6 or any(length % 2 for length in lengths):
            raise UsageError(
                f"{_called(number, entry)} has a polygon of {min(lengths)} numbers; three points and more make one"
            )
        return 0, 0, array("d", itertools.chain.from_iterable(shape)).tobytes(), lengths
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(
            f"{_called(number, entry)} has a segmentation that is neither polygons nor RLE"
        ) from error


def _size(size: Sequence[Any]) -> tuple[int, int]:
    height, width = map(operator.index, size)
    if min(height, width) < 1 or height * width >= 2**32:
        raise ValueError(f"no RLE has the size {height} x {width}")
    return height, width


def _places(ids: Sequence[Any], listed: Sequence[Any], rows: pa.Table, what: str) -> pa.Array:
    """Return where ids stand in a list."""
    place = {value: at for at, value in enumerate(listed)}
    try:
        return pa.array([place[value] for value in ids], pa.int32())
    except (KeyError, TypeError):
        at = next(k for k, value in enumerate(ids) if isinstance(value, list | dict) or value not in place)
        raise UsageError(
            f"annotation {rows['number'][at]} of the truth is of {what} {ids[at]}, which the truth does not list"
        ) from None


def _check_shapes(annotations: pa.Table) -> None:
    without = annotations["shape"].null_count
    if 0 < without < len(annotations):
        number = annotations.filter(pc.is_null(annotations["shape"]))["number"][0]
        raise UsageError(
            f"{without} annotations of the truth have no segmentation, the first is annotation {number}, "
            "and others have one; remove either, or give all of them one"
        )


# Text


class _Text:
    """JSON, of which some megabytes are held."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """Return the next character that is not blank, or none at the end."""
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def take(self, expected: str) -> str:
        """Return the next character, which must be one of these.

        Raises:
            ValueError: it is another.
        """
        character = self.peek()
        if not character or character not in expected:
            raise ValueError(f"not JSON: expected one of {expected}, found {character or 'the end'!r}")
        self._at += 1
        return character

    def value(self) -> Any:
        """Return the next value. Raises ValueError where there is none."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _NEAR_END or error.msg.startswith("Unterminated")
                if self._ended or not cut:
                    raise ValueError(f"not JSON: {error.msg}") from error
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            self._more()

    def _more(self) -> None:
        held = self._text[self._at :]
        data = self._file.read(max(_READ_CHARACTERS, len(held)))
        self._text, self._at, self._ended = held + self._bytes.decode(data, not data), 0, not data


def _members(text: _Text, source: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Give the entries of the lists of a dataset, some thousands at a time, and each list at least once."""
    if text.peek() == "[":
        raise UsageError(
            f"{source} is not a COCO dataset but a list, as results are; --truth is what is there"
        )
    text.take("{")
    ended = text.peek() == "}"
    while not ended:
        name = text.value()
        text.take(":")
        if name in _LISTS:
            for entries in _entries(text):
                strange = [entry for entry in entries if not isinstance(entry, dict)]
                if strange:
                    raise UsageError(
                        f"{source} is not a COCO dataset: {name} holds {json.dumps(strange[0])[:80]}"
                    )
                yield name, entries
        else:
            text.value()
        ended = text.take(",}") == "}"


def _entries(text: _Text) -> Iterator[list[Any]]:
    text.take("[")
    entries: list[Any] = []
    ended = text.peek() == "]"
    if ended:
        text.take("]")
    while not ended:
        entries.append(text.value())
        ended = text.take(",]") == "]"
        if len(entries) == _BATCH:
            yield entries
            entries = []
    yield entries
