"""A fifth of a collection is bad, in random order: each bad input fails with its own code, and no other."""

import io
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from maskrcnn_jobs.driver.planning import Request, prepare
from PIL import Image
from planted_images import random_instances

import maskrcnn
from chaos.chance import chance, dice
from maskrcnn.config import InferenceConfig
from maskrcnn.imaging.decode import Limits
from maskrcnn.imaging.decode_pool import Decoders
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.results.verify import verify_run
from maskrcnn.synthetic.planted import PlantedSegmenter, plant, planted_instances, png
from maskrcnn.visualization.run_report import write_report

GOOD, EACH = 1600, 40
MAX_BYTES: Final = 100_000


def tiff_of_floats(whole: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(file, "TIFF")
    return file.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of any size by its header, and without a pixel."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b""), b"IEND"]
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def with_a_wrong_checksum(whole: bytes) -> bytes:
    at = whole.index(b"IDAT")
    return whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]


BAD: Final[dict[str, tuple[str, Callable[[bytes], bytes | None]]]] = {
    "half": ("truncated", lambda whole: whole[: len(whole) // 2]),
    "page": ("not_an_image", lambda whole: b"<!DOCTYPE html><html>404</html>"),
    "empty": ("empty_file", lambda whole: b""),
    "gone": ("not_found", lambda whole: None),
    "bomb": ("too_many_pixels", lambda whole: claiming(30_000, 30_000)),
    "line": ("aspect", lambda whole: png(plant((1, 4000), []))),
    "wrong": ("corrupt", with_a_wrong_checksum),
    "raw": ("unsupported_format", lambda whole: b"\0\0\0\x18ftypcrx " + bytes(40)),
    "floats": ("unsupported_pixels", tiff_of_floats),
    "large": ("too_many_bytes", lambda whole: whole + bytes(MAX_BYTES)),
}
"""By kind: the code that it fails with, and what becomes of a sound file; None: nothing is there."""


def write_mixed(folder: Path, draw: random.Random) -> dict[str, str]:
    """Write the collection and its manifest, and return the code of each bad one, by name."""
    folder.mkdir()
    kinds = [None] * GOOD + [kind for kind in BAD for _ in range(EACH)]
    draw.shuffle(kinds)
    rng = np.random.default_rng(draw.randrange(2**32))
    codes, names = {}, []
    for number, kind in enumerate(kinds):
        instances = random_instances(rng, 32, 40, 1)
        content: bytes | None = png(plant((32, 40), instances))
        names.append(f"{number:04d}.png")
        if kind is not None:
            codes[names[-1]], spoil = BAD[kind]
            content = spoil(content or b"")
        if content is not None:
            (folder / names[-1]).write_bytes(content)
    draw.shuffle(names)
    (folder / "list.csv").write_text("uri\n" + "\n".join(names) + "\n")
    return codes


def test_exactly_the_bad_ones_fail_each_with_its_code(tmp_path: Path) -> None:
    codes = write_mixed(tmp_path / "images", chance("mixed"))
    compute = InferenceConfig("planted", max_bytes=MAX_BYTES, max_pixels=10**7)
    plan = prepare(
        Request(str(tmp_path / "images" / "list.csv"), str(tmp_path / "run"), compute, shard_images=200)
    )
    segmenter = PlantedSegmenter()
    limits = Limits(compute.max_pixels, compute.max_bytes, float(segmenter.max_side))
    with Decoders(2) as decoders:
        worker = ShardWorker(
            Storage(str(tmp_path / "run")), segmenter, limits, {"node": "here"}, 2, decoders.decode
        )
        shards = list(plan)
        chance("order").shuffle(shards)
        for shard in shards:
            worker.run_shard(shard)
    success = reduce_run(str(tmp_path / "run"), write_report=write_report)
    run = maskrcnn.open_run(str(tmp_path / "run"))
    assert verify_run(run.url).proven

    by_code = Counter(codes.values())
    print(f"\n{dice()} {success['counts']} {dict(by_code)}")
    counts = success["counts"]
    assert (counts["images"], counts["ok"], counts["empty"], counts["failed"]) == (2000, 1600, 0, 400)
    rows = {row["name"]: row for row in run.images().to_pylist()}
    assert len(rows) == 2000
    assert {name: row["error"] for name, row in rows.items() if row["status"] == "failed"} == codes
    assert run.stats["images"]["error"] == dict.fromkeys(by_code, EACH)

    found = Counter(run.instances()["image_id"].to_pylist())
    for name, row in rows.items():
        pixels = np.asarray(Image.open(tmp_path / "images" / name)) if name not in codes else None
        assert found[row["image_id"]] == (0 if pixels is None else len(planted_instances(pixels)))
