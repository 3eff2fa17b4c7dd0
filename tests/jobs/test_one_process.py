"""A run without Ray: the rows of a run with Ray, continued by the same command, and small runs choose it."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import maskrcnn_command, parts
from driver_processes import ended_process, write_driver
from maskrcnn_jobs.commands.retry import run_retry
from maskrcnn_jobs.driver import node_worker, where_to_run
from maskrcnn_jobs.driver.driver_records import Driver, read_drivers
from maskrcnn_jobs.driver.planning import Request, prepare
from maskrcnn_jobs.driver.run import run_segment
from maskrcnn_jobs.driver.where_to_run import MAX_ROWS, MAX_TABLE_ROWS, Left, check_resources, in_one_process
from planned_run import finished_run, process_shards, request_in

import maskrcnn
from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import ItemError, RunError, StoreFailingError, UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.synthetic.planted import PlantedSegmenter
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.types import Detections, Pixels

pytestmark = pytest.mark.slow

HERE = ResourceConfig(ray=False)


def both(folder: Path, images: int = 7) -> tuple[dict[str, bytes], Request]:
    """Return the tables that a worker of its own wrote, and a request over the same images."""
    expected = parts(Path(finished_run(folder, images)))
    return expected, Request(str(folder / "images"), str(folder / "here"), InferenceConfig("planted"), 2)


def test_its_tables_are_those_of_a_worker_alone_and_are_proven(tmp_path: Path) -> None:
    expected, request = both(tmp_path)
    success = run_segment(request, HERE, None)
    assert parts(Path(request.output)) == expected
    assert maskrcnn.verify(request.output).proven
    assert success["counts"]["images"] == 7
    assert Storage(request.output).list("probes") == []


@pytest.mark.slow
def test_python_does_what_the_command_does(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    run = maskrcnn.segment_collection(
        Path(request.source), Path(request.output), model="planted", shard_images=2
    )
    assert run.images().num_rows == 7
    done = maskrcnn_command(
        "segment", request.source, str(tmp_path / "command"), "--model", "planted", "--shard-images", "2"
    )
    assert done.returncode == 0, done.stderr
    assert "running in this process, without Ray" in done.stderr
    assert parts(tmp_path / "command") == parts(Path(request.output))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gpus": 8}, "has no argument 'gpus'"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, not 'gpu'"),
        ({"coco": "sometimes"}, "coco must be one of auto, always, never"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, not 2.5"),
        ({"categories": "nonsense"}, "'nonsense'"),
        ({"categories": ["leaf", 3]}, "categories must be a list of names, not a list"),
        ({"categories": 3}, "categories must be a list of names, not 3"),
        ({"source": None}, "source must be a path or a URL, not None$"),
        ({"source": 3}, "source must be a path or a URL, not 3$"),
        ({"source": b"images"}, "source must be a path or a URL, not bytes$"),
        (
            {"source": (name for name in ["a.jpg"])},
            "source must be .* not a generator: write the paths .* into a .txt",
        ),
        (
            {"source": ["a.jpg"]},
            "source must be .* not a list: write the paths .* into a .txt file, one per line",
        ),
        ({"output": None}, "output must be a path or a URL, not None"),
        ({"model": None}, "model must be a path or a URL, not None"),
        ({"labels": 3}, "labels must be a path or a URL, not 3"),
        ({"images_root": ["a"]}, "images_root must be a path or a URL, not a list"),
        ({"limit": "3"}, "limit must be a whole number, not '3'"),
        ({"limit": 3.0}, "limit must be a whole number, not 3.0"),
        ({"limit": True}, "limit must be a whole number, not True"),
        ({"window": "512"}, "window must be a whole number, not '512'"),
        ({"max_detections": None}, "max_detections must be a whole number, not None"),
        ({"min_score": "0.5"}, "min_score must be a number, not '0.5'"),
        ({"min_score": [0.5]}, "min_score must be a number, not a list"),
        ({"allow_http": "no"}, "allow_http must be True or False, not 'no'"),
        ({"bands": [1, 2, 3], "window": 512}, "bands must be text, not a list"),
        ({"shard_images": "2"}, "shard_images must be a whole number, not '2'"),
        ({"threads": True}, "threads must be a whole number, not True"),
        ({"device": ["cpu"]}, "device must be one of auto, cpu, cuda, not a list"),
        ({"coco": None}, "coco must be one of auto, always, never, not None"),
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16, not 'float64'"),
        ({"dtype": np.float32}, "dtype must be one of .*, not a type"),
        ({"strict": 1}, "strict must be True or False, not 1"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_done(
    tmp_path: Path, wrong: dict[str, object], said: str
) -> None:
    request = request_in(tmp_path)
    with pytest.raises(UsageError, match=said):
        maskrcnn.segment_collection(
            **{"source": request.source, "output": request.output, "model": "planted"} | wrong
        )
    assert not Path(request.output).exists()


def test_with_strict_a_file_that_would_be_skipped_is_an_error(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    with pytest.raises(UsageError, match=r"no file may be skipped, and 1 file would be \(1 \.json\)"):
        maskrcnn.segment_collection(request.source, request.output, model="planted", strict=True)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """The run is the one that the command would continue."""
    request = request_in(tmp_path, 3)
    arguments = (request.source, request.output)
    run = maskrcnn.segment_collection(
        *arguments, model="planted", limit=np.int64(2), min_score=np.float32(0.5), shard_images=np.int8(2)
    )
    assert run.success["counts"]["images"] == 2
    again = maskrcnn.segment_collection(
        *arguments, model="planted", limit=2, min_score=0.5, shard_images=2, categories=None
    )
    assert again.info == run.info


def test_names_of_categories_have_no_order(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    first = maskrcnn.segment_collection(
        request.source, request.output, model="planted", categories=["leaf", "coin"]
    )
    assert (
        first.info
        == maskrcnn.segment_collection(
            request.source, request.output, model="planted", categories=("coin", "leaf")
        ).info
    )


@pytest.mark.slow
def test_the_rows_do_not_depend_on_the_images_computed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is computed on one thread, as by Ray's actors, so that the last digits are theirs."""
    write_scenes(tmp_path / "scenes", 6, seed=40_000_000, size=256)
    for lanes in (1, 3):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, lanes=lanes: set(range(lanes)))
        maskrcnn.segment_collection(
            tmp_path / "scenes", tmp_path / str(lanes), model="scenes", shard_images=3
        )
    assert parts(tmp_path / "1") == parts(tmp_path / "3")
    assert maskrcnn.open_run(tmp_path / "1").instances().num_rows > 0


# Interrupted and continued


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_an_interrupted_run_is_continued(tmp_path: Path, stop: signal.Signals) -> None:
    expected, request = both(tmp_path, images=12)
    command = ["segment", request.source, request.output, "--model", "planted:0.3", "--shard-images", "2"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "maskrcnn_jobs", *command], stderr=subprocess.PIPE, text=True
    )
    receipts = Path(request.output) / "receipts"
    while not list(receipts.glob("*.json")):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.02)
    driver.send_signal(stop)
    _, said = driver.communicate(timeout=60)
    first = len(list(receipts.glob("*.json")))
    assert 1 <= first < 6
    assert [driver.state for driver in read_drivers(Storage(request.output))] == (
        ["ended"] if stop == signal.SIGKILL else []
    )
    if stop == signal.SIGINT:
        assert driver.returncode == 3
        assert "repeat the same command" in said
        assert "Traceback" not in said
    again = maskrcnn_command(*command, "--no-ray")
    assert again.returncode == 0, again.stderr
    assert "resuming the plan" in again.stderr
    assert ("an earlier process was killed while it computed images" in again.stderr) == (
        stop == signal.SIGKILL
    )
    assert len(list(receipts.glob("*.json"))) == 6
    assert parts(Path(request.output)) == expected
    assert Storage(request.output).list("probes") == []


# Failures


class Failing(PlantedSegmenter):
    """Raises for images of one width, as a network does that meets a case nobody thought of."""

    def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        if any(image.shape[1] == self.width for image in images):
            raise IndexError("index 80 is out of bounds")
        return super().outcomes(images)

    width = 0


def test_an_image_on_which_the_network_raises_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, request = both(tmp_path)
    before = maskrcnn.open_run(tmp_path / "run").images().to_pylist()
    monkeypatch.setattr(Failing, "width", max(row["width"] for row in before))
    monkeypatch.setattr(node_worker, "build_segmenter", lambda _: Failing())
    run_segment(request, HERE, None)
    rows = maskrcnn.open_run(request.output).images().to_pylist()
    message = "alone in its process: the network raised IndexError: index 80 is out of bounds"
    assert {(row["error"], row["message"]) for row in rows if row["status"] == "failed"} == {
        ("worker_crash", message)
    }
    for now, then in zip(rows, before, strict=True):
        assert (now["status"] == "failed") == (then["width"] == Failing.width)
        assert now["status"] == "failed" or now == then


def test_a_store_that_fails_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_in(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise StoreFailingError("half of the images failed")

    monkeypatch.setattr(node_worker.ShardWorker, "run_shard", refuse)
    with pytest.raises(RunError, match="half of the images"):
        run_segment(request, HERE, None)
    assert Storage(request.output).list("probes") == []
    assert Storage(request.output).list("receipts") == []


# Which way is taken


def decided(
    resources: ResourceConfig,
    address: str | None = None,
    rows: int = MAX_ROWS,
    drivers: Sequence[Driver] = (),
    total: int = MAX_ROWS,
) -> bool:
    return in_one_process(address, resources, Left(f"{rows} images", rows, total), drivers)


def test_small_runs_need_no_ray(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    auto = ResourceConfig()
    with caplog.at_level(logging.INFO):
        assert decided(auto)
    assert f"{MAX_ROWS} images: running in this process, without Ray" in caplog.text
    assert not decided(auto, rows=MAX_ROWS + 1)
    assert decided(auto, rows=1, total=MAX_TABLE_ROWS)
    assert not decided(auto, rows=1, total=MAX_TABLE_ROWS + 1)
    assert decided(HERE, rows=MAX_ROWS + 1)
    assert not decided(ResourceConfig(ray=True))
    assert not decided(ResourceConfig(actors=1))
    assert not decided(auto, "local")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not decided(auto)
    assert decided(HERE)


@pytest.mark.parametrize(
    ("changed", "here", "said", "said_without_ray"),
    [
        # Killed while it computed: by an image, perhaps.
        ({"computing": True, "process": 0}, False, "running on Ray, which isolates", "leave out --no-ray"),
        # Killed before its first image, or after its user had stopped it, or a driver of actors.
        ({"computing": False, "process": 0}, True, "", ""),
        ({"computing": True}, True, "is working on this run too", "is working on this run too"),
        ({"computing": False}, True, "is working on this run too", "is working on this run too"),
        (
            {"computing": True, "machine": "x", "host": "b"},
            False,
            "a process on b began",
            "a process on b began",
        ),
    ],
)
def test_what_an_earlier_process_was_doing_decides(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    here: bool,
    said: str,
    said_without_ray: str,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if "process" in changed:
        changed = changed | {"process": ended_process()}
    write_driver(Storage(tmp_path), "earlier", **changed)
    drivers = read_drivers(Storage(tmp_path))
    with caplog.at_level(logging.WARNING if here else logging.INFO):
        assert decided(ResourceConfig(), drivers=drivers) == here
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert decided(HERE, drivers=drivers)
    assert said_without_ray in caplog.text
    assert bool(said_without_ray) == bool(caplog.text)


def test_what_is_left_decides_and_not_how_large_the_run_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(where_to_run, "MAX_ROWS", 5)
    request = request_in(tmp_path)
    prepare(request)
    process_shards(Storage(request.output), 2)
    with caplog.at_level(logging.INFO):
        run_segment(request, ResourceConfig(), None)
    assert "3 images left: running in this process" in caplog.text
    image = next(Path(request.source).glob("*.png"))
    sound = image.read_bytes()
    again = replace(request, output=str(tmp_path / "again"))
    image.write_bytes(sound[:100])
    run_segment(again, HERE, None)
    image.write_bytes(sound)
    with caplog.at_level(logging.INFO):
        success = run_retry(again.output, None, "auto", ResourceConfig(), None)
    assert "1 image: running in this process" in caplog.text
    assert success is not None
    assert success["counts"]["failed"] == 0


@pytest.mark.slow
def test_after_ctrl_c_twice_no_image_is_suspected(tmp_path: Path) -> None:
    """While an image is computed, and while the model is loaded."""
    _, request = both(tmp_path, images=2)
    command = ["segment", request.source, request.output, "--model", "planted:30"]
    for computing in (False, True):
        with subprocess.Popen(
            [sys.executable, "-m", "maskrcnn_jobs", *command], stderr=subprocess.PIPE, text=True
        ) as process:
            storage = Storage(request.output)
            while not any(driver.computing >= computing for driver in read_drivers(storage)):
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        assert process.returncode == 3, said
        assert not any(driver.computing for driver in read_drivers(storage))


def test_contradictions_are_refused() -> None:
    with pytest.raises(UsageError, match="--no-ray and --address x:1 exclude each other"):
        check_resources("x:1", HERE)
    with pytest.raises(UsageError, match="leave out --actors or --no-ray"):
        ResourceConfig(actors=2, ray=False)
    done = maskrcnn_command("segment", "in", "out", "--no-ray", "--actors", "2")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.ray
def test_what_was_begun_without_ray_is_continued_with_ray(tmp_path: Path) -> None:
    expected, request = both(tmp_path)
    prepare(request)
    write_driver(Storage(request.output), "killed", computing=True, process=ended_process())
    done = maskrcnn_command("segment", request.source, request.output, "--model", "planted", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 7
    assert parts(Path(request.output)) == expected
