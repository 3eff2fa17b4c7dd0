"""The checks of `verify`: functions that yield what is wrong with a finished output, and return what was counted.

A check raises `BrokenError` where a file is missing or damaged, which ends it with that finding.
"""

import functools
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..formats import coco_writer
from ..formats.geoparquet import GEO as GEO_SCHEMA
from ..io.parquet import GEO, IMAGES, PIECES, TABLES, WINDOWS, File, read_table
from ..io.storage import Storage
from ..pipeline.manifest import FILE_NAME, ManifestReader
from ..pipeline.plan import RUN, run_digest
from ..pipeline.success import COCO, SUCCESS, coco_info
from ..schema import MANIFEST, METADATA, SCHEMA_VERSION, images_schema
from ..schema import PIECES as PIECES_SCHEMA
from ..schema import WINDOWS as WINDOWS_SCHEMA
from ..stats import STATUSES, Stats
from ..tiling.assemble import ranges_of
from .invariants import Fault, carried_faults, instance_faults, place, place_faults, status_faults
from .invariants_windows import geo_faults, piece_faults, window_faults
from .verify_loading import (
    BLOCK_BYTES,
    BrokenError,
    LoadedOutput,
    chunks,
    digest_and_size,
    read_json,
    reading,
    row_groups,
    told,
)

log = logging.getLogger("maskrcnn")

FOLDERS: Final = (*TABLES, COCO)
"""What users read: nothing may stand there that `_SUCCESS` does not list."""
STATS: Final = "stats.json"
LOOK_AHEAD: Final = 8192
"""Rows of the manifest beyond those that are expected, among which a row of `images` is looked for."""

Checking = Generator[Fault, None, str]
"""Yields what is wrong, and returns what was counted."""


# Records and files


def check_records(evidence: LoadedOutput) -> Checking:
    """`run.json`, the plans and `_SUCCESS` speak of the same run."""
    run, inputs, success = evidence.run, evidence.inputs, evidence.success
    first, latest = evidence.plans[0], evidence.plans[-1]
    manifest_sha256 = inputs.get("manifest_sha256", first.manifest_sha256)
    compared = [
        (RUN, "digest", run["digest"], first.digest),
        (RUN, "the digest of settings and model", run_digest(run["settings"], run["model"]), first.digest),
        (RUN, "inputs.rows", inputs.get("rows", evidence.rows), evidence.rows),
        (RUN, "inputs.manifest_sha256", manifest_sha256, first.manifest_sha256),
        (SUCCESS, "generation", success["generation"], latest.generation),
        (SUCCESS, "schema_version", success["schema_version"], SCHEMA_VERSION),
    ]
    for plan in evidence.plans[1:]:
        where = f"the plan of generation {plan.generation}"
        compared.append((where, "digest", plan.digest, first.digest))
        compared.append((where, "manifest_sha256", plan.manifest_sha256, first.manifest_sha256))
        if plan.rows_file is not None:
            sha256, _ = digest_and_size(evidence.storage, plan.rows_file)
            compared.append((plan.rows_file, "sha256", sha256, plan.rows_sha256))
    for where, name, found, expected in compared:
        if found != expected:
            yield Fault(where, f"{name} is {found}, expected {expected}")
    plans = f"{len(evidence.plans)} plan{'s' if len(evidence.plans) > 1 else ''}"
    return f"{RUN}, {plans} and {SUCCESS} are of one run"


def check_manifest(evidence: LoadedOutput) -> Checking:
    """`manifest.parquet` is the one that was planned, with as many rows."""
    sha256, _ = digest_and_size(evidence.storage, FILE_NAME)
    if sha256 != evidence.plans[0].manifest_sha256:
        raise BrokenError(FILE_NAME, f"sha256 is {sha256}, planned was {evidence.plans[0].manifest_sha256}")
    with reading(FILE_NAME), ManifestReader(evidence.storage) as manifest:
        rows, schema = manifest.num_rows, manifest.schema
    if rows != evidence.rows:
        yield Fault(FILE_NAME, f"has {rows} rows, the plan {evidence.rows}")
    if list(schema)[: len(MANIFEST)] != list(MANIFEST):
        yield Fault(FILE_NAME, f"has the columns {', '.join(schema.names)}")
    yield from _version_faults(FILE_NAME, schema)
    return f"{rows:,} rows, the ones that were planned"


def check_listing(evidence: LoadedOutput) -> Checking:
    """Nothing stands where users read that `_SUCCESS` does not list, and the report is there."""
    listed = {*(file.path for file in evidence.files), *evidence.coco}
    standing = [path for folder in FOLDERS for path in evidence.storage.list(folder)]
    for path in standing:
        if path not in listed:
            yield Fault(path, f"stands there, and {SUCCESS} does not list it")
    for path in ("report.html", "timings.json"):
        if not evidence.storage.exists(path) or not evidence.storage.size(path):
            yield Fault(path, "is missing or empty; `maskrcnn reduce` writes it again")
    return f"{len(standing):,} files stand in the tables' folders, all of them listed"


def check_parts(evidence: LoadedOutput) -> Checking:
    """Each part that `_SUCCESS` lists is there, with its bytes and rows, in this version's schema."""
    for path, count in Counter(file.path for file in evidence.files).items():
        if count > 1:
            yield Fault(path, f"{SUCCESS} lists it {count} times")
    for file in told("parts", evidence.files):
        try:
            yield from _part_faults(evidence.storage, file)
        except BrokenError as error:
            yield error.fault
    size = sum(file.bytes for file in evidence.files) // 10**6
    return f"{len(evidence.files):,} of {size:,} MB, each with its sha256, bytes, rows and schema version"


def _part_faults(storage: Storage, file: File) -> Iterator[Fault]:
    sha256, size = digest_and_size(storage, file.path)
    if (sha256, size) != (file.sha256, file.bytes):
        # What it holds is not asked: bytes that nobody vouches for prove nothing, and may harm their reader.
        listed = f"listed are {file.bytes} of {file.sha256}"
        raise BrokenError(file.path, f"has {size} bytes of sha256 {sha256}, {listed}")
    with reading(file.path), storage.open(file.path) as stored, pq.ParquetFile(stored) as parquet:
        rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    if rows != file.rows:
        yield Fault(file.path, f"has {rows} rows, listed are {file.rows}")
    yield from _version_faults(file.path, schema)


def _version_faults(path: str, schema: pa.Schema) -> Iterator[Fault]:
    for key, expected in METADATA.items():
        version = (schema.metadata or {}).get(key)
        if version != expected:
            yield Fault(path, f"{key.decode()} in its footer is {version!r}, expected {expected!r}")


# Rows


def check_images(evidence: LoadedOutput) -> Checking:
    """Each row of the manifest is one row of `images`, in order; it contradicts neither that nor itself."""
    storage, rows = evidence.storage, evidence.rows
    counts: Counter[str] = Counter()
    row = 0
    with ManifestReader(storage) as manifest:
        schema = images_schema(manifest.schema)
        # What a retry knows of `bytes` and `etag` is newer.
        names = [name for name in manifest.schema.names if name not in ("image_id", "bytes", "etag")]
        for part in told("images", evidence.parts):
            for table in row_groups(storage, part.images, schema):
                ids = table["image_id"].to_numpy()
                inputs = manifest.rows(row, min(row + len(ids) + LOOK_AHEAD, rows))
                expected = inputs["image_id"].to_numpy()
                placed = place(ids, expected)
                yield from place_faults(ids, expected, placed)
                known = np.flatnonzero(placed.positions >= 0)
                theirs = inputs.take(pa.array(placed.positions[known]))
                yield from carried_faults(table.take(pa.array(known)), theirs, names)
                yield from status_faults(table)
                counts.update(table["status"].to_pylist())
                row += placed.passed
        for start in range(row, rows, LOOK_AHEAD):
            for image_id in manifest.rows(start, min(start + LOOK_AHEAD, rows))["image_id"].to_pylist():
                yield Fault(f"image {image_id}", "is missing")
    by_status = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES)
    return f"{rows:,} rows, each manifest row exactly once and in order: {by_status}"


def check_instances(evidence: LoadedOutput) -> Checking:
    """Each instance is there once, belongs to its image, and is measured as its mask says."""
    count, last_id = 0, 0
    for chunk in chunks("instances", evidence, ("image_id", "n_instances", "height", "width")):
        yield from instance_faults(chunk, last_id, evidence.found)
        if len(chunk.instances):
            count, last_id = count + len(chunk.instances), chunk.instances["id"][-1].as_py()
    return f"{count:,} rows, ids ascending, as many as n_instances says; areas and boxes are their masks'"


def check_statistics(evidence: LoadedOutput) -> Checking:
    """`stats.json` and the counts of `_SUCCESS` are what the tables add up to."""
    recorded = read_json(evidence.storage, STATS)
    stats = Stats.zero(evidence.categories)
    of_image = ("image_id", "n_instances", "height", "width", "status", "error")
    of_instance = ("id", "image_id", "category_id", "score", "area", "box")
    for chunk in chunks("statistics", evidence, of_image, of_instance):
        stats += Stats.of_tables(chunk.images, chunk.instances, evidence.categories)
    recomputed = json.loads(json.dumps(stats.to_json()))
    counts = {"images": evidence.rows, **recomputed["images"]["status"], "instances": stats.instances}
    yield from _differences(STATS, recorded, recomputed)
    yield from _differences(f"{SUCCESS}: counts", evidence.success["counts"], counts)
    return f"{STATS} and the counts of {SUCCESS} are those of the tables"


def _differences(where: str, recorded: Any, recomputed: Any) -> Iterator[Fault]:
    """Yield where two JSON values differ."""
    if isinstance(recorded, dict) and isinstance(recomputed, dict):
        for key in sorted({*recorded, *recomputed}):
            yield from _differences(f"{where}.{key}", recorded.get(key), recomputed.get(key))
    elif isinstance(recorded, list) and isinstance(recomputed, list) and len(recorded) == len(recomputed):
        for index, (ours, theirs) in enumerate(zip(recorded, recomputed, strict=True)):
            yield from _differences(f"{where}[{index}]", ours, theirs)
    elif type(recorded) is not type(recomputed) or recorded != recomputed:
        yield Fault(where, f"is {recorded!r:.100}, the tables say {recomputed!r:.100}")


# Windows


def check_windows(evidence: LoadedOutput) -> Checking:
    """Each window of each image is there once; images, instances, pieces and polygons are what follows from them."""
    if evidence.items is None:
        return "none: images were not cut"
    counts: Counter[str] = Counter()
    row = n_pieces = n_polygons = 0
    for part in told("windows", evidence.parts):
        name = part.images.removeprefix(f"{IMAGES}/")
        windows, pieces = (_whole(evidence, f"{table}/{name}", schema) for table, schema in _OF_WINDOWS)
        images, instances = (_whole(evidence, path, None) for path in (part.images, part.instances))
        ranges = ranges_of(windows["image_id"].to_numpy())
        for image in images.select(["image_id", "status", "error", "capped"]).to_pylist():
            low, high = ranges.get(image["image_id"], (0, 0))
            yield from window_faults(evidence.items, row, image, windows.slice(low, high - low))
            row += 1
        yield from piece_faults(windows, pieces, instances)
        polygons = _polygons(evidence, name.removesuffix(".parquet"))
        ids = images["image_id"].to_pylist()
        yield from geo_faults(evidence.items, row - len(images), ids, instances, polygons)
        counts.update(windows["status"].to_pylist())
        n_pieces, n_polygons = n_pieces + len(pieces), n_polygons + len(polygons)
    if dict(counts) != evidence.success.get(WINDOWS):
        yield Fault(SUCCESS, f"counts the windows {evidence.success.get(WINDOWS)}, the tables {dict(counts)}")
    by_status = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    return f"{counts.total():,}, each once: {by_status}; {n_pieces:,} pieces, {n_polygons:,} polygons"


def _whole(evidence: LoadedOutput, path: str, schema: pa.Schema | None) -> pa.Table:
    with reading(path):
        table = read_table(evidence.storage, path)
    if schema is not None and not table.schema.equals(schema):
        raise BrokenError(path, "has other columns than it should")
    return table


def _polygons(evidence: LoadedOutput, stem: str) -> pa.Table:
    """Return the rows of `geo` of a part, in as many files as there are coordinate reference systems."""
    paths = [file.path for file in evidence.files if file.path.startswith(f"{GEO}/{stem}")]
    tables = [GEO_SCHEMA.empty_table(), *(_whole(evidence, path, None) for path in paths)]
    return pa.concat_tables(table.replace_schema_metadata() for table in tables)


_OF_WINDOWS: Final = ((WINDOWS, WINDOWS_SCHEMA), (PIECES, PIECES_SCHEMA))


# COCO JSON


def check_coco(evidence: LoadedOutput) -> Checking:
    """COCO JSON is what this version writes from the tables, byte for byte."""
    plans = [coco_writer.plan_files(evidence.parts, mode) for mode in coco_writer.MODES]
    by_targets = {
        tuple(t for f in plan for t in (f.dataset_target, f.results_target)): plan for plan in plans
    }
    if evidence.coco not in by_targets:
        raise BrokenError(SUCCESS, f"lists COCO files as no run has them: {', '.join(evidence.coco)}")
    storage, info = evidence.storage, coco_info(evidence.run, evidence.plans[0])
    for file in by_targets[evidence.coco]:
        dataset = functools.partial(
            coco_writer.render_dataset,
            storage=storage,
            parts=file.parts,
            categories=evidence.categories,
            info=info,
        )
        results = functools.partial(coco_writer.render_results, storage=storage, parts=file.parts)
        for target, render in ((file.dataset_target, dataset), (file.results_target, results)):
            log.info("comparing %s", target)
            with reading(target), storage.open(target) as stored:
                at = _first_difference(stored, render)
            if at is not None:
                yield Fault(target, f"is not what the tables give, from byte {at:,} on")
    return f"{len(evidence.coco):,} files, byte for byte what the tables give"


def _first_difference(stored: BinaryIO, render: Callable[[BinaryIO], object]) -> int | None:
    """Return the first byte at which a file is not what is rendered; None if it is."""
    # A remote file asks for each `read`; asked for by blocks it is read sooner.
    raw = isinstance(stored, io.RawIOBase)
    comparison = _Comparison(io.BufferedReader(stored, BLOCK_BYTES) if raw else stored)
    try:
        render(cast(BinaryIO, comparison))
        comparison.end()
    except _DifferentError as error:
        return error.at
    return None


class _DifferentError(Exception):
    """What was read is not what is rendered, from a byte on."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at: Final = at


class _Comparison:
    """Stands in for a file that is written, and compares what it is given with one that was."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self._at = 0

    def write(self, data: bytes | memoryview) -> int:
        """Compare what comes next. Raises _DifferentError."""
        expected = bytes(data)
        found = self._stored.read(len(expected))
        if found != expected:
            pairs = enumerate(zip(found, expected, strict=False))
            raise _DifferentError(self._at + next((i for i, (a, b) in pairs if a != b), len(found)))
        self._at += len(expected)
        return len(expected)

    def end(self) -> None:
        """Compare the end. Raises _DifferentError where the file goes on."""
        if self._stored.read(1):
            raise _DifferentError(self._at)
