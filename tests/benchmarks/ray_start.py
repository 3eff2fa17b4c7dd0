"""How often a Ray on this machine starts, and how long until the first image is finished, idle and on a busy machine.

    python -m tests.benchmarks.ray_start --load 8

`--load` processes that compute without end are started first. Then Ray is started `--starts` times, and
`maskrcnn segment --ray` is run `--runs` times with the planted and with the embedded model. The first image is finished
when the run has its first receipt. The same is done without the load, unless `--only-load` says otherwise.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskrcnn.synthetic.scenes import write_scenes

START = """
import time
started = time.monotonic()
import ray
from maskrcnn.config import ResourceConfig
from maskrcnn_jobs.driver.cluster import connected
with connected(None, ResourceConfig(actors=1)):
    seconds = time.monotonic() - started
print(seconds)
"""
LIMIT_S = 900
IMAGES = 6


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep the CPUs busy for the time of a block."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def start() -> float | None:
    """Start Ray as commands do; return the seconds until it was connected, or None if it did not start."""
    done = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return float(done.stdout) if done.returncode == 0 else None


def segment(model: str, images: Path, output: Path) -> float | None:
    """Run `maskrcnn segment --ray`; return the seconds to the first receipt, or None if the command failed."""
    command = [
        "segment",
        str(images),
        str(output),
        "--model",
        model,
        "--ray",
        "--actors",
        "1",
        "--shard-images",
        "1",
    ]
    started = time.monotonic()
    first = None
    with subprocess.Popen(
        [sys.executable, "-m", "maskrcnn_jobs", "--quiet", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None:
            if first is None and any((output / "receipts").glob("*.json")):
                first = time.monotonic() - started
            time.sleep(0.02)
    return first if process.returncode == 0 else None


def summary(seconds: list[float | None]) -> dict[str, Any]:
    """Return the number of successes, and their median and range."""
    succeeded = [each for each in seconds if each is not None]
    if not succeeded:
        return {"of": len(seconds), "succeeded": 0}
    return {
        "of": len(seconds),
        "succeeded": len(succeeded),
        "median_s": round(statistics.median(succeeded), 2),
        "range_s": [round(min(succeeded), 2), round(max(succeeded), 2)],
    }


def measure(starts: int, runs: int, images: Path, folder: Path) -> dict[str, Any]:
    """Return the results of all starts and runs; print each while they are made."""
    seconds: dict[str, list[float | None]] = {}

    def add(what: str, measured: float | None) -> None:
        seconds.setdefault(what, []).append(measured)
        print(what, measured, file=sys.stderr)

    for _ in range(starts):
        add("start", start())
    for model in ("planted", "scenes"):
        for number in range(runs):
            add(f"segment --model {model}", segment(model, images, folder / f"{model}-{number}"))
    return {what: summary(measured) for what, measured in seconds.items()}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", type=int, default=8, help="processes that keep the CPUs busy (8)")
    parser.add_argument("--starts", type=int, default=20, help="starts of Ray alone (20)")
    parser.add_argument("--runs", type=int, default=5, help="runs per model (5)")
    parser.add_argument("--only-load", action="store_true", help="measure nothing without the load")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    results: dict[str, Any] = {"cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images"
        write_scenes(images, IMAGES, seed=1)
        for processes in [options.load] if options.only_load else [0, options.load]:
            before = os.getloadavg()[0]
            folder = Path(name) / f"load-{processes}"
            with load(processes):
                measured = measure(options.starts, options.runs, images, folder)
            results[f"load {processes}"] = measured | {
                "loadavg": [round(before, 1), round(os.getloadavg()[0], 1)]
            }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for title, rows in results.items():
        if isinstance(rows, dict):
            print(f"{title} (load average {rows['loadavg'][0]} before, {rows['loadavg'][1]} after)")
            for what, row in rows.items():
                if isinstance(row, dict):
                    times = (
                        f", median {row['median_s']} s, range {row['range_s']}" if row["succeeded"] else ""
                    )
                    print(f"  {what:25} {row['succeeded']} of {row['of']}{times}")


if __name__ == "__main__":
    main()
