"""Loaded inputs on their way through the segmenter: grouped into batches, and their results."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..errors import STORAGE_CODES, ItemError
from ..imaging.decode import DecodedImage
from ..io.url import Url
from ..schema import ImageResult
from ..types import Detections, Segmenter
from .circuit_breaker import Batch, CircuitBreaker

GROUPED_BYTES: Final = 2**30
"""Maximum size of the decoded pixels that wait for others to fill their batch."""
WINDOW: Final = "window_id"
"""The column that only the rows of windows have."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One loaded input: its row, and its image or the failure that prevented it."""

    row: int
    """Of the manifest, or the number of a window."""
    entry: dict[str, Any]
    """The columns of the row by name."""
    n_bytes: int | None
    image: DecodedImage | ItemError | None
    """None if no pixel of a window is valid."""

    @property
    def held_bytes(self) -> int:
        """Memory of the pixels, in bytes."""
        return self.image.pixels.nbytes if isinstance(self.image, DecodedImage) else 0


def filled_groups(
    items: Iterable[Loaded], segmenter: Segmenter, *, max_bytes: int = GROUPED_BYTES
) -> Iterator[list[Loaded]]:
    """Yield inputs in groups that share a forward pass: of one canvas, filled to the segmenter's batch size.

    The groups depend only on the order of the inputs and their sizes. The last group of a canvas may be smaller, and so
    may groups that are yielded early, the largest first, because more than `max_bytes` of pixels wait.
    """
    waiting: dict[Hashable, list[Loaded]] = {}
    held = 0
    for item in items:
        if not isinstance(item.image, DecodedImage):
            yield [item]
            continue
        canvas = segmenter.canvas(*item.image.pixels.shape[:2])
        waiting.setdefault(canvas, []).append(item)
        held += item.held_bytes
        if len(waiting[canvas]) < segmenter.batch_size and held <= max_bytes:
            continue
        if len(waiting[canvas]) < segmenter.batch_size:
            canvas = max(waiting, key=lambda key: sum(one.held_bytes for one in waiting[key]))
        group = waiting.pop(canvas)
        held -= sum(one.held_bytes for one in group)
        yield group
    yield from waiting.values()


def check_store(loaded: Iterator[Loaded]) -> Iterator[Loaded]:
    """Yield the inputs unchanged.

    Raises:
        StoreFailingError: half of 200 consecutive inputs failed with one storage code.
    """
    circuit_breaker = CircuitBreaker()
    for item in loaded:
        failure = (
            item.image
            if isinstance(item.image, ItemError) and not Url.parse(item.entry["uri"]).is_web
            else None
        )
        circuit_breaker.add(
            Batch(1, {failure.code: 1}, f"{item.entry['uri']}: {failure.message}") if failure else Batch(1)
        )
        yield item


def storage_failures(results: Iterable[ImageResult]) -> tuple[dict[str, int], str]:
    """Return the number of images by storage error code, and the message of the last of these failures."""
    failed = [
        result for result in results if result.error in STORAGE_CODES and not Url.parse(result.uri).is_web
    ]
    example = f"{failed[-1].uri}: {failed[-1].message}" if failed else ""
    return dict(Counter(str(result.error) for result in failed)), example


def result_of(item: Loaded, outcome: Detections | ItemError | None) -> ImageResult:
    """Return the result of an input: its detections, its failure, or None for a window without valid pixels."""
    failure = outcome if isinstance(outcome, ItemError) else None
    height = width = orientation = None
    if isinstance(item.image, DecodedImage):
        height, width = item.image.pixels.shape[:2]
        orientation = item.image.exif_orientation
    elif WINDOW in item.entry:
        height, width = item.entry["window_height"], item.entry["window_width"]
    elif item.image is not None:
        height, width = item.image.height, item.image.width
    return ImageResult(
        row=item.row,
        image_id=item.entry["image_id"],
        name=item.entry["name"],
        uri=item.entry["uri"],
        bytes=item.n_bytes,
        etag=item.entry["etag"],
        detections=outcome if isinstance(outcome, Detections) else None,
        error=None if failure is None else failure.code,
        message=None if failure is None else failure.message,
        width=width,
        height=height,
        exif_orientation=orientation,
        skipped=outcome is None,
    )
