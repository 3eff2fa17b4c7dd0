"""A content is named for what it is, whatever its file is called."""

import codecs

import pytest
from imaging.files import encoded
from PIL import Image

from maskrcnn.errors import ItemError, plural
from maskrcnn.imaging.formats.sniff import format_of, kind_of_text


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
        (b"\xff\x0a\xfa\x7f", "JPEGXL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEGXL"),
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
        (media(b"jxl ", b"jxl "), "unsupported_format", "JPEG XL without its first box"),
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
        (b"PF\n4 4\n-1.0\n", "unsupported_format", "PFM (a portable float map) is not read: convert it"),
        (b"Pf 4 4\n-1.0\n", "unsupported_format", "PFM"),
        (b"P6\r\n4 4 255\n", "unsupported_format", "Netpbm"),
        (b"\1\0\0\0\x6c\0\0\0" + bytes(32) + b" EMF\0\0\1\0", "unsupported_format", "EMF"),
        (b"\1\0\x09\0\0\3" + bytes(12), "unsupported_format", "WMF"),
        (b"/* XPM */\nstatic char *x[] = {", "unsupported_format", "XPM"),
        (b"Image type: RGB image\r\n", "unsupported_format", "IM (IFUNC)"),
        (b"#define x_width 16\n", "unsupported_format", "XBM"),
        *(
            (
                (16).to_bytes(4) + box + bytes(8) + b"\0\0\1\0mdat" + bytes(300),
                "not_an_image",
                "a video (QuickTime",
            )
            for box in (b"wide", b"free", b"skip", b"mdat", b"moov", b"styp")
        ),
        (b"\0\0\0\1mdat" + bytes(300), "not_an_image", "a video (QuickTime or MP4)"),
        ("Name;Größe\r\n".encode("utf-16"), "not_an_image", "text in UTF-16"),
        (codecs.BOM_UTF16_BE + "Größe".encode("utf-16-be"), "not_an_image", "text in UTF-16"),
        ("<html><body>nothing</body>".encode("utf-16-le"), "not_an_image", "HTML in UTF-16"),
        (b"\x93NUMPY\1\0v\0", "not_an_image", "a NumPy array"),
        (b"\n\n/9j/4AAQSkZJRgABAQ", "not_an_image", "an image in base64, as text"),
        (b"data:image/png;base64,iVBORw0KGgo", "not_an_image", "an image in a data: URI, as text"),
        (bytes(600), "not_an_image", "zeros, as an unfinished download leaves them"),
        (b"\7\7\7\7" * 20, "not_an_image", "an unknown format that begins with 07 07 07"),
    ],
)
def test_other_contents_are_refused_by_name(data: bytes, code: str, name: str) -> None:
    with pytest.raises(ItemError) as caught:
        format_of(data)
    assert caught.value.code == code
    assert name in caught.value.message
    assert ": " in caught.value.message


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"\n\n  ",
        codecs.BOM_UTF8,
        b"<!-- served by a proxy -->\n",
        b"<?xml version='1.0'?>\n<!-- <svg> --> ",
        codecs.BOM_UTF8 + b"\r\n<!--a--><!--b-->",
    ],
)
@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html>",
        b"<HTML>",
        b"<head>",
        b"<script>x()</script>",
        b"<title>404",
        b"<body bgcolor='red'>",
    ],
)
def test_a_web_page_is_html_whatever_precedes_it(before: bytes, page: bytes) -> None:
    assert kind_of_text(before + page + b" ...") == "HTML"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"<!-- a drawing -->\n<svg xmlns='http://www.w3.org/2000/svg'>", "SVG"),
        (b"<annotation><path>a.jpg</path>", "XML"),
        (b"<?xml version='1.0'?><p:x xmlns:p='x'/>", "XML"),
        (b"{}", "JSON"),
        ("Größe".encode(), "text"),
        ("Größe".encode("latin-1"), None),
    ],
)
def test_other_texts_are_no_web_pages(text: bytes, kind: str | None) -> None:
    assert kind_of_text(text) == kind


@pytest.mark.parametrize(
    "before", [codecs.BOM_UTF8, b"\n", b"HTTP/1.1 200 OK\r\n\r\n", bytes(128), b"\xef\xbb\xbf\r\n"]
)
@pytest.mark.parametrize(
    ("name", "kind"), [("JPEG", "JPEG"), ("PNG", "PNG"), ("GIF", "GIF"), ("WebP", "WEBP")]
)
def test_an_image_behind_other_bytes_is_named(before: bytes, name: str, kind: str) -> None:
    image = encoded(Image.new("RGB", (8, 8)), kind)
    assert format_of(image) == kind
    with pytest.raises(ItemError) as caught:
        format_of(before + image)
    assert caught.value.code == "corrupt"
    assert caught.value.message.startswith(
        f"{name} behind {plural(len(before), 'byte')} that do not belong to it"
    )


def test_an_image_inside_another_file_is_not_that_file() -> None:
    image = encoded(Image.new("RGB", (8, 8)), "JPEG")
    for before, name in (
        (b"PAR1\x15\0", "Parquet"),
        (b"AVI LIST".rjust(16, b"\1"), "a video"),
        (b"\x99\1", "unknown format"),
    ):
        with pytest.raises(ItemError, match=name) as caught:
            format_of(before + image)
        assert caught.value.code == "not_an_image"


def test_an_image_that_was_changed_as_text_is_named() -> None:
    png, jpeg = (encoded(Image.new("RGB", (8, 8)), kind) for kind in ("PNG", "JPEG"))
    for changed in (
        png.replace(b"\r\n", b"\n"),
        png.replace(b"\n", b"\r\n"),
        png.decode("latin-1").encode(),
        png.decode("utf-8", "replace").encode(),
        jpeg.decode("utf-8", "replace").encode(),
        jpeg.decode("latin-1").encode(),
    ):
        with pytest.raises(ItemError, match="copy it again as binary data") as caught:
            format_of(changed)
        assert caught.value.code == "corrupt"
