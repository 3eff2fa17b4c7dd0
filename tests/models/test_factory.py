"""One place decides what a model name means: `segment` and `show` accept and refuse the same names."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from maskrcnn_jobs.cli import main

from maskrcnn.errors import UsageError
from maskrcnn.models.factory import build_segmenter
from maskrcnn.models.model import build_network, save_model
from maskrcnn.models.registry import ModelFile, describe_model, resolve
from maskrcnn.models.weights.embedded_models import EMBEDDED
from maskrcnn.models.weights.published_weights import PublishedModel
from maskrcnn.synthetic.planted import PlantedInstance, PlantedSegmenter, plant, png
from maskrcnn.synthetic.planted_models import PlantedModel
from maskrcnn.synthetic.planted_mosaic import MosaicSegmenter
from maskrcnn.types import Category

LITE = "maskrcnn_efficientnet_lite0_fpn"
ACCEPTED = ("planted", "planted:0.001", "planted-mosaic", "planted-mosaic:2", "scenes", "pets.safetensors")
REFUSED = (
    "cocco", "something", "planted:abc", "planted:-1", "planted-mosaic:12", "planted-mosaic:x", "in", "missing.pth",
    "model.onnx", "damaged.safetensors", "https://host/m.pth", " ",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image to segment, a model of random weights, and a file that is not a model."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "in").mkdir()
    instance = PlantedInstance("ellipse", 2, 0.9, 40, 40, 30, 20)
    (folder / "in" / "photo.png").write_bytes(png(plant((96, 96), [instance])))
    torch.manual_seed(0)
    pets = [Category(4, "cat"), Category(9, "dog")]
    save_model(folder / "pets.safetensors", build_network(LITE, 3, 96, 160), LITE, pets, 96, 160, {})
    (folder / "damaged.safetensors").write_bytes(b"1234")
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Run a command on the image with a model; returns its exit code and the last line of its messages."""
    monkeypatch.chdir(folder)

    def run(command, model):
        place = [str(tmp_path / "out")] if command == "plan" else ["--output", str(tmp_path / "picture.png")]
        source = "in" if command == "plan" else "in/photo.png"
        ran = CliRunner().invoke(main, [command, source, *place, "--model", model])
        last = (ran.stderr.splitlines() or [""])[-1]
        return ran.exit_code, last.replace(f"{folder}/", "")  # `plan` makes paths absolute

    return run


@pytest.mark.slow
@pytest.mark.parametrize("model", ACCEPTED)
def test_segment_and_show_accept_the_same_names(model, run, folder):
    assert run("plan", model)[0] == 0  # `segment` is `plan`, and then builds the segmenter in its actors
    assert build_segmenter(model, expected_sha256=describe_model(model).sha256).categories
    assert run("show", model)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", REFUSED)
def test_segment_and_show_refuse_the_same_names_with_the_same_message(model, run):
    planned, shown = run("plan", model), run("show", model)
    assert planned == shown
    assert planned[0] == 2
    with pytest.raises(UsageError) as caught:
        build_segmenter(model)
    assert str(caught.value) in planned[1]


def test_an_unknown_name_is_answered_with_what_a_user_can_use(run):
    for name in ("something", "plantd", " "):
        code, message = run("show", name)
        assert code == 2
        assert (
            "Known are coco, coco-v1, scenes, " in message or "give one of coco, coco-v1, scenes, " in message
        )
        assert "or the path or URL of a .safetensors, .pth, .pt, .ckpt" in message
        assert "planted" not in message


def test_a_name_is_resolved_to_its_kind():
    assert resolve("planted:0.5") == PlantedModel("planted", sleep_s=0.5)
    assert resolve("planted-mosaic:3") == PlantedModel("planted-mosaic", jitter_px=3)
    assert resolve("scenes") is EMBEDDED["scenes"]
    assert isinstance(resolve("coco"), PublishedModel)
    assert resolve("a/b.PTH") == ModelFile("a/b.PTH", ".pth")


def test_planted_segmenters_take_what_is_asked_for():
    strong, weak = (PlantedInstance("ellipse", 2, score, 40, 40, 30, 20) for score in (0.9, 0.3))
    image = plant((96, 96), [strong, weak])
    for arguments, scores in (
        ({}, [0.9, 0.3]),
        ({"min_score": 0.5}, [0.9]),
        ({"max_detections": 1}, [0.9]),
        ({"categories": ["plank"]}, []),
        ({"categories": ["coin"]}, [0.9, 0.3]),
    ):
        segmenter = build_segmenter("planted", **arguments)
        assert type(segmenter) is PlantedSegmenter
        (found,) = segmenter.outcomes([image])
        assert found.scores.tolist() == pytest.approx(scores)
    assert type(build_segmenter("planted-mosaic:2")) is MosaicSegmenter


def test_a_network_takes_what_is_asked_for(folder):
    path = str(folder / "pets.safetensors")
    segmenter = build_segmenter(path, min_score=0.0, max_detections=3, categories=["dog"], dtype="float32")
    (found,) = segmenter.outcomes([np.zeros((80, 90, 3), np.uint8)])
    assert len(found) <= 3
    assert set(found.labels.tolist()) <= {9}
    with pytest.raises(UsageError, match="has changed: its sha256 is"):
        build_segmenter(path, expected_sha256="0" * 64)
    with pytest.raises(UsageError, match="no category 'bird'"):
        build_segmenter(path, categories=["bird"])


def test_torch_is_imported_for_networks_alone():
    code = (
        "import sys; from maskrcnn.models.factory import build_segmenter\n"
        "for name in ('planted:0.01', 'planted-mosaic:1'): build_segmenter(name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
