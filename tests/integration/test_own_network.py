"""A network of the user's own on a real Ray, whose workers get its code from the command."""

import json
from pathlib import Path

import pytest
from commandline import maskrcnn_command, parts
from local import LocalCluster
from own_networks import write_package
from planted_images import write_planted

pytestmark = pytest.mark.ray
WRONG = """
import maskrcnn

class Wrong(maskrcnn.PlantedSegmenter):
    def outcomes(self, images): return None

def build(options): return Wrong()
"""


def test_its_code_reaches_the_actors(tmp_path: Path, ray_cluster: LocalCluster) -> None:
    write_package(tmp_path)
    write_planted(tmp_path / "photos", 6, seed=4)
    options = ["--model-arg", "depth=50", "--shard-images", "2", "--json"]
    command = ["segment", "photos", "--model", "nets.pets:build", *options]
    there = maskrcnn_command(*command, "there", "--actors", "2", cwd=tmp_path, cluster=ray_cluster)
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout)["failed"] == 0
    wrong = ["segment", "photos", "wrong", "--model", "nets.wrong:build", "--shard-images", "2"]
    (tmp_path / "nets" / "wrong.py").write_text(WRONG)
    stopped = maskrcnn_command(*wrong, "--actors", "2", cwd=tmp_path, cluster=ray_cluster)
    assert stopped.returncode == 2, stopped.stderr
    assert stopped.stderr.splitlines()[-1].startswith(
        "error: --model nets.wrong:build: its `outcomes` returned None"
    )
    here = maskrcnn_command(*command, "here", "--no-ray", cwd=tmp_path)
    assert here.returncode == 0, here.stderr
    assert parts(tmp_path / "there") == parts(tmp_path / "here")
