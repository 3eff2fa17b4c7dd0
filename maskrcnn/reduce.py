"""The reduce: from receipts to what users read.

One receipt a shard is picked, completeness is checked, the statistics are folded, and the tables are written once,
as parts of some 128 MB in image order. Only this module writes below `images/`, `instances/` and `coco/`. The
heavy steps are functions of plain values, mapped over by `run_all`: in a loop here, by Ray tasks in `jobs/`.
"""

import datetime
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

from . import coco
from .decode import Limits, decode_image
from .errors import RunError, UsageError
from .gallery import draw_gallery, pick_gallery
from .parts import (
    IMAGES,
    INSTANCES,
    SHARDS,
    File,
    Part,
    Receipt,
    read_checked,
    read_receipt,
    standing_receipts,
    write_tables,
)
from .plan import Plan, read_plan, read_run
from .report import render_report
from .schema import INSTANCES as INSTANCES_SCHEMA
from .schema import SCHEMA_VERSION
from .stats import Stats
from .storage import Storage, read_input
from .types import Category, Pixels

SUCCESS: Final = "_SUCCESS"
PART_BYTES: Final = 128 * 2**20
GALLERY_IMAGES: Final = 12


class RunAll(Protocol):
    """Applies a function to each argument, anywhere, and gives the results in order."""

    def __call__(self, function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
        """Return `[function(argument) for argument in arguments]`."""
        ...


def run_here(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """Apply a function to each argument in this process."""
    return [function(argument) for argument in arguments]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the reduce keeps of a receipt: little, since there may be a million of them."""

    shard: str
    attempt: str
    images: File
    instances: File


@dataclass(frozen=True, slots=True)
class Sweep:
    """All chosen receipts of a finished sweep, in the order of the plan, and what they add up to."""

    chosen: tuple[Chosen, ...]
    stats: Stats
    timings: dict[str, Any]


def categories_of(run: dict[str, Any]) -> tuple[Category, ...]:
    """Return the categories that `run.json` records."""
    return tuple(Category(entry["id"], entry["name"]) for entry in run["model"]["categories"])


def collect(storage: Storage, plan: Plan, categories: Sequence[Category]) -> Sweep:
    """Read the receipts, pick one for each shard, and fold their statistics and timings.

    Every attempt at a shard found the same, so any of them will do; the first by name is taken, so that the same
    receipts give the same choice.

    Raises:
        RunError: a shard has no receipt.
    """
    names: dict[int, str] = {}
    for path in standing_receipts(storage):
        index = plan.index_of(path.rpartition("/")[2].partition(".")[0])
        if index is not None:
            names.setdefault(index, path)
    if len(names) < len(plan):
        missing = len(plan) - len(names)
        if read_success(storage) is not None and not storage.list(SHARDS):
            raise UsageError(f"{storage.url}: `maskrcnn gc` removed what the tables were made of; they stand")
        raise RunError(
            f"{missing} of {len(plan)} shards are not finished; run `maskrcnn segment` again to continue"
        )
    stats = Stats.zero(categories)
    timings = _TimingsFold()
    chosen = []
    for receipt in _read_receipts(storage, [names[index] for index in range(len(plan))]):
        stats = stats + Stats.from_json(receipt.stats)
        timings.add(receipt)
        chosen.append(Chosen(receipt.shard, receipt.attempt, receipt.images, receipt.instances))
    return Sweep(tuple(chosen), stats, timings.to_json())


def _read_receipts(storage: Storage, paths: Sequence[str]) -> Iterator[Receipt]:
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(paths), 64):
            yield from pool.map(functools.partial(read_receipt, storage), paths[start : start + 64])


class _TimingsFold:
    """Adds up what the receipts say of time and place; kept apart from the statistics, which are exact."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._executions: Counter[str] = Counter()
        self._actors: set[tuple[str, int]] = set()
        self._images = self._shards = 0

    def add(self, receipt: Receipt) -> None:
        self._seconds.update(receipt.timings)
        execution = dict(receipt.execution)
        self._actors.add((execution.pop("node", ""), execution.pop("pid", 0)))
        self._executions[json.dumps(execution, sort_keys=True)] += 1
        self._images += receipt.stop - receipt.start
        self._shards += 1

    def to_json(self) -> dict[str, Any]:
        stages = {
            name: round(seconds, 3) for name, seconds in sorted(self._seconds.items()) if name != "wall"
        }
        return {
            "images": self._images,
            "shards": self._shards,
            "actors": len(self._actors),
            "shard_wall_s": round(self._seconds["wall"], 3),
            "stages_s": stages,
            "execution": [
                json.loads(execution) | {"shards": shards}
                for execution, shards in sorted(self._executions.items())
            ],
        }


def group_shards(chosen: Sequence[Chosen], part_bytes: int = PART_BYTES) -> list[tuple[Chosen, ...]]:
    """Cut the shards, in order, into groups of at most `part_bytes` of instances or images, at least one shard each."""
    groups: list[list[Chosen]] = []
    instances_bytes = images_bytes = 0
    for shard in chosen:
        instances_bytes += shard.instances.bytes
        images_bytes += shard.images.bytes
        if not groups or max(instances_bytes, images_bytes) > part_bytes:
            groups.append([])
            instances_bytes, images_bytes = shard.instances.bytes, shard.images.bytes
        groups[-1].append(shard)
    return [tuple(group) for group in groups]


def write_part(
    url: str, generation: int, number_and_group: tuple[int, tuple[Chosen, ...]]
) -> tuple[File, File]:
    """Write one part of `images` and one of `instances` from the shards of a group."""
    storage = Storage(url)
    number, group = number_and_group
    name = f"part-{generation}-{number:05d}.parquet"

    def checked(files: Iterable[File]) -> Iterator[Any]:
        return (read_checked(storage, file) for file in files)

    images_schema = read_checked(storage, group[0].images).schema
    images = write_tables(
        storage, f"{IMAGES}/{name}", images_schema, checked(shard.images for shard in group)
    )
    instances = write_tables(
        storage, f"{INSTANCES}/{name}", INSTANCES_SCHEMA, checked(shard.instances for shard in group)
    )
    return images, instances


def coco_info(run: dict[str, Any]) -> dict[str, Any]:
    """Return the field `info` of a run's COCO files."""
    return {"description": f"maskrcnn-ray, model {run['model']['name']}", "date_created": run["created"]}


def check_group(url: str, number_and_group: tuple[int, tuple[Chosen, ...]]) -> None:
    """Read a group's files, and raise RunError where one is not what its receipt says."""
    storage = Storage(url)
    for shard in number_and_group[1]:
        read_checked(storage, shard.images)
        read_checked(storage, shard.instances)


def _write_coco(
    url: str, categories: Sequence[Category], info: dict[str, Any], file: coco.CocoFile
) -> list[str]:
    storage = Storage(url)
    coco.write_dataset(storage, file.parts, categories, file.dataset_target, info)
    coco.write_results(storage, file.parts, file.results_target)
    return [file.dataset_target, file.results_target]


def _write_report(
    url: str, sources: tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[Part]]
) -> str:
    storage = Storage(url)
    run, stats, timings, parts = sources
    limits = Limits(run["settings"]["max_pixels"], run["settings"]["max_bytes"], float("inf"))

    def read_pixels(uri: str) -> Pixels:
        return decode_image(read_input(uri, limits.max_bytes), limits).pixels

    gallery = draw_gallery(pick_gallery(storage, parts, GALLERY_IMAGES), read_pixels, categories_of(run))
    storage.write("report.html", render_report(run, stats, timings, gallery).encode())
    return "report.html"


def reduce_run(
    url: str, *, coco_mode: str = "auto", run_all: RunAll = run_here, wall_s: float | None = None
) -> dict[str, Any]:
    """Write the tables, COCO JSON, statistics and report of a finished sweep; return the content of `_SUCCESS`.

    Running it again gives the same tables.

    Args:
        url: the run's directory.
        coco_mode: `auto`, `always` or `never`; see `coco.plan_files`.
        run_all: how the heavy steps are spread.
        wall_s: seconds that the sweep took, for `timings.json`; None where it was not watched from start to end.

    Raises:
        RunError: the sweep is not finished, or a file is not what its receipt says.
    """
    storage = Storage(url)
    run = read_run(storage)
    plan = read_plan(storage)
    if plan is None:
        raise RunError(f"{url} was not planned to the end; run `maskrcnn segment` again")
    categories = categories_of(run)
    sweep = collect(storage, plan, categories)

    groups = list(enumerate(group_shards(sweep.chosen)))
    if storage.exists(SUCCESS):
        # Tables that stand are given up only for others that can be made.
        run_all(functools.partial(check_group, url), groups)

    # From here on readers see an unfinished run, until _SUCCESS stands again.
    storage.remove(SUCCESS)
    for folder in (IMAGES, INSTANCES, "coco"):
        storage.remove_tree(folder)

    files = run_all(functools.partial(write_part, url, plan.generation), groups)
    parts = [Part(images.path, instances.path, images.rows, instances.rows) for images, instances in files]

    stats = sweep.stats.to_json()
    timings = sweep.timings | _pace(wall_s, plan.rows)
    storage.write("stats.json", json.dumps(stats, ensure_ascii=False, allow_nan=False).encode())
    storage.write("timings.json", _json_bytes(timings))
    coco_files = coco.plan_files(parts, coco_mode)
    written = run_all(functools.partial(_write_coco, url, categories, coco_info(run)), coco_files)
    run_all(functools.partial(_write_report, url), [(run, stats, timings, parts)])

    status = stats["images"]["status"]
    success = {
        "schema_version": SCHEMA_VERSION,
        "generation": plan.generation,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "counts": {"images": plan.rows, **status, "instances": stats["instances"]},
        "parts": {
            IMAGES: [_file_entry(images) for images, _ in files],
            INSTANCES: [_file_entry(instances) for _, instances in files],
        },
        "coco": [path for paths in written for path in paths],
        "receipts": [f"{shard.shard}.{shard.attempt}" for shard in sweep.chosen],
    }
    storage.write(SUCCESS, _json_bytes(success))
    return success


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
