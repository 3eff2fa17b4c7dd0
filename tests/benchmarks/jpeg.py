"""Decoding JPEGs: CPU time of `decode_image` against Pillow and other libraries, and whether the pixels are equal.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.jpeg [--repeats 7] [--images FOLDER]

From bytes to an array (height, width, 3) of RGB, in one process and one thread, the sides taking turns. "by Pillow" is
`decode_image` without simplejpeg; "Pillow" and the others are the bare libraries. Those that are not installed are
named and left out: PyTurboJPEG (with libjpeg-turbo 3), opencv-python-headless, torchcodec. `--images` reads the small
photos from a folder instead of generating them.
"""

import argparse
import importlib
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
from PIL import Image

from maskrcnn.imaging import decode
from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.imaging.decode_pool import keep_freed_memory
from maskrcnn.types import Pixels

from .inputs import COCO_SIZE, PHOTO_SIZE, photo
from .measure import machine, rounds

LIMITS: Final = Limits(10**8, 2**29, 100)
KINDS: Final[dict[str, dict[str, Any]]] = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "grey": {},
    "CMYK": {},
}
SMALL_PHOTOS: Final = 10
Decode = Callable[[bytes], Pixels]


def pillow(data: bytes) -> Pixels:
    """Decode as short a way as Pillow has."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def ours(data: bytes) -> Pixels:
    return decode_image(data, LIMITS).pixels


def ours_by_pillow(data: bytes) -> Pixels:
    with mock.patch.object(decode, "sound_pixels", return_value=None):
        return ours(data)


def _simplejpeg() -> Decode:
    library = importlib.import_module("simplejpeg")
    return lambda data: library.decode_jpeg(data, "RGB")


def _turbojpeg() -> Decode:
    library = importlib.import_module("turbojpeg")
    reader = library.TurboJPEG()
    return lambda data: reader.decode(data, pixel_format=library.TJPF_RGB)


def _opencv() -> Decode:
    library = importlib.import_module("cv2")
    library.setNumThreads(1)
    flags = library.IMREAD_COLOR_RGB | library.IMREAD_IGNORE_ORIENTATION
    return lambda data: library.imdecode(np.frombuffer(data, np.uint8), flags)


def _of_torch(module: str) -> Decode:
    import torch

    torch.set_num_threads(1)
    library = importlib.import_module(module)

    def side(data: bytes) -> Pixels:
        planes = library.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
        return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())

    return side


OTHERS: Final[dict[str, Callable[[], Decode]]] = {
    "simplejpeg": _simplejpeg,
    "PyTurboJPEG": _turbojpeg,
    "OpenCV": _opencv,
    "torchvision": lambda: _of_torch("torchvision.io"),
    "torchcodec": lambda: _of_torch("torchcodec.decoders"),
}


def installed() -> dict[str, Decode]:
    """Return the sides that can be measured here, and say which cannot."""
    sides: dict[str, Decode] = {"ours": ours, "by Pillow": ours_by_pillow, "Pillow": pillow}
    for name, make in OTHERS.items():
        try:
            sides[name] = make()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name}: left out ({str(error).splitlines()[0]})")
    return sides


def files(kind: str, photos: list[Image.Image]) -> list[bytes]:
    mode = {"grey": "L", "CMYK": "CMYK"}.get(kind, "RGB")
    written = []
    for image in photos:
        file = io.BytesIO()
        image.convert(mode).save(file, "JPEG", quality=90, **KINDS[kind])
        written.append(file.getvalue())
    return written


def compare(sides: dict[str, Decode], photos: list[bytes], repeats: int) -> None:
    """Print a line for each side: milliseconds a photo, as a share of `by Pillow`, and how its pixels differ."""
    expected = [pillow(data) for data in photos]
    differs = {}
    for name, side in sides.items():
        try:
            differs[name] = difference([side(data) for data in photos], expected)
        except Exception as error:  # noqa: BLE001 (each library has exceptions of its own)
            print(f"  {name:12} does not read it: {error}")
    timed = {name: timer(sides[name], photos) for name in differs}
    measured = rounds(timed, repeats)
    for name, times in measured.items():
        ratios = [one / other for one, other in zip(times, measured["by Pillow"], strict=True)]
        print(
            f"  {name:12} {statistics.median(times):7.2f} ms ({min(times):.2f}-{max(times):.2f})  "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})  {differs[name]}"
        )


def timer(side: Decode, photos: list[bytes]) -> Callable[[], float]:
    def measure() -> float:
        started = time.process_time()
        for data in photos:
            side(data)
        return 1000 * (time.process_time() - started) / len(photos)

    return measure


def difference(results: list[Pixels], expected: list[Pixels]) -> str:
    if any(result.shape != other.shape for result, other in zip(results, expected, strict=True)):
        return "another shape"
    gaps = np.concatenate(
        [np.abs(result.astype(int) - other).ravel() for result, other in zip(results, expected, strict=True)]
    )
    if not gaps.any():
        return "equal"
    return f"{np.mean(gaps > 0):.1%} of values differ, by up to {gaps.max()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    print(machine())
    print("Pillow's libjpeg-turbo:", importlib.import_module("PIL.features").version("libjpeg_turbo"))
    decoders = installed()
    if options.images:
        paths = sorted(options.images.iterdir())[:SMALL_PHOTOS]
        small = [Image.open(path).convert("RGB") for path in paths]
    else:
        small = [Image.fromarray(photo(*COCO_SIZE, seed=seed)) for seed in range(SMALL_PHOTOS)]
    large = [Image.fromarray(photo(*PHOTO_SIZE, seed=0))]
    for what in KINDS:
        for size, images in ((f"{len(small)} of 640 x 480", small), ("12 megapixels", large)):
            print(f"{what}, {size}")
            compare(decoders, files(what, images), options.repeats)
