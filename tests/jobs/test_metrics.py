"""Metrics of a run: what Ray exports for Prometheus is what the run counted."""

import json
import re
import time
import urllib.request
from collections import Counter
from pathlib import Path

import duckdb
import pytest
from commandline import maskrcnn_command
from hypothesis import given
from hypothesis import strategies as st
from local import LocalCluster
from maskrcnn_jobs.driver.metrics import METRICS, NAME_CHARACTERS, exported_name, output_tag
from planted_images import write_planted
from prometheus_client.parser import text_string_to_metric_families


def exported(address: str, output: str) -> dict[str, Counter[str]]:
    """Return the metrics of a run by their exported name, and by the tag that they have besides `output`."""
    with urllib.request.urlopen(address, timeout=30) as response:
        text = response.read().decode()
    found: dict[str, Counter[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("output") == output:
                tags = [sample.labels[tag] for tag in ("status", "code", "stage") if tag in sample.labels]
                found.setdefault(sample.name, Counter())["".join(tags)] += sample.value
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_the_sums_of_the_metrics_are_the_counts_of_the_run(tmp_path: Path, ray_cluster: LocalCluster) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write_planted(images, 12, seed=1)
    (images / "empty.png").write_bytes(b"")
    (images / "page.png").write_bytes(b"<html>")
    (images / "page2.png").write_bytes(b"<html>")
    request = (
        str(images),
        str(out),
        "--model",
        "planted",
        "--shard-images",
        "4",
        "--actors",
        "1",
        "--device",
        "cpu",
    )
    planned = maskrcnn_command("plan", *request, "--measure", "4", "--json", cluster=ray_cluster)
    assert planned.returncode == 0, planned.stderr
    forecast = json.loads(planned.stdout)["forecast"]
    assert 0 < forecast["cpu_use"] <= 1, "the actor reports it"
    run = maskrcnn_command(
        *("segment", *request, "--price", "3600/h", "--max-failure-rate", "1"), cluster=ray_cluster
    )
    assert run.returncode == 0, run.stderr
    counts = json.loads((out / "_SUCCESS").read_text())["counts"]
    # What the driver has not passed on yet, Ray passes on when the driver disconnects.
    for _ in range(20):
        metrics = exported(ray_cluster.nodes[0].metrics, output_tag(str(out)))
        if sum(metrics.get("ray_maskrcnn_images_total", {}).values()) == counts["images"]:
            break
        time.sleep(0.5)
    statuses = {name: counts[name] for name in ("ok", "empty", "failed") if counts[name]}
    assert metrics["ray_maskrcnn_images_total"] == statuses
    assert metrics["ray_maskrcnn_instances_total"] == {"": counts["instances"]}
    table = f"read_parquet('{out}/images/*.parquet')"
    errors = dict(
        duckdb.sql(f"SELECT error, count(*) FROM {table} WHERE error IS NOT NULL GROUP BY 1").fetchall()
    )
    assert metrics["ray_maskrcnn_failures_total"] == errors == {"empty_file": 1, "not_an_image": 2}
    [[sizes]] = duckdb.sql(f"SELECT sum(bytes) FROM {table} WHERE error IS NULL").fetchall()
    assert metrics["ray_maskrcnn_input_bytes_total"] == {"": sizes}
    stages: Counter[str] = Counter()
    for receipt in (out / "receipts").iterdir():
        stages.update(json.loads(receipt.read_text())["timings"])
    assert metrics["ray_maskrcnn_stage_seconds_total"] == pytest.approx(stages)
    assert metrics["ray_maskrcnn_shards_left"] == metrics["ray_maskrcnn_images_left"] == {"": 0}
    assert metrics["ray_maskrcnn_actors_ready"] == {"": 0}, "they have ended"
    assert metrics["ray_maskrcnn_cost"][""] > 0
    assert metrics["ray_maskrcnn_images_per_second_forecast"] == {"": forecast["images_per_s"]}
    assert set(metrics) <= set(map(exported_name, METRICS))
    assert set(map(exported_name, METRICS)) - set(metrics) == {"ray_maskrcnn_store_retries_total"}, (
        "no request failed"
    )


def test_names_follow_the_rules_of_prometheus() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"maskrcnn_[a-z_]+", name)
        assert not name.endswith("_total"), "Ray appends it"
        assert metric.tag in (None, "status", "code", "stage"), "sets of few values"


@given(st.text(), st.text())
def test_the_tag_of_a_run_is_short_and_its_own(first: str, second: str) -> None:
    """Prometheus stores a series for each value; the directory itself may be long, and differ in its beginning."""
    tags = [output_tag(f"s3://bucket/{name}/out") for name in (first, second)]
    for tag in (*tags, output_tag(first)):
        assert re.fullmatch(rf"[A-Za-z0-9_.-]{{0,{NAME_CHARACTERS}}}-[0-9a-f]{{6}}", tag)
    assert (tags[0] == tags[1]) == (first == second)
