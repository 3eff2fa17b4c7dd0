"""Choose and draw the sample pictures of a run of windows: regions around instances of images of any size.

As in `gallery`, the choice depends on the tables only. Of an image with millions of instances, only one row group and
the instances shown are in memory at a time; of a raster, only the blocks around them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import ItemError, RunError
from ..imaging.geometry import Rect
from ..io.parquet import Part, read_table
from ..io.storage import Storage
from ..masks.crop import crop_detections
from ..schema import detections_of
from ..types import Category
from .gallery import ASPECT, SHOWN_SCORE, GalleryItem, GalleryPick, caption_of, draw_pick, scattered, spread
from .run_pixels import RunPixels, unreadable_note

LEAST_PX: Final = 240
"""Minimum width of a region, if the image is that wide."""
MOST_PX: Final = 2048
"""Maximum width of a region; a larger object is shown in part, at its middle."""
MOST_INSTANCES: Final = 500
"""Maximum number in a picture; those with the highest scores."""
_IMAGE: Final = ["width", "height", "image_id", "name", "uri", "etag", "bytes"]
_COLUMNS: Final = ["category_id", "score", "box", "area", "segmentation", "mask_box", "frame"]


@dataclass(frozen=True, slots=True)
class Focus:
    """An instance to show, with its image and region."""

    part: Part
    row: int
    """Row of its image in the manifest."""
    start: int
    """Row of the part's `instances` with which its image begins."""
    stop: int
    number: int
    """Number of the instance in its image."""
    label: int
    score: float
    region: Rect
    """The part of the image to show."""
    height: int
    """Of the image."""
    width: int
    image_id: int
    name: str
    uri: str
    etag: str | None
    bytes: int | None
    """Size of the file as planned."""


def pick_foci(storage: Storage, parts: Sequence[Part], count: int = 12) -> list[Focus]:
    """Choose instances to show, spread over parts, images and categories, with regions that hardly overlap.

    At most `count` row groups of instances are read. Instances with a score of at least 0.5 come first, in a
    pseudo-random order that depends on their row numbers only.

    Args:
        storage: of the run.
        parts: of the run, in order.
        count: maximum number of instances.

    Raises:
        RunError: a part cannot be read.
    """
    firsts = dict(zip(parts, np.cumsum([0, *(part.n_images for part in parts)]).tolist(), strict=False))
    chosen = spread([part for part in parts if part.n_instances], count)
    groups = max(1, count // max(len(chosen), 1))
    left = [focus for part in chosen for focus in _foci(storage, part, firsts[part], groups, count)]
    of_image: Counter[int] = Counter()
    of_label: Counter[int] = Counter()
    picked: list[Focus] = []
    while left and len(picked) < count:
        best = min(left, key=lambda f: (f.score < SHOWN_SCORE, of_label[f.label], of_image[f.row]))
        picked.append(best)
        of_label[best.label] += 1
        of_image[best.row] += 1
        left = [f for f in left if f.row != best.row or not _alike(f.region, best.region)]
    return picked


def _alike(one: Rect, other: Rect) -> bool:
    """Return whether at least a quarter of the smaller region is in both."""
    shared = one.shared(other)
    return 4 * shared.width * shared.height >= min(one.width * one.height, other.width * other.height)


def _foci(storage: Storage, part: Part, first_row: int, groups: int, each: int) -> Iterator[Focus]:
    """Yield instances of a part, at most `each` per category from each of `groups` row groups."""
    images = read_table(storage, part.images, ["n_instances", *_IMAGE])
    ends = np.cumsum(images["n_instances"].to_numpy().astype(np.int64))
    with storage.open(part.instances) as file, pq.ParquetFile(file) as parquet:
        for group, first in spread(list(enumerate(_firsts(parquet)[:-1])), groups):
            table = parquet.read_row_group(group, columns=["category_id", "score", "box"])
            labels, scores = table["category_id"].to_numpy(), table["score"].to_numpy()
            order = np.argsort(scattered(first + np.arange(len(table))), kind="stable")
            order = order[np.argsort(scores[order] < SHOWN_SCORE, kind="stable")]
            for label in np.unique(labels).tolist():
                for index in order[labels[order] == label][:each].tolist():
                    image = int(np.searchsorted(ends, first + index, side="right"))
                    of_image = images.slice(image, 1).to_pylist()[0]
                    start = int(ends[image]) - of_image.pop("n_instances")
                    yield Focus(
                        part=part,
                        row=first_row + image,
                        start=start,
                        stop=int(ends[image]),
                        number=first + index - start,
                        label=label,
                        score=float(scores[index]),
                        region=region_around(
                            table["box"][index].as_py(), of_image["height"], of_image["width"]
                        ),
                        **of_image,
                    )


def _firsts(parquet: pq.ParquetFile) -> list[int]:
    """Return the first row of each row group, and the number of rows."""
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    return [int(row) for row in np.cumsum([0, *sizes])]


def region_around(box: dict[str, float], height: int, width: int) -> Rect:
    """Return the part of an image to show: the box with its surroundings, 4:3 if the image allows it."""
    across, down = box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]
    wanted = min(max(across / 0.6, down / 0.6 * ASPECT, LEAST_PX), MOST_PX)
    out_width, out_height = min(round(wanted), width), min(round(wanted / ASPECT), height)
    left = round((box["xmin"] + box["xmax"] - out_width) / 2)
    top = round((box["ymin"] + box["ymax"] - out_height) / 2)
    return Rect(
        max(0, min(left, width - out_width)), max(0, min(top, height - out_height)), out_width, out_height
    )


# Instances in a picture


def look_around(storage: Storage, foci: Sequence[Focus], min_score: float = SHOWN_SCORE) -> list[GalleryPick]:
    """Return the detections in each region, in the region's frame.

    An image's instances are read one row group at a time: first scores and boxes; masks only if one is shown.

    Args:
        storage: of the run.
        foci: the regions.
        min_score: instances with lower scores are left out, except the one in focus and those with scores as high.

    Raises:
        RunError: a part cannot be read.
    """
    rows: dict[Focus, list[pa.Table]] = {focus: [] for focus in foci}
    focused: dict[Focus, int] = {}
    for part in dict.fromkeys(focus.part for focus in foci):
        here = [focus for focus in foci if focus.part == part]
        with storage.open(part.instances) as file, pq.ParquetFile(file) as parquet:
            firsts = _firsts(parquet)
            for group, (first, stop) in enumerate(pairwise(firsts)):
                reaching = [focus for focus in here if focus.start < stop and focus.stop > first]
                seen = list(_seen(parquet, group, first, reaching, min_score)) if reaching else []
                if not seen:
                    continue
                table = parquet.read_row_group(group, columns=_COLUMNS)
                for focus, shown in seen:
                    held = sum(map(len, rows[focus]))
                    own = shown == focus.start + focus.number - first
                    # Ordered by score, so those beyond the limit have lower scores.
                    kept = own | (np.arange(len(shown)) < MOST_INSTANCES - held)
                    if own.any():
                        focused[focus] = held + int(np.argmax(own[kept]))
                    rows[focus].append(table.take(pa.array(shown[kept])))
    return [_pick(focus, pa.concat_tables(rows[focus]), focused[focus]) for focus in foci]


def _seen(
    parquet: pq.ParquetFile, group: int, first: int, foci: Sequence[Focus], min_score: float
) -> Iterator[tuple[Focus, NDArray[np.intp]]]:
    """Yield the rows of a row group that are visible around each instance in focus, if there are any."""
    table = parquet.read_row_group(group, columns=["score", "box"])
    scores, sides = table["score"].to_numpy(), table["box"].combine_chunks().flatten()
    xmin, ymin, xmax, ymax = (side.to_numpy() for side in sides)
    row = first + np.arange(len(table))
    for focus in foci:
        region = focus.region
        inside = (xmin < region.right) & (ymin < region.bottom)
        inside &= (xmax > region.col_off) & (ymax > region.row_off)
        inside &= (row >= focus.start) & (row < focus.stop) & (scores >= min(min_score, focus.score))
        inside |= row == focus.start + focus.number
        if inside.any():
            yield focus, np.flatnonzero(inside)


def _pick(focus: Focus, rows: pa.Table, focused: int) -> GalleryPick:
    image = {"height": focus.height, "width": focus.width, "capped": False}
    return GalleryPick(
        row=focus.row,
        image_id=focus.image_id,
        name=f"{focus.name}, from column {focus.region.col_off:,}, row {focus.region.row_off:,}",
        uri=focus.uri,
        etag=focus.etag,
        bytes=focus.bytes,
        height=focus.height,
        width=focus.width,
        detections=crop_detections(detections_of(image, rows), focus.region),
        focus=focused,
    )


# Pictures


def draw_window_gallery(
    storage: Storage,
    pixels: RunPixels,
    parts: Sequence[Part],
    categories: Sequence[Category],
    count: int = 12,
) -> list[GalleryItem]:
    """Choose and draw pictures of a run of windows.

    An image that cannot be read any more gets a note instead of a picture.

    Args:
        storage: of the run.
        pixels: reads the run's images.
        parts: of the run, in order.
        categories: of the run.
        count: maximum number of pictures.

    Raises:
        RunError: a part cannot be read.
    """
    foci = pick_foci(storage, parts, count)
    drawn = []
    for focus, pick in zip(foci, look_around(storage, foci), strict=True):
        caption = caption_of(pick, categories)
        try:
            shown = pixels.read(focus, focus.region)
        except (ItemError, RunError) as fault:
            drawn.append(GalleryItem(pick.name, caption, None, unreadable_note(fault)))
            continue
        drawn.append(GalleryItem(pick.name, caption, draw_pick(pick, shown, categories)))
    return drawn
