"""Read GeoTIFFs and COGs in parts, as RGB by a stated radiometry.

The rules, which are part of the contract of `images`:

- TIFF by its content, opened by GDAL's GTiff driver alone, from an open file: no sidecar, no other file, no network.
  Its first image; overviews are not used. Rotated and south-up rasters are read as stored.
- It needs a coordinate reference system and an affine transform of its own, otherwise `no_crs`: pixel coordinates are
  never taken for degrees. A CRS may be assumed for a raster without one; a transform may not. Ground control points
  and RPCs do not replace a transform.
- The bands that the user chose, otherwise red, green and blue by their colour interpretation, otherwise the first
  three, otherwise the first one, repeated. Alpha is never one of them. CMYK of 8 bits is converted; other inks and
  colour spaces are `unsupported_pixels` unless the user chose bands.
- Numbers of 8, 16 and 32 bits and float64; complex ones and 64-bit integers are `unsupported_pixels`. 8-bit unsigned
  numbers are used as they are (of fewer bits: stretched); all others need a scale, the same for all windows of a run:
  low becomes 0, high becomes 255, values beyond are clipped, values between are rounded to the nearest. The
  dataset's own scale and offset give reflectance, of which 0 becomes 0 and 1 becomes 255.
- Palette indices become their colours, which are not scaled.
- A pixel is invalid if each used band is nodata or NaN, alpha is 0, or the file's mask excludes it; it becomes black.
  Blocks that a sparse file omits are nodata, or 0 if it has no nodata value.
- Blocks are decoded as a whole; a file with blocks of more than `MAX_BLOCK_BYTES` is `too_many_pixels`.

GDAL's own memory is bounded: each call of `read` decodes a block at most once, but nothing is kept between calls.
Callers that read overlapping windows keep what they share.

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
_RAW_BYTES: Final = 2**25  # of the bands as stored, read at once
_SAMPLED_RASTERS: Final = 1000
_SAMPLED_WINDOWS: Final = 4  # along each side of a raster
_SAMPLED_SIDE: Final = 256
_SAMPLED_VALUES: Final = 2**22  # per channel, over all rasters


class RasterReader:
    """One open raster, for one thread; a context manager. It can still be read after an error.

    Args:
        file: open, with random access; it stays open, and must not be used elsewhere meanwhile.
        radiometry: percentiles must be `resolved`.
        assume_crs: as in `raster_info`.
        threads: number of threads that decode blocks.

    Raises:
        ItemError, RunError, UsageError: as `raster_info`; `unsupported_pixels` also if the radiometry does not suit the
            raster.
        ValueError: percentiles are not resolved.
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
        """Close GDAL's dataset; the file stays open."""
        self._dataset.close()

    def read(self, rect: Rect) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a rectangle within the raster. If it is aligned to blocks, each is decoded once.

        Returns:
            (height, width, 3) RGB, 0 where invalid; (height, width), whether pixels are valid.

        Raises:
            ItemError: `corrupt`, `truncated`: a block cannot be read; `out_of_memory`; or raised by the file's methods.
            RunError: raised by the file's methods.
            ValueError: the rectangle is not within the raster, or is empty.
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
        """Read a rectangle as `read` does, except that blocks that cannot be read become invalid pixels.

        Returns:
            RGB, where valid, and the parts of the rectangle that could not be read, each with its error.

        Raises:
            ItemError: `out_of_memory`; or raised by the file's methods.
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
            raise ValueError(f"{rect} is not within the raster of {self.info.width}x{self.info.height}")
        if min(rect.width, rect.height) < 1:
            raise ValueError(f"{rect} is empty")

    def _steps(self, rect: Rect) -> Iterator[tuple[int, int]]:
        """Yield (top, bottom) of rows of blocks that are read at once, with bounded memory for values as stored."""
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
        """Return the used bands, and alpha, as stored."""
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
            # After a block that cannot be decoded, GDAL's threads leave blocks in its cache that were never
            # decoded; and after a read that failed, the state of its cache is unknown.
            self._stale = self._threads > 1 or not damaged
            self._threads = 1 if damaged else self._threads
            raise

    def sample(self, count: int) -> tuple[NDArray[np.float64], float]:
        """Return (3, N) values as stored of at most `count` pixels, and the number of pixels that each represents.

        The same pixels each time, without invalid ones and those of damaged windows. A palette yields none.

        Raises:
            ItemError, RunError: raised by the file's methods.
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
    """Compute the range that the percentiles of a collection are, for red, green and blue.

    Up to 16 windows are read of each of at most 1,000 rasters, spread evenly over the list; the same ones each time.
    Rasters are weighted by their valid pixels. Values are compared as stored, whatever the type. Rasters that cannot be
    read are skipped: they fail in the run.

    Args:
        files: each opens a raster, which is closed again.
        radiometry: with `percentiles`.
        assume_crs: as in `raster_info`.

    Returns:
        Lows and highs for `resolved`.

    Raises:
        UsageError: no raster has a valid pixel.
        RunError: raised by the files' methods.
    """
    chosen, count = sampling(len(files))
    samples = []
    for index in chosen:
        with contextlib.suppress(ItemError), files[index]() as file:
            samples.append(sample(file, radiometry, count, assume_crs))
    return percentiles_of(samples, radiometry)


def sampling(rasters: int) -> tuple[list[int], int]:
    """Return the indices of the rasters that are sampled, given their number, and the maximum pixels of each."""
    chosen = min(rasters, _SAMPLED_RASTERS)
    return [index * rasters // chosen for index in range(chosen)], _SAMPLED_VALUES // max(chosen, 1)


def sample(
    file: BinaryIO, radiometry: Radiometry, count: int, assume_crs: str | None = None
) -> tuple[NDArray[np.float64], float]:
    """Run `RasterReader.sample` on a file. Raises what `RasterReader` raises."""
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
    """Add a part that could not be read, joined with the last one if they form a rectangle and share a code."""
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
    """Return the starts of windows that cover a length, or are spread evenly over it if it is too long."""
    last = max(length - _SAMPLED_SIDE, 0)
    if length <= _SAMPLED_WINDOWS * _SAMPLED_SIDE:
        return list(range(0, length, _SAMPLED_SIDE))
    return [last * index // (_SAMPLED_WINDOWS - 1) for index in range(_SAMPLED_WINDOWS)]


def _window(rect: Rect) -> tuple[tuple[int, int], tuple[int, int]]:
    return (rect.row_off, rect.bottom), (rect.col_off, rect.right)
