"""Receipts: the commit records of shards, of which one counts for each shard of every generation of the plan.

An attempt at a shard stores its files, and last its receipt; an attempt without a receipt does not count. All attempts
at a shard have equal results, so any of its receipts would do; the first by name is chosen, so that the same receipts
give the same choice.
"""

import dataclasses
import functools
import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import RunError, plural
from ..io.parquet import IMAGES, INSTANCES, File, write_table
from ..io.storage import Storage
from ..stats import Stats
from ..types import Category
from .plan import Plan, Shard
from .success import RunAll, run_here

SHARDS: Final = "shards"
RECEIPTS: Final = "receipts"
RECEIPTS_AT_ONCE: Final = 1000
"""The number of receipts that one task of the reduce reads: about a second."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The commit record of one attempt at a shard: its files, counts and statistics."""

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
    """Where and how it ran: node, device, dtype, batch_size, threads, versions."""
    storage_retries: int = 0
    """Number of repeated requests to the store during the attempt."""

    def to_json(self) -> str:
        """Return the content of the receipt's file."""
        # Not `asdict` of everything: it would copy the statistics number by number.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        files = {name: dataclasses.asdict(fields[name]) for name in (IMAGES, INSTANCES)}
        return json.dumps(fields | files, ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes) -> "Receipt":
        """Return the receipt that `to_json` wrote."""
        fields = json.loads(text)
        return Receipt(**fields | {name: File(**fields[name]) for name in (IMAGES, INSTANCES)})


def complete_receipts(storage: Storage, *, check_files: bool = True) -> list[str]:
    """Return the sorted paths of the receipts whose files exist: the attempts that count.

    Files may be missing because somebody removed them, or because a disk was restored partially.

    Args:
        storage: the run's output.
        check_files: look for each file; otherwise only for the shard's folder, which takes a tenth of the time in an
            object store.
    """
    if not check_files:
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
        RunError: it is broken; without it, its shard runs again.
    """
    try:
        return Receipt.from_json(storage.read(path))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunError(
            f"{storage.url}/{path} is not a valid receipt; remove it, and run `maskrcnn segment` again"
        ) from error


def receipt_path(shard: str, attempt: str) -> str:
    """Return the path of the receipt of an attempt."""
    return f"{RECEIPTS}/{shard}.{attempt}.json"


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
    """Store the results of an attempt at a shard; it counts once `commit` has stored its receipt.

    Args:
        storage: the run's output.
        shard: the shard.
        attempt: name of the attempt, unique.
        images: rows of `images`.
        instances: rows of `instances`.
        stats: `Stats` of these rows, as JSON.
        execution: where and how they were computed.
        timings: seconds by stage, including `wall`; the time of writing is added here.
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
    """Store an attempt's receipt, after all its other files."""
    storage.write(receipt_path(receipt.shard, receipt.attempt), receipt.to_json().encode())


@dataclass(frozen=True, slots=True)
class ChosenReceipt:
    """The part of a receipt that the reduce keeps in memory: small, since there may be a million of them."""

    shard: str
    attempt: str
    images: File
    instances: File


@dataclass(frozen=True, slots=True)
class ChosenReceipts:
    """The chosen receipts of a finished map stage, with their sums."""

    chosen: tuple[tuple[ChosenReceipt, ...], ...]
    """For each generation, in the order of its plan."""
    stats: Stats
    """Statistics of the shards of consecutive rows, all of which count as they are."""
    timings: dict[str, Any]
    """Sums over all chosen receipts."""


Choice = list[dict[int, str]]
"""For each generation, the path of the chosen receipt by index of its shard; shards without a receipt are absent."""


def choose(storage: Storage, plans: Sequence[Plan]) -> Choice:
    """Pick a receipt for each shard that has one."""
    choice: Choice = [{} for _ in plans]
    for path in complete_receipts(storage):
        shard = path.rpartition("/")[2].partition(".")[0]
        for plan, of_plan in zip(plans, choice, strict=True):
            index = plan.index_of(shard)
            if index is not None:
                of_plan.setdefault(index, path)
    return choice


def check_complete(plans: Sequence[Plan], choice: Choice) -> None:
    """Raise RunError if a shard has no receipt."""
    for plan, of_plan in zip(plans, choice, strict=True):
        if missing := len(plan) - len(of_plan):
            which = f" of generation {plan.generation}" if plan.generation > 1 else ""
            raise RunError(
                f"the run is not finished, {missing:,} of {plural(len(plan), 'shard')}{which} left: continue it with "
                f"`maskrcnn {plan.command}`"
            )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive shards of a generation, whose receipts are read together."""

    shards: tuple[Shard, ...]
    paths: tuple[str, ...]
    """Of their receipts."""
    touched: tuple[bool, ...]
    """Whether the rows of a shard are counted by the reduce, and not by its receipt."""


@dataclass(frozen=True, slots=True)
class Folded:
    """What a reduce needs of some receipts."""

    chosen: tuple[ChosenReceipt, ...]
    stats: Stats
    timings: "TimingsFold"


def collect(
    storage: Storage,
    plans: Sequence[Plan],
    choice: Choice,
    touched: Sequence[NDArray[np.bool_]],
    categories: Sequence[Category],
    run_all: RunAll = run_here,
) -> ChosenReceipts:
    """Read the receipts of a complete choice, and fold their statistics and timings.

    Args:
        storage: the run's output.
        plans: of all generations.
        choice: as `choose` returns it.
        touched: for each generation (shards,) whether a later one has rows of it; all are those of a retry.
        categories: of the run.
        run_all: maps `fold_receipts` over a thousand receipts each.

    Raises:
        RunError: a receipt is broken, or belongs to another plan.
    """
    chunks = [
        Chunk(
            tuple(plan[index] for index in range(start, stop)),
            tuple(of_plan[index] for index in range(start, stop)),
            tuple(touched_here[start:stop].tolist()),
        )
        for plan, of_plan, touched_here in zip(plans, choice, touched, strict=True)
        for start, stop in pairwise([*range(0, len(plan), RECEIPTS_AT_ONCE), len(plan)])
    ]
    folded: list[Folded] = run_all(functools.partial(fold_receipts, storage.url, categories), chunks)
    chosen: list[list[ChosenReceipt]] = [[] for _ in plans]
    timings = TimingsFold()
    for chunk, of_chunk in zip(chunks, folded, strict=True):
        chosen[chunk.shards[0].generation - 1].extend(of_chunk.chosen)
        timings.merge(of_chunk.timings)
    stats = sum((of_chunk.stats for of_chunk in folded), start=Stats.zero(categories))
    return ChosenReceipts(tuple(map(tuple, chosen)), stats, timings.to_json())


def fold_receipts(url: str, categories: Sequence[Category], chunk: Chunk) -> Folded:
    """Read some receipts, and sum their statistics and timings.

    Raises:
        RunError: a receipt is broken, or belongs to another plan.
    """
    storage, stats, timings = Storage(url), Stats.zero(categories), TimingsFold()
    chosen = []
    with ThreadPoolExecutor(8) as pool:
        receipts = pool.map(functools.partial(read_receipt, storage), chunk.paths)
        for shard, path, touched, receipt in zip(
            chunk.shards, chunk.paths, chunk.touched, receipts, strict=True
        ):
            described = (receipt.shard, receipt.start, receipt.stop, receipt.images.rows)
            if described != (shard.name, shard.start, shard.stop, len(shard)):
                raise RunError(
                    f"{storage.url}/{path} belongs to another plan; remove it, and run `maskrcnn segment` again"
                )
            if not touched:
                stats = stats + Stats.from_json(receipt.stats)
            timings.add(receipt)
            chosen.append(ChosenReceipt(receipt.shard, receipt.attempt, receipt.images, receipt.instances))
    return Folded(tuple(chosen), stats, timings)


@dataclass(slots=True)
class TimingsFold:
    """Sums timings and executions of receipts; separate from the statistics, which are exact."""

    seconds: Counter[str] = field(default_factory=Counter)
    executions: Counter[str] = field(default_factory=Counter)
    actors: set[tuple[str, int]] = field(default_factory=set)
    images: int = 0
    shards: int = 0
    retries: int = 0

    def add(self, receipt: Receipt) -> None:
        """Add a receipt."""
        self.seconds.update(receipt.timings)
        execution = dict(receipt.execution)
        self.actors.add((execution.pop("node", ""), execution.pop("pid", 0)))
        self.executions[json.dumps(execution, sort_keys=True)] += 1
        self.images += receipt.stop - receipt.start
        self.shards += 1
        self.retries += receipt.storage_retries

    def merge(self, other: "TimingsFold") -> None:
        """Add the sums of other receipts."""
        self.seconds.update(other.seconds)
        self.executions.update(other.executions)
        self.actors |= other.actors
        self.images += other.images
        self.shards += other.shards
        self.retries += other.retries

    def to_json(self) -> dict[str, Any]:
        """Return the sums, as in `timings.json`."""
        stages = {name: round(seconds, 3) for name, seconds in sorted(self.seconds.items()) if name != "wall"}
        return {
            "images": self.images,
            "shards": self.shards,
            "actors": len(self.actors),
            "storage_retries": self.retries,
            "shard_wall_s": round(self.seconds["wall"], 3),
            "stages_s": stages,
            "execution": [
                json.loads(execution) | {"shards": shards}
                for execution, shards in sorted(self.executions.items())
            ],
        }
