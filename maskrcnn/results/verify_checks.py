"""The checks of `verify`: each yields what is wrong with a finished output, and returns a line with its counts.

A check raises `BrokenError` if a file is missing or damaged, which ends it with that finding.
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

from ..errors import plural
from ..formats import coco_writer
from ..formats.geoparquet import GEO as GEO_SCHEMA
from ..io.parquet import GEO, IMAGES, PIECES, TABLES, WINDOWS, File, read_table
from ..io.storage import Storage
from ..pipeline.manifest_file import SKIPPED_NAME, ManifestReader
from ..pipeline.plan import RUN, run_digest
from ..pipeline.success import COCO, SUCCESS, RunAll, coco_info
from ..schema import MANIFEST, METADATA, SCHEMA_VERSION, images_schema, pieces_schema
from ..schema import WINDOWS as WINDOWS_SCHEMA
from ..stats import STATUSES, Stats
from ..tiling.assemble import geo_folders, ranges_of
from .invariants import Fault, carried_faults, instance_faults, place, place_faults, status_faults
from .invariants_windows import geo_faults, geo_file_faults, piece_faults, window_faults
from .verify_loading import (
    BLOCK_BYTES,
    BrokenError,
    CurrentInputs,
    LoadedOutput,
    checking,
    chunks,
    digest_and_size,
    read_json,
    reading,
    row_groups,
)
from .verify_parts import Checking, over

log = logging.getLogger("maskrcnn")

FOLDERS: Final = (*TABLES, COCO)
"""The folders that users read: they may contain only files that `_SUCCESS` lists."""
STATS: Final = "stats.json"
LOOK_AHEAD: Final = 8192
"""Number of rows of the manifest, beyond the expected ones, in which a row of `images` is searched."""

# Records and files


def check_records(output: LoadedOutput) -> Checking:
    """Check that `run.json`, the plans and `_SUCCESS` belong to the same run."""
    run, inputs, success = output.run, output.inputs, output.success
    first, latest = output.plans[0], output.plans[-1]
    manifest_sha256 = inputs.get("manifest_sha256", first.manifest_sha256)
    updates = [plan.update for plan in output.plans if plan.update is not None]
    listed_first = output.manifest_rows - sum(update.added + update.changed for update in updates)
    compared = [
        (RUN, "inputs.rows", inputs.get("rows", listed_first), listed_first),
        (RUN, "digest", run["digest"], first.digest),
        (RUN, "the digest of settings and model", run_digest(run["settings"], run["model"]), first.digest),
        (RUN, "inputs.manifest_sha256", manifest_sha256, first.manifest_sha256),
        (SUCCESS, "generation", success["generation"], latest.generation),
        (SUCCESS, "schema_version", success["schema_version"], SCHEMA_VERSION),
    ]
    for plan in output.plans[1:]:
        where = f"the plan of generation {plan.generation}"
        compared.append((where, "digest", plan.digest, first.digest))
        if plan.update is None:
            before = output.plans[plan.generation - 2]
            compared.append((where, "manifest_sha256", plan.manifest_sha256, before.manifest_sha256))
        if plan.rows_file is not None:
            sha256, _ = digest_and_size(output.storage, plan.rows_file)
            compared.append((plan.rows_file, "sha256", sha256, plan.rows_sha256))
    for where, name, found, expected in compared:
        if found != expected:
            yield Fault(where, f"{name} is {found}, expected {expected}")
    return f"{RUN}, {plural(len(output.plans), 'plan')} and {SUCCESS} belong to one run"


def check_manifest(output: LoadedOutput) -> Checking:
    """Check that the manifest is the planned one, with the planned number of rows."""
    path, planned = output.manifest, output.plans[-1].manifest_sha256
    sha256, _ = digest_and_size(output.storage, path)
    if sha256 != planned:
        raise BrokenError(path, f"sha256 is {sha256}, expected {planned}")
    with reading(path), ManifestReader(output.storage, path) as manifest:
        rows, schema = manifest.num_rows, manifest.schema
    if rows != output.manifest_rows:
        yield Fault(path, f"has {plural(rows, 'row')}, expected {output.manifest_rows:,}")
    if list(schema)[: len(MANIFEST)] != list(MANIFEST):
        yield Fault(path, f"has the columns {', '.join(schema.names)}")
    yield from _version_faults(path, schema)
    skipped = yield from _check_skipped(output)
    retired = rows - output.rows
    line = f"{plural(rows, 'row')}, as planned" + (f", {output.rows:,} of which count" if retired else "")
    return f"{line}; {plural(skipped, 'file')} skipped, each listed" if skipped else line


def _check_skipped(output: LoadedOutput) -> Generator[Fault, None, int]:
    """Yield what is wrong with `skipped.parquet`, which not every run has; return the number of its rows."""
    expected = output.inputs.get("skipped_sha256")
    if expected is None:
        return 0
    sha256, _ = digest_and_size(output.storage, SKIPPED_NAME)
    if sha256 != expected:
        raise BrokenError(SKIPPED_NAME, f"sha256 is {sha256}, expected {expected}")
    with reading(SKIPPED_NAME):
        skipped = read_table(output.storage, SKIPPED_NAME)
    yield from _version_faults(SKIPPED_NAME, skipped.schema)
    counts, recorded = Counter(skipped["kind"].to_pylist()), output.inputs.get("skipped")
    if dict(counts) != recorded:
        yield Fault(SKIPPED_NAME, f"has by kind {dict(counts)!r:.100}, in {RUN} it is {recorded!r:.100}")
    return len(skipped)


def check_listing(output: LoadedOutput) -> Checking:
    """Check that the folders of users contain only what `_SUCCESS` lists, and that the report exists."""
    listed = {*(file.path for file in output.files), *output.coco}
    standing = [path for folder in FOLDERS for path in output.storage.list(folder)]
    for path in standing:
        if path not in listed:
            yield Fault(path, f"is not listed in {SUCCESS}")
    for path in ("report.html", "timings.json"):
        if not output.storage.exists(path) or not output.storage.size(path):
            yield Fault(path, "is missing or empty; `maskrcnn reduce` writes it again")
    return f"{plural(len(standing), 'file')} in the folders of the tables, all of them listed"


def check_parts(output: LoadedOutput, run_all: RunAll | None = None) -> Checking:
    """Check that each part that `_SUCCESS` lists exists, with its bytes and rows, in this version's schema."""
    for path, count in Counter(file.path for file in output.files).items():
        if count > 1:
            yield Fault(path, f"is listed {count} times in {SUCCESS}")
    yield from over(_part_faults, output, output.files, run_all)
    size = sum(file.bytes for file in output.files) // 10**6
    return f"{plural(len(output.files), 'file')}, {size:,} MB, each with its sha256, bytes, rows and schema version"


def _part_faults(output: LoadedOutput, file: File) -> Generator[Fault, None, None]:
    try:
        yield from _file_faults(output.storage, file)
    except BrokenError as error:
        yield error.fault


def _file_faults(storage: Storage, file: File) -> Iterator[Fault]:
    sha256, size = digest_and_size(storage, file.path)
    if (sha256, size) != (file.sha256, file.bytes):
        # The content is not read: unverified bytes prove nothing, and may crash their reader.
        expected = f"expected {file.bytes} bytes of {file.sha256}"
        raise BrokenError(file.path, f"has {size} bytes of sha256 {sha256}, {expected}")
    with reading(file.path), storage.open(file.path) as stored, pq.ParquetFile(stored) as parquet:
        rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    if rows != file.rows:
        yield Fault(file.path, f"has {plural(rows, 'row')}, expected {file.rows:,}")
    yield from _version_faults(file.path, schema)


def _version_faults(path: str, schema: pa.Schema) -> Iterator[Fault]:
    for key, expected in METADATA.items():
        version = (schema.metadata or {}).get(key)
        if version != expected:
            yield Fault(path, f"{key.decode()} in its footer is {version!r}, expected {expected!r}")


# Rows


def check_images(output: LoadedOutput) -> Checking:
    """Check that each row of the manifest is one row of `images`, in order, consistent with it and in itself."""
    storage, rows = output.storage, output.rows
    counts: Counter[str] = Counter()
    row = 0
    with CurrentInputs(output) as manifest:
        schema = images_schema(manifest.schema)
        # A retry has newer values of `bytes` and `etag`.
        names = [name for name in schema.names if name in manifest.schema.names]
        names = [name for name in names if name not in ("image_id", "bytes", "etag")]
        for part in checking("images", output.parts):
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
    return f"{plural(rows, 'row')}, each manifest row exactly once and in order: {by_status}"


def check_instances(output: LoadedOutput, run_all: RunAll | None = None) -> Checking:
    """Check that each instance occurs once, belongs to its image, and has the area and boxes of its mask."""
    counts = yield from over(_instances_of_part, output, range(len(output.parts)), run_all)
    shapes = "areas and boxes match the masks" if output.detectable.masks else "areas match the boxes"
    return f"{plural(sum(counts), 'row')}, ids ascending, in agreement with n_instances; {shapes}"


def _instances_of_part(output: LoadedOutput, number: int) -> Generator[Fault, None, int]:
    count, last_id = 0, _last_id_before(output, number)
    for chunk in chunks(output, number, ("image_id", "n_instances", "height", "width")):
        yield from instance_faults(chunk, last_id, output.detectable)
        if len(chunk.instances):
            count, last_id = count + len(chunk.instances), chunk.instances["id"][-1].as_py()
    return count


def _last_id_before(output: LoadedOutput, number: int) -> int:
    """Return the id of the last instance before a part; 0 if there is none."""
    for part in reversed(output.parts[:number]):
        if part.n_instances:
            with (
                reading(part.instances),
                output.storage.open(part.instances) as stored,
                pq.ParquetFile(stored) as file,
            ):
                last = file.read_row_group(file.num_row_groups - 1, ["id"], use_threads=False)["id"][-1]
            return int(last.as_py())
    return 0


def check_statistics(output: LoadedOutput, run_all: RunAll | None = None) -> Checking:
    """Check that `stats.json` and the counts of `_SUCCESS` agree with the tables."""
    recorded = read_json(output.storage, STATS)
    of_parts = yield from over(_statistics_of_part, output, range(len(output.parts)), run_all)
    stats = sum(of_parts, start=Stats.zero(output.categories))
    recomputed = json.loads(json.dumps(stats.to_json()))
    counts = {"images": output.rows, **recomputed["images"]["status"], "instances": stats.instances}
    yield from _differences(STATS, recorded, recomputed)
    yield from _differences(f"{SUCCESS}: counts", output.success["counts"], counts)
    return f"{STATS} and the counts of {SUCCESS} agree with the tables"


def _statistics_of_part(output: LoadedOutput, number: int) -> Generator[Fault, None, Stats]:
    stats = Stats.zero(output.categories)
    of_image = ("image_id", "n_instances", "height", "width", "status", "error")
    of_instance = ("id", "image_id", "category_id", "score", "area", "box")
    for chunk in chunks(output, number, of_image, of_instance):
        stats += Stats.of_tables(chunk.images, chunk.instances, output.categories)
    return stats
    yield


def _differences(where: str, recorded: Any, recomputed: Any) -> Iterator[Fault]:
    """Yield the differences of two JSON values."""
    if isinstance(recorded, dict) and isinstance(recomputed, dict):
        for key in sorted({*recorded, *recomputed}):
            yield from _differences(f"{where}.{key}", recorded.get(key), recomputed.get(key))
    elif isinstance(recorded, list) and isinstance(recomputed, list) and len(recorded) == len(recomputed):
        for index, (ours, theirs) in enumerate(zip(recorded, recomputed, strict=True)):
            yield from _differences(f"{where}[{index}]", ours, theirs)
    elif type(recorded) is not type(recomputed) or recorded != recomputed:
        yield Fault(where, f"is {recorded!r:.100}, by the tables it is {recomputed!r:.100}")


# Windows


def check_windows(output: LoadedOutput) -> Checking:
    """Check that each window occurs once, and that images, instances, pieces and polygons are consistent with them."""
    if output.items is None:
        return "no windows: images were not divided"
    counts: Counter[str] = Counter()
    position = n_pieces = n_polygons = 0
    folders = geo_folders(output.items.only(output.current))
    for part in checking("windows", output.parts):
        name = part.images.removeprefix(f"{IMAGES}/")
        windows = _whole(output, f"{WINDOWS}/{name}", WINDOWS_SCHEMA)
        pieces = _whole(output, f"{PIECES}/{name}", pieces_schema(masks=output.detectable.masks))
        images, instances = (_whole(output, path, None) for path in (part.images, part.instances))
        ranges = ranges_of(windows["image_id"].to_numpy())
        entries = images.select(["image_id", "status", "error", "capped"]).to_pylist()
        rows = output.rows_at(position, position + len(entries)).tolist()
        position += len(entries)
        headers = [output.items.sized(row) for row in rows]
        for row, image in zip(rows, entries, strict=True):
            low, high = ranges.get(image["image_id"], (0, 0))
            yield from window_faults(output.items, row, image, windows.slice(low, high - low))
        yield from piece_faults(windows, pieces, instances)
        systems = {
            image["image_id"]: header.crs_wkt or "" for image, header in zip(entries, headers, strict=True)
        }
        files = _polygons(output, name)
        for path, of_crs in files:
            yield from geo_file_faults(path, of_crs, systems, folders)
        tables = [GEO_SCHEMA.empty_table(), *(of_crs for _, of_crs in files)]
        polygons = pa.concat_tables(table.replace_schema_metadata() for table in tables)
        yield from geo_faults(headers, entries, instances, polygons)
        counts.update(windows["status"].to_pylist())
        n_pieces, n_polygons = n_pieces + len(pieces), n_polygons + len(polygons)
    if dict(counts) != output.success.get(WINDOWS):
        yield Fault(
            SUCCESS, f"counts of windows are {output.success.get(WINDOWS)}, by the tables {dict(counts)}"
        )
    by_status = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    made = f"{plural(n_pieces, 'piece')}, {plural(n_polygons, 'polygon')}"
    return f"{plural(counts.total(), 'window')}, each once: {by_status}; {made}"


def _whole(output: LoadedOutput, path: str, schema: pa.Schema | None) -> pa.Table:
    with reading(path):
        table = read_table(output.storage, path)
    if schema is not None and not table.schema.equals(schema):
        raise BrokenError(path, "does not have the expected columns")
    return table


def _polygons(output: LoadedOutput, name: str) -> list[tuple[str, pa.Table]]:
    """Return the files of `geo` of a part, one per coordinate reference system, and their rows."""
    paths = [f.path for f in output.files if f.path.startswith(f"{GEO}/") and f.path.endswith(f"/{name}")]
    return [(path, _whole(output, path, None)) for path in paths]


# COCO JSON


def check_coco(output: LoadedOutput, run_all: RunAll | None = None) -> Checking:
    """Check that COCO JSON is what this version writes from the tables, byte for byte."""
    plans = [
        coco_writer.plan_files(output.parts, mode, masks=output.detectable.masks)
        for mode in coco_writer.MODES
    ]
    by_targets = {tuple(target for file in plan for target in file.targets): plan for plan in plans}
    if output.coco not in by_targets:
        raise BrokenError(
            SUCCESS,
            f"lists an unknown set of COCO files: {', '.join(output.coco)}; `maskrcnn reduce` writes those of this "
            "version",
        )
    targets = [(file, target) for file in by_targets[output.coco] for target in file.targets]
    yield from over(_coco_faults, output, targets, run_all)
    return f"{plural(len(output.coco), 'file')}, byte for byte as written from the tables"


def _coco_faults(
    output: LoadedOutput, compared: tuple[coco_writer.CocoFile, str]
) -> Generator[Fault, None, None]:
    file, target = compared
    kinds = {file.results_target(kind): kind for kind in file.iou_types}
    rendered = (
        functools.partial(coco_writer.render_results, iou_type=kinds[target])
        if target in kinds
        else functools.partial(
            coco_writer.render_dataset,
            categories=output.categories,
            info=coco_info(output.run, output.plans[0]),
        )
    )
    render = functools.partial(rendered, storage=output.storage, parts=file.parts)
    log.info("comparing %s", target)
    with reading(target), output.storage.open(target) as stored:
        at = _first_difference(stored, render)
    if at is not None:
        yield Fault(target, f"differs from the tables, from byte {at:,} on")


def _first_difference(stored: BinaryIO, render: Callable[[BinaryIO], object]) -> int | None:
    """Return the first byte at which a file differs from what is rendered; None if it does not."""
    # A remote file makes a request for each `read`; large blocks are faster.
    raw = isinstance(stored, io.RawIOBase)
    comparison = _Comparison(io.BufferedReader(stored, BLOCK_BYTES) if raw else stored)
    try:
        render(cast(BinaryIO, comparison))
        comparison.end()
    except _DifferentError as error:
        return error.at
    return None


class _DifferentError(Exception):
    """The stored bytes differ from the rendered ones, from a byte on."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at: Final = at


class _Comparison:
    """A writable file that compares what is written with a stored file."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self._at = 0

    def write(self, data: bytes | memoryview) -> int:
        """Compare the next bytes. Raises _DifferentError."""
        expected = bytes(data)
        found = self._stored.read(len(expected))
        if found != expected:
            pairs = enumerate(zip(found, expected, strict=False))
            raise _DifferentError(self._at + next((i for i, (a, b) in pairs if a != b), len(found)))
        self._at += len(expected)
        return len(expected)

    def end(self) -> None:
        """Compare the end. Raises _DifferentError if the stored file is longer."""
        if self._stored.read(1):
            raise _DifferentError(self._at)
