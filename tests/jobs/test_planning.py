"""Planning and resuming without Ray: a plan that was written remains, even if another command plans at once."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.commands.gc import collect_garbage
from maskrcnn_jobs.driver import one_process, planning, run
from maskrcnn_jobs.driver.driver_records import read_drivers
from maskrcnn_jobs.driver.planning import Request, prepare
from planned_run import process_shards, request_in

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import RunError, StoreSetupError, UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import check_manifest, write_skipped
from maskrcnn.pipeline.plan import check_run, read_plan, read_run
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.results.verify import verify_run
from maskrcnn.schema import SKIPPED
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


# What a listing skips


def counted(storage: Storage) -> dict[str, int]:
    inputs = read_run(storage)["inputs"]
    rows = pq.read_table(io.BytesIO(storage.read("skipped.parquet")))
    assert rows.schema.equals(SKIPPED, check_metadata=True)
    assert inputs["skipped_sha256"] == hashlib.sha256(storage.read("skipped.parquet")).hexdigest()
    kinds = rows["kind"].to_pylist()
    assert inputs["skipped"] == {kind: kinds.count(kind) for kind in kinds}
    return dict(inputs["skipped"])


def test_what_is_skipped_is_listed_beside_the_manifest_until_nothing_is(request_: Request) -> None:
    storage, folder = Storage(request_.output), Path(request_.source)
    (folder / "instances.json").unlink()
    prepare(request_)
    assert storage.list() == ["manifest.parquet", "plan.json", "run.json"]
    assert read_run(storage)["inputs"]["skipped_sha256"] is None
    (folder / "notes.txt").write_text("x")
    prepare(request_)
    assert read_run(storage)["inputs"]["skipped"] == {}, "the inputs are not listed again"
    prepare(dataclasses.replace(request_, shard_images=3))  # which plans anew what was not begun
    assert counted(storage) == {".txt": 1}
    (folder / "notes.txt").rename(folder / "notes.md")
    prepare(request_)
    assert counted(storage) == {".md": 1}
    storage.remove("plan.json")  # as a planning leaves it that was killed
    (folder / "notes.md").unlink()
    prepare(request_)
    assert storage.list() == ["manifest.parquet", "plan.json", "run.json"]


def test_with_strict_a_file_that_would_be_skipped_is_an_error(request_: Request) -> None:
    storage, folder = Storage(request_.output), Path(request_.source)
    strict = dataclasses.replace(request_, strict=True)
    for name in ("b.txt", "a.txt", "._a.png"):
        (folder / name).write_text("x")
    said = (
        f"^{folder}: with --strict no file may be skipped, and 4 files would be .1 ._, 1 .json, 2 .txt.: "
        "'._a.png', 'instances.json', 'a.txt', …; move them, or leave out --strict$"
    )
    with pytest.raises(UsageError, match=said):
        prepare(strict)
    assert storage.list() == []
    prepare(request_)
    with pytest.raises(UsageError, match=said):  # of the plan that exists, too
        prepare(strict)
    storage.remove("skipped.parquet")
    with pytest.raises(RunError, match=r"skipped\.parquet is missing; restore it"):
        prepare(strict)
    for name in ("b.txt", "a.txt", "._a.png", "instances.json"):
        (folder / name).unlink()
    prepare(dataclasses.replace(strict, output=f"{request_.output}-2"))


def test_the_output_below_the_inputs_does_not_count_as_skipped(request_: Request) -> None:
    (Path(request_.source) / "instances.json").unlink()
    within = dataclasses.replace(request_, output=f"{request_.source}/out", strict=True)
    storage = Storage(within.output)
    prepare(within)
    prepare(dataclasses.replace(within, shard_images=3))  # which lists again, beside a plan
    storage.remove("plan.json")  # as a planning leaves it that was killed
    prepare(within)
    assert read_run(storage)["inputs"]["skipped"] == {}
    other = dataclasses.replace(within, output=f"{request_.source}/other")
    with pytest.raises(UsageError, match=r"3 files would be \(3 in out/, the output of a run\)"):
        prepare(other)


def test_what_is_skipped_is_known_to_status_verify_and_gc(request_: Request) -> None:
    storage = Storage(request_.output)
    prepare(request_)
    process_shards(storage)
    reduce_run(request_.output, write_report=write_report)
    collect_garbage(request_.output)
    shown = CliRunner().invoke(main, ["status", request_.output])
    assert f"1 file of the input skipped, listed in {request_.output}/skipped.parquet" in shown.output
    report = verify_run(request_.output)
    assert report.proven
    assert "7 rows, as planned; 1 file skipped, each listed" in [outcome.line for outcome in report.outcomes]

    sound = storage.read("skipped.parquet")
    for tampered in (None, sound[:-1], write_skipped_as(storage, "other")):
        if tampered is None:
            storage.remove("skipped.parquet")
        else:
            storage.write("skipped.parquet", tampered)
        assert {(finding.check, finding.where) for finding in verify_run(request_.output).findings} == {
            ("manifest", "skipped.parquet")
        }


def write_skipped_as(storage: Storage, kind: str) -> bytes:
    """Record rows of another kind, with their digest, and return their file."""
    table = pa.table([["a"], ["a"], [1], [kind]], schema=SKIPPED)
    run = read_run(storage)
    run["inputs"]["skipped_sha256"] = write_skipped(storage, table)
    data = storage.read("skipped.parquet")
    storage.write("run.json", json.dumps(run).encode())
    return data
