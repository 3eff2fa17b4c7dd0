"""An update of a large run: how long it is planned, what it rewrites, in CPU seconds and peak memory.

    python -m tests.benchmarks.update [--images 1000000] [--folder DIR]

The run is of planted images, most of which are one file under many names; its receipts are written by the worker of an
actor, which decodes each distinct file once. The manifest states sizes and etags, as a listing of a store does. Then
1 % of the inputs is other than before: added at the end of the names, as new days of a collection are; then changed
there, as days that are delivered again; then changed all over it. Each step is a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from planted_images import write_planted

from maskrcnn.config import InferenceConfig
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.success import read_success
from maskrcnn.visualization.run_report import write_report

from .measure import machine
from .scale import plant

DISTINCT = 500


def write_manifest(
    path: Path, pool: Path, names: "np.ndarray[Any, Any]", versions: "np.ndarray[Any, Any]"
) -> None:
    """Write a manifest with sizes and etags; an input's version is in its etag."""
    files = sorted(pool.glob("*.png"))
    uris, sizes = np.array([str(file) for file in files]), np.array([file.stat().st_size for file in files])
    which = names % len(files)
    columns = {
        "uri": uris[which],
        "name": np.char.add(np.char.zfill(names.astype(str), 10), ".png"),
        "bytes": sizes[which],
        "etag": np.char.add("v", versions.astype(str)),
    }
    pq.write_table(pa.table(columns), path)


def step(what: str, manifest: str, output: str) -> None:
    """Do one step, and print what it took."""
    from maskrcnn_jobs.driver.planning import Request, prepare, prepare_update

    started, before = time.perf_counter(), read_success(Storage(output))
    request = Request(manifest, output, InferenceConfig("planted"), update=True)
    if what == "plan":
        prepare(request)
    elif what == "plan the update":
        prepare_update(request)
    elif what == "process":
        plant(output)
    else:
        reduce_run(output, coco_mode="never", write_report=write_report)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    facts: dict[str, Any] = {
        "wall_s": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }
    facts["peak_mb"] = usage.ru_maxrss / 1024
    facts |= dict.fromkeys(("kept", "replaced", "new"), 0)
    if what == "reduce":
        paths = [
            {entry["path"] for table in success["parts"].values() for entry in table} if success else set()
            for success in (before, read_success(Storage(output)))
        ]
        facts |= {"kept": len(paths[0] & paths[1]), "replaced": len(paths[0] - paths[1])}
        facts["new"] = len(paths[1] - paths[0])
    sys.stdout.write(json.dumps(facts))


def measured(what: str, manifest: Path, output: Path) -> dict[str, Any]:
    code = f"from tests.benchmarks.update import step; step({what!r}, {str(manifest)!r}, {str(output)!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def main(images: int, folder: Path) -> None:
    """Print one line per step."""
    write_planted(folder / "pool", DISTINCT, seed=1)
    manifest, output = folder / "collection.parquet", folder / "run"
    rng = np.random.default_rng(0)
    names, versions = np.arange(images), np.zeros(images, np.int64)
    sys.stdout.write(f"{images:,} images; {machine()}\n")
    for title, steps in (
        ("first run", ("plan", "process", "reduce")),
        ("1 % added", ("plan the update", "process", "reduce")),
        ("1 % changed, beside each other", ("plan the update", "process", "reduce")),
        ("1 % changed, all over", ("plan the update", "process", "reduce")),
    ):
        if title == "1 % added":
            names = np.arange(images + images // 100)
            versions = np.append(versions, np.zeros(images // 100, np.int64))
        elif title.endswith("each other"):
            versions[len(versions) // 2 :][: images // 100] += 1
        elif title != "first run":
            versions[rng.choice(len(versions), images // 100, replace=False)] += 1
        write_manifest(manifest, folder / "pool", names, versions)
        for what in steps:
            facts = measured(what, manifest, output)
            parts = "; files of tables: {kept} kept, {replaced} replaced, {new} new".format(**facts)
            took = "{wall_s:.1f} s, {cpu_s:.1f} CPU s, {peak_mb:.0f} MB".format(**facts)
            sys.stdout.write(f"{title}: {what}: {took}{parts if what == 'reduce' else ''}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(options.images, options.folder or Path(temporary))
