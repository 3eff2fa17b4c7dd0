"""Caps on the time and the cost of a command: it stops in order, says what is left, and is continued by itself."""

import json
import time
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver.work import Work
from planted_images import write_planted

import maskrcnn
from maskrcnn.config import ResourceConfig, parse_price
from maskrcnn.errors import UsageError
from maskrcnn.pipeline.plan import Shard
from maskrcnn.pipeline.worker import ShardWorker


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def slow(monkeypatch):
    """Each shard takes a quarter of a second longer than it would."""
    run_shard = ShardWorker.run_shard

    def slowed(self: ShardWorker, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.25)
        return run_shard(self, *arguments, **options)

    monkeypatch.setattr(ShardWorker, "run_shard", slowed)


@pytest.mark.slow
@pytest.mark.parametrize("cap", [["--max-hours", 2 / 3600], ["--max-cost", 4, "--price", "120/min"]])
def test_a_run_stops_at_its_cap_and_is_continued(tmp_path, slow, monkeypatch, cap):
    monkeypatch.setattr("maskrcnn.visualization.run_report.GALLERY_IMAGES", 0)
    write_planted(tmp_path / "photos", 24, seed=3)
    run = [
        "segment",
        tmp_path / "photos",
        tmp_path / "out",
        "--model",
        "planted",
        "--no-ray",
        "--shard-images",
        2,
    ]
    stopped = command(*run, *cap)
    assert stopped.exit_code == 3
    assert " is reached with " in stopped.output
    assert stopped.output.splitlines()[-1].endswith("left: the same command continues")
    left = int(stopped.output.split("is reached with ")[1].split()[0])
    assert 0 < left <= 24  # twelve shards take three seconds at least
    facts = json.loads(command("status", tmp_path / "out", "--json").stdout)
    assert facts["images_done"] == 24 - left
    assert command(*run).exit_code == 0
    undisturbed = maskrcnn.segment_collection(
        tmp_path / "photos", tmp_path / "whole", model="planted", shard_images=2
    )
    again = maskrcnn.open_run(tmp_path / "out")
    assert again.instances().equals(undisturbed.instances())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--max-hours", "0"], "--max-hours must be more than 0, not 0"),
        (["--max-hours", "nan"], "--max-hours must be more than 0, not nan"),
        (["--max-cost", "5"], "add --price"),
        (["--max-cost", "0", "--price", "1/h"], "--max-cost must be more than 0"),
        (["--price", "2.10"], "a unit of time (h, min, s, day), as in 2.10/h, not '2.10'"),
        (["--price", "free/h"], "not 'free/h'"),
        (["--price", "-1/h"], "not '-1/h'"),
    ],
)
def test_a_cap_or_price_that_means_nothing_is_refused_before_anything_is_written(tmp_path, options, why):
    (tmp_path / "a.jpg").write_bytes(b"x")
    refused = command("segment", tmp_path, tmp_path / "out", "--model", "planted", *options)
    assert refused.exit_code == 2
    assert why in refused.output.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4), st.floats(0.01, 1e4))
def test_the_earlier_of_two_caps_counts(hours, cost, price):
    capped = ResourceConfig(max_hours=hours, max_cost=cost, price=f"{price!r}/h")
    assert capped.max_seconds() == pytest.approx(3600 * min(hours, cost / price))
    assert capped.cost_of(capped.max_seconds()) == pytest.approx(min(cost, hours * price))


def test_a_price_may_be_of_any_unit_of_time():
    assert {parse_price(text) for text in ("3.6/h", "0.06/min", "0.001/s", "86.4/day")} == {3.6}
    with pytest.raises(UsageError):
        parse_price("1/week")


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.floats(0, 1000))
def test_the_last_shard_that_is_started_begins_before_the_time_is_up(durations, until):
    now = 0.0
    work = Work(
        (Shard(f"1-{n}", n, n + 1) for n in range(len(durations))), len(durations), until, lambda: now
    )
    started = []
    for seconds in durations:
        if work.next_shard() is None:
            break
        started.append(now)
        now += seconds
        work.took(seconds)
    assert all(at < until for at in started)
    assert len(started) == len(durations) or now >= until
