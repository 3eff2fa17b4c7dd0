"""How long a resume lists and decides: a run of 10,000 shards, 99 % of which are done, locally and on a real S3 server.

    python -m tests.benchmarks.resume [--shards 10000] [--limit-s 5]

Builds what such a run leaves (plan, receipts, and files of a few bytes in the place of the shards' tables), then does
what `maskrcnn segment` does before it hands out the first shard: read the plans, list receipts and files, decide what
is pending. Prints a line for each store; fails above the limit. The S3 server, SeaweedFS, is started for it and takes
the same cores. Starting Ray and actors is not in it.
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from maskrcnn_jobs.driver.run import receipts_of
from s3_servers import new_weed

from maskrcnn.io.parquet import IMAGES, INSTANCES
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import Plan, create_plan, pending_of, read_plans
from maskrcnn.pipeline.receipts import SHARDS, receipt_path

ATTEMPT = "0" * 32


def build(storage: Storage, shards: int) -> int:
    """Write what a run leaves of which every hundredth shard is not done; return the number of those done."""
    plan = create_plan(storage, Plan(1, shards * 1000, 1000, "m" * 64, "d" * 64, "2026-11-23T00:00:00+00:00"))
    done = [shard.name for index, shard in enumerate(plan) if index % 100]

    def write(name: str) -> None:
        for table in (IMAGES, INSTANCES):
            storage.write(f"{SHARDS}/{name}/{ATTEMPT}/{table}.parquet", b"PAR1")
        storage.write(receipt_path(name, ATTEMPT), b"{}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, done))
    return len(done)


def measure(storage: Storage) -> tuple[float, float, int]:
    """Return the seconds to list and to decide, and the number of pending shards."""
    started = time.perf_counter()
    plans = read_plans(storage)
    receipts = receipts_of(storage, plans)
    listed = time.perf_counter()
    pending = list(pending_of(plans, receipts))
    return listed - started, time.perf_counter() - listed, len(pending)


@contextmanager
def weed(folder: Path) -> Iterator[str]:
    """Start SeaweedFS, and give a prefix there."""
    process, server = new_weed(folder / "data")
    try:
        with server.environment():
            yield server.prefix()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def report(place: str, url: str, shards: int, limit_s: float) -> bool:
    """Build a run and resume it; print one line, and return whether it stayed within the limit."""
    storage = Storage(url)
    done = build(storage, shards)
    cpu = time.process_time()
    list_s, decide_s, pending = measure(storage)
    cpu = time.process_time() - cpu
    if pending != shards - done:
        raise RuntimeError(f"{pending} shards are pending, not {shards - done}")
    print(
        f"{place}: {shards:,} shards, {done:,} done: listed in {list_s:.2f} s, decided in {decide_s:.2f} s, "
        f"together {list_s + decide_s:.2f} s (limit {limit_s:g} s), of which {cpu:.2f} s on this process's CPU; "
        f"{os.getloadavg()[0]:.0f} processes waited for {os.cpu_count()} CPUs",
        flush=True,
    )
    return list_s + decide_s <= limit_s


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--limit-s", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        within = [report("local folder", f"{name}/run", options.shards, options.limit_s)]
        with weed(Path(name)) as prefix:
            within.append(report("SeaweedFS", prefix, options.shards, options.limit_s))
    if not all(within):
        raise SystemExit("above the limit")
