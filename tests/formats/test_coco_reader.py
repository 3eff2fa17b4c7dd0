"""The ground truth's file: read in pieces of any size it says what it says as a whole; what is none is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.errors import UsageError
from maskrcnn.formats import coco_reader as truth_module
from maskrcnn.formats.coco_reader import read_ground_truth

IMAGES = [{"id": 7, "file_name": "a.png", "width": 30, "height": 20}, {"id": 3, "file_name": "b.png"}]
CATEGORIES = [{"id": 2, "name": "leaf"}, {"id": 9, "name": "coin"}]
TRIANGLE = [1.5, 2.0, 9.0, 2.0, 9.0, 9.5]


def annotation(**changes: Any) -> dict[str, Any]:
    entry = {
        "id": 1,
        "image_id": 7,
        "category_id": 2,
        "bbox": [1, 2, 8, 7.5],
        "area": 28.125,
        "iscrowd": 0,
        "segmentation": [TRIANGLE],
    }
    return {key: value for key, value in (entry | changes).items() if value is not ...}


def dataset(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    whole = {
        "info": {"year": 2026},
        "images": IMAGES,
        "annotations": list(annotations),
        "categories": CATEGORIES,
    }
    return {key: value for key, value in (whole | changes).items() if value is not ...}


def written(folder: Path, content: Any) -> str:
    path = folder / "truth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_columns_say_what_the_file_says(tmp_path: Path) -> None:
    uncompressed = {"size": [20, 30], "counts": [5, 10, 585]}
    compressed = coco_mask.frPyObjects(uncompressed, 20, 30)
    crowd = annotation(image_id=3, category_id=9, iscrowd=1, segmentation=uncompressed)
    text = annotation(segmentation={"size": [20, 30], "counts": compressed["counts"].decode()})
    two = annotation(segmentation=[TRIANGLE, [*TRIANGLE, 3, 3]])
    truth = read_ground_truth(written(tmp_path, dataset(annotation(), crowd, text, two)))

    assert truth.image_ids == [7, 3]
    assert truth.names == ["a.png", "b.png"]
    assert truth.sizes.tolist() == [[20, 30], [0, 0]]
    assert [(category.id, category.name) for category in truth.categories] == [(2, "leaf"), (9, "coin")]
    rows = truth.annotations.to_pylist()
    assert [row["number"] for row in rows] == [1, 2, 3, 4]
    assert [(row["image"], row["category"], row["crowd"]) for row in rows[:2]] == [
        (0, 0, False),
        (1, 1, True),
    ]
    assert [rows[0][side] for side in ("x", "y", "width", "height", "area")] == [1, 2, 8, 7.5, 28.125]
    assert rows[1]["shape"] == rows[2]["shape"] == compressed["counts"]
    assert (rows[1]["mask_height"], rows[1]["mask_width"], rows[1]["rings"]) == (20, 30, [])
    assert np.frombuffer(rows[3]["shape"]).tolist() == [*TRIANGLE, *TRIANGLE, 3, 3]
    assert rows[3]["rings"] == [6, 8]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    characters=st.integers(1, 60),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    order=st.permutations(["info", "images", "annotations", "categories", "licenses"]),
    areas=st.lists(st.floats(0, 1e300), max_size=5),
    name=st.text(max_size=8),
)
def test_the_size_of_a_piece_and_the_order_of_the_lists_change_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    characters: int,
    indent: int | None,
    ascii_only: bool,
    order: list[str],
    areas: list[float],
    name: str,
) -> None:
    name = name.encode("utf-8", "replace").decode()
    named = [{"id": 7, "file_name": name, "width": 5, "height": 4, "license": -1.5e-3}]
    whole = dataset(*(annotation(area=area) for area in areas), images=named) | {"licenses": [1, None, "[{"]}
    text = json.dumps({key: whole[key] for key in order}, indent=indent, ensure_ascii=ascii_only)
    with monkeypatch.context() as patch:
        patch.setattr(truth_module, "_READ_CHARACTERS", characters)
        patch.setattr(truth_module, "_BATCH", 2)
        truth = read_ground_truth(written(tmp_path, text))
    assert truth.names == [name]
    assert truth.annotations["area"].to_pylist() == areas
    assert len(truth.categories) == 2


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "expected one of"),
        ("{", "not JSON"),
        ('{"images": [{"id": 1}', "not JSON: expected one of"),
        ('{"images": [{"id": 1 "x": 2}]}' + " " * 100, "not JSON: Expecting"),
        ("[]", "not a COCO dataset but a list"),
        ({}, "images, annotations, categories missing"),
        (dataset(images=...), "images missing"),
        (dataset(annotations={}), r"expected one of \["),
        (dataset(annotations=[3]), "annotations holds 3"),
        (dataset(annotations=[None]), "annotations holds null"),
        (dataset(annotation(area=...)), r"annotation 1 of the truth \(id 1\) lacks area"),
        (dataset(annotation(), annotation(id=8, bbox=...)), r"annotation 2 of the truth \(id 8\) lacks bbox"),
        (dataset(annotation(area=float("nan"))), "the area nan"),
        (dataset(annotation(area=None)), "the area None"),
        (dataset(annotation(area=-1)), "the area -1"),
        (dataset(annotation(bbox=[1, 2, 3])), r"the bbox \[1, 2, 3\]"),
        (dataset(annotation(bbox=[1, 2, 3, float("inf")])), "bbox"),
        (dataset(annotation(bbox="1 2 3 4")), "bbox"),
        (dataset(annotation(segmentation=[[1, 2, 3, 4]])), "polygon of 4 numbers"),
        (dataset(annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]])), "polygon of 7 numbers"),
        (dataset(annotation(segmentation=[["a"] * 6])), "neither polygons nor RLE"),
        (dataset(annotation(segmentation=[1, 2, 3, 4, 5, 6])), "neither polygons nor RLE"),
        (dataset(annotation(segmentation={"counts": "abc"})), "neither polygons nor RLE"),
        (dataset(annotation(segmentation={"size": [10**12, 2], "counts": [3]})), "neither polygons nor RLE"),
        (dataset(annotation(segmentation={"size": [2.5, 2], "counts": [3]})), "neither polygons nor RLE"),
        (dataset(annotation(segmentation={"size": [2, 2], "counts": [-1, 5]})), "neither polygons nor RLE"),
        (
            dataset(annotation(), annotation(segmentation=[])),
            "1 annotations of the truth have no segmentation",
        ),
        (dataset(annotation(image_id=8)), "image 8, which the truth does not list"),
        (dataset(annotation(image_id=[7])), "which the truth does not list"),
        (dataset(annotation(category_id=1)), "category 1, which the truth does not list"),
        (dataset(images=[*IMAGES, IMAGES[0]]), "two images of the id 7"),
        (dataset(categories=[*CATEGORIES, CATEGORIES[0]]), "two categories of the id 2"),
        (dataset(categories=[]), "has no categories"),
        (dataset(images=[{"file_name": "a.png"}]), "an image without an id"),
        (dataset(categories=[{"name": "leaf"}]), "a category without an id"),
        (dataset(images=[*IMAGES, {"id": "c"}]), "numbers here and texts there"),
        (dataset(categories=[{"id": "leaf"}]), "categories have numbers"),
    ],
)
def test_what_is_no_ground_truth_is_refused_in_one_line(tmp_path: Path, content: Any, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as refused:
        read_ground_truth(written(tmp_path, content))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_ground_truth(str(tmp_path / "none.json"))
    (tmp_path / "image.json").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UsageError, match=r"image\.json"):
        read_ground_truth(str(tmp_path / "image.json"))


def test_a_truth_of_boxes_alone_has_no_masks(tmp_path: Path) -> None:
    assert not read_ground_truth(written(tmp_path, dataset(annotation(segmentation=...)))).has_masks
    assert not read_ground_truth(written(tmp_path, dataset(annotation(segmentation=[])))).has_masks
    assert read_ground_truth(written(tmp_path, dataset(annotation()))).has_masks
    assert read_ground_truth(written(tmp_path, dataset())).has_masks
