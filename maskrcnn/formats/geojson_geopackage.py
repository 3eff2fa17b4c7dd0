"""Export a run's polygons as GeoJSON and GeoPackage.

GeoJSON has one reference system, longitude and latitude on WGS 84 (RFC 7946): polygons are transformed corner by
corner, and cut where they cross 180 degrees. GeoPackage keeps the reference system of each raster, in a layer
of its own.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import UsageError
from ..imaging.georeference import extra
from ..io.storage import Storage
from ..io.temporary import temporary_folder

DECIMALS: Final = 9
"""The number of decimals of degrees in GeoJSON: a tenth of a millimetre."""
STEPS: Final = 100
"""The number of steps along the longer side of a polygon that is cut."""
_GRID: Final = 10.0**-DECIMALS
COLUMNS: Final = ("image_id", "instance", "category_id", "category", "score", "area_m2", "geometry")
_ROWS_AT_ONCE: Final = 8192


def export_vector(run: Storage, parts: Sequence[str], dest: str, form: Literal["geojson", "gpkg"]) -> int:
    """Write `instances.geojson` or `instances.gpkg` below `dest`, and return the number of objects.

    Both hold the columns of `geoparquet.GEO`, but for `bbox`. An object that cannot be transformed to WGS 84 has a null
    geometry in GeoJSON. Layers of a GeoPackage are named `instances`, or where the run has several
    reference systems `instances_1`, … in the order of the parts; their geometries are MultiPolygons.

    Args:
        run: the run's directory.
        parts: paths of its files below `geo/`, in order.
        dest: path or URL of an empty folder or prefix.
        form: which of the two.

    Raises:
        UsageError: `dest` is not empty, the run has no polygons, or the extra is not installed.
        RunError: something cannot be read or stored.
    """
    if not parts:
        raise UsageError(f"{run.url} has no polygons: segment georeferenced rasters")
    destination = Storage(dest)
    if destination.list():
        raise UsageError(f"{dest} is not empty: export to a folder or prefix of its own")
    name = f"instances.{form}"
    with temporary_folder() as folder:
        local = folder / name
        count = (_write_geojson if form == "geojson" else _write_gpkg)(run, parts, local)
        destination.put_file(name, local)
    return count


def _batches(run: Storage, path: str) -> Iterator[pa.RecordBatch]:
    with run.open(path) as file, pq.ParquetFile(file) as parquet:
        yield from parquet.iter_batches(_ROWS_AT_ONCE, columns=list(COLUMNS))


def crs_of(run: Storage, path: str) -> Any:
    """Return the pyproj CRS of a GeoParquet file of the run."""
    with run.open(path) as file, pq.ParquetFile(file) as parquet:
        geo = json.loads(parquet.schema_arrow.metadata[b"geo"])
    return extra("pyproj").CRS.from_json_dict(geo["columns"]["geometry"]["crs"])


# GeoPackage


def _write_gpkg(run: Storage, parts: Sequence[str], local: Path) -> int:
    """Write one layer for each reference system."""
    shapely, pyogrio = extra("shapely"), extra("pyogrio")
    layers: list[tuple[Any, list[str]]] = []
    for path in parts:
        crs = crs_of(run, path)
        same = [paths for known, paths in layers if known == crs]
        if same:
            same[0].append(path)
        else:
            layers.append((crs, [path]))
    count = 0

    def rows(paths: Sequence[str]) -> Iterator[pa.RecordBatch]:
        nonlocal count
        for path in paths:
            for batch in _batches(run, path):
                multi = _as_multi(shapely, shapely.from_wkb(batch["geometry"].to_numpy(zero_copy_only=False)))
                count += len(batch)
                yield batch.set_column(
                    batch.num_columns - 1, schema.field("geometry"), pa.array(multi, pa.binary())
                )

    for number, (crs, paths) in enumerate(layers, 1):
        with run.open(paths[0]) as file:
            schema = pq.read_schema(file)
        schema = pa.schema([schema.field(name) for name in COLUMNS])
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(schema, rows(paths)),
            local,
            layer="instances" if len(layers) == 1 else f"instances_{number}",
            driver="GPKG",
            geometry_name="geometry",
            geometry_type="MultiPolygon",
            crs=crs.to_wkt(),
        )
    return count


def _as_multi(shapely: Any, geometries: NDArray[np.object_]) -> list[bytes]:
    """Return WKB of MultiPolygons, as a layer has one type."""
    polygons, owner = shapely.get_parts(geometries, return_index=True)
    wkb: list[bytes] = shapely.to_wkb(shapely.multipolygons(polygons, indices=owner)).tolist()
    return wkb


# GeoJSON


def _write_geojson(run: Storage, parts: Sequence[str], local: Path) -> int:
    """Write one feature per line."""
    shapely = extra("shapely")
    count = 0
    with local.open("w", encoding="utf-8", newline="\n") as text:
        text.write('{"type":"FeatureCollection","features":[')
        for path in parts:
            crs = crs_of(run, path)
            for batch in _batches(run, path):
                wkb = batch["geometry"].to_numpy(zero_copy_only=False)
                places = to_wgs84(shapely.from_wkb(wkb), crs)
                properties = batch.drop_columns(["geometry"])
                # The digits of the float32, not those of the nearest float64.
                score = [float(str(value)) for value in batch["score"].to_numpy()]
                for row, value, place in zip(properties.to_pylist(), score, places, strict=True):
                    geometry = "null" if place is None else shapely.to_geojson(place)
                    said = json.dumps(row | {"score": value}, ensure_ascii=False)
                    text.write(",\n" if count else "\n")
                    text.write(f'{{"type":"Feature","properties":{said},"geometry":{geometry}}}')
                    count += 1
        text.write("\n]}\n")
    return count


def to_wgs84(geometries: NDArray[np.object_], crs: Any) -> NDArray[np.object_]:
    """Return polygons as RFC 7946 requires: longitude and latitude, exterior rings counterclockwise, cut at 180.

    Edges are straight between their corners; a projected polygon that is cut gets more corners. A polygon
    around a pole is extended to it. One that cannot be transformed to WGS 84 becomes None.

    Args:
        geometries: (N,) valid Polygons and MultiPolygons.
        crs: their pyproj CRS.
    """
    shapely, pyproj = extra("shapely"), extra("pyproj")
    try:
        transformer = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    except pyproj.exceptions.ProjError:  # a local engineering system, which is not tied to the globe
        return np.full(len(geometries), None, np.object_)
    degrees = np.rad2deg(crs.axis_info[0].unit_conversion_factor) if crs.is_geographic else None

    def lonlat(
        x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        lon, lat = transformer.transform(x, y)
        if degrees is not None:
            # PROJ wraps longitudes; the raster's own are kept until they are cut.
            lon = lon + 360 * np.round((x * degrees - lon) / 360)
        return lon, np.clip(lat, -90, 90)

    found = shapely.transform(geometries, lonlat, interleaved=False)
    finite = np.isfinite(shapely.bounds(found)).all(axis=1)
    found[~finite] = None
    for index in np.flatnonzero(_crossing(shapely, found, wraps=degrees is None)):
        if degrees is None:
            # Small steps along the edges distinguish a jump where PROJ wraps from a wide polygon.
            xmin, ymin, xmax, ymax = shapely.bounds(geometries[index])
            steps = shapely.segmentize(geometries[index], max(xmax - xmin, ymax - ymin) / STEPS)
            found[index] = shapely.transform(steps, lonlat, interleaved=False)
        found[index] = _cut(shapely, found[index], wraps=degrees is None)
    found = shapely.transform(found, lambda corners: np.round(corners, DECIMALS))
    return np.asarray(shapely.orient_polygons(found, exterior_cw=False))


def _crossing(shapely: Any, geometries: NDArray[np.object_], *, wraps: bool) -> NDArray[np.bool_]:
    """Return which polygons cross 180 degrees: their bounds exceed it or, where PROJ wraps, their longitudes jump."""
    west, _, east, _ = shapely.bounds(geometries).T
    if wraps:
        return np.asarray(east - west > 180)
    return np.asarray((west < -180) | (east > 180))


def _cut(shapely: Any, geometry: Any, *, wraps: bool) -> Any:
    """Return a geometry cut at 180 degrees, ring by ring: holes may lie a turn away from their shell."""
    parts = []
    for polygon in shapely.get_parts(geometry):
        rings = [_within_globe(shapely, ring, wraps=wraps) for ring in shapely.get_rings(polygon)]
        parts.append(shapely.difference(rings[0], shapely.union_all(rings[1:]), grid_size=_GRID))
    areas = [part for part in shapely.get_parts(parts) if part.geom_type == "Polygon"]
    whole = shapely.union_all(areas, grid_size=_GRID)
    return shapely.transform(whole, lambda corners: np.clip(corners, (-180, -90), (180, 90)))


def _within_globe(shapely: Any, ring: Any, *, wraps: bool) -> Any:
    """Return what a ring encloses, each turn of the globe moved to -180 … 180 degrees."""
    corners = shapely.get_coordinates(ring)
    if wraps:
        # Whole turns, so that a closed ring stays closed to the last digit, which np.unwrap does not guarantee.
        corners[1:, 0] -= 360 * np.cumsum(np.round(np.diff(corners[:, 0]) / 360))
    first, last = corners[0, 0], corners[-1, 0]
    if abs(last - first) > 180:  # around a pole
        pole = np.copysign(90.0, corners[:, 1].mean())
        corners = np.concatenate([corners, [[last, pole], [first, pole]]])
    inside = shapely.polygons(corners)
    west, east = corners[:, 0].min(), corners[:, 0].max()
    turns = []
    for turn in range(int(np.floor((west + 180) / 360)), int(np.ceil((east + 180) / 360))):
        strip = shapely.intersection(inside, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90))
        # An outline may also touch the meridian in a line or a point.
        areas = [part for part in shapely.get_parts(strip) if part.geom_type == "Polygon"]
        turns += [
            shapely.transform(area, lambda corners, turn=turn: corners - (360 * turn, 0)) for area in areas
        ]
    # On a grid, on which the borders that two turns share are identical to the last digit.
    return shapely.union_all(turns, grid_size=_GRID)
