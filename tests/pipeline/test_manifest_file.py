"""The frozen inputs: what was written is what every shard of every generation reads."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import RunError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import (
    ROWS,
    ManifestReader,
    ShardReader,
    check_manifest,
    read_rows,
    write_manifest,
    write_rows,
)
from maskrcnn.pipeline.plan import Plan, Shard, create_plan
from maskrcnn.schema import MANIFEST, METADATA


def table_of(rows: int) -> pa.Table:
    names = [f"n{i:08}" for i in range(rows)]
    columns: dict[str, Any] = {
        "image_id": range(1, rows + 1),
        "name": names,
        "uri": [f"s3://bucket/{name}.jpg" for name in names],
        "bytes": [None] * rows,
        "etag": [None] * rows,
        "plot": [i % 7 for i in range(rows)],
    }
    schema = pa.schema([*MANIFEST, pa.field("plot", pa.int64())], metadata=METADATA)
    return pa.table(columns, schema=schema)


@pytest.mark.parametrize("rows", [1, 8192, 20_000])
def test_what_was_frozen_is_read_by_rows(store_url: str, rows: int) -> None:
    store, table = Storage(store_url), table_of(rows)
    digest = write_manifest(store, table)
    assert digest == hashlib.sha256(store.read("manifest.parquet")).hexdigest()
    reader = ManifestReader(store)
    assert reader.num_rows == rows
    assert reader.schema == table.schema
    assert reader.schema.metadata == METADATA
    edges = sorted({edge for edge in (0, 1, 8191, 8192, 8193, 16_384, rows - 1, rows) if 0 <= edge <= rows})
    for start in edges:
        for stop in edges:
            if start <= stop:
                assert reader.rows(start, stop) == table.slice(start, stop - start)
    reader.close()


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    write_manifest(store, table_of(10))
    with ManifestReader(store) as reader:
        for start, stop in ((-1, 2), (0, 11), (5, 4), (11, 11)):
            with pytest.raises(ValueError, match="within 10 rows"):
                reader.rows(start, stop)
    with pytest.raises(FileNotFoundError):
        ManifestReader(Storage(str(tmp_path / "elsewhere")))


def test_the_same_table_is_the_same_bytes(tmp_path: Path) -> None:
    table = table_of(10_000)
    pieces = pa.concat_tables([table.slice(0, 3), table.slice(3, 5000), table.slice(5003)])
    digests = {
        write_manifest(Storage(str(tmp_path / str(i))), each)
        for i, each in enumerate((table, table, pieces, table.replace_schema_metadata(None)))
    }
    assert len(digests) == 1
    assert write_manifest(Storage(str(tmp_path / "other")), table.slice(1)) not in digests


def test_a_shard_reads_its_rows_and_little_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(str(tmp_path))
    write_manifest(store, table_of(100_000))
    reader = ManifestReader(store)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, *args: Any, **options: Any) -> pa.Table:
        read.append(group)
        return original(self, group, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for start in range(8192, 16_384, 1024):
        reader.rows(start, start + 1024)
    assert read == [1], "consecutive shards of a row group read it once"
    reader.rows(16_000, 17_000)
    assert read == [1, 2]


def test_an_empty_manifest_keeps_its_schema(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    write_manifest(store, table_of(0))
    assert ManifestReader(store).rows(0, 0) == table_of(0)


def test_single_rows_are_read_in_order(tmp_path: Path) -> None:
    store, table = Storage(str(tmp_path)), table_of(20_000)
    write_manifest(store, table)
    with ManifestReader(store) as reader:
        for rows in (
            [],
            [0],
            [19_999],
            [8191, 8192],
            [3, 8190, 8191, 16_384, 19_999],
            list(range(0, 20_000, 7)),
        ):
            assert reader.take(np.array(rows, np.int64)) == table.take(pa.array(rows, pa.int64()))
        for rows in ([-1, 2], [20_000], [5, 4], [3, 3]):
            with pytest.raises(ValueError, match="rows"):
                reader.take(np.array(rows))


# The digest


def planned(store: Storage, table: pa.Table) -> Plan:
    return Plan(1, len(table), 7, write_manifest(store, table), "d", "now")


def test_a_manifest_is_known_by_its_digest(store_url: str) -> None:
    store = Storage(store_url)
    plan = planned(store, table_of(100))
    check_manifest(store, plan)
    write_manifest(store, table_of(100).slice(0, 99))
    with pytest.raises(RunError, match="is not the one that was planned; restore it, or start again"):
        check_manifest(store, plan)
    store.remove("manifest.parquet")
    with pytest.raises(RunError, match=r"manifest\.parquet is missing"):
        check_manifest(store, plan)


def test_a_manifest_of_many_chunks_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskrcnn.pipeline.manifest_file._CHUNK_BYTES", 100)
    store = Storage(str(tmp_path))
    plan = planned(store, table_of(5000))
    check_manifest(store, plan)
    data = (tmp_path / "manifest.parquet").read_bytes()
    (tmp_path / "manifest.parquet").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RunError, match="not the one"):
        check_manifest(store, plan)


# Shards


def retry_of(store: Storage, plan: Plan, rows: list[int], shard_images: int = 2) -> Plan:
    """Plan a retry of some rows; every third input is not there any more."""
    listed = pa.table(
        [
            rows,
            [None if row % 3 == 0 else row for row in rows],
            [None if row % 3 == 0 else f"etag {row}" for row in rows],
        ],
        schema=ROWS,
    )
    sha256 = write_rows(store, plan.generation + 1, listed)
    retry = Plan(
        plan.generation + 1, len(rows), shard_images, plan.manifest_sha256, plan.digest, "later", sha256
    )
    assert create_plan(store, retry) == retry
    return retry


@settings(max_examples=30)
@given(lists=st.lists(st.sets(st.integers(0, 29), min_size=1), max_size=3), shard_images=st.integers(1, 12))
def test_shards_of_every_generation_give_their_rows_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, lists: list[set[int]], shard_images: int
) -> None:
    store, table = Storage(str(tmp_path_factory.mktemp("run"))), table_of(30)
    plans = [planned(store, table)]
    for rows in lists:
        plans.append(retry_of(store, plans[-1], sorted(rows), shard_images))
    with ShardReader(store) as reader:
        for plan, rows in zip(plans, [set(range(30)), *lists], strict=True):
            read = [reader.rows(shard) for shard in plan]
            assert [row for numbers, _ in read for row in numbers.tolist()] == sorted(rows)
            assert [len(numbers) for numbers, _ in read] == [len(shard) for shard in plan]
            for numbers, part in read:
                expected = table.take(pa.array(numbers))
                assert part.schema == expected.schema
                assert part.drop_columns(["bytes", "etag"]) == expected.drop_columns(["bytes", "etag"])
                if plan.generation == 1:
                    assert part == expected
                else:
                    now = [None if row % 3 == 0 else row for row in numbers.tolist()]
                    assert part["bytes"].to_pylist() == now
                    assert part["etag"].to_pylist() == [n and f"etag {n}" for n in now]


def test_a_retrys_list_in_every_kind_of_store(store_url: str) -> None:
    store = Storage(store_url)
    retry = retry_of(store, planned(store, table_of(30)), [4, 9, 11])
    assert read_rows(store, retry)["row"].to_pylist() == [4, 9, 11]
    with ShardReader(store) as reader:
        numbers, rows = reader.rows(retry[1])
    assert (numbers.tolist(), rows["name"].to_pylist()) == ([11], ["n00000011"])


def test_two_retries_planned_at_once_leave_each_its_list(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    plan = planned(store, table_of(30))
    first = retry_of(store, plan, [1, 2])
    other = write_rows(store, 2, pa.table([[5], [None], [None]], schema=ROWS))
    second = create_plan(store, Plan(2, 1, 2, plan.manifest_sha256, plan.digest, "later", other))
    assert second == first
    assert read_rows(store, second)["row"].to_pylist() == [1, 2]


def test_shards_and_lists_that_are_not_there_are_refused(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    plan = planned(store, table_of(30))
    retry = retry_of(store, plan, [1, 2, 4])
    with pytest.raises(ValueError, match="no list"):
        read_rows(store, plan)
    with ShardReader(store) as reader:
        with pytest.raises(ValueError, match="within the 3 rows of the retry"):
            reader.rows(Shard("2-00000001", 2, 4))
        with pytest.raises(ValueError, match="within 30 rows"):
            reader.rows(Shard("1-00000004", 28, 35))
        with pytest.raises(RunError, match=r"plan-3\.json is missing"):
            reader.rows(Shard("3-00000000", 0, 1))
    path = str(retry.rows_file)
    store.write(path, store.read(path) + b" ")
    with pytest.raises(RunError, match="not the one that was planned"):
        read_rows(store, retry)
    store.remove(path)
    with pytest.raises(RunError, match="is missing"):
        ShardReader(store).rows(retry[0])
