"""GeoTIFFs and COGs read in parts, as RGB by a stated radiometry.

The rules, which are part of the contract of `images`:

- TIFF by its content, opened by GDAL's GTiff driver alone, from an open file: no sidecar, no other file, no network.
  Its first image; overviews are not used. Rotated and south-up rasters are read as stored.
- It needs a coordinate reference system and an affine transform of its own, else `no_crs`: pixel coordinates never
  pass as degrees. A CRS may be assumed for a raster without one; a transform may not. Ground control points and RPCs
  are no transform.
- Bands as told, else red, green and blue by their colour interpretation, else the first three, else the first one,
  repeated. Alpha is none of these. CMYK of 8 bits is converted; other inks and colour spaces are
  `unsupported_pixels` unless bands are told.
- Numbers of 8, 16 and 32 bits and float64; complex ones and 64-bit integers are `unsupported_pixels`. 8-bit unsigned
  numbers are taken as they are (of fewer bits: stretched); all others need a scale, the same for all windows of a run:
  low becomes 0, high becomes 255, what lies beyond is clipped, values between are rounded to the nearest. The
  dataset's own scale and offset make reflectance, of which 0 becomes 0 and 1 becomes 255.
- A palette gives its colours, which are not scaled.
- A pixel is invalid where each used band is nodata or NaN, or alpha is 0, or the mask says so; it comes out black.
  Blocks that a sparse file leaves out are nodata, or 0 where it has none.
- Blocks are decoded as a whole; a file with blocks of more than `MAX_BLOCK_BYTES` is `too_many_pixels`.

GDAL's own memory is bounded: a block is decoded once in a call of `read`, and never again in it, but nothing is kept
between calls. Who reads windows that overlap keeps what they share.

Reference: GDAL's GTiff driver; RFC 15 of GDAL (masks); OGC 19-008r4 (GeoTIFF).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, MaskrcnnError
from .geometry import Rect
from .geotiff import MAX_BLOCK_BYTES, RasterInfo, Source, faults, open_tiff, parse_crs, raster_info, read_info
from .radiometry import Radiometry, ToRgb, check_radiometry, parse_radiometry, percentiles_of, resolved

__all__ = [
    "MAX_BLOCK_BYTES",
    "Radiometry",
    "RasterInfo",
    "RasterReader",
    "check_radiometry",
    "parse_crs",
    "parse_radiometry",
    "percentiles_of",
    "raster_info",
    "resolved",
    "sample",
    "sample_percentiles",
    "sampling",
]

_DAMAGED: Final = ("corrupt", "truncated")
_RAW_BYTES: Final = 2**25  # of the bands as stored, at once
_SAMPLED_RASTERS: Final = 1000
_SAMPLED_WINDOWS: Final = 4  # a side, in each raster
_SAMPLED_SIDE: Final = 256
_SAMPLED_VALUES: Final = 2**22  # a channel, of all rasters


class RasterReader:
    """One open raster, for one thread; a context manager. After an error it can be read on.

    Args:
        file: open, with random access; it stays open, and is nobody else's meanwhile.
        radiometry: percentiles must be `resolved`.
        assume_crs: as in `raster_info`.
        threads: that decode blocks.

    Raises:
        ItemError, RunError, UsageError: as `raster_info`; `unsupported_pixels` also for what the radiometry does not
            fit.
        ValueError: percentiles that are not resolved.
    """

    def __init__(
        self, file: BinaryIO, radiometry: Radiometry, *, assume_crs: str | None = None, threads: int = 1
    ) -> None:
        self._source = Source(file)
        self._threads = threads
        self._stale = False
        self._dataset = open_tiff(self._source, threads)
        with contextlib.ExitStack() as undo:
            undo.callback(self._dataset.close)
            self.info: Final = read_info(self._source, self._dataset, assume_crs)
            colors = None
            if self.info.palette:
                with faults(self._source):
                    colors = self._dataset.colormap(1)
            self._to_rgb = ToRgb(self.info, radiometry, colors)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what GDAL holds."""
        self._dataset.close()

    def read(self, rect: Rect) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a rectangle that lies in the raster. If it begins and ends with blocks, each is decoded once.

        Returns:
            (height, width, 3) RGB, 0 where invalid; (height, width), where pixels are valid.

        Raises:
            ItemError: `corrupt`, `truncated`: a block cannot be read; `out_of_memory`; the file's codes.
            RunError: the file's.
            ValueError: the rectangle leaves the raster, or is empty.
        """
        self._check(rect)
        rgb, valid = _canvas(rect)
        for top, bottom in self._steps(rect):
            part = Rect(rect.col_off, top, rect.width, bottom - top)
            rows = slice(top - rect.row_off, bottom - rect.row_off)
            self._read_into(part, rgb[rows], valid[rows])
        return rgb, valid

    def read_region(
        self, rect: Rect
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[tuple[Rect, ItemError]]]:
        """Read a rectangle as `read` does, but for blocks that cannot be read: these are invalid.

        Returns:
            RGB, where valid, and the parts of the rectangle that could not be read, each with why.

        Raises:
            ItemError: `out_of_memory`; the file's codes.
            RunError, ValueError: as in `read`.
        """
        self._check(rect)
        rgb, valid = _canvas(rect)
        lost: list[tuple[Rect, ItemError]] = []
        for top, bottom in self._steps(rect):
            part = Rect(rect.col_off, top, rect.width, bottom - top)
            try:
                self._read_into(part, *_parts(rect, part, rgb, valid))
            except ItemError as error:
                if error.code not in _DAMAGED:
                    raise
                for block in self._blocks(part):
                    views = _parts(rect, block, rgb, valid)
                    try:
                        self._read_into(block, *views)
                    except ItemError as fault:
                        if fault.code not in _DAMAGED:
                            raise
                        for view in views:
                            view[:] = 0
                        _add(lost, block, fault)
        return rgb, valid, lost

    def _check(self, rect: Rect) -> None:
        inside = rect.col_off >= 0 and rect.row_off >= 0
        if not (inside and rect.right <= self.info.width and rect.bottom <= self.info.height):
            raise ValueError(f"{rect} leaves the raster of {self.info.width}x{self.info.height}")
        if min(rect.width, rect.height) < 1:
            raise ValueError(f"{rect} is empty")

    def _steps(self, rect: Rect) -> Iterator[tuple[int, int]]:
        """Yield (top, bottom) of rows of blocks that are read at once: as stored, they take little memory."""
        block = self.info.block_size[0]
        row_bytes = rect.width * np.dtype(self.info.dtype).itemsize * 4
        rows = max(_RAW_BYTES // row_bytes // block, 1) * block
        top = rect.row_off
        while top < rect.bottom:
            bottom = min(top // block * block + rows, rect.bottom)
            yield top, bottom
            top = bottom

    def _blocks(self, rect: Rect) -> Iterator[Rect]:
        height, width = self.info.block_size
        for top in range(rect.row_off // height * height, rect.bottom, height):
            for left in range(rect.col_off // width * width, rect.right, width):
                yield rect.shared(Rect(left, top, width, height))

    def _read_into(self, rect: Rect, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
        planes = self._raw(rect)
        valid[:] = self._valid(rect, planes)
        self._to_rgb.paint(planes, valid, rgb)

    def _raw(self, rect: Rect) -> dict[int, NDArray[Any]]:
        """Return the bands that are used, and alpha, as stored."""
        wanted = sorted({*self._to_rgb.channels, *([self.info.alpha_band] if self.info.alpha_band else [])})
        with self._faults():
            planes = self._dataset.read(wanted, window=_window(rect))
        return dict(zip(wanted, planes, strict=True))

    def _valid(self, rect: Rect, planes: dict[int, NDArray[Any]]) -> NDArray[np.bool_]:
        valid = self._to_rgb.usable(planes)
        if self.info.mask:
            with self._faults():
                valid &= self._dataset.read_masks(1, window=_window(rect)) > 0
        return valid

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        if self._stale:
            self._dataset.close()
            self._source.forget()
            self._dataset = open_tiff(self._source, self._threads)
            self._stale = False
        try:
            with faults(self._source):
                yield
        except MaskrcnnError as error:
            damaged = isinstance(error, ItemError) and error.code in _DAMAGED
            # After a block that cannot be decoded, GDAL's threads leave others in its cache that never were; and what
            # it has made of a read that failed is unknown.
            self._stale = self._threads > 1 or not damaged
            self._threads = 1 if damaged else self._threads
            raise

    def sample(self, count: int) -> tuple[NDArray[np.float64], float]:
        """Return (3, N) values as stored of at most `count` pixels, and of how many pixels each is one.

        Always the same pixels; of these, the valid ones, in windows that are not damaged. Of a palette, none.

        Raises:
            ItemError, RunError: the file's.
        """
        info, looked = self.info, 0
        found = [np.zeros((3, 0))]
        whole = Rect(0, 0, info.width, info.height)
        rects = [
            whole.shared(Rect(left, top, _SAMPLED_SIDE, _SAMPLED_SIDE))
            for top in _spread(info.height)
            for left in _spread(info.width)
        ]
        step = 1
        while sum(-(-rect.width // step) * -(-rect.height // step) for rect in rects) > max(
            count, len(rects)
        ):
            step += 1
        for rect in [] if info.palette else rects:
            try:
                planes = self._raw(rect)
                valid = self._valid(rect, planes)
            except ItemError as error:
                if error.code not in _DAMAGED:
                    raise
                continue
            picked = valid[::step, ::step]
            values = np.stack([planes[band][::step, ::step][picked] for band in self._to_rgb.channels])
            looked += picked.size
            found.append(values[:, np.isfinite(values).all(axis=0)].astype(np.float64))
        return np.concatenate(found, axis=1), info.height * info.width / max(looked, 1)


def sample_percentiles(
    files: Sequence[Callable[[], BinaryIO]], radiometry: Radiometry, assume_crs: str | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Find the ends of the range that percentiles of a collection mean, for red, green and blue.

    Of at most 1,000 rasters, spread evenly over the list, up to 16 windows each are read; always the same ones.
    Rasters count by their valid pixels. Values are compared as stored, whatever the type. Those that cannot be read
    are passed over: they fail in the run.

    Args:
        files: open a raster each; it is closed again.
        radiometry: with `percentiles`.

    Returns:
        Lows and highs for `resolved`.

    Raises:
        UsageError: no raster has a valid pixel.
        RunError: the files'.
    """
    chosen, count = sampling(len(files))
    samples = []
    for index in chosen:
        with contextlib.suppress(ItemError), files[index]() as file:
            samples.append(sample(file, radiometry, count, assume_crs))
    return percentiles_of(samples, radiometry)


def sampling(rasters: int) -> tuple[list[int], int]:
    """Return which of so many rasters are sampled, and at most how many pixels of each."""
    chosen = min(rasters, _SAMPLED_RASTERS)
    return [index * rasters // chosen for index in range(chosen)], _SAMPLED_VALUES // max(chosen, 1)


def sample(
    file: BinaryIO, radiometry: Radiometry, count: int, assume_crs: str | None = None
) -> tuple[NDArray[np.float64], float]:
    """Return what `RasterReader.sample` does, of a file. Raises what `RasterReader` raises."""
    any_range = dataclasses.replace(radiometry, lows=(0.0,), highs=(1.0,))
    with RasterReader(file, any_range, assume_crs=assume_crs) as reader:
        return reader.sample(count)


def _canvas(rect: Rect) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return np.zeros((rect.height, rect.width, 3), np.uint8), np.zeros((rect.height, rect.width), bool)


def _parts(
    whole: Rect, part: Rect, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    rows = slice(part.row_off - whole.row_off, part.bottom - whole.row_off)
    columns = slice(part.col_off - whole.col_off, part.right - whole.col_off)
    return rgb[rows, columns], valid[rows, columns]


def _add(lost: list[tuple[Rect, ItemError]], rect: Rect, error: ItemError) -> None:
    """Add a part that could not be read, in one piece with the last one if both are one rectangle and one code."""
    if lost and lost[-1][1].code == error.code:
        last = lost[-1][0]
        beside = (last.right, last.row_off, last.height) == (rect.col_off, rect.row_off, rect.height)
        below = (last.col_off, last.width, last.bottom) == (rect.col_off, rect.width, rect.row_off)
        if beside or below:
            size = (
                (last.width + rect.width, last.height) if beside else (last.width, last.height + rect.height)
            )
            lost[-1] = (Rect(last.col_off, last.row_off, *size), lost[-1][1])
            return
    lost.append((rect, error))


def _spread(length: int) -> list[int]:
    """Return where windows begin that cover a length, or are spread evenly over a longer one."""
    last = max(length - _SAMPLED_SIDE, 0)
    if length <= _SAMPLED_WINDOWS * _SAMPLED_SIDE:
        return list(range(0, length, _SAMPLED_SIDE))
    return [last * index // (_SAMPLED_WINDOWS - 1) for index in range(_SAMPLED_WINDOWS)]


def _window(rect: Rect) -> tuple[tuple[int, int], tuple[int, int]]:
    return (rect.row_off, rect.bottom), (rect.col_off, rect.right)
