"""Read regions of GeoTIFFs and COGs as RGB, by a stated radiometry.

The rules, which are part of the contract of the table `images`:

- A TIFF is recognized by its content and opened by GDAL's GTiff driver only, from an open file: no sidecar files, no
  other files, no network. The first image is read; overviews are not used. Rotated and south-up rasters are read as
  stored. The EXIF orientation of a raster without georeference is applied, as to any picture; a transform refers to the
  pixels as stored, so that a georeferenced raster is read as stored. A camera's raw file or a preview is refused.
- A coordinate reference system and an affine transform in the file are required, otherwise `no_crs`: pixel
  coordinates are never mistaken for degrees. A CRS may be assumed for a raster without one; a transform may not.
  Ground control points and RPCs do not replace a transform.
- The bands are those given by the user, otherwise red, green and blue by their colour interpretation, otherwise the
  first three, otherwise the first one, repeated. Alpha is never one of them. 8-bit CMYK is converted; other inks and
  colour spaces are `unsupported_pixels` unless the user gives bands. GDAL converts CMYK and YCbCr, Pillow those of
  whole images: they differ by rounding, and where JPEG stores colours at half the resolution, at the edges of colours.
- The alpha band is the one given by the user, otherwise the one that the file calls alpha. Near infrared is often
  called alpha: if the user gives bands, a band is not alpha that is one of them, or of whose values, in a sample, less
  than half are those of a mask, 0 and the largest. Colours that the file multiplied by alpha are divided by it.
- Integers of 8, 16 and 32 bits, float32 and float64 are supported; complex numbers and 64-bit integers are
  `unsupported_pixels`. 8-bit unsigned integers are used unchanged (stretched, if the file stores fewer bits); all other
  types need a scale, the same for all windows of a run: low becomes 0, high becomes 255, values outside are clipped,
  values between are rounded to the nearest integer. The dataset's own scale and offset give reflectance, of which 0
  becomes 0 and 1 becomes 255.
- Palette indices become the colours of the palette, which are not scaled.
- White-is-zero brightness (MinIsWhite) is inverted after the scaling.
- A pixel is invalid if each used band is nodata or NaN, or alpha is 0, or the mask excludes it; it becomes black. Of
  any other pixel, a band that is nodata or NaN becomes 0. Neither enters the percentiles. Blocks that a sparse file
  omits are invalid, as GDAL's convention has it, also without a nodata value.
- Blocks are decoded as a whole; a file with blocks of more than `MAX_BLOCK_BYTES` is `too_many_pixels`.

GDAL's memory is bounded: each block is decoded once per call of `read`, and nothing is cached between calls. Callers
that read overlapping windows keep the shared pixels themselves.

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
from .formats.tiff_blocks import DataBlocks, check_density
from .gdal_source import Source
from .geometry import ImageHeader, Rect
from .georeference import check_georeference
from .geotiff import gdal_errors, open_tiff, read_info
from .orientation import TRANSPOSED, upright
from .radiometry import Radiometry, ToRgb, alpha_of, percentiles_of, resolved

Mask = NDArray[np.bool_]

__all__ = ["RasterReader", "raster_header", "sample", "sample_percentiles", "sampling"]

_DAMAGED: Final = ("corrupt", "truncated")
_RAW_BYTES: Final = 2**25  # the maximum size of the stored values read at once
_SAMPLED_RASTERS: Final = 1000
_SAMPLED_WINDOWS: Final = 4  # per side of each raster
_SAMPLED_SIDE: Final = 256
_SAMPLED_VALUES: Final = 2**22  # per channel, over all rasters
_MASK_SHARE: Final = 0.9  # the minimum share of the values of a mask in a sample of alpha


class RasterReader:
    """Read an open raster; a context manager, for use by one thread. Reading can continue after an error.

    Args:
        file: an open file with random access; it is not closed, and must not be used otherwise meanwhile.
        radiometry: the policy; its percentiles must be `resolved`.
        assume_crs: as in `raster_info`.
        threads: the number of threads that decode blocks.

    Raises:
        ItemError, RunError, UsageError: as `raster_info`; `unsupported_pixels` also if the raster does not fit the
            radiometry.
        ValueError: the percentiles are not resolved.
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
            info = read_info(self._source, self._dataset, assume_crs)
            self.info = dataclasses.replace(info, alpha_band=alpha_of(info, radiometry))
            self._data_blocks: tuple[DataBlocks | None] | None = None
            self.stored_bytes = self._source.size
            self._named_alpha = info.alpha_band if radiometry.alpha is None else None
            colors = None
            if self.info.palette:
                with gdal_errors(self._source, opened=True):
                    colors = self._dataset.colormap(1)
            self._to_rgb = ToRgb(self.info, radiometry, colors)
            if radiometry.bands is not None and self.doubtful_alpha() is not None:
                self.info = dataclasses.replace(self.info, alpha_band=None)
                self._to_rgb = ToRgb(self.info, radiometry, colors)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the resources of GDAL."""
        self._dataset.close()

    def read(self, rect: Rect) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a rectangle inside the raster. If it is aligned with the blocks, each block is decoded once.

        Returns:
            (height, width, 3) RGB, uint8, 0 where invalid; (height, width) bool, whether a pixel is valid.

        Raises:
            ItemError: `corrupt`, `truncated`: a block cannot be read; `out_of_memory`; codes raised by the file.
            RunError: raised by the file.
            ValueError: the rectangle is empty or extends beyond the raster.
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
        """Read a rectangle as `read` does, but mark pixels of blocks that cannot be read as invalid.

        Returns:
            The pixels and valid mask as in `read`, and the parts of the rectangle that could not be read, each with
            its error.

        Raises:
            ItemError: `out_of_memory`; codes raised by the file.
            RunError, ValueError: as in `read`.
        """
        self._check(rect)
        rgb, valid = _canvas(rect)
        unreadable: list[tuple[Rect, ItemError]] = []
        for top, bottom in self._steps(rect):
            rows = Rect(rect.col_off, top, rect.width, bottom - top)
            try:
                self._read_into(rows, *_views(rect, rows, rgb, valid))
            except ItemError as error:
                if error.code not in _DAMAGED:
                    raise
                for block in self._blocks(rows):
                    views = _views(rect, block, rgb, valid)
                    try:
                        self._read_into(block, *views)
                    except ItemError as block_error:
                        if block_error.code not in _DAMAGED:
                            raise
                        for view in views:
                            view[:] = 0
                        _add(unreadable, block, block_error)
        return rgb, valid, unreadable

    def _check(self, rect: Rect) -> None:
        inside = rect.col_off >= 0 and rect.row_off >= 0
        if not (inside and rect.right <= self.info.width and rect.bottom <= self.info.height):
            raise ValueError(f"{rect} extends beyond the raster of {self.info.width}x{self.info.height}")
        if min(rect.width, rect.height) < 1:
            raise ValueError(f"{rect} is empty")

    def _steps(self, rect: Rect) -> Iterator[tuple[int, int]]:
        """Yield (top, bottom) of groups of block rows to read at once, whose stored values fit `_RAW_BYTES`."""
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
        values = self._to_rgb.valid_values(planes)
        valid[:] = self._valid(rect, planes, values)
        self._to_rgb.convert(planes, values, valid, rgb)

    def _raw(self, rect: Rect) -> dict[int, NDArray[Any]]:
        """Return the stored values of the used bands and of alpha, by band number."""
        wanted = sorted({*self._to_rgb.channels, *([self.info.alpha_band] if self.info.alpha_band else [])})
        with self._gdal_errors():
            planes = self._dataset.read(wanted, window=self._window(rect))
        return {band: self._upright(plane) for band, plane in zip(wanted, planes, strict=True)}

    def _valid(self, rect: Rect, planes: dict[int, NDArray[Any]], values: dict[int, Mask]) -> Mask:
        valid = self._to_rgb.valid_pixels(planes, values)
        if self.info.mask:
            with self._gdal_errors():
                valid &= self._upright(self._dataset.read_masks(1, window=self._window(rect))) > 0
        # GDAL reads the blocks that a file omits as nodata, or as 0 where it has no nodata value.
        if self.info.nodata is None and bool((~np.logical_or.reduce(list(planes.values())) & valid).any()):
            blocks = self.data_blocks()
            if blocks is not None:
                (top, bottom), (left, right) = self._window(rect)
                valid &= self._upright(blocks.mark(Rect(left, top, right - left, bottom - top)))
        return valid

    def data_blocks(self) -> DataBlocks | None:
        """Return the blocks that hold data, as stored; None if all do, or if the file does not say.

        Raises:
            ItemError, RunError: raised by the file.
        """
        if self._data_blocks is None:
            self._data_blocks = (self._source.data_blocks(),)
        return self._data_blocks[0]

    def _window(self, rect: Rect) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the rows and columns of the file that hold a rectangle."""
        left, top, right, bottom = rect.col_off, rect.row_off, rect.right, rect.bottom
        orientation = self.info.orientation or 1
        # The inverse of `orientation.upright`, in reverse order.
        if orientation in (2, 3, 6, 7):
            left, right = self.info.width - right, self.info.width - left
        if orientation in (3, 4, 7, 8):
            top, bottom = self.info.height - bottom, self.info.height - top
        rows, columns = (top, bottom), (left, right)
        return (columns, rows) if orientation in TRANSPOSED else (rows, columns)

    def _upright(self, plane: NDArray[Any]) -> NDArray[Any]:
        return plane if self.info.orientation in (None, 1) else upright(plane, self.info.orientation)

    def doubtful_alpha(self) -> int | None:
        """Return the band that the file calls alpha, if it is a band to use or its values are not those of a mask.

        Raises:
            ItemError, RunError: raised by the file.
        """
        band = self._named_alpha
        if band is None or (self.info.alpha_band is not None and self._is_mask(band)):
            return None
        return band

    def _is_mask(self, alpha: int) -> bool:
        """Return whether the values of a band, in a sample, are those of a mask; true if it cannot be read."""
        info, values = self.info, []
        whole = Rect(0, 0, info.width, info.height)
        # On the diagonal, so that blocks of a few rows of the raster are decoded, even if these are strips.
        for top, left in zip(_spread(info.height), _spread(info.width), strict=False):
            rect = whole.shared(Rect(left, top, _SAMPLED_SIDE, _SAMPLED_SIDE))
            try:
                with self._gdal_errors():
                    values.append(self._dataset.read(alpha, window=self._window(rect)).ravel())
            except ItemError as error:
                if error.code not in _DAMAGED:
                    raise
        found = np.concatenate([np.zeros(0), *values])
        most = 2.0**info.bits - 1 if np.dtype(info.dtype).kind == "u" else np.max(found, initial=0)
        if not found.size:
            return True
        opaque = found == most
        return bool(np.max(found) <= 1 or (opaque.any() and (opaque | (found == 0)).mean() >= _MASK_SHARE))

    @contextlib.contextmanager
    def _gdal_errors(self) -> Iterator[None]:
        if self._stale:
            self._dataset.close()
            self._source.forget()
            self._dataset = open_tiff(self._source, self._threads)
            self._stale = False
        try:
            with gdal_errors(self._source, opened=True):
                yield
        except MaskrcnnError as error:
            damaged = isinstance(error, ItemError) and error.code in _DAMAGED
            # After a block that cannot be decoded, GDAL's threads leave invalid blocks in its cache; after a failed
            # read, its state is unknown.
            self._stale = self._threads > 1 or not damaged
            self._threads = 1 if damaged else self._threads
            raise

    def sample(self, count: int) -> tuple[NDArray[np.float64], float]:
        """Return (3, N) stored float64 values of at most `count` pixels, and the number of pixels each represents.

        The sampled pixels are always the same; only valid ones in undamaged windows are returned, and none of a
        raster with a palette. A value that is nodata or not finite is NaN.

        Raises:
            ItemError, RunError: raised by the file.
        """
        info, n_sampled = self.info, 0
        samples = [np.zeros((3, 0))]
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
                has = self._to_rgb.valid_values(planes)
                valid = self._valid(rect, planes, has)
            except ItemError as error:
                if error.code not in _DAMAGED:
                    raise
                continue
            picked = valid[::step, ::step]
            bands = [
                np.where(has[band], planes[band], np.nan)[::step, ::step][picked]
                for band in self._to_rgb.channels
            ]
            n_sampled += picked.size
            values = np.stack(bands).astype(np.float64)
            samples.append(np.where(np.isfinite(values), values, np.nan))
        return np.concatenate(samples, axis=1), info.height * info.width / max(n_sampled, 1)


def raster_header(file: BinaryIO, radiometry: Radiometry, assume_crs: str | None = None) -> ImageHeader:
    """Return the header of a raster that fits a radiometry and has a place on the Earth, or in a local plane.

    Raises:
        ItemError: as `RasterReader`; `bad_georeference`.
        RunError: raised by the file.
        UsageError: as `raster_info`.
    """
    with RasterReader(file, _any_range(radiometry), assume_crs=assume_crs) as reader:
        info = reader.info
        if info.crs_wkt is not None:
            check_georeference(info.crs_wkt, info.transform, info.height, info.width)
        blocks = reader.data_blocks()
        check_density(info.height, info.width, blocks, reader.stored_bytes)
        # GDAL may divide a strip, and an orientation turns the blocks.
        is_same = blocks is not None and (blocks.height, blocks.width) == info.block_size
        is_same &= info.orientation in (None, 1)
        return ImageHeader(
            info.height,
            info.width,
            info.block_size,
            info.crs_wkt,
            None if info.crs_wkt is None else info.transform,
            dtype=None if info.palette else info.dtype,
            doubtful_alpha=reader.doubtful_alpha(),
            data_blocks=blocks.ids if blocks is not None and is_same else None,
        )


def sample_percentiles(
    files: Sequence[Callable[[], BinaryIO]], radiometry: Radiometry, assume_crs: str | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the ends of the range from percentiles of a collection, for red, green and blue.

    Up to 16 windows each of at most 1,000 rasters, spread evenly over the list, are read; always the same ones.
    Rasters are weighted by their valid pixels. Stored values are compared, whatever their type. Rasters that cannot be
    read are skipped: they fail in the run.

    Args:
        files: functions that each open a raster, which is closed again.
        radiometry: a policy with `percentiles`.
        assume_crs: as in `raster_info`.

    Returns:
        The lows and highs for `resolved`.

    Raises:
        UsageError: no raster has a valid pixel.
        RunError: raised by the files.
    """
    chosen, count = sampling(len(files))
    samples = []
    for index in chosen:
        with contextlib.suppress(ItemError), files[index]() as file:
            samples.append(sample(file, radiometry, count, assume_crs))
    return percentiles_of(samples, radiometry)


def sampling(rasters: int) -> tuple[list[int], int]:
    """Return the indices of the rasters to sample, out of `rasters`, and the maximum number of pixels of each."""
    chosen = min(rasters, _SAMPLED_RASTERS)
    return [index * rasters // chosen for index in range(chosen)], _SAMPLED_VALUES // max(chosen, 1)


def sample(
    file: BinaryIO, radiometry: Radiometry, count: int, assume_crs: str | None = None
) -> tuple[NDArray[np.float64], float]:
    """Run `RasterReader.sample` on a file. Raises as `RasterReader`."""
    with RasterReader(file, _any_range(radiometry), assume_crs=assume_crs) as reader:
        return reader.sample(count)


def _any_range(radiometry: Radiometry) -> Radiometry:
    """Return a radiometry whose percentiles are resolved, for what does not depend on them."""
    return radiometry if radiometry.percentiles is None else resolved(radiometry, (0.0,), (1.0,))


def _canvas(rect: Rect) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return np.zeros((rect.height, rect.width, 3), np.uint8), np.zeros((rect.height, rect.width), bool)


def _views(
    whole: Rect, part: Rect, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    rows = slice(part.row_off - whole.row_off, part.bottom - whole.row_off)
    columns = slice(part.col_off - whole.col_off, part.right - whole.col_off)
    return rgb[rows, columns], valid[rows, columns]


def _add(unreadable: list[tuple[Rect, ItemError]], rect: Rect, error: ItemError) -> None:
    """Add an unreadable part, merged with the last one if both have the same code and together form a rectangle."""
    if unreadable and unreadable[-1][1].code == error.code:
        last = unreadable[-1][0]
        beside = (last.right, last.row_off, last.height) == (rect.col_off, rect.row_off, rect.height)
        below = (last.col_off, last.width, last.bottom) == (rect.col_off, rect.width, rect.row_off)
        if beside or below:
            size = (
                (last.width + rect.width, last.height) if beside else (last.width, last.height + rect.height)
            )
            unreadable[-1] = (Rect(last.col_off, last.row_off, *size), unreadable[-1][1])
            return
    unreadable.append((rect, error))


def _spread(length: int) -> list[int]:
    """Return the starts of windows that cover `length`, or that are spread evenly over it if it is long."""
    last = max(length - _SAMPLED_SIDE, 0)
    if length <= _SAMPLED_WINDOWS * _SAMPLED_SIDE:
        return list(range(0, length, _SAMPLED_SIDE))
    return [last * index // (_SAMPLED_WINDOWS - 1) for index in range(_SAMPLED_WINDOWS)]
