"""The checks of a model: each finds a network with that fault, says what it could not check, and passes a sound one."""

import json
import re
from typing import Any

import numpy as np
import pytest
from own_networks import FAULTY

from maskrcnn.models.checks import model_checks
from maskrcnn.models.checks.model_checks import Subject, run_checks, sample_images
from maskrcnn.models.checks.report import ModelReport
from maskrcnn.models.own.own_code import find_code, own_digest, parse_own
from maskrcnn.models.own.own_segmenter import Planned
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedSegmenter

NAMES = [
    "well formed", "masks", "finite", "within the image",
    "deterministic", "independent of the batch", "from two threads",
    "--min-score", "--max-detections", "--categories",
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """One image of each of the first two sizes suffices, of which the first is the planted one."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    images = sample_images()
    chosen = [images[2], images[0], images[1], images[4]]
    monkeypatch.setattr(model_checks, "sample_images", lambda: chosen)


def report_of(fault, *, has_masks=False, **options) -> ModelReport:
    own = parse_own("faulty:build")
    arguments: dict[str, Any] = {"fault": fault, "has_masks": has_masks}
    digest = own_digest(own, find_code(own), arguments)
    planned = Planned(PLANTED_CATEGORIES, has_masks)
    return run_checks(Subject(own.name, digest, planned, arguments=arguments), **options)


def lines_of(report, status):
    return {check.name: check.line for check in report.checks if check.status == status}


DUE = "expected a list with maskrcnn.Detections or maskrcnn.ItemError for each of 1 image"
FAULTS = {
    "raises": ("well formed", r"^the network raised KeyError: 'x' \(faulty\.py, line \d+\)$"),
    "raises in a batch": ("independent of the batch", "alone and in a batch: the network raised KeyError: 3"),
    "raises in a batch of 8": ("batches", "a larger batch than 3: the network raised KeyError: 8"),
    "fewer": ("well formed", f"its `outcomes` returned 0 results, {DUE}"),
    "None": ("well formed", f"its `outcomes` returned None, {DUE}"),
    "a dict": ("well formed", f"its `outcomes` returned a dict of length 0 for an image, {DUE}"),
    "wide boxes": ("well formed", r"`boxes` is an array of float64 \(9, 4\), expected an array of float32 \(9, 4\)"),
    "pixels as masks": ("well formed", r"`masks` is an array of bool \(9, 480, 640\), expected a tuple of 9 bytes"),
    "nan": ("finite", "NaN or infinity in 1 image"),
    "outside": ("within the image", "pixels"),
    "random": ("deterministic", "twice the same: other instances in an image of 480 x 640 pixels"),
    "batch": ("independent of the batch", "alone and in a batch: other instances in an image of 480 x 640 pixels"),
    "score": ("well formed", "scores are from 0 to 1"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault):
    report = report_of(fault)
    assert not report.sound
    assert report.to_json()["sound"] is False
    name, line = FAULTS[fault]
    failed = lines_of(report, "failed")
    assert next(iter(failed)) == name
    assert re.search(line, failed[name]), failed
    assert [check.name for check in report.checks][: len(NAMES)] == NAMES
    if name == "well formed":
        assert set(lines_of(report, "not_checked").values()) == {"results are not well formed"}


LEFT_OUT = {
    "nothing": dict.fromkeys(NAMES, "nothing was detected"),
    "one at a time": {"independent of the batch": "its batch_size is 1", "from two threads": "its lanes are 1"},
    "no key": {"independent of the batch": "its canvas differs for images of one size"},
    "one instance": dict.fromkeys(NAMES[-2:], "") | {"--min-score": "no scores that differ"},
}  # fmt: skip


@pytest.mark.parametrize("fault", LEFT_OUT)
def test_what_cannot_be_checked_is_not_said_to_be_right(fault):
    report = report_of(fault)
    assert report.sound
    left_out = lines_of(report, "not_checked")
    expected = LEFT_OUT[fault] | {"masks": "it detects boxes only"}
    assert left_out.keys() == expected.keys()
    assert all(why in left_out[name] for name, why in expected.items()), left_out


def test_a_sound_network_passes_each_check_and_its_batches_are_measured():
    report = report_of("none", has_masks=True)
    assert [check.status for check in report.checks] == ["ok"] * len(NAMES)
    assert [cost.batch_size for cost in report.costs] == [1, 2, 4, 8]
    assert all(cost.peak_bytes > 0 for cost in report.costs)
    assert ModelReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_network_may_leave_the_limits_to_the_program():
    ok = lines_of(report_of("limits"), "ok")
    assert [ok[name].partition(": ")[2] for name in NAMES[-3:]] == [
        "the program applies it, since the network does not"
    ] * 3


def test_a_network_with_low_scores_is_checked_with_all_of_them():
    report = report_of("low scores")
    assert lines_of(report, "not_checked").keys() == {"masks"}
    assert report.sound


def test_where_the_time_is_over_the_rest_is_left_out_and_said_so():
    report = report_of("none", seconds=0.0)
    assert "1 image left out: there was no time left" in lines_of(report, "ok")["well formed"]
    assert {"--min-score", "--max-detections"} <= lines_of(report, "not_checked").keys()
    assert [cost.batch_size for cost in report.costs] == [1]


def test_each_step_is_announced_before_it_begins():
    steps = []
    report_of("none", begin=lambda step, _images: steps.append(step))
    assert steps[0] == "building it"
    assert "running 1 image of 480 x 640 pixels" in steps
    assert "running a batch of 8 images of 480 x 640 pixels" in steps
    assert "running 2 images at once in 2 threads" in steps


def test_the_images_have_several_sizes_and_three_share_one():
    shapes = [image.shape for image in sample_images()]
    assert len(set(shapes[:3])) == 1
    assert len(set(shapes)) >= 6
    assert all(image.dtype == np.uint8 for image in sample_images())
    assert sum(len(found) for found in PlantedSegmenter().segment(sample_images())) == 9
