"""Growth of the driver's memory during a run over 10,000 and of 1,000,000 planted images.

    python -m tests.benchmarks.driver_memory [--images 10000 --images 1000000] [--shard-images N]

Each run is done in a fresh process, on a plan that another process made: memory that planning had freed would hide what
the run takes. The images are 500 small files that a manifest names repeatedly. Prints one JSON list, and
progress on stderr; a million images take some 20 minutes on two cores.
"""

import argparse
import json
import logging
import multiprocessing
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
from maskrcnn_jobs.driver.cluster import connected
from maskrcnn_jobs.driver.planning import Request, prepare
from maskrcnn_jobs.driver.run import run_shards
from maskrcnn_jobs.driver.scheduler import map_shards
from planted_images import write_planted

from maskrcnn.config import InferenceConfig, ResourceConfig

from .inputs import write_manifest

DISTINCT = 500
LIMIT_MB = 32


def request_for(folder: Path, images: int, shard_images: int | None = None) -> Request:
    """Write the manifest of a run, and the images if they are not there."""
    if not (folder / "images").exists():
        write_planted(folder / "images", DISTINCT, seed=0)
    files = sorted((folder / "images").glob("*.png"))
    manifest = write_manifest(folder / f"{images}.csv", files, images)
    return Request(
        str(manifest), str(folder / f"run-{images}"), InferenceConfig(model="planted"), shard_images
    )


def plan(request: Request) -> int:
    """Plan a run, and return the number of its shards."""
    return len(prepare(request))


def watch(request: Request, every_s: float = 0.25) -> dict[str, float]:
    """Run what is planned; report the driver's growth from the first receipt to the last.

    Returns:
        images, shards, seconds, images/s, and of the driver's memory in MB: where it began, the growth to the peak, and
        the mean of each tenth of the time above where it began.
    """
    made = prepare(request)
    process = psutil.Process()
    samples: list[tuple[float, int]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(every_s):
            samples.append((time.time(), process.memory_info().rss))

    with connected("local", ResourceConfig()) as speed:
        thread = threading.Thread(target=sample)
        thread.start()
        began = time.time()
        run_shards(request, made, speed, map_shards)
        seconds = time.time() - began
        done.set()
        thread.join()
    receipts = Path(request.output) / "receipts"
    first = min(path.stat().st_mtime for path in receipts.iterdir())
    during = [rss / 2**20 for at, rss in samples if at >= first] or [samples[-1][1] / 2**20]
    tenths = [
        during[len(during) * i // 10 : max(len(during) * (i + 1) // 10, 1)] or during for i in range(10)
    ]
    return {
        "images": made.rows,
        "shards": len(made),
        "map_s": round(seconds, 1),
        "images_per_s": round(made.rows / seconds, 1),
        "driver_mb": round(during[0], 1),
        "driver_growth_mb": round(max(during) - during[0], 1),
        "driver_growth_mb_by_tenth": [round(sum(t) / len(t) - during[0], 1) for t in tenths],
    }


def in_a_fresh_process(function, *arguments):
    """Return what a function returns in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=log_to_stderr) as pool:
        return pool.submit(function, *arguments).result()


def log_to_stderr() -> None:
    """Show the progress of a run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, action="append")
    parser.add_argument("--shard-images", type=int)
    options = parser.parse_args()
    figures = []
    for count in options.images or [10_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            request = request_for(Path(folder), count, options.shard_images)
            in_a_fresh_process(plan, request)
            figures.append(in_a_fresh_process(watch, request))
    print(json.dumps(figures, indent=1))
    if any(one["driver_growth_mb"] > LIMIT_MB for one in figures):
        raise SystemExit(f"above the limit of {LIMIT_MB} MB")
