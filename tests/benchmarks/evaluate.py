"""`maskrcnn evaluate` against pycocotools: seconds, and memory of the largest process at its peak.

    python -m tests.benchmarks.evaluate [--images 5000] [--json PATH] [--only ours|baseline]
    python -m tests.benchmarks.evaluate --images 100000

Makes the tables of a run and a ground truth: ten detections and eight objects per image, of 80 categories, masks as
smooth blobs; six of ten detections are an object moved by some pixels. Ours is the command, `--json`, in a process of
its own, with Ray where it is used; the baseline is `COCOeval` in one process, for boxes, then for masks, from the run's
COCO results with the one shape. Memory is the greatest resident set of a process, looked at four times a second.
The twelve metrics of both are compared to 1e-12 first; the program fails where they differ.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from maskrcnn.config import InferenceConfig, ShardingConfig, settings_of
from maskrcnn.formats import coco_writer
from maskrcnn.io.parquet import IMAGES, INSTANCES, Part, write_tables
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import write_manifest
from maskrcnn.pipeline.plan import Plan, run_digest, write_run
from maskrcnn.schema import INSTANCES as INSTANCES_SCHEMA
from maskrcnn.schema import MANIFEST, SCHEMA_VERSION, images_schema
from maskrcnn.types import Category

CATEGORIES = tuple(Category(number + 1, f"category {number}") for number in range(80))
FOUND, THERE, MOVED = 10, 8, 6
"""Of an image: detections, objects, and detections that are an object moved."""
HEIGHT, WIDTH = 480, 640
PART_IMAGES = 20_000
CHUNK = 2_000


def ellipses(rng: np.random.Generator, boxes: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return masks of the given boxes (x, y, width, height, whole pixels) as run-length strings, and their areas."""
    x, y, w, h = boxes.T
    owner = np.repeat(np.arange(len(boxes)), w)
    column = np.arange(len(owner)) - np.repeat(np.cumsum(w) - w, w)
    at = (column + 0.5) / w[owner] * 2 - 1
    half = np.maximum(np.sqrt(1 - at**2) * h[owner] / 2 * (0.85 + 0.15 * np.sin(5 * at)), 0.6)
    top = np.floor(y[owner] + h[owner] / 2 - half).astype(np.int64)
    bottom = np.ceil(y[owner] + h[owner] / 2 + half).astype(np.int64)
    top, bottom = np.maximum(top, 0), np.minimum(bottom, HEIGHT)
    from .writers import packed

    lengths = 2 * w + 1
    start = np.cumsum(lengths) - lengths
    ends = np.empty(lengths.sum(), np.int64)
    place = start[owner] + 2 * column
    ends[place] = (x[owner] + column) * HEIGHT + top
    ends[place + 1] = (x[owner] + column) * HEIGHT + bottom
    ends[start + lengths - 1] = HEIGHT * WIDTH
    runs = np.diff(ends, prepend=0)
    runs[start] = ends[start]
    areas = np.bincount(owner, bottom - top, minlength=len(boxes)).astype(np.int64)
    return packed(runs, start).to_pylist(), areas


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return boxes of all of COCO's sizes, in whole pixels."""
    w = np.clip(np.exp(rng.normal(3.9, 0.8, n)), 6, WIDTH - 20).astype(np.int64)
    h = np.clip(w * np.exp(rng.normal(0, 0.3, n)), 6, HEIGHT - 20).astype(np.int64)
    x, y = (rng.random((2, n)) * [WIDTH - w - 1, HEIGHT - h - 1]).astype(np.int64)
    return np.stack([x, y, w, h], axis=1)


def make_run(folder: Path, images: int) -> None:
    """Write tables and COCO results of a finished run, and the ground truth beside it."""
    run, storage = folder / "run", Storage(str(folder / "run"))
    ids = np.arange(images)
    names = [f"collection/{i:09d}.jpg" for i in ids]
    nothing = [pa.nulls(images, pa.int64()), pa.nulls(images, pa.string())]
    manifest = pa.table(
        [pa.array(ids), pa.array(names), pa.array([f"{folder}/none/{name}" for name in names]), *nothing],
        schema=MANIFEST,
    )
    model = {
        "name": "ellipses",
        "sha256": "0" * 64,
        "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES],
    }
    settings = settings_of(InferenceConfig("ellipses"), ShardingConfig(1000))
    plan = Plan(1, images, 1000, write_manifest(storage, manifest), run_digest(settings, model), "2026-11-23")
    record = {
        "schema_version": SCHEMA_VERSION,
        "digest": plan.digest,
        "settings": settings,
        "model": model,
        "versions": {},
    }
    write_run(storage, record | {"inputs": {"rows": images, "ids_given": True}}, plan)

    parts, entries = [], {IMAGES: [], INSTANCES: []}
    with (folder / "ground_truth.json").open("w") as ground_truth:
        described = [{"id": c.id, "name": c.name} for c in CATEGORIES]
        listed = [
            {"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(names)
        ]
        ground_truth.write(
            f'{{"categories": {json.dumps(described)}, "images": {json.dumps(listed)}, "annotations": ['
        )
        for number, start in enumerate(range(0, images, PART_IMAGES)):
            stop = min(start + PART_IMAGES, images)
            found = (
                chunk_of(ground_truth, first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK)
            )
            paths = [f"{table}/part-1-{number:05d}.parquet" for table in (IMAGES, INSTANCES)]
            rows = image_rows(manifest.slice(start, stop - start))
            files = [
                write_tables(storage, paths[0], rows.schema, [rows]),
                write_tables(storage, paths[1], INSTANCES_SCHEMA, found),
            ]
            for table, file in zip((IMAGES, INSTANCES), files, strict=True):
                facts = {"sha256": file.sha256, "bytes": file.bytes, "rows": file.rows}
                entries[table].append({"path": file.path} | facts)
            parts.append(Part(*paths, files[0].rows, files[1].rows))
        ground_truth.write("]}\n")
    counts = {"images": images, "ok": images, "empty": 0, "failed": 0, "instances": images * FOUND}
    success = {
        "schema_version": SCHEMA_VERSION,
        "generation": 1,
        "created": "2026-11-23",
        "counts": counts,
        "parts": entries,
    }
    storage.write("_SUCCESS", json.dumps(success | {"coco": [], "receipts": []}).encode())
    for kind in coco_writer.IOU_TYPES:
        coco_writer.write_results(storage, parts, f"coco/results_{kind}.json", kind)
    print(f"made {images:,} images in {run}", flush=True)


def image_rows(manifest: pa.Table) -> pa.Table:
    """Return the rows of `images`."""
    n = len(manifest)
    columns: dict[str, Any] = {
        "status": ["ok"] * n,
        "width": [WIDTH] * n,
        "height": [HEIGHT] * n,
        "n_instances": [FOUND] * n,
        "capped": [False] * n,
    }
    schema = images_schema(manifest.schema)
    arrays = [
        manifest[field.name].combine_chunks()
        if field.name in manifest.column_names
        else pa.array(columns.get(field.name, [None] * n), field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def chunk_of(ground_truth: Any, start: int, stop: int) -> pa.Table:
    """Write the objects of some images, and return the detections in them."""
    rng = np.random.default_rng(start)
    n = stop - start
    there = random_boxes(rng, n * THERE)
    labels = rng.integers(1, 81, n * THERE) ** 2 // 81 + 1  # some are more frequent
    counts, areas = ellipses(rng, there)
    for k, (label, box, text, area) in enumerate(
        zip(labels.tolist(), there.tolist(), counts, areas.tolist(), strict=True)
    ):
        entry = {
            "id": start * THERE + k,
            "image_id": start + k // THERE,
            "category_id": label,
            "bbox": box,
            "area": area,
            "iscrowd": int(k % 97 == 0),
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": text},
        }
        ground_truth.write(("" if start == 0 and k == 0 else ",\n") + json.dumps(entry))
    moved = there.reshape(n, THERE, 4)[:, :MOVED].reshape(-1, 4).copy()
    span = np.maximum(moved[:, 2:] // 12, 1)
    moved[:, :2] += (rng.integers(-1, 2, (len(moved), 2)) * span).astype(np.int64)
    moved[:, :2] = np.clip(moved[:, :2], 0, [WIDTH, HEIGHT] - moved[:, 2:] - 1)
    boxes = np.concatenate(
        [moved.reshape(n, MOVED, 4), random_boxes(rng, n * (FOUND - MOVED)).reshape(n, -1, 4)], 1
    )
    own = labels.reshape(n, THERE)[:, :MOVED]
    found = np.concatenate([own, rng.integers(1, 81, (n, FOUND - MOVED))], axis=1)
    scores = np.sort(rng.random((n, FOUND)).astype(np.float32).round(3), axis=1)[:, ::-1]
    shuffled = rng.permuted(np.tile(np.arange(FOUND), (n, 1)), axis=1)
    boxes = np.take_along_axis(boxes, shuffled[:, :, None], 1).reshape(-1, 4)
    found = np.take_along_axis(found, shuffled, 1).ravel()
    return instance_rows(rng, start, boxes, found, scores.ravel())


def instance_rows(
    rng: np.random.Generator, start: int, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> pa.Table:
    """Return rows of `instances`."""
    counts, areas = ellipses(rng, boxes)
    n = len(boxes)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    jitter = corners + rng.normal(0, 0.3, corners.shape)
    names = ("xmin", "ymin", "xmax", "ymax")
    field = INSTANCES_SCHEMA.field

    def struct(values: np.ndarray, name: str) -> pa.StructArray:
        kind = field(name).type
        arrays = [pa.array(np.ascontiguousarray(values[:, k]), kind.field(k).type) for k in range(len(names))]
        return pa.StructArray.from_arrays(arrays, fields=list(kind))

    segmentation = [{"size": [HEIGHT, WIDTH], "counts": text} for text in counts]
    arrays = {
        "id": pa.array(start * 2**20 + np.arange(n) + 1),
        "image_id": pa.array(start + np.arange(n) // FOUND),
        "instance": pa.array((np.arange(n) % FOUND).astype(np.int32)),
        "category_id": pa.array(labels.astype(np.int32)),
        "category": pa.DictionaryArray.from_arrays(
            pa.array((labels - 1).astype(np.int32)), pa.array([c.name for c in CATEGORIES])
        ),
        "score": pa.array(scores),
        "box": struct(jitter.astype(np.float32), "box"),
        "area": pa.array(areas),
        "mask_box": struct(corners.astype(np.int32), "mask_box"),
        "segmentation": pa.array(segmentation, field("segmentation").type),
        "frame": pa.nulls(n, field("frame").type),
        "touches_border": pa.array(np.zeros(n, np.bool_)),
    }
    return pa.table([arrays[name] for name in INSTANCES_SCHEMA.names], schema=INSTANCES_SCHEMA)


BASELINE = """
import contextlib, io, json, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
ground_truth, results, shape = sys.argv[1:]
kind = {"bbox": "bbox", "segmentation": "segm"}[shape]
with contextlib.redirect_stdout(io.StringIO()):
    expected = COCO(ground_truth)
    for number, annotation in enumerate(expected.dataset["annotations"], 1):
        annotation["id"] = number
    expected.createIndex()
    entries = json.load(open(results))
    kept = [{key: e[key] for key in ("image_id", "category_id", "score", shape)} for e in entries]
    del entries
    evaluation = COCOeval(expected, expected.loadRes(kept), kind)
    evaluation.evaluate(); evaluation.accumulate(); evaluation.summarize()
print(json.dumps({kind: evaluation.stats.tolist()}))
"""


def timed(command: list[str]) -> tuple[dict[str, Any], float, float]:
    """Run a command; return its JSON, its seconds, and MB of its largest process."""
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [watched, *watched.children(recursive=True)]
                peak = max(peak, *(one.memory_info().rss for one in family))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.25)
        seconds = time.perf_counter() - started
        if process.returncode:
            raise RuntimeError(f"{command[:4]} ended with {process.returncode}")
        out.seek(0)
        return json.loads(out.read()), seconds, peak / 1e6


def main() -> None:
    """Print one line for each side, and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--keep", type=Path, help="write the run to this folder, or use the run in it")
    parser.add_argument("--only", choices=["ours", "baseline"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evaluate-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "run" / "_SUCCESS").exists():
            make_run(folder, options.images)
        ground_truth, run = str(folder / "ground_truth.json"), str(folder / "run")
        figures: dict[str, Any] = {
            "images": options.images,
            "ground_truth_mb": Path(ground_truth).stat().st_size / 1e6,
        }
        metrics: dict[str, dict[str, Any]] = {}
        if options.only != "baseline":
            command = [
                sys.executable,
                "-m",
                "maskrcnn_jobs",
                "evaluate",
                run,
                "--truth",
                ground_truth,
                "--json",
            ]
            metrics["ours"], seconds, peak = timed(command)
            figures |= {"ours_s": seconds, "ours_mb": peak}
            print(f"ours, boxes and masks: {seconds:.1f} s, largest process {peak:.0f} MB", flush=True)
        if options.only != "ours":
            metrics["baseline"] = {}
            for shape, kind in (("bbox", "bbox"), ("segmentation", "segm")):
                results = str(folder / "run" / "coco" / f"results_{kind}.json")
                stats, seconds, peak = timed([sys.executable, "-c", BASELINE, ground_truth, results, shape])
                metrics["baseline"] |= stats
                figures |= {f"baseline_{kind}_s": seconds, f"baseline_{kind}_mb": peak}
                print(f"pycocotools, {kind}: {seconds:.1f} s, {peak:.0f} MB", flush=True)
        if len(metrics) == 2:
            apart = max(
                np.abs(np.subtract(metrics["ours"][kind], metrics["baseline"][kind])).max()
                for kind in ("bbox", "segm")
            )
            figures["apart"] = float(apart)
            print(f"the twelve metrics differ by {apart:.1e} at most")
            if apart > 1e-12:
                raise SystemExit("they differ")
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
