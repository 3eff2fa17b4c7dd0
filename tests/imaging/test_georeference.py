"""Rasters whose transform fits their coordinate reference system, and those that would lie nowhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pyproj = pytest.importorskip("pyproj", reason="needs the extra geo")
from maskrcnn.errors import ItemError  # noqa: E402
from maskrcnn.imaging.georeference import check_georeference, is_outside_area_of_use  # noqa: E402

LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
DISK = "+proj=geos +h=35785831 +type=crs"
MODIS = "+proj=sinu +R=6371007.181 +type=crs"


def wkt_of(crs: str) -> str:
    return str(pyproj.CRS.from_user_input(crs).to_wkt())


@pytest.mark.parametrize(
    ("crs", "transform", "size"),
    [
        ("EPSG:32636", (0.5, 0, 450_000, 0, -0.5, 36_000), (300, 300)),
        ("EPSG:32636", (30, 0, 3e5, 0, -30, -4e6), (7000, 7000)),  # Landsat, in the south
        ("EPSG:25833", (10, 0, -2e5, 0, -10, 7.8e6), (10_000, 20_000)),  # a country in one zone
        ("EPSG:3857", (156_543.03, 0, -20_037_508, 0, -156_543.03, 20_037_508), (256, 256)),
        (
            "EPSG:4326",
            (0.25, 0, 0, 0, -0.25, 90.125),
            (721, 1440),
        ),  # longitudes from 0 to 360, centres at the pole
        ("EPSG:4326", (-1e-5, 0, 190, 0, 1e-5, -40), (100, 100)),
        ("EPSG:3031", (0.1, 0, -50, 0, -0.1, 50), (1000, 1000)),  # a station at the pole
        (DISK, (3000, 0, -5.5e6, 0, -3000, 5.5e6), (3666, 3666)),  # corners beyond the Earth
        (MODIS, (463.3, 0, -1.1e7, 0, -463.3, 6_671_703), (2400, 2400)),
        ("+proj=tmerc +lat_0=47 +lon_0=8 +type=crs", (0.005, 0, 10, 0, -0.005, 80), (1000, 1000)),
        ("EPSG:32636", (3, 4, 450_000, 4, -3, 36_000), (10, 10)),  # rotated
        (LOCAL, (0.001, 0, 0, 0, -0.001, 1), (500, 500)),
    ],
)
def test_a_raster_in_its_place_is_accepted(
    crs: str, transform: tuple[float, ...], size: tuple[int, int]
) -> None:
    check_georeference(wkt_of(crs), transform, *size)
    assert not is_outside_area_of_use(wkt_of(crs), transform, *size)


@pytest.mark.parametrize(
    ("crs", "transform", "why"),
    [
        ("EPSG:4326", (0.5, 0, 450_000, 0, -0.5, 5_036_000), "not longitudes and latitudes"),
        ("EPSG:4326", (0.1, 0, 35, 0, -0.1, 200), "not longitudes and latitudes"),  # exchanged
        ("EPSG:32636", (1e-4, 0, 33.0, 0, -1e-4, 35), "look like degrees"),
        ("EPSG:3857", (0.25, 0, 0, 0, -0.25, 90), "look like degrees"),
        ("EPSG:32636", (1e-6, 0, 450_000, 0, -1e-6, 36_000), "smaller than a tenth of a millimetre"),
        ("EPSG:4326", (1e-12, 0, 1e-9, 0, -1e-12, 1e-9), "smaller than a tenth of a millimetre"),
        ("EPSG:32636", (1e307, 0, 0, 0, -1e307, 0), "too large"),
        ("EPSG:32636", (1.7e308, 0, 1e308, 0, -1.7e308, 1e308), "too large"),
        ("EPSG:32636", (1e153, 0, 0, 0, -1e153, 0), "too large"),
        ("EPSG:4326", (1e5, 0, 1e300, 0, -1e5, 1e300), "too large"),
        ("EPSG:32636", (1e-3, 0, 1e14, 0, -1e-3, 1e14), "can resolve"),
        ("EPSG:32636", (1e7, 0, 0, 0, -1e7, 0), "not that large"),
        (MODIS, (463.3, 0, -20_015_109, 0, -463.3, 6_671_703), "none of its pixels is on the Earth"),
        ("EPSG:32636", (1, 1, 5e5, 1, 1 + 1e-12, 4e6), "lines"),
        ("EPSG:4978", (1, 0, 0, 0, -1, 0), "no longitude and latitude"),
        ("EPSG:5703", (1, 0, 0, 0, -1, 0), "no longitude and latitude"),
        (LOCAL, (1e200, 0, 0, 0, -1e200, 0), "too large"),
        ("nonsense", (1, 0, 0, 0, -1, 0), "PROJ does not know"),
    ],
)
def test_a_raster_that_lies_nowhere_is_refused_in_one_line(
    crs: str, transform: tuple[float, ...], why: str
) -> None:
    wkt = crs if crs == "nonsense" else wkt_of(crs)
    with pytest.raises(ItemError, match=why) as caught:
        check_georeference(wkt, transform, 300, 300)
    assert caught.value.code == "bad_georeference"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("crs", "transform", "numbers"),
    [
        # Pixels of half a metre at four million metres, labelled as degrees.
        (
            "EPSG:4326",
            (0.5, 0, 450_000, 0, -0.5, 4_000_000.25),
            "x from 450000 to 450050, y from 3999950.25 to 4000000.25",
        ),
        ("EPSG:4326", (1e-6, 0, 10, 0, -1e-6, 90.03), "y from 90.0299 to 90.03"),
        ("EPSG:32636", (1e-3, 0, 123_456_789_012, 0, -1e-3, 0), "up to 123456789012"),
    ],
)
def test_the_message_has_the_digits_that_show_what_is_wrong(
    crs: str, transform: tuple[float, ...], numbers: str
) -> None:
    with pytest.raises(ItemError) as caught:
        check_georeference(wkt_of(crs), transform, 100, 100)
    assert numbers in caught.value.message


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32636", (10, 0, 4e6, 0, -10, 5e5)),  # x and y exchanged
        ("EPSG:4269", (0.1, 0, 10, 0, -0.1, 50)),  # North America's, in Europe
    ],
)
def test_a_raster_far_from_its_systems_area_is_known_as_such(crs: str, transform: tuple[float, ...]) -> None:
    check_georeference(wkt_of(crs), transform, 100, 100)
    assert is_outside_area_of_use(wkt_of(crs), transform, 100, 100)


numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1e7, 1e7),
    st.floats(-200, 200),
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-5, 450_000.0]),
)
systems = st.sampled_from(
    ["EPSG:4326", "EPSG:32636", "EPSG:3857", "EPSG:3413", "EPSG:27572", "EPSG:25832+7837", DISK, MODIS, LOCAL]
)


@given(
    crs=systems,
    transform=st.tuples(*[numbers] * 6),
    height=st.integers(1, 10**6),
    width=st.integers(1, 10**6),
)
@settings(max_examples=100)
def test_what_is_accepted_has_polygons_and_what_is_not_has_the_code(
    crs: str, transform: tuple[float, ...], height: int, width: int
) -> None:
    from maskrcnn.formats.areas import areas_m2
    from maskrcnn.imaging.georeference import parse_crs

    shapely = pytest.importorskip("shapely")
    a, b, c, d, e, f = transform
    if not (a * e != b * d and np.isfinite(a * e - b * d)):  # refused before, as `no_crs`
        return
    codes = set()
    try:
        check_georeference(wkt_of(crs), transform, height, width)
    except ItemError as error:
        codes.add(error.code)
    assert codes <= {"bad_georeference"}
    for column, row in [] if codes else [(0, 0), (width - 1, height - 1), (width // 2, height // 2)]:
        corners = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]
        pixel = shapely.Polygon([(a * x + b * y + c, d * x + e * y + f) for x, y in corners])
        assert pixel.is_valid
        assert np.isfinite(pixel.bounds).all()
        [area] = areas_m2(np.array([pixel]), parse_crs(wkt_of(crs)))
        assert np.isnan(area) or 0 <= area < np.inf
