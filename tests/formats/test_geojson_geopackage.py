"""Polygons exported, and read back by pyogrio, geopandas and shapely."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from located_instances import NORTH_UP, ROTATED, UTM, blob, instances_of

from maskrcnn.errors import UsageError
from maskrcnn.formats import geojson_geopackage, geoparquet
from maskrcnn.io.storage import Storage

geopandas = pytest.importorskip("geopandas", reason="needs the extra geo")
pyogrio = pytest.importorskip("pyogrio", reason="needs the extra geo")
pyproj = pytest.importorskip("pyproj", reason="needs the extra geo")
shapely = pytest.importorskip("shapely", reason="needs the extra geo")

FRENCH = pyproj.CRS.from_epsg(2154).to_wkt()
POLAR = pyproj.CRS.from_epsg(3413)
RING = np.pad(np.zeros((2, 3), np.bool_), 2, constant_values=True)


def write_run(folder, *rasters):
    """A file of `geo` for each raster: (masks, crs, transform)."""
    storage, parts = Storage(str(folder)), []
    for number, (masks, wkt, transform) in enumerate(rasters):
        table = geoparquet.geo_table(instances_of(masks, image_id=number), wkt, transform)
        parts.append(geoparquet.write_geoparquet(storage, f"geo/part-1-{number:05}.parquet", table, wkt).path)
    return storage, parts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three rasters in two reference systems, one of them rotated."""
    return write_run(
        tmp_path_factory.mktemp("run"),
        ([blob(), RING, np.eye(2, dtype=np.bool_)], UTM, NORTH_UP),
        ([blob(7, 7)], FRENCH, (1.0, 0, 7e5, 0, -1.0, 6.6e6)),
        ([RING], UTM, ROTATED),
    )


def tables(run):
    storage, parts = run
    return [geopandas.read_parquet(f"{storage.url}/{path}") for path in parts]


def test_a_geopackage_has_a_layer_for_each_reference_system(run, tmp_path):
    assert geojson_geopackage.export_vector(*run, str(tmp_path), "gpkg") == 5
    path = tmp_path / "instances.gpkg"
    layers = pyogrio.list_layers(path)
    assert layers.tolist() == [["instances_1", "MultiPolygon"], ["instances_2", "MultiPolygon"]]
    first, second, third = tables(run)
    of_utm, of_france = (geopandas.read_file(path, layer=name) for name in layers[:, 0])
    assert of_utm.crs.to_epsg() == 32618
    assert of_france.crs.to_epsg() == 2154
    expected = [*first.geometry, *third.geometry]
    assert all(a.equals(b) for a, b in zip(of_utm.geometry, expected, strict=True))
    assert of_france.geometry[0].equals(second.geometry[0])
    for name in ("image_id", "instance", "category_id", "category", "score", "area_m2"):
        assert of_utm[name].tolist() == [*first[name], *third[name]]


def test_a_geopackage_of_one_reference_system_has_one_layer(tmp_path):
    run = write_run(tmp_path / "run", ([blob()], UTM, NORTH_UP), ([], UTM, NORTH_UP))
    assert geojson_geopackage.export_vector(*run, str(tmp_path / "out"), "gpkg") == 1
    assert pyogrio.list_layers(tmp_path / "out" / "instances.gpkg")[:, 0].tolist() == ["instances"]


def test_geojson_is_longitude_and_latitude(run, tmp_path):
    assert geojson_geopackage.export_vector(*run, str(tmp_path), "geojson") == 5
    text = (tmp_path / "instances.geojson").read_text()
    collection = json.loads(text)
    assert len(text.splitlines()) == 5 + 2
    assert set(collection) == {"type", "features"}
    frame = geopandas.read_file(tmp_path / "instances.geojson")
    assert frame.crs.to_epsg() == 4326
    back = [part.to_crs(4326).geometry for part in tables(run)]
    for own, expected in zip(frame.geometry, [place for part in back for place in part], strict=True):
        assert shapely.hausdorff_distance(own, expected) < 1e-8
        assert own.is_valid
        assert all(shapely.is_ccw(part.exterior) for part in shapely.get_parts(own))
    [row] = [f["properties"] for f in collection["features"] if f["properties"]["image_id"] == 1]
    assert row.pop("area_m2") == pytest.approx(49.0, rel=3e-3)
    assert row == {
        "image_id": 1,
        "instance": 0,
        "category_id": 3,
        "category": "roof",
        "score": 1.0,
    }


def test_an_empty_run_is_an_empty_file(tmp_path):
    run = write_run(tmp_path / "run", ([], UTM, NORTH_UP))
    assert geojson_geopackage.export_vector(*run, str(tmp_path / "json"), "geojson") == 0
    assert json.loads((tmp_path / "json" / "instances.geojson").read_text())["features"] == []
    assert geojson_geopackage.export_vector(*run, str(tmp_path / "gpkg"), "gpkg") == 0
    assert len(geopandas.read_file(tmp_path / "gpkg" / "instances.gpkg")) == 0


@pytest.mark.parametrize("form", ["geojson", "gpkg"])
def test_what_cannot_be_exported_is_refused(run, tmp_path, form):
    with pytest.raises(UsageError, match="no polygons"):
        geojson_geopackage.export_vector(run[0], [], str(tmp_path), form)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        geojson_geopackage.export_vector(*run, str(tmp_path), form)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("form", ["geojson", "gpkg"])
def test_any_store_can_be_the_destination(run, store_url, form):
    assert geojson_geopackage.export_vector(*run, store_url, form) == 5
    assert Storage(store_url).size(f"instances.{form}") > 500


# The antimeridian and the poles


def sphere_area(geometry):
    """Square metres of a polygon of degrees on WGS 84."""
    return float(geoparquet.areas_m2(np.array([geometry], object), pyproj.CRS.from_epsg(4326))[0])


def exported(masks, crs, transform):
    """Polygons before and after, and their ellipsoidal areas as found without any cut."""
    texts = instances_of(masks)["segmentation"].combine_chunks()
    sizes = texts.field("size").flatten().to_numpy().reshape(-1, 2)
    found = geoparquet.polygons(texts.field("counts"), sizes, transform)
    return found, geojson_geopackage.to_wgs84(found, crs)


def is_of_the_globe(place):
    west, south, east, north = place.bounds
    inside = -180 <= west <= east <= 180 and -90 <= south <= north <= 90
    counterclockwise = all(shapely.is_ccw(part.exterior) for part in shapely.get_parts(place))
    return place.is_valid and inside and counterclockwise


@pytest.mark.parametrize("turn", [-720, -360, 0, 360])
def test_a_raster_of_degrees_that_crosses_180_is_cut(turn):
    """Of 30 columns from 170 to 200 degrees east."""
    mask = np.ones((10, 30), np.bool_)
    mask[4:6, 5:20] = False  # a hole from 175 to 190
    crs = pyproj.CRS.from_epsg(4326)
    [before], [after] = exported([mask], crs, (1.0, 0, 170.0 + turn, 0, -1.0, 50.0))
    assert before.bounds[::2] == (170 + turn, 200 + turn)
    assert is_of_the_globe(after)
    assert after.area == pytest.approx(mask.sum())
    assert sphere_area(after) == pytest.approx(sphere_area(before))
    east, west = sorted(shapely.get_parts(after), key=lambda part: -part.bounds[0])
    assert east.bounds == (170, 40, 180, 50)
    assert west.bounds == (-180, 40, -160, 50)
    assert [before] == geoparquet.polygons(
        instances_of([mask])["segmentation"].combine_chunks().field("counts"),
        np.array([mask.shape]),
        (1.0, 0, 170.0 + turn, 0, -1.0, 50.0),
    ).tolist()


def test_another_datum_does_not_tear_what_crosses_180():
    """PROJ answers in -180 … 180 where it shifts a datum: of NZGD49 by 0.1 to 0.2 km, a thousandth of a pixel."""
    mask = np.ones((10, 30), np.bool_)
    for turn in (0, -360):
        _, [after] = exported([mask], pyproj.CRS.from_epsg(4272), (1.0, 0, 165.0 + turn, 0, -1.0, -35.0))
        assert is_of_the_globe(after)
        assert after.area == pytest.approx(300, rel=1e-3)
        west, east = sorted(shapely.get_parts(after), key=lambda part: part.bounds[0])
        assert west.bounds == pytest.approx((-180, -45, -165, -35), abs=0.01)
        assert east.bounds == pytest.approx((165, -45, 180, -35), abs=0.01)


def test_what_only_touches_180_is_not_cut():
    crs = pyproj.CRS.from_epsg(4326)
    for left in (-180.0, 175.0, 180.0, -185.0):
        _, [after] = exported([blob(4, 5)], crs, (1.0, 0, left, 0, -1.0, 10.0))
        assert is_of_the_globe(after)
        assert after.geom_type == "Polygon"
        assert after.area == 20


@pytest.mark.slow
@given(st.integers(0, 58), st.integers(1, 4))
def test_a_projected_raster_that_crosses_180_is_cut(column, width):
    """UTM zone 60 and a little beyond: the antimeridian runs through it, not along its columns."""
    crs = pyproj.CRS.from_epsg(32660)
    mask = np.zeros((40, 64), np.bool_)
    mask[3:37, column : column + width] = True
    mask[20:22, :] = True
    mask[21, column] = False
    [before], [after] = exported([mask], crs, (2000.0, 0, 650_000.0, 0, -2000.0, 5_800_000.0))
    assert is_of_the_globe(after)
    # Drawn back into the plane, it is where it was: to the sag of an edge of 64 pixels.
    back = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    again = shapely.transform(shapely.segmentize(after, 0.01), back.transform, interleaved=False)
    assert shapely.symmetric_difference(shapely.buffer(again, 0), before).area < 0.01 * before.area
    west, _, east, _ = after.bounds
    assert (west, east) == (-180, 180)


def test_an_object_around_a_pole_reaches_it():
    """A disc around the pole with a hole around the pole, and one with a hole beside it."""
    y, x = np.mgrid[-50:50, -50:50] + 0.5
    disc, around, beside = x**2 + y**2 < 45**2, x**2 + y**2 < 9**2, (x - 20) ** 2 + (y + 5) ** 2 < 7**2
    masks = [disc, disc & ~around, disc & ~beside, np.roll(around, (0, 30), (0, 1))]
    for crs, pole in ((POLAR, 90), (pyproj.CRS.from_epsg(3031), -90)):
        before, after = exported(masks, crs, (20_000.0, 0, -1e6, 0, -20_000.0, 1e6))
        equal = pyproj.CRS.from_user_input(f"+proj=laea +lat_0={pole} +ellps=WGS84")
        move = pyproj.Transformer.from_crs(crs, equal, always_xy=True)
        true = shapely.area(
            shapely.transform(shapely.segmentize(before, 2000), move.transform, interleaved=False)
        )
        for place, area in zip(after, true, strict=True):
            assert is_of_the_globe(place)
            assert sphere_area(place) == pytest.approx(area, rel=5e-3)
        at_the_pole = shapely.intersects(after, shapely.LineString([(-180, pole), (180, pole)]))
        assert at_the_pole.tolist() == [True, False, True, False]


def test_an_object_wider_than_half_the_globe_stays_in_one_piece():
    crs = pyproj.CRS.from_epsg(3857)
    half = 20_037_508.342789244
    mask = np.zeros((100, 200), np.bool_)
    mask[20:60, 5:190] = True
    _, [after] = exported([mask], crs, (half / 100, 0, -half, 0, -half / 100, half / 2))
    assert is_of_the_globe(after)
    assert after.geom_type == "Polygon"
    assert after.bounds[::2] == pytest.approx((-171, 162))


def test_grads_and_another_meridian_become_degrees_of_greenwich():
    crs = pyproj.CRS.from_epsg(4807)  # NTF (Paris), grads
    _, [after] = exported([blob(10, 10)], crs, (0.1, 0, -1.0, 0, -0.1, 54.0))
    assert is_of_the_globe(after)
    assert after.bounds == pytest.approx((2.337 - 0.9, 0.9 * 53, 2.337, 0.9 * 54), abs=0.01)
    assert after.is_valid


def test_what_wgs84_has_no_place_for_is_a_null_geometry(tmp_path):
    crs = pyproj.CRS.from_user_input("+proj=ortho +lat_0=40 +lon_0=10").to_wkt()
    run = write_run(
        tmp_path / "run", ([blob(), np.eye(2, dtype=np.bool_)], crs, (1e6, 0, -9e6, 0, -1e6, 9e6))
    )
    assert geojson_geopackage.export_vector(*run, str(tmp_path / "out"), "geojson") == 2
    features = json.loads((tmp_path / "out" / "instances.geojson").read_text())["features"]
    assert [feature["geometry"] for feature in features] == [None, None]


def test_without_a_cut_corners_are_the_projections_own():
    crs = pyproj.CRS.from_wkt(UTM)
    [before], [after] = exported([RING], crs, ROTATED)
    lon, lat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(*before.exterior.xy)
    expected = {(round(x, 9), round(y, 9)) for x, y in zip(lon, lat, strict=True)}
    assert set(after.exterior.coords) == expected


def test_an_outline_along_the_meridian_leaves_areas_only() -> None:
    corners = [
        (179.9, 0),
        (180.1, 0),
        (180.1, 0.1),
        (180, 0.1),
        (180, 0.2),
        (180.1, 0.2),
        (180.1, 0.3),
        (179.9, 0.3),
    ]
    comb = shapely.Polygon(corners)
    [cut] = geojson_geopackage.to_wgs84(np.array([comb], object), pyproj.CRS(4326))
    assert cut.geom_type == "MultiPolygon"
    assert cut.is_valid
    assert cut.area == pytest.approx(comb.area)


def test_a_system_of_a_site_has_no_place_on_the_globe() -> None:
    crs = pyproj.CRS('LOCAL_CS["arbitrary",UNIT["metre",1]]')
    assert geojson_geopackage.to_wgs84(np.array([shapely.box(0, 0, 1, 1)], object), crs).tolist() == [None]
