"""The job from S3 to S3, on a real server: the same rows as from local files."""

from pathlib import Path

import pyarrow as pa
import pytest
from commandline import maskrcnn_command
from local import LocalCluster
from planted_images import write_planted

import maskrcnn
from maskrcnn.io.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.s3]


def comparable(images: pa.Table) -> pa.Table:
    """Without what names the place."""
    return images.drop_columns(["uri", "etag"])


@pytest.fixture
def local(tmp_path: Path) -> Path:
    write_planted(tmp_path / "images", 24, seed=8)
    (tmp_path / "images" / "sub folder").mkdir()
    (tmp_path / "images" / "planted-000001.png").rename(tmp_path / "images" / "sub folder" / "ä #1?.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"")
    return tmp_path / "images"


@pytest.mark.parametrize("server", ["weed_server", "moto_server"])
def test_s3_to_s3_gives_the_rows_of_local_files(
    server: str, local: Path, tmp_path: Path, request: pytest.FixtureRequest, ray_cluster: LocalCluster
) -> None:
    command = ["segment", str(local), str(tmp_path / "run"), "--model", "planted", "--no-ray"]
    here = maskrcnn_command(*command)
    assert here.returncode == 1, here.stderr
    prefix = request.getfixturevalue(server).prefix()
    bucket = Storage(f"{prefix}/images")
    for path in local.rglob("*"):
        if path.is_file():
            bucket.write(str(path.relative_to(local)), path.read_bytes())

    # The standing Ray reaches SeaweedFS alone.
    standing = ray_cluster if server == "weed_server" else None
    command = ["segment", f"{prefix}/images", f"{prefix}/run", "--model", "planted"]
    there = maskrcnn_command(*command, cluster=standing)
    assert there.returncode == 1, there.stderr
    assert "Traceback" not in there.stderr
    on_s3, on_disk = maskrcnn.open_run(f"{prefix}/run"), maskrcnn.open_run(str(tmp_path / "run"))
    assert comparable(on_s3.images()).equals(comparable(on_disk.images()))
    assert on_s3.instances().equals(on_disk.instances())
    assert on_s3.stats == on_disk.stats
    assert "ä #1?.png" in "".join(on_s3.images()["name"].to_pylist())
    assert Storage(f"{prefix}/run").list("probes") == []


def test_an_output_that_cannot_be_reached_is_one_clear_line(local: Path, moto_server: object) -> None:
    run = maskrcnn_command("segment", str(local), "s3://no-such-bucket/run", "--model", "planted")
    assert run.returncode in (2, 3)
    assert "no-such-bucket" in run.stderr
    assert "Traceback" not in run.stderr


def test_no_secret_stands_in_any_output(
    local: Path, weed_server: object, tmp_path: Path, ray_cluster: LocalCluster
) -> None:
    prefix = weed_server.prefix()  # type: ignore[attr-defined]
    command = ["segment", str(local), f"{prefix}/run", "--model", "planted", "--actors", "1"]
    run = maskrcnn_command(*command, cluster=ray_cluster)
    assert "testsecret" not in run.stdout + run.stderr
    storage = Storage(f"{prefix}/run")
    assert all(b"testsecret" not in storage.read(path) for path in storage.list())
