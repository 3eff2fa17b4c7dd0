"""The images of LVIS and of MegaDetector's results as inputs; those of COCO are in `pipeline/test_list_inputs.py`."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import UsageError
from maskrcnn.formats.coco_reader import read_coco
from maskrcnn.formats.json_images import read_json_images
from maskrcnn.pipeline.list_inputs import read_inputs

CATEGORIES = {"1": "animal", "2": "person", "3": "vehicle"}
COLUMNS = ("n_detections", "max_detection_conf", "max_conf_animal", "max_conf_person", "max_conf_vehicle")


def written(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def megadetector(images: list[dict[str, Any]]) -> dict[str, Any]:
    info = {"format_version": "1.4", "detector": "md_v5a.0.0.pt"}
    return {"images": images, "detection_categories": CATEGORIES, "info": info}


DETECTIONS = st.lists(
    st.fixed_dictionaries(
        {
            "category": st.sampled_from(sorted(CATEGORIES)),
            "conf": st.floats(0, 1).map(lambda conf: round(conf, 3)),
            "bbox": st.just([0.1, 0.2, 0.3, 0.4]),
        }
    ),
    max_size=4,
)


@given(st.lists(DETECTIONS, min_size=1, max_size=4), st.booleans())
@settings(max_examples=50)
def test_detections_become_their_number_and_best_confidences(
    tmp_path_factory: pytest.TempPathFactory, detections: list[list[dict[str, Any]]], categories_first: bool
) -> None:
    folder = tmp_path_factory.mktemp("md")
    images = [{"file": f"cam/{number}.jpg", "detections": each} for number, each in enumerate(detections)]
    content = megadetector(images)
    if categories_first:
        content = dict(sorted(content.items()))
    for image, row in zip(
        images, read_json_images(written(folder / "md.json", content)).to_pylist(), strict=True
    ):
        found = image["detections"]
        assert (row["uri"], row["name"], row["n_detections"]) == (image["file"], image["file"], len(found))
        assert row["max_detection_conf"] == max((each["conf"] for each in found), default=0)
        for category, name in CATEGORIES.items():
            confs = [each["conf"] for each in found if each["category"] == category]
            assert row[f"max_conf_{name}"] == max(confs, default=0)


def test_what_else_megadetector_says_of_an_image_is_carried(tmp_path: Path) -> None:
    images = [
        {"file": "a.jpg", "failure": "image access failure", "detections": None},
        {"file": "sub\\b.jpg", "detections": [{"category": "9", "conf": 0.5}], "datetime": "2024:05:01"},
        {
            "file": "c.jpg",
            "detections": [{"category": "1", "conf": 0.9}],
            "max_detection_conf": 0.875,
            "width": 9,
        },
    ]
    for name in ("a.jpg", "sub/b.jpg", "c.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    source = written(tmp_path / "md.json", megadetector(images))
    inputs = read_inputs(source, images_root=str(tmp_path / "photos"), limit=None)
    assert inputs.table["uri"].to_pylist() == [
        f"{tmp_path}/photos/{name}" for name in ("a.jpg", "c.jpg", "sub/b.jpg")
    ]
    rows = [[row[name] for name in (*COLUMNS, "max_conf_9")] for row in inputs.table.to_pylist()]
    assert rows == [
        [None, None, None, None, None, None],
        [1, 0.875, 0.9, 0.0, 0.0, None],
        [1, 0.5, 0.0, 0.0, 0.0, 0.5],
    ]
    assert inputs.table["failure"].to_pylist() == ["image access failure", None, None]
    assert inputs.table["datetime"].to_pylist() == [None, None, "2024:05:01"]
    assert inputs.table["input_width"].to_pylist() == [None, 9, None]
    assert "detections" not in inputs.table.column_names


LVIS = {
    "images": [
        {"id": 7, "coco_url": "http://images.cocodataset.org/train2017/007.jpg", "width": 4, "height": 3},
        {"id": 3, "coco_url": "http://images.cocodataset.org/val2017/003.jpg", "width": 4, "height": 3},
    ],
    "annotations": [{"id": 1, "image_id": 3, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4}],
    "categories": [{"id": 1, "name": "leaf"}],
}


def test_lvis_names_its_images_by_their_address(tmp_path: Path) -> None:
    source = written(tmp_path / "lvis.json", LVIS)
    for name in ("train2017/007.jpg", "val2017/003.jpg"):
        (tmp_path / "coco" / name).parent.mkdir(parents=True)
        (tmp_path / "coco" / name).write_bytes(b"x")
    columns = ["image_id", "name", "uri"]

    def rows(**options: Any) -> list[tuple[Any, ...]]:
        inputs = read_inputs(source, limit=None, **options)
        return [tuple(row.values()) for row in inputs.table.select(columns).to_pylist()]

    root = tmp_path / "coco"
    below = [
        (7, "train2017/007.jpg", f"{root}/train2017/007.jpg"),
        (3, "val2017/003.jpg", f"{root}/val2017/003.jpg"),
    ]
    assert rows(images_root=str(root)) == below
    assert rows(images_root=str(root), allow_http=True) == below
    web = "http://images.cocodataset.org"
    from_web = [
        (7, "train2017/007.jpg", f"{web}/train2017/007.jpg"),
        (3, "val2017/003.jpg", f"{web}/val2017/003.jpg"),
    ]
    assert rows(images_root=None, allow_http=True) == from_web
    (tmp_path / "coco").rename(tmp_path / "images")  # one of the places where datasets have their images
    assert [uri for *_, uri in rows(images_root=None)] == [
        f"{tmp_path}/images/{name}" for name in ("train2017/007.jpg", "val2017/003.jpg")
    ]


def test_lvis_is_a_dataset_to_train_on_and_to_evaluate_with(tmp_path: Path) -> None:
    assert read_coco(written(tmp_path / "lvis.json", LVIS)).images.names == [
        "train2017/007.jpg",
        "val2017/003.jpg",
    ]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([{"file": "a.jpg"}, {"detections": []}], "1 of 2 images without `file`: add it"),
        ([{"file": "a.jpg"}, {"file_name": "b.jpg"}], "1 of 2 images without `file_name`: add it"),
        ([{"coco_url": 7}], "1 of 1 image without `file_name`: add it"),
    ],
    ids=str,
)
def test_an_image_without_a_name_is_refused(tmp_path: Path, images: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_json_images(written(tmp_path / "m.json", megadetector(images)))
