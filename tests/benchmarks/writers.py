"""COCO JSON against `json.dump` and orjson, and Parquet as it is encoded against other ways to encode it.

    python -m tests.benchmarks.writers [--annotations 1000000] [--repeats 5] [--json PATH] [--parquet]

COCO: the baselines write dictionaries that are ready in memory, eight annotations an image; ours is `write_dataset`
from Parquet. What it wrote is compared with the dictionaries first. `text` is the text in a local file, as the
baselines leave it; `stored` also waits for the disk. The sides alternate within a repeat, so that
a ratio is of neighbours in time; CPU seconds are of all threads. The peak of memory is a fresh process's, above
what it has after its imports.

Parquet: bytes a row; CPU microseconds a row to write and to read all, what COCO needs, and flat columns for
pandas; and CPU milliseconds of DuckDB, on one thread, for typical queries. A candidate a line, medians. Needs orjson
and duckdb.
"""

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn.formats import coco_writer
from maskrcnn.io.parquet import ROW_GROUP_ROWS, Part, parquet_options, read_table, write_table, write_tables
from maskrcnn.io.storage import Storage
from maskrcnn.masks.rle import rle_areas, rle_boxes_xyxy
from maskrcnn.schema import INSTANCES, MANIFEST, ImageResult, images_table
from maskrcnn.types import Category

CATEGORIES = tuple(Category(number + 1, f"category {number}") for number in range(80))
AN_IMAGE = 8
PART_ANNOTATIONS = 200_000
INFO = {"description": "benchmark"}
_STATUS = pa.field("status", pa.string(), nullable=False)


# A run whose masks are smooth blobs


@dataclass(frozen=True)
class Blobs:
    """Masks of one run of ones a column."""

    sizes: np.ndarray
    """(N, 2) height and width of the image, pixels."""
    boxes: np.ndarray
    """(N, 4) int32, tight, xmin, ymin, xmax, ymax."""
    areas: np.ndarray
    counts: pa.StringArray


def blobs(rng: np.random.Generator, n: int) -> Blobs:
    """Return random masks whose run-length strings have a mean of some 190 characters."""
    sizes = rng.choice([[480, 640], [427, 640], [640, 480], [768, 1024], [1080, 1920]], -(-n // AN_IMAGE))
    sizes = np.repeat(sizes, AN_IMAGE, axis=0)[:n]
    widths = np.clip(np.exp(rng.normal(4.42, 0.45, n)).astype(int), 3, sizes[:, 1] - 2)
    heights = np.clip((widths * np.exp(rng.normal(0, 0.4, n))).astype(int), 4, sizes[:, 0] - 2)
    lefts, tops = (rng.random((2, n)) * (sizes[:, ::-1] - np.stack([widths, heights], 1)).T).astype(int)

    # A column a row from here on.
    owner, first = np.repeat(np.arange(n), widths), np.cumsum(widths) - widths
    column = np.arange(len(owner)) - first[owner]
    at = (column + 0.5) / widths[owner] * 2 - 1
    phase = rng.random((2, n)) * 6
    half = np.sqrt(1 - at**2) * heights[owner] / 2 * (0.75 + 0.25 * np.sin(3 * at + phase[0][owner]))
    middle = tops[owner] + heights[owner] * (0.5 + 0.1 * np.sin(2 * at + phase[1][owner]))
    top = np.maximum(tops[owner], np.round(middle - half)).astype(int)
    bottom = np.minimum((tops + heights)[owner], np.round(middle + half)).astype(int)
    bottom = np.maximum(bottom, top + 1)

    lengths = 2 * widths + 1
    start = np.cumsum(lengths) - lengths
    ends = np.empty(lengths.sum(), np.int64)
    position = start[owner] + 2 * column
    ends[position] = (lefts[owner] + column) * sizes[owner, 0] + top
    ends[position + 1] = ends[position] + bottom - top
    ends[start + lengths - 1] = sizes.prod(axis=1)
    runs = np.diff(ends, prepend=0)
    runs[start] = ends[start]
    boxes = [lefts, np.minimum.reduceat(top, first), lefts + widths, np.maximum.reduceat(bottom, first)]
    areas = np.add.reduceat(bottom - top, first)
    return Blobs(sizes, np.stack(boxes, 1).astype(np.int32), areas, packed(runs, start))


def packed(runs: np.ndarray, start: np.ndarray) -> pa.StringArray:
    """Return run lengths as pycocotools packs them; `start` is where each mask's begin."""
    lengths = np.diff(start, append=len(runs))
    values = runs.copy()
    later = np.flatnonzero(np.arange(len(runs)) - np.repeat(start, lengths) > 2)
    values[later] -= runs[later - 2]
    digits = 1 + sum((values >= 1 << k) | (values < -(1 << k)) for k in (4, 9, 14, 19, 24, 29)).astype(int)
    text, at = np.empty(digits.sum(), np.uint8), np.cumsum(digits) - digits
    for k in range(digits.max()):
        more = digits > k
        text[at[more] + k] = 48 + ((values[more] >> 5 * k) & 31 | np.where(digits[more] > k + 1, 32, 0))
    offsets = np.append(at[start], len(text)).astype(np.int32)
    return pa.StringArray.from_buffers(len(start), pa.py_buffer(offsets), pa.py_buffer(text))


def instances(rng: np.random.Generator, first_image: int, n: int) -> pa.Table:
    """Return rows of `instances`, `AN_IMAGE` an image."""
    found = blobs(rng, n)
    image, instance = first_image + np.arange(n) // AN_IMAGE, (np.arange(n) % AN_IMAGE).astype(np.int32)
    scores = np.clip(rng.beta(2, 1, (-(-n // AN_IMAGE), AN_IMAGE)), 0.05, 1).astype(np.float32)
    codes = np.minimum(rng.geometric(0.08, n) - 1, 79).astype(np.int32)
    flat = {
        "id": image * 2**20 + instance + 1,
        "image_id": image,
        "instance": instance,
        "category_id": codes + 1,
        "category": pa.DictionaryArray.from_arrays(codes, [category.name for category in CATEGORIES]),
        "score": -np.sort(-scores, axis=1).ravel()[:n],
        "area": found.areas,
        "touches_border": rng.random(n) < 0.05,
    }
    boxes = (found.boxes + rng.normal(0, 1, (n, 4))).astype(np.float32)
    sizes = pa.array(found.sizes.ravel().astype(np.int32))
    nested = {
        "box": list(boxes.T),
        "mask_box": list(found.boxes.T),
        "segmentation": [pa.ListArray.from_arrays(np.arange(0, 2 * n + 1, 2, dtype=np.int32), sizes), found.counts],
        "frame": None,
    }  # fmt: skip

    def column(field: pa.Field) -> pa.Array:
        if field.name in flat:
            return pa.array(flat[field.name])
        if (values := nested[field.name]) is None:
            return pa.nulls(n, field.type)
        arrays = [pa.array(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v for v in values]
        children = [array.cast(child.type) for array, child in zip(arrays, field.type, strict=True)]
        return pa.StructArray.from_arrays(children, fields=list(field.type))

    return pa.table([column(field) for field in INSTANCES], schema=INSTANCES)


def make_run(folder: Path, annotations: int, seed: int = 0) -> tuple[Storage, list[Part]]:
    """Write the tables of a run with so many annotations."""
    rng, storage, parts = np.random.default_rng(seed), Storage(str(folder)), []
    for number, first in enumerate(range(0, annotations, PART_ANNOTATIONS)):
        stop = min(first + PART_ANNOTATIONS, annotations)
        pieces = [
            instances(rng, row // AN_IMAGE, min(40_000, stop - row)) for row in range(first, stop, 40_000)
        ]
        table = write_tables(storage, f"instances/{number}.parquet", INSTANCES, pieces)
        ids = range(first // AN_IMAGE, -(-stop // AN_IMAGE))
        names = [f"collection/{i:09d}.jpg" for i in ids]
        results = [
            ImageResult(i, i, n, n, 1, None, None, width=640, height=480)
            for i, n in zip(ids, names, strict=True)
        ]
        rows = images_table(results, MANIFEST.empty_table())
        rows = rows.set_column(rows.column_names.index("status"), _STATUS, pa.array(["ok"] * len(rows)))
        images = write_table(storage, f"images/{number}.parquet", rows)
        parts.append(Part(images.path, table.path, images.rows, table.rows))
    return storage, parts


# The two sides


def coco_rows(storage: Storage, parts: list[Part]) -> dict[str, Any]:
    """Return the content of a COCO dataset as dictionaries: what the baselines write.

    A score is the shortest number that gives the float32 back, as in our text.
    """
    content: dict[str, Any] = {
        "info": INFO,
        "licenses": [],
        "categories": [{"id": c.id, "name": c.name, "supercategory": ""} for c in CATEGORIES],
        "images": [],
        "annotations": [],
    }
    for part in parts:
        with storage.open(part.images) as file:
            for row in pq.read_table(file, columns=["image_id", "name", "width", "height"]).to_pylist():
                content["images"].append({"id": row.pop("image_id"), "file_name": row.pop("name")} | row)
        with storage.open(part.instances) as file:
            table = pq.read_table(file)
        for row, score in zip(table.to_pylist(), table["score"].cast(pa.string()).to_pylist(), strict=True):
            xmin, ymin, xmax, ymax = row["mask_box"].values()
            content["annotations"].append(
                {
                    "id": row["id"],
                    "image_id": row["image_id"],
                    "category_id": row["category_id"],
                    "segmentation": row["segmentation"],
                    "area": row["area"],
                    "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    return content


class Unstored(Storage):
    """A destination that leaves a file where it was built."""

    def put_file(self, path: str, local: Path) -> None:
        """Do nothing."""


def write_ours(storage: Storage, parts: list[Part], destination: Storage) -> None:
    """Write COCO JSON from the tables."""
    coco_writer.write_dataset(storage, parts, CATEGORIES, "ours.json", INFO, destination=destination)


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write dictionaries by the standard library."""
    with path.open("w") as file:
        json.dump(content, file)


def write_orjson(content: dict[str, Any], path: Path) -> None:
    """Write dictionaries by orjson."""
    with path.open("wb") as file:
        file.write(orjson.dumps(content))


@dataclass(frozen=True)
class Cost:
    """What one call took, seconds."""

    wall: float
    cpu: float


def cost(function: Callable[[], object]) -> Cost:
    """Measure one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def check_equal(storage: Storage, parts: list[Part], folder: Path) -> None:
    """Raise SystemExit if what ours wrote is not what the baselines wrote, for some parts."""
    content = coco_rows(storage, parts)
    write_ours(storage, parts, storage)
    write_json(content, folder / "json.json")
    write_orjson(content, folder / "orjson.json")
    ours = json.loads(storage.read("ours.json"))
    if any(ours != json.loads((folder / name).read_bytes()) for name in ("json.json", "orjson.json")):
        raise SystemExit("the sides disagree")
    segmentations = [annotation["segmentation"] for annotation in content["annotations"][:1000]]
    boxes = rle_boxes_xyxy(segmentations)
    boxes[:, 2:] -= boxes[:, :2]
    written = [(row["area"], row["bbox"]) for row in content["annotations"][:1000]]
    if written != list(zip(rle_areas(segmentations).tolist(), boxes.tolist(), strict=True)):
        raise SystemExit("areas or boxes are not those of the masks")


def compare_coco(storage: Storage, parts: list[Part], folder: Path, repeats: int) -> dict[str, Any]:
    """Return microseconds an annotation of each side, and the ratios to ours."""
    content = coco_rows(storage, parts)
    gc.collect()
    gc.freeze()  # else a collection, on whichever side it falls, walks through all dictionaries
    sides: dict[str, Callable[[], object]] = {
        "json.dump": lambda: write_json(content, folder / "json.json"),
        "text": lambda: write_ours(storage, parts, Unstored(storage.url)),
        "orjson": lambda: write_orjson(content, folder / "orjson.json"),
        "stored": lambda: write_ours(storage, parts, storage),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            costs[name].append(cost(side))
    count = len(content["annotations"])
    mean = statistics.fmean(len(row["segmentation"]["counts"]) for row in content["annotations"])
    figures: dict[str, Any] = {"annotations": count, "mean_rle": round(mean)}
    for name, measured in costs.items():
        figures[f"{name}_us"] = {
            kind: round(statistics.median(getattr(one, kind) for one in measured) / count * 1e6, 3)
            for kind in ("wall", "cpu")
        }
    for baseline, ours, kind in itertools.product(
        ("json.dump", "orjson"), ("text", "stored"), ("wall", "cpu")
    ):
        pairs = zip(costs[baseline], costs[ours], strict=True)
        ratios = [getattr(theirs, kind) / getattr(own, kind) for theirs, own in pairs]
        figures[f"{baseline} / {ours}, {kind}"] = spread(ratios)
    return figures


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


_CHILD = """
import sys
from pathlib import Path
from maskrcnn import coco
from maskrcnn.pipeline.receipts import Part
from maskrcnn.io.storage import Storage
from maskrcnn.types import Category

def status(key):
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key)]
    return int(line.split()[1])

url, *paths = sys.argv[1:]
parts = [Part(*pair.split(), 0, 0) for pair in paths]
before = status("VmRSS")
coco.write_dataset(Storage(url), parts, [Category(1, "a")], "child.json", {})
print(status("VmHWM") - before)
"""


def peak_mb(storage: Storage, parts: list[Part]) -> float:
    """Return what a fresh process's memory grows by while it writes, MB at the peak (Linux)."""
    paths = [f"{part.images} {part.instances}" for part in parts]
    command = [sys.executable, "-c", _CHILD, storage.url, *paths]
    return round(int(subprocess.run(command, capture_output=True, check=True).stdout) / 2**10, 1)


# Parquet


@dataclass(frozen=True)
class Encoding:
    """One way to write the table: the arguments of `ParquetWriter`, and rows a row group."""

    options: dict[str, Any]
    rows: int = ROW_GROUP_ROWS


QUERIES = {
    "count by category": "SELECT category, count(*) FROM t WHERE score > 0.5 GROUP BY ALL",
    "area by category": "SELECT category, sum(area), count(*) FROM t GROUP BY ALL",
    "an image's rows": "SELECT instance, category, score, box, area FROM t WHERE image_id = {image}",
    "an image's masks": "SELECT instance, segmentation FROM t WHERE image_id = {image}",
    "sum of boxes": "SELECT avg(box.xmax - box.xmin), avg(mask_box.ymax - mask_box.ymin) FROM t",
    "length of masks": "SELECT sum(length(segmentation.counts)) FROM t",
}

_FLOATS = ("score", "box.xmin", "box.ymin", "box.xmax", "box.ymax")
_MASK_BOX = ("mask_box.xmin", "mask_box.ymin", "mask_box.xmax", "mask_box.ymax")


def encodings() -> dict[str, Encoding]:
    """Return the candidates: the one in use, and what differs from it in one respect.

    BYTE_STREAM_SPLIT of integers is not among them: DuckDB 1.5.5 does not read it.
    """
    used = parquet_options(INSTANCES)

    def encoded(encoding: str | None, *columns: str) -> Encoding:
        """Give columns an encoding; None: a dictionary."""
        encodings = {name: e for name, e in used["column_encoding"].items() if name not in columns}
        dictionaries = [name for name in used["use_dictionary"] if name not in columns]
        if encoding is None:
            dictionaries += columns
        else:
            encodings |= dict.fromkeys(columns, encoding)
        return Encoding(used | {"column_encoding": encodings, "use_dictionary": dictionaries})

    def encoding(**options: Any) -> Encoding:
        return Encoding(used | options)

    bloom = {"ndv": 20_000, "fpp": 0.01}
    return {
        "as used": Encoding(used),
        "all plain": encoding(column_encoding=None, use_dictionary=False),
        "pyarrow's defaults": Encoding({}),
        **{f"zstd {level}": encoding(compression_level=level) for level in (1, 3, 6, 9)},
        "snappy": encoding(compression="snappy", compression_level=None),
        "lz4": encoding(compression="lz4", compression_level=None),
        "ids plain": encoded("PLAIN", "id", "image_id"),
        "ids delta": encoded("DELTA_BINARY_PACKED", "id", "image_id"),
        "image_id dictionary": encoded(None, "image_id"),
        "instance, area plain": encoded("PLAIN", "instance", "area"),
        "instance, area delta": encoded("DELTA_BINARY_PACKED", "instance", "area"),
        "floats plain": encoded("PLAIN", *_FLOATS),
        "floats split": encoded("BYTE_STREAM_SPLIT", *_FLOATS),
        "floats dictionary": encoded(None, *_FLOATS),
        "mask_box plain": encoded("PLAIN", *_MASK_BOX),
        "mask_box delta": encoded("DELTA_BINARY_PACKED", *_MASK_BOX),
        "mask_box dictionary": encoded(None, *_MASK_BOX),
        "counts plain": encoded("PLAIN", "segmentation.counts"),
        "counts delta length": encoded("DELTA_LENGTH_BYTE_ARRAY", "segmentation.counts"),
        "statistics of all": encoding(write_statistics=True),
        "no statistics": encoding(write_statistics=False),
        "page index": encoding(write_page_index=True),
        "no page index": encoding(write_page_index=False),
        "bloom filter of image_id": encoding(bloom_filter_options={"image_id": bloom}),
        **{f"{rows} rows": Encoding(used, rows) for rows in (32_768, 61_440, 122_880, 245_760, 1_000_000)},
    }


def measure_encoding(table: pa.Table, encoding: Encoding, path: Path, repeats: int) -> dict[str, float]:
    """Return bytes a row, and CPU microseconds a row, or milliseconds a query."""

    def write() -> None:
        with pq.ParquetWriter(path, table.schema, **encoding.options) as writer:
            writer.write_table(table, row_group_size=encoding.rows)

    def median(function: Callable[[], object]) -> float:
        return statistics.median(cost(function).cpu for _ in range(repeats))

    def read_for_coco() -> None:
        with pq.ParquetFile(path) as file:
            for _ in file.iter_batches(
                16_384, columns=list(coco_writer.ANNOTATION_COLUMNS), use_threads=False
            ):
                pass

    rows = len(table)
    figures = {"write us": min(cost(write).cpu for _ in range(2)) / rows * 1e6}
    figures["bytes a row"] = path.stat().st_size / rows
    figures["read us"] = median(lambda: pq.read_table(path, use_threads=False)) / rows * 1e6
    figures["coco us"] = median(read_for_coco) / rows * 1e6
    flat = ["image_id", "category", "score", "area", "touches_border"]
    figures["pandas us"] = median(lambda: pd.read_parquet(path, columns=flat)) / rows * 1e6
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        connection.execute(f"CREATE VIEW t AS FROM read_parquet('{path}')")
        for name, query in QUERIES.items():
            text = query.format(image=table["image_id"][rows // 3].as_py())
            figures[name] = median(lambda text=text: connection.execute(text).fetchall()) * 1e3
    return {name: float(f"{value:.3g}") for name, value in figures.items()}


def compare_parquet(
    storage: Storage, parts: list[Part], folder: Path, repeats: int
) -> dict[str, dict[str, float]]:
    """Return the figures of each candidate, and print them, a line each."""
    table = pa.concat_tables([read_table(storage, part.instances) for part in parts]).combine_chunks()
    figures = {}
    for name, encoding in encodings().items():
        figures[name] = measure_encoding(table, encoding, folder / "candidate.parquet", repeats)
        if len(figures) == 1:
            print(" " * 25, *(f"{column:>17}" for column in figures[name]))
        print(f"{name:25}", *(f"{value:17}" for value in figures[name].values()), flush=True)
    return figures


def main() -> None:
    """Print one JSON object; with `--parquet` a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--annotations", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--parquet", action="store_true", help="compare ways to encode Parquet, not COCO")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="writers-") as temporary:
        folder = Path(temporary)
        storage, parts = make_run(folder / "run", options.annotations)
        figures: dict[str, Any]
        if options.parquet:
            figures = compare_parquet(storage, parts, folder, options.repeats)
        else:
            check_equal(storage, parts[:1], folder)
            figures = {
                "peak_mb": peak_mb(storage, parts),
                "peak_mb_one_part": peak_mb(storage, parts[:1]),
                "coco": compare_coco(storage, parts, folder, options.repeats),
            }
            print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
