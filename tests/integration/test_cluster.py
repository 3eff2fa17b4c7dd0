"""The job on a cluster of three nodes, and through Ray Jobs; all nodes on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import maskrcnn_command, parts
from local import LocalCluster
from planted_images import write_planted
from ray_cluster import standing_cluster
from windowed import mosaic, write_geotiff

import maskrcnn

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent
RAY = str(BIN / "ray")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection") / "images"
    write_planted(folder, 96, seed=9)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head without CPUs and two workers of one, by `ray start`, as a user starts them."""
    with pytest.MonkeyPatch.context() as patch:
        # As in an environment that is activated: jobs find `maskrcnn` on the head's PATH.
        patch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
        with standing_cluster(nodes=3, cpus=1, head_cpus=0, dashboard=True) as started:
            yield started


def test_three_nodes_give_the_bytes_of_one(cluster: LocalCluster, images: Path, tmp_path: Path) -> None:
    alone = maskrcnn_command(
        "segment", str(images), str(tmp_path / "alone"), "--model", "planted", "--no-ray"
    )
    assert alone.returncode == 0, alone.stderr
    command = ["segment", str(images), str(tmp_path / "spread"), "--model", "planted:0.02", "--device", "cpu"]
    spread = maskrcnn_command(*command, "--address", cluster.address, **cluster.environment)
    assert spread.returncode == 0, spread.stderr
    receipts = [json.loads(path.read_text()) for path in (tmp_path / "spread" / "receipts").iterdir()]
    assert len({receipt["execution"]["pid"] for receipt in receipts}) == 2
    assert parts(tmp_path / "spread") == parts(tmp_path / "alone")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", ["maskrcnn submit", "ray job submit"])
def test_the_same_job_through_ray_jobs(way: str, cluster: LocalCluster, images: Path, tmp_path: Path) -> None:
    job = ["segment", str(images), str(tmp_path / "run"), "--model", "planted", "--device", "cpu"]
    if way == "maskrcnn submit":
        options = ("submit", "--address", cluster.dashboard, "--", "-q", "--log-format", "json")
        run = maskrcnn_command(*options, *job, **cluster.environment)
        assert '"event": "end", "exit_code": 0' in run.stdout, (
            "the job's log has the format that was asked for"
        )
    else:
        run = subprocess.run(
            [RAY, "job", "submit", "--address", cluster.dashboard, "--", "maskrcnn", *job],
            capture_output=True,
            text=True,
            env=os.environ | cluster.environment,
            timeout=300,
            check=False,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert maskrcnn.open_run(str(tmp_path / "run")).success["counts"]["images"] == 96


WITHOUT_THE_PACKAGE = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("maskrcnn", "maskrcnn_jobs"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
"""
ANOTHER_VERSION = """
from importlib import metadata

installed = metadata.version
metadata.version = lambda name: "0.0.9" if name == "maskrcnn-ray" else installed(name)
"""
WITHOUT_GEO = "import sys; sys.modules['rasterio'] = None"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("customize", "reason"),
    [
        (WITHOUT_THE_PACKAGE, "No module named 'maskrcnn_jobs'"),
        (ANOTHER_VERSION, "it has maskrcnn-ray 0.0.9, and the command has"),
        (WITHOUT_GEO, "need the extra geo"),
    ],
)
def test_a_node_that_cannot_run_actors_is_named_and_left_out(
    customize: str, reason: str, cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(customize)
    for number in range(4):
        write_geotiff(tmp_path / "images" / f"{number}.tif", mosaic(100, 100, 5, number))
    environment = dict(cluster.environment)
    cluster.environment["PYTHONPATH"] = str(tmp_path)
    try:
        node = cluster.add_node(cpus=1)
    finally:
        cluster.environment.pop("PYTHONPATH")
    try:
        run = maskrcnn_command(
            "segment", str(tmp_path / "images"), str(tmp_path / "run"), "--model", "planted-mosaic",
            "--window", "64", "--overlap", "16", "--shard-images", "1", "--device", "cpu",
            "--address", cluster.address, **environment,
        )  # fmt: skip
    finally:
        node.kill()
    assert run.returncode == 0, run.stderr
    assert [
        line
        for line in run.stderr.splitlines()
        if reason in line and line.endswith("; this node is left out")
    ]


def test_a_cluster_that_is_not_there_is_one_clear_line(images: Path, tmp_path: Path) -> None:
    run = maskrcnn_command(
        "segment", str(images), str(tmp_path / "run"), "--model", "planted", "--device", "cpu",
        "--address", "127.0.0.1:9",
    )  # fmt: skip
    assert run.returncode == 3
    assert "cannot connect to Ray" in run.stderr
    assert "Traceback" not in run.stderr
