"""Choose and draw the sample pictures of a report.

The choice depends on the tables only, and reads a bounded part of them whatever the size of the run.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import ItemError, RunError
from ..io.parquet import Part, read_table
from ..io.storage import Storage
from ..masks.rle import MAX_PIXELS
from ..schema import detections_of
from ..types import Category, Detections, Pixels
from .draw import Rectangle, draw_instances
from .run_pixels import unreadable_note
from .templates import encode_jpeg

SHOWN_SCORE: Final = 0.5
PICTURE_PX: Final = 560
PICTURE_SCALE: Final = 1.6
"""Scale of lines and type, because pictures are displayed at about 60 % of their size."""
ASPECT: Final = 4 / 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GalleryPick:
    """An image to show, with its detections."""

    row: int
    """Row of the manifest, from 0."""
    image_id: int
    name: str
    uri: str
    etag: str | None
    bytes: int | None
    """Size of the file as planned."""
    height: int
    width: int
    detections: Detections
    """Of the image; of a run of windows, in the frame of the region that is shown."""
    focus: int
    """The instance around which the picture is cropped."""


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """A picture for the report."""

    name: str
    caption: str
    jpeg: bytes | None
    note: str | None = None
    """Why there is no picture; None if there is one."""


# Selection


@dataclass(frozen=True, slots=True)
class _Candidate:
    part: Part
    row: int
    """Row of the image in its part."""
    group: int
    """The row group that contains all of its instances."""
    start: int
    """Row in that row group where its instances begin."""
    image_id: int
    height: int
    width: int
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]


def pick_gallery(storage: Storage, parts: Sequence[Part], count: int = 12) -> list[GalleryPick]:
    """Choose images to show, spread over the parts and over their categories.

    At most `count` parts are opened, and at most `count` row groups of instances are read. Within a row group, images
    are ordered by a hash of their id; those with a high-scoring instance of a category not shown yet come first.

    Args:
        storage: of the run.
        parts: of the run, in order.
        count: maximum number of images.

    Raises:
        RunError: a part cannot be read.
    """
    firsts = dict(zip(parts, np.cumsum([0, *(part.n_images for part in parts)]).tolist(), strict=False))
    chosen = spread([part for part in parts if part.n_instances], count)
    if not chosen:
        return []
    groups_each = max(1, count // len(chosen))
    candidates = [c for part in chosen for c in _candidates(storage, part, groups_each, 16 * count)]
    picked = _most_varied(candidates, count)
    rows = _rows(storage, [candidate for candidate, _ in picked])
    return [
        _pick(candidate, firsts[candidate.part] + candidate.row, focus, *found)
        for (candidate, focus), found in zip(picked, rows, strict=True)
    ]


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of the items, evenly spaced."""
    n = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


def _candidates(storage: Storage, part: Part, groups: int, most: int) -> Iterator[_Candidate]:
    """Yield images of a part, at most `most` from each of `groups` row groups of its instances."""
    images = read_table(storage, part.images, ["image_id", "status", "n_instances", "width", "height"])
    counts = images["n_instances"].to_numpy().astype(np.int64)
    starts = np.cumsum(counts) - counts
    width, height = (images[side].fill_null(0).to_numpy().astype(np.int64) for side in ("width", "height"))
    # Larger images have masks in their own frames.
    ok = pc.equal(images["status"], "ok").to_numpy() & (
        width * height <= MAX_PIXELS
    )  # larger ones have masks in their own frames
    image_ids = images["image_id"].to_numpy()

    with storage.open(part.instances) as file, pq.ParquetFile(file) as instances:
        ends = np.cumsum([instances.metadata.row_group(g).num_rows for g in range(instances.num_row_groups)])
        for group in spread(range(len(ends)), groups):
            first = int(ends[group - 1]) if group else 0
            inside = np.flatnonzero(ok & (starts >= first) & (starts + counts <= ends[group]))
            inside = inside[np.argsort(scattered(image_ids[inside]), kind="stable")][:most]
            table = instances.read_row_group(group, columns=["category_id", "score"])
            labels, scores = table["category_id"].to_numpy(), table["score"].to_numpy()
            for row in inside.tolist():
                start = int(starts[row]) - first
                rows = slice(start, start + int(counts[row]))
                yield _Candidate(
                    part, row, group, start, int(image_ids[row]), int(height[row]), int(width[row]),
                    labels[rows], scores[rows],
                )  # fmt: skip


def scattered(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of each id, to order ids pseudo-randomly (the finalizer of splitmix64)."""
    mixed = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _most_varied(candidates: Sequence[_Candidate], count: int) -> list[tuple[_Candidate, int]]:
    """Return up to `count` candidates, each with the instance to show."""
    uses: Counter[tuple[str, int]] = Counter()
    seen: set[int] = set()
    left = [
        (candidate, candidate.labels[candidate.scores >= SHOWN_SCORE].tolist()) for candidate in candidates
    ]
    picked: list[tuple[_Candidate, int]] = []
    while left and len(picked) < count:
        ranks = (
            (uses[candidate.part.instances, candidate.group], not strong, seen.issuperset(strong), k)
            for k, (candidate, strong) in enumerate(left)
        )
        candidate, strong = left.pop(min(ranks)[-1])
        # Instances are ordered by score, so the first of a new category has its highest score.
        focus = next((i for i, label in enumerate(strong) if label not in seen), 0)
        uses[candidate.part.instances, candidate.group] += 1
        seen.update(candidate.labels[focus : focus + 1].tolist())
        picked.append((candidate, focus))
    return picked


_FILE: Final = ["name", "uri", "etag", "bytes"]


def _rows(storage: Storage, candidates: Sequence[_Candidate]) -> list[tuple[dict[str, Any], pa.Table]]:
    """Return `_FILE` and the instances of each candidate; a row group is read once."""
    found: dict[int, tuple[dict[str, Any], pa.Table]] = {}
    columns = ["category_id", "score", "box", "area", "segmentation", "mask_box", "frame"]
    for part in dict.fromkeys(candidate.part for candidate in candidates):
        here = [(k, candidate) for k, candidate in enumerate(candidates) if candidate.part == part]
        with storage.open(part.images) as file:
            files = _take(file, [candidate.row for _, candidate in here], _FILE)
        with storage.open(part.instances) as file, pq.ParquetFile(file) as instances:
            for group in sorted({candidate.group for _, candidate in here}):
                table = instances.read_row_group(group, columns=columns)
                for (k, candidate), stored in zip(here, files, strict=True):
                    if candidate.group == group:
                        found[k] = (stored, table.slice(candidate.start, len(candidate.labels)))
    return [found[k] for k in range(len(candidates))]


def _take(file: Any, rows: Sequence[int], columns: list[str]) -> list[dict[str, Any]]:
    """Return some rows of a Parquet file; only their row groups are read."""
    with pq.ParquetFile(file) as parquet:
        ends = np.cumsum([parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)])
        values: dict[int, dict[str, Any]] = {}
        groups = np.searchsorted(ends, rows, side="right")
        for group in np.unique(groups).tolist():
            table = parquet.read_row_group(group, columns=columns)
            first = int(ends[group - 1]) if group else 0
            for row, its_group in zip(rows, groups.tolist(), strict=True):
                if its_group == group:
                    values[row] = {column: table[column][row - first].as_py() for column in columns}
    return [values[row] for row in rows]


def _pick(
    candidate: _Candidate, row: int, focus: int, stored: dict[str, Any], instances: pa.Table
) -> GalleryPick:
    size: dict[str, Any] = {"height": candidate.height, "width": candidate.width}
    detections = detections_of(size | {"capped": False}, instances)
    return GalleryPick(row, candidate.image_id, **stored, **size, detections=detections, focus=focus)


# Drawing


def draw_gallery(
    picks: Sequence[GalleryPick],
    read_pixels: Callable[[GalleryPick], Pixels],
    categories: Sequence[Category],
) -> list[GalleryItem]:
    """Draw the picked images, each cropped around its instance in focus.

    An image that cannot be read any more, or that now has a different size, gets a note instead of a picture.

    Args:
        picks: from `pick_gallery`.
        read_pixels: returns the pixels of an image as the run read them, `RunPixels.read`; may raise `ItemError`
            and `RunError`.
        categories: of the run.
    """
    items = []
    for pick in picks:
        caption = caption_of(pick, categories)
        try:
            pixels = read_pixels(pick)
        except (ItemError, RunError) as fault:
            # Also if the inputs are not accessible from this machine: a report without pictures is still a report.
            items.append(GalleryItem(pick.name, caption, None, unreadable_note(fault)))
            continue
        if pixels.shape[:2] != (pick.detections.height, pick.detections.width):
            items.append(GalleryItem(pick.name, caption, None, "The image has another size now."))
            continue
        items.append(GalleryItem(pick.name, caption, draw_pick(pick, pixels, categories, _region(pick))))
    return items


def _shown_score(pick: GalleryPick) -> float:
    """Return 0.5, or the score of the instance in focus if that is lower."""
    return min(SHOWN_SCORE, float(pick.detections.scores[pick.focus]))


def caption_of(pick: GalleryPick, categories: Sequence[Category]) -> str:
    """Return the caption of a picture: category and score in focus, and the number of other instances."""
    detections = pick.detections
    label = int(detections.labels[pick.focus])
    name = next((category.name for category in categories if category.id == label), f"#{label}")
    others = int((detections.scores >= SHOWN_SCORE).sum()) - int(detections.scores[pick.focus] >= SHOWN_SCORE)
    return f"{name} {detections.scores[pick.focus]:.2f}" + (f", and {others} more" if others else "")


def draw_pick(
    pick: GalleryPick, pixels: Pixels, categories: Sequence[Category], region: Rectangle | None = None
) -> bytes:
    """Return a picture as JPEG, of a region of the pixels or of all of them."""
    picture = draw_instances(
        pixels,
        pick.detections,
        categories,
        min_score=_shown_score(pick),
        max_side=PICTURE_PX,
        min_side=PICTURE_PX,
        scale=PICTURE_SCALE,
        region=region,
    )
    return encode_jpeg(picture)


def _region(pick: GalleryPick) -> Rectangle:
    """Return the rectangle to show: the instance with its surroundings, 4:3 if the image allows it."""
    height, width = pick.detections.height, pick.detections.width
    xmin, ymin, xmax, ymax = (float(side) for side in pick.detections.boxes[pick.focus])

    # The instance covers at most 60 % of the picture's side, the picture at least a fifth of the image's.
    wanted = max((xmax - xmin) / 0.6, (ymax - ymin) / 0.6 * ASPECT, min(width, height * ASPECT) / 5, 160.0)
    out_width, out_height = min(round(wanted), width), min(round(wanted / ASPECT), height)
    left = round((xmin + xmax - out_width) / 2)
    top = round((ymin + ymax - out_height) / 2)
    left, top = max(0, min(left, width - out_width)), max(0, min(top, height - out_height))
    return left, top, left + out_width, top + out_height
