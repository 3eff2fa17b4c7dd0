"""The whole job on a real Ray, from the command line, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from commandline import maskrcnn_command, parts
from local import LocalCluster
from planted_images import write_planted

import maskrcnn
from maskrcnn.synthetic.scenes import write_scenes

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection") / "images"
    write_planted(folder, 60, seed=5)
    (folder / "broken.jpg").write_text("<html>not found</html>")
    (folder / "notes.txt").write_text("skipped")
    return folder


@pytest.fixture(scope="module")
def undisturbed(images: Path, ray_cluster: LocalCluster) -> Path:
    """A run by one actor that nothing disturbed: what every other run must equal."""
    output = images.parent / "undisturbed"
    command = ["segment", str(images), str(output), "--model", "planted", "--actors", "1"]
    run = maskrcnn_command(*command, cluster=ray_cluster)
    assert run.returncode == 1, run.stderr  # one of 61 images is broken: above the limit of 1 %
    return output


def test_a_run_says_what_it_did(images: Path, undisturbed: Path) -> None:
    run = maskrcnn.open_run(str(undisturbed))
    assert run.success["counts"]["images"] == run.images().num_rows == 61
    failed = [row for row in run.images().to_pylist() if row["status"] == "failed"]
    assert [(row["name"], row["error"]) for row in failed] == [("broken.jpg", "not_an_image")]
    assert run.info["inputs"]["skipped"] == {".txt": 1, ".json": 1}
    ground_truth = json.loads((images / "instances.json").read_text())
    assert run.instances().num_rows == len(ground_truth["annotations"])
    assert sorted(run.instances()["area"].to_pylist()) == sorted(
        a["area"] for a in ground_truth["annotations"]
    )
    report = (undisturbed / "report.html").read_text()
    assert "not_an_image" in report
    assert "Traceback" not in report


def test_a_run_without_ray_gives_the_bytes_of_one_actor(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    command = ["segment", str(images), str(tmp_path / "run"), "--model", "planted", "--shard-images", "16"]
    run = maskrcnn_command(*command)
    assert run.returncode == 1, run.stderr
    assert "61 images: running in this process, without Ray" in run.stderr
    assert "starting Ray" not in run.stderr
    assert parts(tmp_path / "run") == parts(undisturbed)


def test_two_actors_give_the_bytes_of_one(
    images: Path, undisturbed: Path, tmp_path: Path, ray_cluster: LocalCluster
) -> None:
    command = ["segment", str(images), str(tmp_path / "two"), "--model", "planted", "--actors", "2", "--json"]
    run = maskrcnn_command(*command, cluster=ray_cluster)
    assert json.loads(run.stdout)["failed"] == 1
    assert "Traceback" not in run.stderr
    assert parts(tmp_path / "two") == parts(undisturbed)


def test_a_finished_run_is_not_done_again(images: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    run = maskrcnn_command("segment", str(images), str(undisturbed), "--model", "planted")
    assert "finished already" in run.stderr
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()} == before


def wait_for_receipts(output: Path, at_least: int, process: subprocess.Popen[str]) -> set[str]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        names = {path.name for path in (output / "receipts").glob("*.json")}
        if len(names) >= at_least:
            return names
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise TimeoutError(f"no {at_least} receipts in {output}")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_driver_that_dies_in_mid_run_is_continued(
    images: Path, undisturbed: Path, tmp_path: Path, stop: signal.Signals, ray_cluster: LocalCluster
) -> None:
    output = tmp_path / "run"
    command = [
        "segment",
        str(images),
        str(output),
        "--model",
        "planted:0.08",
        "--actors",
        "1",
        "--shard-images",
        "16",
    ]
    driver = subprocess.Popen(
        [sys.executable, "-m", "maskrcnn_jobs", *command],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_receipts(output, 1, driver)
    driver.send_signal(stop)
    asked = time.monotonic()
    _, said = driver.communicate(timeout=60)
    if stop is signal.SIGTERM:
        assert driver.returncode == 3
        assert "repeat the same command" in said
        assert "Traceback" not in said
        assert time.monotonic() - asked < 30
    # What the dead driver's worker may still finish is as good as any other receipt.
    time.sleep(3)
    first = {path.name for path in (output / "receipts").glob("*.json")}
    assert 1 <= len(first) < 4
    assert maskrcnn_command("status", str(output)).returncode == 3

    again = maskrcnn_command(*command, cluster=ray_cluster)
    assert again.returncode == 1, again.stderr
    assert "resuming the plan" in again.stderr
    both = {path.name for path in (output / "receipts").glob("*.json")}
    assert first <= both
    shards = [name.partition(".")[0] for name in both]
    assert len(shards) == len(set(shards)) == 4  # no finished shard was run again

    resumed, whole = maskrcnn.open_run(str(output)), maskrcnn.open_run(str(undisturbed))
    assert resumed.images().equals(whole.images())
    assert resumed.instances().equals(whole.instances())
    assert resumed.stats == whole.stats


def test_a_worker_that_dies_is_replaced(
    images: Path, undisturbed: Path, tmp_path: Path, ray_cluster: LocalCluster
) -> None:
    output = tmp_path / "run"
    command = ["segment", str(images), str(output), "--model", "planted:0.08", "--actors", "1", "--json"]
    command += ["--address", ray_cluster.address, "--device", "cpu"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "maskrcnn_jobs", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ray_cluster.environment,
    )
    [first, *_] = wait_for_receipts(output, 1, driver)
    worker = json.loads((output / "receipts" / first).read_text())["execution"]["pid"]
    os.kill(worker, signal.SIGKILL)
    printed, said = driver.communicate(timeout=120)
    assert driver.returncode == 1, said
    assert "an actor ended on shard" in said
    assert json.loads(printed)["images"] == 61  # and nothing of what Ray has to say of dead workers
    workers = {json.loads(path.read_text())["execution"]["pid"] for path in (output / "receipts").iterdir()}
    assert len(workers) == 2
    assert parts(output) == parts(undisturbed)


def test_the_network_gives_the_same_bytes_with_two_actors_and_without_ray(
    tmp_path: Path, ray_cluster: LocalCluster
) -> None:
    write_scenes(tmp_path / "scenes", 8, seed=40_000_000, size=256)
    for name, options, cluster in (("two", ["--actors", "2"], ray_cluster), ("here", ["--no-ray"], None)):
        command = ["segment", str(tmp_path / "scenes"), str(tmp_path / name), "--model", "scenes", *options]
        run = maskrcnn_command(*command, "--shard-images", "2", cluster=cluster)
        assert run.returncode == 0, run.stderr
        assert "knows only generated" in run.stderr
    assert parts(tmp_path / "two") == parts(tmp_path / "here")
    assert maskrcnn.open_run(str(tmp_path / "here")).instances().num_rows > 0


def test_another_configuration_is_refused_with_what_differs(images: Path, undisturbed: Path) -> None:
    run = maskrcnn_command(
        "segment", str(images), str(undisturbed), "--model", "planted", "--min-score", "0.5"
    )
    assert run.returncode == 2
    assert "min-score: planned 0.05, now 0.5" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_export_and_gc(undisturbed: Path, tmp_path: Path) -> None:
    for form in ("coco", "csv", "png-masks"):
        run = maskrcnn_command("export", str(undisturbed), str(tmp_path / form), "--format", form)
        assert run.returncode == 0, run.stderr
        assert any((tmp_path / form).rglob("*.*"))
    before = maskrcnn.open_run(str(undisturbed)).instances()
    assert maskrcnn_command("gc", str(undisturbed)).returncode == 0
    assert not (undisturbed / "shards").exists()
    assert maskrcnn.open_run(str(undisturbed)).instances().equals(before)
    assert isinstance(before, pa.Table)


def test_a_run_on_ray_stops_when_its_time_is_up_and_can_be_continued(
    images: Path, tmp_path: Path, ray_cluster: LocalCluster
) -> None:
    output = tmp_path / "run"
    command = ["segment", str(images), str(output), "--actors", "1", "--shard-images", "16", "--model"]
    # Four shards of 16 images that take half a second each last longer than this cap, start of Ray apart.
    capped = [*command, "planted:0.5", "--max-hours", "0.002"]
    stopped = maskrcnn_command(*capped, cluster=ray_cluster)
    assert stopped.returncode == 3, stopped.stderr
    assert "--max-hours 0.002 is reached with " in stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr
    before = set((output / "receipts").glob("*.json"))
    assert len(before) < 4
    status = json.loads(maskrcnn_command("status", str(output), "--json").stdout)
    assert status["shards_done"] == len(before)
