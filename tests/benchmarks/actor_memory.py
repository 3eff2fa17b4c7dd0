"""Whether an actor's memory stays flat: its RSS over 2,000 scenes of 512 x 512 with the embedded model.

    python -m tests.benchmarks.actor_memory [--images 2000] [--actors N]

The memory of each actor is sampled during a run; a line is fitted to what follows the warm-up, the first fifth of
the time. Prints one JSON object: for each actor its mean, its peak, and the fitted line's rise in % of the mean.
"""

import argparse
import json
import logging
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
from maskrcnn_jobs.driver.cluster import connected
from maskrcnn_jobs.driver.planning import Request, prepare
from maskrcnn_jobs.driver.run import run_shards
from maskrcnn_jobs.driver.scheduler import map_shards

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.synthetic.scenes import write_scenes

from .inputs import write_manifest
from .suites_ray import shard_spans

DISTINCT = 50
WARM_UP = 0.2
LIMIT_PERCENT = 3

Sample = tuple[float, float]
"""Seconds since the epoch, MB."""


def watch(folder: Path, images: int, actors: int | None, every_s: float = 0.5) -> dict[str, object]:
    """Process scenes, and report each actor's memory."""
    write_scenes(folder / "scenes", min(DISTINCT, images), seed=20_000_000, size=512)
    files = sorted((folder / "scenes").glob("**/*.[jp][pn]g"))
    manifest = write_manifest(folder / "many.csv", files, images)
    request = Request(str(manifest), str(folder / "run"), InferenceConfig(model="scenes"))
    made = prepare(request)
    samples: dict[int, list[Sample]] = defaultdict(list)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(every_s):
            for process in psutil.Process().children(recursive=True):
                try:
                    samples[process.pid].append((time.time(), process.memory_info().rss / 2**20))
                except psutil.Error:
                    continue

    with connected("local", ResourceConfig(actors=actors)) as speed:
        thread = threading.Thread(target=sample)
        thread.start()
        started = time.time()
        run_shards(request, made, speed, map_shards)
        seconds = time.time() - started
        done.set()
        thread.join()
    spans = shard_spans(folder / "run")
    begin, end = min(span.start for span in spans), max(span.stop for span in spans)
    begin += WARM_UP * (end - begin)
    return {
        "images": images,
        "map_s": round(seconds, 1),
        "actors": [
            rise([s for s in samples[pid] if begin <= s[0] <= end])
            for pid in sorted({span.actor[1] for span in spans})
        ],
    }


def rise(samples: list[Sample]) -> dict[str, float]:
    """Return mean and peak in MB, and the fitted line's rise from first to last sample in % of the mean.

    >>> rise([(0, 99), (1, 100), (2, 101)])
    {'samples': 3, 'mean_mb': 100.0, 'peak_mb': 101, 'rise_percent': 2.0}
    """
    at, memory = np.array(samples).T
    slope = np.polyfit(at - at[0], memory, 1)[0]
    return {
        "samples": len(samples),
        "mean_mb": round(float(memory.mean()), 1),
        "peak_mb": round(float(memory.max())),
        "rise_percent": round(100 * float(slope * (at[-1] - at[0]) / memory.mean()), 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--actors", type=int)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as folder:
        figures = watch(Path(folder), options.images, options.actors)
    print(json.dumps(figures, indent=1))
    if any(one["rise_percent"] > LIMIT_PERCENT for one in figures["actors"]):
        raise SystemExit(f"above the limit of {LIMIT_PERCENT} %")
