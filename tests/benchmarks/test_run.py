"""`maskrcnn bench`: its options, its rows, and that it refuses to compare what differs."""

import doctest
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from maskrcnn_jobs.driver.planning import Request, prepare

from benchmarks import baselines, run, suites, suites_ray
from benchmarks.inputs import write_manifest, write_photos
from benchmarks.measure import Pairs, Row, Settings, row
from benchmarks.run import main
from benchmarks.suites_ray import MapRun, Slope, Span
from maskrcnn.config import InferenceConfig
from maskrcnn.errors import RunError, UsageError
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.models.model import load_model
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.pipeline.worker import ShardWorker

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    level = logging.getLogger("maskrcnn").level
    yield
    logging.getLogger("maskrcnn").setLevel(level)


def sections(monkeypatch: pytest.MonkeyPatch, *rows: Row) -> None:
    monkeypatch.setattr(run, "SECTIONS", {"one": lambda _settings: iter(rows), "two": lambda _settings: []})


def test_the_examples_hold() -> None:
    assert doctest.testmod(suites_ray).failed == 0


# --- the command ---


def test_masks_are_measured_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "AT_LEAST_S", 0.0)
    target = tmp_path / "bench.json"
    command = ["--only", "masks", "--quick", "--repeats", "2", "--json", str(target)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("section")
    assert "python 3" in result.stdout
    content = json.loads(target.read_text())
    assert content["settings"]["repeats"] == 2
    assert {one["equal"] for one in content["rows"]} == {"bytes"}
    assert all(one["min"] <= one["ratio"] <= one["max"] for one in content["rows"])


def test_a_difference_is_one_line_and_exit_code_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "paste_and_encode", lambda *_arguments: ())
    result = CliRunner().invoke(main, ["--only", "masks", "--quick"])
    assert result.exit_code == 3
    assert "results differ" in result.stderr
    assert "ratio" not in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "mask"], "the sections are masks"),
        (["--only", ","], "the sections are masks"),
        (["--images", "no-such-folder"], "no folder"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_sections_are_chosen_by_name_in_their_own_order() -> None:
    assert list(run.chosen_sections("job, masks")) == ["masks", "job"]
    assert list(run.chosen_sections(None)) == list(run.SECTIONS)


def test_rows_of_all_sections_are_printed_with_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sections(
        monkeypatch, row("one", "a thing", Pairs((1.0,), (2.0,)), unit="s"), Row("one", "b", note="left out")
    )
    run.run_bench(None, None, images=None, model=None, s3=None, repeats=1, quick=True)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split() == "one a thing 1 2 s 2 2-2".split()
    assert printed[2].endswith("left out")
    assert "cores" in printed[-1]


# --- slopes and rates ---


def test_a_slope_leaves_the_start_out() -> None:
    small = MapRun(images=10, start_s=5, work_s=3, cpu_s=4, output="a")
    large = MapRun(images=30, start_s=7, work_s=7, cpu_s=6, output="b")
    assert suites_ray.slope_of(small, large) == Slope(wall_s=0.2, cpu_s=0.1, start_s=7, output="b")


def test_the_steady_rate_is_of_the_time_when_all_work() -> None:
    late = [Span(("n", 1), 0.0, 4.0, 40), Span(("n", 2), 2.0, 4.0, 20), Span(("n", 2), 4.0, 6.0, 20)]
    assert suites_ray.steady_rate(late) == 20.0


# --- photos ---


def test_the_users_photos_are_taken(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.JPG").touch()
    (tmp_path / "a.png").touch()
    (tmp_path / "notes.txt").touch()
    found = suites_ray.photos_of(Settings(tmp_path, images=tmp_path), (4, 4), 2)
    assert [path.name for path in found] == ["a.png", "b.JPG"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="holds no"):
        suites_ray.photos_of(Settings(tmp_path, images=tmp_path / "none"), (4, 4), 2)


def test_decoding_alone_is_timed_without_reading(tmp_path: Path) -> None:
    paths = [str(path) for path in write_photos(tmp_path, 2, (48, 64))]
    wall_s, cpu_s = suites_ray.decode_files(paths)
    assert wall_s > 0
    assert cpu_s >= 0
    suites_ray.keep_freed_memory()


# --- the whole job, with workers in this process ---


def mapped_here(manifest: Path, output: Path, compute: InferenceConfig, shard_images: int) -> None:
    """Do what the actors of a map stage do."""
    plan = prepare(Request(str(manifest), str(output), compute, shard_images))
    segmenter = MaskRCNNSegmenter(load_model(compute.model), max_detections=compute.max_detections)
    limits = Limits(10**9, 10**9, float(segmenter.max_side))
    worker = ShardWorker(Storage(str(output)), segmenter, limits, {"node": "here", "pid": 1})
    for shard in plan.pending([]):
        worker.run_shard(shard)


def job_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, limit: int = 100) -> list[Row]:
    def run_job(
        settings: Settings, images: list[Path], count: int, compute: InferenceConfig, shard_images: int
    ) -> Slope:
        manifest = write_manifest(settings.folder / "m.csv", images, 3 * count)
        mapped_here(
            manifest,
            settings.folder / "out",
            InferenceConfig(compute.model, max_detections=limit),
            shard_images,
        )
        return Slope(0.5, 0.5, 1.0, str(settings.folder / "out"))

    monkeypatch.setattr(suites_ray, "run_job", run_job)
    monkeypatch.setattr(suites_ray, "forward_alone", lambda *_arguments: 0.4)
    return list(suites_ray.job(Settings(tmp_path, repeats=1, quick=True)))


def test_the_job_is_compared_with_stock_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, forward = job_rows(tmp_path, monkeypatch)
    assert stock.ratio is not None
    assert "instances, 0 ties" in stock.equal
    assert forward.ratio == pytest.approx(0.8)
    spans = suites_ray.shard_spans(tmp_path / "out")
    assert {(span.actor, span.images) for span in spans} == {(("here", 1), 1)}
    suites_ray.check_all_images(tmp_path / "out", [(240, 320)], 6)
    for sizes, count in ([(240, 320)], 7), ([(240, 321)], 6):
        with pytest.raises(RunError, match=r"did not bring . images through"):
            suites_ray.check_all_images(tmp_path / "out", sizes, count)


def test_a_job_that_finds_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="the job and stock torchvision differ"):
        job_rows(tmp_path, monkeypatch, limit=3)


@pytest.mark.ray
@pytest.mark.sampled(1)
@pytest.mark.parametrize(("section", "count"), [("pipeline", 3), ("scaling", 1)])
def test_job_baseline_and_scaling_run_on_a_real_ray(section: str, count: int, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    options = ["--only", section, "--quick", "--repeats", "1", "--json", str(target)]
    run = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads(target.read_text())["rows"]
    assert [one["section"] for one in rows] == [section] * count
    assert all(one["ratio"] is not None for one in rows)
