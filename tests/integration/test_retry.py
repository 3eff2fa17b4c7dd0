"""`maskrcnn retry` on a real Ray, from the command line: what was repaired is found, and the rest stands as it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from commandline import parts
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver.cluster import connected
from planted_images import write_planted

import maskrcnn
from maskrcnn.config import ResourceConfig
from maskrcnn.results.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("_ray")]

N = 40
SPOILT = {3: b"", 4: b"<html>gone</html>", 17: b"", 25: b"\x89PNG\r\n\x1a\n", 39: b"<html>gone</html>"}


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """One Ray for all commands that are run in this process."""
    with connected("local", ResourceConfig()):
        yield


def command(*arguments: str) -> Result:
    """Run a command on the Ray of this process."""
    return CliRunner().invoke(main, [*arguments])


def write_collection(folder: Path, *, spoilt: bool) -> list[Path]:
    """Write planted images and their manifest; the same ones, but for those that are spoilt."""
    write_planted(folder, N, seed=21)
    files = sorted(folder.glob("*.png"))
    (folder / "manifest.csv").write_text("uri\n" + "".join(f"{path.name}\n" for path in files))
    for row, content in SPOILT.items() if spoilt else ():
        files[row].write_bytes(content)
    return files


def segment(folder: Path, output: Path, *more: str) -> Result:
    return command(
        "segment",
        str(folder / "manifest.csv"),
        str(output),
        "--model",
        "planted",
        "--shard-images",
        "8",
        *more,
    )


def repair(folder: Path, files: list[Path], *rows: int) -> None:
    """Put the sound files in the place of spoilt ones."""
    write_collection(folder / "sound", spoilt=False)
    for row in rows:
        shutil.copy(folder / "sound" / files[row].name, files[row])


def failed(run: Run) -> dict[int, str]:
    return {row: code for row, code in enumerate(run.images()["error"].to_pylist()) if code}


def test_a_retry_ends_where_a_run_over_the_repaired_files_ends(tmp_path: Path) -> None:
    folder, output = tmp_path / "images", tmp_path / "run"
    files = write_collection(folder, spoilt=True)
    assert segment(folder, output, "--actors", "1").exit_code == 1
    codes = failed(maskrcnn.open_run(str(output)))
    assert sorted(codes) == sorted(SPOILT)

    # Only some of them, one of which is not repaired.
    repair(folder, files, 3, 4, 25, 39)
    first = command("retry", str(output), "--only", "empty_file, truncated", "--actors", "1")
    assert first.exit_code == 1, first.stderr
    left = {row: code for row, code in codes.items() if row not in (3, *_of(codes, "truncated"))}
    assert failed(maskrcnn.open_run(str(output))) == left

    # All the others; then there is nothing left but what nobody repaired.
    second = command(
        "retry", str(output), "--max-failure-rate", "0.1", "--json", "--actors", "2", "--coco", "always"
    )
    assert second.exit_code == 0, second.stderr
    assert json.loads(second.stdout)["failed"] == 1
    repair(folder, files, 17)
    assert command("retry", str(output), "--actors", "1").exit_code == 0
    nothing = command("retry", str(output))
    assert (nothing.exit_code, nothing.stdout) == (0, "nothing to retry\n")

    assert segment(folder, tmp_path / "whole", "--actors", "1").exit_code == 0
    retried, whole = maskrcnn.open_run(str(output)), maskrcnn.open_run(str(tmp_path / "whole"))
    place = ["bytes", "etag"]
    assert retried.images().drop_columns(place) == whole.images().drop_columns(place)
    assert retried.instances() == whole.instances()
    assert retried.stats == whole.stats
    for name in ("instances", "results_segm", "results_bbox"):
        path = Path("coco") / f"{name}.json"
        ours, theirs = (json.loads((out / path).read_text()) for out in (output, tmp_path / "whole"))
        assert ours == theirs if name != "instances" else ours["annotations"] == theirs["annotations"]
    assert retried.success["generation"] == 4

    # The tables are made again, byte for byte; after gc they stand, and nothing is retried.
    before = parts(output)
    assert command("reduce", str(output)).exit_code == 0
    assert parts(output) == before
    collected = command("gc", str(output))
    assert "files in shards/" in collected.stdout
    refused = command("retry", str(output))
    assert refused.exit_code == 2
    assert "`maskrcnn gc` removes" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert parts(output) == before


def _of(codes: dict[int, str], code: str) -> list[int]:
    return [row for row, found in codes.items() if found == code]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("again", ["retry", "segment"])
def test_a_retry_that_is_killed_is_continued_by_either_command(
    again: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, output = tmp_path / "images", tmp_path / "run"
    files = write_collection(folder, spoilt=False)
    for path in files:
        path.write_bytes(b"")
    slow = [str(folder / "manifest.csv"), str(output), "--model", "planted:0.1", "--actors", "1"]
    assert command("segment", *slow, "--shard-images", "5").exit_code == 1
    standing = parts(output)
    repair(folder, files, *range(N))
    driver = subprocess.Popen(
        [sys.executable, "-m", "maskrcnn_jobs", "retry", str(output), "--actors", "1"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((output / "receipts").glob("2-*")):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    first = {path.name for path in (output / "receipts").glob("2-*")}
    assert 1 <= len(first) < 8
    reported = command("status", str(output))
    assert reported.exit_code == 3
    assert "retry (generation 2)" in reported.stdout
    assert parts(output) == standing, "until the retry is finished, the tables stand"
    assert command("gc", str(output)).exit_code == 3

    finish = ["retry", str(output), "--only", "timeout"] if again == "retry" else ["segment", *slow]
    continued = command(*finish, *(["--actors", "1"] if again == "retry" else []))
    assert continued.exit_code == 0, continued.stderr
    if again == "retry":
        assert "it keeps the images that it was planned with" in caplog.text
    assert first <= {path.name for path in (output / "receipts").glob("2-*")}
    run = maskrcnn.open_run(str(output))
    assert (run.success["generation"], failed(run)) == (2, {})
    ground_truth = json.loads((folder / "sound" / "instances.json").read_text())
    assert run.instances().num_rows == len(ground_truth["annotations"])
    assert command("status", str(output)).exit_code == 0
