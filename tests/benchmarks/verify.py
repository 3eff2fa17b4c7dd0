"""What it takes to verify a run: seconds, and memory at its peak.

    python -m tests.benchmarks.verify [--images 125000] [--keep DIR]

The run is made from tables, eight instances an image, whose masks are smooth blobs with run lengths of 190 characters
in the mean; shards, reduce and COCO JSON are the real ones. It is verified by a process of its own, whose
memory is given at its peak and after its imports (Linux). Prints one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from maskrcnn.config import InferenceConfig, ShardingConfig, settings_of
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import write_manifest
from maskrcnn.pipeline.plan import Plan, Shard, run_digest, write_run
from maskrcnn.pipeline.receipts import commit, write_shard
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.schema import INSTANCES, MANIFEST, SCHEMA_VERSION, ImageResult, images_table
from maskrcnn.stats import Stats
from maskrcnn.visualization.run_report import write_report

from .writers import AN_IMAGE, CATEGORIES, instances

SHARD_IMAGES = 1000


def make_run(folder: Path, images: int) -> Storage:
    """Write a finished run."""
    storage = Storage(str(folder))
    names = [f"collection/{i:09d}.jpg" for i in range(images)]
    uris = [f"{folder}/none/{name}" for name in names]
    nothing = [pa.nulls(images, pa.int64()), pa.nulls(images, pa.string())]
    manifest = pa.table([pa.array(range(images)), pa.array(names), pa.array(uris), *nothing], schema=MANIFEST)
    model = {
        "name": "blobs",
        "sha256": "0" * 64,
        "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES],
    }
    settings = settings_of(InferenceConfig("blobs"), ShardingConfig(SHARD_IMAGES))
    created = "2026-11-23T00:00:00+00:00"
    sha256, digest = write_manifest(storage, manifest), run_digest(settings, model)
    plan = Plan(1, images, SHARD_IMAGES, sha256, digest, created)
    run = {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "digest": digest,
        "settings": settings,
        "model": model,
        "inputs": {"rows": images},
    }
    write_run(storage, run | {"versions": {}}, plan)
    for shard in plan:
        write_rows(storage, shard, manifest.slice(shard.start, len(shard)))
    reduce_run(storage.url, write_report=write_report)
    storage.remove_tree("shards")
    return storage


def write_rows(storage: Storage, shard: Shard, inputs: pa.Table) -> None:
    """Write a shard of images with their instances."""
    rng = np.random.default_rng(shard.start)
    rows = instances(rng, shard.start, len(shard) * AN_IMAGE)
    # Strictly descending within an image, and the edge as the mask has it.
    bins = np.tile(np.arange(AN_IMAGE), len(shard)) + rng.random(len(rows))
    scores = (1 - 0.9 * bins / AN_IMAGE).astype(np.float32)
    sizes = np.array([segmentation["size"] for segmentation in rows["segmentation"].to_pylist()])
    xmin, ymin, xmax, ymax = (side.to_numpy() for side in rows["mask_box"].combine_chunks().flatten())
    edges = (xmin == 0) | (ymin == 0) | (xmax == sizes[:, 1]) | (ymax == sizes[:, 0])
    for name, column in (("score", scores), ("touches_border", edges)):
        field = INSTANCES.field(name)
        rows = rows.set_column(INSTANCES.get_field_index(name), field, pa.array(column))
    columns = zip(
        *(inputs[name].to_pylist() for name in ("image_id", "name", "uri")), sizes[::AN_IMAGE], strict=True
    )
    results = [
        ImageResult(i, i, name, uri, None, None, None, width=int(width), height=int(height))
        for i, name, uri, (height, width) in columns
    ]
    images = images_table(results, inputs)
    for name, values in (("status", ["ok"] * len(shard)), ("n_instances", [AN_IMAGE] * len(shard))):
        position = images.schema.get_field_index(name)
        field = images.schema.field(name)
        images = images.set_column(position, field, pa.array(values, field.type))
    stats = Stats.of_tables(images, rows, CATEGORIES).to_json()
    commit(
        storage,
        write_shard(storage, shard, "0" * 32, images, rows, stats=stats, timings={"wall": 0.0}, execution={}),
    )


_CHILD = """
import json, sys, time
from pathlib import Path
from maskrcnn.results.verify import verify_run

def status_mb(key):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return round(int(line.split()[1]) / 1024)

before, wall, cpu = status_mb("VmRSS"), time.perf_counter(), time.process_time()
verification = verify_run(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
figures = {"proven": verification.proven, "findings": [*map(str, verification.findings[:3])], "wall_s": round(wall, 1)}
print(json.dumps(figures | {"cpu_s": round(cpu, 1), "peak_mb": status_mb("VmHWM"), "imports_mb": before}))
"""


def measure(storage: Storage) -> dict[str, object]:
    """Verify a run in a process of its own."""
    command = [sys.executable, "-c", _CHILD, storage.url]
    figures: dict[str, object] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return figures


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=125_000)
    parser.add_argument("--keep", type=Path, help="make the run there, or take the one that is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary:
        folder = options.keep or Path(temporary) / "run"
        storage = Storage(str(folder)) if (folder / "_SUCCESS").exists() else make_run(folder, options.images)
        counts = json.loads(storage.read("_SUCCESS"))["counts"]
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        facts = {"images": counts["images"], "instances": counts["instances"], "output_mb": round(size / 1e6)}
        print(json.dumps(facts | measure(storage)))


if __name__ == "__main__":
    main()
