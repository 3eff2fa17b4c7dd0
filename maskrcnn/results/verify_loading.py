"""Load a finished output for `verify`, without trusting it.

Everything is validated before it is used: records are JSON with the required fields, tables have their schema and
UTF-8 texts. Violations raise `BrokenError`, which a check turns into a finding; a failing store raises `RunError`.
Tables are read by row groups, so that memory does not grow with the run.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import RunError, plural
from ..io.parquet import GEO, File, Part
from ..io.reporting import reported
from ..io.storage import Storage
from ..pipeline.manifest_file import ManifestReader, current_rows, read_grid, read_retired
from ..pipeline.plan import PLAN, RUN, Plan, no_run, plan_file, planned_rows
from ..pipeline.success import SUCCESS, categories_of, coco_info, detects_masks, parts_of
from ..schema import INSTANCES_PER_IMAGE, INSTANCES_PER_RASTER, images_schema, instances_schema
from ..stats import Stats
from ..tiling.index import Cutting, WindowIndex
from ..types import Category
from .invariants import Chunk, Detectable, Fault

log = logging.getLogger("maskrcnn")
T = TypeVar("T")

BLOCK_BYTES: Final = 8 * 2**20
CHUNK_INSTANCES: Final = 2**15
"""Instances per chunk, plus those of one more image: some tens of megabytes."""


class BrokenError(Exception):
    """A file is missing, or cannot be read as what it should be."""

    def __init__(self, path: str, reason: object) -> None:
        super().__init__(path, reason)
        self.fault: Final = Fault(path, " ".join(str(reason).split())[:300])


@dataclass(frozen=True, slots=True)
class LoadedOutput:
    """The records of a run that claims to be finished."""

    storage: Storage
    run: dict[str, Any]
    inputs: dict[str, Any]
    """The field of `run.json`; empty if it is missing."""
    plans: tuple[Plan, ...]
    """Of all generations, at least one."""
    success: dict[str, Any]
    categories: tuple[Category, ...]
    detectable: Detectable
    files: tuple[File, ...]
    """The parts of all tables that `_SUCCESS` lists."""
    parts: tuple[Part, ...]
    """The parts of `images` and `instances`."""
    coco: tuple[str, ...]
    items: WindowIndex | None
    """The windows of the inputs, those that no longer count among them; None if these were not divided."""
    current: NDArray[np.int64]
    """The rows of the manifest that count, (N,) int64, ascending."""

    @property
    def rows(self) -> int:
        """Number of inputs."""
        return len(self.current)

    @property
    def manifest_rows(self) -> int:
        """Number of rows of the manifest, with those that no longer count."""
        return planned_rows(self.plans) if self.items is None else self.items.n_images

    @property
    def manifest(self) -> str:
        """Path of the manifest."""
        return self.plans[-1].manifest

    def rows_at(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the rows of the manifest at positions of `images`; beyond the last one, rows that do not exist."""
        extra = self.manifest_rows + np.arange(max(stop - len(self.current), 0))
        return np.concatenate([self.current, extra])[start:stop] if len(extra) else self.current[start:stop]

    @property
    def ids_per_image(self) -> int:
        """Number of instance ids reserved for each image."""
        return INSTANCES_PER_IMAGE if self.items is None else INSTANCES_PER_RASTER


class CurrentInputs:
    """The rows of the manifest that count, by their position.

    Raises:
        FileNotFoundError, RunError: as `ManifestReader`.
    """

    def __init__(self, output: LoadedOutput) -> None:
        self._rows = output.current
        self._manifest = ManifestReader(output.storage, output.manifest)

    @property
    def schema(self) -> pa.Schema:
        """As of `ManifestReader`."""
        return self._manifest.schema

    def rows(self, start: int, stop: int) -> pa.Table:
        """Return the inputs from a position to before another."""
        return self._manifest.take(self._rows[start:stop])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manifest.close()


# Records


def why_unfinished(storage: Storage) -> str | None:
    """Return in one line why a run is not finished; None if it claims to be.

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
            return f"there is no {SUCCESS}: continue it with `maskrcnn {command}`"
        if storage.exists(RUN):
            return "planning did not finish: continue it with `maskrcnn segment`"
        raise no_run(storage.url, PLAN) from None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # a broken record is a finding
    if isinstance(reduced, int) and reduced < latest:
        return f"generation {latest} is not finished: `maskrcnn status` names the command that continues it"
    return None


def load_output(storage: Storage) -> LoadedOutput:
    """Read the records of a finished run.

    Raises:
        BrokenError: a record is missing, is not JSON, or lacks a field.
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
            raise ValueError("there are no categories")
        detectable = Detectable(names, float(settings["min_score"]), detects_masks(run))
        Stats.zero(categories), coco_info(run, plans[0]), dict(run["model"]), run["digest"]
    with _fields_of(SUCCESS):
        files = [
            _listed(table, File(**entry)) for table, entries in success["parts"].items() for entry in entries
        ]
        parts = tuple(parts_of(success))
        written = tuple(map(str, success["coco"]))
        dict(success["counts"]), success["generation"], success["schema_version"]
    items = _items(storage, plans, settings)
    current = _current(storage, plans, planned_rows(plans) if items is None else items.n_images)
    return LoadedOutput(
        storage,
        run,
        inputs,
        plans,
        success,
        categories,
        detectable,
        tuple(files),
        parts,
        written,
        items,
        current,
    )


def _items(storage: Storage, plans: Sequence[Plan], settings: dict[str, Any]) -> WindowIndex | None:
    plan = plans[-1]
    if plan.grid_file is None:
        return None
    try:
        grid = read_grid(storage, plan)
    except RunError as error:
        raise BrokenError(plan.grid_file, error) from error
    with _fields_of(RUN):
        cutting = Cutting(int(settings["window"]), int(settings["overlap"]))
        return WindowIndex(grid, cutting, planned_rows(plans))


def _current(storage: Storage, plans: Sequence[Plan], n_rows: int) -> NDArray[np.int64]:
    try:
        return current_rows(n_rows, read_retired(storage, plans))
    except RunError as error:
        named = [plan.retired_file for plan in plans if plan.retired_file is not None]
        raise BrokenError(named[-1], error) from error


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
    """Return an entry of `_SUCCESS` after validating its path and counts."""
    folder = r"(?:crs=[\w.]+/)?" if table == GEO else ""
    if not re.fullmatch(rf"{re.escape(table)}/{folder}[\w-][\w.-]*", file.path):
        raise ValueError(f"{file.path!r} is not a part of {table}")
    if not (isinstance(file.rows, int) and isinstance(file.bytes, int)):
        raise TypeError(f"{file.path}: rows and bytes must be integers")
    return file


def read_json(storage: Storage, path: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        BrokenError: it is missing or not valid.
    """
    try:
        content = json.loads(storage.read(path))
    except FileNotFoundError:
        raise BrokenError(path, "is missing") from None
    except (ValueError, RecursionError) as error:
        raise BrokenError(path, f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BrokenError(path, "is not a JSON object")
    return content


@contextlib.contextmanager
def _fields_of(path: str) -> Iterator[None]:
    """Turn the exceptions of a missing field, or one of another type, into BrokenError."""
    try:
        yield
    except KeyError as error:
        raise BrokenError(path, f"has no field {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BrokenError(path, f"has a field that is not valid: {error}") from error


# Files


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn the exceptions of a file that is missing, or not Parquet, into BrokenError."""
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


def checking(check: str, items: Sequence[T]) -> Iterator[T]:
    """Yield the items of a check, and log its progress from time to time."""
    total = plural(len(items), "part")
    return reported(items, lambda number, _: f"checking {check}: {number:,} of {total}")


# Tables


def row_groups(
    storage: Storage, path: str, schema: pa.Schema, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield a part, one row group at a time, after validating offsets and UTF-8.

    Raises:
        BrokenError: the file is missing, damaged, or of another schema.
    """
    with reading(path), storage.open(path) as stored, pq.ParquetFile(stored, pre_buffer=True) as file:
        if not file.schema_arrow.equals(schema):
            raise BrokenError(
                path, f"does not have the expected columns: {_other_fields(file.schema_arrow, schema)}"
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
    output: LoadedOutput, number: int, of_image: Sequence[str], of_instance: Sequence[str] | None = None
) -> Iterator[Chunk]:
    """Yield the images of a part in order, in chunks with the instances that belong to them by their ids.

    Rows of the part after the instances of its last image come in a chunk without images.

    Args:
        output: the run.
        number: of the part.
        of_image: the columns of `images`, including `n_instances`.
        of_instance: the columns of `instances`, including `id`; None: all.

    Raises:
        BrokenError: a part is missing, damaged, or of another schema.
    """
    storage = output.storage
    with reading(output.manifest), ManifestReader(storage, output.manifest) as manifest:
        schema = images_schema(manifest.schema)
    of_run = instances_schema(masks=output.detectable.masks)
    no_rows = of_run.empty_table().select(of_instance or of_run.names)
    row, part = sum(part.n_images for part in output.parts[:number]), output.parts[number]
    waiting = _Waiting(row_groups(storage, part.instances, of_run, of_instance), no_rows)
    for group in row_groups(storage, part.images, schema, of_image):
        for images in _cut(group):
            rows = output.rows_at(row, row + len(images))
            row += len(images)
            below = waiting.below((int(rows[-1]) + 1) * output.ids_per_image + 1)
            yield Chunk(rows, images, below, output.ids_per_image)
    if len(rest := waiting.below(None)):
        no_images = schema.empty_table().select(of_image)
        yield Chunk(output.current[:0], no_images, rest, output.ids_per_image)


def _cut(images: pa.Table) -> Iterator[pa.Table]:
    """Divide rows of `images` so that each chunk has a bounded number of instances."""
    counts = np.maximum(images["n_instances"].to_numpy(), 0)
    chunk = np.cumsum(counts, dtype=np.int64) // CHUNK_INSTANCES
    for start, stop in itertools.pairwise([0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(images)]):
        yield images.slice(start, stop - start)


class _Waiting:
    """Rows of `instances`, taken from the front by their ids."""

    def __init__(self, groups: Iterator[pa.Table], no_rows: pa.Table) -> None:
        self._groups = groups
        self._no_rows = no_rows
        self._next: pa.Table | None = next(groups, None)

    def below(self, id_limit: int | None) -> pa.Table:
        """Return the rows before the first id that is not below a limit; all rows if there is no limit."""
        taken = [self._no_rows]
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
