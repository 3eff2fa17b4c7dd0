"""`--tta` in the commands and in Python: a setting of the run, refused before any work where it is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver.planned_request import planned_request
from PIL import Image

import maskrcnn
from maskrcnn.errors import UsageError
from maskrcnn.synthetic.scenes import render_scene

SCENES = [render_scene(seed, 96).image for seed in range(2)]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two scenes, in the working directory."""
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(SCENES):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def plan(*options: str) -> tuple[int, str]:
    """Run `maskrcnn plan`; return its exit code and what it prints to stderr."""
    ran = CliRunner().invoke(main, ["plan", "photos", "out", "--model", "scenes", *options])
    return ran.exit_code, ran.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rotate", "'rotate'"),
        ("flip,rotate", "'rotate'"),
        ("", "names no augmentation"),
        (" , ", "names no augmentation"),
        ("flip,", "''"),
        ("flip,flip", "names flip twice"),
        ("scales,flip,scales=1", "names scales twice"),
        ("flip=1", "'flip=1'"),
        ("scales=0.8,1", "separated by slashes: write --tta scales=0.8/1"),
        ("flip,scales=0.8, 1,1.25", "write --tta flip,scales=0.8/1/1.25"),
        ("scale", "as in flip,scales=0.8/1/1.25"),
        ("scales=", "from 0.25 to 4"),
        ("scales=0.8/big", "from 0.25 to 4"),
        ("scales=640/800", "from 0.25 to 4"),
        ("scales=nan", "from 0.25 to 4"),
        ("scales=1/1.0", "names a scale twice"),
        ("scales=1/1.1/1.2/1.3/1.4/1.5/1.6/1.7/1.8", "at most 8"),
    ],
)
def test_a_wrong_value_is_one_line_and_nothing_is_written(photos: Path, value: str, message: str) -> None:
    code, said = plan("--tta", value)
    assert code == 2
    assert message in said
    assert len(said.splitlines()) == 1
    assert not Path("out").exists()
    with pytest.raises(UsageError, match="--tta"):
        maskrcnn.segment_collection(photos, "out", model="scenes", tta=value)


def test_a_model_that_cannot_be_augmented_is_refused_before_any_work(photos: Path) -> None:
    code, said = plan("--model", "planted", "--tta", "flip")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "--tta" in said
    assert not Path("out").exists()


def test_a_run_without_it_records_nothing_of_it(photos: Path) -> None:
    assert plan()[0] == 0
    assert "tta" not in json.loads(Path("out/run.json").read_text())["settings"]


def test_what_it_means_is_recorded_and_must_be_repeated(photos: Path) -> None:
    assert plan("--tta", "scales,flip")[0] == 0
    info = json.loads(Path("out/run.json").read_text())
    assert info["settings"]["tta"] == "flip,scales=0.8/1/1.25"
    assert planned_request("out", info, "auto").inference.tta == "flip,scales=0.8/1/1.25"
    created = json.loads(Path("out/plan.json").read_text())
    assert plan("--tta", "flip,scales=1.25/1/0.8")[0] == 0
    assert json.loads(Path("out/plan.json").read_text()) == created
    Path("out/receipts").mkdir()
    Path("out/receipts/begun").touch()
    for others in ([], ["--tta", "flip"]):
        code, said = plan(*others)
        assert code == 2
        assert "tta: planned flip,scales=0.8/1/1.25" in said


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 64])
def test_a_run_has_the_instances_of_the_segmenter(photos: Path, window: int | None) -> None:
    run = maskrcnn.segment_collection(
        photos, "out", model="scenes", tta="flip,scales=1/1.5", min_score=0.3, window=window
    )
    assert maskrcnn.verify("out").proven
    found = run.instances().to_pydict()
    assert len(found["score"])
    if window is None:
        segmenter = maskrcnn.Segmenter(maskrcnn.load_model("scenes"), tta="flip,scales=1/1.5", min_score=0.3)
        expected = [float(score) for one in segmenter.segment(SCENES) for score in one.scores]
        assert np.allclose(sorted(found["score"]), sorted(expected), atol=1e-6)
