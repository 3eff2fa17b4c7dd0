"""Open GeoTIFFs with GDAL from an open file, read their headers, and map GDAL's errors to error codes.

rasterio opens files by name. Here it reads only the file object that the caller opened: no sidecar files, no other
files, no network.
"""

import contextlib
import dataclasses
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
from ..io.refusals import Refusal
from .formats.sniff import format_of
from .formats.tiff_compressions import tiff_compression
from .formats.tiff_directory import EXTRA_SAMPLES, ORIENTATION, PHOTOMETRIC, compression_of
from .gdal_source import Source
from .orientation import TRANSPOSED, valid_orientation

# rasterio logs GDAL's warnings and errors, which Python prints if logging is not configured.
logging.getLogger("rasterio").addHandler(logging.NullHandler())

NO_CRS: Final = "none"
"""The value of `assume_crs` that accepts rasters without georeference as ordinary images."""
MAX_BLOCK_BYTES: Final = 2**28
"""The maximum size of a decoded block with all bands stored in it."""
TYPES: Final = frozenset(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
"""The supported data types of pixels, by their numpy names."""

_LAB: Final = {8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*"}
_CACHE_BYTES: Final = 2**24
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
    """Pixels, like the width after `orientation` is applied."""
    width: int
    block_size: tuple[int, int]
    """(height, width) of a block, the unit of decoding, in pixels, after `orientation` is applied."""
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
    premultiplied: bool = False
    """Whether the colours are multiplied by alpha."""
    white_is_zero: bool = False
    """Whether the values of the first band are the larger the darker (MinIsWhite)."""
    orientation: int | None = None
    """The EXIF orientation of a raster without georeference, 1 to 8, which readers apply; None without a valid one. A
    transform refers to the pixels as stored, so that a georeferenced raster is read as stored."""

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


def read_info(source: Source, dataset: Any, assume_crs: str | None) -> RasterInfo:
    """Read the header of a dataset that `open_tiff` opened. Raises as `raster_info`."""
    with gdal_errors(source):
        dtype = dataset.dtypes[0]
        colors = tuple(color.name for color in dataset.colorinterp)
        flags = [flag.name for flag in dataset.mask_flag_enums[0]]
        block = dataset.block_shapes[0]
        structure = dataset.tags(ns="IMAGE_STRUCTURE")
        interleaved = str(structure.get("INTERLEAVE", "")).upper() == "PIXEL"
        if dtype not in TYPES:
            raise Refusal.PIXEL_TYPE.error(dtype=dtype)
        stored = math.prod(block) * np.dtype(dtype).itemsize * (dataset.count if interleaved else 1)
        if stored > MAX_BLOCK_BYTES:
            sides = {"width": dataset.width, "height": dataset.height}
            sides |= {"block_width": block[1], "block_height": block[0]}
            raise Refusal.BLOCK_TOO_LARGE.error(size=(dataset.width, dataset.height), **sides)
        crs_wkt = _georeference(dataset, assume_crs)
        orientation = _orientation(source) if crs_wkt is None else None
        turned = orientation in TRANSPOSED
        alpha = colors.index("alpha") + 1 if "alpha" in colors else None
        return RasterInfo(
            height=dataset.width if turned else dataset.height,
            width=dataset.height if turned else dataset.width,
            block_size=(block[1], block[0]) if turned else (block[0], block[1]),
            bands=dataset.count,
            dtype=dtype,
            bits=int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(dtype).itemsize)),
            crs_wkt=crs_wkt,
            transform=tuple(float(number) for number in dataset.transform[:6]),
            nodata=dataset.nodata,
            scales=tuple(float(scale) for scale in dataset.scales),
            offsets=tuple(float(offset) for offset in dataset.offsets),
            colorinterp=colors,
            palette=colors[0] == "palette",
            alpha_band=alpha,
            mask="per_dataset" in flags and "alpha" not in flags,
            premultiplied=alpha is not None and _is_premultiplied(source),
            white_is_zero=structure.get("MINISWHITE") == "YES",
            orientation=orientation,
        )


def _georeference(dataset: Any, assume_crs: str | None) -> str | None:
    """Return the CRS as WKT; None for a raster without one, if `assume_crs` permits. Raises ItemError, UsageError."""
    transform = dataset.transform
    if assume_crs == NO_CRS and (transform.is_identity or not dataset.crs):
        return None
    if transform.is_identity:
        if dataset.gcps[0]:
            raise Refusal.GROUND_CONTROL_POINTS.error()
        if dataset.rpcs is not None:
            raise Refusal.RATIONAL_POLYNOMIALS.error()
        raise Refusal.NO_TRANSFORM.error()
    # Tiny pixels have a tiny determinant, so only zero and non-finite values are rejected.
    if not all(map(math.isfinite, transform[:6])) or transform.determinant == 0:
        raise Refusal.SINGULAR_TRANSFORM.error()
    crs = dataset.crs
    if not crs:
        if assume_crs is None:
            raise Refusal.NO_CRS.error()
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


def open_tiff(source: Source, threads: int) -> Any:
    """Open a source as a rasterio dataset. Raises ItemError, RunError, UsageError."""
    rasterio = need_rasterio()
    if not source.size:
        source.check()
        raise Refusal.EMPTY.error()
    head = source.read_at(0, 1024)
    source.check()
    if (kind := format_of(head)) != "TIFF":
        raise Refusal.RASTER_FORMAT.error(format=kind)
    if source.size < 8:
        raise Refusal.TRUNCATED.error(format="TIFF")
    picture = source.picture()
    source.check()
    if picture is not None and (space := _LAB.get(picture.directory.first(PHOTOMETRIC))) is not None:
        raise Refusal.COLOR_SPACE.error(space=space)
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


def _is_premultiplied(source: Source) -> bool:
    """Return whether the full picture has associated alpha. Reference: TIFF 6.0, tag 338."""
    picture = source.picture()
    return picture is not None and 1 in picture.directory.tags.get(EXTRA_SAMPLES, ())


def _orientation(source: Source) -> int | None:
    """Return the orientation of the full picture; None without a valid one."""
    picture = source.picture()
    if picture is None:
        return None
    return valid_orientation(picture.orientation or picture.directory.first(ORIENTATION))


@contextlib.contextmanager
def gdal_errors(source: Source, *, opened: bool = False) -> Iterator[None]:
    """Configure GDAL, and convert the exceptions it raises to error codes.

    Args:
        source: what GDAL reads.
        opened: whether the header was read without an error.

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
        raise Refusal.NO_MEMORY.error(format="TIFF") from error
    except (*_GDAL_ERRORS, rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:  # noqa: SLF001
        source.check()
        raise _refusal(source, error, opened=opened) from error
    source.check()


def _refusal(source: Source, error: Exception, *, opened: bool) -> ItemError:
    """Return the error for what GDAL could not read."""
    if "codec" in f"{error.__cause__ or error}":
        return Refusal.TIFF_COMPRESSION.error(codec=tiff_compression(compression_of(source.read_at) or 1))
    if source.short:
        return Refusal.TRUNCATED.error(format="TIFF")
    return (Refusal.DATA_DAMAGED if opened else Refusal.HEADER_DAMAGED).error(format="TIFF")


def fields_to_json(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON values: tuples become lists."""
    fields = dataclasses.asdict(value)
    return {name: list(field) if isinstance(field, tuple) else field for name, field in fields.items()}


def fields_from_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataclass from the values of `fields_to_json`."""
    return {name: tuple(field) if isinstance(field, list) else field for name, field in values.items()}
