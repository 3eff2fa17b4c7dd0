"""A finished run against its ground truth: the command, its files, and pycocotools on what the run itself exported."""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from evaluated_runs import IDS, CarelessSegmenter, finish
from maskrcnn_jobs.cli import main
from PIL import Image
from planted_images import write_planted
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from s3_servers import S3Server
from windowed import mosaic, run_windows, write_geotiff

import maskrcnn
from maskrcnn.evaluation import evaluate_part
from maskrcnn.evaluation.evaluate_run import EvaluationOptions, evaluate_run
from maskrcnn.evaluation.pycocotools_reference import average_precision
from maskrcnn.io.storage import Storage
from maskrcnn.results.verify import verify_run
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedSegmenter
from maskrcnn.synthetic.planted_mosaic import MosaicSegmenter
from maskrcnn.training.dataset import read_dataset

pytestmark = pytest.mark.slow

Json = dict[str, Any]
IMAGES = 30
BROKEN = "planted-000004.png"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/` with their ground truth, one of them broken meanwhile, and `run/`, a careless run in several parts.

    The ground truth numbers its images otherwise than the run does, and has a crowd.
    """
    folder = tmp_path_factory.mktemp("evaluation")
    write_planted(folder / "images", IMAGES, seed=3)
    path = folder / "images" / "instances.json"
    ground_truth = json.loads(path.read_text())
    ids = np.random.default_rng(1).permutation(len(ground_truth["images"])).tolist()
    number = {image["id"]: int(new) for image, new in zip(ground_truth["images"], ids, strict=True)}
    ground_truth["images"] = [image | {"id": number[image["id"]]} for image in ground_truth["images"]]
    ground_truth["annotations"] = [
        a | {"image_id": number[a["image_id"]], "iscrowd": int(k % 9 == 4), "id": k}
        for k, a in enumerate(ground_truth["annotations"])
    ]
    path.unlink()
    (folder / "ground_truth.json").write_text(json.dumps(ground_truth))
    (folder / "images" / BROKEN).write_bytes(b"")
    finish(folder / "run", str(folder / "images"), CarelessSegmenter())
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copy(finished / "ground_truth.json", tmp_path / "ground_truth.json")
    return tmp_path


def command(place: Path, *options: str) -> Result:
    return CliRunner().invoke(
        main, ["evaluate", str(place / "run"), "--truth", str(place / "ground_truth.json"), *options]
    )


def evaluated(place: Path, *options: str) -> Json:
    result = command(place, *options, "--json")
    assert result.exit_code == 0, result.output
    answer: Json = json.loads(result.stdout)
    return answer


def changed(place: Path, **lists: Any) -> Json:
    """Change lists of the ground truth by functions of an entry."""
    ground_truth = json.loads((place / "ground_truth.json").read_text())
    for name, change in lists.items():
        ground_truth[name] = [new for entry in ground_truth[name] if (new := change(entry)) is not None]
    (place / "ground_truth.json").write_text(json.dumps(ground_truth))
    return ground_truth


def by_pycocotools(place: Path, kind: str) -> list[float]:
    """Score the run's own COCO results, whose ids become the ground truth's by name, with pycocotools alone."""
    ground_truth = json.loads((place / "ground_truth.json").read_text())
    run = json.loads((place / "run" / "coco" / "instances.json").read_text())
    ids = {image["file_name"]: image["id"] for image in ground_truth["images"]}
    number = {image["id"]: ids[image["file_name"]] for image in run["images"]}
    results = json.loads((place / "run" / "coco" / f"results_{kind}.json").read_text())
    expected = COCO()
    # An annotation with the id 0 would count as unmatched.
    numbered = [
        {"iscrowd": 0} | entry | {"id": k} for k, entry in enumerate(ground_truth["annotations"], start=1)
    ]
    expected.dataset = ground_truth | {"annotations": numbered}
    expected.createIndex()
    found = expected.loadRes([entry | {"image_id": number[entry["image_id"]]} for entry in results])
    evaluator = COCOeval(expected, found, kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return list(evaluator.stats)


# The numbers


def test_each_of_the_twelve_metrics_is_what_pycocotools_says_of_the_runs_own_export(place: Path) -> None:
    answer = evaluated(place)
    assert 0.1 < answer["segm"][0] < 0.9
    for kind in ("bbox", "segm"):
        np.testing.assert_allclose(answer[kind], by_pycocotools(place, kind), atol=1e-12, rtol=0)
    per_category = average_precision(
        json.loads((place / "ground_truth.json").read_text()), [], "segm"
    ).per_category
    assert set(answer["per_category"]) == set(per_category)
    mean = np.mean([row["segm"][0] for row in answer["per_category"].values()])
    assert mean == pytest.approx(answer["segm"][0])


@pytest.mark.parametrize("objects", [1, 7])
def test_how_images_are_batched_changes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, objects: int
) -> None:
    whole = evaluated(place)
    table = pq.read_table(place / "run" / "evaluation" / "images.parquet")
    monkeypatch.setattr(evaluate_part, "BATCH_OBJECTS", objects)
    assert evaluated(place) == whole
    assert pq.read_table(place / "run" / "evaluation" / "images.parquet").equals(table)


def test_a_run_that_finds_exactly_what_is_there_is_perfect(tmp_path: Path) -> None:
    write_planted(tmp_path / "images", 12, seed=5)
    source = tmp_path / "images" / "instances.json"
    finish(tmp_path / "run", str(source), PlantedSegmenter(min_score=0.0))
    shutil.copy(source, tmp_path / "ground_truth.json")
    answer = evaluated(tmp_path)
    assert answer["images"]["matched_by"] == "id"
    assert {number for number in answer["segm"] + answer["bbox"] if number >= 0} >= {1.0}
    assert answer["segm"][0] == answer["bbox"][0] == 1.0


def test_polygons_and_boxes_alone_are_evaluated_as_pycocotools_does(place: Path) -> None:
    def as_polygon(entry: Json) -> Json:
        x, y, w, h = entry["bbox"]
        return entry | {"segmentation": [[x, y, x + w + 0.5, y, x + w, y + h, x, y + h - 0.25]]}

    changed(place, annotations=as_polygon)
    np.testing.assert_allclose(evaluated(place)["segm"], by_pycocotools(place, "segm"), atol=1e-12, rtol=0)
    changed(place, annotations=lambda entry: {k: v for k, v in entry.items() if k != "segmentation"})
    answer = evaluated(place)
    assert answer["segm"] is None
    np.testing.assert_allclose(answer["bbox"], by_pycocotools(place, "bbox"), atol=1e-12, rtol=0)


def test_class_agnostic_is_as_if_all_were_of_one_category(place: Path) -> None:
    answer = evaluated(place, "--class-agnostic")
    for path, name in (
        ("ground_truth.json", "annotations"),
        ("run/coco/results_bbox.json", None),
        ("run/coco/results_segm.json", None),
    ):
        content = json.loads((place / path).read_text())
        for entry in content if name is None else content[name]:
            entry["category_id"] = IDS[0]
        (place / path).write_text(json.dumps(content))
    changed(place, categories=lambda entry: entry if entry["id"] == IDS[0] else None)
    for kind in ("bbox", "segm"):
        np.testing.assert_allclose(answer[kind], by_pycocotools(place, kind), atol=1e-12, rtol=0)


def test_detections_beyond_the_maximum_are_logged(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "maskrcnn"),
        evaluate_run(
            str(place / "run"),
            str(place / "ground_truth.json"),
            EvaluationOptions(max_dets=2, class_agnostic=True),
        ) as (
            few,
            _,
        ),
    ):
        pass
    assert few.summary["images"]["truncated"] > 0
    assert f"{few.summary['images']['truncated']} images with more than 2 detections" in caplog.text


# The files


def test_the_table_of_images_is_what_a_simple_loop_counts(place: Path) -> None:
    evaluated(place)
    ground_truth = json.loads((place / "ground_truth.json").read_text())
    run = json.loads((place / "run" / "coco" / "instances.json").read_text())
    results = json.loads((place / "run" / "coco" / "results_segm.json").read_text())
    ours = {image["file_name"]: image["id"] for image in run["images"]}
    rows = pq.read_table(place / "run" / "evaluation" / "images.parquet").to_pylist()
    assert [row["name"] for row in rows] == sorted(image["file_name"] for image in ground_truth["images"])
    for row in rows:
        theirs = next(image["id"] for image in ground_truth["images"] if image["file_name"] == row["name"])
        there = [a for a in ground_truth["annotations"] if a["image_id"] == theirs]
        found = [r for r in results if r["image_id"] == ours.get(row["name"]) and r["score"] >= 0.5]
        ious, in_crowd = greedily(found, there)
        n_ground_truth = sum(not a["iscrowd"] for a in there)
        expected = {
            "n_ground_truth": n_ground_truth,
            "n_detections": len(found),
            "true_positives": len(ious),
            "false_negatives": n_ground_truth - len(ious),
            "false_positives": len(found) - len(ious) - in_crowd,
        }
        assert {name: row[name] for name in expected} == expected
        below = len(ious) + expected["false_negatives"] / 2 + expected["false_positives"] / 2
        assert row["pq"] == pytest.approx(sum(ious) / below if below else 1.0)


def greedily(found: Sequence[Json], there: Sequence[Json]) -> tuple[list[float], int]:
    """Return the IoUs of matches by score, and the number of those that lie in a crowd."""
    ious, in_crowd, taken = [], 0, set()
    for result in sorted(found, key=lambda result: -result["score"]):
        overlaps = []
        for k, a in enumerate(there):
            iou = float(coco_mask.iou([result["segmentation"]], [a["segmentation"]], [a["iscrowd"]])[0, 0])
            if a["category_id"] == result["category_id"] and iou >= 0.5 and k not in taken:
                overlaps.append((not a["iscrowd"], iou, k))
        if overlaps and max(overlaps)[0]:
            ious.append(max(overlaps)[1])
            taken.add(max(overlaps)[2])
        else:
            in_crowd += bool(overlaps)
    return ious, in_crowd


def test_the_confusion_matrix_adds_up(place: Path) -> None:
    with evaluate_run(str(place / "run"), str(place / "ground_truth.json")) as (evaluation, _):
        table = evaluation.confusion
    ground_truth = json.loads((place / "ground_truth.json").read_text())
    half = evaluation.summary["at_half"]
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    there = [names[a["category_id"]] for a in ground_truth["annotations"] if not a["iscrowd"]]
    assert table[:-1].sum(axis=1).tolist() == [there.count(name) for name in evaluation.categories]
    assert np.trace(table) == half["true_positives"]
    assert table[:, :-1].sum() - np.trace(table) == half["false_positives"]
    assert table[:-1, :-1].sum() > np.trace(table)  # it takes some for another


def test_a_failed_image_counts_as_one_in_which_nothing_was_found(place: Path) -> None:
    answer = evaluated(place)
    assert answer["images"] | {"evaluated": IMAGES, "failed": 1} == answer["images"]
    rows = pq.read_table(place / "run" / "evaluation" / "images.parquet").to_pylist()
    [broken] = [row for row in rows if row["name"] == BROKEN]
    assert broken["n_detections"] == 0


def test_the_run_stays_proven_and_nothing_but_the_results_stays_behind(place: Path) -> None:
    evaluated(place)
    evaluated(place)
    assert verify_run(str(place / "run")).proven
    left = sorted(path.name for path in (place / "run" / "evaluation").iterdir())
    assert left == ["evaluation.html", "images.parquet", "per_category.parquet", "summary.json"]
    table = pq.read_table(place / "run" / "evaluation" / "per_category.parquet")
    summary = json.loads((place / "run" / "evaluation" / "summary.json").read_text())
    assert table["segm_ap50"].to_pylist() == [row["segm"][1] for row in summary["per_category"].values()]


def test_the_page_shows_the_worst_images_and_loads_nothing(place: Path) -> None:
    evaluated(place)
    page = (place / "run" / "evaluation" / "evaluation.html").read_text()
    rows = pq.read_table(place / "run" / "evaluation" / "images.parquet").to_pylist()
    worst = min(rows, key=lambda row: row["pq"])
    assert worst["name"] in page
    assert "data:image/jpeg;base64," in page
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
    assert "<script" not in page


def test_images_that_are_gone_give_notes_and_names_are_no_markup(tmp_path: Path) -> None:
    write_planted(tmp_path / "images", 4, seed=8)
    ground_truth = json.loads((tmp_path / "images" / "instances.json").read_text())
    first = ground_truth["images"][0]["file_name"]
    odd = "<b>&.png"
    (tmp_path / "images" / first).rename(tmp_path / "images" / odd)
    ground_truth["images"][0]["file_name"] = odd
    (tmp_path / "ground_truth.json").write_text(json.dumps(ground_truth))
    (tmp_path / "images" / "instances.json").unlink()
    finish(tmp_path / "run", str(tmp_path / "images"), CarelessSegmenter())
    shutil.rmtree(tmp_path / "images")
    evaluated(tmp_path)
    page = (tmp_path / "run" / "evaluation" / "evaluation.html").read_text()
    assert "cannot be read any more" in page
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>&.png" not in page


def test_a_terminal_gets_a_table(place: Path) -> None:
    result = command(place)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["mask", "box"]
    assert lines[1].split()[0] == "AP"
    assert any(line.startswith("plank") for line in lines)
    assert "1 failed, counted as without detections" in result.stdout
    assert lines[-1].endswith("evaluation/evaluation.html")


# Images and categories that do not agree


def test_images_that_the_run_lacks_stop_it_until_they_may_be_missing(place: Path) -> None:
    ground_truth = json.loads((place / "ground_truth.json").read_text())
    images = [*ground_truth["images"], {"id": 900, "file_name": "elsewhere.png", "width": 5, "height": 5}]
    (place / "ground_truth.json").write_text(json.dumps(ground_truth | {"images": images}))
    refused = command(place)
    assert refused.exit_code == 2
    assert "the run lacks 1 of the ground truth's 31 images ('elsewhere.png'" in refused.stderr
    assert "--allow-missing" in refused.stderr
    answer = evaluated(place, "--allow-missing")
    assert (answer["images"]["evaluated"], answer["images"]["missing_in_run"]) == (IMAGES, 1)


def test_images_that_the_ground_truth_lacks_are_left_out(place: Path) -> None:
    gone = json.loads((place / "ground_truth.json").read_text())["images"][0]
    changed(
        place,
        images=lambda image: None if image["id"] == gone["id"] else image,
        annotations=lambda a: None if a["image_id"] == gone["id"] else a,
    )
    answer = evaluated(place)
    assert (answer["images"]["evaluated"], answer["images"]["missing_in_ground_truth"]) == (IMAGES - 1, 1)
    names = pq.read_table(place / "run" / "evaluation" / "images.parquet")["name"].to_pylist()
    assert gone["file_name"] not in names


def test_a_category_of_another_name_is_an_error_that_says_how_to_rename_it(place: Path) -> None:
    before = evaluated(place)
    changed(place, categories=lambda c: c | {"name": c["name"].replace("plank", "Planks")})
    refused = command(place)
    assert refused.exit_code == 2
    assert "--map plank=Planks" in refused.stderr
    renamed = evaluated(place, "--map", "plank=Planks")
    assert (renamed["segm"], renamed["bbox"]) == (before["segm"], before["bbox"])
    coins = evaluated(place, "--categories", "coin")
    assert coins["segm"] == before["per_category"]["coin"]["segm"]


def test_another_size_in_the_ground_truth_is_logged(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed(place, images=lambda image: image | {"width": image["height"], "height": image["width"]})
    with caplog.at_level(logging.WARNING, "maskrcnn"):
        answer = evaluated(place)
    assert answer["images"]["other_size"] > 0
    assert (
        "with another size (height x width) in the ground truth than in the run, which is used: "
        in caplog.text
    )
    assert "EXIF" not in caplog.text


def test_a_size_without_exif_is_named_with_the_orientation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 40)).save(tmp_path / "images" / "phone.jpg", exif=exif)
    finish(tmp_path / "run", str(tmp_path / "images"), PlantedSegmenter())
    ground_truth = {
        "images": [{"id": 1, "file_name": "phone.jpg", "width": 64, "height": 40}],
        "annotations": [],
        "categories": [{"id": 1, "name": "plank"}],
    }
    (tmp_path / "ground_truth.json").write_text(json.dumps(ground_truth))
    with caplog.at_level(logging.WARNING, "maskrcnn"):
        evaluated(tmp_path)
    assert "phone.jpg, 40 x 64 instead of 64 x 40: EXIF orientation 6 turns the file" in caplog.text


def test_ids_that_start_at_zero_count(place: Path) -> None:
    """pycocotools takes the annotation of the id 0 for none; our ground truth has it."""
    zero = evaluated(place)
    changed(place, annotations=lambda a: a | {"id": a["id"] + 1})
    assert evaluated(place)["segm"] == zero["segm"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--max-dets", "5"], "max-dets"),
        (["--map", "coin"], "is not RUN=TRUTH"),
        (["--map", "none=coin"], "the run has no category 'none'"),
        (["--categories", ","], "--categories names no category"),
        (["--categories", "coins"], "is it 'coin'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(place: Path, options: list[str], complaint: str) -> None:
    result = command(place, *options)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_what_is_no_ground_truth_or_no_run_is_one_line_and_exit_code_2(place: Path, tmp_path: Path) -> None:
    (place / "ground_truth.json").write_text("[]")
    result = command(place)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "a list, as COCO results are" in result.stderr
    (place / "run" / "_SUCCESS").unlink()
    assert "is not finished: continue it with `maskrcnn segment`" in command(place).stderr
    (tmp_path / "empty").mkdir()
    shutil.copy(place / "ground_truth.json", tmp_path / "empty")
    assert command(tmp_path / "empty").exit_code == 2


def test_a_segmentation_that_is_cut_off_costs_itself(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole_answer = evaluated(place)
    ground_truth = json.loads((place / "ground_truth.json").read_text())
    whole = ground_truth["annotations"][2]["segmentation"]["counts"]
    ground_truth["annotations"][2]["segmentation"]["counts"] = whole[: len(whole) // 2]
    (place / "ground_truth.json").write_text(json.dumps(ground_truth))
    with caplog.at_level(logging.WARNING, "maskrcnn"):
        answer = evaluated(place)
    found = "error: mask whose run lengths are damaged (1): annotation 2"
    assert answer["findings"] == [found]
    assert answer["objects"] == whole_answer["objects"] - 1
    assert f"ground_truth.json: left out: {found.removeprefix('error: ')}" in caplog.text
    assert "error:" not in caplog.text


def test_a_ground_truth_without_usable_annotations_is_one_line(place: Path) -> None:
    changed(place, annotations=lambda a: a | {"category_id": str(a["category_id"])})
    result = command(place)
    assert (result.exit_code, result.stderr.count("annotation of an unknown category")) == (2, 1)
    assert "ids are text in annotations and integers in categories" in result.stderr


ODD_FILES = {
    "no area": {"annotations": lambda a: {k: v for k, v in a.items() if k != "area"}},
    "another area": {"annotations": lambda a: a | {"area": 10 * a["area"] + 100}},
    "doubled ids": {"annotations": lambda a: a | {"id": a["id"] // 2}},
    "run lengths in a list": {
        "annotations": lambda a: a | {"segmentation": [a["segmentation"]]} if a["id"] % 2 else a
    },
    "no bbox": {"annotations": lambda a: {k: v for k, v in a.items() if k != "bbox"}},
    "no id": {"annotations": lambda a: {k: v for k, v in a.items() if k != "id"}},
    "no size": {"images": lambda i: {k: v for k, v in i.items() if k not in ("width", "height")}},
    "floats": {"images": lambda i: i | {"width": float(i["width"]), "height": float(i["height"])}},
    "mixed": {"annotations": lambda a: a | {"segmentation": []} if a["id"] % 2 else a},
    "empty ring": {"annotations": lambda a: a | {"segmentation": [[]]} if a["id"] == 3 else a},
    "corners": {
        "annotations": lambda a: (
            a | {"bbox": [*a["bbox"][:2], a["bbox"][0] + a["bbox"][2], sum(a["bbox"][1::2])]}
        )
    },
    "ids from 0": {
        "annotations": lambda a: a | {"category_id": IDS.index(a["category_id"])},
        "categories": lambda c: c | {"id": IDS.index(c["id"])},
    },
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_train_and_evaluate_find_the_same(place: Path, tmp_path: Path, name: str) -> None:
    """Apart from what concerns the files of the images, and what only training leaves out."""
    changed(place, **ODD_FILES[name])
    content = json.loads((place / "ground_truth.json").read_text())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.json").write_text(json.dumps(content))
    write_planted(tmp_path / "labels", IMAGES, seed=3)
    trained = read_dataset(str(tmp_path / "labels" / "labels.json"))
    only_training = ("crowd", "category that no object", "image without an object")
    theirs = {str(f) for f in trained.findings if not f.kind.startswith(only_training)}
    assert set(evaluated(place)["findings"]) == theirs
    assert bool(theirs) == (name not in ("floats", "ids from 0"))


def test_the_library_takes_path_objects(place: Path) -> None:
    assert maskrcnn.open_run(place / "run").url == str(place / "run")
    assert maskrcnn.verify(place / "run").unfinished is None
    answer = maskrcnn.evaluate(place / "run", place / "ground_truth.json", page=False)
    mask, box = (answer.summary[kind][0] for kind in ("segm", "bbox"))
    assert (
        repr(answer) == f"<Evaluation of {len(answer.images)} images: mask AP {mask:.3f}, box AP {box:.3f}>"
    )
    assert answer.summary["run"] == str(place / "run")


# Runs of windows, and in a store


def test_a_run_of_windows_is_evaluated_by_its_whole_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio")
    pixels = mosaic(420, 520, 12, seed=4)
    write_geotiff(tmp_path / "in" / "mosaic.tif", pixels)
    run_windows(tmp_path / "in", tmp_path / "run")
    seen = MosaicSegmenter(max_detections=1000).segment([pixels])[0]
    boxes = seen.mask_boxes
    ground_truth = {
        "images": [{"id": 0, "file_name": "mosaic.tif", "height": 420, "width": 520}],
        "categories": [dataclasses.asdict(category) for category in PLANTED_CATEGORIES],
        "annotations": [
            {
                "id": k,
                "image_id": 0,
                "category_id": int(seen.labels[k]),
                "area": int(seen.areas[k]),
                "bbox": [int(v) for v in (*boxes[k, :2], *(boxes[k, 2:] - boxes[k, :2]))],
                "segmentation": {"size": [420, 520], "counts": seen.masks[k].decode()},
            }
            for k in range(len(seen))
        ],
    }
    (tmp_path / "ground_truth.json").write_text(json.dumps(ground_truth))
    answer = evaluated(tmp_path)
    assert answer["segm"][0] == pytest.approx(1.0)
    assert answer["objects"] == len(seen)

    # Of a large image the page shows what is around a fault.
    changed(tmp_path, annotations=lambda a: None if a["id"] == 0 else a)
    monkeypatch.setattr("maskrcnn.visualization.worst_images.WHOLE_PIXELS", 1000)
    assert evaluated(tmp_path)["at_half"]["false_positives"] == 1
    page = (tmp_path / "run" / "evaluation" / "evaluation.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2


@pytest.mark.s3
def test_output_and_ground_truth_may_lie_in_a_store(finished: Path, moto_server: S3Server) -> None:
    prefix = moto_server.prefix()
    storage = Storage(prefix)
    for path in sorted((finished / "run").rglob("*")):
        if path.is_file() and "evaluation" not in path.parts[len(finished.parts) :]:
            storage.write(f"run/{path.relative_to(finished / 'run')}", path.read_bytes())
    storage.write("ground_truth.json", (finished / "ground_truth.json").read_bytes())
    arguments = ["evaluate", f"{prefix}/run", "--truth", f"{prefix}/ground_truth.json", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["segm"] == evaluated(finished)["segm"]
    assert [path for path in storage.list("run/evaluation") if "ground-truth" in path] == []
    assert storage.exists("run/evaluation/evaluation.html")


def test_ids_that_agree_by_chance_raise_a_doubt(tmp_path: Path) -> None:
    write_planted(tmp_path / "images", 3, seed=5)
    source = tmp_path / "images" / "instances.json"
    finish(tmp_path / "run", str(source), PlantedSegmenter())
    shutil.copy(source, tmp_path / "ground_truth.json")
    more = {"id": 99, "file_name": "none.png"}
    ground_truth = changed(tmp_path, images=lambda image: image | {"file_name": f"other-{image['id']}.png"})
    (tmp_path / "ground_truth.json").write_text(
        json.dumps(ground_truth | {"images": [*ground_truth["images"], more]})
    )
    refused = command(tmp_path)
    assert refused.exit_code == 2
    assert "3 images in both under another name: is it the right ground truth?" in refused.stderr
