"""Read the pixels of a finished run's images again, as the run read them.

Limits and radiometry are those of the run. An image whose bytes or size are not those that were planned is refused, so
that no instance is ever drawn on an image it was not found in.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self

from ..errors import ERROR_CODES, ItemError, RunError
from ..imaging.decode import Limits, decode_image
from ..imaging.decode_pool import Decoders, RasterSource
from ..imaging.geometry import Rect
from ..imaging.radiometry import Radiometry
from ..io.inputs import read_input
from ..io.refusals import Refusal
from ..io.storage import Storage
from ..pipeline.manifest_file import read_current_windows
from ..types import Pixels


class RunImage(Protocol):
    """An image of a run, as `images` and the manifest describe it; `results.reader.ImageRow` is one."""

    @property
    def row(self) -> int:
        """Row of the manifest, from 0."""

    @property
    def uri(self) -> str:
        """Path or URL."""

    @property
    def etag(self) -> str | None:
        """As planned; None where the store has none."""

    @property
    def bytes(self) -> int | None:
        """Size of the file as planned; None where it is not known."""

    @property
    def height(self) -> int | None:
        """In pixels."""

    @property
    def width(self) -> int | None:
        """In pixels."""


class RunPixels:
    """Reads pixels of a finished run's images; a context manager.

    Images of a run of windows are decoded in a child process, as in the run; it ends with the block.

    Args:
        storage: the run's directory.
        run: the content of `run.json`.

    Raises:
        RunError: the window index cannot be read.
    """

    def __init__(self, storage: Storage, run: Mapping[str, Any]) -> None:
        settings = run["settings"]
        self._run = run
        self._limits = Limits(settings["max_pixels"], settings["max_bytes"], float("inf"))
        self._decoders: Decoders | None = None
        self.windows: Final = read_current_windows(storage)
        """The windows of the run; None where its images were not divided."""

    def __enter__(self) -> Self:
        if self.windows is not None:
            self._decoders = Decoders(1).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._decoders is not None:
            self._decoders.__exit__(kind, error, trace)
        self._decoders = None

    def read(self, image: RunImage, region: Rect | None = None) -> Pixels:
        """Return the pixels of an image, or of a region of it. Of a raster, only the blocks of the region are read.

        Args:
            image: an image of the run.
            region: inside the image; None: the whole image.

        Returns:
            (height, width, 3) uint8 RGB.

        Raises:
            ItemError: the image cannot be read any more; `changed` if its bytes or its size are others now.
            RunError: it is not accessible from this machine, or no decoding process can be started.
        """
        if self.windows is not None and self.windows.sized(image.row).block_size is not None:
            return self._read_raster(image, region)
        data = read_input(image.uri, self._limits.max_bytes, image.etag)
        if image.bytes is not None and len(data) != image.bytes:
            raise Refusal.CHANGED_SIZE.error(count=len(data), planned=image.bytes)
        decode = decode_image if self._decoders is None else self._decoders.decode
        pixels = decode(data, self._limits).pixels
        if pixels.shape[:2] != (image.height, image.width):
            height, width = pixels.shape[:2]
            planned = f"{image.width} x {image.height}"
            raise Refusal.CHANGED_PIXELS.error(actual=f"{width} x {height}", planned=planned)
        if region is None:
            return pixels
        return pixels[region.row_off : region.bottom, region.col_off : region.right]

    def _read_raster(self, image: RunImage, region: Rect | None) -> Pixels:
        if self._decoders is None:
            raise ValueError("pixels of a run of windows are read within `with`")
        radiometry = Radiometry.from_json(self._run["radiometry"])
        source = RasterSource(image.uri, image.etag, radiometry, self._run["settings"]["assume_crs"])
        whole = Rect(0, 0, image.width or 0, image.height or 0)
        return self._decoders.read_region(source, region or whole).pixels


def why_unreadable(fault: ItemError | RunError) -> str:
    """Return why an image cannot be read, in the words of the table of error codes."""
    return (
        ERROR_CODES[fault.code] if isinstance(fault, ItemError) else "it is not accessible from this machine"
    )


def unreadable_note(fault: ItemError | RunError) -> str:
    """Return the sentence that stands in place of a picture."""
    return f"The image cannot be read any more: {why_unreadable(fault)}."
