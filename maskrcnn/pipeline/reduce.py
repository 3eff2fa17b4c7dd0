"""The reduce: from receipts to the tables that users read.

One receipt of each shard is chosen, completeness is checked, the statistics are summed, and the tables are written
once, as parts of about 128 MB in image order. Only this module writes to `images/`, `instances/` and `coco/`. The
expensive steps are functions of plain values, mapped by `run_all`: in a loop here, by Ray tasks in `jobs/`.

There is no lock, and two processes may reduce one run at the same time. All files are written under names that follow
from the receipts, equal rows as equal bytes, so that it does not matter who writes last; then `_SUCCESS` is written;
then files that are not on its list are removed; then it is checked that all files on the list exist. Between the
writing of a part and of its `_SUCCESS`, only a reduce with another list removes the part.

A part of which a later generation changes no row keeps its file, and one that it changes gets another name. So the
tables of a generation are written beside those of the one before, which remain complete until `_SUCCESS` is replaced.
Where the tables of a finished generation are written again, `_SUCCESS` is removed first.
"""

import datetime
import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import RunError, UsageError
from ..formats import coco_writer
from ..io.parquet import (
    IMAGES,
    INSTANCES,
    TABLES,
    File,
)
from ..io.storage import Storage
from ..masks.rle import MAX_PIXELS
from ..schema import SCHEMA_VERSION
from ..tiling.index import WindowIndex
from ..types import Category
from .manifest_file import check_manifest, read_retired, read_rows, read_window_index
from .merge_generations import Generation, Group, RetryShard, group_shards
from .plan import (
    PLAN,
    Plan,
    check_run,
    no_run,
    plan_file,
    planned_rows,
    read_plans,
    read_run,
)
from .receipts import SHARDS, ChosenReceipt, ChosenReceipts, check_complete, choose, collect
from .success import (
    COCO,
    SUCCESS,
    RunAll,
    categories_of,
    coco_info,
    detects_masks,
    finished,
    parts_of,
    read_success,
    refuse_outdated,
    run_here,
)
from .write_parts import Files, Written, check_group, finish_part

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
    """Those that count."""

    @property
    def latest(self) -> Plan:
        """The plan of the latest generation."""
        return self.plans[-1]


def gather(storage: Storage, run_all: RunAll = run_here) -> Gathered:
    """Read the plans and receipts of a finished map stage.

    Args:
        storage: the run's directory.
        run_all: maps the reading of receipts.

    Raises:
        RunError: the map stage is not finished, or its files contradict each other.
        UsageError: there is no run, `maskrcnn gc` removed its shards, or the run is of another schema version.
    """
    plans = read_plans(storage)
    if not plans:
        raise no_run(storage.url, PLAN)
    run = read_run(storage)
    check_run(storage, run, plans[0])
    check_manifest(storage, plans[-1])
    choice = choose(storage, plans)
    if not any(choice) and finished(storage, plans[-1]) is not None and not storage.list(SHARDS):
        raise UsageError(
            f"{storage.url}: `maskrcnn gc` removed the shards, so that the tables cannot be written again; they are "
            "unchanged"
        )
    check_complete(plans, choice)
    lists = [
        read_rows(storage, plan)["row"].to_numpy() if plan.first_row is None else np.empty(0, np.int64)
        for plan in plans
    ]
    window_index = read_window_index(storage, plans)
    retired = read_retired(storage, plans)
    n_images = (planned_rows(plans) if window_index is None else window_index.n_images) - len(retired)
    gone = [_retired_by(plan, retired, window_index) for plan in plans]
    touched = _touched(plans, np.concatenate([*lists, *gone]))
    chosen_receipts = collect(storage, plans, choice, touched, categories_of(run), run_all)
    generations = [
        _contribution(plan, kept, rows, without)
        for plan, kept, rows, without in zip(plans, chosen_receipts.chosen, lists, gone, strict=True)
    ]
    if window_index is None:
        groups = group_shards(generations)
    else:
        groups = group_shards(generations, may_begin=window_index.begins_image)
    return Gathered(tuple(plans), run, chosen_receipts, tuple(groups), n_images)


def _retired_by(plan: Plan, retired: pa.Table, window_index: WindowIndex | None) -> NDArray[np.int64]:
    """Return the rows of the manifest, or the windows, that no longer count from a generation on, ascending."""
    rows = np.asarray(retired.filter(pc.equal(retired["generation"], plan.generation))["row"].to_numpy())
    if window_index is None or not len(rows):
        return rows
    return np.concatenate([np.arange(*window_index.range_of(row)) for row in rows.tolist()])


def _touched(plans: Sequence[Plan], rows: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Return, for each generation, whether some of these rows are in each of its shards; all are of a retry's."""
    touched = []
    for plan in plans:
        marks = np.full(len(plan), plan.first_row is None)
        if plan.first_row is not None:
            own = rows[(rows >= plan.first_row) & (rows < plan.first_row + plan.rows)]
            marks[plan.shards_of(own - plan.first_row)] = True
        touched.append(marks)
    return touched


def _contribution(
    plan: Plan, chosen: Sequence[ChosenReceipt], rows: NDArray[np.int64], retired: NDArray[np.int64]
) -> Generation:
    if plan.first_row is not None:
        return Generation(plan.generation, chosen, retired=retired)
    redone = [
        RetryShard(each, rows[shard.start : shard.stop]) for each, shard in zip(chosen, plan, strict=True)
    ]
    return Generation(plan.generation, redone=redone)


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
    gathered = gather(storage, run_all)
    before = read_success(storage)
    is_finished = before is not None and before["generation"] == gathered.latest.generation
    if before is not None and is_finished and keep_finished:
        remove_superseded(storage, before)
        return before
    refuse_outdated(storage, gathered.latest.generation)
    if is_finished:
        # Existing tables are replaced only if the new ones can be written.
        run_all(functools.partial(check_group, url), gathered.groups)
        # From here on readers see an unfinished run, until _SUCCESS is written again.
        storage.remove(SUCCESS)
        before = None
    try:
        return _write_all(storage, gathered, before, coco_mode, write_report, run_all, wall_s)
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
    before: dict[str, Any] | None,
    coco_mode: str,
    write_report: WriteReport | None,
    run_all: RunAll,
    wall_s: float | None,
) -> dict[str, Any]:
    """Write everything that users read, and last `_SUCCESS`; return its content."""
    url = storage.url
    success, stats, timings = _write_tables(storage, gathered, before, run_all, wall_s)
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
    # These have the same names in each generation: they are replaced as shortly before `_SUCCESS` as can be.
    storage.write("stats.json", json.dumps(stats, ensure_ascii=False, allow_nan=False).encode())
    storage.write("timings.json", _json_bytes(timings))
    if write_report is not None:
        run_all(functools.partial(write_report, url), [(gathered.run, stats, timings, success)])
    _commit(storage, success)
    return success


def _write_tables(
    storage: Storage,
    gathered: Gathered,
    before: dict[str, Any] | None,
    run_all: RunAll,
    wall_s: float | None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Write the parts that are not as before; return the content of `_SUCCESS`, statistics and timings."""
    plan, chosen_receipts, rows = gathered.latest, gathered.chosen_receipts, gathered.n_images
    categories, masks = categories_of(gathered.run), detects_masks(gathered.run)
    standing = _standing(storage, before)
    finish = functools.partial(finish_part, storage.url, plan.generation, categories, masks)
    parts = [(group, standing.get(group.part_name, ())) for group in gathered.groups]
    written: list[Written] = run_all(finish, parts)
    stats = sum((of_part.stats for of_part in written), start=chosen_receipts.stats).to_json()
    timings = chosen_receipts.timings | _throughput(wall_s, plan.rows)
    counts = {"images": rows, **stats["images"]["status"], "instances": stats["instances"]}
    windows = sum((Counter(of_part.windows) for of_part in written), start=Counter[str]())
    files = [each for of_part in written for each in of_part.files]
    success = {
        "schema_version": SCHEMA_VERSION,
        "generation": plan.generation,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "counts": counts,
        **({} if plan.update is None else {"update": plan.update.counts()}),
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


def _standing(storage: Storage, before: dict[str, Any] | None) -> dict[str, Files]:
    """Return the files of an earlier generation that exist, by the name of their part; all of a part, or none."""
    found: dict[str, list[tuple[str, File]]] = {}
    for table, entries in (before or {}).get("parts", {}).items():
        for entry in entries:
            found.setdefault(entry["path"].rpartition("/")[2], []).append((table, File(**entry)))

    def exists(files: list[tuple[str, File]]) -> bool:
        try:
            return all(storage.size(file.path) == file.bytes for _, file in files)
        except FileNotFoundError:
            return False

    with ThreadPoolExecutor(8) as pool:
        exist = list(pool.map(exists, found.values()))
    return {
        name: tuple(files) for (name, files), is_there in zip(found.items(), exist, strict=True) if is_there
    }


def _commit(storage: Storage, success: dict[str, Any]) -> None:
    """Check that all files on the list exist, write `_SUCCESS`, and remove files that are not on it.

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
        if not all(pool.map(exists, sizes)):
            raise RunError(interference)
        refuse_outdated(storage, success["generation"])
        storage.write(SUCCESS, _json_bytes(success))
    remove_superseded(storage, success)
    if not sizes.keys() <= _written(storage):
        storage.remove(SUCCESS)
        raise RunError(interference)


def remove_superseded(storage: Storage, success: dict[str, Any]) -> int:
    """Remove the files of tables that `_SUCCESS` does not list, those of earlier generations; return their number.

    A command that was killed after it had written `_SUCCESS` leaves them.

    Raises:
        RunError: a later generation was planned, whose files they may be.
    """
    listed = {entry["path"] for entries in success["parts"].values() for entry in entries}
    others = sorted(_written(storage) - listed - {*success["coco"]})
    refuse_outdated(storage, success["generation"])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(storage.remove, others))
    return len(others)


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
