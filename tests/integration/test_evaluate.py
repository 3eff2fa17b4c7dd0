"""`maskrcnn evaluate` by Ray tasks says what it says in one process."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commandline import maskrcnn_command
from evaluated_runs import CarelessSegmenter, finish
from local import LocalCluster
from planted_images import write_planted


@pytest.mark.ray
def test_by_ray_tasks_the_numbers_and_the_table_are_the_same(tmp_path: Path) -> None:
    write_planted(tmp_path / "images", 25, seed=6)
    (tmp_path / "images" / "instances.json").rename(tmp_path / "ground_truth.json")
    finish(tmp_path / "run", str(tmp_path / "images"), CarelessSegmenter())
    assert len(list((tmp_path / "run" / "instances").iterdir())) > 2

    def evaluated(*options: str) -> tuple[dict[str, Any], Any]:
        arguments = ["evaluate", "run", "--truth", "ground_truth.json", "--json", *options]
        result = maskrcnn_command(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert ("starting Ray" in result.stderr) == bool(options)
        return json.loads(result.stdout), pq.read_table(tmp_path / "run" / "evaluation" / "images.parquet")

    assert evaluated("--address", "local") == evaluated()


@pytest.mark.ray
def test_a_faulty_annotation_is_left_out_and_reported_in_one_line(
    tmp_path: Path, ray_cluster: LocalCluster
) -> None:
    write_planted(tmp_path / "images", 6, seed=6)
    ground_truth = json.loads((tmp_path / "images" / "instances.json").read_text())
    ground_truth["annotations"][0]["segmentation"]["counts"] += "1"
    (tmp_path / "ground_truth.json").write_text(json.dumps(ground_truth))
    (tmp_path / "images" / "instances.json").unlink()
    finish(tmp_path / "run", str(tmp_path / "images"), CarelessSegmenter())
    arguments = ["-q", "evaluate", "run", "--truth", "ground_truth.json"]
    result = maskrcnn_command(*arguments, cwd=tmp_path, cluster=ray_cluster)
    assert result.returncode == 0, result.stderr
    assert "mask whose run lengths are damaged (1): annotation 1" in result.stderr
    assert result.stderr.count("\n") == 1
