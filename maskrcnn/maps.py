"""Where the rasters of a run lie on Earth, and how densely what was found lies in them: the report's maps.

Places are longitudes and latitudes on WGS 84, drawn on a plate carrée that is true to scale along its middle. The
world is cut where no raster lies, so that a collection around 180 degrees stays together. Rasters that lie far apart
get a map each, beside one that shows where these are. Objects are counted in cells, or drawn as dots where they are
few; memory follows from the number of rasters, never from that of objects.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .charts import Mark, number_text
from .errors import UsageError
from .geo import extra, parse_crs
from .items import Items, Sized
from .storage import Storage
from .types import Category
from .vector import crs_of

SIDE: Final = 1000
"""Units that a map is wide."""
COLUMNS: Final = 72
"""Of cells, in a map; half as many in those of single categories."""
DOTS: Final = 1000
"""Up to so many objects are drawn as dots."""
OUTLINES: Final = 2000
"""At most so many rasters are drawn in one map."""
PLACES: Final = 4
CATEGORIES: Final = 6
CLASSES: Final = 5
"""Of density."""

_STEPS: Final = 16  # along each side of a raster
_HEIGHTS: Final = (420.0, 700.0)  # units
_SPARSE: Final = 1 / 16
_ROWS_AT_ONCE: Final = 65_536
_METRES: Final = 111_320.0  # of a degree of latitude

Floats = NDArray[np.float64]


# What is drawn


@dataclass(frozen=True, slots=True)
class Density:
    """The cells that hold some number of objects, as an SVG path."""

    path: str
    strength: float
    text: str
    """How many objects a cell holds."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Rasters that lie together, as a circle."""

    x: float
    y: float
    radius: float
    number: str
    """Of the map that shows them; empty for none."""
    title: str


@dataclass(frozen=True, slots=True)
class Map:
    """A map of `SIDE` units by `height`; paths are in these, marks in shares of the sides."""

    title: str
    note: str
    height: float
    rasters: str = ""
    failed: str = ""
    densities: list[Density] = field(default_factory=list)
    dots: str = ""
    spots: list[Spot] = field(default_factory=list)
    x_marks: list[Mark] = field(default_factory=list)
    y_marks: list[Mark] = field(default_factory=list)
    scale: Mark | None = None
    """How long a bar is, as a share of the width, and what that means."""


@dataclass(frozen=True, slots=True)
class Maps:
    """The maps of a run."""

    note: str
    main: list[Map]
    """The whole collection; or where its rasters lie, and some of the places."""
    categories: list[Map]
    """The first of these again, or the first place: each of the most frequent categories."""


def draw_maps(
    storage: Storage,
    items: Items,
    parts: Sequence[str],
    found: Mapping[int, int],
    categories: Sequence[tuple[Category, int]],
    failed: frozenset[int] = frozenset(),
) -> Maps | None:
    """Draw the maps of a run of windows; None where no image lies on Earth, or the extra `geo` is missing.

    Args:
        storage: of the run.
        items: of the run.
        parts: paths of its files below `geo/`.
        found: of rows of the manifest, how many objects were found; where there is none, zero.
        categories: each with how many objects it has in the run.
        failed: rows of the manifest of which no window could be processed.

    Raises:
        RunError: a part cannot be read.
    """
    try:
        extra("pyproj")
    except UsageError:
        return None
    world = _world(items, found, failed)
    if world is None:
        return None
    places = _places(world)
    together = len(places) == 1 or sum(place.area for place in places) > _SPARSE * _area(world.box)
    frames = [_Frame.of(world.box)] if together else [_Frame.of(place.box) for place in places[:PLACES]]
    shown = [category for category, count in sorted(categories, key=lambda each: -each[1]) if count]
    sheets = [_Sheet(frame, [category.id for category in shown[:CATEGORIES]]) for frame in frames]
    for path in parts:
        for lonlat, labels in _objects(storage, path, world.cut):
            for sheet in sheets:
                sheet.add(lonlat, labels)
    main = [
        _drawn(sheet, world, "What was found" if together else f"Place {number}")
        for number, sheet in enumerate(sheets, 1)
    ]
    if not together:
        main.insert(0, _overview(world, places))
    several = [
        _of_category(sheets[0], world, slot, category.name)
        for slot, category in enumerate(shown[:CATEGORIES], 1)
        if len(shown) > 1
    ]
    return Maps(_note(world, len(places), together=together), main, several)


# Rasters on the globe


@dataclass(frozen=True, slots=True, eq=False)
class _World:
    """The N rasters that lie on Earth."""

    images: list[Sized]
    boxes: Floats
    """(N, 4) west, south, east, north, degrees; from `cut` on."""
    cut: float
    """The longitude at which the world is cut, degrees."""
    found: NDArray[np.int64]
    """(N,) objects."""
    failed: NDArray[np.bool_]
    """(N,)"""
    n_images: int

    @property
    def box(self) -> Floats:
        return _around(self.boxes)


def _around(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _area(box: Floats) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _world(items: Items, found: Mapping[int, int], failed: frozenset[int]) -> _World | None:
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
    cut = _cut(around[:, 0], around[:, 2])
    around[:, [0, 2]] += (_turned(around[:, 0], cut) - around[:, 0])[:, None]
    return _World(
        images,
        around,
        cut,
        np.array([found.get(row, 0) for row in rows], np.int64),
        np.array([row in failed for row in rows]),
        items.n_images,
    )


def _turned(lon: Floats, cut: float) -> Floats:
    """Return longitudes from `cut` to 360 degrees more."""
    return np.asarray(cut + (lon - cut) % 360)


def _cut(west: Floats, east: Floats) -> float:
    """Return the middle of the widest range of longitudes without a raster; where there is none, a raster's west."""
    starts = west % 360
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], (starts + np.minimum(east - west, 360))[order]
    # What reaches furthest, of those that begin before; those of the turn before too.
    reached = np.maximum(np.maximum.accumulate(stops), stops.max() - 360)
    gaps = np.append(starts[1:], starts[0] + 360) - reached
    widest = int(np.argmax(gaps))
    if gaps[widest] <= 0:
        return float(west[np.argmax(east - west)])
    return float((reached[widest] + gaps[widest] / 2 + 180) % 360 - 180)


def _ring(image: Sized) -> Floats | None:
    """Return a raster's border as longitudes and latitudes, (P, 2), in one piece; None where it lies nowhere."""
    if image.crs_wkt is None or image.transform is None or image.width is None or image.height is None:
        return None
    side = np.arange(_STEPS) / _STEPS
    column = np.concatenate([side, np.ones(_STEPS), 1 - side, np.zeros(_STEPS), [0]]) * image.width
    row = np.concatenate([np.zeros(_STEPS), side, np.ones(_STEPS), 1 - side, [0]]) * image.height
    a, b, c, d, e, f = image.transform
    try:
        transformer = _transformer(image.crs_wkt)
    except UsageError:
        return None
    lon, lat = transformer.transform(a * column + b * row + c, d * column + e * row + f)
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
def _transformer(crs_wkt: str) -> Any:
    return extra("pyproj").Transformer.from_crs(parse_crs(crs_wkt), "EPSG:4326", always_xy=True)


# Rasters that lie together


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Rasters that lie together."""

    box: Floats
    rasters: int
    found: int

    @property
    def area(self) -> float:
        return _area(self.box)


def _places(world: _World) -> list[_Place]:
    """Return groups of rasters, most objects first: those whose cells touch, of 64 by 64 around all of them."""
    n = 64
    west, south, east, north = world.box
    scale = n / np.maximum([east - west, north - south] * 2, 1e-12)
    at = ((world.boxes - [west, south, west, south]) * scale).astype(np.int64).clip(0, n - 1)
    taken = np.zeros((n + 2, n + 2), np.bool_)
    for left, bottom, right, top in at.tolist():
        taken[bottom + 1 : top + 2, left + 1 : right + 2] = True
    # The greatest number around wins, until nothing changes.
    number = np.where(taken, np.arange(taken.size).reshape(taken.shape), 0)
    while True:
        wider = np.zeros_like(number)
        for down in (-1, 0, 1):
            for aside in (-1, 0, 1):
                wider = np.maximum(wider, np.roll(number, (down, aside), (0, 1)))
        wider[~taken] = 0
        if (wider == number).all():
            break
        number = wider
    own = number[at[:, 1] + 1, at[:, 0] + 1]
    places = []
    for value in np.unique(own):
        members = own == value
        box = _around(world.boxes[members])
        places.append(_Place(box, int(members.sum()), int(world.found[members].sum())))
    return sorted(places, key=lambda place: (-place.found, -place.rasters, *place.box.tolist()))


# A map's grid


@dataclass(frozen=True, slots=True)
class _Frame:
    """The rectangle of longitudes and latitudes of a map."""

    west: float
    south: float
    east: float
    north: float

    @classmethod
    def of(cls, box: Floats) -> "_Frame":
        """Return the frame of a map around a box, of a shape that fits a page."""
        west, south, east, north = box.tolist()
        shrink = max(math.cos(math.radians((south + north) / 2)), 0.1)
        width, height = max((east - west) * shrink, 1e-9) * 1.06, max(north - south, 1e-9) * 1.06
        least, most = (limit / SIDE for limit in _HEIGHTS)
        width, height = max(width, height / most), max(height, width * least)
        x, y = (west + east) / 2, (south + north) / 2
        return cls(x - width / shrink / 2, y - height / 2, x + width / shrink / 2, y + height / 2)

    @property
    def shrink(self) -> float:
        """A degree of longitude, in degrees of latitude."""
        return max(math.cos(math.radians((self.south + self.north) / 2)), 0.1)

    @property
    def height(self) -> float:
        """Units."""
        return SIDE * (self.north - self.south) / ((self.east - self.west) * self.shrink)

    def place(self, lonlat: Floats) -> Floats:
        """Return where points are, (P, 2) units from the top left."""
        x = (lonlat[:, 0] - self.west) / (self.east - self.west) * SIDE
        y = (self.north - lonlat[:, 1]) / (self.north - self.south) * self.height
        return np.stack([x, y], axis=1)


class _Sheet:
    """What a map counts: all objects, and those of some categories."""

    def __init__(self, frame: _Frame, categories: Sequence[int]) -> None:
        self.frame = frame
        self._ids = np.array(categories, np.int64)
        cell = SIDE / COLUMNS
        rows = 2 * math.ceil(frame.height / cell / 2)
        self.counts = np.zeros((1 + len(categories), rows, COLUMNS), np.int64)
        self.dots: list[list[Floats]] = [[] for _ in self.counts]
        """Of each, as long as they are few."""

    def add(self, lonlat: Floats, labels: NDArray[np.int32]) -> None:
        at = self.frame.place(lonlat)
        inside = (at >= 0).all(axis=1) & (at[:, 0] < SIDE) & (at[:, 1] < self.frame.height)
        at, labels = at[inside], labels[inside]
        cell = (at / (SIDE / COLUMNS)).astype(np.int64)
        for slot, counts in enumerate(self.counts):
            own = labels == self._ids[slot - 1] if slot else np.ones(len(at), np.bool_)
            flat = np.bincount(cell[own, 1] * COLUMNS + cell[own, 0], minlength=counts.size)
            counts += flat.reshape(counts.shape)
            if counts.sum() > DOTS:
                self.dots[slot].clear()
            else:
                self.dots[slot].append(at[own])


def _objects(storage: Storage, path: str, cut: float) -> Iterator[tuple[Floats, NDArray[np.int32]]]:
    """Yield the middle of objects' boxes as longitude and latitude, (N, 2), and their categories."""
    transformer = _transformer(crs_of(storage, path).to_wkt())
    with storage.open(path) as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=["category_id", "bbox"]):
            xmin, ymin, xmax, ymax = (side.to_numpy() for side in batch["bbox"].flatten())
            lon, lat = transformer.transform((xmin + xmax) / 2, (ymin + ymax) / 2)
            there = np.isfinite(lon) & np.isfinite(lat)
            yield (
                np.stack([_turned(lon[there], cut), lat[there]], axis=1),
                batch["category_id"].to_numpy()[there],
            )


# Drawn


def _drawn(sheet: _Sheet, world: _World, title: str) -> Map:
    """Return the map of a sheet."""
    frame = sheet.frame
    rasters, failed, n_drawn, n_inside = _footprints(frame, world)
    total = int(sheet.counts[0].sum())
    left_out = f"; {number_text(n_drawn)} of them are drawn" if n_drawn < n_inside else ""
    return (
        Map(
            title,
            f"{_counted(n_inside, 'raster')}{left_out}. {_said(sheet, 0, 1)}",
            frame.height,
            rasters,
            failed,
            *_marks_of(sheet, 0, 1),
            [],
            *_ticks(frame),
            _scale(frame),
        )
        if total or n_inside
        else Map(title, "", frame.height)
    )


def _of_category(sheet: _Sheet, world: _World, slot: int, name: str) -> Map:
    rasters, failed, _, _ = _footprints(sheet.frame, world)
    return Map(name, _said(sheet, slot, 2), sheet.frame.height, rasters, failed, *_marks_of(sheet, slot, 2))
