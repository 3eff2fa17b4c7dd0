"""`status` and `gc`: how far a run is, and what may be removed when it is finished; without Ray."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from driver_processes import ended_process, write_driver
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.commands.gc import collect_garbage
from maskrcnn_jobs.commands.status import run_status
from maskrcnn_jobs.driver.planning import Request, mark_begun, prepare
from maskrcnn_jobs.driver.run import receipts_of
from planned_run import process_shards, request_in

from maskrcnn.errors import RunError, UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import read_plans
from maskrcnn.pipeline.receipts import complete_receipts
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.visualization.run_report import write_report


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return request_in(tmp_path)


def test_status_follows_a_run_to_its_end(request_: Request) -> None:
    storage = Storage(request_.output)
    with pytest.raises(UsageError, match="holds no run"):
        run_status(request_.output)
    prepare(request_)
    seen, waits = [], []
    for at_most in (0, 1, 100):
        process_shards(storage, at_most)
        facts = run_status(request_.output)
        seen.append((facts["state"], facts["images_done"], facts["shards_done"], facts["counts"]))
        waits.append(facts["waiting_for"])
    assert waits == [
        "4 shards: no command is working on it; repeat its `maskrcnn segment` to continue",
        "3 shards: no command is working on it; repeat its `maskrcnn segment` to continue",
        "its tables: no command is working on it; repeat its `maskrcnn segment` to continue",
    ]
    assert seen == [("unfinished", 0, 0, None), ("unfinished", 2, 1, None), ("unreduced", 7, 4, None)]
    reduce_run(storage.url, write_report=write_report)
    facts = run_status(request_.output)
    assert (facts["state"], facts["generation"], facts["retry"]) == ("finished", 1, None)
    assert facts["waiting_for"] is None
    assert facts["counts"]["images"] == 7


def waits_for(output: str) -> str:
    shown = CliRunner().invoke(main, ["status", output]).output.splitlines()
    assert shown[0].startswith("unfinished: 0 of 7 images, 0 of 4 shards; planned ")
    return shown[1].removeprefix("waiting for ")


def test_status_says_whether_a_command_works_on_the_run(request_: Request) -> None:
    plan, storage = prepare(request_), Storage(request_.output)
    none = "4 shards: no command is working on it; repeat its `maskrcnn segment` to continue"
    assert waits_for(request_.output) == none
    write_driver(storage, "killed", process=ended_process())
    assert waits_for(request_.output) == none
    write_driver(storage, "elsewhere", host="node-7", machine="node-7 x", begun="2026-11-30T08:00:00+00:00")
    assert waits_for(request_.output) == (
        "4 shards: a command on node-7 is working on it since 2026-11-30T08:00:00+00:00; "
        "if it was killed, repeat its `maskrcnn segment`"
    )
    mark_begun(storage, plan, "probes/0123")
    assert waits_for(request_.output) == f"4 shards: a command is working on it, process {os.getpid()}"


def test_where_nothing_is_left_to_run_every_file_is_looked_for(request_: Request) -> None:
    prepare(request_)
    storage = Storage(request_.output)
    process_shards(storage)
    plans, every = read_plans(storage), complete_receipts(storage)
    storage.remove(next(path for path in storage.list("shards") if "1-00000002" in path))
    assert receipts_of(storage, plans) == [path for path in every if "1-00000002" not in path]
    # While others are left anyway, a folder is enough.
    storage.remove_tree("shards/1-00000001")
    assert receipts_of(storage, plans) == [path for path in every if "1-00000001" not in path]


def test_only_a_finished_run_is_collected(request_: Request) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        collect_garbage(request_.output)
    prepare(request_)
    storage = Storage(request_.output)
    process_shards(storage)
    with pytest.raises(RunError, match="not finished"):
        collect_garbage(request_.output)
    reduce_run(storage.url, write_report=write_report)
    removed = collect_garbage(request_.output)
    assert removed.pop("files in shards/") == 8
    assert set(removed.values()) == {0}
