"""`maskrcnn plan --measure`: a sample is computed as the run would be, discarded, and says what the run will take."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver import measure
from maskrcnn_jobs.driver.sample import sample_rows
from maskrcnn_jobs.driver.where_to_run import usable_cpus
from planted_images import write_planted

from maskrcnn.io.parquet import File
from maskrcnn.pipeline.plan import Plan
from maskrcnn.pipeline.receipts import Receipt
from maskrcnn.synthetic.scenes import write_mosaic

SLEEP_S = 0.02


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def forecast_of(*arguments: object) -> dict[str, object]:
    result = command("plan", *arguments, "--no-ray", "--json")
    assert result.exit_code == 0, result.output
    forecast: dict[str, object] = json.loads(result.stdout)["forecast"]
    return forecast


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 planted images, of which ten are broken."""
    folder = tmp_path_factory.mktemp("photos")
    write_planted(folder, 30, seed=9)
    for number in range(10):
        (folder / f"broken-{number}.jpg").write_text("<html>")
    return folder


def test_a_forecast_follows_from_the_sample(photos, tmp_path):
    sample = 20
    forecast = forecast_of(
        photos, tmp_path / "out", "--model", f"planted:{SLEEP_S}", "--measure", sample, "--price", "36/h"
    )
    assert (forecast["images"], forecast["sampled"], forecast["actors"]) == (40, sample, 1)
    assert forecast["failed_of_sample"] == sample // 4  # formats are sampled by their share
    assert forecast["bottleneck"] in ("network", "fetch", "decode")
    # A network that sleeps is not faster on any machine; half of an image's time may be another's.
    assert forecast["images_per_s"] <= 40 / 30 * usable_cpus() / SLEEP_S
    assert forecast["eta_s"] > forecast["start_s"] + 40 / forecast["images_per_s"]
    assert forecast["shard_s"] == pytest.approx(16 * 40 / 48 / forecast["images_per_s"], rel=0.02, abs=0.06)
    assert 0 < forecast["cpu_use"] <= 1
    assert forecast["gpu_use"] is None, "there is none"
    assert forecast["requests"] == {"GET": 0, "LIST": 0, "PUT": 0}, "files are no objects"
    assert forecast["cost"] == pytest.approx(forecast["eta_s"] / 100, abs=1e-3)
    assert forecast["input_bytes"] == sum(
        path.stat().st_size for path in photos.iterdir() if path.suffix != ".json"
    )


@pytest.mark.slow
def test_measuring_leaves_nothing_but_the_plan_and_the_run_continues_it(photos, tmp_path):
    options = (photos, tmp_path / "measured", "--model", "planted")
    forecast_of(*options, "--measure", 8)
    assert command("plan", photos, tmp_path / "planned", "--model", "planted").exit_code == 0
    assert files_of(tmp_path / "measured").keys() == files_of(tmp_path / "planned").keys() | {"forecast.json"}
    for output in ("measured", "planned"):
        run = command("segment", photos, tmp_path / output, "--model", "planted", "--no-ray")
        assert run.exit_code == 1  # a quarter of the images is broken
    measured, planned = files_of(tmp_path / "measured"), files_of(tmp_path / "planned")
    tables = [name for name in measured if name.startswith(("images/", "instances/"))]
    assert len(tables) == 2
    assert all(measured[name] == planned[name] for name in tables)


@pytest.mark.slow
def test_only_what_is_left_is_forecast(photos, tmp_path):
    options = (photos, tmp_path / "out", "--model", "planted", "--shard-images", 10)
    assert command("plan", *options).exit_code == 0
    stopped = command("segment", *options, "--no-ray", "--max-hours", 1e-9)
    assert stopped.exit_code == 3
    assert forecast_of(*options, "--measure", 4)["images"] == 40
    assert command("segment", *options, "--no-ray").exit_code == 1
    assert forecast_of(*options, "--measure", 4)["images"] == 0


@pytest.mark.slow
def test_windows_are_measured_as_windows(tmp_path):
    write_mosaic(tmp_path / "raster", 2, 2, seed=1, size=128)
    (tmp_path / "raster" / "instances.json").unlink()
    forecast = forecast_of(
        *(tmp_path / "raster", tmp_path / "out", "--model", "scenes", "--window", 64),
        *("--overlap", 0, "--shard-images", 4, "--measure", 4),
    )
    assert forecast["windows"] == 16
    assert forecast["sampled"] == 16  # a shard is a tile of a raster, and this raster is one
    assert forecast["windows_per_s"] > 0


@pytest.mark.slow
def test_a_person_reads_rate_limit_and_time(photos, tmp_path):
    result = command("plan", photos, tmp_path / "out", "--model", "planted:0.05", "--measure", 8, "--no-ray")
    assert result.exit_code == 0
    assert "measured 8 images in" in result.stdout
    assert "limited by the " in result.stdout
    assert "% of the CPUs; requests to stores to come: none" in result.stdout
    assert "from the command to the end:" in result.stdout.splitlines()[-1]


def test_settings_are_compared_by_measuring_each(photos, tmp_path):
    options = (photos, tmp_path / "out", "--model", f"planted:{SLEEP_S}", "--measure", 8, "--no-ray")
    compare = ("--compare", "batch-size=1,2", "--compare", "threads=1")
    facts = json.loads(command("plan", *options, *compare, "--json").stdout)
    assert [(row["batch_size"], row["threads"]) for row in facts["compared"]] == [(1, 1), (2, 1)]
    rates = [row["images_per_s"] for row in facts["compared"]]
    assert facts["forecast"]["images_per_s"] == max(rates)
    text = command("plan", *options, *compare).stdout
    assert "the fastest: --batch-size" in text


@pytest.mark.slow
def test_shards_follow_the_measured_pace_where_machines_are_taken_away(photos, tmp_path, caplog):
    options = (photos, tmp_path / "out", "--model", f"planted:{SLEEP_S}")
    assert command("plan", *options, "--reclaim-minutes", 0.06).exit_code == 0
    plan = tmp_path / "out" / "plan.json"
    assert json.loads(plan.read_text())["shard_images"] == 1  # of at most 0.072 s, if an image takes 2 s
    measured = (*options, "--no-ray", "--json", "--measure", 20, "--reclaim-minutes")
    for minutes in (0.06, 6):
        facts = json.loads(command("plan", *measured, minutes).stdout)
        image_s = facts["forecast"]["actors"] / facts["forecast"]["images_per_s"]
        assert json.loads(plan.read_text())["shard_images"] == facts["shard_images"]
        by_pace = 60 * minutes / 50 / image_s
        assert facts["shard_images"] == pytest.approx(min(by_pace, 16), rel=0.01, abs=1)
        assert facts["shards"] == math.ceil(40 / facts["shard_images"])
        assert facts["forecast"]["shard_s"] <= 60 * minutes / 50 + 0.1
    run = command("segment", *options, "--no-ray", "--reclaim-minutes", 0.06)
    assert run.exit_code == 1  # a quarter of the images is broken, and a run that is planned keeps its shards
    assert len(list((tmp_path / "out" / "receipts").iterdir())) == 3
    assert json.loads(command("plan", *measured, 0.06).stdout)["shard_images"] == 16
    assert "the run has begun: its shards keep their 16 images" in caplog.messages


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--reclaim-minutes", "0"], "--reclaim-minutes must be above 0, not 0"),
        (["--reclaim-minutes", "nan"], "--reclaim-minutes must be above 0, not nan"),
        (["--reclaim-minutes", "9", "--shard-images", "3"], "leave out --shard-images"),
        (["--price", "2/h"], "add --measure"),
        (["--compare", "threads=1,2"], "add --measure"),
        (
            ["--measure", "5", "--compare", "threads=0"],
            "numbers from 1, as in batch-size=1,4,8, not 'threads=0'",
        ),
        (["--measure", "5", "--compare", "dtype=float16"], "takes actors, batch-size, threads"),
        (["--measure", "0"], "0 is not in the range"),
        (["--measure", "5", "--price", "2"], "a unit of time"),
        (["--measure", "5", "--actors", "2", "--no-ray"], "without actors"),
    ],
)
def test_what_cannot_be_forecast_is_refused_before_anything_is_written(photos, tmp_path, options, why):
    refused = command("plan", photos, tmp_path / "out", "--model", "planted", *options)
    assert refused.exit_code == 2
    assert why in refused.output.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def receipt(number: int, waited_s: float, device: str) -> Receipt:
    """Return the receipt of a shard of ten images that took ten seconds."""
    file = File("", "", 100, 10)
    timings = dict.fromkeys(("fetch", "decode", "model", "encode", "write"), 0.0)
    timings |= {"wall": 10.0, "wait": waited_s}
    counts = {"ok": 10, "empty": 0, "failed": 0, "instances": 20}
    execution = {"node": "a", "pid": 1, "device": device}
    return Receipt(
        *(f"1-{number:08d}", "a", 10 * number, 10 * number + 10, file, file, counts, {}, timings, execution)
    )


@given(st.lists(st.floats(0, 10), min_size=3, max_size=6), st.sampled_from(["cpu", "cuda:0"]))
def test_a_gpu_is_used_while_the_network_does_not_wait(waited: list[float], device: str) -> None:
    """The first shard does not count: the model warmed up, and nothing had been fetched ahead."""
    plan = Plan(1, 100, 10, "", "", "")
    receipts = [receipt(number, seconds, device) for number, seconds in enumerate(waited)]
    forecast = measure._forecast(
        receipts, plan, 100, 1, 60.0, 1.0, None, measure._Used([], 0, in_store=False)
    )
    share = None if device == "cpu" else pytest.approx(1 - sum(waited[1:]) / (10 * (len(waited) - 1)))
    assert forecast.gpu_use == share
    assert forecast.cpu_use is None, "no worker reported its CPU time"


rows = st.lists(
    st.tuples(st.sampled_from([".jpg", ".png", ".PNG", ""]), st.none() | st.integers(0, 10**9)), min_size=1
)


@given(rows, st.integers(1, 50))
def test_a_sample_has_each_format_by_its_share(collection, count):
    names = [f"{number}{suffix}" for number, (suffix, _) in enumerate(collection)]
    sizes = pa.array([size for _, size in collection], pa.int64())
    chosen = sample_rows(pa.table({"name": names, "bytes": sizes}), count)
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) == min(count, len(names))
    for suffix in (".jpg", ".png", ""):
        has = [kind.lower() == suffix for kind, _ in collection]
        share = sum(has) * len(chosen) / len(names)
        assert abs(sum(has[row] for row in chosen) - share) <= 1
