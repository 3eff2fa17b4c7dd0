"""Defects to plant into the real code: each is what somebody once wrote, and must be found."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import maskrcnn_jobs.driver.planning
import maskrcnn_jobs.driver.run
import pyarrow as pa

import maskrcnn.pipeline.merge_generations
import maskrcnn.pipeline.plan_retry
import maskrcnn.pipeline.reduce
import maskrcnn.pipeline.worker
from maskrcnn.errors import RunError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.list_inputs import read_inputs
from maskrcnn.pipeline.manifest_file import write_manifest
from maskrcnn.pipeline.plan import PLAN, RUN, read_plan, read_run
from maskrcnn.pipeline.receipts import Receipt, receipt_path, write_shard
from maskrcnn.pipeline.success import SUCCESS

Defect = Callable[[], AbstractContextManager[Any]]


def receipt_first() -> AbstractContextManager[Any]:
    """The receipt is stored before the files that it vouches for."""

    def write(storage: Storage, shard: Any, attempt: str, *tables: pa.Table, **facts: Any) -> Receipt:
        with tempfile.TemporaryDirectory() as folder:
            receipt = write_shard(Storage(folder), shard, attempt, *tables, **facts)
            storage.write(receipt_path(shard.name, attempt), receipt.to_json().encode())
            for file in (receipt.images, receipt.instances):
                storage.put_file(file.path, Path(folder, file.path))
        return receipt

    return _patched(maskrcnn.pipeline.worker, write_shard=write, commit=lambda *_: None)


class _Part:
    """A plan of which only some shards are there."""

    def __init__(self, plan: Any, indices: Sequence[int]) -> None:
        self.generation, self._shards = plan.generation, [plan[index] for index in indices]

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._shards)

    def __getitem__(self, index: int) -> Any:
        return self._shards[index]


def incomplete_reduce() -> AbstractContextManager[Any]:
    """The tables are made of the receipts that there are."""
    collect = maskrcnn.pipeline.reduce.collect

    def collected(
        storage: Storage, plans: Any, choice: Any, touched: Any, categories: Any, run_all: Any
    ) -> Any:
        indices = [sorted(of_plan) for of_plan in choice]
        if not indices[0]:
            raise RunError("there is nothing to reduce")
        plans = [_Part(plan, of_plan) for plan, of_plan in zip(plans, indices, strict=True)]
        choice = [{i: of[n] for i, n in enumerate(sorted(of))} for of in choice]
        return collect(
            storage, plans, choice, [t[i] for t, i in zip(touched, indices, strict=True)], categories
        )

    return _patched(maskrcnn.pipeline.reduce, check_complete=lambda *_: None, collect=collected)


def forgetful_retry() -> AbstractContextManager[Any]:
    """A retry leaves out the last of the inputs that failed."""
    failed_inputs = maskrcnn.pipeline.plan_retry.failed_inputs

    def found(*arguments: Any) -> Any:
        rows, uris = failed_inputs(*arguments)
        return rows[:-1], uris[:-1]

    return _patched(maskrcnn.pipeline.plan_retry, failed_inputs=found)


def retry_alone() -> AbstractContextManager[Any]:
    """The tables of a retry have the rows that it did, and forget the others of their shards."""

    def merge_results(start: int, images: Any, instances: Any, pieces: Any) -> Any:
        if not pieces:
            return images, instances
        return pa.concat_tables(p.images for p in pieces), pa.concat_tables(p.instances for p in pieces)

    return _patched(maskrcnn.pipeline.merge_generations, merge_results=merge_results)


def streamed_parts() -> AbstractContextManager[Any]:
    """Files are written under their final name."""

    @contextlib.contextmanager
    def building(self: Storage, path: str) -> Iterator[Path]:
        target = Path(self.url, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield target

    return _patched(Storage, building=building)


def success_first() -> AbstractContextManager[Any]:
    """`_SUCCESS` is written before what it lists."""
    write_tables = maskrcnn.pipeline.reduce._write_tables

    def written(storage: Storage, *arguments: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(storage.url, f"{folder}/out")
            success = write_tables(Storage(f"{folder}/out"), *arguments)[0]
        storage.write(SUCCESS, json.dumps(success).encode())
        return write_tables(storage, *arguments)

    return _patched(maskrcnn.pipeline.reduce, _write_tables=written)


def listed_again() -> AbstractContextManager[Any]:
    """A resume lists the inputs again."""
    prepare = maskrcnn_jobs.driver.planning.prepare

    def prepared(request: Any) -> Any:
        storage = Storage(request.output)
        plan = read_plan(storage)
        if plan is not None:
            table = read_inputs(request.source, images_root=None, limit=None).table
            plan = dataclasses.replace(plan, rows=len(table), manifest_sha256=write_manifest(storage, table))
            run = read_run(storage)
            run["inputs"] |= {"rows": plan.rows, "manifest_sha256": plan.manifest_sha256}
            storage.write(RUN, json.dumps(run).encode())
            storage.write(PLAN, plan.to_json().encode())
        return prepare(request)

    return _patched(maskrcnn_jobs.driver.run, prepare=prepared)


def ids_as_they_come() -> AbstractContextManager[Any]:
    """Instances are numbered in the order in which shards are done."""
    instances_table, numbers = maskrcnn.pipeline.worker.instances_table, itertools.count(1)

    def numbered(*arguments: Any, **options: Any) -> pa.Table:
        table = instances_table(*arguments, **options)
        ids = pa.array([next(numbers) for _ in range(len(table))], pa.int64())
        return table.set_column(0, table.schema.field(0), ids)

    return _patched(maskrcnn.pipeline.worker, instances_table=numbered)


def plan_before_manifest() -> AbstractContextManager[Any]:
    """The plan is committed before the manifest that it names."""
    late: list[pa.Table] = []

    def remembered(_storage: Storage, table: pa.Table) -> str:
        late.append(table)
        with tempfile.TemporaryDirectory() as folder:
            return write_manifest(Storage(folder), table)

    write_run = maskrcnn_jobs.driver.planning.write_run

    def written(storage: Storage, run: Any, plan: Any) -> Any:
        standing = write_run(storage, run, plan)
        write_manifest(storage, late.pop())
        return standing

    return _patched(maskrcnn_jobs.driver.planning, write_manifest=remembered, write_run=written)


def _patched(where: Any, **names: Any) -> AbstractContextManager[Any]:
    return mock.patch.multiple(where, **names)


DEFECTS: dict[str, Defect] = {
    defect.__name__: defect
    for defect in (
        receipt_first,
        incomplete_reduce,
        forgetful_retry,
        retry_alone,
        streamed_parts,
        success_first,
        listed_again,
        ids_as_they_come,
        plan_before_manifest,
    )
}


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plant a defect for the time of a block; None: none."""
    if name is None:
        yield
        return
    with DEFECTS[name]():
        yield
