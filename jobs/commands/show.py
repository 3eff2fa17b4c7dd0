"""The command `maskrcnn show`: instances as pictures, of one image or of images of a finished run."""

import contextlib
import io
import json
import logging
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import click

from maskrcnn.errors import ItemError, RunError, UsageError, plural

from .plain_text import plain
from .shared_options import json_option, labels_option, model_args_option, names_of

if TYPE_CHECKING:
    from maskrcnn.types import Category, Pixels
    from maskrcnn.visualization.run_images import View

log = logging.getLogger("maskrcnn")

_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@click.command()
@click.argument("source", metavar="IMAGE|OUTPUT")
@click.option(
    "--image", "images", metavar="NAME|ID", multiple=True, help="Of a run: show this image; repeatable."
)
@click.option("--where", metavar="SQL", help="Of a run: show images and instances that match (needs DuckDB).")
@click.option(
    "--worst",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Of an evaluated run: show the N images with the lowest panoptic quality (PQ).",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=12,
    show_default=True,
    help="Maximum number of pictures, unless images are named.",
)
@click.option(
    "--masks", is_flag=True, help="Show each mask, or without masks each box, in a picture of its own."
)
@click.option(
    "--min-score",
    type=float,
    help="Leave out instances with lower scores; by default 0.5, with --where no limit.",
)
@click.option("--categories", metavar="NAME,…", help="Show only these categories.")
@click.option("--columns", type=click.IntRange(1), help="Columns of the contact sheet.")
@click.option(
    "--max-side", type=click.IntRange(64, 20_000), metavar="PX", help="Maximum side of each picture."
)
@click.option("--output", metavar="FILE", help="By default NAME-instances.png here; .png, .jpg or .webp.")
@click.option("--each", metavar="DIR", help="Write one PNG per image to this folder, not a contact sheet.")
@click.option(
    "--model",
    help="Model for an IMAGE: coco (by default), coco-v1, scenes, nuclei, a detector of torchvision by name, the path "
    "or URL of weights, or package.module:factory.",
)
@model_args_option
@labels_option
@json_option
def show(
    source: str, images: tuple[str, ...], categories: str | None, as_json: bool, **options: object
) -> None:
    """Draw instances: boxes, labels and, if the model detects them, masks, as a PNG or a contact sheet.

    An IMAGE is processed here, without Ray. Of the OUTPUT of a finished run the selected images are drawn, by default
    the first ones with instances; of large rasters, the surroundings of an instance. SQL may use the columns of
    `images` and `instances`, as in --where "category = 'car' AND score < 0.6".
    """
    names = names_of(categories, "--categories")
    request = ShowRequest(source, images, categories=names, **options)  # type: ignore[arg-type]
    shown = draw_pictures(request)
    if request.min_score is None:
        _log_scores(request, shown)
    if as_json:
        click.echo(json.dumps({"files": list(shown.files), "images": list(shown.facts)}))
        return
    for line in (*shown.lines, *shown.files):
        click.echo(plain(line))


def _log_scores(request: "ShowRequest", shown: "Shown") -> None:
    """Log how `--min-score`, where it was not given, would change the pictures."""
    from maskrcnn.visualization.display import DISPLAY_SCORE

    low = sum(each["score"] < DISPLAY_SCORE for fact in shown.facts for each in fact["instances"])
    below = f"below {DISPLAY_SCORE:g}"
    if low:
        drawn = plural(
            low, f"instance with a score {below} is drawn", f"instances with scores {below} are drawn"
        )
        log.info("%s: --min-score %g leaves them out", drawn, DISPLAY_SCORE)
    if count := shown.n_hidden:
        hidden = plural(
            count,
            f"instance with a score {below} is not drawn",
            f"instances with scores {below} are not drawn",
        )
        log.info("%s: --min-score 0 draws all", hidden)
    elif request.threshold and not any(fact["instances"] for fact in shown.facts):
        log.info("only scores of at least %g are drawn: --min-score 0.1 draws more", request.threshold)


@dataclass(frozen=True, slots=True)
class ShowRequest:
    """What `maskrcnn show` is to draw."""

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
    """A directory that gets one picture per image; None: one picture of all."""
    model: str | None = None
    """For an image; None: `coco`."""
    labels: str | None = None
    model_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if sum((bool(self.images), self.where is not None, self.worst is not None)) > 1:
            raise UsageError("--image, --where and --worst exclude each other")
        for option, texts in (("--image", self.images), ("--where", (self.where,)), ("--each", (self.each,))):
            for text in texts:
                if text is not None and text.encode(errors="replace").decode() != text:
                    raise UsageError(f"{option} {text!a} is not UTF-8, as names in tables are")
        if self.each is not None and self.output is not None:
            raise UsageError("--each and --output exclude each other")
        if self.min_score is not None and not 0.0 <= self.min_score <= 1.0:
            raise UsageError(f"--min-score must be in [0, 1], not {self.min_score:g}")
        if self.output is not None:
            _format_of(self.output)
            if self.output == self.source:
                raise UsageError(f"--output {self.output} is the image itself; name another file")

    @property
    def threshold(self) -> float:
        """The lowest score that is drawn."""
        from maskrcnn.visualization.display import DISPLAY_SCORE

        if self.min_score is not None:
            return self.min_score
        return DISPLAY_SCORE if self.where is None else 0.0


@dataclass(frozen=True, slots=True)
class Shown:
    """What was drawn."""

    files: tuple[str, ...]
    lines: tuple[str, ...]
    """One per picture, for the terminal."""
    facts: tuple[dict[str, Any], ...]
    """The same as JSON values."""
    n_hidden: int
    """The number of instances that are not drawn for their scores."""


def draw_pictures(request: ShowRequest) -> Shown:
    """Draw and write the requested pictures.

    Raises:
        UsageError: the source or an option is wrong, or none of the images can be shown.
        RunError: the run cannot be read, or a picture cannot be written.
    """
    if not _is_run(request.source):
        run_options = {"--image": request.images, "--where": request.where, "--worst": request.worst}
        if wrong := [name for name, value in run_options.items() if value]:
            raise UsageError(f"{wrong[0]} is for the directory of a run; {request.source} is an image")
        view, categories = _segmented(request)
        return _drawn(request, [view], categories)
    if request.model or request.labels or request.model_args:
        raise UsageError(
            f"--model, --labels and --model-arg are for an image; {request.source} is a run, which has its own model"
        )
    import maskrcnn
    from maskrcnn.models.registry import category_ids_named
    from maskrcnn.results.reader import RunReader
    from maskrcnn.visualization.run_images import choose, views

    run = maskrcnn.open_run(request.source)
    labels = category_ids_named(run.categories, request.categories) if request.categories else None
    with RunReader(run) as reader:
        chosen = choose(reader, request.count, request.images, request.where, request.worst)
        shown = views(reader, chosen, min_score=request.threshold, labels=labels, count=request.count)
        return _drawn(request, shown, run.categories)


def _is_run(source: str) -> bool:
    from maskrcnn.io.schemes import input_store_of
    from maskrcnn.io.storage import Storage
    from maskrcnn.io.stores.contained_store import ContainedStore
    from maskrcnn.io.url import Url, is_folder, is_there
    from maskrcnn.pipeline.plan import RUN

    url = Url.parse(source)
    if isinstance(input_store_of(url), ContainedStore):  # a member of an archive, a picture in a table
        return False
    if url.is_local:
        path = url.local_path
        if not is_there(path):
            raise UsageError(f"{source} does not exist; name an image, or the directory of a finished run")
        return is_folder(path)
    return not PurePosixPath(source).suffix or Storage(source).exists(RUN)


def _segmented(request: ShowRequest) -> "tuple[View, tuple[Category, ...]]":
    """Segment one image in this process."""
    import numpy as np

    from maskrcnn.config import InferenceConfig
    from maskrcnn.imaging.decode import Limits
    from maskrcnn.imaging.decode_pool import Decoders
    from maskrcnn.io.inputs import read_input
    from maskrcnn.models.factory import build_segmenter
    from maskrcnn.models.own.own_arguments import parse_arguments
    from maskrcnn.models.registry import category_ids_named, describe_model
    from maskrcnn.visualization.run_images import View

    name, arguments = request.model or "coco", parse_arguments(request.model_args)
    defaults = InferenceConfig(name)
    limits = Limits(defaults.max_pixels, defaults.max_bytes, 1333.0)
    try:
        with Decoders(1) as decoders:  # which also keeps to itself what its libraries print
            pixels = decoders.decode(read_input(request.source, limits.max_bytes), limits).pixels
    except ItemError as fault:
        raise UsageError(f"{request.source}: {fault.message} ({fault.code})") from fault
    card = describe_model(name, request.labels, arguments)
    if card.notice:
        log.warning("%s", card.notice)
    kept = category_ids_named(card.categories, request.categories)
    # What a network of the user's own prints goes to stderr: stdout is reserved for the command's result.
    with contextlib.redirect_stdout(sys.stderr):
        segmenter = build_segmenter(
            name,
            request.labels,
            min_score=min(request.threshold, 0.999),
            max_detections=defaults.max_detections,
            categories=request.categories,
            device="auto",
            arguments=arguments,
        )
        (detections,) = segmenter.outcomes([pixels])
    if isinstance(detections, ItemError):
        raise UsageError(f"{request.source}: {detections.message} ({detections.code})")

    keep = np.flatnonzero(
        np.isin(detections.labels, list(kept)) if kept else np.ones(len(detections), np.bool_)
    )
    shown = request.source.rstrip("/").rpartition("/")[2]
    return View(shown, None, detections.take(keep), tuple(keep.tolist()), pixels), card.categories


def _drawn(request: ShowRequest, shown: "Iterable[View]", categories: "tuple[Category, ...]") -> Shown:
    """Draw views one after the other, so that at most one image is in memory."""
    from maskrcnn.results.export import DistinctNames, safe_name
    from maskrcnn.visualization.display import sheet
    from maskrcnn.visualization.run_images import (
        PICTURE_PX,
        cells_of,
        facts_of,
        picture_of,
        side_of,
        summary_of,
    )

    files: list[str] = []
    lines: list[str] = []
    facts: list[dict[str, Any]] = []
    cells = []
    names = DistinctNames()
    first: View | None = None
    hidden = 0
    for number, view in enumerate(shown):
        hidden += view.n_hidden
        lines.append(summary_of(view, categories))
        facts.append(facts_of(view, categories))
        if request.each is not None:
            if view.pixels is not None:
                stem = f"{safe_name(view.name, view.image_id or 0)}{_suffix(view)}"
                name = names.name(stem.removesuffix(".png"), ".png", view.image_id or 0)
                files.append(_write(request.each, name, _picture(request, view, categories)))
            continue
        side = request.max_side or side_of(request.count, masks=request.masks)
        cells += cells_of(view, categories, side, masks=request.masks)
        first = view if number == 0 else None
    if not any(fact["shown"] for fact in facts):
        raise UsageError(f"nothing can be shown: {lines[0] if lines else 'no image'}")
    if request.each is None:
        if first is not None and not request.masks:
            picture = picture_of(first, categories, request.max_side or PICTURE_PX)
        else:
            side = request.max_side or side_of(request.count, masks=request.masks)
            picture = sheet(cells, request.columns or _columns(len(cells)), cell_px=side)
        folder, _, name = (request.output or _default_name(request)).rpartition("/")
        files.append(_write(folder or ".", name, picture))
    return Shown(tuple(files), tuple(lines), tuple(facts), hidden)


def _picture(request: ShowRequest, view: "View", categories: "tuple[Category, ...]") -> "Pixels":
    from maskrcnn.visualization.display import sheet
    from maskrcnn.visualization.run_images import PICTURE_PX, cells_of, picture_of, side_of

    if not request.masks:
        return picture_of(view, categories, request.max_side or PICTURE_PX)
    side = request.max_side or side_of(1, masks=True)
    cells = cells_of(view, categories, side, masks=True)
    return sheet(cells, request.columns or _columns(len(cells)), cell_px=side)


def _suffix(view: "View") -> str:
    return "" if view.focus is None else f"-{view.numbers[view.focus]}"


def _columns(cells: int) -> int:
    """Return the number of columns that makes a sheet somewhat wider than high.

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
        raise UsageError(f"--output {name}: the name of a picture must end in {', '.join(_FORMATS)}")
    return _FORMATS[suffix]


def _write(folder: str, name: str, picture: "Pixels") -> str:
    from PIL import Image

    from maskrcnn.io.storage import Storage

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, _format_of(name), quality=90)
    try:
        Storage(folder).write(name, buffer.getvalue())
    except RunError as error:
        raise UsageError(f"the picture cannot be written: {error}") from error
    return f"{folder.rstrip('/')}/{name}" if folder != "." else name
