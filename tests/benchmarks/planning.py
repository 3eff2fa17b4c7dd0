"""Plan a million rows, and process planted images while the driver's memory is watched.

    python -m tests.benchmarks.planning [--rows 1000000] [--images 20000]

Prints one JSON object: seconds and peak memory of planning, and the growth of the driver during a run, which
`driver_memory.py` measures at other sizes.
"""

import argparse
import json
import logging
import resource
import tempfile
import time
from pathlib import Path

from maskrcnn_jobs.driver.planning import Request, prepare

from maskrcnn.config import InferenceConfig

from .driver_memory import LIMIT_MB, request_for, watch


def plan(folder: Path, rows: int) -> dict[str, float]:
    """Plan a manifest of `rows` names."""
    manifest = folder / "million.txt"
    with manifest.open("w") as file:
        file.writelines(f"s3://bucket/images/{i * 7919 % rows:09d}.jpg\n" for i in range(rows))
    started = time.perf_counter()
    made = prepare(Request(str(manifest), str(folder / "planned"), InferenceConfig(model="planted")))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": made.rows, "plan_s": round(seconds, 2), "peak_rss_mb": round(peak)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures = plan(root, options.rows) | watch(request_for(root, options.images))
    print(json.dumps(figures, indent=1))
    if figures["plan_s"] > 60 or figures["peak_rss_mb"] > 600 or figures["driver_growth_mb"] > LIMIT_MB:
        raise SystemExit(f"above a limit: 60 s, 600 MB, {LIMIT_MB} MB")
