"""Damaged files, thousands of them: each becomes one row, and none takes anything with it.

    CHAOS_SIZE=2 python -m pytest -s tests/chaos/test_mutations.py

prints what became of 2,000 mutations of each format; `CHAOS_MUTATIONS` says another number, `CHAOS_SEED` other dice.
"""

import contextlib
import io
import os
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
import pytest
from maskrcnn_jobs.driver.planning import Request, prepare
from numpy.typing import NDArray
from PIL import Image

import maskrcnn
from chaos.chance import SIZE, chance, dice
from maskrcnn.config import InferenceConfig
from maskrcnn.errors import ERROR_CODES, ItemError
from maskrcnn.imaging.decode import DecodedImage, Limits
from maskrcnn.imaging.decode_pool import Decoders
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.results.verify import verify_run
from maskrcnn.synthetic.planted import PlantedSegmenter
from maskrcnn.visualization.run_report import write_report

COUNT: Final = int(os.environ.get("CHAOS_MUTATIONS", "300" if SIZE == 1 else "2000"))
HANG_S: Final = 10.0
LIMITS: Final = Limits(10**7, 10**7, 1333.0)


# What is mutated

_NOISE = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
_SMOOTH = np.add.outer(np.arange(40) * 3, np.arange(56) * 2)[..., None] % 256 * np.ones(3)
PICTURE = Image.fromarray(((_NOISE // 4) + _SMOOTH * 0.7).astype(np.uint8))
GREY_16 = Image.fromarray(np.linspace(0, 65_535, 40 * 56).astype(np.uint16).reshape(40, 56))


def encoded(kind: str, image: Image.Image = PICTURE, **options: Any) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # what is saved remembers how
    return file.getvalue()


def animated(kind: str) -> bytes:
    return encoded(kind, save_all=True, append_images=[PICTURE.rotate(90), PICTURE.rotate(180)])


def jpeg_xl(pixels: NDArray[Any] | None = None, **options: Any) -> bytes:
    data: bytes = imagecodecs.jpegxl_encode(
        np.asarray(PICTURE) if pixels is None else pixels, numthreads=1, **options
    )
    return data


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[306], exif[37510] = 6, "2026:11:23 00:00:00", b"a comment" * 20
    return exif


SOUND: Final[dict[str, list[bytes]]] = {
    "JPEG": [
        encoded("JPEG"),
        encoded("JPEG", progressive=True, quality=60),
        encoded("JPEG", PICTURE.convert("L"), subsampling=0),
        encoded("JPEG", PICTURE.convert("CMYK")),
        encoded("JPEG", exif=_exif(), icc_profile=b"p" * 300, restart_marker_blocks=2),
        animated("MPO"),
    ],
    "PNG": [
        encoded("PNG"),
        encoded("PNG", PICTURE.quantize(32), transparency=bytes(range(32))),
        encoded("PNG", GREY_16),
        encoded("PNG", PICTURE.convert("1")),
        encoded("PNG", PICTURE.convert("RGBA"), exif=_exif(), icc_profile=b"p" * 300),
        animated("PNG"),
    ],
    "WEBP": [
        encoded("WEBP"),
        encoded("WEBP", lossless=True),
        encoded("WEBP", PICTURE.convert("RGBA"), exif=_exif(), icc_profile=b"p" * 300),
        animated("WEBP"),
    ],
    "AVIF": [
        encoded("AVIF"),
        encoded("AVIF", PICTURE.convert("L")),
        encoded("AVIF", PICTURE.convert("RGBA"), exif=_exif()),
        animated("AVIF"),
    ],
    "JPEG2000": [
        encoded("JPEG2000", irreversible=True),
        encoded("JPEG2000", no_jp2=True),
        encoded("JPEG2000", PICTURE.convert("RGBA"), tile_size=(32, 32)),
        encoded("JPEG2000", GREY_16),
    ],
    "JPEGXL": [
        jpeg_xl(level=80),
        jpeg_xl(np.dstack([PICTURE, PICTURE.convert("L")]), level=90, usecontainer=True),
        jpeg_xl(np.asarray(GREY_16)),
        jpeg_xl(np.stack([PICTURE, PICTURE.rotate(180)]), photometric="rgb"),
        imagecodecs.jpegxl_encode_jpeg(encoded("JPEG", exif=_exif()), usecontainer=True, numthreads=1),
    ],
    "TIFF": [
        encoded("TIFF"),
        encoded("TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
        encoded("TIFF", compression="tiff_adobe_deflate", exif=_exif()),
        encoded("TIFF", compression="packbits"),
        encoded("TIFF", compression="jpeg"),
        encoded("TIFF", PICTURE.convert("1"), compression="group4"),
        encoded("TIFF", PICTURE.convert("CMYK"), compression="tiff_lzw"),
        encoded("TIFF", PICTURE.quantize(32)),
        encoded("TIFF", GREY_16, compression="tiff_lzw"),
        encoded("TIFF", big_tiff=True),
        animated("TIFF"),
    ],
}
"""By format: several kinds of sound files, of which half are only reached by code that others are not."""

EXTREMES: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


# How it is mutated


def flip(dice: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    for _ in range(dice.randint(1, 8)):
        data[place(dice, data)] ^= 1 << dice.randrange(8)


def overwrite(dice: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = place(dice, data)
    data[at : at + dice.randint(1, 16)] = dice.randbytes(dice.randint(1, 16))


def extreme(dice: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    """Put a number where there may be a size, a count or an offset."""
    at, size = place(dice, data), dice.choice((1, 2, 4))
    number = dice.choice(EXTREMES) % 256**size
    data[at : at + size] = number.to_bytes(size, dice.choice(("big", "little")))


def delete(dice: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = place(dice, data)
    del data[at : at + dice.choice((1, 2, 4, 100))]


def insert(dice: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = place(dice, data)
    data[at:at] = dice.randbytes(dice.choice((1, 2, 4, 100)))


def truncate(dice: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[dice.randrange(1, len(data)) :]


def repeat(dice: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    start, stop = sorted((place(dice, data), place(dice, data)))
    data[stop:stop] = data[start:stop] * dice.choice((1, 2, 50))


def splice(dice: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    """Go on with another file of the format."""
    other = dice.choice(others)
    del data[place(dice, data) :]
    data += other[dice.randrange(len(other)) :]


WAYS: Final = (flip, overwrite, extreme, delete, insert, truncate, repeat, splice)


def place(dice: random.Random, data: bytearray) -> int:
    """Return where to strike: half of the times near the beginning, where the structure is."""
    return dice.randrange(min(len(data), 200) if dice.random() < 0.5 else len(data)) if data else 0


def mutated(dice: random.Random, sound: Sequence[bytes]) -> bytes:
    data = bytearray(dice.choice(sound))
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if data:
            dice.choice(WAYS)(dice, data, sound)
    return with_right_checksums(data) if dice.random() < 0.5 else bytes(data)


def with_right_checksums(data: bytearray) -> bytes:
    """Make a PNG's chunks as sound as their makers could, so that more than a checksum must notice what is wrong."""
    at = 8
    while data.startswith(b"\x89PNG\r\n") and (end := at + 8 + int.from_bytes(data[at : at + 4])) + 4 <= len(
        data
    ):
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(data)


# What became of it


@pytest.mark.parametrize("kind", SOUND)
def test_every_mutation_is_a_row(kind: str, tmp_path: Path) -> None:
    draw = chance("mutations", kind)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(COUNT):
        # No suffix agrees with the content.
        (images / f"{number:06d}.{draw.choice(('jpg', 'png', 'webp', 'tif'))}").write_bytes(
            mutated(draw, SOUND[kind])
        )
    with Decoders(2, timeout_s=HANG_S) as decoders:
        timed = Timed(decoders)
        whole_job(images, tmp_path / "run", timed)
    rows = maskrcnn.open_run(str(tmp_path / "run")).images().to_pylist()

    outcomes = Counter(row["error"] or "decoded" for row in rows)
    print(
        f"\n{dice()} {COUNT} mutations of {kind}: {dict(outcomes.most_common())}; slowest {timed.slowest_s:.3f} s"
    )
    assert [row["name"] for row in rows] == sorted(path.name for path in images.iterdir())
    for row in rows:
        assert (row["status"] == "failed") == (row["error"] is not None) == (row["message"] is not None)
        assert row["error"] is None or row["error"] in ERROR_CODES
        assert row["error"] is not None or (row["width"] > 0 and row["height"] > 0)
    assert not {"timeout", "not_found", "storage_error", "changed"} & set(outcomes)
    assert outcomes["decoded"], "no file survived: the mutations were too wild to reach the decoder's depths"
    assert outcomes["corrupt"] + outcomes["truncated"] > COUNT // 10, "the mutations were too mild"


def test_the_files_before_mutation_are_sound() -> None:
    with Decoders(1) as decoders:
        for kind, files in SOUND.items():
            for number, data in enumerate(files):
                assert decoders.decode(data, LIMITS).pixels.shape[2] == 3, (kind, number)


def test_decoders_keep_to_themselves_what_they_think_of_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    draw = chance("loud")
    with Decoders(1) as decoders:
        for _ in range(100):
            with contextlib.suppress(ItemError):
                decoders.decode(mutated(draw, SOUND["TIFF"]), LIMITS)
    assert capfd.readouterr() == ("", "")


class Timed:
    """Decodes, and remembers how long the slowest took; all decoders have started."""

    def __init__(self, decoders: Decoders) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda data: decoders.decode(data, LIMITS), SOUND["JPEG"] * 8))
        self._decoders = decoders
        self.slowest_s = 0.0

    def __call__(self, data: bytes, limits: Limits) -> DecodedImage:
        started = time.perf_counter()
        try:
            return self._decoders.decode(data, limits)
        finally:
            self.slowest_s = max(self.slowest_s, time.perf_counter() - started)


def whole_job(images: Path, output: Path, decode: Callable[[bytes, Limits], DecodedImage]) -> None:
    """Plan, run all shards in one worker, and reduce."""
    plan = prepare(Request(str(images), str(output), InferenceConfig("planted"), shard_images=500))
    worker = ShardWorker(Storage(str(output)), PlantedSegmenter(), LIMITS, {"node": "here"}, 2, decode)
    for shard in plan:
        worker.run_shard(shard)
    reduce_run(str(output), write_report=write_report)
    assert verify_run(str(output)).proven
