"""The benchmark of all stages: what it measures of a command, and the growth that its table shows."""

import json
import sys
from pathlib import Path

import pytest
from planted_images import write_planted

from benchmarks.scale import BROKEN_EVERY, DISTINCT, Sample, measure, table, write_sample


@pytest.mark.slow
def test_the_memory_and_cpu_time_of_a_command_are_measured() -> None:
    code = "import time; held = bytearray(150 * 2**20); began = time.process_time()\n"
    code += "while time.process_time() < began + 0.5: pass"
    figures = measure([sys.executable, "-c", code])
    assert 150 <= figures["driver_mb"] < 250
    assert figures["cpu_s"] >= 0.5
    assert figures["task_mb"] == 0


def test_a_command_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        measure([sys.executable, "-c", "raise SystemExit(3)"])


def test_growth_is_the_ratio_to_the_size_before() -> None:
    line = {"stage": "verify", "wall_s": 1.0, "driver_mb": 100, "task_mb": 0}
    lines = [line | {"images": 10, "cpu_s": 2.0}, line | {"images": 100, "cpu_s": 5.0, "driver_mb": 130}]
    header, first, second = table(lines, [10, 100]).splitlines()
    assert header.split()[-5:] == ["CPU", "grows", "driver", "MB", "grows"]
    assert first.split() == ["verify", "10", "2", "1", "100", "0"]
    assert second.split() == ["verify", "100", "5", "1", "130", "0", "2.50", "1.30"]


@pytest.mark.slow
def test_a_collection_and_its_ground_truth_name_the_same_images(tmp_path: Path) -> None:
    write_planted(tmp_path / "images", DISTINCT, seed=0)
    sample = Sample(tmp_path / "sample", 2 * BROKEN_EVERY)
    write_sample(tmp_path / "images", sample)
    header, *rows = sample.manifest.read_text().splitlines()
    ground_truth = json.loads(sample.ground_truth.read_text())
    assert header == "uri,name"
    assert [row.partition(",")[2] for row in rows] == [image["file_name"] for image in ground_truth["images"]]
    assert sum("broken.png" in row for row in rows) == 2
    of_pool = json.loads((tmp_path / "images" / "instances.json").read_text())["annotations"]
    expected = [a["segmentation"] for a in of_pool if a["image_id"] <= len(rows)]
    assert [a["segmentation"] for a in ground_truth["annotations"]] == expected
