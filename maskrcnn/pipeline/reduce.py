"""The reduce: from receipts to the tables that users read.

One receipt of each shard is chosen, completeness is checked, the statistics are summed, and the tables are written
once, as parts of about 128 MB in image order. Only this module writes to `images/`, `instances/` and `coco/`. The
expensive steps are functions of plain values, mapped by `run_all`: in a loop here, by Ray tasks in `jobs/`.

There is no lock, and two processes may reduce one run at the same time. `_SUCCESS` is removed first and written last.
In between, all files are written under names that follow from the receipts, equal rows as equal bytes, so that it does
not matter who writes last; then files that are not on the new list are removed; then it is checked that all files on
the list exist. Between the writing of a part and of its `_SUCCESS`, only a reduce with another list removes the part.
"""

import datetime
import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RunError, UsageError
from ..formats import coco_writer
from ..formats.geoparquet import write_geoparquet
from ..io.parquet import (
    GEO,
    IMAGES,
    INSTANCES,
    PIECES,
    TABLES,
    WINDOWS,
    File,
    read_checked,
    write_table,
    write_tables,
)
from ..io.storage import Storage
from ..masks.rle import MAX_PIXELS
from ..schema import SCHEMA_VERSION, instances_schema
from ..stats import Stats
from ..tiling.assemble import assemble, geo_folders
from ..tiling.index import WindowIndex
from ..types import Category
from .manifest_file import ManifestReader, check_manifest, read_rows, read_window_index
from .merge_retries import Group, GroupReader, RetryShard, group_shards
from .plan import PLAN, Plan, check_run, no_run, plan_file, read_plans, read_run
from .receipts import SHARDS, ChosenReceipts, check_complete, choose, collect
from .success import (
    COCO,
    SUCCESS,
    RunAll,
    categories_of,
    coco_info,
    detects_masks,
    finished,
    parts_of,
    refuse_outdated,
    run_here,
)

log = logging.getLogger("maskrcnn")

WriteReport = Callable[[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]], str]
"""Writes `report.html` from the run's directory and the content of `run.json`, `stats.json`, `timings.json` and
`_SUCCESS`; returns its path."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The input of a reduce."""

    plans: tuple[Plan, ...]
    run: dict[str, Any]
    chosen_receipts: ChosenReceipts
    groups: tuple[Group, ...]
    n_images: int

    @property
    def latest(self) -> Plan:
        """The plan of the latest generation."""
        return self.plans[-1]


def gather(storage: Storage) -> Gathered:
    """Read the plans and receipts of a finished map stage.

    Raises:
        RunError: the map stage is not finished, or its files contradict each other.
        UsageError: there is no run, `maskrcnn gc` removed its shards, or the run is of another schema version.
    """
    plans = read_plans(storage)
    if not plans:
        raise no_run(storage.url, PLAN)
    run = read_run(storage)
    check_run(storage, run, plans[0])
    check_manifest(storage, plans[0])
    choice = choose(storage, plans)
    if not any(choice) and finished(storage, plans[-1]) is not None and not storage.list(SHARDS):
        raise UsageError(
            f"{storage.url}: `maskrcnn gc` removed the shards, so that the tables cannot be written again; they are "
            "unchanged"
        )
    check_complete(plans, choice)
    lists = [read_rows(storage, plan)["row"].to_numpy() for plan in plans[1:]]
    touched = np.zeros(len(plans[0]), np.bool_)
    for rows in lists:
        touched[plans[0].shards_of(rows)] = True
    chosen_receipts = collect(storage, plans, choice, touched, categories_of(run))
    redone = [
        [RetryShard(chosen, rows[shard.start : shard.stop]) for chosen, shard in zip(kept, plan, strict=True)]
        for kept, plan, rows in zip(chosen_receipts.chosen[1:], plans[1:], lists, strict=True)
    ]
    window_index = read_window_index(storage)
    if window_index is None:
        groups, n_images = group_shards(chosen_receipts.chosen[0], redone), plans[0].rows
    else:
        groups = group_shards(chosen_receipts.chosen[0], redone, may_begin=window_index.begins_image)
        n_images = window_index.n_images
    return Gathered(tuple(plans), run, chosen_receipts, tuple(groups), n_images)


def check_group(url: str, group: Group) -> None:
    """Read a group's files; raise RunError if one does not match its receipt."""
    storage = Storage(url)
    for shard in (*group.shards, *(again.shard for generation in group.redone for again in generation)):
        read_checked(storage, shard.images)
        read_checked(storage, shard.instances)


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a group."""

    files: tuple[tuple[str, File], ...]
    """(table, file); exactly one of `images`, and one of `instances`."""
    stats: Stats
    """Statistics of the rows that are in no receipt's statistics."""
    windows: Mapping[str, int] = field(default_factory=dict)
    """Number of windows by status."""


def write_part(
    url: str, generation: int, categories: Sequence[Category], group: Group, *, masks: bool = True
) -> Written:
    """Write one part of each table from the shards of a group.

    Args:
        url: the run's directory.
        generation: of the tables.
        categories: of the model.
        group: the shards.
        masks: whether the model detects masks.

    Raises:
        RunError: a file does not match its receipt, or a later generation was planned.
    """
    storage = Storage(url)
    name = f"part-{generation}-{group.number:05d}.parquet"
    reader = GroupReader(storage, group, categories)

    def still_current(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        # A delayed task must not write its rows next to those of a later generation.
        yield from tables
        refuse_outdated(storage, generation)

    window_index = read_window_index(storage)
    if window_index is not None:
        return _write_whole(storage, group, window_index, reader, name, masks=masks)
    schema = read_checked(storage, group.shards[0].images).schema
    images = write_tables(storage, f"{IMAGES}/{name}", schema, still_current(reader.images()))
    instances = write_tables(
        storage, f"{INSTANCES}/{name}", instances_schema(masks=masks), still_current(reader.instances())
    )
    return Written(((IMAGES, images), (INSTANCES, instances)), reader.stats)


def _write_whole(
    storage: Storage, group: Group, window_index: WindowIndex, reader: GroupReader, name: str, *, masks: bool
) -> Written:
    """Write one part of each table from the shards of a group of windows."""
    windows = pa.concat_tables(reader.images()).combine_chunks()
    detections = pa.concat_tables(reader.instances()).combine_chunks()
    first, last = window_index.rows_of(np.array([group.start, group.start + len(windows) - 1])).tolist()
    with ManifestReader(storage) as manifest:
        rows = manifest.rows(first, last + 1)
    whole = assemble(window_index, first, rows, windows, detections, reader.stats.categories, masks=masks)
    refuse_outdated(storage, int(name.split("-")[1]))
    files = [
        (table, write_table(storage, f"{table}/{name}", content))
        for table, content in (
            (IMAGES, whole.images),
            (INSTANCES, whole.instances),
            (WINDOWS, whole.windows),
            (PIECES, whole.pieces),
        )
    ]
    folders = geo_folders(window_index)
    by_folder: dict[str, list[str]] = {}
    for crs_wkt in whole.polygons:
        by_folder.setdefault(folders[crs_wkt], []).append(crs_wkt)
    for folder, systems in by_folder.items():
        of_crs = pa.concat_tables([whole.polygons[crs_wkt] for crs_wkt in systems])
        files.append((GEO, write_geoparquet(storage, f"{folder}/{name}", of_crs, systems[0])))
    status = pc.value_counts(whole.windows["status"]).to_pylist()
    return Written(tuple(files), whole.stats, {row["values"]: row["counts"] for row in status})


def _write_coco(
    url: str, categories: Sequence[Category], info: dict[str, Any], file: coco_writer.CocoFile
) -> list[str]:
    storage = Storage(url)
    coco_writer.write_dataset(storage, file.parts, categories, file.dataset_target, info)
    for iou_type in file.iou_types:
        coco_writer.write_results(storage, file.parts, file.results_target(iou_type), iou_type)
    return list(file.targets)


def reduce_run(
    url: str,
    *,
    write_report: WriteReport | None,
    coco_mode: str = "auto",
    run_all: RunAll = run_here,
    wall_s: float | None = None,
    keep_finished: bool = False,
) -> dict[str, Any]:
    """Write tables, COCO JSON, statistics and report after a finished map stage; return the content of `_SUCCESS`.

    Running it again gives the same tables.

    Args:
        url: the run's directory.
        write_report: writes the report of the finished tables, `visualization.run_report.write_report`; None: no
            report.
        coco_mode: `auto`, `always` or `never`; see `coco_writer.plan_files`.
        run_all: maps the expensive steps.
        wall_s: duration of the map stage of the latest generation in seconds, for `timings.json`; None if it was not
            measured from start to end.
        keep_finished: keep tables of the latest generation unchanged, if another command has finished them.

    Raises:
        RunError: the map stage is not finished, a file does not match its receipt, or another command interferes.
        UsageError: as `gather`.
    """
    storage = Storage(url)
    gathered = gather(storage)
    existing = finished(storage, gathered.latest) if keep_finished else None
    if existing is None and storage.exists(SUCCESS):
        # Existing tables are replaced only if the new ones can be written.
        run_all(functools.partial(check_group, url), gathered.groups)
        existing = finished(storage, gathered.latest) if keep_finished else None
    if existing is not None:
        return existing

    # From here on readers see an unfinished run, until _SUCCESS is written again.
    refuse_outdated(storage, gathered.latest.generation)
    storage.remove(SUCCESS)
    try:
        return _write_all(storage, gathered, coco_mode, write_report, run_all, wall_s)
    except (RunError, FileNotFoundError) as error:
        # This reduce may have replaced files of the later generation, which must be reduced again.
        if storage.exists(plan_file(gathered.latest.generation + 1)):
            storage.remove(SUCCESS)
        if isinstance(error, FileNotFoundError):
            raise RunError(
                f"{url}: another command removed a file that this one needs: {error}; run this one again"
            ) from error
        raise


def _write_all(
    storage: Storage,
    gathered: Gathered,
    coco_mode: str,
    write_report: WriteReport | None,
    run_all: RunAll,
    wall_s: float | None,
) -> dict[str, Any]:
    """Write everything that users read, and last `_SUCCESS`; return its content."""
    url = storage.url
    success, stats, timings = _write_tables(storage, gathered, run_all, wall_s)
    parts = parts_of(success)
    window_index = read_window_index(storage)
    if window_index is not None and window_index.largest > MAX_PIXELS and coco_mode != "never":
        success["coco_left_out"] = "an image has 2^32 pixels or more, which COCO masks do not support"
        log.warning("no COCO JSON: %s", success["coco_left_out"])
        coco_mode = "never"
    files = coco_writer.plan_files(parts, coco_mode, masks=detects_masks(gathered.run))
    info, categories = coco_info(gathered.run, gathered.plans[0]), categories_of(gathered.run)
    written = run_all(functools.partial(_write_coco, url, categories, info), files)
    success["coco"] = [path for paths in written for path in paths]
    if write_report is not None:
        run_all(functools.partial(write_report, url), [(gathered.run, stats, timings, success)])
    _commit(storage, success)
    return success


def _write_tables(
    storage: Storage, gathered: Gathered, run_all: RunAll, wall_s: float | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Write the parts, statistics and timings; return the content of `_SUCCESS`, statistics and timings."""
    plan, chosen_receipts, rows = gathered.latest, gathered.chosen_receipts, gathered.n_images
    categories, masks = categories_of(gathered.run), detects_masks(gathered.run)
    write = functools.partial(write_part, storage.url, plan.generation, categories, masks=masks)
    written: list[Written] = run_all(write, gathered.groups)
    stats = sum((of_part.stats for of_part in written), start=chosen_receipts.stats).to_json()
    timings = chosen_receipts.timings | _throughput(wall_s, plan.rows)
    storage.write("stats.json", json.dumps(stats, ensure_ascii=False, allow_nan=False).encode())
    storage.write("timings.json", _json_bytes(timings))
    counts = {"images": rows, **stats["images"]["status"], "instances": stats["instances"]}
    windows = sum((Counter(of_part.windows) for of_part in written), start=Counter[str]())
    files = [each for of_part in written for each in of_part.files]
    success = {
        "schema_version": SCHEMA_VERSION,
        "generation": plan.generation,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "counts": counts,
        **({"windows": dict(sorted(windows.items()))} if windows else {}),
        "parts": {
            table: [_file_entry(file) for of_table, file in files if of_table == table]
            for table in TABLES
            if windows or table in (IMAGES, INSTANCES)
        },
        "coco": [],
        "receipts": [
            f"{chosen.shard}.{chosen.attempt}" for kept in chosen_receipts.chosen for chosen in kept
        ],
    }
    return success, stats, timings


def _commit(storage: Storage, success: dict[str, Any]) -> None:
    """Remove files that are not on the list, check that all files on it exist, and write `_SUCCESS`.

    Raises:
        RunError: another command interferes; `_SUCCESS` does not exist, or is that command's.
    """
    sizes: dict[str, int | None] = dict.fromkeys(success["coco"])
    for entries in success["parts"].values():
        sizes |= {entry["path"]: entry["bytes"] for entry in entries}
    interference = (
        f"{storage.url}: another command is writing these tables; run `maskrcnn reduce` when it has ended"
    )

    def exists(path: str) -> bool:
        try:
            return storage.size(path) == sizes[path] or sizes[path] is None
        except FileNotFoundError:
            return False

    refuse_outdated(storage, success["generation"])
    with ThreadPoolExecutor(8) as pool:
        others = _written(storage) - sizes.keys()
        if others:
            storage.remove(SUCCESS)  # that of another reduce may list them
            list(pool.map(storage.remove, sorted(others)))
        if not all(pool.map(exists, sizes)):
            raise RunError(interference)
    refuse_outdated(storage, success["generation"])
    storage.write(SUCCESS, _json_bytes(success))
    if not sizes.keys() <= _written(storage):
        storage.remove(SUCCESS)
        raise RunError(interference)


def _written(storage: Storage) -> set[str]:
    return {path for folder in (*TABLES, COCO) for path in storage.list(folder)}


def _throughput(wall_s: float | None, images: int) -> dict[str, Any]:
    if wall_s is None:
        return {"wall_s": None, "images_per_s": None}
    return {"wall_s": round(wall_s, 3), "images_per_s": round(images / max(wall_s, 1e-9), 3)}


def _file_entry(file: File) -> dict[str, Any]:
    return {"path": file.path, "sha256": file.sha256, "bytes": file.bytes, "rows": file.rows}


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
