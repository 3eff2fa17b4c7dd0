"""Average precision: what COCOeval says of a real network, and what it must say of examples made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn.errors import UsageError
from maskrcnn.evaluation.pycocotools_reference import average_precision

FIXTURE = Path(__file__).parents[3] / "shared" / "data" / "eval_fixture"
needs_fixture = pytest.mark.skipif(
    not FIXTURE.exists(), reason="needs the evaluation fixture, which is not ours"
)


def rle(x, y, width, height):
    """A rectangle in an image of 200 x 200, as JSON has it."""
    mask = np.zeros((200, 200), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    encoded = coco_mask.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def annotation(id_, image_id, category_id, box):
    return {
        "id": id_, "image_id": image_id, "category_id": category_id, "bbox": list(box), "area": box[2] * box[3],
        "segmentation": rle(*box), "iscrowd": 0,
    }  # fmt: skip


def result(image_id, category_id, box, score=0.9):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "segmentation": rle(*box),
        "score": score,
    }


BOXES = [(10, 10, 20, 20), (50, 50, 60, 60), (5, 120, 120, 70), (150, 10, 40, 90)]


def ground_truth(first_id=1):
    """Two images, four objects, two categories that are there and one that is not."""
    return {
        "images": [{"id": i, "width": 200, "height": 200} for i in (0, 7)],
        "categories": [{"id": 1, "name": "plank"}, {"id": 3, "name": "coin"}, {"id": 4, "name": "leaf"}],
        "annotations": [
            annotation(first_id + n, (0, 7)[n // 2], (1, 3)[n % 2], box) for n, box in enumerate(BOXES)
        ],
    }


def perfect():
    return [result(a["image_id"], a["category_id"], a["bbox"]) for a in ground_truth()["annotations"]]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("first_id", [0, 1])
def test_the_ground_truth_itself_scores_one_wherever_its_ids_start(iou_type, first_id):
    """COCOeval takes the id 0 for "unmatched"."""
    precision = average_precision(ground_truth(first_id), perfect(), iou_type)
    assert (precision.ap, precision.ap50, precision.ap75) == pytest.approx((1, 1, 1))
    assert (precision.small, precision.medium, precision.large) == pytest.approx((1, 1, -1))
    assert precision.per_category == pytest.approx({"plank": 1, "coin": 1})
    assert len(precision.stats) == 12


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_nothing_found_scores_zero(iou_type):
    precision = average_precision(ground_truth(), [], iou_type)
    assert precision.ap == precision.ap50 == 0
    assert precision.per_category == {"plank": 0, "coin": 0}


def test_one_of_two_found_scores_a_half():
    """At recalls 0, 0.01, … 0.50 of the 101 the precision is 1, above it 0."""
    precision = average_precision(ground_truth(), [r for r in perfect() if r["image_id"] == 0], "segm")
    assert precision.ap == pytest.approx(51 / 101)


def test_a_box_that_overlaps_by_two_thirds_counts_up_to_that_iou():
    dataset = ground_truth() | {"annotations": [annotation(5, 0, 1, (0, 0, 100, 100))]}
    precision = average_precision(dataset, [result(0, 1, (0, 0, 100, 67))], "bbox")
    assert (precision.ap50, precision.ap75) == pytest.approx((1, 0))
    assert precision.ap == pytest.approx(4 / 10)  # 0.50, 0.55, 0.60, 0.65


def test_the_size_of_a_result_is_its_masks_where_masks_are_compared():
    """A wrong result outside of a range of sizes is ignored there; `loadRes` would take its box for its size."""
    dataset = ground_truth() | {"annotations": [annotation(1, 0, 1, (0, 0, 20, 20))]}
    wrong = result(0, 1, (100, 100, 50, 50), score=0.95)
    wrong["bbox"] = [100, 100, 10, 10]  # small, though the mask is not
    results = [wrong, result(0, 1, (0, 0, 20, 20), score=0.9)]
    assert average_precision(dataset, results, "segm").small == pytest.approx(1)
    assert average_precision(dataset, results, "bbox").small == pytest.approx(0.5)


def test_results_of_one_kind_are_enough():
    boxes = [{k: v for k, v in r.items() if k != "segmentation"} for r in perfect()]
    masks = [{k: v for k, v in r.items() if k != "bbox"} for r in perfect()]
    assert average_precision(ground_truth(), boxes, "bbox").ap == pytest.approx(1)
    assert average_precision(ground_truth(), masks, "segm").ap == pytest.approx(1)


def test_the_arguments_are_left_as_they_were_and_stdout_stays_silent(capsys):
    dataset, results = ground_truth(first_id=0), perfect()
    average_precision(dataset, results, "segm")
    assert (dataset, results) == (ground_truth(first_id=0), perfect())
    assert capsys.readouterr().out == ""


def test_files_are_read(tmp_path):
    (tmp_path / "ground_truth.json").write_text(json.dumps(ground_truth()))
    (tmp_path / "results.json").write_text(json.dumps(perfect()))
    assert average_precision(
        tmp_path / "ground_truth.json", tmp_path / "results.json", "segm"
    ).ap == pytest.approx(1)
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(UsageError, match="not JSON"):
        average_precision(tmp_path / "ground_truth.json", tmp_path / "broken.json", "segm")
    with pytest.raises(UsageError, match="does not exist"):
        average_precision(tmp_path / "absent.json", tmp_path / "results.json", "segm")


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


@pytest.mark.parametrize(
    ("dataset", "results", "complaint"),
    [
        ([], [], "annotations, categories, images missing"),
        (without(ground_truth(), "images"), [], "images missing"),
        (ground_truth(), ground_truth(), "bare JSON list"),
        (ground_truth(), [without(perfect()[0], "score")], "score"),
        (ground_truth(), [without(perfect()[0], "segmentation")], "segmentation"),
        (ground_truth(), [result(99, 1, BOXES[0])], "image 99"),
        (ground_truth(), [result(0, 2, BOXES[0])], "category id"),
        (
            ground_truth() | {"annotations": [without(annotation(8, 0, 1, BOXES[0]), "area")]},
            [],
            "annotation 8 .* area",
        ),
        (ground_truth() | {"annotations": [annotation(8, 99, 1, BOXES[0])]}, [], "image 99"),
        (
            ground_truth() | {"categories": [{"id": 1, "name": "a"}, {"id": 3, "name": "a"}]},
            [],
            "with the same name",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(dataset, results, complaint):
    with pytest.raises(UsageError, match=complaint) as refused:
        average_precision(dataset, results, "segm")
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@needs_fixture
@pytest.mark.parametrize(("iou_type", "expected"), [("bbox", 0.300), ("segm", 0.281)])
def test_a_real_networks_results_score_what_is_known_of_them(iou_type, expected):
    precision = average_precision(FIXTURE / "instances.json", FIXTURE / f"results_{iou_type}.json", iou_type)
    assert round(precision.ap, 3) == expected
    assert np.mean(list(precision.per_category.values())) == pytest.approx(precision.ap)


@pytest.mark.slow
@needs_fixture
def test_results_with_boxes_and_masks_score_like_masks_alone():
    masks = json.loads((FIXTURE / "results_segm.json").read_text())
    boxes = json.loads((FIXTURE / "results_bbox.json").read_text())
    both = [mask | {"bbox": box["bbox"]} for mask, box in zip(masks, boxes, strict=True)]
    dataset = json.loads((FIXTURE / "instances.json").read_text())
    assert average_precision(dataset, both, "segm") == average_precision(dataset, masks, "segm")
