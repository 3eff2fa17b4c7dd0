"""Areas on the ellipsoid: pyproj's geodesics, known areas, and laws, whatever the projection."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pyproj = pytest.importorskip("pyproj", reason="needs the extra geo")
shapely = pytest.importorskip("shapely", reason="needs the extra geo")
from maskrcnn.formats.areas import areas_m2  # noqa: E402
from maskrcnn.imaging.georeference import parse_crs  # noqa: E402

SHAPE = shapely.from_wkt("POLYGON((0 0,40 0,40 10,60 10,60 40,0 40,0 0),(5 5,5 9,9 9,9 5,5 5))")
"""Of 2,184 pixels, with a hole."""


def placed(x, y, pixel):
    return shapely.transform(SHAPE, lambda corners: corners * pixel + [x, y])


def geodesic(polygon, crs, step):
    """The area by pyproj, along geodesics of at most a step."""
    to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    divided = shapely.segmentize(polygon, step)
    on_earth = shapely.transform(divided, to_lonlat.transform, interleaved=False)
    return abs(crs.get_geod().geometry_area_perimeter(on_earth)[0])


@pytest.mark.parametrize(
    ("code", "x", "y", "pixel"),
    [
        (3857, 1_196_684, 8_379_727, 1),
        (3857, 20_037_500, 8_379_727, 10),  # across 180 degrees
        (3857, -1e7, -4e6, 10_000),
        (32636, 450_000, 36_000, 0.5),
        (32736, 450_000, 6_000_000, 30),
        (32601, 170_000, 7_500_000, 100),  # across 180 degrees
        (3413, -50, -50, 10),  # around the pole
        (3031, -5_000, -5_000, 100),  # around the pole
        (3031, 1e6, -5e5, 1000),
        (2263, 9.8e5, 2e5, 1),  # feet
        (3035, 4.3e6, 3.2e6, 1000),
        (2048, 0, 3.7e6, 1),  # axes to the west and the south
        (27572, 6e5, 2.2e6, 10),  # grads, from Paris
    ],
)
def test_areas_of_a_projection_are_geodesic(code, x, y, pixel):
    crs, polygon = parse_crs(f"EPSG:{code}"), placed(x, y, pixel)
    if code == 27572:
        [area] = areas_m2(np.array([polygon]), crs)
        assert area == pytest.approx(2184 * pixel**2, rel=1e-3)
        return
    assert areas_m2(np.array([polygon]), crs)[0] == pytest.approx(
        geodesic(polygon, crs, pixel / 10), rel=1e-5
    )


def test_web_mercator_at_sixty_degrees_is_a_quarter():
    """Squares of 40, … metres of the map at Oslo's latitude, by pyproj's Geod."""
    crs = parse_crs("EPSG:3857")
    [area] = areas_m2(np.array([shapely.box(1_196_784, 8_379_627, 1_196_824, 8_379_667)]), crs)
    assert area == pytest.approx(403.5, abs=0.3)


@pytest.mark.parametrize("code", [6933, 3035, 5070, 9822])
def test_a_projection_that_preserves_areas_is_its_own_answer(code):
    if code == 9822:
        crs = pyproj.CRS.from_proj4("+proj=aea +lat_1=20 +lat_2=50 +lon_0=10 +type=crs")
    else:
        crs = parse_crs(f"EPSG:{code}")
    x, y = {3035: (4.3e6, 3.2e6), 5070: (1e5, 2e6)}.get(code, (5e5, 4e6))
    for pixel in (0.5, 30.0, 5000.0):
        assert areas_m2(np.array([placed(x, y, pixel)]), crs)[0] == pytest.approx(2184 * pixel**2, rel=1e-5)


@given(lon=st.floats(-179.9, 179.9), lat=st.floats(-84, 84), side=st.floats(1e-5, 0.02))
@settings(max_examples=60)
def test_the_projection_does_not_change_the_area_of_a_place(lon, lat, side):
    box = shapely.segmentize(shapely.box(lon, lat, lon + side, lat + side), side / 8)
    [expected] = areas_m2(np.array([box]), parse_crs("EPSG:4326"))
    zone = int((lon + 180) // 6) + 1
    for code in (3857, 32600 + zone if lat >= 0 else 32700 + zone, 6933):
        crs = parse_crs(f"EPSG:{code}")
        to_crs = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        there = shapely.transform(box, lambda x, y, to=to_crs: to.transform(x, y), interleaved=False)
        if shapely.bounds(there)[2] - shapely.bounds(there)[0] < 1e7:  # PROJ wraps at 180 degrees
            assert areas_m2(np.array([there]), crs)[0] == pytest.approx(expected, rel=2e-4)


def test_a_sphere_and_a_rotated_pole_are_exact():
    globe = shapely.box(-180, -90, 180, 90)
    rotated = pyproj.CRS.from_proj4(
        "+proj=ob_tran +o_proj=longlat +o_lat_p=30 +lon_0=10 +R=6371000 +type=crs"
    )
    [area] = areas_m2(np.array([shapely.box(0, 0, 10, 10)]), rotated)
    expected = 6_371_000**2 * np.deg2rad(10) * np.sin(np.deg2rad(10))
    assert area == pytest.approx(expected, rel=1e-3)
    sphere = pyproj.CRS.from_proj4("+proj=longlat +R=6371000 +type=crs")
    assert areas_m2(np.array([globe]), sphere)[0] == pytest.approx(4 * np.pi * 6_371_000**2, rel=1e-9)


def test_a_local_system_has_areas_in_its_plane():
    site = pyproj.CRS.from_wkt('LOCAL_CS["site",UNIT["US foot",0.304800609601219]]')
    [area] = areas_m2(np.array([placed(7, 8, 2.0)]), site)
    assert area == pytest.approx(2184 * 4 * 0.304800609601219**2, rel=1e-9)


def test_what_lies_beyond_the_earth_has_no_area():
    disk = pyproj.CRS.from_proj4("+proj=geos +h=35785831 +type=crs")
    areas = areas_m2(np.array([placed(0, 0, 1000), placed(5.4e6, 5.4e6, 1000)]), disk)
    assert areas[0] == pytest.approx(2184e6, rel=0.01)
    assert np.isnan(areas[1])


def test_no_polygons_have_no_areas():
    assert areas_m2(np.empty(0, np.object_), parse_crs("EPSG:3857")).shape == (0,)
