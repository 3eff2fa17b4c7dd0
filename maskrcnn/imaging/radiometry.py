"""Radiometry: convert the values of a raster's bands to RGB, by one policy for a whole run.

The rules are described in `raster`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..io.refusals import Refusal
from .geotiff import RasterInfo, fields_from_json, fields_to_json

# Data types small enough for a lookup table, with their number of bits.
_TABLE_BITS: Final = {"uint8": 8, "int8": 8, "uint16": 16, "int16": 16}
_IDENTITY: Final = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Radiometry:
    """How bands are converted to RGB: the policy of a run, the same for all windows of all rasters.

    Raises:
        ValueError: invalid bands or ranges; `parse_radiometry` reports them to users.
    """

    bands: tuple[int, ...] | None = None
    """One or three band numbers, from 1; None: chosen for each raster by the rules in `raster`."""
    scale: str = "dtype"
    """`dtype`, `LOW,HIGH`, `pLOW,pHIGH` or `dataset`, as given by the user."""
    lows: tuple[float, ...] | None = None
    """The lower ends of a fixed range, which become 0: one for all channels, or one each for red, green and blue."""
    highs: tuple[float, ...] | None = None
    """The upper ends, which become 255; greater than `lows`."""
    alpha: int | None = None
    """The number of the alpha band, from 1; 0: no band is alpha; None: chosen for each raster by the rules in
    `raster`."""

    def __post_init__(self) -> None:
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ValueError(f"bands must be one or three numbers from 1, not {self.bands}")
        if (self.lows is None) != (self.highs is None):
            raise ValueError("lows and highs must be given together")
        if self.lows is not None and self.highs is not None:
            ends = [*self.lows, *self.highs]
            if len(self.lows) not in (1, 3) or len(self.lows) != len(self.highs):
                raise ValueError("lows and highs must have one or three values each")
            if not all(map(math.isfinite, ends)) or any(
                a >= b for a, b in zip(self.lows, self.highs, strict=True)
            ):
                raise ValueError(f"not a valid range: {self.lows} to {self.highs}")

    @property
    def percentiles(self) -> tuple[float, float] | None:
        """The percentiles to compute before a raster can be read, or None."""
        if self.lows is None and self.scale.startswith("p"):
            low, high = (float(part.strip()[1:]) for part in self.scale.split(","))
            return low, high
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return fields_to_json(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the policy from the values of `to_json`."""
        return cls(**fields_from_json(values))


def parse_radiometry(bands: str | None, scale: str | None, alpha: str | None = None) -> Radiometry:
    """Return the policy for the options `--bands`, `--scale` and `--alpha`.

    >>> parse_radiometry("4,3,2", "0,10000")
    Radiometry(bands=(4, 3, 2), scale='0,10000', lows=(0.0,), highs=(10000.0,))

    Raises:
        UsageError: an option is not valid.
    """
    chosen, scale = None, (scale or "dtype").strip().lower()
    band = _alpha_of(alpha)
    try:
        if bands is not None:
            chosen = tuple(int(part) for part in bands.split(","))
        if scale in ("dtype", "dataset"):
            return Radiometry(chosen, scale, alpha=band)
    except ValueError:
        raise UsageError(f"--bands takes one or three numbers from 1, such as 4,3,2, not {bands!r}") from None
    low, _, high = (part.strip() for part in scale.partition(","))
    percentiles = low.startswith("p") and high.startswith("p")
    try:
        ends = (float(low[percentiles:]), float(high[percentiles:]))
        if not percentiles:
            return Radiometry(chosen, scale, ends[:1], ends[1:], band)
        if not 0 <= ends[0] < ends[1] <= 100:
            raise ValueError(scale)  # noqa: TRY301 (one message for all cases, below)
    except ValueError:
        raise UsageError(
            "--scale takes LOW,HIGH (such as 0,10000), percentiles of the collection (p2,p98) or dataset (the scale "
            f"and offset of the files), not {scale!r}"
        ) from None
    return Radiometry(chosen, scale, alpha=band)


def _alpha_of(option: str | None) -> int | None:
    """Return `Radiometry.alpha` for the option `--alpha`. Raises UsageError."""
    if option is None:
        return None
    text = option.strip().lower()
    if text == "none":
        return 0
    if not (text.isdecimal() and int(text) > 0):
        raise UsageError(f"--alpha takes the number of a band, from 1, or none, not {option!r}")
    return int(text)


def resolved(radiometry: Radiometry, lows: Sequence[float], highs: Sequence[float]) -> Radiometry:
    """Return the policy with the range of the percentiles; if both ends are equal, that value becomes black."""
    pairs = [
        (float(a), float(b) if b > a else float(a) + max(1.0, abs(a)))
        for a, b in zip(lows, highs, strict=True)
    ]
    return dataclasses.replace(radiometry, lows=tuple(a for a, _ in pairs), highs=tuple(b for _, b in pairs))


def percentiles_of(
    samples: Sequence[tuple[NDArray[np.float64], float]], radiometry: Radiometry
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the ends of the range from all samples.

    Args:
        samples: (3, N) values of each raster, NaN where there is none, with the number of pixels that each represents.
        radiometry: a policy with `percentiles`.

    Returns:
        The lows and highs of red, green and blue.

    Raises:
        UsageError: the samples contain no value.
    """
    if radiometry.percentiles is None:
        raise ValueError(f"the scale {radiometry.scale} has no percentiles")
    values = np.concatenate([np.zeros((3, 0)), *(values for values, _ in samples)], axis=1)
    weights = np.concatenate([np.zeros(0), *(np.full(values.shape[1], weight) for values, weight in samples)])
    there = ~np.isnan(values)
    if not there.any():
        raise UsageError(
            "no raster has valid pixels to compute percentiles from; give a range with --scale LOW,HIGH"
        )
    shares = np.array(radiometry.percentiles) / 100
    ends = [
        np.quantile(values[channel, has], shares, weights=weights[has], method="inverted_cdf").tolist()
        if has.any()
        else [0.0, 1.0]  # a channel without any value is black, whatever its range
        for channel, has in enumerate(there)
    ]
    lows, highs = zip(*ends, strict=True)
    return lows, highs


# Values to RGB


def alpha_of(info: RasterInfo, radiometry: Radiometry) -> int | None:
    """Return the number, from 1, of the alpha band by the radiometry; None without one. Raises ItemError."""
    if radiometry.alpha is None:
        return None if info.alpha_band in (radiometry.bands or ()) else info.alpha_band
    if radiometry.alpha > info.bands:
        raise Refusal.NO_SUCH_BAND.error(band=radiometry.alpha, count=info.bands)
    return radiometry.alpha or None


def channels_of(info: RasterInfo, radiometry: Radiometry) -> tuple[int, int, int]:
    """Return the numbers, from 1, of the bands used for red, green and blue. Raises ItemError."""
    colors, bands = info.colorinterp, radiometry.bands
    if bands is None:
        if {"cyan", "Y", "hue"} & set(colors):
            raise Refusal.BANDS_TO_CHOOSE.error(bands=", ".join(colors))
        if {"red", "green", "blue"} <= set(colors):
            bands = tuple(colors.index(name) + 1 for name in ("red", "green", "blue"))
        else:
            unnamed = tuple(band for band in range(1, info.bands + 1) if band != info.alpha_band) or (1,)
            bands = unnamed[:3] if len(unnamed) >= 3 else unnamed[:1]
    if max(bands) > info.bands:
        raise Refusal.NO_SUCH_BAND.error(band=max(bands), count=info.bands)
    red, green, blue = bands * (3 // len(bands))
    return red, green, blue


def ranges_of(
    info: RasterInfo, radiometry: Radiometry, channels: tuple[int, ...]
) -> list[tuple[float, float]]:
    """Return for each channel the values that become 0 and 255. Raises ItemError, ValueError."""
    if radiometry.lows is not None and radiometry.highs is not None:
        return list(zip(radiometry.lows, radiometry.highs, strict=True)) * (3 // len(radiometry.lows))
    if radiometry.percentiles is not None:
        raise ValueError("percentiles must be computed first, see sample_percentiles")
    if info.palette:
        return [(0.0, 255.0)] * 3
    if radiometry.scale == "dtype":
        if info.dtype != "uint8":
            raise Refusal.RANGE_NEEDED.error(dtype=info.dtype)
        return [(0.0, 2.0**info.bits - 1)] * 3
    return [_reflectance(info, band) for band in channels]


def _reflectance(info: RasterInfo, band: int) -> tuple[float, float]:
    """Return the stored values of reflectance 0 and 1. Raises ItemError."""
    scale, offset = info.scales[band - 1], info.offsets[band - 1]
    if (scale, offset) == (1.0, 0.0) and np.dtype(info.dtype).kind != "f":
        raise Refusal.NO_SCALE.error(band=band)
    if not (math.isfinite(scale) and math.isfinite(offset) and scale != 0):
        raise Refusal.INVALID_SCALE.error(band=band, scale=scale, offset=offset)
    return -offset / scale, (1 - offset) / scale


def _scaled(values: NDArray[Any], low: float, high: float, *, negative: bool) -> NDArray[np.uint8]:
    with np.errstate(over="ignore", invalid="ignore"):
        shares = (values.astype(np.float64) - low) / (high - low)
    # NaN cannot be converted to an integer; such pixels are invalid and become black.
    shades = np.asarray(np.rint(np.clip(np.nan_to_num(shares, nan=0.0), 0, 1) * 255), np.uint8)
    return 255 - shades if negative else shades


def _table(dtype: str, low: float, high: float, *, negative: bool) -> NDArray[np.uint8] | None:
    """Return the lookup table by the bits of a value as an unsigned index; None for a type of more than 16 bits."""
    if dtype not in _TABLE_BITS:
        return None
    unsigned = np.arange(2 ** _TABLE_BITS[dtype]).astype(f"uint{_TABLE_BITS[dtype]}")
    return _scaled(unsigned.view(dtype), low, high, negative=negative)


class ToRgb:
    """Convert the values of one raster to RGB.

    Args:
        info: the header of the raster.
        radiometry: the policy, with resolved percentiles.
        colors: the colours of its palette, by index.

    Raises:
        ItemError: `unsupported_pixels`.
        ValueError: the percentiles are not resolved.
    """

    def __init__(
        self, info: RasterInfo, radiometry: Radiometry, colors: Mapping[int, Sequence[int]] | None
    ) -> None:
        self.channels: Final = channels_of(info, radiometry)
        """The numbers, from 1, of the bands used for red, green and blue."""
        self._info = info
        self._nodata = _typed(info.nodata, np.dtype(info.dtype))
        self._ranges = ranges_of(info, radiometry, self.channels)
        if colors is None:
            self._tables = [
                _table(info.dtype, *ends, negative=self._is_negative(band))
                for band, ends in zip(self.channels, self._ranges, strict=True)
            ]
        else:
            self._tables = _palette(info.dtype, colors)

    def _is_negative(self, band: int) -> bool:
        """Return whether larger values of a band are darker."""
        return self._info.white_is_zero and not self._info.palette and band == 1

    def valid_values(self, planes: Mapping[int, NDArray[Any]]) -> dict[int, NDArray[np.bool_]]:
        """Return masks of the values that are neither nodata nor NaN, by band number."""
        masks = {}
        for band in set(self.channels):
            plane = planes[band]
            has = np.ones(plane.shape, bool) if self._nodata is None else plane != self._nodata
            masks[band] = has & ~np.isnan(plane) if plane.dtype.kind == "f" else has
        return masks

    def valid_pixels(
        self, planes: Mapping[int, NDArray[Any]], values: Mapping[int, NDArray[np.bool_]]
    ) -> NDArray[np.bool_]:
        """Return a mask of the pixels where any band has a value, and alpha is not 0."""
        valid: NDArray[np.bool_] = np.logical_or.reduce(list(values.values()))
        if self._info.alpha_band is not None:
            valid &= planes[self._info.alpha_band] > 0
        return valid

    def convert(
        self,
        planes: Mapping[int, NDArray[Any]],
        values: Mapping[int, NDArray[np.bool_]],
        valid: NDArray[np.bool_],
        out: NDArray[np.uint8],
    ) -> None:
        """Fill `out`, (height, width, 3) uint8 RGB; invalid pixels become black, and a channel without a value 0."""
        for index, band in enumerate(self.channels):
            table, plane = self._tables[index], self._divided(planes, band)
            has = valid & values[band]
            if table is not None and np.array_equal(table, _IDENTITY):
                out[..., index] = plane * has
                continue
            for row, stored in enumerate(
                plane
            ):  # by row: indices or float64 of a plane would take most memory
                shades = (
                    _scaled(stored, *self._ranges[index], negative=self._is_negative(band))
                    if table is None
                    else table[stored.view(f"uint{8 * stored.itemsize}")]
                )
                out[row, :, index] = shades * has[row]

    def _divided(self, planes: Mapping[int, NDArray[Any]], band: int) -> NDArray[Any]:
        """Return the values of a band, divided by alpha where the file multiplied them, as Pillow does."""
        plane, alpha = planes[band], self._info.alpha_band
        if alpha is None or not self._info.premultiplied or plane.dtype.kind != "u":
            return plane
        most = 2**self._info.bits - 1
        whole = plane.astype(np.uint64) * most // np.maximum(planes[alpha], 1)
        return np.asarray(np.minimum(whole, most), plane.dtype)


def _palette(dtype: str, colors: Mapping[int, Sequence[int]]) -> list[NDArray[np.uint8] | None]:
    """Return the lookup tables of red, green and blue by palette index; black beyond the end of the palette."""
    table = np.zeros((2 ** _TABLE_BITS.get(dtype, 8), 3), np.uint8)
    for index, color in colors.items():
        if 0 <= index < len(table):
            table[index] = color[:3]
    return [np.ascontiguousarray(table[:, channel]) for channel in range(3)]


def _typed(nodata: float | None, dtype: np.dtype[Any]) -> Any:
    """Return nodata as a value of the data type, or None if no pixel can have that value."""
    if nodata is None or math.isnan(nodata):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(nodata)
    limits = np.iinfo(dtype)
    whole = math.isfinite(nodata) and nodata == int(nodata) and limits.min <= nodata <= limits.max
    return dtype.type(int(nodata)) if whole else None
