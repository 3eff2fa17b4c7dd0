"""The plan: how the manifest is divided into shards, written before the first of them runs, and never changed.

The plan is a rule and not a list, so it has the same few hundred bytes for ten images and for 10^9. `plan.json` is
the commit point of planning: without it nothing was planned, with it the inputs are never listed again.

A retry is a further generation, `plan-2.json` and so on. It divides a list of rows, in a file that it names by its
digest; see `manifest_file`. For each row, the latest generation that processed it counts.

An update is a further generation too. It adds rows to the manifest, in a file of its own, for the inputs that are new
or changed, and lists the rows that no longer count; see `plan_update`.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import lt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..config import digest_of
from ..errors import RunError, UsageError
from ..io.json_files import read_object
from ..io.storage import Storage
from ..schema import SCHEMA_VERSION

PLAN: Final = "plan.json"
RUN: Final = "run.json"
MANIFEST: Final = "manifest.parquet"
GRID_PREFIX: Final = "grid-"
_RESTORE: Final = "restore it, or start again in an empty directory"


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, commit and restart: consecutive rows of the manifest, or of a retry's list of rows."""

    name: str
    """`<generation>-<index>`, the same in every run of the plan."""
    start: int
    """First row, from 0, of the manifest; from the second generation on, of the generation's list."""
    stop: int
    """The row after the last one."""

    @property
    def generation(self) -> int:
        """Generation of its plan, from 1."""
        return int(self.name.partition("-")[0])

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Update:
    """What an update found when it listed the inputs again."""

    first_row: int
    """Number of images, or of windows, that were planned before: the first row that it adds."""
    added: int
    changed: int
    vanished: int
    """Numbers of inputs. A changed input is a further row, and its former row no longer counts."""
    retired_sha256: str
    """Digest of the file `retired_file`: all rows that do not count any more, of earlier updates too."""
    source_sha256: str | None
    skipped: dict[str, int]
    skipped_sha256: str | None
    """As in the field `inputs` of `run.json`."""

    def counts(self) -> dict[str, int]:
        """Return the numbers of inputs that were added, changed, and vanished."""
        return {name: getattr(self, name) for name in ("added", "changed", "vanished")}


@dataclass(frozen=True, slots=True)
class Plan:
    """The rule that divides rows 0 … rows-1, of the manifest, of a retry's list or of an update, into shards.

    Raises:
        ValueError: no rows, a shard size below one, or a retry without a list.
    """

    generation: int
    """1 processes all rows of the manifest; each further generation is a retry or an update."""
    rows: int
    shard_images: int
    manifest_sha256: str
    digest: str
    """Digest of the settings and the model; see `config.digest_of`."""
    created: str
    """UTC, ISO 8601."""
    rows_sha256: str | None = None
    """Digest of the file `rows_file` of a retry; None for others."""
    grid_sha256: str | None = None
    """Digest of the file `grid_file`; None if images are not cut into windows."""
    cuts: tuple[int, ...] | None = None
    """First row of each shard, and end of the last one; None: each shard has `shard_images` rows."""
    manifest: str = MANIFEST
    """The file with the inputs: that of the latest update, or `manifest.parquet`."""
    update: Update | None = None
    """None for the first generation, and for retries."""

    def __post_init__(self) -> None:
        if isinstance(self.update, dict):  # as JSON has it
            object.__setattr__(self, "update", Update(**self.update))
        if self.cuts is not None:
            object.__setattr__(self, "cuts", tuple(self.cuts))  # JSON has lists
            if (self.cuts[:1], self.cuts[-1:]) != ((0,), (self.rows,)) or not all(
                map(lt, self.cuts, self.cuts[1:])
            ):
                raise ValueError(f"the cuts do not ascend from 0 to {self.rows}")
        least = 1 if self.update is None else 0  # where inputs only vanished, there is nothing to process
        if self.rows < least or self.shard_images < 1:
            raise ValueError(f"cannot divide {self.rows} rows into shards of {self.shard_images}")
        lists = (self.rows_sha256 is not None) + (self.update is not None)
        if self.generation < 1 or lists != (self.generation > 1):
            raise ValueError(
                f"generation {self.generation} with the list {self.rows_sha256} and the update {self.update}"
            )

    @property
    def first_row(self) -> int | None:
        """The row of the manifest, or the window, at which its consecutive rows begin; None for a retry's list."""
        if self.update is not None:
            return self.update.first_row
        return 0 if self.generation == 1 else None

    @property
    def kind(self) -> str:
        """What the generation is called: `plan`, `retry` or `update`."""
        return "update" if self.update is not None else "plan" if self.generation == 1 else "retry"

    @property
    def command(self) -> str:
        """The command that continues it, after `maskrcnn`."""
        return {"plan": "segment", "retry": "retry", "update": "segment --update"}[self.kind]

    @property
    def rows_file(self) -> str | None:
        """The file that lists the rows of a retry; None for others, which process consecutive rows.

        It is named by its content, so that two retries that are planned at once do not overwrite each other's file.
        """
        return None if self.rows_sha256 is None else rows_file(self.generation, self.rows_sha256)

    @property
    def grid_file(self) -> str | None:
        """The file that lists the images' sizes and first windows; None if there are no windows."""
        return None if self.grid_sha256 is None else grid_file(self.grid_sha256)

    @property
    def retired_file(self) -> str | None:
        """The file that lists the rows that no longer count; None for all but updates."""
        return None if self.update is None else retired_file(self.generation, self.update.retired_sha256)

    @property
    def unit(self) -> str:
        """What a row is, in the singular: `image` or `window`."""
        return "image" if self.grid_sha256 is None else "window"

    def __len__(self) -> int:
        return math.ceil(self.rows / self.shard_images) if self.cuts is None else len(self.cuts) - 1

    def __getitem__(self, index: int) -> Shard:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name = f"{self.generation}-{index:08d}"
        if self.cuts is not None:
            return Shard(name, self.cuts[index], self.cuts[index + 1])
        start = index * self.shard_images
        return Shard(name, start, min(start + self.shard_images, self.rows))

    def __iter__(self) -> Iterator[Shard]:
        return (self[index] for index in range(len(self)))

    def shards_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of the shard of each row."""
        if self.cuts is None:
            return rows // self.shard_images
        return np.asarray(np.searchsorted(np.array(self.cuts), rows, side="right") - 1)

    def index_of(self, shard_name: str) -> int | None:
        """Return the index of a shard of this plan, or None for any other name."""
        generation, _, index = shard_name.partition("-")
        if generation != str(self.generation) or not index.isdecimal() or int(index) >= len(self):
            return None
        return int(index)

    def pending(self, receipts: Iterable[str]) -> Iterator[Shard]:
        """Return the shards without a receipt, in order.

        Args:
            receipts: names of receipts, `<shard>.<attempt>.json`; those of other plans are ignored.
        """
        done = np.zeros(len(self), dtype=np.bool_)
        for receipt in receipts:
            index = self.index_of(receipt.rpartition("/")[2].partition(".")[0])
            if index is not None:
                done[index] = True
        return (self[int(index)] for index in np.flatnonzero(~done))

    def to_json(self) -> str:
        """Return the content of the plan's file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def plan_file(generation: int) -> str:
    """Return the path of a generation's plan."""
    return PLAN if generation == 1 else f"plan-{generation}.json"


def rows_file(generation: int, sha256: str) -> str:
    """Return the path of a retry's list of rows with this digest."""
    return f"rows-{generation}-{sha256[:16]}.parquet"


def retired_file(generation: int, sha256: str) -> str:
    """Return the path of an update's list of rows that no longer count, with this digest."""
    return f"retired-{generation}-{sha256[:16]}.parquet"


def manifest_file(generation: int, sha256: str) -> str:
    """Return the path of the manifest of the first generation, or of an update, with this digest."""
    return MANIFEST if generation == 1 else f"manifest-{generation}-{sha256[:16]}.parquet"


def grid_file(sha256: str) -> str:
    """Return the path of the list of the images' windows with this digest."""
    return f"{GRID_PREFIX}{sha256[:16]}.parquet"


def write_run(storage: Storage, run: dict[str, Any], plan: Plan) -> Plan:
    """Write `run.json`, then commit by writing the plan; return the effective plan, as `create_plan` does.

    The manifest must exist already: a plan without its manifest could not be carried out.
    """
    storage.write(RUN, (json.dumps(run, indent=2, ensure_ascii=False) + "\n").encode())
    return create_plan(storage, plan)


def create_plan(storage: Storage, plan: Plan) -> Plan:
    """Write the plan of a generation unless one exists; return the effective plan, which may be another command's.

    Raises:
        RunError: the store failed, or the existing file is not a plan of this version.
    """
    path = plan_file(plan.generation)
    storage.create(path, plan.to_json().encode())
    effective = read_generation(storage, plan.generation)
    if effective is None:
        raise RunError(f"{storage.url}/{path} was removed as soon as it was written")
    return effective


def planned_rows(plans: Iterable[Plan]) -> int:
    """Return the number of images, or of windows, of all generations; those that no longer count are among them."""
    return sum(plan.rows for plan in plans if plan.first_row is not None)


def pending_of(plans: Iterable[Plan], receipts: Sequence[str]) -> Iterator[Shard]:
    """Return the shards of all generations without a receipt, in order; see `Plan.pending`."""
    return (shard for plan in plans for shard in plan.pending(receipts))


def read_plan(storage: Storage) -> Plan | None:
    """Return the latest plan of a run, or None if it does not exist.

    Raises:
        RunError: as in `read_plans`.
    """
    plans = read_plans(storage)
    return plans[-1] if plans else None


def read_plans(storage: Storage) -> list[Plan]:
    """Return the plans of all generations of a run, in order; an empty list if it does not exist.

    Raises:
        RunError: one is not a plan of this version.
    """
    plans: list[Plan] = []
    while (plan := read_generation(storage, len(plans) + 1)) is not None:
        plans.append(plan)
        if len(plans) >= _READ_AT_ONCE:  # a run that is updated every day has hundreds
            with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
                numbers = range(len(plans) + 1, len(plans) + 1 + _READ_AT_ONCE)
                for plan in pool.map(functools.partial(read_generation, storage), numbers):
                    if plan is None:
                        return plans
                    plans.append(plan)
    return plans


_READ_AT_ONCE: Final = 16


def read_generation(storage: Storage, generation: int) -> Plan | None:
    """Return the plan of a generation, or None if it does not exist.

    Raises:
        RunError: it is not a plan of this version.
    """
    path = plan_file(generation)
    try:
        content = read_object(storage, path, _RESTORE)
    except FileNotFoundError:
        return None
    try:
        plan = Plan(**content)
    except (ValueError, TypeError) as error:
        raise RunError(f"{storage.url}/{path} is not a plan of this version of maskrcnn-ray") from error
    if plan.generation != generation:
        raise RunError(f"{storage.url}/{path} is the plan of generation {plan.generation}")
    return plan


def read_run(storage: Storage) -> dict[str, Any]:
    """Return `run.json`.

    Raises:
        UsageError: the directory holds no run, or one of another schema version.
        RunError: the file is broken.
    """
    try:
        run = read_object(storage, RUN, _RESTORE)
    except FileNotFoundError as error:
        raise no_run(storage.url, RUN) from error
    check_version(storage, run)
    return run


def no_run(url: str, missing: str) -> UsageError:
    """Return the error for a directory that lacks the file `missing`, and so holds no run."""
    return UsageError(
        f"{url} holds no run (no {missing}): name the directory of a run, or start one with `maskrcnn segment`"
    )


def not_finished(url: str, latest: Plan) -> UsageError:
    """Return the error for a run whose latest generation is not finished."""
    return UsageError(f"{url} is not finished: continue it with `maskrcnn {latest.command}`")


def check_version(storage: Storage, run: dict[str, Any]) -> None:
    """Refuse a run whose files are of another schema version than this program reads and writes.

    Raises:
        UsageError: they are; the message names the version of maskrcnn-ray that wrote them.
    """
    found = run.get("schema_version")
    if found == SCHEMA_VERSION:
        return
    versions = run.get("versions")
    writer = versions.get("maskrcnn-ray") if isinstance(versions, dict) else None
    raise UsageError(
        f"{storage.url} was written by schema version {found}, this is version {SCHEMA_VERSION}: read it with "
        f"maskrcnn-ray {writer or 'of that version'}, or segment the images again into an empty directory"
    )


def check_run(storage: Storage, run: dict[str, Any], plan: Plan) -> None:
    """Compare `run.json` with a plan.

    Raises:
        RunError: it belongs to another plan.
    """
    manifest_sha256 = run.get("inputs", {}).get("manifest_sha256", plan.manifest_sha256)
    if plan.manifest != MANIFEST:  # that of an update, which `run.json` does not name
        manifest_sha256 = plan.manifest_sha256
    if (run.get("digest"), manifest_sha256) != (plan.digest, plan.manifest_sha256):
        raise RunError(
            f"{storage.url}/{RUN} is not that of {PLAN}: it was changed, or two commands planned this run at once; "
            f"{_RESTORE}"
        )


def run_digest(settings: dict[str, Any], model: dict[str, Any]) -> str:
    """Return the digest that a resume must repeat: of inference and sharding settings, weights and categories."""
    decisive = {name: model.get(name) for name in ("sha256", "categories")}
    return digest_of({"settings": settings, "model": decisive})
