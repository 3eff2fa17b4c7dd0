"""Planning and resuming without Ray: a plan that was written remains, even if another command plans at once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from maskrcnn_jobs.driver import one_process, planning, run
from maskrcnn_jobs.driver.driver_records import read_drivers
from maskrcnn_jobs.driver.planning import Request, prepare
from planned_run import process_shards, request_in

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import RunError, StoreSetupError, UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import check_manifest
from maskrcnn.pipeline.plan import check_run, read_plan, read_run
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.visualization.run_report import write_report


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return request_in(tmp_path)


# Two that plan at once


@pytest.mark.parametrize("meanwhile", ["read_inputs", "write_manifest"])
def test_two_commands_that_plan_at_once_keep_to_one_plan(
    meanwhile: str, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, plans = getattr(planning, meanwhile), []

    def other_comes_first(*arguments: Any, **options: Any) -> Any:
        if not plans:
            plans.append(None)
            plans[0] = prepare(dataclasses.replace(request_))
        return real(*arguments, **options)

    monkeypatch.setattr(planning, meanwhile, other_comes_first)
    monkeypatch.setattr(planning, "_now", iter(["2026-11-23T00:00:01", "2026-11-23T00:00:02"]).__next__)
    assert prepare(request_) == plans[0]
    storage = Storage(request_.output)
    assert storage.list() == ["manifest.parquet", "plan.json", "run.json", "skipped.parquet"]
    check_manifest(storage, plans[0])
    check_run(storage, read_run(storage), plans[0])


def test_one_that_planned_something_else_at_the_same_time_is_refused(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = planning.read_inputs, dataclasses.replace(request_, shard_images=3)

    def other_comes_first(*arguments: Any, **options: Any) -> Any:
        if read_plan(Storage(request_.output)) is None:
            monkeypatch.setattr(planning, "read_inputs", real)
            prepare(other)
        return real(*arguments, **options)

    monkeypatch.setattr(planning, "read_inputs", other_comes_first)
    with pytest.raises(UsageError, match="shard-images: planned 3, now 2"):
        prepare(request_)
    assert prepare(other) == read_plan(Storage(request_.output))


def test_files_that_two_plannings_wrote_over_each_other_are_not_run(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = (
        planning.write_manifest,
        dataclasses.replace(request_, inference=InferenceConfig("planted", limit=3)),
    )

    def other_comes_first(*arguments: Any) -> Any:
        monkeypatch.setattr(planning, "write_manifest", real)
        prepare(other)
        return real(*arguments)

    monkeypatch.setattr(planning, "write_manifest", other_comes_first)
    for request in (request_, other):
        with pytest.raises(RunError, match=r"run\.json is not that of plan\.json"):
            prepare(request)


# A plan that nobody began to carry out


def other(request: Request, **options: Any) -> Request:
    return dataclasses.replace(request, inference=InferenceConfig("planted", **options))


def test_a_plan_that_was_not_begun_is_made_anew_with_other_options(request_: Request) -> None:
    first = prepare(request_)
    for again in (other(request_, limit=3), other(request_, min_score=0.5), request_):
        plan, storage = prepare(again), Storage(request_.output)
        assert plan == read_plan(storage)
        check_run(storage, read_run(storage), plan)
        check_manifest(storage, plan)
    assert plan == dataclasses.replace(first, created=plan.created)
    with pytest.raises(UsageError, match="does not exist"):
        prepare(dataclasses.replace(request_, source="/none"))
    assert read_plan(storage) == plan
    process_shards(storage)
    assert reduce_run(storage.url, write_report=write_report)["counts"]["images"] == 7


@pytest.mark.parametrize(
    "left", ["shards/1-00000000/a/images.parquet", "receipts/1-00000000.a.json", "probes/0/driver"]
)
def test_a_plan_that_was_begun_stays(left: str, request_: Request) -> None:
    plan, storage = prepare(request_), Storage(request_.output)
    storage.write(left, b"")
    with pytest.raises(UsageError, match="holds another run"):
        prepare(other(request_, limit=3))
    assert read_plan(storage) == plan


def test_of_a_driver_and_a_planner_at_once_one_gives_way(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver marks and then looks for its plan, the planner removes the plan and then looks for marks."""
    plan, storage = prepare(request_), Storage(request_.output)
    real = Storage.remove

    def driver_begins(self: Storage, path: str) -> None:
        if path == "plan.json":
            monkeypatch.setattr(Storage, "remove", real)
            planning.mark_begun(
                storage, plan, "probes/0"
            )  # before the removal: it finds its plan, and goes on
        real(self, path)

    monkeypatch.setattr(Storage, "remove", driver_begins)
    with pytest.raises(UsageError, match="holds another run"):
        prepare(other(request_, limit=3))
    assert read_plan(storage) == plan

    storage.remove_tree("probes")
    prepare(other(request_, limit=3))
    with pytest.raises(RunError, match="was planned anew by another command"):
        planning.mark_begun(storage, plan, "probes/1")


def test_a_command_that_ends_before_its_first_shard_leaves_no_mark(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a wrong device, a dead cluster or Ctrl-C ended it."""

    def dies(*_: Any) -> None:
        assert [driver.state for driver in read_drivers(Storage(request_.output))] == ["working"]
        raise RunError("no cluster")

    with pytest.raises(RunError, match="no cluster"):
        run.run_shards(request_, prepare(request_), ResourceConfig("cpu", actors=1), dies)
    assert read_drivers(Storage(request_.output)) == []
    assert prepare(other(request_, limit=3)).rows == 3


def test_a_store_that_stops_working_stops_a_run_that_can_be_continued(request_: Request) -> None:
    with pytest.raises(RunError) as caught, planning.resumable():
        raise StoreSetupError("the credentials have expired")
    assert not isinstance(caught.value, StoreSetupError)


# The manifest


def test_another_manifest_is_neither_processed_nor_reduced(request_: Request) -> None:
    plan = prepare(request_)
    storage = Storage(request_.output)
    sound = storage.read("manifest.parquet")
    storage.write("manifest.parquet", sound + b" ")
    with pytest.raises(RunError, match="is not the one that was planned"):
        run.run_shards(request_, plan, ResourceConfig("cpu", actors=1), one_process.map_shards)
    storage.write("manifest.parquet", sound)
    process_shards(storage)
    before = reduce_run(storage.url, write_report=write_report)
    storage.write("manifest.parquet", sound[:-1])
    with pytest.raises(RunError, match="is not the one that was planned"):
        reduce_run(storage.url, write_report=write_report)
    assert json.loads(storage.read("_SUCCESS")) == before
    storage.write("manifest.parquet", sound)
    assert reduce_run(storage.url, write_report=write_report)["parts"] == before["parts"]
