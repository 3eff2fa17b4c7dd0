"""A TIFF without coordinates gives the same pixels in windows as it gives as a whole picture."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from maskrcnn.errors import ItemError
from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.imaging.geometry import Rect
from maskrcnn.imaging.radiometry import Radiometry, parse_radiometry
from maskrcnn.imaging.raster import RasterReader, raster_header

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LIMITS = Limits(10**8, 10**9, 1e9)
HEIGHT, WIDTH = 37, 53


def tiff(bands: np.ndarray, **profile: Any) -> bytes:
    """Write (bands, height, width) with GDAL."""
    count, height, width = bands.shape
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **profile
        ) as file:
            file.write(bands)
        return bytes(memory.read())


def noise(count: int, dtype: str = "uint8", bits: int | None = None) -> np.ndarray:
    most = 2 ** (bits or 8 * np.dtype(dtype).itemsize)
    return np.random.default_rng(count).integers(0, most, (count, HEIGHT, WIDTH)).astype(dtype)


def in_windows(
    data: bytes, radiometry: Radiometry | None = None
) -> tuple[np.ndarray, np.ndarray, int | None]:
    with RasterReader(io.BytesIO(data), radiometry or Radiometry(), assume_crs="none") as reader:
        pixels, valid = reader.read(Rect(0, 0, reader.info.width, reader.info.height))
        return pixels, valid, reader.info.orientation


def assert_same(data: bytes, scale: str | None = None) -> None:
    whole = decode_image(data, LIMITS)
    pixels, valid, orientation = in_windows(data, parse_radiometry(None, scale))
    assert orientation == whole.exif_orientation
    np.testing.assert_array_equal(pixels[valid], whole.pixels[valid])
    assert valid.any()


@pytest.mark.parametrize("compress", ["none", "lzw", "deflate"])
@pytest.mark.parametrize(
    ("bits", "photometric"),
    [(bits, name) for bits in (1, 2, 4, 8, 16) for name in ("MINISBLACK", "MINISWHITE")]
    + [(12, "MINISBLACK")],
)
def test_grey_of_any_depth_in_either_direction(bits: int, photometric: str, compress: str) -> None:
    bands = noise(1, "uint8" if bits <= 8 else "uint16", bits)
    packed = {} if bits in (8, 16) else {"NBITS": bits}
    data = tiff(bands, photometric=photometric, compress=compress, **packed)
    assert_same(data, None if bits <= 8 else f"0,{2**bits - 1}")


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("compress", ["lzw", "deflate"])
@pytest.mark.parametrize("alpha", [None, "NON-PREMULTIPLIED", "PREMULTIPLIED"])
def test_colours_with_and_without_alpha(interleave: str, compress: str, alpha: str | None) -> None:
    bands = noise(3)
    if alpha is not None:
        opaque = np.where(np.arange(WIDTH) % 5 == 0, noise(1)[0], 255)
        bands = np.concatenate([bands, [opaque]]).astype(np.uint8)
    if alpha == "PREMULTIPLIED":
        bands[:3] = bands[:3].astype(np.uint16) * bands[3] // 255
    options = {} if alpha is None else {"ALPHA": alpha}
    assert_same(tiff(bands, photometric="RGB", interleave=interleave, compress=compress, **options))


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("photometric", ["MINISBLACK", "MINISWHITE"])
def test_several_bands_of_grey_are_no_picture_but_a_raster(interleave: str, photometric: str) -> None:
    data = tiff(noise(3), photometric=photometric, interleave=interleave, compress="lzw")
    with pytest.raises(ItemError) as caught:
        decode_image(data, LIMITS)
    assert caught.value.code == "unsupported_pixels"
    assert in_windows(data)[1].all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "PA", "I;16"])
def test_what_pillow_writes(mode: str) -> None:
    picture = Image.fromarray(noise(4).transpose(1, 2, 0), "RGBA")
    if mode == "I;16":
        picture = Image.fromarray(noise(1, "uint16")[0])
    elif mode == "RGBA":
        picture.putalpha(255)
    else:
        picture = picture.convert("RGB").convert(mode)
    file = io.BytesIO()
    picture.save(file, "TIFF")
    assert_same(file.getvalue(), "0,65535" if mode == "I;16" else None)


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("tiled", [False, True])
def test_each_orientation(orientation: int | None, tiled: bool, tmp_path: Path) -> None:
    data = oriented(noise(3), orientation, tiled=tiled)
    assert_same(data)
    # Any rectangle is a part of the whole.
    whole = in_windows(data)[0]
    with RasterReader(io.BytesIO(data), Radiometry(), assume_crs="none") as reader:
        for rect in (Rect(0, 0, 5, 7), Rect(11, 3, 20, 19), Rect(reader.info.width - 4, 1, 4, 30)):
            part = whole[rect.row_off : rect.bottom, rect.col_off : rect.right]
            np.testing.assert_array_equal(reader.read(rect)[0], part)
            np.testing.assert_array_equal(reader.read_region(rect)[0], part)


def oriented(bands: np.ndarray, orientation: int | None, *, tiled: bool = False, **profile: Any) -> bytes:
    """Write a TIFF with the tag 274: GDAL cannot, so another tag of the same kind is renamed."""
    blocks = (
        {"tiled": True, "blockxsize": 16, "blockysize": 16} if tiled else {"tiled": False, "blockysize": 8}
    )
    data = bytearray(tiff(bands, photometric="RGB", interleave="pixel", **blocks, **profile))
    if orientation is None:
        return bytes(data)
    start = int.from_bytes(data[4:8], "little")
    for at in range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"), 12):
        if int.from_bytes(data[at : at + 2], "little") == 284:  # PlanarConfiguration, 1 by default
            entry = (274).to_bytes(2, "little") + data[at + 2 : at + 8] + orientation.to_bytes(4, "little")
            data[at : at + 12] = entry
    return bytes(data)


def test_a_transform_refers_to_the_pixels_as_stored() -> None:
    place = {"crs": "EPSG:32636", "transform": rasterio.Affine(0.5, 0, 450_000, 0, -0.5, 36_000)}
    data = oriented(noise(3), 6, **place)
    header = raster_header(io.BytesIO(data), Radiometry())
    assert (header.height, header.width) == (HEIGHT, WIDTH)
    with RasterReader(io.BytesIO(data), Radiometry()) as reader:
        assert reader.info.orientation is None


def test_colour_spaces_that_two_libraries_convert_differently_are_refused() -> None:
    for photometric in ("CIELAB", "ICCLAB", "ITULAB"):
        with pytest.raises(ItemError, match="convert them to RGB") as caught:
            in_windows(tiff(noise(3), photometric=photometric, interleave="pixel"))
        assert caught.value.code == "unsupported_pixels"


def test_of_white_is_zero_nodata_is_black_and_percentiles_are_of_stored_values(tmp_path: Path) -> None:
    bands = np.full((1, 20, 30), 195, np.uint8)
    bands[0, 2:8, 3:9], bands[0, 10] = 105, 7
    place = {"crs": "EPSG:32636", "transform": rasterio.Affine(0.5, 0, 450_000, 0, -0.5, 36_000)}
    data = tiff(bands, photometric="MINISWHITE", nodata=7, **place)
    with RasterReader(io.BytesIO(data), Radiometry()) as reader:
        pixels, valid = reader.read(Rect(0, 0, 30, 20))
        values, _ = reader.sample(1000)
    assert not valid[10].any()
    assert not pixels[10].any()
    assert set(pixels[valid].ravel().tolist()) == {60, 150}
    assert set(values[0].tolist()) == {105.0, 195.0}


# Previews


def with_preview(full: np.ndarray, preview: np.ndarray, *, marked: bool) -> bytes:
    """Write a TIFF of two pictures, the first of which may be marked as a reduced version."""
    file, tags = io.BytesIO(), TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 0
    first, second = (Image.fromarray(pixels) for pixels in (preview, full))
    first.save(file, "TIFF", tiffinfo=tags, save_all=True, append_images=[second])
    data = bytearray(file.getvalue())
    start = int.from_bytes(data[4:8], "little")
    for at in range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"), 12):
        if int.from_bytes(data[at : at + 2], "little") == 254:
            data[at + 8] = int(marked)
    return bytes(data)


def test_a_preview_is_not_the_picture() -> None:
    full, small = noise(3).transpose(1, 2, 0), np.zeros((4, 5, 3), np.uint8)
    data = with_preview(full, small, marked=True)
    np.testing.assert_array_equal(in_windows(data)[0], full)
    assert_same(data)
    header = raster_header(io.BytesIO(data), Radiometry(), "none")
    assert (header.height, header.width) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(in_windows(with_preview(full, small, marked=False))[0], small)


def test_a_preview_alone_is_refused() -> None:
    file, tags = io.BytesIO(), TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    Image.fromarray(noise(3).transpose(1, 2, 0)).save(file, "TIFF", tiffinfo=tags)
    with pytest.raises(ItemError, match="preview") as caught:
        in_windows(file.getvalue())
    assert caught.value.code == "unsupported_format"


# Alpha


def near_infrared(values: np.ndarray) -> bytes:
    bands = np.concatenate([noise(3), [values]]).astype(np.uint8)
    place = {"crs": "EPSG:32636", "transform": rasterio.Affine(0.5, 0, 450_000, 0, -0.5, 36_000)}
    return tiff(bands, photometric="RGB", ALPHA="YES", interleave="pixel", **place)


@pytest.mark.parametrize(
    ("bands", "alpha", "used", "doubtful"),
    [
        (None, None, True, 4),
        ("1,2,3", None, False, 4),
        ("4,1,2", None, False, 4),
        ("1,2,3", "4", True, None),
        (None, "none", False, None),
        (None, "4", True, None),
    ],
)
def test_near_infrared_marked_as_alpha(
    bands: str | None, alpha: str | None, used: bool, doubtful: int | None
) -> None:
    infrared = np.where(np.arange(WIDTH) < 9, 0, 120) * np.ones((HEIGHT, 1))
    data = near_infrared(infrared)
    radiometry = parse_radiometry(bands, None, alpha)
    assert raster_header(io.BytesIO(data), radiometry).doubtful_alpha == doubtful
    with RasterReader(io.BytesIO(data), radiometry) as reader:
        valid = reader.read(Rect(0, 0, WIDTH, HEIGHT))[1]
    np.testing.assert_array_equal(valid, infrared > 0 if used else np.ones_like(valid))


@pytest.mark.parametrize("most", [1, 255])
def test_a_mask_is_used_as_alpha_whatever_the_bands(most: int) -> None:
    mask = np.where(np.arange(WIDTH) < 9, 0, most) * np.ones((HEIGHT, 1))
    for bands in (None, "1,2,3"):
        header = raster_header(io.BytesIO(near_infrared(mask)), parse_radiometry(bands, None))
        assert header.doubtful_alpha is None
        with RasterReader(io.BytesIO(near_infrared(mask)), parse_radiometry(bands, None)) as reader:
            np.testing.assert_array_equal(reader.read(Rect(0, 0, WIDTH, HEIGHT))[1], mask > 0)


def test_a_band_that_is_not_there_cannot_be_alpha() -> None:
    with pytest.raises(ItemError, match="no band 5"):
        raster_header(io.BytesIO(near_infrared(np.zeros((HEIGHT, WIDTH)))), parse_radiometry(None, None, "5"))
