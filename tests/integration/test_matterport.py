"""A converted file of matterport's on a run: photos seen whole, and a raster in windows; one row an image."""

import json
from pathlib import Path

import pytest
import torch
from commandline import maskrcnn_command
from matterport_oracle import images_of, model_of, script, tensors_of
from PIL import Image
from windowed import write_geotiff

import maskrcnn
from maskrcnn.models.model import save_model

pytestmark = pytest.mark.slow

COCO = Path(__file__).parents[3] / "shared" / "data" / "coco_sample" / "images"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matterport")
    model = model_of("resnet50", tensors_of("resnet50"))
    card = model.card
    sizes = card.min_size, card.max_size
    save_model(
        folder / "coco.safetensors",
        model.module,
        card.architecture,
        card.categories,
        *sizes,
        {},
        dtype=torch.float32,
    )
    return folder / "coco.safetensors"


def proven(output: Path) -> None:
    proof = maskrcnn_command("verify", str(output), "--json")
    assert json.loads(proof.stdout)["proven"], proof.stdout


def test_images_and_what_is_found_in_them(weights: Path, tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for name in images_of("resnet50")[:2]:
        Image.fromarray(script("make_images").make_image(name)).save(images / f"{name}.png")
    photos = sorted(COCO.glob("*.jpg"))[:1] if COCO.is_dir() else []
    for photo in photos:
        (images / photo.name).write_bytes(photo.read_bytes())
    (images / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    options = ("--model", str(weights), "--min-score", "0.7", "--no-ray")
    done = maskrcnn_command("segment", str(images), str(tmp_path / "out"), *options)
    assert done.returncode == 1, done.stderr  # one file is not an image
    run = maskrcnn.open_run(str(tmp_path / "out"))
    rows = run.images().to_pylist()
    assert len(rows) == 3 + len(photos)
    assert [Path(row["uri"]).name for row in rows if row["error"]] == ["torn.jpg"]
    found = run.instances().to_pandas()
    of_b = next(row["image_id"] for row in rows if "b_384x384" in row["uri"])
    assert (found.image_id == of_b).sum() == 21  # as the reference
    assert set(found.category_id) <= {
        category.id for category in maskrcnn.load_model(str(weights)).categories
    }
    proven(tmp_path / "out")


def test_a_raster_in_windows(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    image = script("make_images").make_image("c_400x300")
    write_geotiff(tmp_path / "in" / "a.tif", image)
    options = (
        "--model",
        str(weights),
        "--window",
        "320",
        "--overlap",
        "64",
        "--min-score",
        "0.7",
        "--no-ray",
    )
    command = ["segment", str(tmp_path / "in"), str(tmp_path / "out"), *options]
    done = maskrcnn_command(*command)
    assert done.returncode == 0, done.stderr
    run = maskrcnn.open_run(str(tmp_path / "out"))
    assert run.images().num_rows == 1
    assert run.instances().num_rows > 0
    proven(tmp_path / "out")
