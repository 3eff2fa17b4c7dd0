"""The names of TIFF's compressions, for `Refusal.TIFF_COMPRESSION`."""

from typing import Final

_TIFF_COMPRESSIONS: Final = {
    1: "no compression",
    2: "CCITT modified Huffman",
    3: "CCITT group 3",
    4: "CCITT group 4",
    5: "LZW",
    6: "old-style JPEG",
    7: "JPEG",
    8: "deflate",
    9: "JBIG",
    10: "JBIG",
    32766: "NeXT run lengths",
    32767: "Sony ARW",
    32769: "packed raw values of a camera",
    32770: "Samsung SRW",
    32771: "CCITT modified Huffman in words",
    32773: "PackBits",
    32809: "ThunderScan",
    32867: "Kodak 262",
    32895: "IT8 CT padding",
    32896: "IT8 linework",
    32897: "IT8 monochrome",
    32898: "IT8 binary line art",
    32908: "Pixar film",
    32909: "Pixar log",
    32946: "deflate",
    32947: "Kodak DCS",
    33003: "JPEG 2000 (Aperio, YCbCr)",
    33004: "JPEG 2000, lossy",
    33005: "JPEG 2000 (Aperio, RGB)",
    33007: "a codec of Alternative Technologies",
    34661: "JBIG",
    34663: "JBIG2",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv of 24 bits",
    34692: "LuraDocument",
    34712: "JPEG 2000",
    34713: "Nikon NEF",
    34715: "JBIG2",
    34718: "Microsoft document imaging",
    34719: "Microsoft document imaging",
    34720: "Microsoft document imaging",
    34887: "LERC",
    34888: "ESRI codes",
    34892: "lossy JPEG of a DNG",
    34925: "LZMA",
    34926: "zstd",
    34927: "WebP",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    48124: "JetRaw",
    50000: "zstd",
    50001: "WebP",
    50002: "JPEG XL",
    50013: "PixTIFF",
    52546: "JPEG XL",
    65000: "EER, or Kodak DCR",
    65001: "EER",
    65002: "EER",
    65535: "Pentax PEF",
}
"""The values of TIFF's tag 259. Reference: TIFF 6.0; libtiff's tiff.h; DNG 1.7; Bio-Formats' TiffCompression."""


def tiff_compression(number: int) -> str:
    """Return the name of a TIFF's compression, for `Refusal.TIFF_COMPRESSION`.

    >>> tiff_compression(34712)
    'JPEG 2000'
    """
    return _TIFF_COMPRESSIONS.get(number, f"an unregistered compression (tag 259 is {number})")
