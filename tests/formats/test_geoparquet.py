"""Polygons on Earth: drawn back by rasterio, placed by hand, and read by whoever reads GeoParquet."""

import hashlib
import importlib
import json
import re
import sys
from pathlib import Path

import duckdb
import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskrcnn.errors import ItemError, RunError, UsageError
from maskrcnn.formats import geoparquet
from maskrcnn.io.storage import Storage
from maskrcnn.schema import INSTANCES

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
geopandas = pytest.importorskip("geopandas", reason="needs the extra geo")
pyproj = pytest.importorskip("pyproj", reason="needs the extra geo")
shapely = pytest.importorskip("shapely", reason="needs the extra geo")
from located_instances import NORTH_UP, ROTATED, UTM, blob, counts_of, instances_of  # noqa: E402
from rasterio.features import rasterize  # noqa: E402
from rasterio.transform import Affine, xy  # noqa: E402

WGS84 = pyproj.CRS.from_epsg(4326).to_wkt()
SOUTH_UP = (0.5, 0.0, 500_000.0, 0.0, 0.5, 4_000_000.0)
SHEARED = tuple(Affine.translation(-7.0, 9.0) @ Affine.shear(20, 5) @ Affine.scale(-0.1, 0.2))[:6]
TRANSFORMS = (NORTH_UP, SOUTH_UP, ROTATED, SHEARED)
MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))
RASTERS = Path(__file__).parents[3] / "shared" / "data" / "rasters"


def mask_polygon(counts, size, transform, *, offset=(0, 0), simplify_px=0.0):
    texts, sizes, offsets = pa.array([counts], pa.binary()), np.array([size]), np.array([offset])
    return geoparquet.polygons(texts, sizes, transform, offsets=offsets, simplify_px=simplify_px)[0]


def polygon_of(mask, transform, **options):
    return mask_polygon(counts_of(mask), mask.shape, transform, **options)


# Polygons


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(mask=MASKS)
@example(mask=np.eye(4, dtype=np.bool_))
@example(mask=np.pad(np.zeros((2, 2), np.bool_), 2, constant_values=True))
def test_a_polygon_drawn_back_is_its_mask(transform, mask):
    polygon = polygon_of(mask, transform)
    if polygon is None:
        assert not mask.any()
        return
    assert shapely.is_valid(polygon)
    assert polygon.geom_type == ("Polygon" if len(shapely.get_parts(polygon)) == 1 else "MultiPolygon")
    drawn = rasterize([polygon], out_shape=mask.shape, transform=Affine(*transform))
    assert np.array_equal(drawn, mask)
    pixel = abs(np.linalg.det(np.reshape(transform, (2, 3))[:, :2]))
    assert polygon.area == pytest.approx(mask.sum() * pixel, rel=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(mask=MASKS)
def test_exterior_rings_are_counterclockwise_on_earth(transform, mask):
    polygon = polygon_of(mask, transform)
    for part in [] if polygon is None else shapely.get_parts(polygon):
        assert shapely.is_ccw(part.exterior)
        assert not any(shapely.is_ccw(hole) for hole in part.interiors)


def test_corners_are_exactly_the_transforms():
    mask = np.zeros((10, 20), np.bool_)
    mask[2:5, 7:12] = True
    for transform in TRANSFORMS:
        a, b, c, d, e, f = transform
        corners = {(7, 2), (12, 2), (12, 5), (7, 5)}
        expected = {(a * col + b * row + c, d * col + e * row + f) for col, row in corners}
        assert set(polygon_of(mask, transform).exterior.coords) == expected


def test_an_offset_moves_the_mask_by_pixels():
    mask = np.zeros((50, 60), np.bool_)
    mask[40:45, 30:33] = mask[41:44, 31] = True
    inner = mask[38:48, 29:40]
    for transform in TRANSFORMS:
        moved = polygon_of(inner, transform, offset=(29, 38))
        assert moved == polygon_of(mask, transform)


def test_masks_of_several_sizes_are_one_column():
    masks = [blob(n, m) for n in range(1, 5) for m in range(1, 4)] + [np.zeros((4, 4), np.bool_)]
    texts = pa.array([counts_of(mask).decode() for mask in masks])
    found = geoparquet.polygons(texts, np.array([mask.shape for mask in masks]), NORTH_UP)
    assert [polygon_of(mask, NORTH_UP) for mask in masks] == found.tolist()
    assert found[-1] is None
    # And so are slices of a column, and nothing.
    assert (
        geoparquet.polygons(texts.slice(3, 2), np.array([[2, 1], [2, 2]]), NORTH_UP).tolist()
        == found[3:5].tolist()
    )
    assert geoparquet.polygons(texts.slice(0, 0), np.empty((0, 2), np.int32), NORTH_UP).shape == (0,)


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_size_of_a_batch_changes_nothing(monkeypatch, at_once):
    rng = np.random.default_rng(1)
    masks = [rng.random((20, 30)) < 0.6 for _ in range(8)]
    texts, sizes = pa.array([counts_of(mask) for mask in masks]), np.full((8, 2), (20, 30))
    expected = geoparquet.polygons(texts, sizes, ROTATED).tolist()
    monkeypatch.setattr(geoparquet, "_MASKS_AT_ONCE", at_once)
    assert geoparquet.polygons(texts, sizes, ROTATED).tolist() == expected


def test_what_is_no_mask_is_refused():
    with pytest.raises(ValueError, match="mask 0"):
        mask_polygon(b"abc", (3, 3), NORTH_UP)
    damaged = instances_of([blob()])
    broken = pa.StructArray.from_arrays(
        [pa.array([[3, 2]], pa.list_(pa.int32())), pa.array(["999"])], ["size", "counts"]
    )
    at = damaged.schema.get_field_index("segmentation")
    with pytest.raises(RunError, match="image 1"):
        geoparquet.geo_table(damaged.set_column(at, "segmentation", broken), UTM, NORTH_UP)


@pytest.mark.slow
@given(mask=hnp.arrays(np.bool_, (12, 12)), tolerance=st.floats(0.1, 3))
@example(mask=np.eye(12, dtype=np.bool_), tolerance=2.0)
@example(
    mask=np.array([[0, 0, 1], [1, 1, 1]], np.bool_), tolerance=1.75
)  # the ring's first corner is left out too
@settings(max_examples=100)
def test_simplified_polygons_are_valid_and_near(mask, tolerance):
    exact, simple = polygon_of(mask, NORTH_UP), polygon_of(mask, NORTH_UP, simplify_px=tolerance)
    if exact is None:
        assert simple is None
        return
    assert shapely.is_valid(simple)
    assert not simple.is_empty
    assert shapely.get_num_coordinates(simple) <= shapely.get_num_coordinates(exact)
    assert all(shapely.is_ccw(part.exterior) for part in shapely.get_parts(simple))
    # NORTH_UP has pixels of half a metre.
    assert shapely.hausdorff_distance(exact.boundary, simple.boundary) <= 0.5 * tolerance + 1e-6


# The table


def test_the_table_has_a_row_for_each_mask_that_is_not_empty():
    table = geoparquet.geo_table(
        instances_of([blob(), np.zeros((3, 2), np.bool_), blob(1, 2)]), UTM, NORTH_UP
    )
    assert table.schema.equals(geoparquet.GEO, check_metadata=True)
    assert table["instance"].to_pylist() == [0, 2]
    assert table["category"].to_pylist() == ["roof", "roof"]
    assert table["area_m2"].to_pylist() == pytest.approx([1.5, 0.5], rel=1e-3)
    assert table["bbox"].to_pylist()[1] == {"xmin": 5e5, "ymin": 4e6 - 0.5, "xmax": 5e5 + 1, "ymax": 4e6}
    assert geoparquet.geo_table(instances_of([blob()])[:0], UTM, NORTH_UP).equals(
        geoparquet.GEO.empty_table()
    )


def test_rows_of_a_slice_are_those_of_the_table():
    masks = [blob(n, 2) for n in range(1, 6)]
    for frames in (None, [(n, 2 * n) for n in range(5)]):
        rows = instances_of(masks, frames=frames)
        whole = geoparquet.geo_table(rows, UTM, NORTH_UP)
        for start, length in ((2, 2), (4, 1), (3, 0)):
            assert geoparquet.geo_table(rows.slice(start, length), UTM, NORTH_UP).equals(
                whole.slice(start, length)
            )
        halves = pa.concat_tables([rows[:2], rows[2:]])
        assert geoparquet.geo_table(halves, UTM, NORTH_UP).equals(whole)


def test_a_mask_with_a_frame_lies_where_its_frame_does():
    table = geoparquet.geo_table(
        instances_of([blob(), blob()], frames=[(100, 7), (0, 70_000)]), UTM, NORTH_UP
    )
    assert [(box["xmin"], box["ymax"]) for box in table["bbox"].to_pylist()] == [
        (5e5 + 50, 4e6 - 3.5),
        (5e5, 4e6 - 35_000),
    ]


def geodesic(polygon, crs):
    """The area by pyproj, along edges that follow the parallels."""
    area, _ = crs.get_geod().geometry_area_perimeter(shapely.segmentize(polygon, 1e-3))
    return abs(area)


@pytest.mark.parametrize("latitude", [0.0, 0.3, 48.5, -33.9, 71.0, 89.9])
@pytest.mark.parametrize("code", [4326, 4269, 4277])
def test_the_area_of_degrees_is_geodesic(latitude, code):
    crs = pyproj.CRS.from_epsg(code)
    mask = np.pad(np.ones((9, 14), np.bool_), 3)
    mask[6:8, 5:9] = False
    table = geoparquet.geo_table(instances_of([mask]), crs.to_wkt(), (1e-3, 0, 12.0, 0, -1e-3, latitude))
    [wkb] = table["geometry"].to_pylist()
    assert table["area_m2"][0].as_py() == pytest.approx(geodesic(shapely.from_wkb(wkb), crs), rel=1e-6)


def test_the_whole_globe_has_its_area():
    """Of WGS 84: 510,065,621.7 square kilometres."""
    table = geoparquet.geo_table(instances_of([blob(180, 360)]), WGS84, (1.0, 0, -180.0, 0, -1.0, 90.0))
    assert table["area_m2"][0].as_py() == pytest.approx(510_065_621_724_089, rel=1e-9)
    sphere = pyproj.CRS.from_user_input("+proj=longlat +R=6371000 +type=crs").to_wkt()
    table = geoparquet.geo_table(instances_of([blob(180, 360)]), sphere, (1.0, 0, -180.0, 0, -1.0, 90.0))
    assert table["area_m2"][0].as_py() == pytest.approx(4 * np.pi * 6_371_000**2, rel=1e-9)


def test_a_raster_without_a_crs_lies_nowhere():
    for wkt in (None, "", "LOCAL_NONSENSE"):
        with pytest.raises(ItemError, match="reference system") as caught:
            geoparquet.geo_table(instances_of([blob()]), wkt, NORTH_UP)
        assert caught.value.code == "bad_georeference"


@pytest.mark.parametrize(
    ("crs", "name"),
    [("EPSG:32636", "crs=EPSG_32636"), ("ESRI:102003", "crs=ESRI_102003"), ("EPSG:25832+7837", "crs=WKT_")],
)
def test_the_folder_of_a_crs_is_named_by_its_authority(crs, name):
    wkt = pyproj.CRS.from_user_input(crs).to_wkt()
    assert geoparquet.crs_folder(wkt).startswith(name)
    assert re.fullmatch(r"crs=[A-Za-z0-9_.]+", geoparquet.crs_folder(wkt))


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(UsageError, match=r"pip install 'maskrcnn-ray\[geo\]'"):
        mask_polygon(counts_of(blob()), (3, 2), NORTH_UP)
    for name in ("masks.contours", "formats.geoparquet", "formats.geojson_geopackage"):
        importlib.import_module(f"maskrcnn.{name}")


@pytest.mark.parametrize("epsg", [3857, 4326, 32618, 2263, 3413, 4269])
@pytest.mark.parametrize("version", ["WKT1_GDAL", "WKT2_2019"])
def test_a_registered_crs_is_found_by_its_wkt(epsg, version):
    wkt = rasterio.crs.CRS.from_epsg(epsg).to_wkt(version=version)
    assert geoparquet.parse_crs(wkt).to_epsg() == epsg


# Real rasters


def georeferenced_rasters():
    for path in sorted(RASTERS.glob("*.tif")):
        with rasterio.open(path) as raster:
            if not raster.transform.is_identity:
                yield path


@pytest.mark.slow
@pytest.mark.skipif(not RASTERS.is_dir(), reason="needs shared/data/rasters")
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_corners_and_centroids_are_within_a_hundredth_of_a_pixel_of_rasterios():
    paths = list(georeferenced_rasters())
    assert len(paths) >= 15
    rng = np.random.default_rng(11)
    for path in paths:
        with rasterio.open(path) as raster:
            transform, height, width = raster.transform, raster.height, raster.width
        mask = np.zeros((height, width), np.bool_, order="F")
        left, top = int(rng.integers(width - 9)), int(rng.integers(height - 9))
        w, h = rng.integers(2, 9, 2).tolist()
        mask[top : top + h, left : left + w] = True
        polygon = polygon_of(mask, tuple(transform)[:6])
        for row, col in ((top, left), (top + h, left), (top, left + w), (top + h, left + w)):
            expected = shapely.Point(*xy(transform, row, col, offset="ul"))
            [near] = [
                p for p in shapely.points(polygon.exterior.coords[:-1]) if within(transform, p, expected)
            ]
            assert near is not None
        centre = shapely.Point(*xy(transform, top + h / 2, left + w / 2, offset="ul"))
        assert within(transform, polygon.centroid, centre), path.name


def within(transform, found, expected, pixels=0.01):
    back = ~transform
    (col, row), (true_col, true_row) = back @ (found.x, found.y), back @ (expected.x, expected.y)
    return np.hypot(col - true_col, row - true_row) < pixels


# GeoParquet

# What GeoParquet 1.1.0 says of the metadata, narrowed to what is written here.
RULES = {
    "type": "object",
    "required": ["version", "primary_column", "columns"],
    "properties": {
        "version": {"const": "1.1.0"},
        "primary_column": {"const": "geometry"},
        "columns": {
            "type": "object",
            "required": ["geometry"],
            "additionalProperties": {
                "type": "object",
                "required": ["encoding", "geometry_types"],
                "properties": {
                    "encoding": {"const": "WKB"},
                    "geometry_types": {
                        "type": "array",
                        "uniqueItems": True,
                        "items": {"enum": ["Polygon", "MultiPolygon"]},
                    },
                    "crs": {"type": "object"},
                    "edges": {"const": "planar"},
                    "orientation": {"const": "counterclockwise"},
                    "bbox": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
                    "covering": {
                        "type": "object",
                        "required": ["bbox"],
                        "properties": {
                            "bbox": {
                                "const": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
                            }
                        },
                    },
                },
                "additionalProperties": False,
            },
        },
    },
}


def many(n, seed=0, transform=NORTH_UP, size=40_000):
    """Rows of `n` small objects all over a raster."""
    rng = np.random.default_rng(seed)
    masks = [
        blob(),
        blob(1, 5),
        np.eye(2, dtype=np.bool_),
        np.pad(np.zeros((1, 1), np.bool_), 1, constant_values=True),
    ]
    few = instances_of(masks)
    rows = few.take(pa.array(np.arange(n) % len(masks)))
    at = rng.integers(0, size, (n, 2)).astype(np.int32)
    frame = pa.StructArray.from_arrays(
        [
            pa.array(at[:, 0]),
            pa.array(at[:, 1]),
            pa.array(np.full(n, 5, np.int32)),
            pa.array(np.full(n, 5, np.int32)),
        ],
        fields=list(INSTANCES.field("frame").type),
    )
    columns = {"frame": frame, "instance": pa.array(np.arange(n, dtype=np.int32))}
    for name, column in columns.items():
        rows = rows.set_column(INSTANCES.get_field_index(name), INSTANCES.field(name), column)
    return geoparquet.geo_table(rows, UTM, transform)


def geo_metadata(path):
    return json.loads(pq.read_schema(path).metadata[b"geo"])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of several row groups."""
    folder = tmp_path_factory.mktemp("large")
    table = many(160_000)
    file = geoparquet.write_geoparquet(Storage(str(folder)), "geo/part-1-00000.parquet", table, UTM)
    return table, file, folder / file.path


@pytest.mark.slow
def test_the_file_is_what_it_says(large):
    table, file, path = large
    assert file.rows == len(table) == 160_000
    assert file.bytes == path.stat().st_size
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    stored = pq.read_table(path)
    assert stored.schema.equals(geoparquet.GEO)
    assert stored.schema.metadata[b"maskrcnn.schema_version"] == b"2"
    assert stored.sort_by("instance").equals(table.sort_by("instance"))


@pytest.mark.slow
def test_the_metadata_follows_the_rules_of_geoparquet(large):
    table, _, path = large
    metadata = geo_metadata(path)
    jsonschema.validate(metadata, RULES)
    column = metadata["columns"]["geometry"]
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"]
    geometries = shapely.from_wkb(table["geometry"].to_numpy())
    assert column["bbox"] == shapely.total_bounds(geometries).tolist()
    assert pyproj.CRS.from_json_dict(column["crs"]) == pyproj.CRS.from_epsg(32618)
    boxes = np.stack([side.to_numpy() for side in table["bbox"].combine_chunks().flatten()], axis=1)
    assert np.array_equal(boxes, shapely.bounds(geometries))


def ensemble_members(projjson):
    for key, value in projjson.items():
        if isinstance(value, dict):
            yield from ensemble_members(value)
        elif key == "members":
            yield from value


@pytest.mark.parametrize(
    "crs", ["EPSG:4326", "EPSG:3857", "EPSG:32618", "EPSG:2263", "ESRI:54009", "+proj=laea +lat_0=90"]
)
def test_the_crs_is_projjson(crs, tmp_path):
    folder = Path(pyproj.datadir.get_data_dir())
    wkt = pyproj.CRS.from_user_input(crs).to_wkt()
    geoparquet.write_geoparquet(Storage(str(tmp_path)), "a.parquet", many(3), wkt)
    projjson = geo_metadata(tmp_path / "a.parquet")["columns"]["geometry"]["crs"]
    schema = json.loads((folder / "projjson.schema.json").read_text())
    jsonschema.validate(projjson, schema)
    assert pyproj.CRS.from_json_dict(projjson).equals(pyproj.CRS.from_wkt(wkt))
    assert all("id" not in member for member in ensemble_members(projjson))
    assert bool(list(ensemble_members(projjson))) == (crs in ("EPSG:4326", "EPSG:3857", "EPSG:32618"))


@pytest.mark.parametrize(
    ("masks", "types"), [([blob()], ["Polygon"]), ([np.eye(2)], ["MultiPolygon"]), ([], [])]
)
def test_geometry_types_are_exact(masks, types, tmp_path):
    table = geoparquet.geo_table(instances_of([m.astype(np.bool_) for m in masks]), UTM, NORTH_UP)
    geoparquet.write_geoparquet(Storage(str(tmp_path)), "a.parquet", table, UTM)
    column = geo_metadata(tmp_path / "a.parquet")["columns"]["geometry"]
    jsonschema.validate(
        {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}, RULES
    )
    assert column["geometry_types"] == types
    assert ("bbox" in column) == bool(masks)
    assert len(geopandas.read_parquet(tmp_path / "a.parquet")) == len(masks)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 49_999, 100_000, 112_499, 112_501, 150_001, 187_501])
def test_row_groups_have_fifty_to_a_hundred_and_fifty_thousand_rows(rows, tmp_path):
    table = many(4).take(pa.array(np.arange(rows) % 4))
    geoparquet.write_geoparquet(Storage(str(tmp_path)), "a.parquet", table, UTM)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(groups) == rows
    assert groups == [rows] or all(50_000 <= n <= 150_000 for n in groups)


def bounds_of_groups(path):
    """xmin, ymin, xmax, ymax of each row group, as its statistics say."""
    metadata = pq.read_metadata(path)
    columns = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        sides = {
            side: group.column(columns[f"bbox.{side}"]).statistics
            for side in ("xmin", "ymin", "xmax", "ymax")
        }
        yield sides["xmin"].min, sides["ymin"].min, sides["xmax"].max, sides["ymax"].max


@pytest.mark.slow
def test_a_small_window_meets_few_row_groups(tmp_path, monkeypatch):
    """Sixty-four groups, of which most windows of a hundredth of the area meet a few."""
    monkeypatch.setattr(geoparquet, "GEO_ROWS", 1000)
    table = many(64_000)
    geoparquet.write_geoparquet(Storage(str(tmp_path)), "a.parquet", table, UTM)
    groups = shapely.box(*np.array(list(bounds_of_groups(tmp_path / "a.parquet"))).T)
    assert len(groups) == 64
    rng = np.random.default_rng(2)
    shares = []
    for x, y in rng.uniform(0, 18_000, (50, 2)):
        window = shapely.box(5e5 + x, 4e6 - 20_000 + y, 5e5 + x + 2000, 4e6 - 20_000 + y + 2000)
        shares.append(shapely.intersects(groups, window).mean())
    assert np.mean(shares) < 0.08
    assert max(shares) < 0.2


def test_rows_of_any_order_give_the_same_bytes(tmp_path):
    table = pa.concat_tables([many(500), many(500, seed=1)])
    table = table.set_column(0, geoparquet.GEO.field(0), pa.array(np.arange(1000) // 500))
    shuffled = table.take(pa.array(np.random.default_rng(4).permutation(1000)))
    storage = Storage(str(tmp_path))
    first, second = (
        geoparquet.write_geoparquet(storage, f"{n}.parquet", t, UTM) for n, t in enumerate((table, shuffled))
    )
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("side", [0, 1])
def test_objects_in_one_line_have_an_order(side, tmp_path):
    table = many(100)
    box = table["bbox"].combine_chunks()
    assert len(np.unique(geoparquet._hilbert_order(table))) == 100
    flat = pa.StructArray.from_arrays(
        [pa.array(np.zeros(100)) if at % 2 == side else box.field(at) for at in range(4)],
        fields=list(geoparquet.GEO.field("bbox").type),
    )
    table = table.set_column(7, geoparquet.GEO.field(7), flat)
    middle = np.stack([s.to_numpy() for s in flat.flatten()]).reshape(2, 2, -1).mean(axis=0)[1 - side]
    assert (np.diff(middle[geoparquet._hilbert_order(table)]) >= 0).all()


def test_an_empty_file_reads_as_one(tmp_path):
    file = geoparquet.write_geoparquet(
        Storage(str(tmp_path)), "a.parquet", geoparquet.GEO.empty_table(), WGS84
    )
    assert file.rows == 0
    assert geopandas.read_parquet(tmp_path / "a.parquet").crs == "EPSG:4326"


def test_files_go_to_any_store(store_url):
    storage = Storage(store_url)
    file = geoparquet.write_geoparquet(storage, "geo/a.parquet", many(10), UTM)
    assert hashlib.sha256(storage.read("geo/a.parquet")).hexdigest() == file.sha256


@pytest.mark.slow
def test_geopandas_reads_it_and_asks_for_windows(large):
    _, _, path = large
    frame = geopandas.read_parquet(path)
    assert frame.crs == pyproj.CRS.from_epsg(32618)
    assert frame.geometry.is_valid.all()
    assert frame["area_m2"].to_numpy() == pytest.approx(frame.area.to_numpy(), rel=1e-3)
    window = (505_000, 3_990_000, 506_000, 3_991_000)
    inside = geopandas.read_parquet(path, bbox=window)
    assert set(inside["instance"]) == set(frame.cx[505_000:506_000, 3_990_000:3_991_000]["instance"])
    assert 0 < len(inside) < 1000


@pytest.fixture(scope="module")
def spatial():
    """DuckDB with the extension from its wheel."""
    extension = pytest.importorskip("duckdb_extension_spatial")
    [binary] = Path(extension.__path__[0]).rglob("spatial.duckdb_extension")
    with duckdb.connect(config={"allow_unsigned_extensions": "true"}) as connection:
        connection.execute(f"LOAD '{binary}'")
        yield connection


@pytest.mark.slow
def test_duckdb_spatial_reads_it(large, spatial):
    table, _, path = large
    [(rows, area, valid, kind)] = spatial.execute(
        f"""SELECT count(*), sum(ST_Area(geometry)), bool_and(ST_IsValid(geometry)), any_value(typeof(geometry))
        FROM '{path}'"""
    ).fetchall()
    assert rows == len(table)
    assert kind.startswith("GEOMETRY")
    assert valid
    assert area == pytest.approx(sum(table["area_m2"].to_pylist()), rel=1e-3)
    [(few,)] = spatial.execute(
        f"SELECT count(*) FROM '{path}' WHERE bbox.xmax >= 505000 AND bbox.xmin <= 506000 "
        "AND bbox.ymax >= 3990000 AND bbox.ymin <= 3991000"
    ).fetchall()
    assert few == len(geopandas.read_parquet(path, bbox=(505_000, 3_990_000, 506_000, 3_991_000)))
