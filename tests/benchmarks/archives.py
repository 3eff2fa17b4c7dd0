"""Plan and read tars on SeaweedFS, an S3 server that is started for it and takes the same cores.

    python -m tests.benchmarks.archives plan [--tars 1000] [--members 1000]
    python -m tests.benchmarks.archives read [--photos DIR] [--images 1000] [--repeats 3]

`plan` prints seconds, requests and peak memory of planning that many members of 100 bytes. `read` prints images per
second of a worker without a network, which fetches and decodes photos: from loose files and from one tar, in turns; and
the bytes that were requested, divided by those of the members.
"""

import argparse
import io
import json
import os
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

from maskrcnn_jobs.driver.planning import Request, prepare

from maskrcnn.config import InferenceConfig
from maskrcnn.imaging.decode import Limits
from maskrcnn.imaging.decode_pool import Decoders
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.s3_store import S3Store
from maskrcnn.pipeline.plan import read_plan
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.synthetic.planted import PlantedSegmenter

from .inputs import COCO_SIZE, write_photos
from .resume import weed


def tar_of(members: dict[str, bytes]) -> bytes:
    """Return a tar of files."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the requests that read from S3: yield the list of the numbers of bytes that they return."""
    sizes: list[int] = []
    read_range = S3Store.read_range

    def observed(*arguments: object, **options: object) -> bytes:
        data = read_range(*arguments, **options)  # type: ignore[arg-type]
        sizes.append(len(data))
        return data

    with mock.patch.object(S3Store, "read_range", observed):
        yield sizes


def planned(source: str, output: str) -> float:
    """Plan a run; return the seconds that it took."""
    started = time.perf_counter()
    prepare(Request(source, output, InferenceConfig(model="planted")))
    return time.perf_counter() - started


def write_tar(prefix: str, number: int, members: int) -> None:
    """Write one tar of members of 100 bytes."""
    content = {f"{number:04d}-{at:06d}.jpg": bytes(100) for at in range(members)}
    Storage(prefix).write(f"{number:04d}.tar", tar_of(content))


def plan(prefix: str, folder: Path, tars: int, members: int) -> None:
    """Write tars, plan a run over them, and print what it cost."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:  # whose memory is not the planner's
        list(pool.map(write_tar, repeat(prefix), range(tars), repeat(members)))
    cpu = time.process_time()
    with counted() as sizes:
        seconds = planned(prefix, str(folder / "out"))
    figures = {
        "members": tars * members,
        "tars": tars,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "requests": len(sizes),
        "read_mb": round(sum(sizes) / 1e6),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(figures))


def images_per_s(source: str, output: Path, count: int) -> tuple[float, int, int]:
    """Fetch and decode a collection; return images per second, and the number and bytes of the requests."""
    prepare(Request(source, str(output), InferenceConfig(model="planted"), shard_images=250))
    storage = Storage(str(output))

    shards = list(read_plan(storage) or ())
    with Decoders(2) as decoders, counted() as sizes:
        worker = ShardWorker(
            storage, PlantedSegmenter(), Limits(10**9, 10**9, 1e9), {}, threads=2, decode=decoders.decode
        )
        started = time.perf_counter()
        for shard in shards:
            worker.run_shard(shard)
        seconds = time.perf_counter() - started
    return count / seconds, len(sizes), sum(sizes)


def read(prefix: str, folder: Path, photos: Path | None, images: int, repeats: int) -> None:
    """Write photos loose and as a tar, read both in turns, and print images per second of each."""
    paths = sorted(photos.rglob("*.jpg")) if photos else write_photos(folder / "photos", 20, COCO_SIZE)
    contents = [path.read_bytes() for path in paths]
    files = {f"{number:06d}.jpg": contents[number % len(contents)] for number in range(images)}
    storage = Storage(prefix)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda item: storage.write(f"loose/{item[0]}", item[1]), files.items()))
    storage.write("photos.tar", tar_of(files))
    ratios, rates = [], []
    for number in range(repeats):
        loose = images_per_s(f"{prefix}/loose", folder / f"loose{number}", images)
        packed = images_per_s(f"{prefix}/photos.tar", folder / f"packed{number}", images)
        ratios.append(packed[0] / loose[0])
        rates.append((loose[0], packed[0]))
    share = packed[2] / sum(map(len, files.values()))
    print(f"{images} photos of {sum(map(len, contents)) / len(contents) / 1000:.0f} KB, {repeats} pairs")
    print(f"loose {statistics.median(r[0] for r in rates):.0f} images/s, {loose[1]} requests")
    print(
        f"tar   {statistics.median(r[1] for r in rates):.0f} images/s, {packed[1]} requests, {share:.3f} of the bytes"
    )
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("plan", "read"))
    parser.add_argument("--tars", type=int, default=1000)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, weed(Path(scratch)) as place:
        if options.what == "plan":
            plan(place, Path(scratch), options.tars, options.members)
        else:
            read(place, Path(scratch), options.photos, options.images, options.repeats)
