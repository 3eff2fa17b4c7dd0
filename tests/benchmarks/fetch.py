"""Reading objects from S3, on a real server that is started for it: SeaweedFS, on this machine.

    python -m tests.benchmarks.fetch ahead [--objects 500] [--repeats 5]
    python -m tests.benchmarks.fetch clients [--repeats 5]
    python -m tests.benchmarks.fetch job [--objects 500] [--repeats 5]
    python -m tests.benchmarks.fetch faults

`ahead` is `python -m tests.benchmarks --only fetch`. The others compare obstore, in the place of the store's reader by
s3fs, with that reader, in turns: `clients` prints requests and CPU milliseconds of single reads, `job` those of a
worker without a network, which fetches and decodes pictures. `faults` runs the tests of the store's faults on obstore.

The server takes the same cores as the clients, so that the ratio is a lower bound of what a distant one shows.
"""

import argparse
import functools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from maskrcnn.errors import UsageError
from maskrcnn.io.schemes import store_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url

from .archives import images_per_s, tar_of
from .inputs import COCO_SIZE, write_photos
from .measure import rounds
from .resume import weed
from .run import run_bench

READS = {20_000: 800, 200_000: 500, 4_000_000: 64}
"""Objects that are read in a measurement, by their size in bytes."""
THREADS = (4, 16, 64)
TINY_SIZE = (64, 64)
FAULTS = Path(__file__).parent.parent / "io" / "test_storage_faults.py"

Measured = tuple[float, float]
"""Reads or images per second, and CPU milliseconds of this process and its decoders for each."""


def by_client() -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """Return what makes the store read by each client. Raises UsageError: obstore is not installed."""
    from .obstore_reader import reading_by_obstore

    return {"s3fs": nullcontext, "obstore": reading_by_obstore}


@contextmanager
def timed(count: int) -> Iterator[list[Measured]]:
    """Measure a block that reads `count` objects: yield a list that has the result afterwards."""
    results: list[Measured] = []
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    yield results
    used = sum(os.times()[:4]) - cpu
    results.append((count / (time.perf_counter() - started), 1000 * used / count))


def read_each(urls: list[Url], threads: int) -> Measured:
    """Read objects whole, that many at a time."""
    store = store_of(urls[0])
    with ThreadPoolExecutor(threads) as pool, timed(len(urls)) as results:
        sizes = list(pool.map(lambda url: len(store.read_range(url)), urls))
    if len(set(sizes)) != 1:
        raise RuntimeError("the objects are not of one size")
    return results[0]


def compared(measure: Callable[[], Measured], what: str, repeats: int) -> None:
    """Measure with each client in turns, and print a line."""

    def measured(client: Callable[[], AbstractContextManager[None]]) -> Measured:
        with client():
            return measure()

    sides = {name: lambda client=client: measured(client) for name, client in by_client().items()}
    for side in sides.values():
        side()  # opens its connections
    found = rounds(sides, repeats)
    ratios = [b[0] / a[0] for a, b in zip(found["s3fs"], found["obstore"], strict=True)]
    shares = [b[1] / a[1] for a, b in zip(found["s3fs"], found["obstore"], strict=True)]
    texts = [
        f"{name} {statistics.median(one[0] for one in found[name]):.0f}/s, "
        f"{statistics.median(one[1] for one in found[name]):.2f} ms CPU"
        for name in sides
    ]
    print(
        f"{what}: {'; '.join(texts)}; rate {statistics.median(ratios):.2f}x "
        f"({min(ratios):.2f}-{max(ratios):.2f}), CPU {statistics.median(shares):.2f}x "
        f"({min(shares):.2f}-{max(shares):.2f})",
        flush=True,
    )


def clients(prefix: str, repeats: int) -> None:
    """Read objects of some sizes by threads of some numbers, and print the rates and the CPU time."""
    storage = Storage(prefix)
    for size, count in READS.items():
        for number in range(64):
            storage.write(f"{size}/{number}", os.urandom(size))
        urls = [Url.parse(f"{prefix}/{size}/{number % 64}") for number in range(count)]
        expect_same(urls[0])
        for threads in THREADS:
            measure = functools.partial(read_each, urls, threads)
            compared(measure, f"{size} bytes, {threads} threads", repeats)


def expect_same(url: Url) -> None:
    """Raise RuntimeError where the clients give other bytes."""
    contents = set()
    for client in by_client().values():
        with client():
            store = store_of(url)
            contents.add((store.read_range(url), store.read_range(url, 10, 200)))
    if len(contents) != 1:
        raise RuntimeError(f"the clients read other bytes of {url}")


def job(prefix: str, folder: Path, objects: int, repeats: int) -> None:
    """Fetch and decode tiny pictures, photos, and a tar of photos, and print the rates and the CPU time."""
    logging.getLogger("maskrcnn").setLevel(logging.ERROR)
    storage = Storage(prefix)
    for kind, size in (("tiny", TINY_SIZE), ("photos", COCO_SIZE)):
        contents = [path.read_bytes() for path in write_photos(folder / kind, 20, size)]
        files = {f"{number:06d}.jpg": contents[number % len(contents)] for number in range(objects)}
        for name, data in files.items():
            storage.write(f"{kind}/{name}", data)
        storage.write(f"{kind}.tar", tar_of(files))
        mean = sum(map(len, contents)) / len(contents) / 1000
        for source, what in ((kind, "loose"), (f"{kind}.tar", "in a tar")):

            def measure(source: str = source) -> Measured:
                with tempfile.TemporaryDirectory(dir=folder) as output, timed(objects) as results:
                    rate = images_per_s(f"{prefix}/{source}", Path(output) / "out", objects)[0]
                return rate, results[0][1]

            compared(measure, f"{objects} {kind} of {mean:.0f} kB, {what}", repeats)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("ahead", "clients", "job", "faults"))
    parser.add_argument("--objects", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.what != "ahead":
        try:
            obstore = by_client()["obstore"]
        except UsageError as error:
            parser.exit(2, f"error: {error}\n")
    if options.what == "faults":
        with obstore():
            raise SystemExit(pytest.main([str(FAULTS), "-q", "--tb=line", "-p", "no:cacheprovider"]))
    with tempfile.TemporaryDirectory() as scratch, weed(Path(scratch)) as place:
        if options.what == "ahead":
            storage = Storage(place)
            photos = write_photos(Path(scratch) / "photos", 20, COCO_SIZE)
            for number in range(options.objects):
                storage.put_file(f"{number:05d}.jpg", photos[number % len(photos)])
            run_bench("fetch", None, images=None, model=None, s3=place, repeats=options.repeats, quick=False)
        elif options.what == "clients":
            clients(place, options.repeats)
        else:
            job(place, Path(scratch), options.objects, options.repeats)


if __name__ == "__main__":
    main()
