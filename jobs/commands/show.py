"""`maskrcnn show`: what was found, as pictures; in one image, or in images of a finished run."""

import io
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from PIL import Image

import maskrcnn
from maskrcnn.config import InferenceConfig
from maskrcnn.errors import ERROR_CODES, ItemError, RunError, UsageError
from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.io.inputs import read_input
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url
from maskrcnn.models.factory import build_segmenter
from maskrcnn.models.registry import category_ids_named, describe_model
from maskrcnn.pipeline.plan import RUN
from maskrcnn.results.export import safe_name
from maskrcnn.results.reader import RunReader
from maskrcnn.types import Category, Pixels
from maskrcnn.visualization.display import DISPLAY_SCORE, sheet
from maskrcnn.visualization.run_images import (
    PICTURE_PX,
    View,
    cells_of,
    choose,
    facts_of,
    picture_of,
    side_of,
    summary_of,
    views,
)

log = logging.getLogger("maskrcnn")

_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_ALL: Final = 10_000
"""The most instances that one image is asked for."""


@dataclass(frozen=True, slots=True)
class ShowRequest:
    """What `maskrcnn show` is asked for."""

    source: str
    """An image, or the directory of a finished run."""
    images: tuple[str, ...] = ()
    where: str | None = None
    worst: int | None = None
    count: int = 12
    masks: bool = False
    min_score: float | None = None
    """None: 0.5; with `where`, no limit."""
    categories: tuple[str, ...] = ()
    columns: int | None = None
    max_side: int | None = None
    output: str | None = None
    each: str | None = None
    """A directory that gets a picture an image; else there is one picture of all."""
    model: str | None = None
    """Of an image; None: `coco`."""
    labels: str | None = None

    def __post_init__(self) -> None:
        if sum((bool(self.images), self.where is not None, self.worst is not None)) > 1:
            raise UsageError("--image, --where and --worst exclude each other")
        if self.each is not None and self.output is not None:
            raise UsageError("--each and --output exclude each other")
        if self.min_score is not None and not 0.0 <= self.min_score <= 1.0:
            raise UsageError(f"--min-score must be in [0, 1], not {self.min_score:g}")
        if self.output is not None:
            _format_of(self.output)
            if self.output == self.source:
                raise UsageError(f"--output {self.output} is the image itself")

    @property
    def least(self) -> float:
        """The score below which nothing is drawn."""
        if self.min_score is not None:
            return self.min_score
        return DISPLAY_SCORE if self.where is None else 0.0


@dataclass(frozen=True, slots=True)
class Showed:
    """What was drawn."""

    files: tuple[str, ...]
    lines: tuple[str, ...]
    """One a picture, for the terminal."""
    facts: tuple[dict[str, Any], ...]
    """The same as JSON."""


def show(request: ShowRequest) -> Showed:
    """Draw what is asked for.

    Raises:
        UsageError: the source or a wish is wrong, or none of the images can be shown.
        RunError: the run cannot be read, or a picture not be written.
    """
    if not _is_run(request.source):
        wishes = {"--image": request.images, "--where": request.where, "--worst": request.worst}
        if wrong := [name for name, value in wishes.items() if value]:
            raise UsageError(f"{wrong[0]} is for the directory of a run; {request.source} is an image")
        view, categories = _segmented(request)
        return _drawn(request, [view], categories)
    if request.model or request.labels:
        raise UsageError(
            f"--model and --labels are for an image; {request.source} is a run, which had its own"
        )
    run = maskrcnn.open_run(request.source)
    labels = category_ids_named(run.categories, request.categories) if request.categories else None
    with RunReader(run) as reader:
        chosen = choose(reader, request.count, request.images, request.where, request.worst)
        shown = views(reader, chosen, min_score=request.least, labels=labels, count=request.count)
        return _drawn(request, shown, run.categories)


def _is_run(source: str) -> bool:
    if Url.parse(source).is_local:
        path = Path(source.removeprefix("file://"))
        if not path.exists():
            raise UsageError(f"{source} does not exist; name an image, or the directory of a finished run")
        return path.is_dir()
    return not PurePosixPath(source).suffix or Storage(source).exists(RUN)


def _segmented(request: ShowRequest) -> tuple[View, tuple[Category, ...]]:
    """Find the instances of one image, in this process."""
    name = request.model or "coco"
    defaults = InferenceConfig(name)
    limits = Limits(defaults.max_pixels, defaults.max_bytes, 1333.0)
    try:
        pixels = decode_image(read_input(request.source, limits.max_bytes), limits).pixels
    except ItemError as fault:
        raise UsageError(f"{request.source}: {fault.message} ({ERROR_CODES[fault.code]})") from fault
    card = describe_model(name, request.labels)
    if card.notice:
        log.warning("%s", card.notice)
    kept = category_ids_named(card.categories, request.categories)
    segmenter = build_segmenter(
        name,
        request.labels,
        min_score=min(request.least, 0.999),
        max_detections=_ALL,
        categories=request.categories,
        device="auto",
    )
    (found,) = segmenter.outcomes([pixels])
    if isinstance(found, ItemError):
        raise UsageError(f"{request.source}: {found.message} ({ERROR_CODES[found.code]})")

    keep = np.flatnonzero(np.isin(found.labels, list(kept)) if kept else np.ones(len(found), np.bool_))
    shown = request.source.rstrip("/").rpartition("/")[2]
    return View(shown, None, found.take(keep), tuple(keep.tolist()), pixels), card.categories


def _drawn(request: ShowRequest, shown: Iterable[View], categories: tuple[Category, ...]) -> Showed:
    """Draw views one by one, so that no more than one image is held."""
    files: list[str] = []
    lines: list[str] = []
    facts: list[dict[str, Any]] = []
    cells = []
    held: View | None = None
    for number, view in enumerate(shown):
        lines.append(summary_of(view, categories))
        facts.append(facts_of(view, categories))
        if request.each is not None:
            if view.pixels is not None:
                stem = f"{safe_name(view.name, view.image_id or 0)}{_suffix(view)}"
                name = f"{stem.removesuffix('.png')}.png"
                if f"{request.each.rstrip('/')}/{name}" in files:  # of an image without a suffix
                    name = f"{stem}.png"
                files.append(_write(request.each, name, _picture(request, view, categories)))
            continue
        side = request.max_side or side_of(request.count, masks=request.masks)
        cells += cells_of(view, categories, side, masks=request.masks)
        held = view if number == 0 else None
    if not any(fact["shown"] for fact in facts):
        raise UsageError(f"nothing can be shown: {lines[0] if lines else 'no image'}")
    if request.each is None:
        if held is not None and not request.masks:
            picture = picture_of(held, categories, request.max_side or PICTURE_PX)
        else:
            side = request.max_side or side_of(request.count, masks=request.masks)
            picture = sheet(cells, request.columns or _columns(len(cells)), cell_px=side)
        folder, _, name = (request.output or _default_name(request)).rpartition("/")
        files.append(_write(folder or ".", name, picture))
    return Showed(tuple(files), tuple(lines), tuple(facts))


def _picture(request: ShowRequest, view: View, categories: tuple[Category, ...]) -> Pixels:
    if not request.masks:
        return picture_of(view, categories, request.max_side or PICTURE_PX)
    side = request.max_side or side_of(1, masks=True)
    cells = cells_of(view, categories, side, masks=True)
    return sheet(cells, request.columns or _columns(len(cells)), cell_px=side)


def _suffix(view: View) -> str:
    return "" if view.focus is None else f"-{view.numbers[view.focus]}"


def _columns(cells: int) -> int:
    """Return how many columns make a sheet somewhat wider than high.

    >>> [_columns(cells) for cells in (1, 2, 4, 12, 40, 400)]
    [1, 2, 2, 4, 7, 8]
    """
    return min(8, max(1, math.ceil(math.sqrt(cells))))


def _default_name(request: ShowRequest) -> str:
    stem = PurePosixPath(request.source.rstrip("/")).name.partition(".")[0] or "show"
    return f"{stem}-{'masks' if request.masks else 'instances'}.png"


def _format_of(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in _FORMATS:
        raise UsageError(f"--output {name}: a picture ends in {', '.join(_FORMATS)}")
    return _FORMATS[suffix]


def _write(folder: str, name: str, picture: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, _format_of(name), quality=90)
    try:
        Storage(folder).write(name, buffer.getvalue())
    except RunError as error:
        raise UsageError(f"the picture cannot be written: {error}") from error
    return f"{folder.rstrip('/')}/{name}" if folder != "." else name
