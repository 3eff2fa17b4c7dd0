"""What a finished output says of itself and what it holds, read for `verify`: whatever is broken there is a value.

Nothing is trusted before it was looked at: records are JSON with the fields that they must have, tables have their
schema and texts that are UTF-8. What is not so is `BrokenError`, which a check turns into a finding; a store that
fails is `RunError`. Tables are read by row groups: memory does not grow with the run.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RunError, UsageError
from ..io.parquet import File, Part
from ..io.storage import Storage
from ..pipeline.manifest import FILE_NAME, ManifestReader, read_grid
from ..pipeline.plan import PLAN, RUN, Plan, plan_file
from ..pipeline.success import SUCCESS, categories_of, coco_info, parts_of
from ..schema import INSTANCES as INSTANCES_SCHEMA
from ..schema import INSTANCES_PER_IMAGE, INSTANCES_PER_RASTER, images_schema
from ..stats import Stats
from ..tiling.index import Cutting, WindowIndex
from ..types import Category
from .invariants import Chunk, Fault, Found

log = logging.getLogger("maskrcnn")
T = TypeVar("T")

TELL_EVERY_S: Final = 15.0
BLOCK_BYTES: Final = 8 * 2**20
CHUNK_INSTANCES: Final = 2**15
"""Instances that are looked at together, beside those of one image more: some tens of megabytes."""


class BrokenError(Exception):
    """A file is missing, or cannot be read as what it should be."""

    def __init__(self, path: str, reason: object) -> None:
        super().__init__(path, reason)
        self.fault: Final = Fault(path, " ".join(str(reason).split())[:300])


@dataclass(frozen=True, slots=True)
class LoadedOutput:
    """A run that says of itself that it is finished, and what its records say."""

    storage: Storage
    run: dict[str, Any]
    inputs: dict[str, Any]
    """The field of `run.json`; empty where there is none."""
    plans: tuple[Plan, ...]
    """Of all generations, at least one."""
    success: dict[str, Any]
    categories: tuple[Category, ...]
    found: Found
    files: tuple[File, ...]
    """The parts of all tables that `_SUCCESS` lists."""
    parts: tuple[Part, ...]
    """Those of `images` and `instances`."""
    coco: tuple[str, ...]
    items: WindowIndex | None
    """The windows of the inputs; None where these were not cut."""

    @property
    def rows(self) -> int:
        """How many inputs there are."""
        return self.plans[0].rows if self.items is None else self.items.n_images

    @property
    def ids_per_image(self) -> int:
        """How many ids of instances an image may use."""
        return INSTANCES_PER_IMAGE if self.items is None else INSTANCES_PER_RASTER


# Records


def why_unfinished(storage: Storage) -> str | None:
    """Return in one line why a run is not finished; None if it says that it is.

    Raises:
        UsageError: there is no run.
        RunError: the store failed.
    """
    latest = 0
    while storage.exists(plan_file(latest + 1)):
        latest += 1
    try:
        reduced = json.loads(storage.read(SUCCESS))["generation"]
    except FileNotFoundError:
        if latest:
            command = "retry" if latest > 1 else "segment"
            return f"there is no {SUCCESS}; `maskrcnn {command}` continues it"
        if storage.exists(RUN):
            return "it was not planned to the end; `maskrcnn segment` continues it"
        raise UsageError(f"{storage.url} holds no run (no {PLAN})") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # a broken record is a finding
    if isinstance(reduced, int) and reduced < latest:
        return f"generation {latest}, a retry, is not finished; `maskrcnn retry` continues it"
    return None


def load_output(storage: Storage) -> LoadedOutput:
    """Read what a finished run says of itself.

    Raises:
        BrokenError: a record is missing, is no JSON, or lacks something.
        RunError: the store failed.
    """
    run, plans, success = read_json(storage, RUN), _plans(storage), read_json(storage, SUCCESS)
    with _fields_of(RUN):
        inputs = dict(run.get("inputs", {}))
        settings = dict(run["settings"])
        categories = categories_of(run)
        kept = settings.get("categories") or [category.name for category in categories]
        names = {category.id: category.name for category in categories if category.name in kept}
        if not names:
            raise ValueError("there is no category")
        found = Found(names, float(settings["min_score"]))
        Stats.zero(categories), coco_info(run, plans[0]), dict(run["model"]), run["digest"]
    with _fields_of(SUCCESS):
        files = [
            _listed(table, File(**entry)) for table, entries in success["parts"].items() for entry in entries
        ]
        parts = tuple(parts_of(success))
        written = tuple(map(str, success["coco"]))
        dict(success["counts"]), success["generation"], success["schema_version"]
    items = _items(storage, plans[0], settings)
    return LoadedOutput(
        storage, run, inputs, plans, success, categories, found, tuple(files), parts, written, items
    )


def _items(storage: Storage, plan: Plan, settings: dict[str, Any]) -> WindowIndex | None:
    if plan.grid_file is None:
        return None
    try:
        grid = read_grid(storage, plan)
    except RunError as error:
        raise BrokenError(plan.grid_file, error) from error
    with _fields_of(RUN):
        return WindowIndex(grid, Cutting(int(settings["window"]), int(settings["overlap"])), plan.rows)


def _plans(storage: Storage) -> tuple[Plan, ...]:
    plans: list[Plan] = []
    while not plans or storage.exists(plan_file(len(plans) + 1)):
        path = plan_file(len(plans) + 1)
        content = read_json(storage, path)
        with _fields_of(path):
            plan = Plan(**content)
            if plan.generation != len(plans) + 1 or not isinstance(plan.rows, int):
                raise ValueError(f"generation {plan.generation!r} of {plan.rows!r} rows")
        plans.append(plan)
    return tuple(plans)


def _listed(table: str, file: File) -> File:
    """Return an entry of `_SUCCESS`, once it can be looked for."""
    if not re.fullmatch(rf"{re.escape(table)}/[\w-][\w.-]*", file.path):
        raise ValueError(f"{file.path!r} is no part of {table}")
    if not (isinstance(file.rows, int) and isinstance(file.bytes, int)):
        raise TypeError(f"{file.path}: rows and bytes are whole numbers")
    return file


def read_json(storage: Storage, path: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        BrokenError: there is none.
    """
    try:
        content = json.loads(storage.read(path))
    except FileNotFoundError:
        raise BrokenError(path, "is missing") from None
    except (ValueError, RecursionError) as error:
        raise BrokenError(path, f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BrokenError(path, "is no JSON object")
    return content


@contextlib.contextmanager
def _fields_of(path: str) -> Iterator[None]:
    """Turn what happens where JSON lacks a field, or has one of another type, into BrokenError."""
    try:
        yield
    except KeyError as error:
        raise BrokenError(path, f"has no field {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BrokenError(path, f"has a field that is not as it should be: {error}") from error


# Files


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what happens where a file is missing, or is no Parquet, into BrokenError."""
    try:
        yield
    except FileNotFoundError:
        raise BrokenError(path, "is missing") from None
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise BrokenError(path, f"cannot be read: {error}") from error


def digest_and_size(storage: Storage, path: str) -> tuple[str, int]:
    """Return a file's sha256, hex, and its bytes.

    Raises:
        BrokenError: it is missing, or cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with reading(path), storage.open(path) as stored:
        while block := stored.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def told(check: str, items: Sequence[T]) -> Iterator[T]:
    """Yield the items, and say now and then how far that is."""
    shown = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - shown >= TELL_EVERY_S:
            shown = time.monotonic()
            log.info("checking %s: %s of %s parts", check, f"{number:,}", f"{len(items):,}")
        yield item


# Tables


def row_groups(
    storage: Storage, path: str, schema: pa.Schema, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield a part, a row group at a time, whose texts are UTF-8 and whose offsets are sound.

    Raises:
        BrokenError: the file is missing, damaged, or of another schema.
    """
    with reading(path), storage.open(path) as stored, pq.ParquetFile(stored, pre_buffer=True) as file:
        if not file.schema_arrow.equals(schema):
            raise BrokenError(
                path, f"has other columns than it should: {_other_fields(file.schema_arrow, schema)}"
            )
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns, use_threads=False)
            table.validate(full=True)
            yield table


def _other_fields(found: pa.Schema, expected: pa.Schema) -> str:
    other = [str(field) for field in found if field not in list(expected)]
    missing = [f"no {field}" for field in expected if field not in list(found)]
    return ", ".join([*other, *missing]) or "in another order"


def chunks(
    check: str, evidence: LoadedOutput, of_image: Sequence[str], of_instance: Sequence[str] | None = None
) -> Iterator[Chunk]:
    """Yield all images in order, each chunk with the instances that are its own by their ids.

    What stands in a part behind the instances of its last image comes in a chunk without images.

    Args:
        check: the name under which it is told how far that is.
        of_image: the columns of `images`; `n_instances` among them.
        of_instance: the columns of `instances`, `id` among them; None: all.

    Raises:
        BrokenError: a part is missing, damaged, or of another schema.
    """
    storage = evidence.storage
    with reading(FILE_NAME), ManifestReader(storage) as manifest:
        schema = images_schema(manifest.schema)
    nothing = INSTANCES_SCHEMA.empty_table().select(of_instance or INSTANCES_SCHEMA.names)
    row = 0
    for part in told(check, evidence.parts):
        waiting = _Waiting(row_groups(storage, part.instances, INSTANCES_SCHEMA, of_instance), nothing)
        for group in row_groups(storage, part.images, schema, of_image):
            for images in _cut(group):
                row += len(images)
                below = waiting.below(row * evidence.ids_per_image + 1)
                yield Chunk(row - len(images), images, below, evidence.ids_per_image)
        if len(rest := waiting.below(None)):
            yield Chunk(row, schema.empty_table().select(of_image), rest, evidence.ids_per_image)


def _cut(images: pa.Table) -> Iterator[pa.Table]:
    """Cut rows of `images` where their instances become too many for one chunk."""
    counts = np.maximum(images["n_instances"].to_numpy(), 0)
    chunk = np.cumsum(counts, dtype=np.int64) // CHUNK_INSTANCES
    for start, stop in itertools.pairwise([0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(images)]):
        yield images.slice(start, stop - start)


class _Waiting:
    """Rows of `instances` that are taken from the front, by their ids."""

    def __init__(self, groups: Iterator[pa.Table], nothing: pa.Table) -> None:
        self._groups = groups
        self._nothing = nothing
        self._next: pa.Table | None = next(groups, None)

    def below(self, id_limit: int | None) -> pa.Table:
        """Return the rows up to the first whose id is not below a limit; all if there is none."""
        taken = [self._nothing]
        while self._next is not None:
            ids = self._next["id"].to_numpy()
            beyond = np.flatnonzero(ids >= id_limit) if id_limit is not None else ids[:0]
            stop = int(beyond[0]) if len(beyond) else len(ids)
            taken.append(self._next.slice(0, stop))
            if len(beyond):
                self._next = self._next.slice(stop)
                break
            self._next = next(self._groups, None)
        return pa.concat_tables(taken)
