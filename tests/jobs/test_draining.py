"""Nodes that are taken away after a notice: what their actors still finish, and what others do instead."""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commandline import parts
from hypothesis import given
from hypothesis import strategies as st
from local import LocalCluster
from maskrcnn_jobs.driver.draining import ASK_EVERY_S, MARGIN_S, Drains, tasks_in_time
from planted_images import write_planted

import maskrcnn

SIZES = st.lists(st.integers(1, 20), max_size=3)
SECONDS = st.floats(0, 100)


@given(sizes=SIZES, done=st.integers(0, 20), image_s=st.floats(0.01, 10), left_s=SECONDS)
def test_what_is_kept_ends_in_time_at_the_pace_of_the_shard_before(
    sizes: list[int], done: int, image_s: float, left_s: float
) -> None:
    """By running the tasks one after the other."""
    kept = tasks_in_time(sizes, done, 1.0, image_s, left_s)
    in_time, ends_s = 0, -done * image_s
    for size in sizes:
        ends_s += size * image_s
        in_time += max(ends_s, 0) + MARGIN_S <= left_s + 1e-9
    assert abs(kept - in_time) <= (1 if math.isclose(max(ends_s, 0) + MARGIN_S, left_s, rel_tol=1e-6) else 0)


@given(sizes=SIZES, done=st.integers(0, 20), elapsed_s=SECONDS, image_s=st.none() | st.floats(0.01, 10))
def test_more_time_never_keeps_less_and_a_node_without_a_deadline_finishes_all(
    sizes: list[int], done: int, elapsed_s: float, image_s: float | None
) -> None:
    kept = [tasks_in_time(sizes, done, elapsed_s, image_s, left_s) for left_s in (0, 10, 100, math.inf)]
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, len(sizes))


def test_a_shard_of_which_nothing_is_done_is_handed_back_where_nothing_is_known() -> None:
    assert tasks_in_time([10, 10], 0, 1.0, None, 1000.0) == 0
    assert tasks_in_time([10, 10], 2, 1.0, None, 1000.0) == 2


def test_a_drain_holds_until_its_node_is_gone_and_ray_is_asked_now_and_then() -> None:
    now, asked = [100.0], list[float]()
    said = [{"a": 30.0, "b": math.inf}, {}, {"a": 10.0}]

    def ask() -> dict[str, float]:
        asked.append(now[0])
        return said[len(asked) - 1]

    drains = Drains(ask, lambda: now[0])
    assert drains.left_s("a") is None
    for _ in range(3):
        for _ in range(10):
            drains.refresh()
        now[0] += ASK_EVERY_S
    assert asked == [100.0, 100 + ASK_EVERY_S, 100 + 2 * ASK_EVERY_S]
    assert drains.left_s("a") == 10 - ASK_EVERY_S  # as it was said last
    assert drains.left_s("b") == math.inf
    assert drains.left_s("c") is None


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_gets_a_sigterm_hands_its_shards_back_at_once(
    ray_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Kubernetes ends a pod. No shard ends in what is left to the node, and none of its workers has failed."""
    images, receipts = tmp_path / "images", tmp_path / "run" / "receipts"
    write_planted(images, 60, seed=3)
    maskrcnn.segment_collection(images, tmp_path / "whole", model="planted", shard_images=4)
    monkeypatch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", str(MARGIN_S))
    nodes = [ray_cluster.add_node(cpus=3)]  # the only one on which there is room for three threads
    options = [
        "--shard-images",
        "4",
        "--threads",
        "3",
        "--actors",
        "1",
        "--device",
        "cpu",
        "--address",
        ray_cluster.address,
    ]
    try:
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "maskrcnn_jobs", "segment", str(images), str(tmp_path / "run")),
                *("--model", "planted:0.1", "--address", ray_cluster.address, *options),
            ],
            env=os.environ | ray_cluster.environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while process.poll() is None and not workers_of(receipts):
                time.sleep(0.05)
            nodes[0].process.terminate()
            nodes.append(ray_cluster.add_node(cpus=3))
            _, said = process.communicate(timeout=120)
    finally:
        for node in nodes:
            node.stop()
    assert process.returncode == 0, said
    [back] = re.findall(r"node \S+ is draining, with \d s left: shards? (.+) (?:is|are) handed back", said)
    assert "an actor ended" not in said
    workers = workers_of(receipts)
    assert set(back.split(" and ")) <= set(workers)
    assert len(set(workers.values())) == 2
    assert parts(tmp_path / "run") == parts(tmp_path / "whole")


def workers_of(receipts: Path) -> dict[str, int]:
    """Return the number of the process that did each finished shard."""
    done = [json.loads(path.read_text()) for path in receipts.glob("*.json")]
    return {receipt["shard"]: receipt["execution"]["pid"] for receipt in done}
