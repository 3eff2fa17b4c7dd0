"""Files of rare kinds, written by hand: what Pillow cannot write, and parts of files to put together."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    checksum = zlib.crc32(kind + body) ^ (not sound)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body


def lossless_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return (height, width, bands) as lossless JPEG, SOF3, each sample predicted by its left neighbour.

    Reference: ITU-T T.81, annex H.
    """
    height, width, bands = pixels.shape
    ids = b"RGB"[:bands]
    components = b"".join(bytes([name, 0x11, 0]) for name in ids)
    # Codes of 4 bits for the 9 categories of differences.
    table = bytes([0, 0, 0, 0, 9] + [0] * 12) + bytes(range(9))
    bits = []
    for row in range(height):
        for column in range(width):
            for band in range(bands):
                if column:
                    predicted = int(pixels[row, column - 1, band])
                else:
                    predicted = int(pixels[row - 1, 0, band]) if row else 128
                difference = (int(pixels[row, column, band]) - predicted + 128) % 256 - 128
                size = abs(difference).bit_length()
                bits.append(f"{size:04b}")
                if size:
                    value = difference if difference > 0 else difference + (1 << size) - 1
                    bits.append(f"{value:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\0")
    return b"".join(
        [
            b"\xff\xd8",
            jpeg_segment(0xC3, struct.pack(">BHHB", 8, height, width, bands) + components),
            jpeg_segment(0xC4, table),
            jpeg_segment(0xDA, bytes([bands]) + b"".join(bytes([name, 0]) for name in ids) + b"\1\0\0"),
            data,
            b"\xff\xd9",
        ]
    )


Tags = dict[int, tuple[int, Sequence[int] | bytes]]
"""By tag: its type, and its values."""


def tiff_of_directories(
    pages: Sequence[tuple[NDArray[Any], Tags]], *, big: bool = False, children: int = 0, order: str = "<"
) -> bytes:
    """Return an uncompressed TIFF of these pictures, each one strip; the last `children` are SubIFDs of the first.

    The tags of a picture are added to those that describe its pixels, or replace them.
    """
    count_format, entry_format, link, mark = ("Q", "HHQ", "Q", 43) if big else ("H", "HHI", "I", 42)
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 13: 4, 16: 8, 18: 8}
    width = struct.calcsize("<" + link)
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", mark)
    header += struct.pack(f"{order}HH", 8, 0) if big else b""
    body = bytearray(header + bytes(width))
    n_pages = len(pages) - children

    def values_of(kind: int, values: Sequence[int] | bytes) -> bytes:
        if isinstance(values, bytes):
            return values
        letter = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}[kind]
        return struct.pack(f"{order}{len(values)}{letter}", *values)

    starts: list[int] = []
    links: list[int] = []
    child_at = 0
    for index, (pixels, tags) in enumerate(pages):
        height, columns = pixels.shape[:2]
        bands = 1 if pixels.ndim == 2 else pixels.shape[2]
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        place = len(body)
        body += data + bytes(len(data) % 2)
        all_tags: Tags = {
            256: (4, [columns]),
            257: (4, [height]),
            258: (3, [8 * pixels.dtype.itemsize] * bands),
            259: (3, [1]),
            262: (3, [2 if bands >= 3 else 1]),
            273: (4, [place]),
            277: (3, [bands]),
            278: (4, [height]),
            279: (4, [len(data)]),
        }
        all_tags |= tags
        if index == 0 and children:
            all_tags[330] = (13, [0] * children)
        table = b""
        raw_of: dict[int, bytes] = {}
        for tag, (kind, values) in sorted(all_tags.items()):
            raw = values_of(kind, values)
            if len(raw) > width:
                raw_of[tag] = struct.pack(order + link, len(body))
                if tag == 330:
                    child_at = len(body)
                body += raw + bytes(len(raw) % 2)
        starts.append(len(body))
        for tag, (kind, values) in sorted(all_tags.items()):
            raw = values_of(kind, values)
            if tag == 330 and tag not in raw_of:
                child_at = (
                    len(body)
                    + struct.calcsize("<" + count_format)
                    + len(table)
                    + struct.calcsize("<" + entry_format)
                )
            table += struct.pack(order + entry_format, tag, kind, len(raw) // sizes[kind])
            table += raw_of.get(tag, raw.ljust(width, b"\0"))
        body += struct.pack(order + count_format, len(all_tags)) + table
        links.append(len(body))
        body += bytes(width)
    struct.pack_into(order + link, body, 8 if big else 4, starts[0])
    for index in range(n_pages - 1):
        struct.pack_into(order + link, body, links[index], starts[index + 1])
    for index, start in enumerate(starts[n_pages:]):
        struct.pack_into(f"{order}I", body, child_at + 4 * index, start)
    return bytes(body)


def jpeg_xl_header(
    bits: int = 8,
    orientation: int = 1,
    channels: Sequence[tuple[int, bool]] = (),
    color_space: int | None = None,
    exponent_bits: int = 0,
) -> bytes:
    """Return the header of a JPEG XL of 32 x 24 pixels, as libjxl writes it of lossless pixels.

    Args:
        channels: the kind of each extra channel (0 is alpha), and whether the colours are multiplied by it.
        color_space: None for sRGB.
    """
    text = ""

    def put(number: int, count: int) -> None:
        nonlocal text
        text += f"{number:0{count}b}"[::-1] if count else ""

    def put_enum(number: int) -> None:
        put(min(number, 2), 2)
        if number >= 2:
            put(number - 2, 4)

    def put_depth() -> None:
        put(exponent_bits > 0, 1)
        put(3, 2)
        put(bits - 1, 6)
        if exponent_bits:
            put(exponent_bits - 1, 4)

    put(0b011_00010_1, 9)  # small; 8 * (2 + 1) rows; 4 : 3
    put(0, 1)
    put(orientation != 1, 1)
    if orientation != 1:
        put(orientation - 1, 6)
    if (bits, exponent_bits) == (8, 0):
        put(0, 3)
    else:
        put_depth()
    put(1, 1)
    put(min(len(channels), 2), 2)
    if len(channels) >= 2:
        put(len(channels) - 2, 4)
    for kind, is_multiplied in channels:
        put((kind, is_multiplied) == (0, False), 1)
        if (kind, is_multiplied) != (0, False):
            put_enum(kind)
            put(0, 3 + 2 + 2)
            if kind == 0:
                put(is_multiplied, 1)
    put(0, 1)
    put(color_space is None, 1)
    if color_space is not None:
        put(0, 1)
        put_enum(color_space)
    if orientation != 1:
        put(1, 1)
    put(0b100, 3)
    text += "0" * (-len(text) % 8)
    return b"\xff\x0a" + int(text[::-1], 2).to_bytes(len(text) // 8, "little")
