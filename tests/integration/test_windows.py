"""Rasters from S3 through actors that share them: what one process gives from local files."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from commandline import maskrcnn_command
from local import LocalCluster
from windowed import compute_of, mosaic, run_windows, write_geotiff

import maskrcnn
from maskrcnn.io.storage import Storage
from maskrcnn.synthetic.planted import png

pytest.importorskip("rasterio")
pytestmark = [pytest.mark.ray, pytest.mark.s3]

OPTIONS = ("--window", "64", "--overlap", "16", "--model", "planted-mosaic", "--max-detections", "10000")


def without_places(images: pa.Table) -> pa.Table:
    return images.drop_columns(["uri", "etag", "bytes"])


def test_actors_that_share_a_raster_on_s3_give_the_rows_of_one_process(
    tmp_path: Path, weed_server: object, ray_cluster: LocalCluster
) -> None:
    images = tmp_path / "in"
    write_geotiff(images / "a.tif", mosaic(700, 900, 60, 1))
    (images / "b.png").write_bytes(png(mosaic(200, 300, 10, 2)))
    (images / "c.tif").write_bytes((images / "a.tif").read_bytes()[:3000])
    run_windows(images, tmp_path / "run", compute_of(64, 16))
    prefix = weed_server.prefix()  # type: ignore[attr-defined]
    bucket = Storage(f"{prefix}/images")
    for path in images.iterdir():
        bucket.write(path.name, path.read_bytes())

    command = ["segment", f"{prefix}/images", f"{prefix}/run", *OPTIONS]
    there = maskrcnn_command(*command, "--actors", "2", cluster=ray_cluster)
    assert there.returncode == 1, there.stderr
    assert "Traceback" not in there.stderr
    on_s3, on_disk = maskrcnn.open_run(f"{prefix}/run"), maskrcnn.open_run(str(tmp_path / "run"))
    assert len([r for r in on_s3.success["receipts"] if r.startswith("1-")]) > 2
    assert without_places(on_s3.images()).equals(without_places(on_disk.images()))
    assert on_s3.instances().equals(on_disk.instances())
    assert on_s3.stats == on_disk.stats
    assert on_s3.success["windows"] == on_disk.success["windows"]

    proof = maskrcnn_command("verify", f"{prefix}/run", "--json")
    assert json.loads(proof.stdout)["proven"], proof.stdout
    again = maskrcnn_command(*command)
    assert again.returncode == 1
    assert "finished already" in again.stderr
    exported = maskrcnn_command("export", f"{prefix}/run", str(tmp_path / "json"), "--format", "geojson")
    assert exported.returncode == 0, exported.stderr
    features = json.loads((tmp_path / "json" / "instances.geojson").read_text())["features"]
    assert len(features) == sum(part["rows"] for part in on_s3.success["parts"]["geo"])


def test_other_windows_than_planned_are_another_run(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "in" / "a.tif", mosaic(100, 100, 3, 1))
    plan = maskrcnn_command("plan", str(tmp_path / "in"), str(tmp_path / "run"), *OPTIONS, "--json")
    assert json.loads(plan.stdout)["windows"] == 4, plan.stderr
    (tmp_path / "run" / "receipts").mkdir()  # a plan of which nothing was done would be made anew
    (tmp_path / "run" / "receipts" / "1-00000000.x.json").write_text("{}")
    other = maskrcnn_command(
        "plan", str(tmp_path / "in"), str(tmp_path / "run"), "--window", "32", "--model", "planted-mosaic"
    )
    assert other.returncode == 2
    assert "window: planned 64, now 32" in other.stderr
