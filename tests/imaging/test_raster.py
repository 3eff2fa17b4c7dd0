"""Reading regions of GeoTIFFs: rasterio reading by path is the oracle; damage gives an error code."""

import contextlib
import functools
import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import ItemError, RunError, UsageError
from maskrcnn.imaging.geometry import Rect
from maskrcnn.imaging.geotiff import RasterInfo, raster_info
from maskrcnn.imaging.radiometry import Radiometry, parse_radiometry, resolved
from maskrcnn.imaging.raster import RasterReader, raster_header, sample_percentiles, sampling
from maskrcnn.io.storage import Storage

rasterio = pytest.importorskip("rasterio")
pyproj = pytest.importorskip("pyproj")
from affine import Affine  # noqa: E402 (comes with rasterio)
from rasterio.enums import ColorInterp  # noqa: E402

SHARED = Path(__file__).parents[3] / "shared" / "data" / "rasters"
UTM = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
TILES: dict[str, Any] = {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"}
AS_IS = Radiometry()


def write(path: Path, bands: np.ndarray, **profile: Any) -> Path:
    """Write (bands, height, width), by default in UTM and tiled."""
    options = {"crs": "EPSG:32633", "transform": UTM, **TILES, **profile}
    after = options.pop("after", None)
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **options
    ) as dataset:
        dataset.write(bands)
        if after:
            after(dataset)
    return path


def noise(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(500, 300, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -1000), min(limits.max, 5000) + 1, shape).astype(dtype)


def read(
    path: Path, radiometry: Radiometry = AS_IS, rect: Rect | None = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file, RasterReader(file, radiometry, **options) as reader:
        return reader.read(rect or Rect(0, 0, reader.info.width, reader.info.height))


def info_of(path: Path, assume_crs: str | None = None) -> RasterInfo:
    with path.open("rb") as file:
        return raster_info(file, assume_crs)


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(ItemError) as caught:
        action()
    return caught.value.code


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale values to 0..255 in float64, by the formula of the rules."""
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(np.nan_to_num(shares), 0, 1) * 255).astype(np.uint8)


def by_rasterio(path: Path, bands: tuple[int, ...], low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    with rasterio.open(path) as dataset:
        planes, valid, known = dataset.read(bands), dataset.dataset_mask() > 0, dataset.read_masks(bands) > 0
    if planes.dtype.kind == "f":
        valid &= ~np.isnan(planes).all(axis=0)  # for GDAL NaN is a value, unless it is nodata
    rgb = np.stack(
        [stretched(plane, low, high) * has for plane, has in zip(planes, known, strict=True)], axis=-1
    )
    return np.where(valid[..., None], rgb, 0), valid


# Compared with rasterio


DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
FILE_STRUCTURES: dict[str, dict[str, Any]] = {
    "tiles": TILES,
    "tiles, bands in one": {**TILES, "interleave": "pixel"},
    "strips": {"tiled": False, "blockysize": 3, "compress": "lzw"},
    "plain": {"tiled": False, "compress": "none"},
    "zstd, predicted": {**TILES, "compress": "zstd", "predictor": 2},
}


@pytest.mark.parametrize("file_structure", FILE_STRUCTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_rectangle_of_any_type_and_file_structure_equals_rasterios(
    tmp_path: Path, dtype: str, file_structure: str
) -> None:
    profile = FILE_STRUCTURES[file_structure]
    if "predictor" in profile and np.dtype(dtype).kind == "f":
        profile = {**profile, "predictor": 3}
    path = write(tmp_path / "r.tif", noise(dtype, (5, 83, 97)), nodata=7, **profile)
    rgb, valid = by_rasterio(path, (4, 2, 5), -100, 3000)
    rng = np.random.default_rng(1)
    with path.open("rb") as file, RasterReader(file, parse_radiometry("4,2,5", "-100,3000")) as reader:
        for _ in range(12):
            left, top = int(rng.integers(97)), int(rng.integers(83))
            rect = Rect(left, top, int(rng.integers(1, 98 - left)), int(rng.integers(1, 84 - top)))
            ours, usable = reader.read(rect)
            rows, columns = slice(rect.row_off, rect.bottom), slice(rect.col_off, rect.right)
            np.testing.assert_array_equal(usable, valid[rows, columns])
            np.testing.assert_array_equal(ours, rgb[rows, columns])
            assert ours.dtype == np.uint8
            assert usable.dtype == bool


def test_threads_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (3, 200, 300)), nodata=3, interleave="pixel")
    for mine, theirs in zip(read(path, threads=1), read(path, threads=3), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("dtype", "nodata", "scale"),
    [("uint8", 0, None), ("uint8", 255, None), ("int16", -9999, "-10000,100"), ("uint16", 65535, "0,100"),
     ("float32", 1e30, "0,100"), ("int32", 50, "0,100")],
)  # fmt: skip
def test_nodata_in_one_of_three_bands_is_zero_in_that_band(
    tmp_path: Path, dtype: str, nodata: float, scale: str | None
) -> None:
    bands = np.full((3, 16, 32), 9, dtype)
    bands[0, 0, 0] = nodata
    bands[:, 0, 1] = nodata
    path = write(tmp_path / "r.tif", bands, nodata=nodata)
    rgb, valid = read(path, parse_radiometry(None, scale))
    np.testing.assert_array_equal(valid, by_rasterio(path, (1, 2, 3), 0, 255)[1])
    assert rgb[0, 0].tolist() == [0, *rgb[5, 5, 1:].tolist()]
    assert rgb[5, 5].min() > 0
    assert not valid[0, 1]


def test_nan_is_invalid_with_and_without_nodata(tmp_path: Path) -> None:
    bands = noise("float32", (1, 40, 40))
    bands[0, 3:9, 4:30] = np.nan
    bands[0, 20, :2] = np.inf, -np.inf
    policy = parse_radiometry(None, "0,1000")
    for nodata in (None, np.nan):
        path = write(tmp_path / "r.tif", bands, nodata=nodata)
        rgb, valid = read(path, policy)
        assert np.array_equal(~valid, np.isnan(bands[0]))
        assert rgb[20, :2, 0].tolist() == [255, 0]
        assert not rgb[~valid].any()


@pytest.mark.parametrize("nodata", [-3.4028234663852886e38, 1e39, -9999.0, 0.1])
def test_nodata_rounded_to_float32_is_recognized(tmp_path: Path, nodata: float) -> None:
    bands = noise("float32", (1, 16, 32))
    with np.errstate(over="ignore"):
        bands[0, :4] = np.float32(nodata)
    path = write(tmp_path / "r.tif", bands, nodata=nodata if abs(nodata) < 3.5e38 else None)
    if abs(nodata) < 3.5e38:
        valid = read(path, parse_radiometry(None, "0,1000"))[1]
        np.testing.assert_array_equal(valid, by_rasterio(path, (1,), 0, 1000)[1])
        assert not valid[:4].any()


def test_alpha_makes_pixels_invalid_and_is_not_a_colour(tmp_path: Path) -> None:
    bands = noise("uint8", (4, 40, 40))
    bands[3] = np.where(np.arange(40) < 10, 0, np.arange(40) * 5)
    path = write(tmp_path / "r.tif", bands, photometric="RGB", ALPHA="YES", interleave="pixel")
    rgb, valid = read(path)
    np.testing.assert_array_equal(valid, bands[3] > 0)
    np.testing.assert_array_equal(rgb, np.where(valid[..., None], bands[:3].transpose(1, 2, 0), 0))


def test_grey_with_alpha_is_grey(tmp_path: Path) -> None:
    bands = noise("uint8", (2, 40, 40))
    path = write(tmp_path / "r.tif", bands, photometric="MINISBLACK", ALPHA="YES")
    rgb, valid = read(path)
    np.testing.assert_array_equal(valid, bands[1] > 0)
    np.testing.assert_array_equal(rgb[..., 2], np.where(valid, bands[0], 0))


def test_a_mask_in_the_file_makes_pixels_invalid(tmp_path: Path) -> None:
    mask = noise("uint8", (40, 40), 5) > 100
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / "r.tif", noise("uint8", (3, 40, 40)), after=lambda d: d.write_mask(mask))
    assert info_of(path).mask
    np.testing.assert_array_equal(read(path)[1], mask)


# Bands and scales


def test_bands_are_chosen_by_their_colours_else_the_first_three_else_the_first(tmp_path: Path) -> None:
    bands = noise("uint8", (13, 16, 32))
    red, green, blue, other = ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined

    def channels(count: int, colors: list[Any] | None = None, chosen: str | None = None) -> list[int]:
        after = (lambda d: setattr(d, "colorinterp", colors)) if colors else None
        path = write(tmp_path / "r.tif", bands[:count], photometric="MINISBLACK", after=after)
        rgb, _ = read(path, parse_radiometry(chosen, None))
        return [
            next(band for band in range(count) if np.array_equal(rgb[..., channel], bands[band])) + 1
            for channel in range(3)
        ]

    assert channels(4, [blue, green, red, other]) == [3, 2, 1]
    assert channels(13) == [1, 2, 3]
    assert channels(2) == [1, 1, 1]
    assert channels(1) == [1, 1, 1]
    assert channels(13, chosen="13,8,2") == [13, 8, 2]
    assert channels(13, chosen="5") == [5, 5, 5]


def test_a_missing_band_is_reported_before_any_pixel_is_read(tmp_path: Path) -> None:
    path, policy = write(tmp_path / "r.tif", noise("uint8", (2, 16, 32))), parse_radiometry("4,3,2", None)
    with path.open("rb") as file:
        assert code_of(lambda: raster_header(file, policy)) == "unsupported_pixels"
    assert code_of(lambda: read(path, policy)) == "unsupported_pixels"


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "uint8"])
@pytest.mark.parametrize("scale", [None, "dataset"])
def test_types_without_a_range_are_rejected_and_the_message_names_the_option(
    tmp_path: Path, dtype: str, scale: str | None
) -> None:
    path = write(tmp_path / "r.tif", noise(dtype, (1, 16, 32)))
    if scale and dtype.startswith("float"):
        return
    with pytest.raises(ItemError, match="--scale") as caught:
        read(path, parse_radiometry(None, scale))
    assert caught.value.code == "unsupported_pixels"


def test_the_datasets_scale_and_offset_give_reflectance(tmp_path: Path) -> None:
    bands = noise("uint16", (3, 30, 30))

    def tag(dataset: Any) -> None:
        dataset.scales, dataset.offsets = (0.001, 0.0005, -0.0001), (-0.1, 0.0, 1.0)

    path = write(tmp_path / "r.tif", bands, after=tag)
    rgb, _ = read(path, parse_radiometry(None, "dataset"))
    for band, (scale, offset) in enumerate(zip((0.001, 0.0005, -0.0001), (-0.1, 0.0, 1.0), strict=True)):
        reflectance = np.clip(bands[band] * scale + offset, 0, 1) * 255
        assert np.abs(rgb[..., band] - reflectance).max() <= 0.5 + 1e-6


def test_float_reflectance_needs_no_tags(tmp_path: Path) -> None:
    bands = np.linspace(-0.5, 1.5, 512, dtype=np.float32).reshape(1, 16, 32)
    rgb, _ = read(write(tmp_path / "r.tif", bands), parse_radiometry(None, "dataset"))
    np.testing.assert_array_equal(rgb[..., 0], stretched(bands[0], 0, 1))


def test_fewer_than_8_bits_are_stretched_to_the_full_range(tmp_path: Path) -> None:
    for bits in (1, 2, 4):
        bands = (noise("uint8", (1, 32, 32)) % 2**bits).astype(np.uint8)
        path = write(tmp_path / "r.tif", bands, nbits=bits)
        assert info_of(path).bits == bits
        np.testing.assert_array_equal(read(path)[0][..., 0], bands[0] * (255 // (2**bits - 1)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_palette_gives_its_colours_whatever_the_scale(tmp_path: Path, dtype: str) -> None:
    colors = {index: (index, 255 - index, index // 2, 255) for index in range(200)}
    bands = (noise("uint16", (1, 40, 40)) % 250).astype(dtype)
    path = write(
        tmp_path / "r.tif", bands, photometric="PALETTE", after=lambda d: d.write_colormap(1, colors)
    )
    assert info_of(path).palette
    expected = np.array([colors.get(index, (0, 0, 0, 0))[:3] for index in range(250)], np.uint8)[bands[0]]
    for scale in (None, "0,10", "dataset"):
        np.testing.assert_array_equal(read(path, parse_radiometry(None, scale))[0], expected)


def test_cmyk_is_converted_or_rejected_unless_bands_are_given(tmp_path: Path) -> None:
    inks = np.zeros((4, 16, 32), np.uint8)
    inks[1] = 255  # magenta
    assert (read(write(tmp_path / "r.tif", inks, photometric="CMYK"))[0] == [255, 0, 255]).all()
    bands = noise("uint16", (4, 16, 32))
    path = write(tmp_path / "s.tif", bands, photometric="CMYK")
    assert code_of(lambda: read(path, parse_radiometry(None, "0,5000"))) == "unsupported_pixels"
    rgb, _ = read(path, parse_radiometry("3,3,1", "0,5000"))
    np.testing.assert_array_equal(rgb[..., 2], stretched(bands[0], 0, 5000))


@pytest.mark.parametrize(
    ("bands", "scale"),
    [
        *((bands, None) for bands in ("", "0", "1,2", "1,2,3,4", "red", "-1", "1.5", "1,,3")),
        *(
            (None, scale)
            for scale in ("5", "5,5", "9,1", "a,b", "p2", "p2,98", "p98,p2", "p-1,p5", "p5,p101")
        ),
        *((None, scale) for scale in ("nan,5", "0,inf", "minmax", "p,p", "1,2,3", "pnan,p5", ",")),
    ],
)
def test_invalid_options_are_usage_errors(bands: str | None, scale: str | None) -> None:
    with pytest.raises(UsageError, match=r"--bands takes|--scale takes"):
        parse_radiometry(bands, scale)


@pytest.mark.parametrize("scale", [None, "dtype", "dataset", "0,10000", " -1.5 , 2e4", "p2,p98", "P0,P100"])
def test_a_policy_round_trips_through_json(scale: str | None) -> None:
    for bands in (None, "3", "4,3,2"):
        policy = parse_radiometry(bands, scale)
        assert Radiometry.from_json(json.loads(json.dumps(policy.to_json()))) == policy


# Percentiles


def openers(paths: list[Path]) -> list[Callable[[], BinaryIO]]:
    return [functools.partial(path.open, "rb") for path in paths]


def test_percentiles_of_a_small_collection_are_those_of_all_its_valid_pixels(tmp_path: Path) -> None:
    arrays = [noise("int16", (3, side, 90), seed) for seed, side in enumerate((50, 80, 300))]
    paths = [write(tmp_path / f"{n}.tif", bands, nodata=8) for n, bands in enumerate(arrays)]
    policy = parse_radiometry("3,1,2", "p2,p98")
    lows, highs = sample_percentiles(openers(paths), policy)
    for channel, band in enumerate((2, 0, 1)):
        pooled = np.concatenate([bands[band][bands[band] != 8] for bands in arrays])
        expected = np.quantile(pooled, [0.02, 0.98], method="inverted_cdf")
        assert [lows[channel], highs[channel]] == expected.tolist()
    ready = resolved(policy, lows, highs)
    assert ready.percentiles is None
    assert Radiometry.from_json(ready.to_json()) == ready
    rgb, _ = read(paths[0], ready)
    known = arrays[0][2] != 8
    np.testing.assert_array_equal(rgb[..., 0], stretched(arrays[0][2], lows[0], highs[0]) * known)


@pytest.mark.slow
def test_rasters_are_weighted_by_their_pixels_even_if_few_are_read(tmp_path: Path) -> None:
    large = write(tmp_path / "large.tif", np.full((1, 1500, 1500), 100, np.uint16), compress="deflate")
    small = write(tmp_path / "small.tif", np.full((1, 1500, 100), 900, np.uint16))
    lows, highs = sample_percentiles(openers([large, small] * 3), parse_radiometry(None, "p0,p93"))
    assert (lows[0], highs[0]) == (100, 100)  # the small rasters hold a sixteenth of the pixels
    assert sample_percentiles(openers([large, small] * 3), parse_radiometry(None, "p0,p94"))[1][0] == 900


def test_unreadable_rasters_are_skipped_and_none_readable_is_a_usage_error(tmp_path: Path) -> None:
    good = write(tmp_path / "good.tif", noise("uint16", (1, 40, 40)))
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"no raster")
    empty = write(tmp_path / "empty.tif", np.zeros((1, 40, 40), np.uint16), nodata=0)
    policy = parse_radiometry(None, "p2,p98")
    assert sample_percentiles(openers([bad, good, empty]), policy) == sample_percentiles(
        openers([good]), policy
    )
    with pytest.raises(UsageError, match="--scale LOW,HIGH"):
        sample_percentiles(openers([bad, empty]), policy)


def test_a_flat_collection_becomes_black_and_not_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "r.tif", np.full((1, 16, 32), 1e9, np.float32))
    policy = parse_radiometry(None, "p2,p98")
    rgb, valid = read(path, resolved(policy, *sample_percentiles(openers([path]), policy)))
    assert valid.all()
    assert not rgb.any()


def test_percentiles_must_be_computed_before_pixels_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r.tif", noise("uint16", (1, 16, 32)))
    with pytest.raises(ValueError, match="computed first"):
        read(path, parse_radiometry(None, "p2,p98"))


@given(st.integers(0, 10**7))
def test_a_sample_is_spread_over_the_collection_and_bounded(rasters: int) -> None:
    chosen, count = sampling(rasters)
    assert len(set(chosen)) == len(chosen) == min(rasters, 1000)
    assert all(0 <= index < rasters for index in chosen)
    assert len(chosen) * count <= 2**22
    assert rasters < 2000 or np.diff(chosen).max() <= 2 * rasters / 1000


# Georeference


@pytest.mark.parametrize(
    "transform",
    [
        UTM,
        Affine(0.5, 0, 500_000, 0, 0.5, 4_000_000),  # south-up
        Affine.translation(500_000, 4_000_000) @ Affine.rotation(30) @ Affine.scale(2, -1),
        Affine(1e-9, 0, 179.999, 0, -1e-9, -60),
        Affine(1, 0, 5, 0, -1, 0),
    ],
)
def test_the_transform_equals_rasterios_and_pixels_are_read_as_stored(
    tmp_path: Path, transform: Affine
) -> None:
    bands = noise("uint8", (3, 40, 70))
    path = write(tmp_path / "r.tif", bands, transform=transform)
    a, b, c, d, e, f = info_of(path).transform
    with rasterio.open(path) as dataset:
        for row, column in ((0, 0), (0, 70), (40, 0), (40, 70), (13.5, 21.25)):
            expected = dataset.transform @ (column, row)
            assert (a * column + b * row + c, d * column + e * row + f) == pytest.approx(expected, rel=1e-15)
    np.testing.assert_array_equal(read(path)[0], bands.transpose(1, 2, 0))


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32633", "EPSG:3031", "ESRI:54030"])
def test_the_crs_is_read_from_the_file(tmp_path: Path, crs: str) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (1, 16, 32)), crs=crs)
    found = pyproj.CRS(info_of(path).crs_wkt)
    assert found.equals(pyproj.CRS(crs), ignore_axis_order=True)


def test_a_header_round_trips_through_json(tmp_path: Path) -> None:
    info = info_of(write(tmp_path / "r.tif", noise("float32", (3, 16, 32)), nodata=-1))
    assert RasterInfo.from_json(json.loads(json.dumps(info.to_json()))) == info
    nan = info_of(write(tmp_path / "r.tif", noise("float32", (1, 16, 32)), nodata=np.nan))
    assert np.isnan(RasterInfo.from_json(json.loads(json.dumps(nan.to_json()))).nodata)  # type: ignore[arg-type]


GCPS = [
    rasterio.control.GroundControlPoint(row, col, col * 0.1, row * 0.1)
    for row, col in ((0, 0), (0, 9), (9, 0))
]


@pytest.mark.parametrize("assume_crs", [None, "EPSG:32633"])
@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"crs": None, "transform": None}, "no transform"),
        ({"crs": "EPSG:4326", "transform": None}, "no transform"),
        ({"crs": "EPSG:4326", "transform": None, "gcps": GCPS}, "ground control points only"),
        ({"crs": "EPSG:4326", "transform": Affine(0, 0, 5, 0, 0, 5)}, "no area"),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_without_a_transform_is_rejected(
    tmp_path: Path, profile: dict[str, Any], message: str, assume_crs: str | None
) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (1, 16, 32)), **profile)
    with pytest.raises(ItemError, match=message) as caught:
        info_of(path, assume_crs)
    assert caught.value.code == "no_crs"


def test_a_crs_is_assumed_only_for_a_raster_without_one(tmp_path: Path) -> None:
    without = write(tmp_path / "r.tif", noise("uint8", (1, 16, 32)), crs=None)
    with pytest.raises(ItemError, match="--assume-crs") as caught:
        info_of(without)
    assert caught.value.code == "no_crs"
    assert pyproj.CRS(info_of(without, "EPSG:32636").crs_wkt).to_epsg() == 32636
    with_crs = write(tmp_path / "s.tif", noise("uint8", (1, 16, 32)))
    assert pyproj.CRS(info_of(with_crs, "EPSG:32636").crs_wkt).to_epsg() == 32633
    with pytest.raises(UsageError, match="--assume-crs"):
        info_of(without, "EPSG:none")


# Files that are not GeoTIFFs


def test_a_vrt_named_tif_reads_no_other_file(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.tif", noise("uint8", (1, 16, 32)))
    evil = tmp_path / "evil.tif"
    evil.write_text(
        f'<VRTDataset rasterXSize="32" rasterYSize="16"><SRS>EPSG:4326</SRS><GeoTransform>0,1,0,0,0,-1</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        f"<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(evil) as dataset:
        assert dataset.read().any()  # opened by path, GDAL follows the reference
    assert code_of(lambda: info_of(evil)) == "unsupported_format"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"<html>not found</html>", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "unsupported_format"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "unsupported_format"),
        (b"II*\0", "truncated"),
        (b"II*\0\x08\0\0\0", "truncated"),
        (b"II*\0\x10\0\0\0" + bytes(99), "corrupt"),
    ],
)
def test_other_files_named_tif_are_rejected(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "r.tif"
    path.write_bytes(content)
    assert code_of(lambda: info_of(path)) == code


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "int64", "uint64"])
def test_unsupported_types_are_rejected(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "r.tif", np.ones((1, 16, 32), dtype))
    assert code_of(lambda: info_of(path)) == "unsupported_pixels"


def test_blocks_too_large_to_decode_are_rejected_from_the_header(tmp_path: Path) -> None:
    path, side = tmp_path / "r.tif", 1024 * 17
    profile = {
        "blockxsize": side,
        "blockysize": side,
        "tiled": True,
        "compress": "deflate",
        "sparse_ok": True,
    }
    with rasterio.open(path, "w", "GTiff", side, side, 1, "EPSG:4326", UTM, "uint8", **profile):
        pass  # one block, omitted in a sparse file
    with pytest.raises(ItemError, match="in smaller tiles") as caught:
        info_of(path)
    assert (caught.value.code, caught.value.width) == ("too_many_pixels", side)


@pytest.mark.parametrize("planes", ["pixel", "band"])
def test_blocks_that_a_sparse_file_omits_are_no_pixels(tmp_path: Path, planes: str) -> None:
    """As black as those that hold zeros, but not valid, and no part of the percentiles."""
    profile = {"tiled": True, "blockxsize": 16, "blockysize": 16, "sparse_ok": True, "interleave": planes}
    path = tmp_path / "r.tif"
    with rasterio.open(path, "w", "GTiff", 32, 48, 3, "EPSG:32636", UTM, "uint16", **profile) as file:
        file.write(np.full((3, 16, 16), 400, np.uint16), window=rasterio.windows.Window(16, 0, 16, 16))
        file.write(np.full((1, 16, 16), 500, np.uint16), [2], window=rasterio.windows.Window(0, 16, 16, 16))
    policy = parse_radiometry(None, "p0,p100")
    lows, highs = sample_percentiles(openers([path]), policy)
    rgb, valid = read(path, resolved(policy, lows, highs))
    stored = np.zeros((48, 32), bool)
    stored[:16, 16:] = True
    stored[16:32, :16] = True  # of one band at least
    np.testing.assert_array_equal(valid, stored)
    assert not rgb[~stored].any()
    assert (lows, highs) == ((0.0, 400.0, 0.0), (400.0, 500.0, 400.0))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_sidecar_files_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (1, 16, 32)), crs=None, transform=None)
    (tmp_path / "r.tfw").write_text("0.5\n0\n0\n-0.5\n500000\n4000000\n")
    (tmp_path / "r.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:32633</SRS></PAMDataset>")
    with rasterio.open(path) as dataset:
        assert dataset.crs is not None
        assert not dataset.transform.is_identity
    assert code_of(lambda: info_of(path)) == "no_crs"


# Damage


def blocks_of(path: Path) -> dict[Rect, tuple[int, int]]:
    """Return the position in the file of each block of a tiled raster with one plane: (offset, bytes)."""
    with rasterio.open(path) as dataset:
        return {
            Rect(window.col_off, window.row_off, window.width, window.height): tuple(
                int(dataset.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1))
                for what in ("OFFSET", "SIZE")
            )
            for (row, column), window in dataset.block_windows(1)
        }


def unreadable_mask(rects: list[Rect], shape: tuple[int, ...]) -> np.ndarray:
    unreadable = np.zeros(shape, bool)
    for rect in rects:
        unreadable[rect.row_off : rect.bottom, rect.col_off : rect.right] = True
    return unreadable


@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_other_than_damaged_ones_are_read(tmp_path: Path, threads: int) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (3, 100, 200)), interleave="pixel")
    whole, _ = read(path)
    blocks = blocks_of(path)
    broken = [rect for index, rect in enumerate(blocks) if index in (0, 5, 6, 20, len(blocks) - 1)]
    content = bytearray(path.read_bytes())
    for rect in broken:
        offset, size = blocks[rect]
        content[offset : offset + size] = b"\xff" * size
    path.write_bytes(content)
    everything = Rect(3, 1, 190, 98)
    with path.open("rb") as file, RasterReader(file, AS_IS, threads=threads) as reader:
        assert code_of(lambda: reader.read(everything)) == "corrupt"
        rgb, valid, unreadable = reader.read_region(everything)
        good = next(rect for rect in blocks if rect not in broken)
        np.testing.assert_array_equal(
            reader.read(good)[0], whole[good.row_off : good.bottom, good.col_off : good.right]
        )
    expected = unreadable_mask(broken, (100, 200))[1:99, 3:193]
    np.testing.assert_array_equal(
        unreadable_mask([rect for rect, _ in unreadable], (100, 200))[1:99, 3:193], expected
    )
    assert all(rect == rect.shared(everything) for rect, _ in unreadable)
    assert {error.code for _, error in unreadable} == {"corrupt"}
    np.testing.assert_array_equal(valid, ~expected)
    np.testing.assert_array_equal(rgb, np.where(expected[..., None], 0, whole[1:99, 3:193]))


@pytest.mark.slow
@settings(max_examples=40)
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_raster_keeps_the_blocks_before_its_end(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (1, 100, 200)))
    whole, _ = read(path)
    blocks = blocks_of(path)
    content = path.read_bytes()
    end = int(share * len(content))
    header = min(offset for offset, _ in blocks.values())
    with contextlib.closing(io.BytesIO(content[:end])) as file:
        if end < header:
            code = code_of(lambda: raster_info(file))
            assert code in ("empty_file", "not_an_image", "truncated", "corrupt", "no_crs")
            return
        with RasterReader(file, AS_IS) as reader:
            rgb, valid, unreadable = reader.read_region(Rect(0, 0, 200, 100))
    expected = unreadable_mask(
        [rect for rect, (start, size) in blocks.items() if start + size > end], (100, 200)
    )
    np.testing.assert_array_equal(~valid, expected)
    np.testing.assert_array_equal(rgb[valid], whole[valid])
    assert {error.code for _, error in unreadable} <= {"truncated"}


@st.composite
def damaged(draw: st.DrawFn, rasters: list[bytes]) -> bytes:
    content = bytearray(draw(st.sampled_from(rasters)))
    for _ in range(draw(st.integers(1, 4))):
        # Headers are small, and hold most of the structure that damage can break.
        place = draw(st.one_of(st.integers(0, 700), st.integers(0, len(content) - 5)))
        content[place : place + 4] = draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.integers(0, 2**32 - 1).map(functools.partial(struct.pack, "<I")),
                st.integers(0, 40).map(functools.partial(struct.pack, "<I")),
            )
        )[: max(len(content) - place, 0)]
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


def a_few_rasters(folder: Path) -> list[bytes]:
    one, three = noise("uint8", (1, 40, 70)), noise("uint8", (3, 40, 70))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        paths = [
            write(
                folder / "0.tif",
                one,
                photometric="PALETTE",
                after=lambda d: d.write_colormap(1, {3: (1, 2, 3)}),
            ),
            write(folder / "1.tif", three, interleave="pixel", after=lambda d: d.write_mask(one[0] > 9)),
            write(folder / "2.tif", noise("float32", (4, 40, 70)), nodata=-1, predictor=3, bigtiff="YES"),
            write(folder / "3.tif", three, tiled=False, compress="lzw", endianness="BIG"),
            write(
                folder / "4.tif",
                three,
                compress="jpeg",
                photometric="YCBCR",
                blockysize=32,
                interleave="pixel",
            ),
            write(folder / "5.tif", noise("uint16", (2, 40, 70)), compress="zstd", nodata=1),
        ]
    return [path.read_bytes() for path in paths]


@pytest.mark.slow
def test_damaged_files_give_a_result_or_a_code(tmp_path: Path) -> None:
    rasters = a_few_rasters(tmp_path)

    @settings(max_examples=400)
    @given(damaged(rasters), st.sampled_from(["0,255", "dataset", None]))
    def each(content: bytes, scale: str | None) -> None:
        with (
            contextlib.suppress(ItemError),
            RasterReader(io.BytesIO(content), parse_radiometry(None, scale)) as reader,
        ):
            rect = Rect(0, 0, min(reader.info.width, 100), min(reader.info.height, 100))
            rgb, valid, _ = reader.read_region(rect)
            assert rgb.shape == (*valid.shape, 3)
            assert not rgb[~valid].any()
            json.dumps(reader.info.to_json())

    each()


# Files


class RecordingFile(io.BytesIO):
    """A file that records its reads, and raises `error` once, at read number `fails_at`."""

    def __init__(self, content: bytes, fails_at: int | None = None, error: Exception | None = None) -> None:
        super().__init__(content)
        self.reads: list[tuple[int, int]] = []
        self._fails_at, self._error = fails_at, error

    def read(self, size: int | None = -1) -> bytes:
        if self._error is not None and len(self.reads) == self._fails_at:
            error, self._error = self._error, None
            raise error
        start = self.tell()
        data = super().read(size)
        self.reads.append((start, start + len(data)))
        return data


@pytest.mark.slow
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("threads", [1, 2])
def test_each_block_of_an_aligned_rectangle_is_read_once(
    tmp_path: Path, interleave: str, threads: int
) -> None:
    side = {"blockxsize": 512, "blockysize": 512, "interleave": interleave}
    bands = noise("uint16", (4, 1536, 2048))  # blocks of noise are larger than a page
    path = write(tmp_path / "r.tif", bands, nodata=5, **side)
    with RasterReader(
        recorded := RecordingFile(path.read_bytes()), parse_radiometry("4,1,2", "0,5000"), threads=threads
    ) as reader:
        recorded.reads.clear()
        reader.read(Rect(512, 512, 1536, 1024))
    planes = (1,) if interleave == "pixel" else (1, 2, 4)
    with rasterio.open(path) as dataset:
        for name in (f"{column}_{row}" for column in (1, 2, 3) for row in (1, 2)):
            for band in planes:
                start = int(dataset.get_tag_item(f"BLOCK_OFFSET_{name}", "TIFF", bidx=band))
                stop = start + int(dataset.get_tag_item(f"BLOCK_SIZE_{name}", "TIFF", bidx=band))
                inside = [(a, b) for a, b in recorded.reads if start <= a < b <= stop]
                assert sum(b - a for a, b in inside) == stop - start
                recorded.reads = [read for read in recorded.reads if read not in inside]
    assert all(b <= 2**17 for _, b in recorded.reads)  # reads of the header


def test_a_header_needs_few_requests(tmp_path: Path) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (3, 600, 800)))
    raster_info(recorded := RecordingFile(path.read_bytes()))
    assert 1 <= len(recorded.reads) <= 3


@pytest.mark.parametrize(
    "error",
    [RunError("the store is gone"), ItemError("access_denied", "403"), ItemError("changed", "other etag")],
)
def test_errors_of_the_file_are_raised_unchanged(tmp_path: Path, error: Exception) -> None:
    content = write(
        tmp_path / "r.tif", noise("uint8", (3, 600, 800)), blockxsize=256, blockysize=256
    ).read_bytes()

    def work(file: BinaryIO) -> None:
        with RasterReader(file, AS_IS) as reader:
            reader.read_region(Rect(0, 0, 800, 600))

    work(whole := RecordingFile(content))
    assert len(whole.reads) > 5
    for fails_at in range(len(whole.reads)):
        with pytest.raises(type(error), match=str(error)):
            work(RecordingFile(content, fails_at, error))
        assert (
            code_of(lambda at=fails_at: work(RecordingFile(content, at, OSError("cable")))) == "storage_error"
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_reader_can_continue_after_a_failure_of_the_store(tmp_path: Path, threads: int) -> None:
    blocks = {"blockxsize": 256, "blockysize": 256}
    path = write(tmp_path / "r.tif", noise("uint8", (3, 600, 800)), **blocks)
    whole = Rect(0, 0, 800, 600)
    for after in range(5):
        with RasterReader(file := RecordingFile(path.read_bytes()), AS_IS, threads=threads) as reader:
            file._fails_at, file._error = len(file.reads) + after, RunError("the store is gone")
            with pytest.raises(RunError, match="the store is gone"):
                reader.read(whole)
            np.testing.assert_array_equal(reader.read(whole)[0], read(path)[0])


def test_a_raster_in_a_store_is_read_as_a_local_file(tmp_path: Path, store_url: str) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (3, 300, 400)), nodata=4)
    storage = Storage(store_url)
    storage.write("r.tif", path.read_bytes())
    with storage.open("r.tif") as file, RasterReader(file, AS_IS) as reader:
        rgb, valid = reader.read(Rect(0, 0, 400, 300))
    np.testing.assert_array_equal(rgb, read(path)[0])
    np.testing.assert_array_equal(valid, read(path)[1])


def test_a_rectangle_outside_the_raster_is_a_value_error(tmp_path: Path) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (1, 16, 32)))
    for rect in (Rect(-1, 0, 4, 4), Rect(0, 0, 33, 4), Rect(0, 10, 4, 7), Rect(0, 0, 0, 4)):
        with pytest.raises(ValueError, match=r"extends beyond|empty"):
            read(path, rect=rect)


def test_a_closed_file_is_a_storage_error(tmp_path: Path) -> None:
    path = write(tmp_path / "r.tif", noise("uint8", (1, 600, 600)))
    file = path.open("rb")
    with RasterReader(file, AS_IS) as reader:
        file.close()
        assert code_of(lambda: reader.read(Rect(0, 500, 100, 100))) == "storage_error"


def test_several_open_rasters_are_independent(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.tif", noise("uint8", (3, 64, 64), n)) for n in range(3)]
    with contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(RasterReader(stack.enter_context(path.open("rb")), AS_IS)) for path in paths
        ]
        for path, reader in reversed(list(zip(paths, readers, strict=True))):
            np.testing.assert_array_equal(reader.read(Rect(5, 5, 40, 40))[0], read(path)[0][5:45, 5:45])


MEMORY = """
import resource, sys
from maskrcnn.imaging.raster import RasterReader
from maskrcnn.imaging.radiometry import parse_radiometry
from maskrcnn.imaging.geometry import Rect
with open(sys.argv[1], "rb") as file, RasterReader(file, parse_radiometry(None, "0,10")) as reader:
    for top in range(0, reader.info.height, 512):
        for left in range(0, reader.info.width, 4096):
            reader.read(Rect(left, top, 4096, 512))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_raster(tmp_path: Path) -> None:
    def peak(rows: int, columns: int) -> int:
        path = tmp_path / f"{rows}.tif"
        blocks = {"blockxsize": 512, "blockysize": 512}
        write(path, np.ones((1, 512 * rows, 4096 * columns), np.uint16), **blocks)
        run = subprocess.run(
            [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert peak(10, 3) <= 1.15 * peak(2, 1)


@pytest.mark.slow
def test_a_missing_extra_is_named_in_the_message() -> None:
    script = (
        "import sys, io\nsys.modules['rasterio'] = None\nfrom maskrcnn.errors import UsageError\n"
        "from maskrcnn.imaging.geotiff import raster_info\n"
        "try:\n    raster_info(io.BytesIO(b'II*\\0'))\nexcept UsageError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'maskrcnn-ray[geo]'" in run.stdout


# Real rasters


REAL = sorted(SHARED.glob("*.tif"))


def real_rasters() -> Iterator[Any]:
    yield from (pytest.param(path, id=path.stem) for path in REAL)
    if not REAL:
        yield pytest.param(None, marks=pytest.mark.skip(reason="no ../shared/data/rasters"), id="none")


REJECTED = {"cog_gcps": "no_crs", "rotated": "no_crs"}


@pytest.mark.parametrize("path", list(real_rasters()))
def test_real_rasters_equal_rasterios(path: Path) -> None:
    if path.stem in REJECTED:
        assert code_of(lambda: info_of(path)) == REJECTED[path.stem]
        if path.stem == "cog_gcps":
            return
    policy = parse_radiometry(None, "0,1000")
    with path.open("rb") as file, RasterReader(file, policy, assume_crs="EPSG:32633") as reader:
        info = reader.info
        rect = Rect(
            info.width // 3, info.height // 3, min(info.width // 2, 2000), min(info.height // 2, 2000)
        )
        rgb, valid, unreadable = reader.read_region(rect)
    bands = (3, 2, 1) if path.stem == "all-nodata" else (1, 2, 3) if info.bands > 2 else (1, 1, 1)
    window = rasterio.windows.Window(*rect)
    rest = ~unreadable_mask([at for at, _ in unreadable], (info.height, info.width))[window.toslices()]
    with rasterio.open(path) as dataset:
        assert np.allclose(info.transform, dataset.transform[:6], rtol=1e-15, atol=0)
        if dataset.crs:
            assert pyproj.CRS(info.crs_wkt).equals(pyproj.CRS(dataset.crs.to_wkt()), ignore_axis_order=True)
        if unreadable:
            assert path.stem == "corrupt"
            assert {error.code for _, error in unreadable} == {"truncated"}
            return
        planes = dataset.read(bands, window=window)
        expected, known = (
            dataset.dataset_mask(window=window) > 0,
            dataset.read_masks(bands, window=window) > 0,
        )
        colors = dataset.colormap(1) if info.palette else None
    if planes.dtype.kind == "f":
        expected &= ~np.isnan(planes[0])
    np.testing.assert_array_equal(valid, expected & rest)
    if colors:
        theirs = np.array([colors[index][:3] for index in range(256)], np.uint8)[planes[0]]
    else:
        theirs = np.stack([stretched(plane, 0, 1000) for plane in planes], axis=-1) * np.moveaxis(known, 0, 2)
    np.testing.assert_array_equal(rgb, np.where(valid[..., None], theirs, 0))
