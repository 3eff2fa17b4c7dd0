"""Areas of polygons on the Earth's ellipsoid, in square metres, whatever the reference system.

Corners are projected to a plane that preserves areas, where the area is that of the plane polygon. Corners of a
projected system are first transformed to longitude and latitude on the system's own datum, which needs no grids.

Reference: Snyder, Map Projections (USGS Professional Paper 1395), equations 3-12, 10-15 and 24-23.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..imaging.georeference import extra, to_geodetic

Floats = NDArray[np.float64]

STEP_M: Final = 100.0
"""Longer edges, in metres, are divided: a straight edge in one projection is a curve in another."""
STEPS: Final = 64
"""The number of steps along the longer side of a polygon above which edges are not divided further."""


def areas_m2(geometries: NDArray[np.object_], crs: Any) -> Floats:
    """Return the areas of polygons in square metres; see `geoparquet.geo_table`.

    Args:
        geometries: (N,) shapely Polygons and MultiPolygons in the coordinates of `crs`.
        crs: their pyproj CRS.

    Returns:
        (N,); NaN if a corner is not on the Earth. In a local (engineering) system, which is not tied to the
        Earth, areas in its plane.

    Raises:
        UsageError: positions in the CRS have no longitude and latitude, or PROJ cannot compute them.
    """
    shapely = extra("shapely")
    to_lonlat = to_geodetic(crs)
    if to_lonlat is None:  # a local system, which is not tied to the Earth
        unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
        return np.asarray(shapely.area(geometries) * unit**2)
    if to_lonlat.is_identity:
        return _of_degrees(shapely, geometries, crs)
    xmin, ymin, xmax, ymax = shapely.bounds(geometries).T
    unit = crs.axis_info[0].unit_conversion_factor * (
        crs.ellipsoid.semi_major_metre if crs.is_geographic else 1
    )
    step = np.maximum(STEP_M / unit, np.maximum(xmax - xmin, ymax - ymin) / STEPS)
    divided = shapely.segmentize(geometries, step)
    placed = shapely.transform(divided, to_lonlat.radians, interleaved=False)
    _, south, _, north = shapely.bounds(placed).T
    located = np.isfinite(shapely.bounds(placed)).all(axis=1)
    areas = np.full(len(geometries), np.nan)
    for pole, chosen in ((1.0, located & (south + north >= 0)), (-1.0, located & (south + north < 0))):
        plane = shapely.transform(
            placed[chosen], lambda lon, lat, pole=pole: _around_pole(lon, lat, pole, crs), interleaved=False
        )
        areas[chosen] = shapely.area(plane)
    return areas


def _eccentricity(crs: Any) -> float:
    a, b = crs.ellipsoid.semi_major_metre, crs.ellipsoid.semi_minor_metre
    return float(np.sqrt(1 - (b / a) ** 2))


def _of_degrees(shapely: Any, geometries: NDArray[np.object_], crs: Any) -> Floats:
    """Return the areas of polygons in longitude and latitude, whose edges are parallels and meridians.

    In a cylindrical projection these stay straight, and longitudes beyond 180 degrees stay where they are.
    """
    unit, a, e = crs.axis_info[0].unit_conversion_factor, crs.ellipsoid.semi_major_metre, _eccentricity(crs)

    def cylindrical(x: Floats, y: Floats) -> tuple[Floats, Floats]:
        sine = np.sin(np.clip(y * unit, -np.pi / 2, np.pi / 2))
        if e < 1e-9:
            return a * unit * x, a * sine
        q = (1 - e**2) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)
        return a * unit * x, a * q / 2

    return np.asarray(shapely.area(shapely.transform(geometries, cylindrical, interleaved=False)))


def _around_pole(lon: Floats, lat: Floats, pole: float, crs: Any) -> tuple[Floats, Floats]:
    """Return positions in Lambert's azimuthal equal-area projection around a pole, which has no cut at 180 degrees."""
    e = _eccentricity(crs)
    # Snyder's q of the pole less q of the latitude, rearranged so that the digits next to the pole are kept.
    rest = 2 * np.sin((np.pi / 2 - pole * lat) / 2) ** 2
    sine = 1 - rest
    q = 2 * rest
    if e > 1e-9:
        q = rest * (1 + e**2 * sine) / (1 - (e * sine) ** 2)
        q = q + (1 - e**2) * np.arctanh(e * rest / (1 - e**2 * sine)) / e
    distance = crs.ellipsoid.semi_major_metre * np.sqrt(q)
    return distance * np.sin(lon), -pole * distance * np.cos(lon)
