"""The job on a cluster of three nodes, and through Ray Jobs; all nodes on this machine."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commandline import maskrcnn_command, parts

import maskrcnn
from maskrcnn.planted import write_planted

pytestmark = pytest.mark.ray

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection") / "images"
    write_planted(folder, 96, seed=9)
    return folder


@pytest.fixture(scope="module")
def dashboard_and_address() -> Iterator[tuple[str, str]]:
    """A head without CPUs and two workers of one, by `ray start`, as a user starts them."""
    port, dashboard = free_port(), free_port()
    head = ["--head", "--port", str(port), "--dashboard-port", str(dashboard), "--num-cpus", "0"]
    worker = ["--address", f"127.0.0.1:{port}", "--num-cpus", "1"]
    with contextlib.ExitStack() as nodes:
        for arguments in (head, worker, worker):
            nodes.enter_context(node(*arguments))
        yield f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"


@contextlib.contextmanager
def node(*arguments: str) -> Iterator[None]:
    """Start a node, and end it and what belongs to it; `ray stop` would end every Ray on this machine."""
    here = [
        "--node-ip-address",
        "127.0.0.1",
        "--disable-usage-stats",
        "--object-store-memory",
        str(100 * 2**20),
    ]
    process = subprocess.Popen(
        [RAY, "start", *arguments, *here, "--block"],
        env=os.environ | TOKEN,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "--block" in line:
                break
        else:
            raise RuntimeError("".join(said))
        yield
    finally:
        # On SIGTERM a node first drains, for up to half a minute.
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for member in family:
            member.kill()
        process.communicate(timeout=60)


def test_three_nodes_give_the_bytes_of_one(
    dashboard_and_address: tuple[str, str], images: Path, tmp_path: Path
) -> None:
    _, address = dashboard_and_address
    alone = maskrcnn_command(
        "segment", str(images), str(tmp_path / "alone"), "--model", "planted", "--actors", "1"
    )
    assert alone.returncode == 0, alone.stderr
    command = ["segment", str(images), str(tmp_path / "spread"), "--model", "planted:0.02", "--device", "cpu"]
    spread = maskrcnn_command(*command, "--address", address, **TOKEN)
    assert spread.returncode == 0, spread.stderr
    receipts = [json.loads(path.read_text()) for path in (tmp_path / "spread" / "receipts").iterdir()]
    assert len({receipt["execution"]["pid"] for receipt in receipts}) == 2
    assert parts(tmp_path / "spread") == parts(tmp_path / "alone")


@pytest.mark.parametrize("way", ["maskrcnn submit", "ray job submit"])
def test_the_same_job_through_ray_jobs(
    way: str, dashboard_and_address: tuple[str, str], images: Path, tmp_path: Path
) -> None:
    dashboard, _ = dashboard_and_address
    job = ["segment", str(images), str(tmp_path / "run"), "--model", "planted", "--device", "cpu"]
    if way == "maskrcnn submit":
        run = maskrcnn_command("submit", "--address", dashboard, "--", *job, **TOKEN)
    else:
        entrypoint = [sys.executable, "-m", "maskrcnn_jobs", *job]
        run = subprocess.run(
            [RAY, "job", "submit", "--address", dashboard, "--", *entrypoint],
            capture_output=True,
            text=True,
            env=os.environ | TOKEN,
            timeout=300,
            check=False,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert maskrcnn.open_run(str(tmp_path / "run")).success["counts"]["images"] == 96


def test_a_cluster_that_is_not_there_is_one_clear_line(images: Path, tmp_path: Path) -> None:
    run = maskrcnn_command(
        "segment", str(images), str(tmp_path / "run"), "--model", "planted", "--device", "cpu",
        "--address", f"127.0.0.1:{free_port()}",
    )  # fmt: skip
    assert run.returncode == 3
    assert "cannot connect to Ray" in run.stderr
    assert "Traceback" not in run.stderr
