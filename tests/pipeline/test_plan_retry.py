"""A retry: what failed is done once more, and what comes out is what a first run would have found. Without Ray."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commandline import parts
from hypothesis import given, settings
from hypothesis import strategies as st
from maskrcnn_jobs.commands.gc import collect_garbage
from maskrcnn_jobs.commands.status import run_status
from maskrcnn_jobs.driver.planning import Request, prepare
from planted_images import write_planted

import maskrcnn
from maskrcnn.config import InferenceConfig
from maskrcnn.errors import ERROR_CODES, RunError, UsageError
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import read_rows
from maskrcnn.pipeline.plan import Plan, pending_of, read_plan, read_plans
from maskrcnn.pipeline.plan_retry import failed_inputs, plan_retry
from maskrcnn.pipeline.receipts import complete_receipts
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.success import finished, read_success
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.stats import Stats
from maskrcnn.synthetic.planted import PlantedSegmenter
from maskrcnn.visualization.run_report import write_report

pytestmark = pytest.mark.slow

IMAGES = 12


class Collection:
    """Planted images under a manifest that names all of them, some of which can be spoilt and repaired."""

    def __init__(self, folder: Path, n: int = IMAGES) -> None:
        self.folder = folder
        write_planted(folder, n, seed=3)
        self.names = sorted(path.name for path in folder.glob("*.png"))
        self._sound = {name: (folder / name).read_bytes() for name in self.names}
        self.manifest = folder / "manifest.csv"
        self.manifest.write_text("".join(f"{name}\n" for name in ("uri", *self.names)))

    def spoil(self, row: int, how: str) -> None:
        path = self.folder / self.names[row]
        if how == "not_found":
            path.unlink(missing_ok=True)
        else:
            sound = self._sound[path.name]
            path.write_bytes({"empty_file": b"", "not_an_image": b"<html>", "truncated": sound[:99]}[how])

    def repair(self, *rows: int) -> None:
        for row in rows:
            (self.folder / self.names[row]).write_bytes(self._sound[self.names[row]])


SPOILT = ("not_found", "empty_file", "not_an_image", "truncated")


def planned(collection: Collection, output: Path, shard_images: int = 5) -> Storage:
    prepare(Request(str(collection.manifest), str(output), InferenceConfig("planted"), shard_images))
    return Storage(str(output))


def processed(storage: Storage, at_most: int = 10**6) -> Storage:
    """Do what is pending, as actors do."""
    worker = ShardWorker(storage, PlantedSegmenter(), Limits(10**8, 10**8, 1333.0), {})
    shards = list(pending_of(read_plans(storage), complete_receipts(storage)))
    for shard in shards[:at_most]:
        worker.run_shard(shard)
    return storage


def segmented(collection: Collection, output: Path, shard_images: int = 5) -> Storage:
    storage = processed(planned(collection, output, shard_images))
    reduce_run(storage.url, write_report=write_report)
    return storage


def retried(storage: Storage, *only: str) -> Plan | None:
    plan = plan_retry(storage, read_plans(storage), only or None)
    if plan is not None:
        reduce_run(processed(storage).url, write_report=write_report)
    return plan


def planned_retry(storage: Storage, *only: str) -> Plan:
    plan = plan_retry(storage, read_plans(storage), only or None)
    assert plan is not None
    return plan


def errors(storage: Storage) -> dict[int, str]:
    images = maskrcnn.open_run(storage.url).images()
    return {row: code for row, code in enumerate(images["error"].to_pylist()) if code}


def comparable(storage: Storage) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """The tables without what the store said of the inputs when they were planned; and the statistics."""
    run = maskrcnn.open_run(storage.url)
    return run.images().drop_columns(["bytes", "etag"]), run.instances(), run.stats


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the report take half of a run's time here."""
    monkeypatch.setattr("maskrcnn.visualization.run_report.GALLERY_IMAGES", 0)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection(tmp_path / "images")


# What comes out


@settings(max_examples=8)
@given(
    spoilt=st.dictionaries(st.integers(0, IMAGES - 1), st.sampled_from(SPOILT), min_size=1),
    rounds=st.lists(st.sets(st.integers(0, IMAGES - 1)), max_size=2),
    shard_images=st.sampled_from([1, 4, 100]),
)
def test_retries_end_where_a_run_over_the_repaired_files_ends(
    tmp_path_factory: pytest.TempPathFactory,
    spoilt: dict[int, str],
    rounds: list[set[int]],
    shard_images: int,
) -> None:
    folder = tmp_path_factory.mktemp("retry")
    collection = Collection(folder / "images")
    for row, how in spoilt.items():
        collection.spoil(row, how)
    storage = segmented(collection, folder / "run", shard_images)
    assert set(errors(storage)) == set(spoilt)
    left = dict(spoilt)
    for repaired in rounds:
        collection.repair(*repaired)
        plan = retried(storage)
        assert (None if plan is None else plan.rows) == (len(left) or None)
        left = {row: how for row, how in left.items() if row not in repaired}
        assert set(errors(storage)) == set(left)
    whole = segmented(collection, folder / "whole", 5)
    assert all(ours == theirs for ours, theirs in zip(comparable(storage), comparable(whole), strict=True))
    run = maskrcnn.open_run(storage.url)
    assert Stats.of_tables(run.images(), run.instances(), run.categories).to_json() == run.stats
    assert run.success["counts"]["failed"] == len(left)
    assert run.success["counts"]["images"] == IMAGES


def test_only_the_codes_that_are_named_are_retried(collection: Collection, tmp_path: Path) -> None:
    for row, how in enumerate(SPOILT):
        collection.spoil(row, how)
    storage = segmented(collection, tmp_path / "run")
    assert list(errors(storage).values()) == list(SPOILT)
    collection.repair(*range(IMAGES))
    plan = retried(storage, "not_found", "truncated")
    assert plan is not None
    assert read_rows(storage, plan)["row"].to_pylist() == [0, 3]
    assert errors(storage) == {1: "empty_file", 2: "not_an_image"}
    assert retried(storage, "timeout") is None
    assert len(read_plans(storage)) == 2
    assert retried(storage) is not None
    assert errors(storage) == {}
    assert retried(storage) is None
    # A retry names its receipts beside those of the generations before.
    generations = [name.partition("-")[0] for name in maskrcnn.open_run(storage.url).success["receipts"]]
    assert generations == ["1"] * 3 + ["2", "3"]


def test_a_code_that_is_missing_is_refused_with_those_that_are(
    collection: Collection, tmp_path: Path
) -> None:
    storage = segmented(collection, tmp_path / "run")
    with pytest.raises(UsageError) as refusal:
        plan_retry(storage, read_plans(storage), ["no_such_code"])
    assert "no_such_code" in str(refusal.value)
    assert all(code in str(refusal.value) for code in ERROR_CODES)
    assert "\n" not in str(refusal.value)


def test_an_input_that_was_replaced_is_taken_as_it_is_now(collection: Collection, tmp_path: Path) -> None:
    storage = planned(collection, tmp_path / "run")
    (collection.folder / collection.names[4]).write_bytes(b"another file")
    reduce_run(processed(storage).url, write_report=write_report)
    collection.repair(4)
    retry = planned_retry(storage)
    listed = read_rows(storage, retry).to_pylist()
    now = (collection.folder / collection.names[4]).stat()
    assert listed == [{"row": 4, "bytes": now.st_size, "etag": f"{now.st_size}-{now.st_mtime_ns}"}]
    # What is changed after that is again none of what was planned.
    (collection.folder / collection.names[4]).write_bytes(b"and another")
    reduce_run(processed(storage).url, write_report=write_report)
    assert errors(storage) == {4: "changed"}
    collection.repair(4)
    retried(storage)
    assert errors(storage) == {}


def test_inputs_on_the_web_are_not_asked_what_they_are_now(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri\nhttp://127.0.0.1:9/a.png\n")
    request = Request(
        str(tmp_path / "list.csv"), str(tmp_path / "run"), InferenceConfig("planted", allow_http=True), 1
    )
    prepare(request)
    storage = processed(Storage(request.output))
    reduce_run(storage.url, write_report=write_report)
    assert list(errors(storage)) == [0]
    listed = read_rows(storage, planned_retry(storage)).to_pylist()
    assert listed == [{"row": 0, "bytes": None, "etag": None}]


def test_reducing_a_retry_again_gives_the_same_bytes(collection: Collection, tmp_path: Path) -> None:
    collection.spoil(2, "truncated")
    collection.spoil(9, "empty_file")
    storage = segmented(collection, tmp_path / "run")
    collection.repair(2)
    retried(storage)
    before = parts(tmp_path / "run")
    assert sorted(before) == ["images/part-0000000000-2.parquet", "instances/part-0000000000-2.parquet"]
    statistics = storage.read("stats.json")
    reduce_run(storage.url, write_report=write_report)
    assert parts(tmp_path / "run") == before
    assert storage.read("stats.json") == statistics
    timings = json.loads(storage.read("timings.json"))
    assert (timings["images"], timings["shards"]) == (IMAGES + 2, 4)


def test_a_retry_is_cut_for_several_actors_and_never_coarser_than_the_run(
    collection: Collection, tmp_path: Path
) -> None:
    for row in range(IMAGES):
        collection.spoil(row, "empty_file")
    coarse = segmented(collection, tmp_path / "coarse", 1000)
    fine = segmented(collection, tmp_path / "fine", 2)
    assert (planned_retry(coarse).shard_images, planned_retry(fine).shard_images) == (16, 2)


# Unfinished


def test_until_a_retry_is_reduced_the_tables_stand_as_they_are(
    collection: Collection, tmp_path: Path
) -> None:
    for row in range(6):
        collection.spoil(row, "empty_file")
    storage = segmented(collection, tmp_path / "run", 3)
    standing, before = maskrcnn.open_run(storage.url).success, parts(tmp_path / "run")
    assert run_status(storage.url)["state"] == "finished"
    collection.repair(*range(6))
    retry = planned_retry(storage)
    processed(storage, at_most=1)

    facts = run_status(storage.url)
    assert (facts["state"], facts["generation"]) == ("unfinished", 2)
    assert (facts["images"], facts["images_done"]) == (IMAGES, IMAGES)
    again = facts["retry"]
    assert [again[name] for name in ("images", "images_done", "shards", "shards_done")] == [6, 3, 2, 1]
    assert facts["counts"]["failed"] == 6
    assert finished(storage, retry) is None
    with pytest.raises(
        RunError, match="1 of 2 shards of generation 2 left: continue it with `maskrcnn retry`"
    ):
        reduce_run(storage.url, write_report=write_report)
    with pytest.raises(RunError, match="not finished"):
        collect_garbage(storage.url)
    with pytest.raises(UsageError, match="not finished"):
        plan_retry(storage, read_plans(storage))
    assert maskrcnn.open_run(storage.url).success == standing
    assert parts(tmp_path / "run") == before

    assert run_status(processed(storage).url)["state"] == "unreduced"
    reduce_run(storage.url, write_report=write_report)
    assert (run_status(storage.url)["state"], run_status(storage.url)["retry"]) == ("finished", None)
    assert errors(storage) == {}


def test_a_run_that_is_not_finished_is_not_retried(collection: Collection, tmp_path: Path) -> None:
    storage = processed(planned(collection, tmp_path / "run"), at_most=1)
    with pytest.raises(UsageError, match="continue it with `maskrcnn segment`"):
        plan_retry(storage, read_plans(storage))


def test_the_command_of_the_run_continues_its_retry(collection: Collection, tmp_path: Path) -> None:
    collection.spoil(1, "empty_file")
    storage = segmented(collection, tmp_path / "run")
    collection.repair(1)
    retry = planned_retry(storage)
    request = Request(str(collection.manifest), storage.url, InferenceConfig("planted"), 5)
    assert prepare(request) == retry
    assert prepare(Request(str(collection.manifest), storage.url, InferenceConfig("planted"))) == retry


def test_of_two_retries_planned_at_once_both_do_one(collection: Collection, tmp_path: Path) -> None:
    collection.spoil(1, "empty_file")
    collection.spoil(7, "not_an_image")
    storage = segmented(collection, tmp_path / "run")
    seen_by_both = read_plans(storage)
    first = plan_retry(storage, seen_by_both, ["empty_file"])
    second = plan_retry(storage, seen_by_both, ["not_an_image"])
    assert first is not None
    assert second == first == read_plan(storage)
    assert read_rows(storage, first)["row"].to_pylist() == [1]


def test_a_list_without_its_plan_was_never_planned(collection: Collection, tmp_path: Path) -> None:
    collection.spoil(1, "empty_file")
    collection.spoil(7, "not_an_image")
    storage = segmented(collection, tmp_path / "run")
    planned_retry(storage)
    storage.remove("plan-2.json")  # as if the command had died before it
    retry = planned_retry(storage, "not_an_image")
    assert read_rows(storage, retry)["row"].to_pylist() == [7]


def test_a_shard_whose_files_are_gone_is_done_again_with_the_retry(
    collection: Collection, tmp_path: Path
) -> None:
    for row in (1, 6):
        collection.spoil(row, "truncated")
    storage = segmented(collection, tmp_path / "run")
    collection.repair(1, 6)
    planned_retry(storage)
    storage.remove_tree("shards/1-00000000")
    assert run_status(storage.url)["images_done"] == IMAGES - 5
    with pytest.raises(RunError, match="1 of 3 shards left"):
        reduce_run(processed(Storage(storage.url), at_most=0).url, write_report=write_report)
    reduce_run(processed(storage).url, write_report=write_report)
    # What was repaired succeeds in both generations, and counts once.
    whole = segmented(collection, tmp_path / "whole")
    assert all(ours == theirs for ours, theirs in zip(comparable(storage), comparable(whole), strict=True))


# After gc


def test_after_gc_nothing_is_retried_and_the_tables_stand(collection: Collection, tmp_path: Path) -> None:
    collection.spoil(1, "empty_file")
    storage = segmented(collection, tmp_path / "run")
    before = parts(tmp_path / "run")
    storage.write("probes/left", b"")
    removed = collect_garbage(storage.url)
    assert [removed[f"files in {name}/"] for name in ("shards", "probes")] == [6, 1]
    assert [path for name in ("shards", "probes") for path in storage.list(name)] == []
    with pytest.raises(UsageError, match="the files of 3 shards are gone"):
        plan_retry(storage, read_plans(storage))
    assert (run_status(storage.url)["state"], read_plan(storage)) == ("finished", read_plans(storage)[0])
    assert parts(tmp_path / "run") == before
    assert set(collect_garbage(storage.url).values()) == {0}


def test_without_some_of_its_shards_nothing_is_retried(collection: Collection, tmp_path: Path) -> None:
    collection.spoil(1, "empty_file")
    storage = segmented(collection, tmp_path / "run")
    storage.remove(storage.list("shards")[0])
    with pytest.raises(UsageError, match="the files of 1 shard are gone"):
        plan_retry(storage, read_plans(storage))


# What failed


def test_what_failed_is_found_over_all_parts(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rng = random.Random(5)
    codes = [rng.choice([None, None, "corrupt", "timeout"]) for _ in range(100)]
    entries = []
    for k, start in enumerate(range(0, 100, 17)):
        of_part = codes[start : start + 17]
        table = pa.table(
            {
                "status": ["failed" if code else "ok" for code in of_part],
                "error": pa.array(of_part, pa.string()),
                "uri": [f"/{start + i}.png" for i in range(len(of_part))],
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        storage.write(f"images/part-1-{k:05d}.parquet", sink.getvalue().to_pybytes())
        entries.append({"path": f"images/part-1-{k:05d}.parquet", "rows": len(of_part)})
    success = {"parts": {"images": entries, "instances": entries}, "counts": {"images": 100}}
    for only in (None, {"corrupt"}, {"timeout", "not_found"}, {"not_found"}):
        rows, uris = failed_inputs(storage, success, np.arange(100), only)
        expected = [row for row, code in enumerate(codes) if code and (only is None or code in only)]
        assert rows.tolist() == expected
        assert uris == [f"/{row}.png" for row in expected]
    with pytest.raises(RunError, match="the tables have 100 images"):
        failed_inputs(storage, success | {"counts": {"images": 101}}, np.arange(101), None)
    storage.remove("images/part-1-00003.parquet")
    with pytest.raises(RunError, match=r"part-1-00003\.parquet is missing or broken"):
        failed_inputs(storage, success, np.arange(100), None)


@pytest.mark.parametrize("record", [{"generation": 1}, None])
def test_a_record_of_the_generation_before_is_no_end_of_a_retry(
    record: dict[str, int] | None, collection: Collection, tmp_path: Path
) -> None:
    collection.spoil(1, "empty_file")
    storage = segmented(collection, tmp_path / "run")
    plan = read_plans(storage)[0]
    retry = planned_retry(storage)
    if record is None:
        storage.remove("_SUCCESS")
    assert finished(storage, plan) == read_success(storage)
    assert finished(storage, retry) is None
    assert (run_status(storage.url)["counts"] is None) == (record is None)
