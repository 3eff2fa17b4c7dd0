"""A folder as the guides assume it: photos, finished runs, ground truth; made without Ray by the planted segmenter."""

import json
import shutil
from pathlib import Path

from chaos.local_job import without_ray
from docs.pages import DOCS, blocks
from maskrcnn_jobs.driver.planning import Request
from maskrcnn_jobs.driver.run import run_segment
from PIL import Image
from planted_images import write_planted
from windowed import mosaic, run_windows, write_geotiff

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.synthetic.scenes import render_scene

PHOTOS = 12


def write_workspace(root: Path) -> None:
    """Write what the commands, the Python and the SQL of the guides read."""
    photos = root / "photos"
    write_planted(photos, PHOTOS, seed=3)
    dataset = json.loads((photos / "instances.json").read_text())
    for image, name in zip(dataset["images"], ("a.png", "b.png"), strict=False):
        (photos / image["file_name"]).rename(photos / name)
        image["file_name"] = name
    (photos / "instances.json").unlink()
    (root / "val.json").write_text(json.dumps(dataset))
    (root / "nuclei").mkdir()
    (root / "nuclei" / "val.json").write_text(json.dumps(dataset))
    for category in dataset["categories"]:
        category["name"] = {"coin": "euro"}.get(category["name"], category["name"])
    (root / "euros.json").write_text(json.dumps(dataset))
    with without_ray():
        _segment(root / "val.json", root / "val-out", images_root=str(photos))
        (photos / "page.png").write_text(
            "<html>404</html>"
        )  # not an image: a row of the queries about failures
        _segment(photos, root / "out")
    shutil.copytree(root / "out", root / "other")
    Image.fromarray(render_scene(seed=20_000_007, size=192).image).save(root / "photo.png")
    [nets, _, colors, _] = blocks(DOCS / "guides" / "own-network.md", "python")
    (root / "nets.py").write_text(nets.text)
    (root / "colors.py").write_text(colors.text)
    write_geotiff(root / "rasters" / "mosaic.tif", mosaic(256, 384, count=12))
    run_windows(root / "rasters", root / "raster-out")


def _segment(source: Path, output: Path, images_root: str | None = None) -> None:
    request = Request(str(source), str(output), InferenceConfig("planted"), images_root=images_root)
    run_segment(request, ResourceConfig(device="cpu"), None)
