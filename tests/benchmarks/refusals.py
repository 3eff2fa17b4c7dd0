"""Reads from a store that refuses half of them for a while (503): the failures by botocore's mode of retries.

    python -m tests.benchmarks.refusals [--threads 16] [--burst-s 30] [--modes legacy standard]

The store is SeaweedFS behind `tests/fault_proxy.py`, which refuses by a seeded draw; reads go on for ten seconds after
the burst. Threads sleep 0.1 s between reads.
"""

import argparse
import collections
import dataclasses
import os
import random
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fault_proxy import Exchange, FaultProxy, answer, refuse
from s3_servers import new_weed

from maskrcnn.errors import ItemError
from maskrcnn.io.inputs import read_input
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.request_count import take_retries


def outcomes(proxy: FaultProxy, url: str, threads: int, burst_s: float) -> collections.Counter[str]:
    """Count the reads that gave the object, or failed, by code."""
    draw = random.Random(1)
    end_of_burst = time.monotonic() + burst_s

    def fault(exchange: Exchange) -> None:
        refused = draw.random() < 0.5 and time.monotonic() < end_of_burst
        (refuse(503, "SlowDown") if refused else answer)(exchange)

    def read(_: int) -> list[str]:
        found = []
        while time.monotonic() < end_of_burst + 10:
            try:
                read_input(url, 10_000)
                found.append("ok")
            except ItemError as error:
                found.append(error.code)
            time.sleep(0.1)
        return found

    proxy.clear()
    proxy.on("GET", fault, times=None)
    with ThreadPoolExecutor(threads) as pool:
        return collections.Counter(one for found in pool.map(read, range(threads)) for one in found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--burst-s", type=float, default=30.0)
    parser.add_argument("--modes", nargs="+", default=["legacy", "standard"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, server = new_weed(Path(folder) / "data")
        proxy = FaultProxy(server.endpoint, "testkey", "testsecret")
        try:
            for mode in options.modes:
                with dataclasses.replace(server, endpoint=proxy.endpoint).environment():
                    os.environ["AWS_RETRY_MODE"] = mode
                    storage = Storage(server.prefix())
                    storage.write("x", bytes(1000))
                    take_retries()
                    counts = outcomes(proxy, f"{storage.url}/x", options.threads, options.burst_s)
                    del os.environ["AWS_RETRY_MODE"]
                print(f"{mode}: {dict(counts)}, {take_retries()} repetitions", flush=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
