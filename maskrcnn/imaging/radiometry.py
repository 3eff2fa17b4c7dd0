"""Radiometry: how the values of a raster's bands become RGB, by one policy for a whole run.

The rules are those of `raster`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, UsageError
from .geotiff import RasterInfo, from_plain, plain

_WHOLE: Final = {"uint8": 8, "int8": 8, "uint16": 16, "int16": 16}  # bits of types small enough for a table
_AS_IS: Final = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Radiometry:
    """How bands become RGB: the policy of a run, the same for all windows of all rasters.

    Raises:
        ValueError: invalid numbers; `parse_radiometry` reports them to users.
    """

    bands: tuple[int, ...] | None = None
    """One or three, from 1; None: chosen for each raster by the rules of `raster`."""
    scale: str = "dtype"
    """`dtype`, `LOW,HIGH`, `pLOW,pHIGH` or `dataset`, as the user gave it."""
    lows: tuple[float, ...] | None = None
    """The values that become 0, for a fixed range: one, or one each for red, green and blue."""
    highs: tuple[float, ...] | None = None
    """The values that become 255; greater than `lows`."""

    def __post_init__(self) -> None:
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ValueError(f"bands must be one or three numbers from 1, not {self.bands}")
        if (self.lows is None) != (self.highs is None):
            raise ValueError("a range must have two ends")
        if self.lows is not None and self.highs is not None:
            ends = [*self.lows, *self.highs]
            if len(self.lows) not in (1, 3) or len(self.lows) != len(self.highs):
                raise ValueError("there must be one range or three")
            if not all(map(math.isfinite, ends)) or any(
                a >= b for a, b in zip(self.lows, self.highs, strict=True)
            ):
                raise ValueError(f"not a range: {self.lows} to {self.highs}")

    @property
    def percentiles(self) -> tuple[float, float] | None:
        """The percentiles that must be resolved before a raster can be read, or None."""
        if self.lows is None and self.scale.startswith("p"):
            low, high = (float(part.strip()[1:]) for part in self.scale.split(","))
            return low, high
        return None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return plain(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Do the reverse of `to_json`."""
        return cls(**from_plain(values))


def parse_radiometry(bands: str | None, scale: str | None) -> Radiometry:
    """Parse the options --bands and --scale.

    >>> parse_radiometry("4,3,2", "0,10000")
    Radiometry(bands=(4, 3, 2), scale='0,10000', lows=(0.0,), highs=(10000.0,))

    Raises:
        UsageError: they are invalid.
    """
    chosen, scale = None, (scale or "dtype").strip().lower()
    try:
        if bands is not None:
            chosen = tuple(int(part) for part in bands.split(","))
        if scale in ("dtype", "dataset"):
            return Radiometry(chosen, scale)
    except ValueError:
        raise UsageError(f"--bands takes one or three numbers from 1, like 4,3,2, not {bands!r}") from None
    low, _, high = (part.strip() for part in scale.partition(","))
    percentiles = low.startswith("p") and high.startswith("p")
    try:
        ends = (float(low[percentiles:]), float(high[percentiles:]))
        if not percentiles:
            return Radiometry(chosen, scale, ends[:1], ends[1:])
        if not 0 <= ends[0] < ends[1] <= 100:
            raise ValueError(scale)  # noqa: TRY301 (one message, below)
    except ValueError:
        raise UsageError(
            "--scale takes LOW,HIGH (like 0,10000), percentiles of the collection (p2,p98) or dataset (the files' own "
            f"scale and offset), not {scale!r}"
        ) from None
    return Radiometry(chosen, scale)


def resolved(radiometry: Radiometry, lows: Sequence[float], highs: Sequence[float]) -> Radiometry:
    """Return the policy with the range that the percentiles are; if both ends are one value, that becomes black."""
    pairs = [
        (float(a), float(b) if b > a else float(a) + max(1.0, abs(a)))
        for a, b in zip(lows, highs, strict=True)
    ]
    return dataclasses.replace(radiometry, lows=tuple(a for a, _ in pairs), highs=tuple(b for _, b in pairs))


def check_radiometry(info: RasterInfo, radiometry: Radiometry) -> None:
    """Check before any pixel is read that `RasterReader` will accept a raster.

    Raises:
        ItemError: `unsupported_pixels`.
    """
    if radiometry.percentiles is not None:  # their values do not matter here
        radiometry = resolved(radiometry, (0.0,), (1.0,))
    ranges_of(info, radiometry, channels_of(info, radiometry))


def percentiles_of(
    samples: Sequence[tuple[NDArray[np.float64], float]], radiometry: Radiometry
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the ends of the range, from all samples. Raises UsageError if they contain no value."""
    if radiometry.percentiles is None:
        raise ValueError(f"{radiometry.scale} has no percentiles")
    values = np.concatenate([np.zeros((3, 0)), *(values for values, _ in samples)], axis=1)
    weights = np.concatenate([np.zeros(0), *(np.full(values.shape[1], weight) for values, weight in samples)])
    if not weights.size:
        raise UsageError("no raster has valid pixels to compute percentiles from: use --scale LOW,HIGH")
    shares = np.array(radiometry.percentiles) / 100
    lows, highs = np.quantile(values, shares, axis=1, weights=weights, method="inverted_cdf").tolist()
    return tuple(lows), tuple(highs)


# Values to RGB


def channels_of(info: RasterInfo, radiometry: Radiometry) -> tuple[int, int, int]:
    """Return the bands, from 1, that become red, green and blue. Raises ItemError."""
    colors, bands = info.colorinterp, radiometry.bands
    if bands is None:
        if {"cyan", "Y", "hue"} & set(colors):
            raise ItemError(
                "unsupported_pixels", f"bands with the meanings {', '.join(colors)}: choose some with --bands"
            )
        if {"red", "green", "blue"} <= set(colors):
            bands = tuple(colors.index(name) + 1 for name in ("red", "green", "blue"))
        else:
            plain = tuple(band for band in range(1, info.bands + 1) if band != info.alpha_band) or (1,)
            bands = plain[:3] if len(plain) >= 3 else plain[:1]
    if max(bands) > info.bands:
        raise ItemError("unsupported_pixels", f"it has no band {max(bands)}, only {info.bands}")
    red, green, blue = bands * (3 // len(bands))
    return red, green, blue


def ranges_of(
    info: RasterInfo, radiometry: Radiometry, channels: tuple[int, ...]
) -> list[tuple[float, float]]:
    """Return for each channel the values that become 0 and 255. Raises ItemError, ValueError."""
    if radiometry.lows is not None and radiometry.highs is not None:
        return list(zip(radiometry.lows, radiometry.highs, strict=True)) * (3 // len(radiometry.lows))
    if radiometry.percentiles is not None:
        raise ValueError("percentiles must be resolved first: see sample_percentiles")
    if info.palette:
        return [(0.0, 255.0)] * 3
    if radiometry.scale == "dtype":
        if info.dtype != "uint8":
            raise ItemError(
                "unsupported_pixels", f"{info.dtype} numbers need a stated range: give one with --scale"
            )
        return [(0.0, 2.0**info.bits - 1)] * 3
    return [_reflectance(info, band) for band in channels]


def _reflectance(info: RasterInfo, band: int) -> tuple[float, float]:
    """Return the stored values of reflectance 0 and 1."""
    scale, offset = info.scales[band - 1], info.offsets[band - 1]
    if (scale, offset) == (1.0, 0.0) and np.dtype(info.dtype).kind != "f":
        raise ItemError(
            "unsupported_pixels", f"band {band} has no scale and offset: give a range with --scale"
        )
    if not (math.isfinite(scale) and math.isfinite(offset) and scale != 0):
        raise ItemError("unsupported_pixels", f"band {band} has the scale {scale} and the offset {offset}")
    return -offset / scale, (1 - offset) / scale


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(over="ignore", invalid="ignore"):
        shares = (values.astype(np.float64) - low) / (high - low)
    # NaN has no brightness; it is invalid, and becomes black.
    return np.asarray(np.rint(np.clip(np.nan_to_num(shares, nan=0.0), 0, 1) * 255), np.uint8)


def _table(dtype: str, low: float, high: float) -> NDArray[np.uint8] | None:
    """Return the brightness of each value, in the order of their bits; None if there are too many values."""
    if dtype not in _WHOLE:
        return None
    unsigned = np.arange(2 ** _WHOLE[dtype]).astype(f"uint{_WHOLE[dtype]}")
    return _scaled(unsigned.view(dtype), low, high)


class ToRgb:
    """Converts values of one raster to RGB.

    Args:
        info: of the raster.
        radiometry: percentiles must be resolved.
        colors: of its palette, by index.

    Raises:
        ItemError: `unsupported_pixels`.
        ValueError: percentiles are not resolved.
    """

    def __init__(
        self, info: RasterInfo, radiometry: Radiometry, colors: Mapping[int, Sequence[int]] | None
    ) -> None:
        self.channels: Final = channels_of(info, radiometry)
        """The bands that become red, green and blue."""
        self._info = info
        self._ranges = ranges_of(info, radiometry, self.channels)
        if colors is None:
            self._tables = [_table(info.dtype, *ends) for ends in self._ranges]
        else:
            self._tables = _palette(info.dtype, colors)

    def usable(self, planes: Mapping[int, NDArray[Any]]) -> NDArray[np.bool_]:
        """Return where a band has a value that is neither nodata nor NaN, and alpha is not 0."""
        nodata = _typed(self._info.nodata, np.dtype(self._info.dtype))
        usable = np.zeros(planes[self.channels[0]].shape, bool)
        for band in sorted(set(self.channels)):
            plane = planes[band]
            has = np.ones(plane.shape, bool) if nodata is None else plane != nodata
            usable |= has & ~np.isnan(plane) if plane.dtype.kind == "f" else has
        if self._info.alpha_band is not None:
            usable &= planes[self._info.alpha_band] > 0
        return usable

    def paint(
        self, planes: Mapping[int, NDArray[Any]], valid: NDArray[np.bool_], out: NDArray[np.uint8]
    ) -> None:
        """Fill (height, width, 3) RGB; pixels that are not valid become black."""
        for index, band in enumerate(self.channels):
            table, plane = self._tables[index], planes[band]
            if table is not None and np.array_equal(table, _AS_IS):
                out[..., index] = plane * valid
                continue
            for row, values in enumerate(
                plane
            ):  # all at once, indices or float64 would take most of the memory
                shades = (
                    _scaled(values, *self._ranges[index])
                    if table is None
                    else table[values.view(f"uint{8 * values.itemsize}")]
                )
                out[row, :, index] = shades * valid[row]


def _palette(dtype: str, colors: Mapping[int, Sequence[int]]) -> list[NDArray[np.uint8] | None]:
    """Return the brightness of each index, for red, green and blue; black where the palette has no entry."""
    table = np.zeros((2 ** _WHOLE.get(dtype, 8), 3), np.uint8)
    for index, color in colors.items():
        if 0 <= index < len(table):
            table[index] = color[:3]
    return [np.ascontiguousarray(table[:, channel]) for channel in range(3)]


def _typed(nodata: float | None, dtype: np.dtype[Any]) -> Any:
    """Return nodata as a number of that type, or None if no pixel can have it."""
    if nodata is None or math.isnan(nodata):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(nodata)
    limits = np.iinfo(dtype)
    whole = math.isfinite(nodata) and nodata == int(nodata) and limits.min <= nodata <= limits.max
    return dtype.type(int(nodata)) if whole else None
