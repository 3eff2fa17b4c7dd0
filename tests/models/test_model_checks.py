"""The checks of a model: each finds a network with that fault, and a sound one passes them all."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from planted_images import random_instances

from maskrcnn.models import model_checks
from maskrcnn.models.model_checks import check_model, differences, sample_images
from maskrcnn.synthetic.planted import PlantedSegmenter, plant

FAULTY = """
import itertools
import os
from dataclasses import replace
import numpy as np
import maskrcnn

calls = itertools.count()


def moved(found, by):
    with np.errstate(invalid="ignore"):
        return maskrcnn.Detections.of_boxes(
            found.height, found.width, found.boxes + np.float32(by), found.labels, found.scores, capped=found.capped
        )


class Faulty(maskrcnn.PlantedSegmenter):
    fault = "none"

    def outcomes(self, images):
        found = self.segment(images)
        if self.fault == "raises":
            raise KeyError("x")
        if self.fault == "fewer":
            return []
        if self.fault == "nan":
            return [moved(each, np.nan) for each in found]
        if self.fault == "outside":
            return [moved(each, 500) for each in found]
        if self.fault == "random":
            return [moved(each, next(calls)) for each in found]
        if self.fault == "batch":
            return [moved(each, len(images)) for each in found]
        if self.fault == "score":
            return [replace(each, scores=each.scores + 1) for each in found]
        return found


def build(options, *, fault):
    if fault == "canvas":
        Faulty.canvas = lambda self, height, width: [height, width]
    if fault == "categories":  # another name in each process
        Faulty.categories = property(lambda self: (maskrcnn.Category(1, str(os.getpid())),))
    kind = type("Faulty", (Faulty,), {"fault": fault})
    if fault == "limits":
        return kind(min_score=0.0, has_masks=False)
    return kind(
        min_score=options.min_score, max_detections=options.max_detections, keep=options.categories, has_masks=False
    )
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)


FAULTS = {
    "raises": ("results", "the network raised KeyError: 'x'"),
    "fewer": ("results", "it returned 0 results for 1 image"),
    "nan": ("finite", "NaN or infinity in 1 image"),
    "outside": ("within the image", "pixels"),
    "random": ("deterministic", "twice the same: other instances in image 1"),
    "batch": ("independent of the batch", "alone and in a batch: other instances in image 1"),
    "score": ("well formed", "scores are from 0 to 1"),
}


@pytest.mark.parametrize(
    ("fault", "words"), [("canvas", "must return a key"), ("categories", "differ from process to process")]
)
def test_what_a_run_would_end_on_is_refused(fault, words):
    result = CliRunner().invoke(main, ["check-model", "faulty:build", "--model-arg", f"fault={fault}"])
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault, monkeypatch):
    """One image of each of the first two sizes suffices, of which the first is the planted one."""
    images = sample_images()
    monkeypatch.setattr(model_checks, "sample_images", lambda: [images[0], images[2], images[1], images[4]])
    result = CliRunner().invoke(
        main, ["check-model", "faulty:build", "--model-arg", f"fault={fault}", "--json"]
    )
    assert result.exit_code == 1, result.output
    report = json.loads(result.stdout)
    failed = {check["name"]: check["line"] for check in report["checks"] if check["passed"] is False}
    name, line = FAULTS[fault]
    assert line in failed[name]
    assert not report["sound"]
    assert report["costs"] == []


@pytest.mark.slow
def test_a_network_may_leave_the_limits_to_the_program():
    result = CliRunner().invoke(main, ["check-model", "faulty:build", "--model-arg", "fault=limits"])
    assert result.exit_code == 0, result.output
    for option in ("--min-score", "--max-detections", "--categories"):
        assert f"{option} " in result.stdout
    assert result.stdout.count("not obeyed: the program applies it") == 3
    assert "sound: faulty:build, boxes only, plank, coin, leaf" in result.stdout


@pytest.mark.parametrize("name", ["planted", "planted-boxes"])
def test_a_sound_model_passes_each_check_and_its_batches_are_measured(name):
    report = check_model(name)
    assert report.sound
    assert [check.passed for check in report.checks] == [True] * 8
    assert [cost.batch_size for cost in report.costs] == [1, 2, 4, 8]
    assert all(cost.peak_bytes > 0 for cost in report.costs)
    assert json.loads(json.dumps(report.to_json()))["model"] == name


def test_the_images_have_several_sizes_and_three_share_one():
    shapes = [image.shape for image in sample_images()]
    assert len(set(shapes[:3])) == 1
    assert len(set(shapes)) >= 6
    assert all(image.dtype == np.uint8 for image in sample_images())
    assert sum(len(found) for found in PlantedSegmenter().segment(sample_images())) == 9


def found_in(seed):
    random = np.random.Generator(np.random.PCG64(seed))
    [found] = PlantedSegmenter().segment([plant((80, 96), random_instances(random, 80, 96, 6))])
    return found


@given(st.integers(0, 1000), st.permutations(range(6)))
def test_rounding_and_order_are_no_difference(seed, order):
    one = found_in(seed)
    order = [index for index in order if index < len(one)]
    other = replace(one, boxes=one.boxes + np.float32(0.01), scores=one.scores - np.float32(1e-4))
    boxes, scores = differences(one, other.take(np.array(order, np.intp)))
    assert boxes == pytest.approx(0.01 if len(one) else 0, abs=1e-4)
    assert scores == pytest.approx(1e-4 if len(one) else 0, abs=1e-6)
    assert differences(one, one) == (0, 0)


@given(st.integers(0, 1000), st.sampled_from([-30, 30]))
def test_a_missing_instance_or_a_box_that_moved_is_one(seed, moved):
    one = found_in(seed)
    best = one.take(np.arange(len(one))[:2])
    if len(best) == 2 and best.scores[0] > best.scores[1] + 0.01:
        assert differences(best, best.take(np.array([1]))) is None
        boxes = best.boxes.copy()
        boxes[0] += moved
        assert differences(best, replace(best, boxes=boxes)) is None
