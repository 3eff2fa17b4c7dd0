"""The pictures of the worst images show what the evaluation matched, so that they agree with its numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_runs import CarelessSegmenter, finish
from planted_images import write_planted

from maskrcnn.evaluation import evaluate_part
from maskrcnn.evaluation.evaluate_run import EvaluationOptions, evaluate_run
from maskrcnn.results.reader import RunReader
from maskrcnn.results.run import open_run
from maskrcnn.visualization import worst_images
from maskrcnn.visualization.worst_images import draw_worst


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run/` in several parts, `masks.json`, which has crowds, and `boxes.json`, the same without masks."""
    folder = tmp_path_factory.mktemp("worst")
    write_planted(folder / "images", 24, seed=11)
    path = folder / "images" / "instances.json"
    ground_truth = json.loads(path.read_text())
    path.unlink()
    ground_truth["annotations"] = [
        a | {"iscrowd": int(k % 7 == 3)} for k, a in enumerate(ground_truth["annotations"])
    ]
    (folder / "masks.json").write_text(json.dumps(ground_truth))
    bare = [{k: v for k, v in a.items() if k != "segmentation"} for a in ground_truth["annotations"]]
    (folder / "boxes.json").write_text(json.dumps(ground_truth | {"annotations": bare}))
    finish(folder / "run", str(folder / "images"), CarelessSegmenter())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 16_384])
@pytest.mark.parametrize("ground_truth", ["masks", "boxes"])
@pytest.mark.parametrize("options", [{}, {"max_dets": 1}, {"max_dets": 1, "class_agnostic": True}])
def test_pictures_agree_with_the_table_of_images(
    place: Path, ground_truth: str, options: dict[str, Any], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_part, "BATCH_OBJECTS", batch)
    shown = []

    def record(_pixels: Any, sides: Any, _categories: Any) -> tuple[bytes, bytes]:
        shown.append(sides)
        return b"ground_truth", b"found"

    monkeypatch.setattr(worst_images, "_drawn", record)
    asked = EvaluationOptions(**options)
    with (
        evaluate_run(str(place / "run"), str(place / f"{ground_truth}.json"), asked) as (evaluation, shares),
        RunReader(open_run(str(place / "run"))) as reader,
    ):
        drawn = draw_worst(reader, evaluation, shares)
    rows = evaluation.images.to_pylist()
    faults = [row["false_negatives"] + row["false_positives"] for row in rows]
    order = sorted(range(len(rows)), key=lambda at: (rows[at]["pq"], -faults[at], at))
    worst = [at for at in order[:9] if faults[at]]
    assert len(worst) > 6
    assert list(evaluation.worst) == worst
    assert [item.name for item in drawn] == [rows[at]["name"] for at in worst]
    for at, sides in zip(worst, shown, strict=True):
        assert len(sides.detections) == rows[at]["n_detections"]
        assert np.sum(~sides.detections_matched) == rows[at]["false_positives"]
        assert np.sum(~sides.ground_truth_matched) == rows[at]["false_negatives"]
        assert (sides.detections.scores >= np.float32(0.5)).all()


@pytest.mark.slow
def test_both_sides_are_drawn_in_pictures(place: Path) -> None:
    with (
        evaluate_run(str(place / "run"), str(place / "boxes.json")) as (evaluation, shares),
        RunReader(open_run(str(place / "run"))) as reader,
    ):
        drawn = draw_worst(reader, evaluation, shares)
    for item in drawn:
        assert item.ground_truth is not None
        assert item.detections is not None
        assert item.ground_truth[:2] == item.detections[:2] == b"\xff\xd8"
        assert item.ground_truth != item.detections
