"""Coordinate reference systems by PROJ, and the check that a raster's transform fits its own.

Wrong labels are common: metres labelled as degrees, or degrees as metres. The areas of such a raster would be zero or
infinite, so it fails when the run is planned.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, UsageError
from ..io.refusals import Refusal

Floats = NDArray[np.float64]

_POINTS: Final = 9
"""Per side, of the points of a raster that are located: its corners may lie beyond the Earth's edge."""
_LARGEST_M: Final = 1e9
"""No projection of the Earth has larger coordinates, in metres."""
_LARGEST: Final = 1e15
"""The largest coordinate in a local system, in its unit."""
_SMALLEST_M: Final = 1e-4
"""The smallest side of a pixel on the Earth, in metres."""
_MARGIN: Final = 15.0
"""Degrees around the area of use of a CRS in which rasters are common: whole countries use one zone of UTM."""
_DEGREE_M: Final = 111_320.0
_PRECISION: Final = 1000
"""The smallest number of distinct float64 coordinates along a pixel."""


def extra(module: str) -> Any:
    """Return a module of the extra `geo`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError("polygons need the extra geo: pip install 'maskrcnn-ray[geo]'") from error


@lru_cache(64)
def parse_crs(wkt: str | None) -> Any:
    """Return a pyproj CRS; the registry's own entry where the WKT is exactly that of one.

    Raises:
        UsageError: the extra is not installed, or the CRS is missing or unknown.
    """
    pyproj = extra("pyproj")
    if not wkt:
        raise UsageError(
            "the raster has no coordinate reference system: assign one, for example with gdal_edit -a_srs"
        )
    try:
        crs = pyproj.CRS.from_user_input(wkt)
        authority = crs.to_authority(min_confidence=100)
        return pyproj.CRS.from_authority(*authority) if authority else crs
    except pyproj.exceptions.CRSError as error:
        raise UsageError(
            f"PROJ does not know the coordinate reference system {wkt[:80]}: assign another"
        ) from error


@dataclass(frozen=True, slots=True)
class ToGeodetic:
    """The transformation from a CRS to longitude and latitude on its own datum."""

    transformer: Any
    """A pyproj Transformer; None where the coordinates are longitude and latitude already."""
    unit: float
    """Radians in a unit of longitude and latitude."""

    @property
    def is_identity(self) -> bool:
        """Whether the coordinates are longitude and latitude already."""
        return self.transformer is None

    def radians(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return longitudes and latitudes, in radians; infinite where a position is not on the Earth."""
        lon, lat = (x, y) if self.transformer is None else self.transformer.transform(x, y)
        return lon * self.unit, lat * self.unit

    def back(self, lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
        """Return the positions of longitudes and latitudes in radians."""
        lon, lat = lon / self.unit, lat / self.unit
        if self.transformer is None:
            return lon, lat
        x, y = self.transformer.transform(lon, lat, direction="INVERSE")
        return x, y


@lru_cache(64)
def to_geodetic(crs: Any) -> ToGeodetic | None:
    """Return the transformation of a pyproj CRS to longitude and latitude; None for a local (engineering) system.

    Raises:
        UsageError: positions in the CRS have no longitude and latitude, or PROJ cannot compute them.
    """
    pyproj = extra("pyproj")
    if crs.is_engineering:
        return None
    horizontal = crs.is_geographic or crs.is_projected
    derived = crs.is_geographic and crs.is_derived
    base = crs.source_crs if derived else crs.geodetic_crs
    if not horizontal or base is None or not base.axis_info:
        raise UsageError(f"{crs.name} ({crs.type_name}) has no plane coordinates: assign another system")
    unit = float(base.axis_info[0].unit_conversion_factor)
    if crs.is_geographic and not derived:
        return ToGeodetic(None, unit)
    try:
        return ToGeodetic(pyproj.Transformer.from_crs(crs, base, always_xy=True), unit)
    except pyproj.exceptions.ProjError as error:
        raise UsageError(
            f"PROJ cannot transform {crs.name} to longitude and latitude: assign another"
        ) from error


@lru_cache(64)
def crs_of_raster(crs_wkt: str) -> tuple[Any, ToGeodetic | None]:
    """Return a raster's pyproj CRS, and its transformation as from `to_geodetic`.

    Raises:
        ItemError: `bad_georeference`: PROJ does not know the CRS, or positions in it have no longitude and latitude.
        UsageError: the extra is not installed.
    """
    extra("pyproj")
    try:
        crs = parse_crs(crs_wkt)
    except UsageError as error:
        raise Refusal.CRS_UNKNOWN.error(crs=crs_wkt[:80]) from error
    try:
        return crs, to_geodetic(crs)
    except UsageError as error:
        raise Refusal.CRS_WITHOUT_PLANE.error(crs=f"{crs.name} ({crs.type_name})") from error


def check_georeference(crs_wkt: str, transform: Sequence[float], height: int, width: int) -> None:
    """Check that a raster lies on the Earth, or in the plane of a local system, with pixels of a possible size.

    Args:
        crs_wkt: its CRS.
        transform: six numbers a … f of x = a * column + b * row + c, y = d * column + e * row + f.
        height: pixels.
        width: pixels.

    Raises:
        ItemError: `bad_georeference`.
        UsageError: the extra `geo` is not installed.
    """
    crs, to_lonlat = crs_of_raster(crs_wkt)
    x, y = _points(transform, height, width)
    step = _smallest_step(transform)
    largest = float(max(np.abs(x).max(), np.abs(y).max()))
    if not largest < _LARGEST:  # also for NaN
        raise _misplaced(x, y, crs.name, "too large for any system")
    if step < _PRECISION * np.spacing(largest):
        raise Refusal.PIXELS_BELOW_PRECISION.error(step=step, largest=largest)
    if to_lonlat is None:
        return
    if to_lonlat.is_identity:
        _check_degrees(x, y, transform, to_lonlat.unit, crs.name)
    else:
        _check_projected(x, y, step, crs, to_lonlat)


def is_outside_area_of_use(crs_wkt: str, transform: Sequence[float], height: int, width: int) -> bool:
    """Return whether all of a raster is more than `_MARGIN` degrees away from its CRS's area of use, if that is known.

    The arguments are as in `check_georeference`, which they must pass.
    """
    crs, to_lonlat = crs_of_raster(crs_wkt)
    if to_lonlat is None or crs.area_of_use is None:
        return False
    lon, lat = (np.rad2deg(each) for each in to_lonlat.radians(*_points(transform, height, width)))
    there = np.isfinite(lon) & np.isfinite(lat)
    return bool(there.any()) and not _within(lon[there], lat[there], crs, _MARGIN).any()


def _within(lon: Floats, lat: Floats, crs: Any, margin: float) -> NDArray[np.bool_]:
    """Return which positions are at most a margin, in degrees, away from a CRS's area of use."""
    west, south, east, north = crs.area_of_use.bounds
    across = (east - west) % 360 or 360.0
    # The northern zones of UTM are also used in the south, with negative coordinates (Landsat).
    inside = np.minimum(np.abs(lat - (south + north) / 2), np.abs(-lat - (south + north) / 2)) <= (
        (north - south) / 2 + margin
    )
    return np.asarray(inside & ((lon - west + margin) % 360 <= min(across + 2 * margin, 360)))


def _points(transform: Sequence[float], height: int, width: int) -> tuple[Floats, Floats]:
    """Return the coordinates of a grid of positions over a raster, with its corners."""
    a, b, c, d, e, f = transform
    side = np.linspace(0.0, 1.0, _POINTS)
    column, row = (each.ravel() for each in np.meshgrid(side * width, side * height))
    with np.errstate(over="ignore", invalid="ignore"):
        return a * column + b * row + c, d * column + e * row + f


def _smallest_step(transform: Sequence[float]) -> float:
    """Return the smallest extent of a pixel. Raises ItemError for pixels that are lines."""
    a, b, _, d, e, _ = transform
    scale = max(map(abs, (a, b, d, e)))
    largest, smallest = np.linalg.svd(np.array([[a, b], [d, e]]) / scale, compute_uv=False).tolist()
    if smallest < 1e-9 * largest:
        raise Refusal.PIXELS_ARE_LINES.error()
    return float(smallest * scale)


def _misplaced(x: Floats, y: Floats, name: str, why: str) -> ItemError:
    ends = {"xmin": x.min(), "xmax": x.max(), "ymin": y.min(), "ymax": y.max()}
    return Refusal.COORDINATES.error(crs=name, why=why, **ends)


def _check_degrees(x: Floats, y: Floats, transform: Sequence[float], unit: float, name: str) -> None:
    """Raise ItemError where positions are not longitudes and latitudes, give or take a pixel."""
    pixel = max(map(abs, (transform[0], transform[1], transform[3], transform[4]))) * unit
    lon, lat = np.abs(x).max() * unit, np.abs(y).max() * unit
    if lat > np.pi / 2 + min(pixel, 0.02) or lon > 3 * np.pi + pixel:
        raise _misplaced(x, y, name, "these are not longitudes and latitudes")
    if pixel < _SMALLEST_M / _DEGREE_M * np.pi / 180:
        raise _misplaced(x, y, name, "its pixels are smaller than a tenth of a millimetre")


def _check_projected(x: Floats, y: Floats, step: float, crs: Any, to_lonlat: ToGeodetic) -> None:
    """Raise ItemError where no position of a raster lies on the Earth, or where its coordinates are degrees."""
    unit = crs.axis_info[0].unit_conversion_factor
    if max(np.abs(x).max(), np.abs(y).max()) * unit > _LARGEST_M:
        raise _misplaced(x, y, crs.name, "coordinates on the Earth are not that large")
    lon, lat = to_lonlat.radians(x, y)
    finite = np.isfinite(lon) & np.isfinite(lat)
    again_x, again_y = to_lonlat.back(lon[finite], lat[finite])
    # PROJ returns positions for coordinates beyond the domain of some projections.
    off = np.hypot(again_x - x[finite], again_y - y[finite])
    on_earth = np.abs(lat[finite]) <= np.pi / 2 + 1e-9
    on_earth &= off <= step + 1e-6 * np.hypot(x[finite], y[finite])
    if not on_earth.any():
        raise _misplaced(x, y, crs.name, "none of its pixels is on the Earth")
    lon, lat = np.rad2deg(lon[finite][on_earth]), np.rad2deg(lat[finite][on_earth])
    if np.abs(x).max() <= 361 and np.abs(y).max() <= 91 and not _may_be_small(lon, lat, crs):
        raise _misplaced(x, y, crs.name, "they look like degrees")
    if step * unit < _SMALLEST_M:
        raise _misplaced(x, y, crs.name, "its pixels are smaller than a tenth of a millimetre")


def _may_be_small(lon: Floats, lat: Floats, crs: Any) -> bool:
    """Return whether a raster may lie next to the origin of its system: in its area of use, and not at 0, 0."""
    if np.hypot(lon, lat).max() < 0.01:
        return False
    if crs.area_of_use is None:
        return True
    return bool(_within(lon, lat, crs, 1e-6).any())
