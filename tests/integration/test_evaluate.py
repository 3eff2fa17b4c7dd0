"""`maskrcnn evaluate`, `verify` and `diff` by Ray tasks say what they say in one process."""

import functools
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commandline import maskrcnn_command
from evaluated_runs import CarelessSegmenter, finish
from local import LocalCluster
from planted_images import write_planted

import maskrcnn
from maskrcnn.synthetic.planted import PlantedSegmenter


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
def test_parts_are_verified_and_compared_by_ray_tasks(tmp_path: Path, ray_cluster: LocalCluster) -> None:
    write_planted(tmp_path / "images", 12, seed=6)
    (tmp_path / "images" / "instances.json").unlink()
    finish(tmp_path / "a", str(tmp_path / "images"), CarelessSegmenter())
    finish(tmp_path / "b", str(tmp_path / "images"), PlantedSegmenter())
    runs = [str(tmp_path / name) for name in "ab"]
    facts = maskrcnn.diff(*runs, output=str(tmp_path / "here"))
    by_ray = functools.partial(maskrcnn_command, cwd=tmp_path, cluster=ray_cluster)
    verified = by_ray("verify", "a", "--json", "--address", ray_cluster.address)
    assert json.loads(verified.stdout) == maskrcnn.verify(runs[0]).to_json(), verified.stderr
    compared = by_ray("diff", "a", "b", "--json", "--output", "there", "--address", ray_cluster.address)
    assert json.loads(compared.stdout) == facts | {"a": "a", "b": "b"}, compared.stderr
    for name in ("diff.parquet", "images.parquet"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


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
