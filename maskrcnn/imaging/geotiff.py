"""Open GeoTIFFs with GDAL from an open file, read their headers, and map GDAL's errors to error codes.

rasterio opens files by name. Here it reads only the file object that the caller opened: no sidecar files, no other
files, no network.
"""

import contextlib
import dataclasses
import io
import itertools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, MaskrcnnError, UsageError
from .sniff import format_of

# rasterio logs GDAL's warnings and errors, which Python prints if logging is not configured.
logging.getLogger("rasterio").addHandler(logging.NullHandler())

NO_CRS: Final = "none"
"""The value of `assume_crs` that accepts rasters without georeference as ordinary images."""
MAX_BLOCK_BYTES: Final = 2**28
"""The maximum size of a decoded block with all bands stored in it."""
TYPES: Final = frozenset(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
"""The supported data types of pixels, by their numpy names."""

_CACHE_BYTES: Final = 2**24
_PAGE_BYTES: Final = 2**16
_PAGES: Final = 32
_names: Final = itertools.count()

_GDAL_ERRORS: Final = (
    OSError,  # RasterioIOError
    ValueError,  # CRSError; undecodable text; enumerations
    LookupError,  # missing entries of tables
    TypeError,  # a tag that is missing where a number belongs
    ArithmeticError,  # sizes that overflow C integers
    AttributeError,  # a missing mask or colour table
    RuntimeError,  # errors of GDAL without a class of their own
)
"""The exception types that rasterio may raise on a damaged file, besides its own."""


@dataclass(frozen=True, slots=True)
class RasterInfo:
    """The contents of a raster's header."""

    height: int
    """Pixels."""
    width: int
    block_size: tuple[int, int]
    """(height, width) of a block, the unit of decoding, in pixels."""
    bands: int
    """The number of bands in the file, including alpha."""
    dtype: str
    """The numpy name of the data type, which is the same for all bands."""
    bits: int
    """The number of bits used by each value; fewer than those of the data type if the file packs them."""
    crs_wkt: str | None
    """The CRS of the file, or the assumed one, as WKT2:2019; None if it is not georeferenced."""
    transform: tuple[float, ...]
    """Six numbers a to f that map a pixel's upper left corner: x = a·col + b·row + c, y = d·col + e·row + f."""
    nodata: float | None
    scales: tuple[float, ...]
    """The scale of each band; 1 by default."""
    offsets: tuple[float, ...]
    """The offset of each band; 0 by default."""
    colorinterp: tuple[str, ...]
    """The colour interpretation of each band: `red`, `gray`, `alpha`, …"""
    palette: bool
    """Whether the first band contains indices into a palette."""
    alpha_band: int | None
    """The number of the alpha band, from 1; None without alpha."""
    mask: bool
    """Whether the file contains a mask in addition to the bands."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; `nodata` may be NaN, which Python's JSON writes and reads."""
        return fields_to_json(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the header from the values of `to_json`."""
        return cls(**fields_from_json(values))


def raster_info(file: BinaryIO, assume_crs: str | None = None) -> RasterInfo:
    """Read the header of a raster.

    Args:
        file: an open file with random access; it is not closed.
        assume_crs: the CRS of a raster that has a transform but no CRS, such as `EPSG:32636`.

    Raises:
        ItemError: `empty_file`, `not_an_image`, `unsupported_format`, `truncated`, `corrupt`, `no_crs`,
            `unsupported_pixels`, `too_many_pixels`, `out_of_memory`; `storage_error`, or a code raised by `file`.
        RunError: raised by `file`.
        UsageError: the extra geo is not installed; `assume_crs` is not a valid CRS.
    """
    source = Source(file)
    with contextlib.closing(open_tiff(source, 1)) as dataset:
        return read_info(source, dataset, assume_crs)


def read_info(source: "Source", dataset: Any, assume_crs: str | None) -> RasterInfo:
    """Read the header of a dataset that `open_tiff` opened. Raises as `raster_info`."""
    with gdal_errors(source):
        dtype = dataset.dtypes[0]
        colors = tuple(color.name for color in dataset.colorinterp)
        flags = [flag.name for flag in dataset.mask_flag_enums[0]]
        block = dataset.block_shapes[0]
        interleaved = str(dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE", "")).upper() == "PIXEL"
        if dtype not in TYPES:
            raise ItemError(
                "unsupported_pixels", f"pixels of type {dtype} cannot be converted to a brightness"
            )
        stored = math.prod(block) * np.dtype(dtype).itemsize * (dataset.count if interleaved else 1)
        if stored > MAX_BLOCK_BYTES:
            raise ItemError(
                "too_many_pixels",
                f"its blocks of {block[1]} x {block[0]} pixels are too large to decode; rewrite it in tiles",
                width=dataset.width,
                height=dataset.height,
            )
        return RasterInfo(
            height=dataset.height,
            width=dataset.width,
            block_size=(block[0], block[1]),
            bands=dataset.count,
            dtype=dtype,
            bits=int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(dtype).itemsize)),
            crs_wkt=_georeference(dataset, assume_crs),
            transform=tuple(float(number) for number in dataset.transform[:6]),
            nodata=dataset.nodata,
            scales=tuple(float(scale) for scale in dataset.scales),
            offsets=tuple(float(offset) for offset in dataset.offsets),
            colorinterp=colors,
            palette=colors[0] == "palette",
            alpha_band=colors.index("alpha") + 1 if "alpha" in colors else None,
            mask="per_dataset" in flags and "alpha" not in flags,
        )


def _georeference(dataset: Any, assume_crs: str | None) -> str | None:
    """Return the CRS as WKT; None for a raster without one, if `assume_crs` permits. Raises ItemError, UsageError."""
    transform = dataset.transform
    if assume_crs == NO_CRS and (transform.is_identity or not dataset.crs):
        return None
    if transform.is_identity:
        if dataset.gcps[0]:
            raise ItemError("no_crs", "it has ground control points only; warp it (gdalwarp) first")
        if dataset.rpcs is not None:
            raise ItemError("no_crs", "it has rational polynomial coefficients only; orthorectify it first")
        raise ItemError(
            "no_crs",
            "no transform from pixels to coordinates; use --assume-crs none to read it as an ordinary image",
        )
    # Tiny pixels have a tiny determinant, so only zero and non-finite values are rejected.
    if not all(map(math.isfinite, transform[:6])) or transform.determinant == 0:
        raise ItemError("no_crs", "its transform maps pixels to no area; write a valid transform")
    crs = dataset.crs
    if not crs:
        if assume_crs is None:
            raise ItemError("no_crs", "no coordinate reference system; give one with --assume-crs")
        crs = parse_crs(assume_crs)
    return str(crs.to_wkt(version="WKT2_2019"))


def parse_crs(text: str) -> Any:
    """Return the rasterio CRS that `text` names; None for `none`. Raises UsageError."""
    rasterio = need_rasterio()
    if text == NO_CRS:
        return None
    try:
        with rasterio.Env(session=rasterio.session.DummySession()):
            return rasterio.crs.CRS.from_user_input(text)
    except ValueError:  # CRSError is one
        raise UsageError(f"--assume-crs takes a CRS such as EPSG:32636, or none, not {text!r}") from None


def write_geotiff(
    path: str | Path, pixels: NDArray[Any], crs: str, transform: Sequence[float], block: int = 512
) -> None:
    """Write a tiled GeoTIFF with deflate compression.

    Args:
        path: the path of a local file.
        pixels: (height, width, bands).
        crs: the coordinate reference system, such as `EPSG:32636`.
        transform: six numbers, a … f of x = a * column + b * row + c, y = d * column + e * row + f.
        block: the side of a block in pixels; a multiple of 16.

    Raises:
        UsageError: the extra `geo` is not installed.
    """
    rasterio = need_rasterio()
    height, width, count = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=count,
        dtype=pixels.dtype,
        crs=crs,
        transform=rasterio.Affine(*transform),
        photometric="RGB" if count == 3 else "MINISBLACK",
        compress="deflate",
        tiled=True,
        blockxsize=block,
        blockysize=block,
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))


# GDAL


def need_rasterio() -> Any:
    """Import and return rasterio. Raises UsageError if it is not installed."""
    try:
        import rasterio  # noqa: PLC0415 (optional dependency)
        import rasterio.session  # noqa: PLC0415
    except ImportError:
        raise UsageError("GeoTIFFs in windows need the extra geo: pip install 'maskrcnn-ray[geo]'") from None
    return rasterio


def open_tiff(source: "Source", threads: int) -> Any:
    """Open a source as a rasterio dataset. Raises ItemError, RunError, UsageError."""
    rasterio = need_rasterio()
    if not source.size:
        source.check()
        raise ItemError("empty_file", "zero bytes")
    head = source.read_at(0, 1024)
    source.check()
    if (kind := format_of(head)) != "TIFF":
        raise ItemError(
            "unsupported_format", f"{kind} with the name of a raster; only GeoTIFFs are read in windows"
        )
    if source.size < 8:
        raise ItemError("truncated", "the file ends within the TIFF header")
    with gdal_errors(source), warnings.catch_warnings():
        # A missing transform is reported by an error code, so the warning is redundant.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        # GDAL distinguishes open files by their names, rasterio by their folders.
        return rasterio.open(
            f"/{next(_names)}/raster.tif",
            opener=source.open,
            driver="GTiff",
            sharing=False,
            NUM_THREADS=str(threads),
            GEOREF_SOURCES="INTERNAL",
        )


@contextlib.contextmanager
def gdal_errors(source: "Source") -> Iterator[None]:
    """Configure GDAL, and convert the exceptions it raises to error codes.

    Raises:
        ItemError: `out_of_memory`, `truncated`, `corrupt`; as `Source.check`.
        RunError: as `Source.check`.
    """
    rasterio = need_rasterio()
    settings = {
        "GDAL_CACHEMAX": _CACHE_BYTES,
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_PAM_ENABLED": "NO",
        "PROJ_NETWORK": "OFF",
    }
    source.short = False
    try:
        # Without a dummy session, rasterio would pass credentials of the environment to GDAL.
        with rasterio.Env(session=rasterio.session.DummySession(), **settings):
            yield
    except MaskrcnnError:
        raise
    except MemoryError as error:
        raise ItemError("out_of_memory", "not enough memory to read it") from error
    except (*_GDAL_ERRORS, rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:  # noqa: SLF001
        source.check()
        detail = str(error.__cause__ or error) or type(error).__name__
        raise ItemError("truncated" if source.short else "corrupt", f"cannot be read: {detail}") from error
    source.check()


class Source:
    """A file for GDAL: reads never raise, because GDAL ignores exceptions; `check` raises the error afterwards.

    Small reads are served from cached pages, because GDAL reads a header a few bytes at a time, each of which would
    otherwise be a request.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pages: dict[int, bytes] = {}
        self._failure: Exception | None = None
        self.short = False
        """Whether bytes beyond the end of the file were requested."""
        self.size = 0
        with self._record_failure():
            self.size = file.seek(0, 2)

    def open(self, _path: str, mode: str = "rb", **_: Any) -> "_Handle":
        """Return a file object with its own position, for GDAL."""
        if mode not in ("r", "rb"):
            raise FileNotFoundError(mode)
        return _Handle(self)

    def read_at(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start`, fewer at the end of the file."""
        stop = min(start + count, self.size)
        if start and start + count > self.size:  # GDAL reads the beginning without knowing the size
            self.short = True
        if stop <= start or self._failure:
            return b""
        with self._record_failure():
            if stop - start >= _PAGE_BYTES:
                return self._fetch(start, stop)
            first, last = start // _PAGE_BYTES, (stop - 1) // _PAGE_BYTES
            data = b"".join(self._page(page) for page in range(first, last + 1))
            return data[start - first * _PAGE_BYTES : stop - first * _PAGE_BYTES]
        return b""

    def check(self) -> None:
        """Raise the error of an earlier read, after which all reads return no bytes.

        Raises:
            ItemError: raised by the file, or `storage_error`.
            RunError: raised by the file.
        """
        if isinstance(self._failure, MaskrcnnError):
            raise self._failure
        if self._failure:
            raise ItemError("storage_error", f"{self._failure}") from self._failure

    def forget(self) -> None:
        """Discard the cached pages and the error, to read again after a failure."""
        self._pages.clear()
        self._failure = None

    def _page(self, page: int) -> bytes:
        if (data := self._pages.get(page)) is None:
            if len(self._pages) >= _PAGES:
                del self._pages[next(iter(self._pages))]
            start = page * _PAGE_BYTES
            data = self._pages[page] = self._fetch(start, min(start + _PAGE_BYTES, self.size))
        return data

    def _fetch(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        parts = []
        while start < stop and (part := self._file.read(stop - start)):
            parts.append(part)
            start += len(part)
        if start < stop:
            self.short = True  # the file was shortened while it was read
        return b"".join(parts)

    @contextlib.contextmanager
    def _record_failure(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, MaskrcnnError) as error:
            self._failure = error


class _Handle(io.RawIOBase):
    """A file object on a source, with its own position."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, all that remain if it is negative."""
        data = self._source.read_at(self._position, self._source.size if size < 0 else size)
        self._position += len(data)
        return data


def fields_to_json(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON values: tuples become lists."""
    fields = dataclasses.asdict(value)
    return {name: list(field) if isinstance(field, tuple) else field for name, field in fields.items()}


def fields_from_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataclass from the values of `fields_to_json`."""
    return {name: tuple(field) if isinstance(field, list) else field for name, field in values.items()}
