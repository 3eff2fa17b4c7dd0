"""Compare two runs and report the differences: tables, counts as JSON, and `diff.html` with pictures.

The pictures show the images with the most differences: A beside B, changed instances in color, others in grey.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, RunError, UsageError, plural
from ..imaging.geometry import Rect
from ..io.storage import Storage
from ..masks.crop import crop_detections
from ..pipeline.success import RunAll, run_here
from ..results.diff import Comparison, ImageDiff
from ..results.diff_matching import APPEARED, KINDS, MOVED, RELABELLED, RESCORED, SAME, VANISHED, Rules
from ..results.diff_tables import compare_runs
from ..results.reader import ImageRow, RunReader
from ..results.run import open_run
from ..types import Detections, Pixels
from .draw import Color, draw_instances, short
from .run_pixels import RunPixels, why_unreadable
from .templates import encode_jpeg, render

log = logging.getLogger("maskrcnn")

PICTURES: Final = 12
"""Default number on the page."""
PICTURE_PX: Final = 560
_SCALE: Final = 1.2
_MOST_PX: Final = 1024
"""Maximum side of a region in a picture; if changes are further apart, those around the largest are shown."""
_LEAST_PX: Final = 160
COLORS: Final[dict[int, Color]] = {
    SAME: (150, 150, 150),
    RESCORED: (90, 160, 255),
    MOVED: (255, 190, 30),
    RELABELLED: (205, 120, 255),
    APPEARED: (60, 210, 110),
    VANISHED: (255, 90, 80),
}


@dataclass(frozen=True, slots=True)
class DiffPicture:
    """The pictures of an image in both runs."""

    name: str
    caption: str
    jpegs: tuple[bytes, bytes]
    """Of A, of B."""


# Two runs


def diff_runs(
    a: str,
    b: str,
    rules: Rules | None = None,
    output: str | None = None,
    pictures: int = PICTURES,
    run_all: RunAll = run_here,
) -> dict[str, Any]:
    """Compare two finished runs over the same images, instance by instance; return the differences as JSON values.

    Images are matched by id if both runs were given ids, else by name.

    Args:
        a: directory of one run, local or remote.
        b: directory of the other run.
        rules: when two instances are the same; by default if mask, box, category and score are equal.
        output: an empty directory or prefix that gets `diff.parquet`, `images.parquet`, `diff.json` and `diff.html`;
            None: nothing is written.
        pictures: maximum number of images on the page.
        run_all: how the comparison is distributed.

    Returns:
        `equal`, whether the runs are equal by the rules; counts of `images`, and of `instances` by kind, by category
        and by size; the differing `settings`; the content of `diff.json`.

    Raises:
        UsageError: a run is missing or not finished, its tables disagree, the runs have no image in common or none that
            did not fail in both, or the output is not empty.
        RunError: a run cannot be read, or the output not be written.
    """
    rules = rules or Rules()
    target = None if output is None else Storage(output)
    if target is not None and target.list():
        raise UsageError(f"{output} is not empty: name another directory")
    with RunReader(open_run(a)) as one, RunReader(open_run(b)) as other:
        comparison = Comparison(one, other, rules)
        tally, most = compare_runs(comparison, target, pictures, run_all)
        if renamed := tally.images["renamed"]:
            log.warning(
                "%s with the same id but another name: are both runs over the same images?",
                plural(renamed, "image"),
            )
        facts = {
            "a": one.run.url,
            "b": other.run.url,
            "equal": tally.equal,
            "matched_by": comparison.matched_by,
            "shapes": comparison.shapes,
            "rules": dataclasses.asdict(rules),
            "settings": comparison.settings,
            **tally.to_json(),
        }
        if target is not None:
            write_page(target, facts, draw_diffs(comparison, one, other, most))
    return facts


# Pictures


def draw_diffs(
    comparison: Comparison, a: RunReader, b: RunReader, images: list[tuple[ImageRow, ImageRow]]
) -> list[DiffPicture]:
    """Draw images in which two runs differ, once per run.

    An image that cannot be read any more is drawn as a grey background.

    Args:
        comparison: of the runs.
        a: reader of one run.
        b: reader of the other run.
        images: pairs of compared images.

    Raises:
        RunError: a run cannot be read.
    """
    with RunPixels(a.storage, a.run.info) as of_a, RunPixels(b.storage, b.run.info) as of_b:
        return [_draw(comparison.image(*pair), comparison.categories, of_a, of_b) for pair in images]


def _read(pixels: RunPixels, image: ImageRow, region: Rect) -> tuple[Pixels, str]:
    """Return the pixels of a region; or a grey background, and why."""
    try:
        return pixels.read(image, region), ""
    except (ItemError, RunError) as fault:
        grey = np.full((region.height, region.width, 3), 70, np.uint8)
        return grey, f"image not read: {why_unreadable(fault)}"


def _draw(image: ImageDiff, categories: tuple[str, ...], of_a: RunPixels, of_b: RunPixels) -> DiffPicture:
    a, b = image.a, image.b
    found_a, found_b = image.found_a, image.found_b
    if a is None or b is None or found_a is None or found_b is None:
        raise ValueError("the image was not compared")
    region = _region(image, found_a, found_b)
    jpegs, notes = [], []
    for row, found, rows, others, reader in (
        (a, found_a, image.rows_a, image.rows_b, of_a),
        (b, found_b, image.rows_b, image.rows_a, of_b),
    ):
        pixels, note = _read(reader, row, region)
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
        jpegs.append(encode_jpeg(_drawn(pixels, found, kinds, texts, region)))
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
    """Return the part of the image to show: all changes with their surroundings, or the surroundings of the largest."""
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
        side = longest  # nearly the whole image is better shown as the whole image
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
    # Changed instances first: they are drawn on top, and their labels are placed first.
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


def render_diff(facts: dict[str, Any], pictures: list[DiffPicture]) -> str:
    """Return the page as one self-contained HTML file.

    Args:
        facts: `Tally.to_json` with the runs, the rules and the differing settings.
        pictures: from `draw_diffs`.
    """
    colors = {KINDS[kind]: f"rgb{color}" for kind, color in COLORS.items()}
    return render("diff.html.j2", facts=facts, pictures=pictures, kinds=KINDS, colors=colors)


def write_page(output: Storage, facts: dict[str, Any], pictures: list[DiffPicture]) -> None:
    """Store `diff.json` and `diff.html`. Raises RunError where the store fails."""
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    output.write("diff.json", f"{text}\n".encode())
    output.write("diff.html", render_diff(facts, pictures).encode())
