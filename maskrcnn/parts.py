"""Files of results: built locally, read back, put in one PUT; and the receipts that make them count.

A writer that streams to its final name leaves a truncated but *readable* Parquet when its caller raises
(apache/arrow#40502). So a file is built under a name that no reader looks for, opened again and counted, and only
then stored. The receipt is
stored last: an attempt without one never happened.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import RunError
from .plan import Shard
from .schema import INSTANCES as INSTANCES_SCHEMA
from .storage import Storage

SHARDS: Final = "shards"
RECEIPTS: Final = "receipts"
IMAGES: Final = "images"
INSTANCES: Final = "instances"
WINDOWS: Final = "windows"
PIECES: Final = "pieces"
GEO: Final = "geo"
TABLES: Final = (IMAGES, INSTANCES, WINDOWS, PIECES, GEO)
"""What users read, in Parquet; the last three are of runs of windows."""
ROW_GROUP_ROWS: Final = 61_440
"""Half of DuckDB's own: the masks of one image are found in half the time, and a whole column takes no longer."""

# What repeats within a file. A dictionary of anything else (run-length strings, ids, names) only costs.
_REPEATING: Final = ("status", "error", "category_id", "category", "segmentation.size.list.element")
_ENCODINGS: Final = {
    "id": "DELTA_BINARY_PACKED",
    "image_id": "DELTA_BINARY_PACKED",
    "instance": "DELTA_BINARY_PACKED",
    "area": "DELTA_BINARY_PACKED",
    "score": "BYTE_STREAM_SPLIT",
    "box.xmin": "BYTE_STREAM_SPLIT",
    "box.ymin": "BYTE_STREAM_SPLIT",
    "box.xmax": "BYTE_STREAM_SPLIT",
    "box.ymax": "BYTE_STREAM_SPLIT",
    "mask_box.xmin": "DELTA_BINARY_PACKED",
    "mask_box.ymin": "DELTA_BINARY_PACKED",
    "mask_box.xmax": "DELTA_BINARY_PACKED",
    "mask_box.ymax": "DELTA_BINARY_PACKED",
    "segmentation.counts": "DELTA_LENGTH_BYTE_ARRAY",
}


@dataclass(frozen=True, slots=True)
class File:
    """A stored file, with what is needed to prove that it is still the same."""

    path: str
    """Below the run's directory."""
    sha256: str
    bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class Part:
    """The users' files of consecutive images: their rows, and their instances in the same order."""

    images: str
    """Path below the run's directory."""
    instances: str
    n_images: int
    n_instances: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """The commit record of one attempt at a shard: what was written, and what was found."""

    shard: str
    attempt: str
    start: int
    stop: int
    images: File
    instances: File
    counts: dict[str, int]
    """`ok`, `empty`, `failed`, `instances`."""
    stats: dict[str, Any]
    """`stats.Stats` of the shard, as JSON."""
    timings: dict[str, float]
    """Seconds by stage."""
    execution: dict[str, Any]
    """Where and how: node, device, dtype, batch_size, threads, versions."""
    storage_retries: int = 0
    """Requests to the store that had to be repeated meanwhile."""

    def to_json(self) -> str:
        """Return the content of the receipt's file."""
        # Not `asdict` of all: it copies the statistics number by number.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        files = {name: dataclasses.asdict(fields[name]) for name in (IMAGES, INSTANCES)}
        return json.dumps(fields | files, ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes) -> "Receipt":
        """Return the receipt that `to_json` wrote."""
        fields = json.loads(text)
        return Receipt(**fields | {name: File(**fields[name]) for name in (IMAGES, INSTANCES)})


def standing_receipts(storage: Storage, *, closely: bool = True) -> list[str]:
    """Return the paths of the receipts whose files are there, sorted: the attempts that count.

    Files may be gone where somebody removed them, or where a disk was restored in part.

    Args:
        closely: look for each file; else only for the shard's folder, which takes a tenth of the time in a store.
    """
    if not closely:
        folders = set(storage.folders(SHARDS))
        return [path for path in storage.list(RECEIPTS) if _folder_of(path).split("/")[1] in folders]
    files = set(storage.list(SHARDS))
    return [
        path
        for path in storage.list(RECEIPTS)
        if {f"{_folder_of(path)}/{name}.parquet" for name in (IMAGES, INSTANCES)} <= files
    ]


def _folder_of(receipt: str) -> str:
    shard, _, attempt = receipt.removeprefix(f"{RECEIPTS}/").removesuffix(".json").partition(".")
    return f"{SHARDS}/{shard}/{attempt}"


def read_receipt(storage: Storage, path: str) -> Receipt:
    """Return a receipt.

    Raises:
        RunError: it is broken; removing it makes its shard run again.
    """
    try:
        return Receipt.from_json(storage.read(path))
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{storage.url}/{path} is no receipt; remove it, and run `maskrcnn segment` again"
        ) from error


def receipt_path(shard: str, attempt: str) -> str:
    """Return where the receipt of an attempt lies."""
    return f"{RECEIPTS}/{shard}.{attempt}.json"


def write_table(storage: Storage, path: str, table: pa.Table) -> File:
    """Store a table as one Parquet file, in one PUT, after it was read back."""
    return write_tables(storage, path, table.schema, [table])


def write_tables(storage: Storage, path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> File:
    """Store tables of one schema as one Parquet file, in one PUT, after it was read back.

    The row groups are of `ROW_GROUP_ROWS`, however the rows come; at most one group is held in memory. Equal
    rows give equal bytes with one version of pyarrow.

    Raises:
        RunError: what was built does not read back, or cannot be stored.
    """
    with storage.building(path) as local:
        rows = 0
        with pq.ParquetWriter(local, schema, **parquet_options(schema)) as writer:
            for group in _row_groups(tables):
                writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
                rows += len(group)
        with pq.ParquetFile(local, pre_buffer=False) as readback:  # else all of it is held at once
            intact = readback.metadata.num_rows == rows and readback.schema_arrow.equals(schema)
            if intact:
                for _ in readback.iter_batches():  # decodes every page
                    pass
        if not intact:
            raise RunError(f"{path} does not read back as it was written; is the local disk sound?")
        with local.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = local.stat().st_size
    return File(path, sha256, size, rows)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return how a table of a run is encoded, as arguments of `ParquetWriter`.

    Chosen among those that `tests/benchmarks/writers.py --parquet` compares.
    """
    # Of the columns that a manifest adds, one may have a name of ours and another type.
    ours = {field.name for field in schema if field in list(INSTANCES_SCHEMA)}
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": list(_REPEATING),
        "column_encoding": {
            path: encoding for path, encoding in _ENCODINGS.items() if path.partition(".")[0] in ours
        },
        "write_page_index": True,
    }


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    n_waiting = 0
    for table in tables:
        waiting.append(table)
        n_waiting += len(table)
        if n_waiting >= ROW_GROUP_ROWS:
            joined = pa.concat_tables(waiting)
            whole = n_waiting - n_waiting % ROW_GROUP_ROWS
            yield joined.slice(0, whole)
            waiting, n_waiting = [joined.slice(whole)], n_waiting - whole
    if n_waiting:
        yield pa.concat_tables(waiting)


def write_shard(
    storage: Storage,
    shard: Shard,
    attempt: str,
    images: pa.Table,
    instances: pa.Table,
    *,
    stats: dict[str, Any],
    timings: dict[str, float],
    execution: dict[str, Any],
) -> Receipt:
    """Store what an attempt at a shard found; it counts from the moment when `commit` stores its receipt.

    Args:
        timings: seconds by stage, `wall` among them; the time to write is added here.
    """
    started = time.perf_counter()
    folder = f"{SHARDS}/{shard.name}/{attempt}"
    status = pc.value_counts(images["status"]).to_pylist()
    counts = {"ok": 0, "empty": 0, "failed": 0} | {row["values"]: row["counts"] for row in status}
    images_file = write_table(storage, f"{folder}/images.parquet", images)
    instances_file = write_table(storage, f"{folder}/instances.parquet", instances)
    write_s = time.perf_counter() - started
    return Receipt(
        shard=shard.name,
        attempt=attempt,
        start=shard.start,
        stop=shard.stop,
        images=images_file,
        instances=instances_file,
        counts=counts | {"instances": len(instances)},
        stats=stats,
        timings=timings | {"write": round(write_s, 6), "wall": round(timings["wall"] + write_s, 6)},
        execution=execution,
    )


def commit(storage: Storage, receipt: Receipt) -> None:
    """Store an attempt's receipt, the last of its files."""
    storage.write(receipt_path(receipt.shard, receipt.attempt), receipt.to_json().encode())


def read_table(storage: Storage, path: str) -> pa.Table:
    """Return a whole Parquet file of the run."""
    return pq.read_table(pa.BufferReader(storage.read(path)))


def read_checked(storage: Storage, file: File) -> pa.Table:
    """Return a whole Parquet file of the run, after its digest was compared.

    Raises:
        RunError: it is missing, or not what was written.
    """
    try:
        data = storage.read(file.path)
    except FileNotFoundError as error:
        raise RunError(f"{storage.url}/{file.path} is missing") from error
    intact = hashlib.sha256(data).hexdigest() == file.sha256
    table = pq.read_table(pa.BufferReader(data)) if intact else None
    if table is None or len(table) != file.rows:
        raise RunError(
            f"{storage.url}/{file.path} is not what its receipt says: it was changed or damaged; "
            "remove its folder, and run `maskrcnn segment` again"
        )
    return table
