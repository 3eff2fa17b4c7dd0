"""What planning says about rasters that can be read, but whose results may surprise."""

import itertools
import logging
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pyproj = pytest.importorskip("pyproj", reason="needs the extra geo")
from maskrcnn.imaging.geometry import ImageHeader  # noqa: E402
from maskrcnn.imaging.radiometry import parse_radiometry  # noqa: E402
from maskrcnn.pipeline.raster_findings import _on_grid, log_findings  # noqa: E402

UTM = str(pyproj.CRS.from_epsg(32636).to_wkt())
NEXT_ZONE = str(pyproj.CRS.from_epsg(32637).to_wkt())


def raster(
    column: int = 0,
    row: int = 0,
    side: int = 256,
    *,
    crs: str = UTM,
    pixel: float = 0.5,
    dtype: str = "uint8",
) -> ImageHeader:
    """A raster at a place of a grid of pixels."""
    transform = (pixel, 0.0, 450_000 + column * pixel, 0.0, -pixel, 36_000 - row * pixel)
    return ImageHeader(side, side, (128, 128), crs, transform, dtype=dtype)


def said(
    caplog: pytest.LogCaptureFixture, *images: ImageHeader, scale: str | None = None, folder: str = "/nowhere"
) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="maskrcnn"):
        log_findings([f"{folder}/{n}.tif" for n in range(len(images))], images, parse_radiometry(None, scale))
    return [record.getMessage() for record in caplog.records]


# Tiles of a mosaic


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ([raster(0, 0), raster(256, 0), raster(0, 256), raster(256, 256)], 4),
        ([raster(0, 0), raster(224, 0)], 2),  # overlapping
        ([raster(0, 0, 300), raster(300, 0, 100), raster(5000, 0)], 2),
    ],
)
def test_tiles_of_one_grid_are_recognized(
    caplog: pytest.LogCaptureFixture, images: list[ImageHeader], count: int
) -> None:
    [line] = said(caplog, *images)
    assert line.startswith(
        f"{count} rasters are tiles of one grid that touch or overlap (such as 0.tif and 1.tif)"
    )
    assert "gdalbuildvrt" in line


@given(
    angle=st.floats(-180, 180),
    pixel=st.sampled_from([0.1, 0.5, 10.0]),
    corner=st.tuples(st.floats(1e5, 9e5), st.floats(-5e6, 5e6)),
    mirrored=st.booleans(),
)
@settings(max_examples=40)
def test_tiles_of_a_rotated_grid_are_recognized(
    angle: float, pixel: float, corner: tuple[float, float], mirrored: bool
) -> None:
    sine, cosine = pixel * math.sin(math.radians(angle)), pixel * math.cos(math.radians(angle))
    sign = 1 if mirrored else -1
    a, b, d, e = cosine, -sign * sine, sine, sign * cosine

    def tile(column: int, row: int) -> ImageHeader:
        c, f = corner[0] + a * column + b * row, corner[1] + d * column + e * row
        return ImageHeader(256, 256, (64, 64), UTM, (a, b, c, d, e, f))

    [(key, box), (below_key, below), (_, apart)] = map(_on_grid, [tile(0, 0), tile(0, 256), tile(600, 0)])
    assert key[:-1] == below_key[:-1]
    assert (below[0] - box[0], below[1] - box[1], apart[0] - box[0]) == (0, 256, 600)


def test_of_tiles_that_are_not_north_up_another_command_makes_one_raster(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transforms = [
        (0.4, 0.3, 450_000.0 + 0.4 * column, 0.3, -0.4, 36_000.0 + 0.3 * column) for column in (0, 256)
    ]
    [line] = said(caplog, *(ImageHeader(256, 256, (64, 64), UTM, transform) for transform in transforms))
    assert line.startswith("2 rasters are tiles of one grid that touch or overlap (such as 0.tif and 1.tif)")
    assert "gdalwarp" in line
    # Of another angle, of another place, and turned about one corner: no tiles.
    other = (0.5, 0.0, 450_102.4, 0.0, -0.5, 36_076.8)
    for second in (other, (*transforms[1][:2], 450_300.0, *transforms[1][3:])):
        images = [ImageHeader(256, 256, (64, 64), UTM, transform) for transform in (transforms[0], second)]
        assert said(caplog, *images) == []


@pytest.mark.parametrize(
    "images",
    [
        [raster(0, 0)],
        [raster(0, 0), raster(300, 0)],  # apart
        [raster(0, 0), raster(0, 0), raster(0, 0)],  # a series in time
        [raster(0, 0), raster(256, 0, pixel=0.6)],  # of other pixels
        [ImageHeader(100, 100), ImageHeader(100, 100)],  # pictures
        [],
    ],
)
def test_other_rasters_are_not_called_tiles(
    caplog: pytest.LogCaptureFixture, images: list[ImageHeader]
) -> None:
    assert said(caplog, *images) == []


@given(cuts=st.lists(st.integers(1, 999), min_size=1, max_size=5, unique=True), wide=st.booleans())
@settings(max_examples=30)
def test_any_raster_that_is_cut_is_recognized(cuts: list[int], wide: bool) -> None:
    ends = [0, *sorted(cuts), 1000]
    images = []
    for first, last in itertools.pairwise(ends):
        c, f = (450_000 + first * 0.1, 36_000.0) if wide else (450_000.0, 36_000 - first * 0.1)
        height, width = (1000, last - first) if wide else (last - first, 1000)
        images.append(ImageHeader(height, width, (64, 64), UTM, (0.1, 0.0, c, 0.0, -0.1, f)))
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("maskrcnn")
    logger.addHandler(handler)
    try:
        log_findings([str(n) for n in range(len(images))], images, parse_radiometry(None, None))
    finally:
        logger.removeHandler(handler)
    assert len(lines) == 1
    assert lines[0].startswith(f"{len(images)} rasters are tiles")


# Types


def test_one_scale_for_several_types_is_said_with_names_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    images = [raster(), raster(1000, dtype="uint16"), raster(3000, dtype="int16")]
    [line] = said(caplog, *images, scale="0,3000")
    assert "1 of 8-bit integers (0.tif) and 2 of 16-bit integers (1.tif, 2.tif)" in line
    [line] = said(caplog, raster(dtype="float32"), raster(1000, dtype="uint16"), scale="0,1")
    assert "floating-point numbers" in line
    assert said(caplog, *images) == []
    assert said(caplog, raster(), ImageHeader(5, 5), scale="0,200") == []


def test_bytes_that_a_scale_makes_black_are_said(caplog: pytest.LogCaptureFixture) -> None:
    [line] = said(caplog, raster(), raster(1000), scale="0,10000")
    assert line.startswith("2 rasters of 8-bit integers (0.tif, 1.tif) will be almost black")
    assert "to 6 of 255" in line


# Places


def test_several_systems_are_said(caplog: pytest.LogCaptureFixture) -> None:
    [line] = said(caplog, raster(), raster(crs=NEXT_ZONE))
    assert line == (
        "the rasters have 2 coordinate reference systems: geo/ will have a folder for each "
        "(crs=EPSG_32636, crs=EPSG_32637)"
    )


def test_a_raster_far_from_its_systems_area_is_said(caplog: pytest.LogCaptureFixture) -> None:
    far = ImageHeader(100, 100, (64, 64), UTM, (10.0, 0.0, 4e6, 0.0, -10.0, 5e5))
    [line] = said(caplog, far)
    assert line.startswith("1 raster (0.tif) lies far from the area of use")


def test_files_beside_a_raster_are_counted(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for name in ("0.tif", "0.TFW", "0.tif.aux.xml", "1.tif", "1.tfw", "other.tfw"):
        (tmp_path / name).touch()
    [line] = said(caplog, raster(), raster(1000), folder=str(tmp_path))
    assert line.startswith("files beside the rasters are not read (1 .aux.xml, 2 .tfw)")
