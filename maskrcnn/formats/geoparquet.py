"""Convert masks to polygons in the coordinates of their raster, and write them as GeoParquet 1.1.

A polygon follows the borders of its mask's pixels: rasterized on the raster's grid it gives the same pixels. Corners
are transformed by the full affine, so rotated and south-up rasters are handled the same way. Coordinates stay in the
raster's CRS: a raster in degrees that extends beyond 180 keeps longitudes above 180 here; only GeoJSON is cut there.
An object with an empty mask has no geometry, and no row here.

Reference: https://geoparquet.org/releases/v1.1.0
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import RunError
from ..imaging.georeference import crs_of_raster, extra, parse_crs
from ..io.parquet import File, parquet_options
from ..io.refusals import Refusal
from ..io.storage import Storage
from ..masks.contours import trace
from ..masks.rle_decode import read_spans
from ..masks.spans import Spans
from ..schema import METADATA
from .areas import areas_m2

GEO_ROWS: Final = 75_000
"""The approximate number of rows of a row group: 50,000 to 150,000, but in a file with fewer than 50,000."""

_MASKS_AT_ONCE: Final = 256
"""The number of masks traced at once, whose borders fit into the processor's cache."""
_BBOX: Final = pa.struct(
    [pa.field(s, pa.float64(), nullable=False) for s in ("xmin", "ymin", "xmax", "ymax")]
)

GEO: Final = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("instance", pa.int32(), nullable=False),
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("area_m2", pa.float64()),
        pa.field("geometry", pa.binary(), nullable=False),
        pa.field("bbox", _BBOX, nullable=False),
    ],
    metadata=METADATA,
)
"""One row per object whose mask is not empty, joined to `instances` by `image_id` and `instance`."""


# Polygons


def polygons(
    counts: pa.Array,
    sizes: NDArray[Any],
    transform: Sequence[float],
    *,
    offsets: NDArray[Any] | None = None,
    simplify_px: float = 0.0,
) -> NDArray[np.object_]:
    """Return the polygons of N masks of one raster.

    Pixels that share a side are one polygon; more than one, or one that touches another at a corner, make a
    MultiPolygon. All are valid, exterior rings counterclockwise in x and y whatever the transform, interior ones
    clockwise.

    Args:
        counts: N COCO compressed run lengths, string or binary.
        sizes: (N, 2) height and width of the frame that each is encoded in, pixels.
        transform: six numbers a … f: x = a * column + b * row + c, y = d * column + e * row + f.
        offsets: (N, 2) column and row of the raster at which that frame begins; None: all at its origin.
        simplify_px: if > 0, corners are left out as long as no outline moves by more than this many pixels (GEOS's
            topology-preserving Douglas-Peucker: valid stays valid; one object at a time, so that borders which two
            objects share may separate).

    Returns:
        (N,) shapely geometries; None where a mask is empty.

    Raises:
        ValueError: one of them is not a valid mask of its size.
        UsageError: the extra is not installed.
    """
    shapely = extra("shapely")
    moves = np.zeros((len(counts), 2), np.int64) if offsets is None else offsets.astype(np.int64)
    pieces = [np.empty(0, np.object_)]
    for start in range(0, len(counts), _MASKS_AT_ONCE):
        inside = slice(start, start + _MASKS_AT_ONCE)
        pieces.append(_in_pixels(shapely, counts[inside], sizes[inside], moves[inside]))
    found = np.concatenate(pieces)
    if simplify_px > 0:
        found = _simplified(shapely, found, simplify_px)
    return _placed(found, transform)


def _simplified(shapely: Any, exact: NDArray[np.object_], limit: float) -> NDArray[np.object_]:
    """Return geometries without corners whose absence moves no outline by more than a limit, in their own unit.

    GEOS leaves corners out within the limit, and then the point at which a ring begins, within the limit of what is
    left, so that together both may move an outline by up to twice the limit. Where they do, half the limit is used.
    """
    simple: NDArray[np.object_] = shapely.simplify(exact, limit, preserve_topology=True)
    away = shapely.hausdorff_distance(shapely.boundary(exact), shapely.boundary(simple))
    too_far = away > limit
    simple[too_far] = shapely.simplify(exact[too_far], limit / 2, preserve_topology=True)
    return simple


def _rectangles(boxes: NDArray[np.float64], transform: Sequence[float]) -> NDArray[np.object_]:
    """Return the polygons of (N, 4) boxes of one raster, pixels; None where a box is empty."""
    shapely = extra("shapely")
    found = np.full(len(boxes), None, np.object_)
    some = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    found[some] = shapely.box(*boxes[some].T)
    return _placed(found, transform)


def _placed(found: NDArray[np.object_], transform: Sequence[float]) -> NDArray[np.object_]:
    """Return geometries in pixels in the coordinates of their raster."""
    shapely = extra("shapely")
    a, b, c, d, e, f = transform[:6]

    def placed(
        x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return a * x + b * y + c, d * x + e * y + f

    found = shapely.transform(found, placed, interleaved=False)
    return np.asarray(shapely.orient_polygons(found, exterior_cw=False))


def _in_pixels(
    shapely: Any, counts: pa.Array, sizes: NDArray[Any], moves: NDArray[np.int64]
) -> NDArray[np.object_]:
    rings = trace(_spans(counts, sizes).shifted(moves[:, 0], moves[:, 1]))
    found = np.full(len(counts), None, np.object_)
    if len(rings.mask):
        corners = np.stack([rings.columns, rings.rows], axis=1).astype(np.float64)
        simple = shapely.polygons(shapely.linearrings(corners, indices=rings.ring), indices=rings.polygon)
        alone = np.bincount(rings.mask, minlength=len(counts))[rings.mask] == 1
        found[rings.mask[alone]] = simple[alone]
        if not alone.all():
            shapely.multipolygons(simple[~alone], indices=rings.mask[~alone], out=found)
    return found


def _spans(counts: pa.Array, sizes: NDArray[Any]) -> Spans:
    """Return the spans of masks, each in the frame that it is encoded in."""
    texts = counts.cast(pa.binary()).to_pylist()
    pieces = []
    for size in np.unique(sizes, axis=0):
        members = np.flatnonzero((sizes == size).all(axis=1))
        of_size = read_spans([texts[member] for member in members], *size.tolist())
        pieces.append(of_size._replace(of=members[of_size.of]))
    of, column, start, stop = (
        np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("of", "column", "start", "stop")
    )
    order = np.argsort(of, kind="stable")
    return Spans(of[order], column[order], start[order], stop[order], len(texts))


# The table


def geo_table(
    instances: pa.Table, crs_wkt: str | None, transform: Sequence[float], *, simplify_px: float = 0.0
) -> pa.Table:
    """Return the rows of `GEO` for a raster's rows of `instances`, in their order.

    `area_m2` is the area on the ellipsoid of the CRS, whatever its projection; null if a corner is not on the Earth. In
    a local (engineering) CRS, which is not tied to the Earth, it is the area in its plane.

    Args:
        instances: as `schema.INSTANCES`; a mask with a `frame` is encoded in it.
        crs_wkt: of the raster.
        transform: of the raster, see `polygons`.
        simplify_px: see `polygons`.

    Raises:
        ItemError: `bad_georeference`: PROJ does not know the CRS, or polygons cannot be computed in it.
        UsageError: the extra is not installed.
        RunError: a mask is damaged.
    """
    shapely, pyproj = extra("shapely"), extra("pyproj")
    crs, _ = crs_of_raster(crs_wkt or "")
    try:
        found = _shapes(instances, transform, simplify_px)
    except ValueError as error:
        raise RunError(f"image {instances['image_id'][0]}: {error}") from error
    except shapely.errors.ShapelyError as error:
        raise Refusal.POLYGONS_FAILED.error(crs=crs.name) from error
    there = ~shapely.is_missing(found)
    found, rows = found[there], instances.filter(pa.array(there))
    bounds = shapely.bounds(found)
    if not np.isfinite(bounds).all():
        raise Refusal.POLYGONS_FAILED.error(crs=crs.name)
    try:
        areas = areas_m2(found, crs)
    except (shapely.errors.ShapelyError, pyproj.exceptions.ProjError) as error:
        raise Refusal.POLYGONS_FAILED.error(crs=crs.name) from error
    columns = {
        "area_m2": pa.array(np.where(np.isfinite(areas), areas, np.nan), from_pandas=True),
        "geometry": pa.array(shapely.to_wkb(found, byte_order=1), pa.binary()),
        "bbox": pa.StructArray.from_arrays(
            [pa.array(np.ascontiguousarray(side)) for side in bounds.T], fields=list(_BBOX)
        ),
    }
    arrays = [columns[f.name] if f.name in columns else rows[f.name].cast(f.type) for f in GEO]
    return pa.table(arrays, schema=GEO)


def _shapes(instances: pa.Table, transform: Sequence[float], simplify_px: float) -> NDArray[np.object_]:
    """Return the polygons of the masks, or of the boxes where there are no masks."""
    if instances["segmentation"].null_count:
        sides = [side.to_numpy() for side in instances["box"].combine_chunks().flatten()]
        return _rectangles(np.stack(sides, axis=1).astype(np.float64), transform)
    masks = instances["segmentation"].combine_chunks()
    sizes = masks.field("size").flatten().to_numpy().reshape(-1, 2)
    frame = instances["frame"].combine_chunks()
    offsets = [pc.fill_null(pc.struct_field(frame, side), 0) for side in ("col_off", "row_off")]
    moves = np.stack([side.to_numpy(zero_copy_only=False) for side in offsets], axis=1)
    return polygons(masks.field("counts"), sizes, transform, offsets=moves, simplify_px=simplify_px)


# GeoParquet


@lru_cache(64)
def crs_folder(crs_wkt: str) -> str:
    """Return the name of the folder for the polygons of a CRS in a run with several, as `column=value`.

    >>> crs_folder('EPSG:32636')
    'crs=EPSG_32636'

    Raises:
        UsageError: see `parse_crs`.
    """
    authority = parse_crs(crs_wkt).to_authority(min_confidence=100)
    if authority is None:
        return f"crs=WKT_{hashlib.sha256(crs_wkt.encode()).hexdigest()[:12]}"
    return "crs=" + re.sub(r"[^A-Za-z0-9.]", "_", "_".join(authority))


def write_geoparquet(storage: Storage, path: str, table: pa.Table, crs_wkt: str | None) -> File:
    """Store rows of one CRS as a GeoParquet 1.1 file, in one PUT, after reading it back.

    Rows are in the order of a Hilbert curve through the centres of their boxes, in groups of equal size, so that a
    reader of a small window skips most of them. Equal rows, in any order, give equal bytes with one version of
    pyarrow and PROJ.

    Args:
        storage: of the run.
        path: of the file.
        table: as `GEO`, of any number of rasters; each (image_id, instance) occurs once.
        crs_wkt: the CRS of all of them.

    Raises:
        UsageError: see `parse_crs`.
        RunError: the file does not read back as written, or cannot be stored.
    """
    table = table.take(pa.array(_hilbert_order(table))).replace_schema_metadata(
        {**METADATA, b"geo": json.dumps(geo_metadata(table, crs_wkt)).encode()}
    )
    n_groups = max(1, round(len(table) / GEO_ROWS))
    rows = max(1, -(-len(table) // n_groups))
    with storage.building(path) as local:
        with pq.ParquetWriter(local, table.schema, **parquet_options(table.schema)) as writer:
            writer.write_table(table, row_group_size=rows)
        with pq.ParquetFile(local) as readback:
            if not readback.read().equals(table):
                raise RunError(f"{path} does not read back as it was written: check the local disk")
        with local.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = local.stat().st_size
    return File(path, sha256, size, len(table))


def _sides(table: pa.Table) -> list[NDArray[np.float64]]:
    return [side.to_numpy() for side in table["bbox"].combine_chunks().flatten()]


def _hilbert_order(table: pa.Table) -> NDArray[np.intp]:
    shapely, geopandas = extra("shapely"), extra("geopandas")
    xmin, ymin, xmax, ymax = _sides(table)
    x, y = (xmin + xmax) / 2, (ymin + ymax) / 2
    distance: Any = np.zeros(len(table), np.int64)
    if len(table) and np.ptp(x) and np.ptp(y):
        distance = geopandas.GeoSeries(shapely.points(x, y)).hilbert_distance().to_numpy()
    return np.lexsort((table["instance"].to_numpy(), table["image_id"].to_numpy(), y, x, distance))


def geo_metadata(table: pa.Table, crs_wkt: str | None) -> dict[str, Any]:
    """Return the metadata `geo` of a GeoParquet file. Raises UsageError: see `parse_crs`."""
    # The second to the fifth byte of little-endian WKB.
    types = pc.unique(pc.binary_slice(table["geometry"], 1, 5)).to_pylist()
    names = {3: "Polygon", 6: "MultiPolygon"}
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(names[int.from_bytes(code, "little")] for code in types),
        "crs": _portable(parse_crs(crs_wkt).to_json_dict()),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
    }
    if len(table):
        extremes = zip(_sides(table), (np.min, np.min, np.max, np.max), strict=True)
        column["bbox"] = [float(extreme(side)) for side, extreme in extremes]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _portable(projjson: Any) -> Any:
    """Leave out the ids of an ensemble's members, which older versions of PROJ refuse where they do not know them."""
    if isinstance(projjson, list):
        return [_portable(value) for value in projjson]
    if not isinstance(projjson, dict):
        return projjson
    members = projjson.get("members")
    bare = (
        {} if members is None else {"members": [{k: v for k, v in m.items() if k != "id"} for m in members]}
    )
    return {key: _portable(value) for key, value in projjson.items()} | bare
