"""The plan: how the manifest is cut into shards, frozen before the first of them runs.

The plan is a rule and not a list, so it has the same few hundred bytes at ten images and at 10^9. `plan.json` is
the commit point of planning: without it nothing was planned, with it the inputs are never listed again.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .config import digest_of
from .errors import RunError, UsageError
from .storage import Storage

PLAN: Final = "plan.json"
RUN: Final = "run.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, commit and restart: consecutive rows of the manifest."""

    name: str
    """`<generation>-<index>`, the same in every run of the plan."""
    start: int
    """First row of the manifest, from 0."""
    stop: int
    """Row after the last."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Plan:
    """The rule by which rows 0 … rows-1 of the manifest become shards.

    Raises:
        ValueError: no rows, or a shard size below one.
    """

    generation: int
    rows: int
    shard_images: int
    manifest_sha256: str
    digest: str
    """Of the settings and the model; see `config.digest_of`."""
    created: str
    """UTC, ISO 8601."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.shard_images < 1:
            raise ValueError(f"cannot cut {self.rows} rows into shards of {self.shard_images}")

    def __len__(self) -> int:
        return math.ceil(self.rows / self.shard_images)

    def __getitem__(self, index: int) -> Shard:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.shard_images
        name = f"{self.generation}-{index:08d}"
        return Shard(name, start, min(start + self.shard_images, self.rows))

    def __iter__(self) -> Iterator[Shard]:
        return (self[index] for index in range(len(self)))

    def index_of(self, shard_name: str) -> int | None:
        """Return the index of a shard of this plan, or None for any other name."""
        generation, _, index = shard_name.partition("-")
        if generation != str(self.generation) or not index.isdecimal() or int(index) >= len(self):
            return None
        return int(index)

    def pending(self, receipts: Iterable[str]) -> Iterator[Shard]:
        """Return the shards without a receipt, in order.

        Args:
            receipts: names of receipts, `<shard>.<attempt>.json`; names of other plans are passed over.
        """
        done = np.zeros(len(self), dtype=np.bool_)
        for receipt in receipts:
            index = self.index_of(receipt.rpartition("/")[2].partition(".")[0])
            if index is not None:
                done[index] = True
        return (self[int(index)] for index in np.flatnonzero(~done))

    def to_json(self) -> str:
        """Return the content of `plan.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def write_run(storage: Storage, run: dict[str, Any], plan: Plan) -> None:
    """Record what the run is, then commit to it by writing the plan.

    The manifest must stand already: a plan without its manifest would be a promise that nobody can keep.
    """
    storage.write(RUN, (json.dumps(run, indent=2, ensure_ascii=False) + "\n").encode())
    storage.write(PLAN, plan.to_json().encode())


def read_plan(storage: Storage) -> Plan | None:
    """Return the plan of a run, or None where none was made.

    Raises:
        RunError: `plan.json` is not a plan of this version.
    """
    try:
        text = storage.read(PLAN)
    except FileNotFoundError:
        return None
    try:
        return Plan(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise RunError(f"{storage.url}/{PLAN} is not a plan of this version of maskrcnn-ray") from error


def read_run(storage: Storage) -> dict[str, Any]:
    """Return `run.json`.

    Raises:
        UsageError: the directory holds no run.
    """
    try:
        run: dict[str, Any] = json.loads(storage.read(RUN))
    except FileNotFoundError as error:
        raise UsageError(f"{storage.url} holds no run (no {RUN})") from error
    except ValueError as error:
        raise RunError(f"{storage.url}/{RUN} is not valid JSON") from error
    return run


def run_digest(settings: dict[str, Any], model: dict[str, Any]) -> str:
    """Return the digest that a resume must repeat: of what to compute, how to cut, weights and categories."""
    decisive = {name: model.get(name) for name in ("sha256", "categories")}
    return digest_of({"settings": settings, "model": decisive})


def differences(planned: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Return one phrase for each setting in which two configurations differ.

    >>> differences({"min_score": 0.05, "limit": None}, {"min_score": 0.5, "limit": None})
    ['min-score: planned 0.05, now 0.5']
    """
    names = sorted(planned.keys() | asked.keys())
    return [
        f"{name.replace('_', '-')}: planned {planned.get(name)}, now {asked.get(name)}"
        for name in names
        if planned.get(name) != asked.get(name)
    ]
