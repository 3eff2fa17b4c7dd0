"""Convert the pixels of a picture that Pillow has decoded to 8-bit RGB, by the rules of `decode`."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from ...types import Pixels
from ..decode_errors import name_of, numbers, unsupported_pixels


def rgb_of(image: Image.Image) -> Pixels:
    """Return the pixels of a loaded image as RGB, (height, width, 3) uint8.

    Raises:
        ItemError: `unsupported_pixels`.
    """
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        return np.repeat(_grey(image)[..., None], 3, axis=2)
    if mode in ("I", "F"):
        kind = str(image.format)
        raise unsupported_pixels(kind, f"{name_of(kind)} of 32-bit {'integers' if mode == 'I' else 'floats'}")
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, lab, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return np.array(converted)
    if mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Return 16-bit grey, or 12-bit grey of a TIFF, scaled to 8 bits: (height, width) uint8. Raises ItemError."""
    white, inverted = 65_535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 2 ** int(numbers(image.tag_v2, TiffImagePlugin.BITSPERSAMPLE, 16)[0]) - 1
        # Pillow inverts white-is-zero images of up to 8 bits only.
        inverted = numbers(image.tag_v2, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1)[0] == 0
    values = np.asarray(image).astype(np.uint32)
    largest = int(values.max())
    if 0 < largest <= white // 16:
        bits = white.bit_length()
        raise unsupported_pixels(
            str(image.format),
            f"{bits}-bit grey that uses only the lowest part of its range (maximum {largest} of {white})",
        )
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    return 255 - grey if inverted else grey
