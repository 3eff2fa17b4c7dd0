"""Runs over one collection in several forms: loose files, archives, tables; and their instances, to be compared."""

from pathlib import Path
from typing import Any

from maskrcnn_jobs.driver.planning import Request, prepare
from planned_run import process_shards
from planted_images import write_planted

import maskrcnn
from maskrcnn.config import InferenceConfig
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.visualization.run_report import write_report

IMAGES = 12
Instances = dict[str, list[dict[str, Any]]]


def planted_files(folder: Path) -> dict[str, bytes]:
    """Write a collection of planted images; return its files by name."""
    write_planted(folder, IMAGES, seed=5)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def plan(
    source: Path | str, output: Path | str, image_column: str | None = None, *, shard_images: int = 5
) -> str:
    """Plan a run, of three shards for `planted_files`; return its directory."""
    inference = InferenceConfig("planted", image_column=image_column)
    prepare(Request(str(source), str(output), inference, shard_images=shard_images))
    return str(output)


def finish(output: str) -> maskrcnn.Run:
    """Process what is planned, and write the tables."""
    process_shards(Storage(output))
    reduce_run(output, write_report=write_report)
    return maskrcnn.open_run(output)


def instances_by_file(run: maskrcnn.Run) -> Instances:
    """Return the instances of each image without ids; by its column `file`, or by the last part of its name."""
    files = {row["image_id"]: row.get("file") or row["name"] for row in run.images().to_pylist()}
    found: Instances = {name.rpartition("/")[2]: [] for name in files.values()}
    for row in run.instances().to_pylist():
        name = files[row.pop("image_id")].rpartition("/")[2]
        del row["id"]
        found[name].append(row)
    return found


def loose_instances(files: dict[str, bytes], folder: Path) -> Instances:
    """Return the instances of a collection, found in loose files."""
    for name, data in files.items():
        Storage(folder / "images").write(name, data)
    found = instances_by_file(finish(plan(folder / "images", folder / "out")))
    assert sum(map(len, found.values())) > IMAGES
    return found
