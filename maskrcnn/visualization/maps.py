"""Draw the maps of a report: the georeferenced rasters of a run, and the density of detections in them.

Rasters that are far apart get a map each, and an overview map shows their locations. Objects are counted in cells, or
drawn as dots if they are few: memory depends on the number of rasters, not on the number of objects.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import UsageError, plural
from ..formats.geojson_geopackage import crs_of
from ..imaging.georeference import extra, parse_crs
from ..io.parquet import read_table
from ..io.storage import Storage
from ..stats import HALF, Stats
from ..tiling.index import WindowIndex
from ..types import Category
from .basemap import SIDE, Floats, Frame, Place, World, area, places_of, ticks, transformer, turned, world_of
from .charts import Mark, number_text

COLUMNS: Final = 72
"""Columns of cells in a map; half as many in the maps of single categories."""
DOTS: Final = 1000
"""Up to this number, objects are drawn as dots."""
OUTLINES: Final = 500
"""Maximum number of rasters drawn in a map."""
PLACES: Final = 4
"""Maximum number of places with their own maps."""
CATEGORIES: Final = 6
"""Maximum number of categories with their own maps."""
CLASSES: Final = 5
"""Number of density classes."""

_SPARSE: Final = 1 / 16
_METRES: Final = 111_320.0  # in a degree of latitude


@dataclass(frozen=True, slots=True)
class Density:
    """The cells of one density class."""

    path: str
    strength: float
    text: str
    """The range of objects per cell."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Nearby rasters, as a circle."""

    x: float
    y: float
    radius: float
    number: str
    """Number of the map that shows them; empty if no map does."""
    title: str


@dataclass(frozen=True, slots=True)
class Map:
    """A map of `basemap.SIDE` units by `height`. Paths are SVG, in these units; marks in fractions of the sides."""

    title: str
    note: str
    height: float
    rasters: str = ""
    """Outlines of the processed rasters."""
    failed: str = ""
    """Outlines of the failed rasters."""
    densities: list[Density] = field(default_factory=list)
    dots: str = ""
    spots: list[Spot] = field(default_factory=list)
    x_marks: list[Mark] = field(default_factory=list)
    y_marks: list[Mark] = field(default_factory=list)
    scale: Mark | None = None
    """The scale bar: its length as a fraction of the width, and its text."""


@dataclass(frozen=True, slots=True)
class Maps:
    """The maps of a run."""

    note: str
    main: Map
    """The whole collection; if rasters are far apart, only their locations."""
    places: list[Map]
    """If rasters are far apart, some of the places."""
    categories: list[Map]
    """One per frequent category: the whole collection, or the first place."""


def draw_maps(
    storage: Storage, items: WindowIndex, images: Sequence[str], geo: Sequence[str], stats: Stats
) -> Maps | None:
    """Draw the maps of a run of windows; None if no image is georeferenced, or the extra `geo` is not installed.

    They show the objects with a score of at least 0.5, or all objects if no score is that high.

    Args:
        storage: of the run.
        items: the window index of the run.
        images: paths of its files below `images/`, in order.
        geo: paths of its files below `geo/`.
        stats: of the run.

    Raises:
        RunError: a part cannot be read.
    """
    try:
        world = world_of(items)
    except UsageError:
        return None
    if world is None:
        return None
    counts, lost = _outcomes(storage, images)
    found, failed = counts[world.rows], lost[world.rows]
    places = sorted(places_of(world), key=lambda place: -int(found[place.members].sum()))
    together = sum(area(place.box) for place in places) >= _SPARSE * area(world.box)
    min_score, often = _often(stats)
    boxes = [world.box] if together else [place.box for place in places[:PLACES]]
    sheets = [_Sheet(Frame.of(box), [category.id for category in often]) for box in boxes]
    for path in geo:
        for lonlat, labels in _objects(storage, path, world.cut, min_score):
            for sheet in sheets:
                sheet.add(lonlat, labels)
    titles = ["Detections"] if together else [f"Place {number}" for number in range(1, PLACES + 1)]
    maps = [_drawn(sheet, world, failed, title) for sheet, title in zip(sheets, titles, strict=False)]
    several = [
        _of_category(sheets[0], maps[0], slot, category.name if together else f"{category.name}, place 1")
        for slot, category in enumerate(often, 1)
        if len(often) > 1
    ]
    note = _note(world, items.n_images, min_score)
    if together:
        return Maps(note, maps[0], [], several)
    return Maps(note, _overview(world, places, found), maps, several)


def _often(stats: Stats) -> tuple[float, list[Category]]:
    """Return the minimum score to show, and the categories with the most objects that have it."""
    strong = stats.category_scores[:, HALF:].sum(axis=1)
    counts = strong if strong.any() else stats.category_instances
    order = np.argsort(-counts, kind="stable")[:CATEGORIES]
    return 0.5 if strong.any() else 0.0, [stats.categories[k] for k in order[counts[order] > 0]]


def _outcomes(storage: Storage, paths: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the number of objects of each image and whether it failed, in the order of the manifest."""
    counts, failed = [], []
    for path in paths:
        table = read_table(storage, path, ["n_instances", "status"])
        counts.append(table["n_instances"].to_numpy().astype(np.int64))
        failed.append(pc.equal(table["status"], "failed").to_numpy())
    return np.concatenate(counts), np.concatenate(failed)


def _objects(
    storage: Storage, path: str, cut: float, min_score: float
) -> Iterator[tuple[Floats, NDArray[np.int32]]]:
    """Yield the centers of the objects' boxes as longitude and latitude, (N, 2), and their categories."""
    to_lonlat = transformer(crs_of(storage, path).to_wkt())
    if to_lonlat is None:
        return
    with storage.open(path) as file, pq.ParquetFile(file) as parquet:
        # Not `iter_batches`, which fetches all columns of all row groups ahead.
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=["category_id", "score", "bbox"])
            sides = table["bbox"].combine_chunks().flatten()
            xmin, ymin, xmax, ymax = (side.to_numpy() for side in sides)
            lon, lat = to_lonlat.transform((xmin + xmax) / 2, (ymin + ymax) / 2)
            there = np.isfinite(lon) & np.isfinite(lat) & (table["score"].to_numpy() >= np.float32(min_score))
            labels = table["category_id"].to_numpy()[there]
            yield np.stack([turned(lon[there], cut), lat[there]], axis=1), labels


class _Sheet:
    """Counts for a map: of all objects, and of those of some categories."""

    def __init__(self, frame: Frame, categories: Sequence[int]) -> None:
        self.frame = frame
        self._ids = np.array(categories, np.int64)
        rows = 2 * math.ceil(frame.height * COLUMNS / SIDE / 2)
        self.counts = np.zeros((1 + len(categories), rows, COLUMNS), np.int64)
        self.dots: list[list[Floats]] = [[] for _ in self.counts]
        """Positions for each entry of `counts`, while they are few."""

    def add(self, lonlat: Floats, labels: NDArray[np.int32]) -> None:
        at = self.frame.place(lonlat)
        inside = (at >= 0).all(axis=1) & (at[:, 0] < SIDE) & (at[:, 1] < self.frame.height)
        at, labels = at[inside], labels[inside]
        column, row = (at * (COLUMNS / SIDE)).astype(np.int64).T
        cell = row * COLUMNS + column
        for slot in range(len(self.counts)):
            own = labels == self._ids[slot - 1] if slot else np.ones(len(at), np.bool_)
            counts = self.counts[slot]
            counts += np.bincount(cell[own], minlength=counts.size).reshape(counts.shape)
            if counts.sum() > DOTS:
                self.dots[slot].clear()
            else:
                self.dots[slot].append(at[own])


# Drawing


def _drawn(sheet: _Sheet, world: World, failed: NDArray[np.bool_], title: str) -> Map:
    """Return the map of a sheet."""
    frame = sheet.frame
    inside = frame.shown(world.boxes)
    some = inside[:: max(1, -(-len(inside) // OUTLINES))]
    left_out = f", of which {number_text(len(some))} are drawn" if len(some) < len(inside) else ""
    densities, dots, text = _marks(sheet, 0, coarser=1)
    return Map(
        title,
        f"{plural(len(inside), 'raster')}{left_out}. {text}",
        frame.height,
        _outlines(frame, world, some[~failed[some]]),
        _outlines(frame, world, some[failed[some]]),
        densities,
        dots,
        **_graticule(frame),
        scale=_scale(frame),
    )


def _of_category(sheet: _Sheet, whole: Map, slot: int, name: str) -> Map:
    """Return the map of a sheet with the objects of one category."""
    densities, dots, text = _marks(sheet, slot, coarser=2)
    return Map(name, text, whole.height, whole.rasters, whole.failed, densities, dots)


def _overview(world: World, places: Sequence[Place], found: NDArray[np.int64]) -> Map:
    """Return the map with the locations of the places."""
    frame = Frame.of(world.box, margin=1.2)
    objects = [int(found[place.members].sum()) for place in places]
    middles = frame.place(np.array([(place.box[:2] + place.box[2:]) / 2 for place in places]))
    spots = [
        Spot(
            x,
            y,
            6 + 18 * math.sqrt(count / max(*objects, 1)),
            str(number) if number <= PLACES else "",
            f"{plural(len(place.members), 'raster')}, {plural(count, 'object')}",
        )
        for number, (place, count, (x, y)) in enumerate(
            zip(places, objects, middles.tolist(), strict=True), 1
        )
    ]
    follow = f"; maps of the {PLACES} with the most objects follow" if len(places) > PLACES else ""
    note = f"{plural(len(places), 'place')}; circles are scaled by the number of objects{follow}"
    return Map("Raster locations", note, frame.height, spots=spots, **_graticule(frame))


def _outlines(frame: Frame, world: World, rasters: NDArray[np.intp]) -> str:
    shapely = extra("shapely")
    paths = []
    for index in rasters.tolist():
        line = shapely.linestrings(frame.place(world.outline(index)))
        corners = shapely.get_coordinates(shapely.simplify(line, 0.2, preserve_topology=False))
        paths.append("M" + "L".join(map(_point, corners.tolist())) + "z")
    return "".join(paths)


def _point(at: Sequence[float]) -> str:
    return f"{at[0]:.1f} {at[1]:.1f}"


def _marks(sheet: _Sheet, slot: int, coarser: int) -> tuple[list[Density], str, str]:
    """Return cells, or dots if objects are few, and a description."""
    counts = sheet.counts[slot]
    total = int(counts.sum())
    if total <= DOTS:
        points = np.concatenate([np.zeros((0, 2)), *sheet.dots[slot]])
        dots = "".join(f"M{_point(at)}h0" for at in points.tolist())
        return [], dots, f"{plural(total, 'object')}, one dot per object" if total else "No objects"
    rows, columns = counts.shape
    counts = counts.reshape(rows // coarser, coarser, columns // coarser, coarser).sum(axis=(1, 3))
    most = int(counts.max())
    ends = sorted({round(most ** (step / CLASSES)) for step in range(1, CLASSES + 1)})
    classes = np.where(counts > 0, np.searchsorted(ends, counts), -1)
    densities = [
        Density(
            _cells(classes == number, coarser * SIDE / COLUMNS),
            (number + 1) / len(ends),
            _range_text(ends[number - 1] + 1 if number else 1, end),
        )
        for number, end in enumerate(ends)
    ]
    return densities, "", f"{plural(total, 'object')}, at most {number_text(most)} per cell"


def _cells(taken: NDArray[np.bool_], side: float) -> str:
    """Return cells as an SVG path, with one rectangle for adjacent cells of a row."""
    edges = np.diff(np.pad(taken, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    ends = zip(np.argwhere(edges == 1).tolist(), np.argwhere(edges == -1).tolist(), strict=True)
    return "".join(
        f"M{_point((left * side, row * side))}H{right * side:.1f}V{(row + 1) * side:.1f}H{left * side:.1f}z"
        for (row, left), (_, right) in ends
    )


def _graticule(frame: Frame) -> dict[str, Any]:
    return {
        "x_marks": [Mark(*tick) for tick in ticks(frame.west, frame.east, math.inf, "EW")],
        "y_marks": [Mark(1 - at, text) for at, text in ticks(frame.south, frame.north, 90, "NS")],
    }


def _scale(frame: Frame) -> Mark | None:
    """Return a scale bar of a round length; None if the scale varies too much across the map."""
    if frame.north - frame.south > 10:
        return None
    metres = frame.width * _METRES
    power = 10.0 ** math.floor(math.log10(metres / 5))
    length = max(each * power for each in (1, 2, 5) if each * power <= metres / 5)
    return Mark(length / metres, f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m")


# Texts


def _note(world: World, n_images: int, min_score: float) -> str:
    """Return a description: the number of georeferenced rasters, their systems, and the images without."""
    names: Counter[str] = Counter()
    for crs_wkt, count in Counter(image.crs_wkt for image in world.images).items():
        names[parse_crs(crs_wkt).name] += count
    listed = [name for name, _ in names.most_common(3)]
    if len(names) > 3:
        listed.append(plural(len(names) - 3, "other"))
    systems = " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
    nowhere = n_images - len(world.images)
    without = f" {plural(nowhere, 'image')} without georeferencing." if nowhere else ""
    rasters = plural(len(world.images), "raster")
    shown = " Objects with a score of 0.5 or more are shown." if min_score else ""
    return f"{rasters} in {systems}, drawn in longitude and latitude.{shown}{without}"


def _range_text(low: int, high: int) -> str:
    return number_text(high) if low == high else f"{number_text(low)} to {number_text(high)}"
