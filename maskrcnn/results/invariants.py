"""The invariants of the rows of a finished run: functions of values, each of which yields the violations.

They work on arrays of whole chunks, so that ten million images are checked in minutes. The tables have the schemas of
`schema.IMAGES` and `schema.INSTANCES`, and their texts are UTF-8; `verify_loading` validates both.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ERROR_CODES, KEPT_CODES, plural
from ..masks.rle import MAX_PIXELS
from ..masks.rle_decode import ReadMasks, read_masks
from ..schema import INSTANCES_PER_IMAGE
from ..stats import STATUSES
from ..types import areas_of_boxes, pixels_of_boxes, touching_border

_BITS: Final = {pa.float16(): pa.int16(), pa.float32(): pa.int32(), pa.float64(): pa.int64()}
_MASKS_AT_ONCE: Final = 1024
"""A few hundred thousand run lengths, which fit in the processor's cache."""


class Fault(NamedTuple):
    """One violation."""

    where: str
    """A path, or an image or an instance by its id."""
    line: str
    """One line for a person."""


def _faults(
    wrong: NDArray[np.bool_], where: Callable[[int], str], line: Callable[[int], str]
) -> Iterator[Fault]:
    for i in np.flatnonzero(wrong).tolist():
        yield Fault(where(i), line(i))


# Images


class Placed(NamedTuple):
    """Positions of rows of `images` in the manifest."""

    positions: NDArray[np.int64]
    """(N,) from the beginning of the expected rows; -1 for a row that is not among them."""
    passed: int
    """Number of expected rows that are accounted for: the next rows are expected from there."""


def place(found: NDArray[np.int64], expected: NDArray[np.int64]) -> Placed:
    """Find rows of `images` by their ids among the next rows of the manifest.

    >>> place(np.array([7, 9]), np.array([7, 8, 9, 10]))
    Placed(positions=array([0, 2]), passed=3)

    Args:
        found: (N,) ids in the order of `images`.
        expected: (M,) the ids of the manifest's next rows, all different; more than N, so that the rows after a lost
            one are recognized.
    """
    if np.array_equal(found, expected[: len(found)]):
        return Placed(np.arange(len(found)), len(found))
    if not len(expected):
        return Placed(np.full(len(found), -1), 0)
    order = np.argsort(expected, kind="stable")
    at = order[np.minimum(np.searchsorted(expected, found, sorter=order), len(expected) - 1)]
    positions = np.where(expected[at] == found, at, -1)
    return Placed(positions, int(positions.max(initial=-1)) + 1 or min(len(found), len(expected)))


def place_faults(found: NDArray[np.int64], expected: NDArray[np.int64], placed: Placed) -> Iterator[Fault]:
    """Yield the rows that are lost, duplicate, foreign or out of order."""
    positions = placed.positions
    before = np.maximum.accumulate(np.concatenate([[-1], positions]))[:-1]
    again = np.ones(len(positions), np.bool_)
    again[np.unique(positions, return_index=True)[1]] = False
    for i in np.flatnonzero(positions <= before).tolist():
        if positions[i] < 0:
            line = "the manifest has no such row, or has it elsewhere"
        else:
            line = "occurs twice" if again[i] else "is not in the order of the manifest"
        yield Fault(f"image {found[i]}", line)
    if (positions >= 0).any():
        lost = np.ones(placed.passed, np.bool_)
        lost[positions[positions >= 0]] = False
        yield from _faults(lost, lambda i: f"image {expected[i]}", lambda _: "is missing")


def carried_faults(images: pa.Table, inputs: pa.Table, names: list[str]) -> Iterator[Fault]:
    """Yield the values that differ between rows of `images` and the same rows of the manifest.

    Args:
        names: the columns that must be equal.
    """
    for name in names:
        ours, theirs = (_comparable(table[name]) for table in (images, inputs))
        if ours.equals(theirs):
            continue
        # Arrow never considers nested values with NaN equal.
        pairs = zip(images[name].to_pylist(), inputs[name].to_pylist(), strict=True)
        for row, (a, b) in enumerate(pairs):
            if repr(a) != repr(b):
                line = f"{name} is {_short(a)}, in the manifest {_short(b)}"
                yield Fault(f"image {images['image_id'][row]}", line)


def _comparable(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, floats by their bits, because NaN does not equal itself."""
    array = column.combine_chunks()
    return array.view(_BITS[array.type]) if array.type in _BITS else array


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def status_faults(images: pa.Table) -> Iterator[Fault]:
    """Yield the rows of `images` whose status, error, count and size contradict each other."""
    ids, n = images["image_id"].to_numpy(), images["n_instances"].to_numpy()
    status, error = (images[name].to_pylist() for name in ("status", "error"))
    ok, empty, failed = (pc.equal(images["status"], name).to_numpy() for name in STATUSES)
    has_error = pc.is_valid(images["error"]).to_numpy()
    partial = pc.fill_null(pc.equal(images["error"], "partial"), fill_value=False).to_numpy()
    kept = pc.fill_null(pc.is_in(images["error"], pa.array(KEPT_CODES)), fill_value=False).to_numpy()
    known = pc.is_in(images["error"], pa.array([*ERROR_CODES, None], pa.string())).to_numpy()
    sized = np.ones(len(images), np.bool_)
    for side in ("width", "height"):
        sized &= pc.fill_null(pc.greater(images[side], 0), fill_value=False).to_numpy()

    rules: tuple[tuple[NDArray[np.bool_], Callable[[int], str]], ...] = (
        (~(ok | empty | failed), lambda i: f"the status is {_short(status[i])}"),
        (failed & ~has_error, lambda _: "failed without an error"),
        (failed & partial, lambda _: "failed with the error 'partial'"),
        (~failed & has_error & ~kept, lambda i: f"{status[i]} with the error {_short(error[i])}"),
        (~known, lambda i: f"unknown error code {_short(error[i])}"),
        (ok & (n <= 0), lambda i: f"ok with n_instances {n[i]}"),
        ((empty | failed) & (n != 0), lambda i: f"{status[i]} with n_instances {n[i]}"),
        (~failed & ~sized, lambda i: f"{status[i]} without a width and a height"),
    )
    for wrong, line in rules:
        yield from _faults(wrong, lambda i: f"image {ids[i]}", line)


# Instances


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of `images`, and the rows of `instances` that belong to them by their ids."""

    rows: NDArray[np.int64]
    """The rows of the manifest, from 0, of the images, ascending."""
    images: pa.Table
    instances: pa.Table
    """In the order of the file; includes rows before the first chunk's first id and after a part's last."""
    ids_per_image: int = INSTANCES_PER_IMAGE


@dataclass(frozen=True, slots=True)
class Detectable:
    """The categories and scores that a run may contain, by its records."""

    categories: Mapping[int, str]
    """Names by id."""
    min_score: float
    masks: bool = True
    """Whether the model detects masks."""


@dataclass(frozen=True, slots=True)
class _Owned:
    """Columns of a chunk's instances, and of their images."""

    id: NDArray[np.int64]
    number: NDArray[np.int64]
    """Number within the image, from 0, derived from the id."""
    image: NDArray[np.int64]
    """Index of the chunk's image; 0 if `astray`."""
    astray: NDArray[np.bool_]
    """Whether the id belongs to no image of the chunk."""
    image_id: NDArray[np.int64]
    """The id of the image."""
    height: NDArray[np.int64]
    """Height of the image; 0 if it has none."""
    width: NDArray[np.int64]


def instance_faults(chunk: Chunk, previous_id: int, detectable: Detectable) -> Iterator[Fault]:
    """Yield the violations of a chunk's instances, in themselves and against their images.

    Args:
        previous_id: the id of the instance before the first; 0 before the first of all.
        detectable: what the run may contain.
    """
    table, owned = chunk.instances.combine_chunks(), _owned(chunk)
    n = chunk.images["n_instances"].to_numpy()
    count = np.bincount(owned.image[~owned.astray], minlength=len(n))
    yield from _faults(
        count != n,
        lambda i: f"image {chunk.images['image_id'][i]}",
        lambda i: f"n_instances is {n[i]}, but instances has {plural(int(count[i]), 'row')} of it",
    )
    if not len(table):
        return
    rules = [*_identity_rules(table, owned, previous_id), *_value_rules(table, owned, detectable)]
    shapes = _mask_rules if detectable.masks else _box_rules
    for wrong, line in (*rules, *shapes(table, owned)):
        yield from _faults(wrong, lambda i: f"instance {owned.id[i]}", line)


_Rule = tuple[NDArray[np.bool_], Callable[[int], str]]


def _owned(chunk: Chunk) -> _Owned:
    ids = chunk.instances["id"].to_numpy()
    row, number = np.divmod(ids - 1, chunk.ids_per_image)
    image = np.minimum(np.searchsorted(chunk.rows, row), max(len(chunk.rows) - 1, 0))
    astray = chunk.rows[image] != row if len(chunk.rows) else np.ones(len(row), np.bool_)
    image = np.where(astray, 0, image)

    def of_image(name: str) -> NDArray[np.int64]:
        column = pc.fill_null(chunk.images[name], 0).to_numpy().astype(np.int64)
        return column[image] if len(column) else np.zeros(len(ids), np.int64)

    return _Owned(ids, number, image, astray, *map(of_image, ("image_id", "height", "width")))


def _identity_rules(table: pa.Table, owned: _Owned, previous_id: int) -> Iterator[_Rule]:
    """Yield the rules by which an instance belongs to its image and occurs once."""
    before = np.concatenate([[previous_id], owned.id[:-1]])
    yield owned.id <= before, lambda i: f"follows instance {before[i]}: duplicate, or out of order"
    yield owned.astray, lambda _: "belongs to no image of this part by its id"
    image_id = table["image_id"].to_numpy()
    yield (
        ~owned.astray & (image_id != owned.image_id),
        lambda i: f"image_id is {image_id[i]}, by its id it belongs to image {owned.image_id[i]}",
    )
    instance = table["instance"].to_numpy()
    begins = np.flatnonzero(np.diff(owned.image, prepend=-1))
    nth = np.arange(len(table)) - np.repeat(begins, np.diff(begins, append=len(table)))
    yield (
        ~owned.astray & ((instance != owned.number) | (instance != nth)),
        lambda i: (
            f"instance is {instance[i]}, by its id {owned.number[i]}; preceded by {nth[i]} of its image"
        ),
    )


def _value_rules(table: pa.Table, owned: _Owned, detectable: Detectable) -> Iterator[_Rule]:
    """Yield the rules of category, score and box."""
    ids = np.array(sorted(detectable.categories), np.int64)
    names = pa.array([detectable.categories[i] for i in ids.tolist()], pa.string())
    category = table["category_id"].to_numpy().astype(np.int64)
    at = np.minimum(np.searchsorted(ids, category), len(ids) - 1)
    name = table["category"].cast(pa.string()).combine_chunks()
    right = (ids[at] == category) & pc.equal(name, names.take(pa.array(at))).to_numpy(zero_copy_only=False)
    yield ~right, lambda i: f"the run has no category {category[i]} {_short(name[i].as_py())}"

    score = table["score"].to_numpy()
    inside = (score >= np.float32(detectable.min_score)) & (score <= 1)
    yield (
        ~inside,
        lambda i: f"score is {score[i]}, not between the minimum score {detectable.min_score} and 1",
    )

    box = [side.to_numpy() for side in table["box"].combine_chunks().flatten()]
    finite = np.logical_and.reduce([np.isfinite(side) for side in box])
    yield ~finite | (box[0] > box[2]) | (box[1] > box[3]), lambda i: f"box is {[float(s[i]) for s in box]}"

    same = np.concatenate([[False], (np.diff(owned.image) == 0) & ~owned.astray[1:] & ~owned.astray[:-1]])
    wrong = np.zeros(len(table), np.bool_)
    for key in (-score, category, *box):
        lower = np.concatenate([[False], key[1:] < key[:-1]])
        equal = np.concatenate([[False], key[1:] == key[:-1]])
        wrong |= same & lower
        same &= equal
    yield wrong, lambda _: "is out of order by score, category and box"


def _mask_rules(table: pa.Table, owned: _Owned) -> Iterator[_Rule]:
    """Yield the rules by which a mask fits its image, and area, box and touches_border fit the mask."""
    framed = pc.is_valid(table["frame"]).to_numpy()
    large = owned.height * owned.width > MAX_PIXELS
    yield (
        ~owned.astray & (framed & ~large),
        lambda _: "has a frame, which only images with 2^32 pixels or more have",
    )
    yield ~owned.astray & (large & ~framed), lambda _: "has no frame, in an image with 2^32 pixels or more"
    left, top, frame_width, frame_height = (
        pc.fill_null(side, 0).to_numpy().astype(np.int64)
        for side in table["frame"].combine_chunks().flatten()
    )
    within = (
        (left >= 0) & (top >= 0) & (left + frame_width <= owned.width) & (top + frame_height <= owned.height)
    )
    yield ~owned.astray & framed & ~within, lambda _: "has a frame that exceeds the image"
    size, texts = table["segmentation"].combine_chunks().flatten()
    pair = pc.equal(pc.list_value_length(size), 2).to_numpy(zero_copy_only=False)
    height, width = np.zeros((2, len(table)), np.int64)
    height[pair], width[pair] = size.filter(pa.array(pair)).flatten().to_numpy().reshape(-1, 2).T
    drawn_height = np.where(framed, frame_height, owned.height)
    drawn_width = np.where(framed, frame_width, owned.width)
    fits = pair & (height == drawn_height) & (width == drawn_width)
    yield (
        ~owned.astray & ~fits,
        lambda i: f"segmentation.size is {size[i].as_py()}, not [{drawn_height[i]}, {drawn_width[i]}]",
    )
    masks = _read(texts, height, width)
    yield ~masks.intact, lambda i: f"counts are not a valid mask of {height[i]} x {width[i]} pixels"

    area = table["area"].to_numpy()
    yield (
        masks.intact & (area != masks.areas),
        lambda i: f"area is {area[i]}, by the mask {masks.areas[i]}",
    )
    box = np.stack([side.to_numpy() for side in table["mask_box"].combine_chunks().flatten()], axis=1)
    some = (masks.areas > 0)[:, None]
    placed = masks.boxes + some * np.stack([left, top, left, top], axis=1)
    yield (
        masks.intact & (box != placed).any(axis=1),
        lambda i: f"mask_box is {box[i].tolist()}, by the mask {placed[i].tolist()}",
    )
    border = table["touches_border"].to_numpy()
    touches = touching_border(placed, owned.height, owned.width)
    yield (
        masks.intact & (border != touches),
        lambda i: f"touches_border is {border[i]}, by the mask {touches[i]}",
    )


def _box_rules(table: pa.Table, owned: _Owned) -> Iterator[_Rule]:
    """Yield the rules by which area and touches_border fit the box, where there are no masks."""
    of_mask = [pc.is_valid(table[name]).to_numpy() for name in ("mask_box", "segmentation", "frame")]
    yield np.logical_or.reduce(of_mask), lambda _: "has columns of a mask, but the model detects boxes only"
    boxes = np.stack([side.to_numpy() for side in table["box"].combine_chunks().flatten()], axis=1)
    area, border = table["area"].to_numpy(), table["touches_border"].to_numpy()
    expected = areas_of_boxes(boxes)
    yield area != expected, lambda i: f"area is {area[i]}, by the box {expected[i]}"
    touches = touching_border(pixels_of_boxes(boxes, owned.height, owned.width), owned.height, owned.width)
    yield (
        ~owned.astray & (border != touches),
        lambda i: f"touches_border is {border[i]}, by the box {touches[i]}",
    )


def _read(texts: pa.StringArray, height: NDArray[np.int64], width: NDArray[np.int64]) -> ReadMasks:
    pieces = []
    for start in range(0, len(texts), _MASKS_AT_ONCE):
        piece = texts.slice(start, _MASKS_AT_ONCE)
        _, offsets, data = piece.buffers()
        bounds = np.frombuffer(offsets, np.int32)[piece.offset : piece.offset + len(piece) + 1]
        text = np.frombuffer(data or b"", np.uint8)
        inside = slice(start, start + _MASKS_AT_ONCE)
        pieces.append(read_masks(text, bounds, height[inside], width[inside]))
    return ReadMasks(*map(np.concatenate, zip(*pieces, strict=True)))
