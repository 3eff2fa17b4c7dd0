"""Two decoders of JPEG, one result: what simplejpeg decodes are Pillow's pixels, and Pillow decides all else."""

import io
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imaging.files import encoded, jpeg_segment, lossless_jpeg
from PIL import Image

from maskrcnn.errors import ItemError
from maskrcnn.imaging import decode
from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.imaging.formats.jpeg_pixels import sound_pixels

LIMITS = Limits(10**7, 10**7, 100)
NOISE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
SMOOTH = np.clip(
    np.add.outer(np.arange(70) * 2, np.arange(90))[..., None] * [1.0, 0.8, 0.6] + NOISE // 8, 0, 255
)
PICTURE = Image.fromarray(SMOOTH.astype(np.uint8))


def result(data: bytes) -> Any:
    try:
        image = decode_image(data, LIMITS)
    except ItemError as error:
        return error.code, error.message, error.width, error.height
    return image.exif_orientation, image.pixels.shape, image.pixels.tobytes()


def assert_same_as_pillow(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with_both = result(data)
    with monkeypatch.context() as patch:
        patch.setattr(decode, "sound_pixels", lambda data, image: None)
        assert with_both == result(data)


@given(
    st.integers(1, 90),
    st.integers(1, 70),
    st.sampled_from(["RGB", "L"]),
    st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
            "progressive": st.booleans(),
            "restart_marker_blocks": st.sampled_from([0, 1, 5]),
        }
    ),
)
@settings(max_examples=60, deadline=None)
def test_the_pixels_are_those_of_pillow(width: int, height: int, mode: str, options: dict[str, Any]) -> None:
    data = encoded(PICTURE.crop((0, 0, width, height)).convert(mode), "JPEG", **options)
    image = Image.open(io.BytesIO(data))
    pixels = sound_pixels(data, image)
    assert pixels is not None
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def sampled(factors: bytes) -> bytes:
    """Return a JPEG of flat colours whose components have these sampling factors, which no encoder here writes."""
    data = bytearray(encoded(Image.new("RGB", (64, 64), (200, 90, 30)), "JPEG", subsampling="4:4:4"))
    frame = data.index(b"\xff\xc0")
    for component, factor in enumerate(factors):
        data[frame + 11 + 3 * component] = factor
    return bytes(data)


ADOBE = jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")
RARE: dict[str, bytes] = {
    "CMYK": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "RGB without a transform": encoded(PICTURE, "JPEG")[:2] + ADOBE + encoded(PICTURE, "JPEG")[20:],
    "kept as RGB": encoded(PICTURE, "JPEG", keep_rgb=True),
    "lossless": lossless_jpeg(NOISE[:24, :32]),
    "several pictures": encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE.rotate(180)]),
    "bytes behind the end": encoded(PICTURE, "JPEG") + b"more",
    "a second picture behind the end": 2 * encoded(PICTURE, "JPEG"),
    "no end": encoded(PICTURE, "JPEG")[:-2],
    "half": encoded(PICTURE, "JPEG")[:1500],
    "few scans": encoded(PICTURE, "JPEG", progressive=True)[:2500] + b"\xff\xd9",
    **{f"sampling {factors.hex()}": sampled(factors) for factors in (b"\x41\x11\x11", b"\x12\x11\x11")},
    **{f"sampling {factors.hex()}": sampled(factors) for factors in (b"\x22\x21\x12", b"\x31\x11\x11")},
}


@pytest.mark.parametrize("what", RARE)
def test_rare_files_come_out_as_pillow_reads_them(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same_as_pillow(RARE[what], monkeypatch)


def test_the_orientation_is_applied_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(PICTURE, "JPEG", exif=exif)
    assert decode_image(data, LIMITS).pixels.shape == (90, 70, 3)
    assert_same_as_pillow(data, monkeypatch)


def test_damaged_files_come_out_as_pillow_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(0)
    sound = [encoded(PICTURE, "JPEG"), encoded(PICTURE, "JPEG", progressive=True, restart_marker_blocks=3)]
    for _ in range(150):
        data = bytearray(dice.choice(sound))
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        assert_same_as_pillow(bytes(data), monkeypatch)
