"""Locate rasters on Earth: their outlines as longitude and latitude, groups of nearby rasters, and the frame of a map.

Degrees on WGS 84. The world is cut at a longitude without rasters, so that a collection around 180 degrees is not
divided: longitudes begin there, and may exceed 180.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..imaging.geometry import ImageHeader
from ..imaging.georeference import extra, parse_crs
from ..tiling.index import WindowIndex

SIDE: Final = 1000
"""Width of a map, in units."""
_HEIGHTS: Final = (420.0, 700.0)  # units, minimum and maximum
_STEPS: Final = 16  # along each side of a raster
_CELLS: Final = 64  # per side, of the grid in which nearby rasters are grouped

Floats = NDArray[np.float64]


# Rasters


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """The N georeferenced rasters of a run."""

    images: list[ImageHeader]
    rows: NDArray[np.int64]
    """(N,) rows of the manifest."""
    boxes: Floats
    """(N, 4) west, south, east, north; each west is less than 360 degrees from `cut`."""
    cut: float
    """The longitude at which the world is cut."""

    @property
    def box(self) -> Floats:
        """West, south, east and north of all rasters."""
        return _around(self.boxes)

    def outline(self, index: int) -> Floats:
        """Return the border of a raster, (P, 2) longitude and latitude."""
        ring = _ring(self.images[index])
        if ring is None:
            raise ValueError(index)
        ring[:, 0] += self.boxes[index, 0] - ring[:, 0].min()
        return ring


def world_of(items: WindowIndex) -> World | None:
    """Return the georeferenced rasters of a run; None if no image is georeferenced.

    Raises:
        UsageError: the extra `geo` is missing.
    """
    images, rows, boxes = [], [], []
    for row in range(items.n_images):
        image = items.sized(row)
        ring = _ring(image)
        if ring is not None:
            images.append(image)
            rows.append(row)
            boxes.append([*ring.min(axis=0), *ring.max(axis=0)])
    if not images:
        return None
    around = np.array(boxes)
    cut = cut_of(around[:, 0], around[:, 2])
    around[:, [0, 2]] += (turned(around[:, 0], cut) - around[:, 0])[:, None]
    return World(images, np.array(rows, np.int64), around, cut)


def turned(lon: Floats, cut: float) -> Floats:
    """Return longitudes in the range from `cut` to `cut` + 360 degrees."""
    return np.asarray(cut + (lon - cut) % 360)


def cut_of(west: Floats, east: Floats) -> float:
    """Return the middle of the widest range of longitudes without rasters; without such a range, the west of a raster.

    >>> cut_of(np.array([170.0, -170.0]), np.array([180.0, -160.0]))
    5.0
    """
    starts = west % 360
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], (starts + np.minimum(east - west, 360))[order]
    # The furthest end of the ranges that begin before, including those of the previous revolution.
    reached = np.maximum(np.maximum.accumulate(stops), stops.max() - 360)
    gaps = np.append(starts[1:], starts[0] + 360) - reached
    widest = int(np.argmax(gaps))
    if gaps[widest] <= 0:
        return float(west[np.argmax(east - west)])
    return float((reached[widest] + gaps[widest] / 2 + 180) % 360 - 180)


def _ring(image: ImageHeader) -> Floats | None:
    """Return a raster's border in one piece, (P, 2); None if it is not georeferenced."""
    if image.crs_wkt is None or image.transform is None or image.width is None or image.height is None:
        return None
    to_lonlat = transformer(image.crs_wkt)
    if to_lonlat is None:
        return None
    side = np.arange(_STEPS) / _STEPS
    column = np.concatenate([side, np.ones(_STEPS), 1 - side, np.zeros(_STEPS), [0]]) * image.width
    row = np.concatenate([np.zeros(_STEPS), side, np.ones(_STEPS), 1 - side, [0]]) * image.height
    a, b, c, d, e, f = image.transform
    lon, lat = to_lonlat.transform(a * column + b * row + c, d * column + e * row + f)
    there = np.isfinite(lon) & np.isfinite(lat)
    if there.sum() < 3:
        return None
    lon, lat = lon[there], lat[there]
    lon[1:] -= 360 * np.cumsum(np.round(np.diff(lon) / 360))
    if abs(lon[-1] - lon[0]) > 180:  # around a pole
        pole = math.copysign(90.0, lat.mean())
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    return np.stack([lon, np.clip(lat, -90, 90)], axis=1)


@lru_cache(64)
def transformer(crs_wkt: str) -> Any:
    """Return the transformer from a CRS to longitude and latitude; None if PROJ does not know the CRS.

    Raises:
        UsageError: the extra `geo` is missing.
    """
    pyproj = extra("pyproj")
    try:
        return pyproj.Transformer.from_crs(parse_crs(crs_wkt), "EPSG:4326", always_xy=True)
    except (UsageError, pyproj.exceptions.ProjError):
        return None


# Groups of nearby rasters


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A group of nearby rasters."""

    box: Floats
    """West, south, east, north."""
    members: NDArray[np.intp]
    """Indices of its rasters in the world."""


def places_of(world: World) -> list[Place]:
    """Return the groups of rasters whose cells touch, in a grid of 64 by 64 cells around all of them."""
    west, south, east, north = world.box
    scale = _CELLS / np.maximum([east - west, north - south] * 2, 1e-12)
    cells = ((world.boxes - [west, south, west, south]) * scale).astype(np.int64).clip(0, _CELLS - 1) + 1
    taken = np.zeros((_CELLS + 2, _CELLS + 2), np.bool_)
    for left, bottom, right, top in cells.tolist():
        taken[bottom : top + 1, left : right + 1] = True
    # Propagate the highest number among neighbors until nothing changes.
    number = np.where(taken, np.arange(taken.size).reshape(taken.shape), 0)
    while True:
        wider = np.maximum.reduce([number, *(np.roll(number, by, axis) for by in (-1, 1) for axis in (0, 1))])
        wider = np.maximum.reduce([wider, *(np.roll(wider, by, axis) for by in (-1, 1) for axis in (0, 1))])
        wider[~taken] = 0
        if (wider == number).all():
            break
        number = wider
    own = number[cells[:, 1], cells[:, 0]]
    groups = [np.flatnonzero(own == value) for value in np.unique(own)]
    return [Place(_around(world.boxes[members]), members) for members in groups]


def area(box: Floats) -> float:
    """Return the area of a box in square degrees."""
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _around(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


# A map


@dataclass(frozen=True, slots=True)
class Frame:
    """The extent of a map, in an equirectangular projection that is true to scale along its middle."""

    west: float
    south: float
    east: float
    north: float

    @classmethod
    def of(cls, box: Floats, margin: float = 1.06) -> "Frame":
        """Return a frame around a box, enlarged by `margin`, with a shape that fits a page."""
        west, south, east, north = box.tolist()
        shrink = _shrink(south, north)
        width, height = max((east - west) * shrink, 1e-9) * margin, max(north - south, 1e-9) * margin
        least, most = (limit / SIDE for limit in _HEIGHTS)
        width, height = max(width, height / most), max(height, width * least)
        x, y = (west + east) / 2, (south + north) / 2
        return cls(x - width / shrink / 2, y - height / 2, x + width / shrink / 2, y + height / 2)

    @property
    def height(self) -> float:
        """Height of the map, in units."""
        return SIDE * (self.north - self.south) / self.width

    @property
    def width(self) -> float:
        """Width of the map in degrees of latitude, which have constant length."""
        return (self.east - self.west) * _shrink(self.south, self.north)

    def place(self, lonlat: Floats) -> Floats:
        """Return the positions of points, (P, 2) units from the top left."""
        x = (lonlat[:, 0] - self.west) / (self.east - self.west) * SIDE
        y = (self.north - lonlat[:, 1]) / (self.north - self.south) * self.height
        return np.stack([x, y], axis=1)

    def shown(self, boxes: Floats) -> NDArray[np.intp]:
        """Return the indices of the boxes that intersect the frame."""
        west, south, east, north = boxes.T
        beside = (east < self.west) | (west > self.east) | (north < self.south) | (south > self.north)
        return np.flatnonzero(~beside)


def _shrink(south: float, north: float) -> float:
    """Return the length of a degree of longitude in degrees of latitude, midway between two; at least 0.1."""
    return max(math.cos(math.radians((south + north) / 2)), 0.1)


def ticks(low: float, high: float, limit: float, signs: Sequence[str]) -> list[tuple[float, str]]:
    """Return at most eight round values between two degrees, each as a fraction of the way and as text.

    Args:
        low: degrees.
        high: degrees.
        limit: values beyond it are not marked.
        signs: suffixes of values above zero and below zero.
    """
    steps = [*(each * 10.0**power for power in range(-9, 1) for each in (1, 2, 5)), 10.0, 20.0, 30.0, 45.0]
    step = next((each for each in steps if (high - low) / each <= 7), 90.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    marks = []
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        value = number * step
        if abs(value) <= limit + 1e-9:
            shown = (value + 180) % 360 - 180
            digits = f"{abs(shown):.{decimals}f}"
            sign = "" if float(digits) in {0.0, 180.0} else signs[shown < 0]
            marks.append(((value - low) / (high - low), f"{digits}°{sign}"))
    return marks
