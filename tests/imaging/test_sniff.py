"""A content is named for what it is, whatever its file is called."""

import pytest

from maskrcnn.errors import ItemError
from maskrcnn.imaging.sniff import format_of


def media(*brands: bytes) -> bytes:
    """Return the beginning of an ISO media file with these brands, the first one its major brand."""
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    return (8 + len(body)).to_bytes(4) + b"ftyp" + body + bytes(100)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (media(b"avif", b"mif1", b"miaf"), "AVIF"),
        (media(b"mif1", b"avif", b"miaf"), "AVIF"),
        (media(b"avis", b"msf1"), "AVIF"),
        *((media(brand, b"mif1"), "HEIF") for brand in (b"heic", b"heix", b"heim", b"heis")),
        *((media(brand, b"msf1"), "HEIF") for brand in (b"hevc", b"hevx", b"hevm", b"hevs")),
        (media(b"mif1", b"heic"), "HEIF"),
        (media(b"mif1"), "HEIF"),
        (media(b"msf1", b"hevc"), "HEIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG2000"),
    ],
)
def test_formats_that_are_read(data: bytes, kind: str) -> None:
    assert format_of(data) == kind


def tga(kind: int, bits: int = 24, *, color_map: int = 0) -> bytes:
    return bytes([0, color_map, kind, 0, 0, 0, 0, 24 * color_map, 0, 0, 0, 0, 16, 0, 16, 0, bits, 0]) + bytes(
        768
    )


@pytest.mark.parametrize(
    ("data", "code", "name"),
    [
        (media(b"crx ", b"isom"), "unsupported_format", "Canon CR3, a camera's raw file"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(9), "unsupported_format", "Canon CR2, a camera's raw file"),
        (b"II\x1a\0\0\0HEAPCCDR", "unsupported_format", "Canon CRW, a camera's raw file"),
        (b"II*\0\x08\0\0\0IIII", "unsupported_format", "Phase One IIQ, a camera's raw file"),
        (b"IIRO\x08\0\0\0", "unsupported_format", "Olympus ORF, a camera's raw file"),
        (b"IIU\0\x08\0\0\0", "unsupported_format", "Panasonic RW2, a camera's raw file"),
        (b"FUJIFILMCCD-RAW 0201", "unsupported_format", "Fujifilm RAF, a camera's raw file"),
        (media(b"avci", b"mif1"), "unsupported_format", "HEIF of H.264"),
        (media(b"mif1", b"vvic"), "unsupported_format", "HEIF of H.266"),
        (media(b"jxl ", b"jxl "), "unsupported_format", "JPEG XL"),
        (b"\xff\x0a\xfa\x7f", "unsupported_format", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported_format", "JPEG XL"),
        (b"\x8aMNG\r\n\x1a\n", "unsupported_format", "MNG"),
        (b"\x8bJNG\r\n\x1a\n", "unsupported_format", "JNG"),
        (tga(2), "unsupported_format", "TGA"),
        (tga(10, 32), "unsupported_format", "TGA"),
        (tga(3, 8), "unsupported_format", "TGA"),
        (tga(1, 8, color_map=1), "unsupported_format", "TGA"),
        (b"\0\0\2\0\1\0\x20\x20\0\0", "unsupported_format", "CUR"),
        (b"\0\0\1\0\1\0\x20\x20\0\0", "unsupported_format", "ICO"),
        (
            b"EHFA_HEADER_TAG\0",
            "unsupported_format",
            "ERDAS Imagine (.img) is not read: convert it to GeoTIFF",
        ),
        (b"NITF02.10", "unsupported_format", "NITF is not read: convert it to GeoTIFF or COG"),
        (
            b'<VRTDataset rasterXSize="1">',
            "unsupported_format",
            "mosaic of GDAL (VRT) is not read: convert it to GeoTIFF",
        ),
        (b"ncols 4\nnrows 4\n", "unsupported_format", "ESRI ASCII grid is not read: convert it to GeoTIFF"),
        (b"<PAMDataset>", "not_an_image", "a sidecar of GDAL (.aux.xml)"),
        (b"0.5\n0\n0\n-0.5\n500000.25\n6e6\n", "not_an_image", "a world file"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "not_an_image", "a macOS resource fork"),
        (b"\0\0\0\1Bud1", "not_an_image", ".DS_Store"),
        (media(b"isom", b"mp42"), "not_an_image", "a video"),
        (media(b"qt  "), "not_an_image", "a video"),
        (bytes(600), "not_an_image", "an unknown format that begins with 00 00 00"),
    ],
)
def test_other_contents_are_refused_by_name(data: bytes, code: str, name: str) -> None:
    with pytest.raises(ItemError) as caught:
        format_of(data)
    assert caught.value.code == code
    assert name in caught.value.message
    assert ": " in caught.value.message
