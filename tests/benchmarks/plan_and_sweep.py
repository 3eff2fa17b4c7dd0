"""Plan a million rows, and sweep planted images while the driver's memory is watched.

    python tests/benchmarks/plan_and_sweep.py [--rows 1000000] [--images 20000]

Prints one JSON object: seconds and peak memory of planning, and what the driver grew by during a sweep.
"""

import argparse
import json
import logging
import resource
import tempfile
import threading
import time
from pathlib import Path

import psutil
from maskrcnn_jobs.cluster import connected
from maskrcnn_jobs.segment import Request, prepare, sweep

from maskrcnn.config import Compute, Speed
from maskrcnn.planted import write_planted


def plan(folder: Path, rows: int) -> dict[str, float]:
    """Plan a manifest of `rows` names."""
    manifest = folder / "million.txt"
    with manifest.open("w") as file:
        file.writelines(f"s3://bucket/images/{i * 7919 % rows:09d}.jpg\n" for i in range(rows))
    started = time.perf_counter()
    made = prepare(Request(str(manifest), str(folder / "planned"), Compute(model="planted")))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": made.rows, "plan_s": round(seconds, 2), "peak_rss_mb": round(peak)}


def watch_sweep(folder: Path, images: int) -> dict[str, float]:
    """Sweep planted images; report the driver's growth from the first receipt to the last."""
    write_planted(folder / "images", 500, seed=0)
    names = sorted(path.name for path in (folder / "images").glob("*.png"))
    manifest = folder / "many.csv"
    with manifest.open("w") as file:
        file.write("uri,name\n")
        file.writelines(f"images/{names[i % len(names)]},{i:08d}.png\n" for i in range(images))
    request = Request(str(manifest), str(folder / "swept"), Compute(model="planted"))
    made = prepare(request)
    process = psutil.Process()
    samples: list[tuple[float, int]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.25):
            samples.append((time.perf_counter(), process.memory_info().rss))

    with connected(None, Speed()) as speed:
        thread = threading.Thread(target=sample)
        thread.start()
        started, began = time.perf_counter(), time.time()
        sweep(request, made, speed)
        seconds = time.perf_counter() - started
        done.set()
        thread.join()
    receipts = [path.stat().st_mtime for path in (folder / "swept" / "receipts").iterdir()]
    first = min(receipts) - began
    during = [rss for at, rss in samples if at - started >= first]
    return {
        "images": images,
        "shards": len(made),
        "sweep_s": round(seconds, 1),
        "images_per_s": round(images / seconds, 1),
        "driver_growth_mb": round((max(during) - during[0]) / 2**20, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures = plan(root, options.rows) | watch_sweep(root, options.images)
    print(json.dumps(figures, indent=1))
    if figures["plan_s"] > 60 or figures["peak_rss_mb"] > 600 or figures["driver_growth_mb"] > 32:
        raise SystemExit("above a limit: 60 s, 600 MB, 32 MB")
