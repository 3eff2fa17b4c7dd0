"""The receipts that count: one a shard, of every generation of the plan, and what they add up to.

Every attempt at a shard found the same, so any of them will do; the first by name is taken, so that the same
receipts give the same choice.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RunError
from .parts import File, Receipt, read_receipt, standing_receipts
from .plan import Plan
from .stats import Stats
from .storage import Storage
from .types import Category


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the reduce keeps of a receipt: little, since there may be a million of them."""

    shard: str
    attempt: str
    images: File
    instances: File


@dataclass(frozen=True, slots=True)
class Ledger:
    """All chosen receipts of a finished sweep, and what they add up to."""

    chosen: tuple[tuple[Chosen, ...], ...]
    """By generation, in the order of its plan."""
    stats: Stats
    """Of those shards of the first generation of which nothing was done again."""
    timings: dict[str, Any]
    """Of all of them."""


Choice = list[dict[int, str]]
"""For each generation the path of the receipt that counts, by the index of its shard; without those that have none."""


def choose(storage: Storage, plans: Sequence[Plan]) -> Choice:
    """Pick a receipt for each shard that has one."""
    choice: Choice = [{} for _ in plans]
    for path in standing_receipts(storage):
        shard = path.rpartition("/")[2].partition(".")[0]
        for plan, of_plan in zip(plans, choice, strict=True):
            index = plan.index_of(shard)
            if index is not None:
                of_plan.setdefault(index, path)
    return choice


def check_complete(plans: Sequence[Plan], choice: Choice) -> None:
    """Raise RunError where a shard has no receipt."""
    for plan, of_plan in zip(plans, choice, strict=True):
        if missing := len(plan) - len(of_plan):
            which, again = "", "segment` again"
            if plan.generation > 1:
                which, again = f" of generation {plan.generation}", "retry`"
            raise RunError(
                f"{missing} of {len(plan)} shards{which} are not finished; run `maskrcnn {again} to continue"
            )


def collect(
    storage: Storage,
    plans: Sequence[Plan],
    choice: Choice,
    touched: NDArray[np.bool_],
    categories: Sequence[Category],
) -> Ledger:
    """Read the receipts of a complete choice, and fold their statistics and timings.

    Args:
        touched: (shards of the first generation,) whether a later one did something of it again.

    Raises:
        RunError: a receipt is broken, or of another plan.
    """
    stats = Stats.zero(categories)
    timings = _TimingsFold()
    chosen: list[tuple[Chosen, ...]] = []
    for plan, of_plan in zip(plans, choice, strict=True):
        kept: list[Chosen] = []
        paths = [of_plan[index] for index in range(len(plan))]
        for shard, path, receipt in zip(plan, paths, _read_receipts(storage, paths), strict=True):
            described = (receipt.shard, receipt.start, receipt.stop, receipt.images.rows)
            if described != (shard.name, shard.start, shard.stop, len(shard)):
                raise RunError(
                    f"{storage.url}/{path} is of another plan; remove it, and run `maskrcnn segment` again"
                )
            if plan.generation == 1 and not touched[len(kept)]:
                stats = stats + Stats.from_json(receipt.stats)
            timings.add(receipt)
            kept.append(Chosen(receipt.shard, receipt.attempt, receipt.images, receipt.instances))
        chosen.append(tuple(kept))
    return Ledger(tuple(chosen), stats, timings.to_json())


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
        self._images = self._shards = self._retries = 0

    def add(self, receipt: Receipt) -> None:
        self._seconds.update(receipt.timings)
        execution = dict(receipt.execution)
        self._actors.add((execution.pop("node", ""), execution.pop("pid", 0)))
        self._executions[json.dumps(execution, sort_keys=True)] += 1
        self._images += receipt.stop - receipt.start
        self._shards += 1
        self._retries += receipt.storage_retries

    def to_json(self) -> dict[str, Any]:
        stages = {
            name: round(seconds, 3) for name, seconds in sorted(self._seconds.items()) if name != "wall"
        }
        return {
            "images": self._images,
            "shards": self._shards,
            "actors": len(self._actors),
            "storage_retries": self._retries,
            "shard_wall_s": round(self._seconds["wall"], 3),
            "stages_s": stages,
            "execution": [
                json.loads(execution) | {"shards": shards}
                for execution, shards in sorted(self._executions.items())
            ],
        }
