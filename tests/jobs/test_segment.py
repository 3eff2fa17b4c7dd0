"""Planning, resuming and looking at a run, without Ray: what is planned once stays, whoever else plans."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from maskrcnn_jobs.commands import segment
from maskrcnn_jobs.commands.segment import Request, collect_garbage, prepare, receipts_of, status, sweep

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import RunError, UsageError
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest import check_manifest
from maskrcnn.pipeline.plan import check_run, read_plan, read_plans, read_run
from maskrcnn.pipeline.receipts import standing_receipts
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.synthetic.planted import PlantedSegmenter, write_planted
from maskrcnn.visualization.run_report import write_report


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    write_planted(tmp_path / "images", 7, seed=2)
    return Request(
        str(tmp_path / "images"), str(tmp_path / "run"), InferenceConfig("planted"), shard_images=2
    )


def run_shards(storage: Storage, at_most: int = 10**6) -> None:
    plan = read_plan(storage)
    assert plan is not None
    worker = ShardWorker(storage, PlantedSegmenter(), Limits(10**8, 10**8, 1333.0), {})
    for shard in list(plan.pending(standing_receipts(storage)))[:at_most]:
        worker.run_shard(shard)


# Two that plan at once


@pytest.mark.parametrize("meanwhile", ["read_inputs", "write_manifest"])
def test_two_commands_that_plan_at_once_keep_to_one_plan(
    meanwhile: str, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, plans = getattr(segment, meanwhile), []

    def other_comes_first(*arguments: Any, **options: Any) -> Any:
        if not plans:
            plans.append(None)
            plans[0] = prepare(dataclasses.replace(request_))
        return real(*arguments, **options)

    monkeypatch.setattr(segment, meanwhile, other_comes_first)
    monkeypatch.setattr(segment, "_now", iter(["2026-11-23T00:00:01", "2026-11-23T00:00:02"]).__next__)
    assert prepare(request_) == plans[0]
    storage = Storage(request_.output)
    assert storage.list() == ["manifest.parquet", "plan.json", "run.json"]
    check_manifest(storage, plans[0])
    check_run(storage, read_run(storage), plans[0])


def test_one_that_planned_something_else_at_the_same_time_is_refused(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = segment.read_inputs, dataclasses.replace(request_, shard_images=3)

    def other_comes_first(*arguments: Any, **options: Any) -> Any:
        if read_plan(Storage(request_.output)) is None:
            monkeypatch.setattr(segment, "read_inputs", real)
            prepare(other)
        return real(*arguments, **options)

    monkeypatch.setattr(segment, "read_inputs", other_comes_first)
    with pytest.raises(UsageError, match="shard-images: planned 3, now 2"):
        prepare(request_)
    assert prepare(other) == read_plan(Storage(request_.output))


def test_files_that_two_plannings_wrote_over_each_other_are_not_run(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = (
        segment.write_manifest,
        dataclasses.replace(request_, compute=InferenceConfig("planted", limit=3)),
    )

    def other_comes_first(*arguments: Any) -> Any:
        monkeypatch.setattr(segment, "write_manifest", real)
        prepare(other)
        return real(*arguments)

    monkeypatch.setattr(segment, "write_manifest", other_comes_first)
    for request in (request_, other):
        with pytest.raises(RunError, match=r"run\.json is not that of plan\.json"):
            prepare(request)


# The manifest


def test_a_manifest_that_is_another_is_neither_swept_nor_reduced(request_: Request) -> None:
    plan = prepare(request_)
    storage = Storage(request_.output)
    sound = storage.read("manifest.parquet")
    storage.write("manifest.parquet", sound + b" ")
    with pytest.raises(RunError, match="is not the one that was planned"):
        sweep(request_, plan, ResourceConfig("cpu", actors=1))
    storage.write("manifest.parquet", sound)
    run_shards(storage)
    before = reduce_run(storage.url, write_report=write_report)
    storage.write("manifest.parquet", sound[:-1])
    with pytest.raises(RunError, match="is not the one that was planned"):
        reduce_run(storage.url, write_report=write_report)
    assert json.loads(storage.read("_SUCCESS")) == before
    storage.write("manifest.parquet", sound)
    assert reduce_run(storage.url, write_report=write_report)["parts"] == before["parts"]


# How far it is


def test_status_follows_a_run_to_its_end(request_: Request) -> None:
    storage = Storage(request_.output)
    with pytest.raises(UsageError, match="holds no plan"):
        status(request_.output)
    prepare(request_)
    seen = []
    for at_most in (0, 1, 100):
        run_shards(storage, at_most)
        facts = status(request_.output)
        seen.append((facts["state"], facts["images_done"], facts["shards_done"], facts["counts"]))
    assert seen == [("unfinished", 0, 0, None), ("unfinished", 2, 1, None), ("swept", 7, 4, None)]
    reduce_run(storage.url, write_report=write_report)
    facts = status(request_.output)
    assert (facts["state"], facts["generation"], facts["retry"]) == ("finished", 1, None)
    assert facts["counts"]["images"] == 7


def test_where_nothing_is_left_to_run_every_file_is_looked_for(request_: Request) -> None:
    prepare(request_)
    storage = Storage(request_.output)
    run_shards(storage)
    plans, every = read_plans(storage), standing_receipts(storage)
    storage.remove(next(path for path in storage.list("shards") if "1-00000002" in path))
    assert receipts_of(storage, plans) == [path for path in every if "1-00000002" not in path]
    # While others are left anyway, a folder is enough.
    storage.remove_tree("shards/1-00000001")
    assert receipts_of(storage, plans) == [path for path in every if "1-00000001" not in path]


def test_only_a_finished_run_is_collected(request_: Request) -> None:
    with pytest.raises(UsageError, match="holds no plan"):
        collect_garbage(request_.output)
    prepare(request_)
    storage = Storage(request_.output)
    run_shards(storage)
    with pytest.raises(RunError, match="not finished"):
        collect_garbage(request_.output)
    reduce_run(storage.url, write_report=write_report)
    removed = collect_garbage(request_.output)
    assert removed.pop("files in shards/") == 8
    assert set(removed.values()) == {0}
