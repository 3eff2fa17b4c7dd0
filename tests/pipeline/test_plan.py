"""The plan: every row in exactly one shard, and nothing to remember but the rule."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.errors import RunError, UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import (
    Plan,
    check_run,
    create_plan,
    pending_of,
    plan_file,
    read_plan,
    read_plans,
    read_run,
    run_digest,
    write_run,
)
from maskrcnn.schema import SCHEMA_VERSION


def a_plan(rows: int = 100, shard_images: int = 16, generation: int = 1) -> Plan:
    created, rows_sha256 = "2026-11-23T00:00:00+00:00", None if generation == 1 else "e" * 64
    return Plan(generation, rows, shard_images, "m" * 64, "d" * 64, created, rows_sha256)


@given(rows=st.integers(1, 5000), shard_images=st.integers(1, 600))
def test_shards_cover_every_row_once_and_in_order(rows: int, shard_images: int) -> None:
    shards = list(a_plan(rows, shard_images))
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(rows))
    assert all(1 <= len(shard) <= shard_images for shard in shards)
    assert len({shard.name for shard in shards}) == len(shards) == len(a_plan(rows, shard_images))


def test_a_plan_of_a_billion_rows_takes_no_memory_and_gives_any_shard_at_once() -> None:
    plan = a_plan(10**9, 1000)
    assert len(plan) == 10**6
    assert plan[999_999].stop == 10**9
    assert len(plan.to_json()) < 400
    with pytest.raises(IndexError):
        plan[10**6]


@given(done=st.sets(st.integers(0, 6)))
def test_what_is_pending_is_what_has_no_receipt(done: set[int]) -> None:
    plan = a_plan()
    receipts = [f"receipts/{plan[index].name}.{attempt}.json" for index in done for attempt in "ab"]
    assert [plan.index_of(shard.name) for shard in plan.pending(receipts)] == sorted(set(range(7)) - done)


@pytest.mark.parametrize("name", ["2-00000000", "1-00000007", "1-", "x", "", "1-abc"])
def test_receipts_of_another_plan_do_not_count(name: str) -> None:
    assert a_plan().index_of(name) is None


@given(
    plans=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=4),
    done=st.sets(st.tuples(st.integers(1, 4), st.integers(0, 60))),
)
def test_what_is_pending_of_all_generations_is_what_has_no_receipt(
    plans: list[tuple[int, int]], done: set[tuple[int, int]]
) -> None:
    every = [a_plan(rows, size, number) for number, (rows, size) in enumerate(plans, 1)]
    receipts = [f"receipts/{generation}-{index:08d}.x.json" for generation, index in done]
    left = [(shard.generation, shard.name) for shard in pending_of(every, receipts)]
    assert left == [
        (plan.generation, shard.name)
        for plan in every
        for index, shard in enumerate(plan)
        if (plan.generation, index) not in done
    ]


@pytest.mark.parametrize(("rows", "shard_images"), [(0, 16), (10, 0)])
def test_there_is_no_empty_plan(rows: int, shard_images: int) -> None:
    with pytest.raises(ValueError, match="cannot divide"):
        a_plan(rows, shard_images)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "run"))
    assert read_plan(storage) is None
    with pytest.raises(UsageError, match="holds no run"):
        read_run(storage)
    run = {"schema_version": SCHEMA_VERSION, "name": "Gebäude"}
    write_run(storage, run, a_plan())
    assert read_plan(storage) == a_plan()
    assert read_run(storage) == run


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"schema_version": 1, "versions": {"maskrcnn-ray": "0.1.0"}}, ["version 1", "maskrcnn-ray 0.1.0"]),
        ({"schema_version": SCHEMA_VERSION + 1}, [f"version {SCHEMA_VERSION + 1}"]),
        ({}, ["version None"]),
    ],
)
def test_a_run_of_another_schema_version_is_refused(
    tmp_path: Path, run: dict[str, Any], words: list[str]
) -> None:
    storage = Storage(str(tmp_path / "run"))
    write_run(storage, run, a_plan())
    with pytest.raises(UsageError) as refused:
        read_run(storage)
    for word in [*words, f"this is version {SCHEMA_VERSION}", "empty directory"]:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("generation", "rows_sha256"), [(0, None), (1, "e" * 64), (2, None)])
def test_a_retry_has_a_list_and_nothing_else_has(generation: int, rows_sha256: str | None) -> None:
    with pytest.raises(ValueError, match="generation"):
        Plan(generation, 10, 5, "m", "d", "now", rows_sha256)


def test_the_plans_of_all_generations_are_read_in_order(store_url: str) -> None:
    storage = Storage(store_url)
    every = [a_plan(100), a_plan(7, 4, generation=2), a_plan(2, 1, generation=3)]
    for number, plan in enumerate(every):
        assert read_plans(storage) == every[:number]
        assert create_plan(storage, plan) == plan
    assert read_plan(storage) == every[-1]
    assert [plan.rows_file for plan in every] == [
        None,
        "rows-2-eeeeeeeeeeeeeeee.parquet",
        "rows-3-eeeeeeeeeeeeeeee.parquet",
    ]
    storage.write(plan_file(4), a_plan(generation=2).to_json().encode())
    with pytest.raises(RunError, match=r"plan-4\.json is the plan of generation 2"):
        read_plans(storage)


@pytest.mark.parametrize("generations", [15, 16, 17, 32, 33])
def test_all_of_many_plans_are_read(tmp_path: Path, generations: int) -> None:
    storage = Storage(str(tmp_path))
    every = [a_plan(100), *(a_plan(7, 4, generation=number) for number in range(2, generations + 1))]
    for plan in every:
        create_plan(storage, plan)
    assert read_plans(storage) == every


def test_of_two_plans_the_first_stands(store_url: str) -> None:
    storage = Storage(store_url)
    assert write_run(storage, {"by": "first"}, a_plan(100)) == a_plan(100)
    assert write_run(storage, {"by": "second"}, a_plan(99)) == a_plan(100)
    assert read_plan(storage) == a_plan(100)


def test_a_plan_that_goes_as_soon_as_it_is_written_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(self: Storage, path: str, data: bytes) -> bool:
        self.write(path, data)
        self.remove(path)
        return True

    monkeypatch.setattr(Storage, "create", create)
    with pytest.raises(RunError, match=r"plan\.json was removed as soon as it was written"):
        create_plan(Storage(str(tmp_path)), a_plan())


def test_a_record_that_is_broken_is_named(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("run.json", b"{")
    with pytest.raises(RunError, match=r"run\.json is not valid JSON"):
        read_run(storage)
    storage.write("run.json", b"[" * 99_999)
    with pytest.raises(RunError, match=r"run\.json is not valid JSON: restore it"):
        read_run(storage)
    storage.write("run.json", b"[]")
    with pytest.raises(RunError, match=r"run\.json is not a JSON object"):
        read_run(storage)


def test_a_record_of_another_run_is_refused(tmp_path: Path) -> None:
    storage, plan = Storage(str(tmp_path)), a_plan()
    check_run(storage, {"digest": plan.digest, "inputs": {"manifest_sha256": plan.manifest_sha256}}, plan)
    check_run(storage, {"digest": plan.digest}, plan)
    for run in ({}, {"digest": "x"}, {"digest": plan.digest, "inputs": {"manifest_sha256": "x"}}):
        with pytest.raises(RunError, match=r"run\.json is not that of plan\.json"):
            check_run(storage, run, plan)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 3}', '{"rows": 0}', "not json", "[" * 99_999])
def test_a_broken_plan_is_refused(tmp_path: Path, text: str) -> None:
    storage = Storage(str(tmp_path))
    storage.write("plan.json", text.encode())
    with pytest.raises(RunError, match=r"plan\.json is not (a plan|valid JSON: restore it|a JSON object)"):
        read_plan(storage)


def test_the_digest_reports_settings_weights_and_categories_apart_but_not_their_order() -> None:
    settings, model = (
        {"min_score": 0.05, "limit": None},
        {"sha256": "a", "categories": [{"id": 1, "name": "car"}]},
    )
    assert run_digest(settings, model) == run_digest(
        dict(reversed(settings.items())), model | {"name": "moved"}
    )
    others = [
        run_digest({"min_score": 0.1}, model),
        run_digest(settings, model | {"sha256": "b"}),
        run_digest(settings, model | {"categories": [{"id": 1, "name": "van"}]}),
    ]
    assert len({run_digest(settings, model), *others}) == 4
