"""Decode the pixels of a JPEG that is sound, without Pillow: the same values in two thirds of the time.

Pillow and simplejpeg decode with the same library, libjpeg-turbo, by the same exact methods. Pillow stores a pixel in
four bytes and copies it twice more on the way to an array; simplejpeg writes it where it stays.
"""

import numpy as np
import simplejpeg
from PIL import Image

from ...types import Pixels


def sound_pixels(data: bytes, image: Image.Image) -> Pixels | None:
    """Return the pixels of a JPEG, (height, width, 3) RGB, uint8; None where Pillow has to decide what they are.

    That is where the decoder has anything to object, even if it could go on, and where colours are converted by
    Pillow: those of four inks.

    Args:
        image: the picture as Pillow has opened it, not loaded.

    Raises:
        MemoryError: there is not enough memory for the pixels.
    """
    if image.mode not in ("L", "RGB"):
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None
    width, height = image.size
    return pixels if pixels.shape == (height, width, 3) and pixels.dtype == np.uint8 else None
