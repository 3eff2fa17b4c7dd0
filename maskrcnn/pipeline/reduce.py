"""The reduce: from receipts to what users read.

Of every shard one receipt is taken, completeness is checked, the statistics are folded, and the tables are written
once, as parts of some 128 MB in image order. Only this module writes below `images/`, `instances/` and `coco/`. The
heavy steps are functions of plain values, mapped over by `run_all`: in a loop here, by Ray tasks in `jobs/`.

There is no lock, and two may reduce one run at once. `_SUCCESS` is removed first and written last. Between, all files
are written under names that follow from the receipts, equal rows as equal bytes, so that it does not matter who
writes last; then what the new list does not name is removed; then it is looked whether all that it names stands. A
part is never removed between a reduce's writing it and its `_SUCCESS`, but by a reduce of another list.
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
from ..schema import INSTANCES as INSTANCES_SCHEMA
from ..schema import SCHEMA_VERSION
from ..stats import Stats
from ..tiling.assemble import assemble, located
from ..tiling.index import WindowIndex
from ..types import Category
from .manifest import ManifestReader, check_manifest, read_rows, read_window_index
from .merge_retries import Group, GroupReader, Redone, group_shards
from .plan import Plan, check_run, plan_file, read_plans, read_run
from .receipts import SHARDS, ChosenReceipts, check_complete, choose, collect
from .success import (
    COCO,
    SUCCESS,
    RunAll,
    categories_of,
    coco_info,
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
    """What a reduce works from."""

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
    """Read what a finished sweep left.

    Raises:
        RunError: the sweep is not finished, or what it left does not fit together.
        UsageError: `maskrcnn gc` removed what the tables were made of.
    """
    plans = read_plans(storage)
    if not plans:
        raise RunError(f"{storage.url} was not planned to the end; run `maskrcnn segment` again")
    run = read_run(storage)
    check_run(storage, run, plans[0])
    check_manifest(storage, plans[0])
    choice = choose(storage, plans)
    if not any(choice) and finished(storage, plans[-1]) is not None and not storage.list(SHARDS):
        raise UsageError(f"{storage.url}: `maskrcnn gc` removed what the tables were made of; they stand")
    check_complete(plans, choice)
    lists = [read_rows(storage, plan)["row"].to_numpy() for plan in plans[1:]]
    touched = np.zeros(len(plans[0]), np.bool_)
    for rows in lists:
        touched[plans[0].shards_of(rows)] = True
    chosen_receipts = collect(storage, plans, choice, touched, categories_of(run))
    redone = [
        [Redone(chosen, rows[shard.start : shard.stop]) for chosen, shard in zip(kept, plan, strict=True)]
        for kept, plan, rows in zip(chosen_receipts.chosen[1:], plans[1:], lists, strict=True)
    ]
    items = read_window_index(storage)
    if items is None:
        groups, n_images = group_shards(chosen_receipts.chosen[0], redone), plans[0].rows
    else:
        groups = group_shards(chosen_receipts.chosen[0], redone, may_begin=items.begins_image)
        n_images = items.n_images
    return Gathered(tuple(plans), run, chosen_receipts, tuple(groups), n_images)


def check_group(url: str, group: Group) -> None:
    """Read a group's files, and raise RunError where one is not what its receipt says."""
    storage = Storage(url)
    for shard in (*group.shards, *(again.shard for generation in group.redone for again in generation)):
        read_checked(storage, shard.images)
        read_checked(storage, shard.instances)


@dataclass(frozen=True, slots=True)
class Written:
    """What a group became."""

    files: tuple[tuple[str, File], ...]
    """The table of each, and the file; exactly one of `images`, and one of `instances`."""
    stats: Stats
    """Of that which no receipt has statistics of."""
    windows: Mapping[str, int] = field(default_factory=dict)
    """Windows by their status."""


def write_part(url: str, generation: int, categories: Sequence[Category], group: Group) -> Written:
    """Write one part of each table from the shards of a group.

    Raises:
        RunError: a file is not what its receipt says, or a later generation was planned.
    """
    storage = Storage(url)
    name = f"part-{generation}-{group.number:05d}.parquet"
    reader = GroupReader(storage, group, categories)

    def wanted(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        # A task that comes too late must not put its rows beside those of a later generation.
        yield from tables
        refuse_outdated(storage, generation)

    items = read_window_index(storage)
    if items is not None:
        return _write_whole(storage, group, items, reader, name)
    schema = read_checked(storage, group.shards[0].images).schema
    images = write_tables(storage, f"{IMAGES}/{name}", schema, wanted(reader.images()))
    instances = write_tables(storage, f"{INSTANCES}/{name}", INSTANCES_SCHEMA, wanted(reader.instances()))
    return Written(((IMAGES, images), (INSTANCES, instances)), reader.stats)


def _write_whole(
    storage: Storage, group: Group, items: WindowIndex, reader: GroupReader, name: str
) -> Written:
    """Write one part of each table from the shards of a group of windows."""
    windows = pa.concat_tables(reader.images()).combine_chunks()
    found = pa.concat_tables(reader.instances()).combine_chunks()
    first, last = items.rows_of(np.array([group.start, group.start + len(windows) - 1])).tolist()
    with ManifestReader(storage) as manifest:
        rows = manifest.rows(first, last + 1)
    whole = assemble(items, first, rows, windows, found, reader.stats.categories)
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
    places = [items.sized(row) for row in range(first, last + 1)]
    for number, (crs_wkt, of_crs) in enumerate(
        located(rows["image_id"].to_pylist(), places, whole.instances)
    ):
        path = f"{GEO}/{name}" if number == 0 else f"{GEO}/{name.removesuffix('.parquet')}-{number}.parquet"
        files.append((GEO, write_geoparquet(storage, path, of_crs, crs_wkt)))
    status = pc.value_counts(whole.windows["status"]).to_pylist()
    return Written(tuple(files), whole.stats, {row["values"]: row["counts"] for row in status})


def _write_coco(
    url: str, categories: Sequence[Category], info: dict[str, Any], file: coco_writer.CocoFile
) -> list[str]:
    storage = Storage(url)
    coco_writer.write_dataset(storage, file.parts, categories, file.dataset_target, info)
    coco_writer.write_results(storage, file.parts, file.results_target)
    return [file.dataset_target, file.results_target]


def reduce_run(
    url: str,
    *,
    write_report: WriteReport | None,
    coco_mode: str = "auto",
    run_all: RunAll = run_here,
    wall_s: float | None = None,
    keep_standing: bool = False,
) -> dict[str, Any]:
    """Write the tables, COCO JSON, statistics and report of a finished sweep; return the content of `_SUCCESS`.

    Running it again gives the same tables.

    Args:
        url: the run's directory.
        write_report: writes the report of the finished tables, `visualization.run_report.write_report`; None: no
            report.
        coco_mode: `auto`, `always` or `never`; see `coco.plan_files`.
        run_all: how the heavy steps are spread.
        wall_s: seconds that the sweep of the latest generation took, for `timings.json`; None where it was not
            watched from start to end.
        keep_standing: leave tables of the latest generation as they are, if another command has finished them.

    Raises:
        RunError: the sweep is not finished, a file is not what its receipt says, or another command interferes.
    """
    storage = Storage(url)
    gathered = gather(storage)
    standing = finished(storage, gathered.latest) if keep_standing else None
    if standing is None and storage.exists(SUCCESS):
        # Tables that stand are given up only for others that can be made.
        run_all(functools.partial(check_group, url), gathered.groups)
        standing = finished(storage, gathered.latest) if keep_standing else None
    if standing is not None:
        return standing

    # From here on readers see an unfinished run, until _SUCCESS stands again.
    refuse_outdated(storage, gathered.latest.generation)
    storage.remove(SUCCESS)
    try:
        return _write_all(storage, gathered, coco_mode, write_report, run_all, wall_s)
    except (RunError, FileNotFoundError) as error:
        # What a late reduce wrote may have replaced what the later generation wrote, which is to be reduced again.
        if storage.exists(plan_file(gathered.latest.generation + 1)):
            storage.remove(SUCCESS)
        if isinstance(error, FileNotFoundError):
            raise RunError(f"{url}: another command removed what this one needs: {error}") from error
        raise


def _write_all(
    storage: Storage,
    gathered: Gathered,
    coco_mode: str,
    write_report: WriteReport | None,
    run_all: RunAll,
    wall_s: float | None,
) -> dict[str, Any]:
    """Write all that users read, and last `_SUCCESS`; return its content."""
    url = storage.url
    success, stats, timings = _write_tables(storage, gathered, run_all, wall_s)
    parts = parts_of(success)
    items = read_window_index(storage)
    if items is not None and items.largest > MAX_PIXELS and coco_mode != "never":
        success["coco_left_out"] = "an image has 2^32 pixels or more, for which COCO has no masks"
        log.warning("no COCO JSON: %s", success["coco_left_out"])
        coco_mode = "never"
    files = coco_writer.plan_files(parts, coco_mode)
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
    """Write the parts and what they add up to; return what `_SUCCESS` will say, statistics and timings."""
    plan, chosen_receipts, rows = gathered.latest, gathered.chosen_receipts, gathered.n_images
    write = functools.partial(write_part, storage.url, plan.generation, categories_of(gathered.run))
    written: list[Written] = run_all(write, gathered.groups)
    stats = sum((of_part.stats for of_part in written), start=chosen_receipts.stats).to_json()
    timings = chosen_receipts.timings | _pace(wall_s, plan.rows)
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
    """Remove what is not on the list, see that all that is on it stands, and write `_SUCCESS`.

    Raises:
        RunError: another command interferes; `_SUCCESS` does not stand, or is that command's.
    """
    sizes: dict[str, int | None] = dict.fromkeys(success["coco"])
    for entries in success["parts"].values():
        sizes |= {entry["path"]: entry["bytes"] for entry in entries}
    interference = (
        f"{storage.url}: another command is writing these tables; run `maskrcnn reduce` when it has ended"
    )

    def stands(path: str) -> bool:
        try:
            return storage.size(path) == sizes[path] or sizes[path] is None
        except FileNotFoundError:
            return False

    refuse_outdated(storage, success["generation"])
    with ThreadPoolExecutor(8) as pool:
        others = _written(storage) - sizes.keys()
        if others:
            storage.remove(SUCCESS)  # of another reduce, which may list them
            list(pool.map(storage.remove, sorted(others)))
        if not all(pool.map(stands, sizes)):
            raise RunError(interference)
    refuse_outdated(storage, success["generation"])
    storage.write(SUCCESS, _json_bytes(success))
    if not sizes.keys() <= _written(storage):
        storage.remove(SUCCESS)
        raise RunError(interference)


def _written(storage: Storage) -> set[str]:
    return {path for folder in (*TABLES, COCO) for path in storage.list(folder)}


def _pace(wall_s: float | None, images: int) -> dict[str, Any]:
    if wall_s is None:
        return {"wall_s": None, "images_per_s": None}
    return {"wall_s": round(wall_s, 3), "images_per_s": round(images / max(wall_s, 1e-9), 3)}


def _file_entry(file: File) -> dict[str, Any]:
    return {"path": file.path, "sha256": file.sha256, "bytes": file.bytes, "rows": file.rows}


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
