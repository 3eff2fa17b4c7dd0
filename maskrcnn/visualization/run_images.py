"""Show images of a finished run with detections, chosen by name, by a condition, or by lowest panoptic quality (PQ).

A photo is shown whole. An image that is too large for that, such as a raster in a run of windows, is shown as regions
around instances.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ERROR_CODES, ItemError, RunError, UsageError, plural
from ..imaging.geometry import Rect
from ..results.reader import ImageRow, RunReader, find_images, first_images, where, worst_images
from ..types import Category, Detections, Pixels
from .display import CELL_PX, DISPLAY_SCORE, SMALLEST_PX, Cell, blank, draw_legibly, mask_cells
from .draw import instance_color, short
from .gallery_windows import Focus, look_around, region_around
from .run_pixels import RunPixels, unreadable_note

WHOLE_PIXELS: Final = 2**22
"""In runs of windows, images with more pixels are shown as regions around instances."""
PICTURE_PX: Final = 1280
SHEET_PX: Final = 480
_CROWDED: Final = 20
"""With more instances a picture is enlarged, so that labels have room."""
_TYPE_SCALE: Final = 1.2
"""Scale of lines and type on a sheet, whose pictures are small."""


@dataclass(frozen=True, slots=True)
class View:
    """An image, or a region of one, and the instances to draw on it."""

    name: str
    image_id: int | None
    detections: Detections
    numbers: tuple[int, ...]
    """Of the instances in the image; -1 for those beside the one in focus."""
    pixels: Pixels | None
    """None if the image cannot be shown."""
    note: str = ""
    """Why it cannot be shown, or why it was chosen."""
    focus: int | None = None
    """Index of the detection that the region surrounds; None for a whole image."""
    n_hidden: int = 0
    """The number of instances of a whole image that are left out for their scores alone."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An image to show."""

    image: ImageRow
    instances: tuple[int, ...] | None = None
    """Numbers of the instances to show; None: all."""
    note: str = ""


def choose(
    reader: RunReader,
    count: int,
    images: Sequence[str] = (),
    condition: str | None = None,
    worst: int | None = None,
) -> list[Choice]:
    """Return the images a user asked for; by default the first images with detections.

    Args:
        reader: of the run.
        count: maximum number of images, if they are not named.
        images: names or ids.
        condition: in SQL, see `results.reader.where`.
        worst: number of images with the lowest panoptic quality (PQ).

    Raises:
        UsageError: no image matches, the run was not evaluated, or the condition is not valid.
        RunError: the run cannot be read.
    """
    if images:
        return [Choice(image) for image in find_images(reader, images)]
    if condition is not None:
        matches = where(reader, condition, count)
        if not matches:
            raise UsageError(
                f"no image of {reader.run.url} matches --where {condition!r}: use another condition"
            )
        return [Choice(reader.image(match.row), match.instances) for match in matches]
    if worst is not None:
        found = worst_images(reader, worst)
        return [Choice(image, note=f"PQ {pq:.2f}") for image, pq in found]
    first = first_images(reader, count)
    if not first:
        raise UsageError(f"no image of {reader.run.url} has detections: nothing to show")
    return [Choice(image) for image in first]


def views(
    reader: RunReader,
    choices: Sequence[Choice],
    *,
    min_score: float = DISPLAY_SCORE,
    labels: Collection[int] | None = None,
    count: int = 12,
) -> Iterator[View]:
    """Yield the chosen images one by one, with their pixels; of large images up to `count` regions.

    An image that cannot be shown any more yields a view without pixels, whose note says why.

    Args:
        reader: of the run.
        choices: from `choose`.
        min_score: instances with lower scores are left out.
        labels: category ids of the instances to show; None: all.
        count: maximum number of regions.

    Raises:
        RunError: the run cannot be read.
    """
    left = max(count, len(choices))
    with RunPixels(reader.storage, reader.run.info) as pixels:
        for position, choice in enumerate(choices):
            image = choice.image
            refused = _failed(image)
            if refused is not None:
                left -= 1
                yield refused
            elif pixels.windows is None or (image.height or 0) * (image.width or 0) <= WHOLE_PIXELS:
                left -= 1
                yield _whole(reader, pixels, choice, min_score, labels)
            else:
                room = max(1, (left + len(choices) - position - 1) // (len(choices) - position))
                for view in _regions(reader, pixels, choice, min_score, labels, room):
                    left -= 1
                    yield view


def _whole(
    reader: RunReader, pixels: RunPixels, choice: Choice, min_score: float, labels: Collection[int] | None
) -> View:
    image = choice.image
    try:
        shown = pixels.read(image)
    except (ItemError, RunError) as fault:
        return _without(image, fault)
    detections = reader.detections(image)
    wanted = _wanted(detections.labels, detections.scores, choice, min_score, labels)
    found, numbers = detections.take(wanted), tuple(wanted.tolist())
    hidden = len(_wanted(detections.labels, detections.scores, choice, 0.0, labels)) - len(wanted)
    return View(image.name, image.image_id, found, numbers, shown, choice.note, n_hidden=hidden)


def _failed(image: ImageRow) -> View | None:
    if image.width is not None and image.height is not None and image.status != "failed":
        return None
    why = ERROR_CODES.get(image.error or "", image.status)
    return View(image.name, image.image_id, Detections.empty(1, 1), (), None, f"It failed in the run: {why}.")


def _without(image: ImageRow, fault: ItemError | RunError) -> View:
    found = Detections.empty(image.height or 1, image.width or 1)
    return View(image.name, image.image_id, found, (), None, unreadable_note(fault))


def _wanted(
    found: NDArray[np.int32],
    scores: NDArray[np.float32],
    choice: Choice,
    min_score: float,
    labels: Collection[int] | None,
) -> NDArray[np.intp]:
    keep = scores >= np.float32(min_score)
    if labels is not None:
        keep &= np.isin(found, list(labels))
    if choice.instances is not None:
        keep &= np.isin(np.arange(len(found)), choice.instances)
    return np.flatnonzero(keep)


# Large images


def _regions(
    reader: RunReader,
    pixels: RunPixels,
    choice: Choice,
    min_score: float,
    labels: Collection[int] | None,
    room: int,
) -> Iterator[View]:
    """Yield up to `room` regions of a large image."""
    image = choice.image
    foci = _foci(reader, choice, min_score, labels, room)
    for focus, pick in zip(foci, look_around(reader.storage, foci, min_score), strict=True):
        try:
            shown = pixels.read(focus, focus.region)
        except (ItemError, RunError) as fault:
            yield _without(image, fault)
            return
        keep = np.arange(len(pick.detections)) == pick.focus
        if choice.instances is None:
            keep |= _is_in(pick.detections.labels, labels)
        found = pick.detections.take(np.flatnonzero(keep))
        at = int(keep[: pick.focus].sum())
        numbers = tuple(focus.number if place == at else -1 for place in range(len(found)))
        note = f"from column {focus.region.col_off:,}, row {focus.region.row_off:,}"
        yield View(image.name, image.image_id, found, numbers, shown, note, at)


def _is_in(found: NDArray[np.int32], labels: Collection[int] | None) -> NDArray[np.bool_]:
    return np.ones(len(found), np.bool_) if labels is None else np.isin(found, list(labels))


def _foci(
    reader: RunReader, choice: Choice, min_score: float, labels: Collection[int] | None, room: int
) -> list[Focus]:
    """Return regions around instances of an image, highest scores first, that hardly overlap."""
    image, table = choice.image, reader.boxes(choice.image)
    found, scores = table["category_id"].to_numpy(), table["score"].to_numpy()
    wanted = _wanted(found, scores, choice, min_score, labels)
    foci: list[Focus] = []
    for number in wanted.tolist():
        box = table["box"][number].as_py()
        region = region_around(box, image.height or 1, image.width or 1)
        shared = [region.shared(other.region) for other in foci]
        if all(4 * part.width * part.height < region.width * region.height for part in shared):
            foci.append(_focus_on(image, number, int(found[number]), float(scores[number]), region))
        if len(foci) == room:
            break
    return foci


def _focus_on(image: ImageRow, number: int, label: int, score: float, region: Rect) -> Focus:
    return Focus(
        part=image.part,
        row=image.row,
        start=image.start,
        stop=image.start + image.n_instances,
        number=number,
        label=label,
        score=score,
        region=region,
        height=image.height or 0,
        width=image.width or 0,
        image_id=image.image_id,
        name=image.name,
        uri=image.uri,
        etag=image.etag,
        bytes=image.bytes,
    )


# Pictures


def picture_of(view: View, categories: Sequence[Category], side: int, *, small: bool = False) -> Pixels:
    """Return the picture of a view; a grey one with the reason if there are no pixels.

    Args:
        view: what to draw.
        categories: of the run.
        side: the longest side in pixels; images with less than 800 pixels are enlarged.
        small: with larger type, for a contact sheet.
    """
    if view.pixels is None:
        found = view.detections
        height, width = (found.height, found.width) if found.height > 1 else (3, 4)
        scale = (side if small else min(side, SMALLEST_PX)) / max(height, width)
        return blank(max(160, round(width * scale)), max(80, round(height * scale)), view.note)
    # Many labels need room to be legible.
    crowded = len(view.detections) > _CROWDED
    least = side if small or crowded else min(SMALLEST_PX, side)
    return draw_legibly(
        view.pixels,
        view.detections,
        categories,
        min(side, max(least, *view.pixels.shape[:2])),
        scale=_TYPE_SCALE if small else 1.0,
        colors=[instance_color(number if number >= 0 else 1000 + k) for k, number in enumerate(view.numbers)],
    )


def cells_of(view: View, categories: Sequence[Category], side: int, *, masks: bool = False) -> list[Cell]:
    """Return the cells of a view on a sheet: the picture, and with `masks` a picture of each mask."""
    count = len(view.detections)
    what = plural(count, "instance")
    note = "" if view.pixels is None else view.note
    lines = (view.name, ", ".join(filter(None, (note, "" if view.pixels is None else what))))
    cells = [Cell(picture_of(view, categories, side, small=True), lines)]
    if masks and view.pixels is not None:
        some = view if view.focus is None else _in_focus(view)
        cells += mask_cells(
            view.pixels, some.detections, categories, min_score=0.0, cell_px=side, numbers=some.numbers
        )
    return cells


def _in_focus(view: View) -> View:
    focus = view.focus or 0
    only = view.detections.take(np.array([focus]))
    return View(view.name, view.image_id, only, (view.numbers[focus],), view.pixels)


def facts_of(view: View, categories: Sequence[Category]) -> dict[str, Any]:
    """Return the content of a view as JSON values: name, id, and category, score, box and area of each instance."""
    names = {category.id: category.name for category in categories}
    found = view.detections
    return {
        "name": view.name,
        "image_id": view.image_id,
        "shown": view.pixels is not None,
        "note": view.note,
        "instances": [
            {
                "instance": number if number >= 0 else None,
                "category": names.get(label, f"#{label}"),
                "score": round(score, 4),
                "box": [round(side, 2) for side in box],
                "area": area,
            }
            for number, label, score, box, area in zip(
                view.numbers,
                found.labels.tolist(),
                found.scores.tolist(),
                found.boxes.tolist(),
                found.areas.tolist(),
                strict=True,
            )
        ],
    }


def summary_of(view: View, categories: Sequence[Category]) -> str:
    """Return a line with the number of instances of each category in a view, or why there is no picture."""
    if view.pixels is None:
        return f"{view.name}: {view.note}"
    names = {category.id: category.name for category in categories}
    labels, counts = np.unique(view.detections.labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    each = [f"{counts[k]} {short(names.get(int(labels[k]), f'#{labels[k]}'))}" for k in order]
    noted = f" ({view.note})" if view.note else ""
    return f"{view.name}{noted}: {', '.join(each) or 'no instance'}"


def side_of(cells: int, *, masks: bool) -> int:
    """Return the side of the pictures on a sheet with this many cells, in pixels."""
    return CELL_PX if masks or cells > 16 else SHEET_PX
