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
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import coco
from .assemble import assemble, located
from .closeups import draw_closeups
from .decode import Limits, decode_image
from .errors import RunError, UsageError
from .frozen import ManifestReader, check_manifest, read_items, read_rows
from .gallery import draw_gallery, pick_gallery
from .geo import write_geoparquet
from .items import Items
from .ledger import Ledger, check_complete, choose, collect
from .maps import draw_maps
from .overlay import Group, GroupReader, Redone, group_shards
from .parts import (
    GEO,
    IMAGES,
    INSTANCES,
    PIECES,
    SHARDS,
    TABLES,
    WINDOWS,
    File,
    Part,
    read_checked,
    write_table,
    write_tables,
)
from .plan import Plan, check_run, plan_file, read_plans, read_run
from .report import render_report
from .rle import MAX_PIXELS
from .schema import INSTANCES as INSTANCES_SCHEMA
from .schema import SCHEMA_VERSION
from .stats import Stats
from .storage import Storage, read_input
from .types import Category, Pixels

log = logging.getLogger("maskrcnn")

SUCCESS: Final = "_SUCCESS"
COCO: Final = "coco"
GALLERY_IMAGES: Final = 12


class RunAll(Protocol):
    """Applies a function to each argument, anywhere, and gives the results in order."""

    def __call__(self, function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
        """Return `[function(argument) for argument in arguments]`."""
        ...


def run_here(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """Apply a function to each argument in this process."""
    return [function(argument) for argument in arguments]


def categories_of(run: dict[str, Any]) -> tuple[Category, ...]:
    """Return the categories that `run.json` records."""
    return tuple(Category(entry["id"], entry["name"]) for entry in run["model"]["categories"])


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a reduce works from."""

    plans: tuple[Plan, ...]
    run: dict[str, Any]
    ledger: Ledger
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
    ledger = collect(storage, plans, choice, touched, categories_of(run))
    redone = [
        [Redone(chosen, rows[shard.start : shard.stop]) for chosen, shard in zip(kept, plan, strict=True)]
        for kept, plan, rows in zip(ledger.chosen[1:], plans[1:], lists, strict=True)
    ]
    items = read_items(storage)
    if items is None:
        groups, n_images = group_shards(ledger.chosen[0], redone), plans[0].rows
    else:
        groups = group_shards(ledger.chosen[0], redone, may_begin=items.begins_image)
        n_images = items.n_images
    return Gathered(tuple(plans), run, ledger, tuple(groups), n_images)


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

    items = read_items(storage)
    if items is not None:
        return _write_whole(storage, group, items, reader, name)
    schema = read_checked(storage, group.shards[0].images).schema
    images = write_tables(storage, f"{IMAGES}/{name}", schema, wanted(reader.images()))
    instances = write_tables(storage, f"{INSTANCES}/{name}", INSTANCES_SCHEMA, wanted(reader.instances()))
    return Written(((IMAGES, images), (INSTANCES, instances)), reader.stats)


def _write_whole(storage: Storage, group: Group, items: Items, reader: GroupReader, name: str) -> Written:
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


def refuse_outdated(storage: Storage, generation: int) -> None:
    """Raise RunError where a generation was planned after this one, whose tables are the ones that count."""
    if storage.exists(plan_file(generation + 1)):
        raise RunError(
            f"{storage.url}: generation {generation + 1} was planned meanwhile by another command; "
            "`maskrcnn retry` continues that"
        )


def coco_info(run: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the field `info` of a run's COCO files; the date is that of the first plan, which nobody overwrites."""
    return {"description": f"maskrcnn-ray, model {run['model']['name']}", "date_created": plan.created}


def _write_coco(
    url: str, categories: Sequence[Category], info: dict[str, Any], file: coco.CocoFile
) -> list[str]:
    storage = Storage(url)
    coco.write_dataset(storage, file.parts, categories, file.dataset_target, info)
    coco.write_results(storage, file.parts, file.results_target)
    return [file.dataset_target, file.results_target]


def _write_report(
    url: str, sources: tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]
) -> str:
    storage = Storage(url)
    run, stats, timings, success = sources
    parts, items = parts_of(success), read_items(storage)
    if items is not None:
        page = _windowed_report(storage, sources, parts, items)
        storage.write("report.html", page.encode())
        return "report.html"
    limits = Limits(run["settings"]["max_pixels"], run["settings"]["max_bytes"], float("inf"))

    def read_pixels(uri: str) -> Pixels:
        return decode_image(read_input(uri, limits.max_bytes), limits).pixels

    gallery = draw_gallery(pick_gallery(storage, parts, GALLERY_IMAGES), read_pixels, categories_of(run))
    storage.write("report.html", render_report(run, stats, timings, gallery).encode())
    return "report.html"


def _windowed_report(
    storage: Storage,
    sources: tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]],
    parts: Sequence[Part],
    items: Items,
) -> str:
    run, stats, timings, success = sources
    gallery = draw_closeups(storage, run, items, parts, categories_of(run), GALLERY_IMAGES)
    images, geo = ([entry["path"] for entry in success["parts"][table]] for table in (IMAGES, GEO))
    maps = draw_maps(storage, items, images, geo, Stats.from_json(stats))
    pieces = sum(entry["rows"] for entry in success["parts"][PIECES])
    return render_report(run, stats, timings, gallery, maps, success["windows"] | {"pieces": pieces})


def reduce_run(
    url: str,
    *,
    coco_mode: str = "auto",
    run_all: RunAll = run_here,
    wall_s: float | None = None,
    keep_standing: bool = False,
) -> dict[str, Any]:
    """Write the tables, COCO JSON, statistics and report of a finished sweep; return the content of `_SUCCESS`.

    Running it again gives the same tables.

    Args:
        url: the run's directory.
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
        return _write_all(storage, gathered, coco_mode, run_all, wall_s)
    except (RunError, FileNotFoundError) as error:
        # What a late reduce wrote may have replaced what the later generation wrote, which is to be reduced again.
        if storage.exists(plan_file(gathered.latest.generation + 1)):
            storage.remove(SUCCESS)
        if isinstance(error, FileNotFoundError):
            raise RunError(f"{url}: another command removed what this one needs: {error}") from error
        raise


def _write_all(
    storage: Storage, gathered: Gathered, coco_mode: str, run_all: RunAll, wall_s: float | None
) -> dict[str, Any]:
    """Write all that users read, and last `_SUCCESS`; return its content."""
    url = storage.url
    success, stats, timings = _write_tables(storage, gathered, run_all, wall_s)
    parts = parts_of(success)
    items = read_items(storage)
    if items is not None and items.largest > MAX_PIXELS and coco_mode != "never":
        success["coco_left_out"] = "an image has 2^32 pixels or more, for which COCO has no masks"
        log.warning("no COCO JSON: %s", success["coco_left_out"])
        coco_mode = "never"
    files = coco.plan_files(parts, coco_mode)
    info, categories = coco_info(gathered.run, gathered.plans[0]), categories_of(gathered.run)
    written = run_all(functools.partial(_write_coco, url, categories, info), files)
    success["coco"] = [path for paths in written for path in paths]
    run_all(functools.partial(_write_report, url), [(gathered.run, stats, timings, success)])
    _commit(storage, success)
    return success


def _write_tables(
    storage: Storage, gathered: Gathered, run_all: RunAll, wall_s: float | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Write the parts and what they add up to; return what `_SUCCESS` will say, statistics and timings."""
    plan, ledger, rows = gathered.latest, gathered.ledger, gathered.n_images
    write = functools.partial(write_part, storage.url, plan.generation, categories_of(gathered.run))
    written: list[Written] = run_all(write, gathered.groups)
    stats = sum((of_part.stats for of_part in written), start=ledger.stats).to_json()
    timings = ledger.timings | _pace(wall_s, plan.rows)
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
        "receipts": [f"{chosen.shard}.{chosen.attempt}" for kept in ledger.chosen for chosen in kept],
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


def finished(storage: Storage, plan: Plan) -> dict[str, Any] | None:
    """Return the content of `_SUCCESS` where it is of this plan's generation, else None.

    Raises:
        RunError: it is broken.
    """
    success = read_success(storage)
    return success if success is not None and success["generation"] == plan.generation else None


def read_success(storage: Storage) -> dict[str, Any] | None:
    """Return the content of `_SUCCESS`, or None while the run is not finished.

    Raises:
        RunError: it is broken.
    """
    try:
        success: dict[str, Any] = json.loads(storage.read(SUCCESS))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(
            f"{storage.url}/{SUCCESS} is broken; remove it, and run `maskrcnn segment` again"
        ) from error
    return success


def parts_of(success: dict[str, Any]) -> list[Part]:
    """Return the parts that `_SUCCESS` lists."""
    both = zip(success["parts"][IMAGES], success["parts"][INSTANCES], strict=True)
    return [Part(i["path"], j["path"], i["rows"], j["rows"]) for i, j in both]


def _pace(wall_s: float | None, images: int) -> dict[str, Any]:
    if wall_s is None:
        return {"wall_s": None, "images_per_s": None}
    return {"wall_s": round(wall_s, 3), "images_per_s": round(images / max(wall_s, 1e-9), 3)}


def _file_entry(file: File) -> dict[str, Any]:
    return {"path": file.path, "sha256": file.sha256, "bytes": file.bytes, "rows": file.rows}


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
