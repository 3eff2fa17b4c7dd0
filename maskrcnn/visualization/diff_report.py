"""What two runs differ in, written down: a row an instance, the counts as JSON, and a page with pictures.

The pictures are of the images that differ most: A beside B, what changed in colour, all else in grey.
"""

import base64
import functools
import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import jinja2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ERROR_CODES, ItemError, RunError
from ..imaging.decode import Limits
from ..imaging.decode_pool import Decoders
from ..imaging.geometry import Rect
from ..io.parquet import write_tables
from ..io.storage import Storage
from ..masks.crop import crop_detections
from ..pipeline.manifest import read_window_index
from ..results.diff import Comparison, ImageDiff, Tally
from ..results.diff_matching import APPEARED, KINDS, MOVED, RELABELLED, RESCORED, SAME, VANISHED
from ..results.reader import ImageRow, RunReader
from ..types import Detections, Pixels
from .display import jpeg_of, short
from .draw import Color, draw_instances
from .gallery_windows import region_pixels
from .run_images import focus_on, read_image

PICTURE_PX: Final = 560
_SCALE: Final = 1.2
_MOST_PX: Final = 1024
"""Of an image, in one picture; of changes that are further apart, those around the largest are shown."""
_LEAST_PX: Final = 160
COLORS: Final[dict[int, Color]] = {
    SAME: (150, 150, 150),
    RESCORED: (90, 160, 255),
    MOVED: (255, 190, 30),
    RELABELLED: (205, 120, 255),
    APPEARED: (60, 210, 110),
    VANISHED: (255, 90, 80),
}
_BOX: Final = pa.struct([pa.field(side, pa.float32()) for side in ("xmin", "ymin", "xmax", "ymax")])
INSTANCES: Final = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        ("image_id_a", pa.int64()),
        ("image_id_b", pa.int64()),
        pa.field("kind", pa.string(), nullable=False),
        *[(f"instance_{run}", pa.int32()) for run in "ab"],
        *[(f"category_{run}", pa.string()) for run in "ab"],
        *[(f"score_{run}", pa.float32()) for run in "ab"],
        *[(f"area_{run}", pa.int64()) for run in "ab"],
        *[(f"box_{run}", _BOX) for run in "ab"],
        ("iou", pa.float32()),
    ]
)
"""Of `diff.parquet`: one row an instance that is not the same; null where a run does not have it."""
IMAGES: Final = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        ("image_id_a", pa.int64()),
        ("image_id_b", pa.int64()),
        pa.field("outcome", pa.string(), nullable=False),
        ("status_a", pa.string()),
        ("status_b", pa.string()),
        *[pa.field(kind, pa.int32(), nullable=False) for kind in KINDS],
    ]
)
"""Of `images.parquet`: one row an image that differs."""


@dataclass(frozen=True, slots=True)
class DiffPicture:
    """An image in both runs, drawn."""

    name: str
    caption: str
    jpegs: tuple[bytes, bytes]
    """Of A, of B."""


# Tables


def compare_runs(
    comparison: Comparison, output: Storage | None, count: int
) -> tuple[Tally, list[tuple[ImageRow, ImageRow]]]:
    """Compare two runs, and write what differs as tables.

    Args:
        comparison: of the runs.
        output: gets `diff.parquet` and `images.parquet`; None: nothing is written.
        count: how many of the images that differ most are wanted.

    Returns:
        What it adds up to, and the images that differ most, the most first.

    Raises:
        RunError: a run cannot be read, or a table not be stored.
    """
    tally = Tally(comparison.categories)
    most: list[tuple[float, int, tuple[ImageRow, ImageRow]]] = []
    rows: list[dict[str, Any]] = []

    def changed() -> Iterator[pa.Table]:
        for number, image in enumerate(comparison):
            tally.add(image)
            if image.a is not None and image.b is not None and image.weight:
                heapq.heappush(most, (image.weight, -number, (image.a, image.b)))
                if len(most) > count:
                    heapq.heappop(most)
            if output is not None:
                rows.extend(_image_row(image))
                if len(image.changed):
                    yield _instance_rows(image, comparison.categories)

    if output is None:
        for _ in changed():
            pass
    else:
        write_tables(output, "diff.parquet", INSTANCES, changed())
        write_tables(output, "images.parquet", IMAGES, [pa.Table.from_pylist(rows, IMAGES)])
    return tally, [entry[2] for entry in sorted(most, key=lambda entry: (-entry[0], -entry[1]))]


def _image_row(image: ImageDiff) -> list[dict[str, Any]]:
    counts = np.bincount(image.kinds, minlength=len(KINDS)).tolist()
    differs = image.status in ("only_a", "only_b", "resized") or image.status_changed
    if not differs and not len(image.changed):
        return []
    a, b = image.a, image.b
    one = {
        "name": image.name,
        "image_id_a": a and a.image_id,
        "image_id_b": b and b.image_id,
        "outcome": image.status,
        "status_a": a and a.status,
        "status_b": b and b.status,
    }
    return [one | dict(zip(KINDS, counts, strict=True))]


def _instance_rows(image: ImageDiff, categories: tuple[str, ...]) -> pa.Table:
    changed = image.changed
    a, b = image.a, image.b
    kinds = image.kinds[changed]
    columns: dict[str, Any] = {
        "name": [image.name] * len(changed),
        "image_id_a": [a and a.image_id] * len(changed),
        "image_id_b": [b and b.image_id] * len(changed),
        "kind": [KINDS[kind] for kind in kinds.tolist()],
    }
    for run, found, rows, numbers in (
        ("a", image.found_a, image.rows_a[changed], image.numbers_a),
        ("b", image.found_b, image.rows_b[changed], image.numbers_b),
    ):
        here = [row if row >= 0 else None for row in rows.tolist()]
        columns |= _side(found, here, numbers, categories, run) if found is not None else {}
    matched = (image.rows_a[changed] >= 0) & (image.rows_b[changed] >= 0)
    columns["iou"] = pa.array(image.iou[changed].astype(np.float32), mask=~matched)
    return pa.table([pa.array(columns[f.name], f.type) for f in INSTANCES], schema=INSTANCES)


def _side(
    found: Detections,
    rows: list[int | None],
    numbers: NDArray[np.int64],
    categories: tuple[str, ...],
    run: str,
) -> dict[str, Any]:
    def of(values: list[Any]) -> list[Any]:
        return [None if row is None else values[row] for row in rows]

    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [dict(zip(sides, box, strict=True)) for box in found.boxes.tolist()]
    return {
        f"instance_{run}": of(numbers.tolist()),
        f"category_{run}": of([categories[label] for label in found.labels.tolist()]),
        f"score_{run}": of(found.scores.tolist()),
        f"area_{run}": of(found.areas.tolist()),
        f"box_{run}": of(boxes),
    }


# Pictures


def draw_diffs(
    comparison: Comparison, a: RunReader, b: RunReader, images: list[tuple[ImageRow, ImageRow]]
) -> list[DiffPicture]:
    """Draw images in which runs differ, in each run.

    An image that cannot be read any more is drawn as a grey ground.

    Args:
        comparison: of the runs.
        a: of one run.
        b: of the other.
        images: in both, compared.

    Raises:
        RunError: a run cannot be read.
    """
    with Decoders(1) as decoders:
        eyes = [_Eyes(reader, decoders) for reader in (a, b)]
        return [_draw(comparison.image(*pair), comparison.categories, eyes) for pair in images]


class _Eyes:
    """Reads the pixels of a run's images."""

    def __init__(self, reader: RunReader, decoders: Decoders) -> None:
        self._run = reader.run.info
        self._items = read_window_index(reader.storage)
        self._decoders = decoders

    def see(self, image: ImageRow, region: Rect) -> tuple[Pixels, str]:
        """Return the pixels of a region; or a grey ground, and why."""
        settings = self._run["settings"]
        try:
            if self._items is not None:
                focus = focus_on(image, 0, 0, 0.0, region)
                return region_pixels(self._decoders, self._run, self._items, focus), ""
            limits = Limits(settings["max_pixels"], settings["max_bytes"], float("inf"))
            pixels = read_image(image, limits)
        except (ItemError, RunError) as fault:
            why = ERROR_CODES[fault.code] if isinstance(fault, ItemError) else "not from this machine"
            return np.full((region.height, region.width, 3), 70, np.uint8), f"image not read: {why}"
        return pixels[region.row_off : region.bottom, region.col_off : region.right], ""


def _draw(image: ImageDiff, categories: tuple[str, ...], eyes: list[_Eyes]) -> DiffPicture:
    a, b = image.a, image.b
    found_a, found_b = image.found_a, image.found_b
    if a is None or b is None or found_a is None or found_b is None:
        raise ValueError("the image was not compared")
    region = _region(image, found_a, found_b)
    jpegs, notes = [], []
    for row, found, rows, others, eye in (
        (a, found_a, image.rows_a, image.rows_b, eyes[0]),
        (b, found_b, image.rows_b, image.rows_a, eyes[1]),
    ):
        pixels, note = eye.see(row, region)
        notes += [note] if note else []
        partner = found_b if found is found_a else found_a
        here = rows >= 0
        kinds = np.zeros(len(found), np.int8)
        kinds[rows[here]] = image.kinds[here]
        texts = [""] * len(found)
        for k in np.flatnonzero(here & (image.kinds != SAME)).tolist():
            other = int(others[k]) if others[k] >= 0 else None
            texts[rows[k]] = _text(
                image.kinds[k],
                found,
                int(rows[k]),
                partner,
                other,
                image.iou[k],
                categories,
                found is found_a,
            )
        jpegs.append(jpeg_of(_drawn(pixels, found, kinds, texts, region)))
    counts = np.bincount(image.kinds, minlength=len(KINDS))
    said = [f"{counts[kind]} {KINDS[kind]}" for kind in (VANISHED, APPEARED, MOVED, RELABELLED, RESCORED)]
    caption = ", ".join(text for text in said if not text.startswith("0 "))
    part = "" if region == Rect(0, 0, found_a.width, found_a.height) else _part(region)
    return DiffPicture(a.name, "; ".join([f"{caption}{part}", *dict.fromkeys(notes)]), (jpegs[0], jpegs[1]))


def _part(region: Rect) -> str:
    return f"; shown from column {region.col_off:,}, row {region.row_off:,}"


def _text(
    kind: int,
    found: Detections,
    row: int,
    partner: Detections,
    other: int | None,
    iou: float,
    categories: tuple[str, ...],
    ours: bool,
) -> str:
    name, score = short(categories[int(found.labels[row])]), found.scores[row]
    if other is None:
        return f"{name} {score:.2f}"
    if kind == MOVED:
        return f"{name} IoU {iou:.2f}" if iou < 1 else f"{name} box"
    if kind == RELABELLED and ours:
        return f"{name} to {short(categories[int(partner.labels[other])])}"
    if kind == RESCORED and ours:
        return f"{score:.2f} to {partner.scores[other]:.2f}"
    return f"{name} {score:.2f}"


def _region(image: ImageDiff, a: Detections, b: Detections) -> Rect:
    """Return the part of the image to show: all changes with their surroundings, or those around the largest."""
    boxes, areas = [], []
    for rows, found in ((image.rows_a, a), (image.rows_b, b)):
        changed = rows[(image.kinds != SAME) & (rows >= 0)]
        boxes.append(found.boxes[changed])
        areas.append(found.areas[changed])
    corners = np.concatenate(boxes).astype(np.float64)
    around = np.concatenate([corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)])
    least = _LEAST_PX
    if max(around[2:] - around[:2]) > _MOST_PX / 1.3 and max(a.height, a.width) > _MOST_PX:
        around, least = corners[int(np.argmax(np.concatenate(areas)))], _MOST_PX
    side = max(*(1.3 * (around[2:] - around[:2])), least)
    longest = max(a.height, a.width)
    if 0.6 * longest <= side and longest <= _MOST_PX:
        side = longest  # what is nearly all of the image is better shown as all of it
    side = min(side, _MOST_PX)
    width, height = min(round(side), a.width), min(round(side), a.height)
    left = int(np.clip(round((around[0] + around[2] - width) / 2), 0, a.width - width))
    top = int(np.clip(round((around[1] + around[3] - height) / 2), 0, a.height - height))
    return Rect(left, top, width, height)


def _drawn(
    pixels: Pixels, found: Detections, kinds: NDArray[np.int8], texts: list[str], region: Rect
) -> Pixels:
    left, top, right, bottom = found.boxes.T
    inside = (left < region.right) & (right > region.col_off)
    inside &= (top < region.bottom) & (bottom > region.row_off)
    # What changed is drawn last, and named first.
    here = np.flatnonzero(inside)
    here = here[np.argsort(kinds[here] == SAME, kind="stable")]
    return draw_instances(
        pixels,
        crop_detections(found.take(here), region),
        [],
        min_score=0.0,
        min_side=PICTURE_PX,
        max_side=PICTURE_PX,
        scale=_SCALE,
        colors=[COLORS[kinds[row]] for row in here.tolist()],
        texts=[texts[row] for row in here.tolist()],
    )


# The page


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = resources.files(__package__).joinpath("templates", "diff.html.j2").read_text("utf-8")
    return environment.from_string(text)


def render_diff(facts: dict[str, Any], pictures: list[DiffPicture]) -> str:
    """Return the page as one self-contained HTML file.

    Args:
        facts: `Tally.to_json` with the runs, the rules and the settings in which they differ.
        pictures: from `draw_diffs`.
    """
    colors = {KINDS[kind]: f"rgb{color}" for kind, color in COLORS.items()}
    shown = [
        {
            "name": picture.name,
            "caption": picture.caption,
            "jpegs": [base64.b64encode(jpeg).decode("ascii") for jpeg in picture.jpegs],
        }
        for picture in pictures
    ]
    return _template().render(facts=facts, pictures=shown, kinds=KINDS, colors=colors)


def write_page(output: Storage, facts: dict[str, Any], pictures: list[DiffPicture]) -> None:
    """Store `diff.json` and `diff.html`. Raises RunError where the store fails."""
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    output.write("diff.json", f"{text}\n".encode())
    output.write("diff.html", render_diff(facts, pictures).encode())
