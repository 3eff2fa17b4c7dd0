"""Several datasets as one, and validation sets: categories are matched by name; images that several have are found."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.errors import UsageError
from maskrcnn.evaluation.pycocotools_reference import average_precision
from maskrcnn.training.dataset import SCHEMA, Dataset, coco_ground_truth, read_dataset, split_dataset
from maskrcnn.training.joining import join_datasets, match_validation
from maskrcnn.types import Category

SIZE = 20, 30


def mask_of(box):
    mask = np.zeros(SIZE, np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return bytes(coco_mask.encode(mask)["counts"])


def write(folder, categories, images, shade=90):
    """Write a dataset: categories by id, and for each image its objects, (category id, xmin, is crowd)."""
    folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    for number, (name, objects) in enumerate(images.items()):
        pixels = np.full((*SIZE, 3), shade + number, np.uint8)
        Image.fromarray(pixels).save(folder / name)
        for category_id, x, is_crowd in objects:
            box = (x, 2, x + 6, 9)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_id,
                    "bbox": [x, 2, 6, 7],
                    "area": 42,
                    "iscrowd": is_crowd,
                    "segmentation": {"size": list(SIZE), "counts": mask_of(box).decode()},
                }
            )
    content = {
        "images": [
            {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for number, name in enumerate(images)
        ],
        "annotations": annotations,
        "categories": [{"id": id_, "name": name} for id_, name in categories.items()],
    }
    (folder / "labels.json").write_text(json.dumps(content))
    return str(folder / "labels.json")


def objects_of(dataset):
    """All objects and crowds, as a set of image, category name, mask, and whether it is a crowd."""
    found = set()
    for row in dataset.images.to_pylist():
        pairs = [*zip(row["labels"], row["masks"], strict=True)]
        crowds = [*zip(row["crowd_labels"], row["crowds"], strict=True)]
        for at, (label, mask) in enumerate(pairs + crowds):
            found.add((row["uri"], dataset.categories[label - 1].name, mask, at >= len(pairs)))
    return found


def kinds(dataset, *, error):
    return {
        finding.kind.partition(" (")[0]: finding.count
        for finding in dataset.findings
        if finding.error is error
    }


@pytest.fixture
def two(tmp_path):
    """Two datasets whose image ids and names collide, and whose category ids mean different things."""
    one = write(
        tmp_path / "one",
        {3: "house", 7: "tree"},
        {"a.png": [(3, 1, 0), (7, 12, 0)], "b.png": [(7, 4, 1)], "c.png": []},
    )
    other = write(
        tmp_path / "other", {3: "tree", 4: "car", 9: "house"}, {"a.png": [(3, 2, 0), (9, 9, 0)], "d.png": [(4, 5, 0)]},
        shade=150,
    )  # fmt: skip
    return [read_dataset(source) for source in (one, other)]


def test_categories_of_one_name_are_one_and_every_object_is_kept(two):
    parts, joined = join_datasets(two)
    assert joined.categories == (Category(3, "house"), Category(7, "tree"), Category(8, "car"))
    assert objects_of(joined) == objects_of(two[0]) | objects_of(two[1])
    assert joined.images.schema.equals(SCHEMA)
    assert joined.images["image_id"].to_pylist() == [1, 2, 3, 4, 5]
    assert joined.images["dataset"].to_pylist() == [two[0].source] * 3 + [two[1].source] * 2
    assert [part.errors for part in parts] == [(), ()]
    assert "category of another dataset alone" in kinds(parts[0], error=False)
    assert "category of another dataset alone" not in kinds(parts[1], error=False)


def test_one_dataset_is_itself(two):
    parts, joined = join_datasets(two[:1])
    assert parts == two[:1]
    assert joined.images is two[0].images
    assert joined.categories == two[0].categories


def test_the_order_of_datasets_changes_ids_alone(two):
    _, joined = join_datasets(two)
    _, turned = join_datasets(two[::-1])
    assert objects_of(joined) == objects_of(turned)
    assert {category.name for category in joined.categories} == {
        category.name for category in turned.categories
    }
    apart = [set(split_dataset(each.images, 0.4)[1]["uri"].to_pylist()) for each in (joined, turned)]
    assert apart[0] == apart[1]


def test_an_image_of_two_datasets_is_an_error_in_both_and_is_left_out_of_both(tmp_path):
    one = write(tmp_path / "one", {1: "house"}, {"a.png": [(1, 1, 0)], "b.png": []})
    copied = write(tmp_path / "other", {1: "house"}, {"x.png": [], "y.png": [(1, 3, 0)]}, shade=200)
    (tmp_path / "other" / "x.png").write_bytes((tmp_path / "one" / "a.png").read_bytes())
    parts, joined = join_datasets([read_dataset(one), read_dataset(copied)])
    for part, mine, theirs in zip(parts, ("a.png", "x.png"), ("x.png", "a.png"), strict=True):
        (error,) = part.errors
        assert error.kind.startswith("image of several datasets")
        assert error.examples[0].startswith(f"{mine} ({theirs} of ")
    assert joined.images["name"].to_pylist() == ["b.png", "y.png"]


def test_an_empty_image_that_two_datasets_have_teaches_nothing_wrong(tmp_path):
    parts = [write(tmp_path / name, {1: "house"}, {"a.png": [], "b.png": [(1, at, 0)]}, shade=shade)
             for name, at, shade in (("one", 1, 90), ("other", 3, 91))]  # fmt: skip
    (tmp_path / "other" / "a.png").write_bytes((tmp_path / "one" / "a.png").read_bytes())
    parts, joined = join_datasets([read_dataset(source) for source in parts])
    assert not any(part.errors for part in parts)
    assert joined.images.num_rows == 4


def test_names_that_differ_in_case_or_blanks_are_two_categories_with_a_warning(tmp_path):
    one = write(tmp_path / "one", {1: "traffic light"}, {"a.png": [(1, 1, 0)]})
    other = write(tmp_path / "other", {1: "Traffic Light "}, {"b.png": [(1, 3, 0)]}, shade=200)
    parts, joined = join_datasets([read_dataset(one), read_dataset(other)])
    assert len(joined.categories) == 2
    for part in parts:
        assert "category name that differs from another dataset's in case or blanks alone" in kinds(
            part, error=False
        )


NAMES = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=5, unique=True)


def dataset_of(source, names, labels):
    """A dataset of one image for each list of labels."""
    rows = [
        {
            "image_id": number, "name": f"{number}.png", "uri": f"{source}/{number}.png", "height": 1, "width": 1,
            "labels": each, "masks": [f"{source}{number}{n}".encode() for n in range(len(each))], "boxes": [],
            "crowd_labels": each[:1], "crowds": [b"crowd"] * len(each[:1]),
            "dataset": source, "sha256": f"{source}{number}",
        }
        for number, each in enumerate(labels)
    ]  # fmt: skip
    import pyarrow as pa

    table = pa.Table.from_pylist(rows, SCHEMA)
    return Dataset(
        source, table, tuple(Category(2 * at, name) for at, name in enumerate(names)), (), (len(rows), 0)
    )


@st.composite
def datasets(draw, source):
    names = draw(NAMES)
    labels = st.lists(st.lists(st.integers(1, len(names)), max_size=4), min_size=1, max_size=4)
    return dataset_of(source, names, draw(labels))


@settings(deadline=None, max_examples=60)
@given(datasets("one"), datasets("two"), datasets("three"))
def test_joining_keeps_every_object_with_its_name(one, two, three):
    _, joined = join_datasets([one, two, three])
    assert objects_of(joined) == objects_of(one) | objects_of(two) | objects_of(three)
    names = [category.name for category in joined.categories]
    ids = [category.id for category in joined.categories]
    assert len(set(names)) == len(names)
    assert ids == sorted(set(ids))
    assert joined.categories[: len(one.categories)] == one.categories


@settings(deadline=None, max_examples=60)
@given(datasets("training"), datasets("validation"))
def test_a_validation_set_keeps_the_objects_of_trained_categories(training, validation):
    trained = {category.name for category in training.categories}
    if trained.isdisjoint(category.name for category in validation.categories):
        with pytest.raises(UsageError, match="has no category of the training set"):
            match_validation(validation, training)
        return
    matched = match_validation(validation, training)
    assert matched.categories == training.categories
    assert matched.images.num_rows == validation.images.num_rows
    assert objects_of(matched) == {entry for entry in objects_of(validation) if entry[1] in trained}
    assert not matched.errors


def test_what_training_and_validation_do_not_share_is_said(tmp_path):
    training = read_dataset(
        write(
            tmp_path / "one", {1: "house", 2: "tree", 3: "Car"}, {"a.png": [(1, 1, 0), (2, 9, 0), (3, 20, 0)]}
        )
    )
    validation = read_dataset(
        write(
            tmp_path / "val", {8: "car", 5: "house", 6: "bus"},
            {"a.png": [(5, 1, 0), (6, 9, 0), (6, 20, 0), (8, 12, 0)]}, shade=200,
        )
    )  # fmt: skip
    matched = match_validation(validation, training)
    (error,) = matched.errors
    assert str(error) == (
        "error: category name that differs from the training set's in case or blanks alone (write both the same) (1): "
        "'car' (1 object), in training 'Car'"
    )
    found = {finding.kind: finding.examples for finding in matched.findings if not finding.error}
    assert found["category that is not trained on, left out of the validation"] == ("bus (2 objects)",)
    assert found["category of the training set alone, left out of the average precision"] == ("tree", "Car")
    assert "image that is also trained on, whose precision is not that of new images" not in found
    assert matched.images["labels"].to_pylist() == [[1]]
    # The network finds all there is, and what the validation set does not know of; only the house counts.
    ground_truth = coco_ground_truth(matched.images, matched.categories)
    results = [
        {
            "image_id": 0,
            "category_id": id_,
            "score": 0.9,
            "segmentation": {"size": SIZE, "counts": mask_of(box)},
        }
        for id_, box in ((1, (1, 2, 7, 9)), (2, (9, 2, 15, 9)))
    ]
    assert dict(average_precision(ground_truth, results, "segm").per_category) == {"house": pytest.approx(1)}


def test_without_a_common_category_names_that_differ_in_case_alone_are_listed():
    training = dataset_of("train.json", ["person", "traffic light", "cat"], [[1]])
    validation = dataset_of("val.json", ["Person", "TrafficLight", "bus"], [[1]])
    with pytest.raises(UsageError) as refused:
        match_validation(validation, training)
    assert str(refused.value) == (
        "val.json has no category of the training set; names differ in case or blanks alone ('Person' there, 'person' "
        "in training, 'TrafficLight' there, 'traffic light' in training): write both the same"
    )
    with pytest.raises(
        UsageError, match=r"it has bus, and the training set person, .*: name the categories as in"
    ):
        match_validation(dataset_of("val.json", ["bus"], [[1]]), training)


def test_an_image_that_is_also_trained_on_is_a_warning(two):
    matched = match_validation(two[0], two[0])
    assert not matched.errors
    (warning,) = [finding for finding in matched.findings if finding.kind.startswith("image that is also")]
    assert warning.count == 3
    assert matched.images.equals(two[0].images)
