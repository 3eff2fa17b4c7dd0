"""A dataset to train on: each fault is found, named and counted."""

import copy
import json

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.errors import UsageError
from maskrcnn.imaging.decode import decode_image
from maskrcnn.io.inputs import read_input
from maskrcnn.training.dataset import LIMITS, SCHEMA, coco_ground_truth, read_dataset, split_dataset
from maskrcnn.types import Category

NAN = float("nan")


def rle(height, width, box):
    mask = np.zeros((height, width), np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return {"size": [height, width], "counts": coco_mask.encode(mask)["counts"].decode()}


def annotation(number, image_id, box=(2, 3, 12, 13), category_id=7, **other):
    x0, y0, x1, y1 = box
    entry = {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "segmentation": rle(20, 30, box),
    }
    return entry | other


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(folder / name)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return folder


def good():
    return {
        "images": [
            {"id": i, "file_name": f"{name}.png", "height": 20, "width": 30} for i, name in enumerate("abc")
        ],
        "annotations": [annotation(0, 0), annotation(1, 0, (5, 5, 9, 9), 9), annotation(2, 2)],
        "categories": [{"id": 9, "name": "tree"}, {"id": 7, "name": "house"}],
    }


def read(folder, content, **options):
    (folder / "labels.json").write_text(json.dumps(content))
    return read_dataset(str(folder / "labels.json"), **options)


def findings_of(folder, content):
    return {(finding.error, finding.kind): finding.count for finding in read(folder, content).findings}


def test_a_good_dataset_becomes_a_table(folder):
    dataset = read(folder, good())
    assert dataset.images.schema.equals(SCHEMA)
    assert dataset.images["image_id"].to_pylist() == [0, 1, 2]
    assert dataset.images["labels"].to_pylist() == [[1, 2], [], [1]]
    assert dataset.categories == (Category(7, "house"), Category(9, "tree"))
    assert dataset.n_objects == 3
    assert dataset.errors == ()
    mask = coco_mask.decode({"size": [20, 30], "counts": dataset.images["masks"][0][1].as_py()})
    assert np.argwhere(mask).min(0).tolist() == [5, 5]
    assert mask.sum() == 16


def test_polygons_and_plain_runs_are_masks(folder):
    content = good()
    content["annotations"][0]["segmentation"] = [[2, 3, 12, 3, 12, 13, 2, 13]]
    plain = [62, 10] + [10, 10] * 9
    content["annotations"][2]["segmentation"] = {"size": [20, 30], "counts": [*plain, 600 - sum(plain)]}
    content["annotations"][2]["bbox"] = [3, 2, 10, 10]
    dataset = read(folder, content)
    assert dataset.errors == ()
    polygon, _ = dataset.images["masks"][0].as_py()
    (runs,) = dataset.images["masks"][2].as_py()
    assert coco_mask.toBbox({"size": [20, 30], "counts": polygon}).tolist() == [2, 3, 10, 10]
    assert coco_mask.toBbox({"size": [20, 30], "counts": runs}).tolist() == [3, 2, 10, 10]


BROKEN = {
    "annotation of an unknown category": {"category_id": 8},
    "annotation id used twice, here and by an earlier annotation (give each its own)": {"id": 0},
    "annotation of an unknown image": {"image_id": 77},
    "annotation that is not an object": None,
    "polygon of fewer than three points": {"segmentation": [[1, 2, 3, 4]]},
    "polygon with a point that is not finite": {"segmentation": [[1, 2, 3, 4, NAN, 6]]},
    "polygon with a point far outside of its image": {"segmentation": [[1, 2, 3, 4, 1e9, 6]]},
    "annotation without a mask": {"segmentation": []},
    "segmentation that is neither polygons nor run lengths": {"segmentation": 7},
    "segmentation that is one list of numbers (COCO's is a list of polygons, each a list)": {
        "segmentation": [1, 2, 9, 2, 9, 8]
    },
    "mask of another size than its image": {"segmentation": rle(30, 21, (1, 1, 3, 3))},
    "mask whose run lengths are damaged": {"segmentation": {"size": [20, 30], "counts": "oops"}},
    "iscrowd that is neither 0 nor 1": {"iscrowd": "0"},
}
ODD = [None, True, 1.0, "1", [1], {}, 10**400, -(10**400), 2**63, float("inf")]


@pytest.mark.parametrize(
    ("kind", "change"), BROKEN.items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_fault_of_an_annotation_is_named_and_the_others_stay(folder, kind, change):
    content = good()
    entries = content["annotations"]
    entries[1] = None if change is None else entries[1] | change
    dataset = read(folder, content)
    (error,) = dataset.errors
    assert (error.kind, error.count) == (kind, 1)
    assert error.examples[0].startswith("annotation ")
    assert dataset.n_objects == 2


USED_ALL_THE_SAME = {
    "annotation without an id": {"id": ...},
    "bbox that is not four finite numbers; the box of its mask is used": {"bbox": [1, NAN, 3, 4]},
    "annotation without a bbox; the box of its mask is used": {"bbox": ...},
    "annotation without an area; the area of its mask is used": {"area": ...},
    "area that does not fit its mask (evaluate's small, medium and large go by it)": {"area": 64},
    "box that fits its mask only as xmin, ymin, xmax, ymax (COCO's are xmin, ymin, width, height)": {
        "bbox": [5, 5, 9, 9]
    },
    "box that fits its mask only if the run lengths go by row (COCO's go by column)": {
        "bbox": [16, 2, 6, 3],
        "segmentation": {"size": [20, 30], "counts": [2 * 30 + 16, *[6, 24] * 2, 6, 600 - 76 - 6 - 60]},
    },
}


@pytest.mark.parametrize(
    ("kind", "change"), USED_ALL_THE_SAME.items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_odd_with_an_annotation_is_a_warning_and_it_stays(folder, kind, change):
    content = good()
    entry = content["annotations"][1] | change
    content["annotations"][1] = {key: value for key, value in entry.items() if value is not ...}
    dataset = read(folder, content)
    assert dataset.n_objects == 3
    assert {(f.error, f.kind): f.count for f in dataset.findings if "image without" not in f.kind} == {
        (False, kind): 1
    }


@pytest.mark.parametrize(
    "change", [{"id": 1.0}, {"id": "one"}, {"image_id": 0.0}, {"category_id": 9.0}], ids=str
)
def test_ids_are_names_and_an_integral_float_is_its_integer(folder, change):
    content = good()
    content["annotations"][1] |= change
    dataset = read(folder, content)
    assert dataset.images["labels"].to_pylist() == [[1, 2], [], [1]]
    assert {finding.kind for finding in dataset.findings} == {
        "image without an object, trained on as background"
    }


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:8])
@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "area"])
def test_no_value_of_a_json_is_more_than_a_finding(folder, key, odd):
    content = good()
    for value in (odd, [odd] * 4, [[odd] * 6]):
        content["annotations"][1][key] = value
        assert read(folder, content).n_objects in (2, 3)


@pytest.mark.parametrize(
    "odd",
    [*ODD, "/etc/passwd", "../a.png", ".", "https://x/a.png", "a\0.png", "i1.png/"],
    ids=lambda odd: repr(odd)[:12],
)
@pytest.mark.parametrize("key", ["id", "file_name", "height", "width"])
def test_no_value_of_an_image_is_more_than_a_finding(folder, key, odd):
    content = good()
    content["images"][0][key] = odd  # of the first, by which the folder is found
    if key in ("height", "width"):
        dataset = read(folder, content)
        if odd == 1.0 and odd is not True:  # which is 1, and no fault of the JSON but of the size
            assert [error.kind for error in dataset.errors] == ["image of another size than stated"]
            return
        assert dataset.errors == ()
        found = {finding.kind: finding.count for finding in dataset.findings}
        assert found["image without height and width; the file's are used"] == 1
        assert dataset.images["height"].to_pylist() == [20] * 3
        return
    dataset = read(folder, content)
    assert {"image" in error.kind for error in dataset.errors} == {True}
    doubled = key == "id" and odd == 1.0 and odd is not True  # which is the id of the second
    assert dataset.images["image_id"].to_pylist() == ([2] if doubled else [1, 2])
    lost = {finding.kind: finding.count for finding in dataset.findings if "annotation" in finding.kind}
    assert sum(lost.values()) == 2


def test_a_size_without_exif_is_named_with_the_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    content = good()
    content["images"] = [{"id": 0, "file_name": "a.jpg", "height": 20, "width": 30}]
    dataset = read(tmp_path, content)
    (error,) = [error for error in dataset.errors if "size" in error.kind]
    assert error.examples == (
        "a.jpg (height x width is 30 x 20, stated 20 x 30; EXIF orientation 6 turns the file)",
    )
    lost = {finding.kind: finding.count for finding in dataset.findings}
    assert lost["annotation of an image that is left out"] == 2


def test_images_of_cocos_own_layout_are_found_and_else_the_folders_are_named(tmp_path, folder):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    for name in "abc":
        (tmp_path / "train2017" / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    source = tmp_path / "annotations" / "instances_train2017.json"
    source.write_text(json.dumps(good()))
    assert read_dataset(str(source)).errors == ()
    (tmp_path / "train2017").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"train2017.*--images-root"):
        read_dataset(str(source))
    assert read_dataset(str(source), str(tmp_path / "elsewhere")).errors == ()


def test_names_that_windows_wrote_are_paths_below_the_folder(tmp_path, folder):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    content = good()
    for image in content["images"]:
        (tmp_path / "images" / "sub" / image["file_name"]).write_bytes(
            (folder / image["file_name"]).read_bytes()
        )
        image["file_name"] = f"sub\\{image['file_name']}"
    dataset = read(tmp_path, content)
    assert dataset.errors == ()
    assert dataset.images["uri"].to_pylist() == [f"{tmp_path}/images/sub/{name}.png" for name in "abc"]
    content["images"][0]["file_name"] = "..\\a.png"
    (error,) = read(tmp_path, content).errors
    assert (error.kind, error.count) == ("image whose file_name is not a path below the images' folder", 1)


def test_a_name_may_begin_with_the_folder_that_it_is_in(tmp_path, folder):
    (tmp_path / "images").mkdir()
    content = good()
    for image in content["images"]:
        (tmp_path / "images" / image["file_name"]).write_bytes((folder / image["file_name"]).read_bytes())
    for image, written in zip(content["images"], ("./a.png", ".//./b.png", ".\\c.png"), strict=True):
        image["file_name"] = written
    dataset = read(tmp_path, content)
    assert dataset.errors == ()
    assert dataset.images["uri"].to_pylist() == [f"{tmp_path}/images/{name}.png" for name in "abc"]


def test_whole_paths_and_urls_are_read_where_they_lead(tmp_path, folder):
    content = good()
    MemoryFileSystem().pipe("/whole/c.png", (folder / "c.png").read_bytes())
    places = f"{folder}/a.png", f"file://{folder}/b.png", "memory://whole/c.png"
    for image, place in zip(content["images"], places, strict=True):
        image["file_name"] = place
    dataset = read(tmp_path, content)
    assert dataset.errors == ()
    assert dataset.images["name"].to_pylist() == list(places)
    assert [image.shape for image in map(pixels_of, dataset.images["uri"].to_pylist())] == [(20, 30, 3)] * 3


def pixels_of(uri):
    return decode_image(read_input(uri, 10**6), LIMITS).pixels


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("/nowhere/a.png", "a whole path or URL where there is no file"),
        ("memory://nowhere/a.png", "a whole path or URL where there is no file"),
        ("https://host/a.png?token=SECRET", "an address on the web"),
        ("s3://me:SECRET@bucket/a.png", "a URL with a user or a password"),
        ("https://me:SECRET@host/a.png", "a URL with a user or a password"),
        ("hdfs://host/a.png", "a URL of no supported store"),
        ("C:\\photos\\a.png", "a path with a drive of Windows"),
        ("C:/photos/a.png", "a path with a drive of Windows"),
        ("../a.png", "not a path below the images' folder"),
        ("x/../../a.png", "not a path below the images' folder"),
        ("a.png/", "not a path below the images' folder"),
        ("./", "not a path below the images' folder"),
        ("a\0.png", "not printable text"),
    ],
)
def test_a_name_that_leads_to_no_image_is_named_without_its_secret(folder, name, what):
    content = good()
    content["images"][0]["file_name"] = name
    dataset = read(folder, content)
    (error,) = dataset.errors
    assert error.kind.startswith(f"image whose file_name is {what}")
    assert "SECRET" not in str(error)
    assert dataset.images["name"].to_pylist() == ["b.png", "c.png"]


@pytest.mark.parametrize("again", ["a.png", "./a.png"])
def test_a_file_that_is_listed_twice_is_an_error_and_is_left_out(folder, again):
    content = good()
    content["images"].append({"id": 8, "file_name": again, "height": 20, "width": 30})
    dataset = read(folder, content)
    (error,) = dataset.errors
    assert str(error) == (
        "error: file_name of several images (list it once, with all its annotations) (1): a.png (ids 0, 8)"
    )
    assert dataset.images["name"].to_pylist() == ["b.png", "c.png"]
    assert dataset.n_objects == 1


def test_category_ids_may_begin_at_zero(folder):
    content = good()
    for entry in content["annotations"]:
        entry["category_id"] = {7: 0, 9: 1}[entry["category_id"]]
    content["categories"] = [{"id": 1, "name": "tree"}, {"id": 0, "name": "house"}]
    dataset = read(folder, content)
    assert dataset.errors == ()
    assert dataset.categories == (Category(0, "house"), Category(1, "tree"))
    assert dataset.images["labels"].to_pylist() == [[1, 2], [], [1]]


def test_one_image_that_is_missing_is_one(tmp_path, folder):
    (tmp_path / "images").mkdir()
    for name in "bc":
        (tmp_path / "images" / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    (error,) = read(tmp_path, good()).errors
    assert (error.kind, error.count) == ("image that cannot be read", 1)


def test_a_pipe_is_no_image(tmp_path, folder):
    import os

    for name in "bc":
        (tmp_path / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    os.mkfifo(tmp_path / "a.png")
    (error,) = read(tmp_path, good()).errors
    assert error.examples == ("a.png (not_found)",)


def test_a_finding_is_short(folder):
    content = good()
    content["annotations"][0] |= {"category_id": "x" * 100_000}
    (error,) = read(folder, content).errors
    assert len(str(error)) < 300


def test_names_that_look_alike_are_reported(folder):
    content = good()
    content["categories"].append({"id": 11, "name": " House"})
    content["categories"].append({"id": 12, "name": "a\0b"})
    found = findings_of(folder, content)
    assert found[False, "category name that differs from another in case or blanks alone"] == 2
    assert found[True, "category whose name is not printable text"] == 1


def test_counts_that_do_not_fill_the_image_are_damaged(folder):
    for counts in ([5, 5], [-600, 1200], [599.5, 0.5], "", "0" * 7):
        content = good()
        content["annotations"][1]["segmentation"] = {"size": [20, 30], "counts": counts}
        assert findings_of(folder, content)[True, "mask whose run lengths are damaged"] == 1


def test_what_is_used_otherwise_than_stated_is_a_warning(folder):
    content = good()
    content["annotations"][0]["bbox"] = [2, 3, 60, 10]
    content["annotations"][1] |= {"iscrowd": 1}
    content["annotations"].append(annotation(3, 1, segmentation=rle(20, 30, (0, 0, 0, 0))))
    content["annotations"].append(annotation(4, 1, bbox=[1, 1, 0, 5]))
    content["annotations"].append(annotation(5, 1, bbox=[20, 15, 5, 5]))
    dataset = read(folder, content)
    assert dataset.errors == ()
    assert {finding.kind: finding.count for finding in dataset.findings} == {
        "box that leaves its image": 1,
        "crowd, whose region is not trained on as background": 1,
        "empty mask, left out": 1,
        "box without area": 1,
        "box that does not fit its mask": 1,
        "category that no object has": 1,
    }
    assert dataset.images["labels"].to_pylist() == [[1], [1, 1], [1]]


def test_crowds_are_kept_apart_from_the_objects(folder):
    content = good()
    content["annotations"][1] |= {"iscrowd": 1}
    content["annotations"].append(annotation(3, 1, (0, 0, 30, 20), iscrowd=1))
    content["annotations"].append(annotation(4, 2, segmentation=rle(20, 30, (0, 0, 0, 0)), iscrowd=1))
    dataset = read(folder, content)
    assert dataset.errors == ()
    assert dataset.images["labels"].to_pylist() == [[1], [], [1]]
    assert dataset.images["crowd_labels"].to_pylist() == [[2], [1], []]
    assert dataset.n_objects == 2
    (mask,) = dataset.images["crowds"][1].as_py()
    assert coco_mask.area({"size": [20, 30], "counts": mask}) == 600
    found = {finding.kind: finding.count for finding in dataset.findings}
    assert found["crowd, whose region is not trained on as background"] == 2
    assert found["image without an object, trained on as background outside of its crowds"] == 1
    assert found["empty mask, left out"] == 1
    in_ground_truth = coco_ground_truth(dataset.images, dataset.categories)["annotations"]
    assert [(a["image_id"], a["category_id"], a["iscrowd"]) for a in in_ground_truth] == [
        (0, 7, 0),
        (0, 9, 1),
        (1, 7, 1),
        (2, 7, 0),
    ]


def test_the_region_of_a_crowd_is_its_box_where_only_boxes_are_detected(folder):
    content = good()
    content["annotations"][1] |= {"iscrowd": 1, "bbox": [4, 3, 20, 30], "segmentation": [], "area": 340}
    dataset = read(folder, content, masks=False)
    assert dataset.errors == ()
    assert dataset.images["labels"].to_pylist() == [[1], [], [1]]
    (counts,) = dataset.images["crowds"][0].as_py()
    region = coco_mask.decode({"size": [20, 30], "counts": counts})
    assert region.sum() == 20 * 17
    assert region[3:, 4:24].all()
    entries = coco_ground_truth(dataset.images, dataset.categories)["annotations"]
    assert [entry["bbox"] for entry in entries if entry["iscrowd"]] == [[4, 3, 20, 17]]


def test_faults_of_images_are_named(folder):
    content = good()
    content["images"] += [
        {"id": 3, "file_name": "gone.png", "height": 20, "width": 30},
        {"id": 4, "file_name": "cut.png", "height": 20, "width": 30},
        {"id": 2, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 6, "file_name": "d.png"},
        {"id": 7, "file_name": "e.png", "height": 30, "width": 20},
        {"id": "8", "file_name": "b.png", "height": 20, "width": 30},
    ]
    assert findings_of(folder, content) == {
        (True, "image that cannot be read"): 2,
        (True, "image id used twice"): 1,
        (True, "annotation of an image id used twice"): 1,
        (False, "image without height and width; the file's are used"): 1,
        (True, "image of another size than stated"): 1,
        (True, "image whose id is a text, where others are integers"): 1,
        (False, "image without an object, trained on as background"): 2,
    }
    assert read(folder, content).images["image_id"].to_pylist() == [0, 1, 6]


def test_faults_of_categories_are_named(folder):
    content = good()
    content["categories"] += [
        {"id": 7, "name": "x"},
        {"id": 8, "name": "tree"},
        {"id": 0, "name": "y"},
        {"id": 5},
        {"id": -1, "name": "z"},
    ]
    found = findings_of(folder, content)
    assert (True, "annotation of an unknown category") not in found
    assert found[True, "category id used twice"] == found[True, "category name used twice"] == 1
    assert found[True, "annotation of a category id used twice"] == 2
    assert found[True, "annotation of a category name used twice"] == 1
    assert found[True, "category without an id that is an integer from 0"] == 1
    assert found[False, "category without a name; it is named by its id"] == 1
    assert read(folder, content).categories == (Category(0, "y"), Category(5, "5"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "not a COCO dataset"),
        ("{", "labels.json"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "lists no image"),
        ('{"images": [], "annotations": [], "categories": []}', "has no category"),
        ('{"images": [1], "annotations": [], "categories": []}', "`images` holds 1 instead of objects"),
    ],
)
def test_what_is_no_dataset_is_refused_in_a_line(folder, text, says):
    (folder / "labels.json").write_text(text)
    with pytest.raises(UsageError, match=says) as raised:
        read_dataset(str(folder / "labels.json"))
    assert "\n" not in str(raised.value)


def test_images_are_found_beside_the_json_or_in_a_folder_of_its_name(tmp_path, folder):
    for below in ("images", "labels"):
        place = tmp_path / below
        (place / below).mkdir(parents=True)
        for name in "abc":
            (place / below / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
        assert read(place, good()).errors == ()


def table_of(names, objects=None):
    """Images of these names, of which some have an object."""
    columns = {
        "image_id": range(len(names)),
        "name": names,
        "uri": names,
        "height": [1] * len(names),
        "width": [1] * len(names),
        "labels": [[1] if objects is None or name in objects else [] for name in names],
        "masks": [[b"1"] if objects is None or name in objects else [] for name in names],
        "crowd_labels": [[]] * len(names),
        "boxes": [[]] * len(names),
        "crowds": [[]] * len(names),
        "dataset": ["labels.json"] * len(names),
        "sha256": names,
    }
    return pa.table(columns, schema=SCHEMA)


def sides(names, share, objects=None):
    return [set(side["name"].to_pylist()) for side in split_dataset(table_of(names, objects), share)]


NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=40, unique=True)
SHARES = st.floats(0.001, 0.999)


@pytest.mark.slow
@settings(max_examples=60)
@given(NAMES, SHARES, st.randoms())
def test_a_split_is_never_refused_and_has_the_share_that_is_asked_for(names, share, random):
    train, validation = sides(names, share)
    assert not train & validation
    assert train | validation == set(names)
    assert min(len(train), len(validation)) >= 1
    assert len(validation) in (1, len(names) - 1) or abs(len(validation) - share * len(names)) <= 0.5
    shuffled = list(names)
    random.shuffle(shuffled)
    assert sides(shuffled, share) == [train, validation]


@settings(max_examples=60)
@given(NAMES, SHARES, st.text(min_size=5, max_size=6))
def test_an_image_more_moves_at_most_one_other(names, share, new):
    (train, validation), (train_then, validation_then) = (
        sides(each, share) for each in (names, [*names, new])
    )
    assert len(validation - validation_then) + len(train - train_then) <= 1


@pytest.mark.parametrize(
    ("count", "apart"), [(2, 1), (3, 1), (14, 1), (15, 2), (30, 3), (96, 10), (1000, 100)]
)
def test_a_tenth_is_a_tenth(count, apart):
    for prefix in ("img_", "IMG-", "scene/"):
        assert len(sides([f"{prefix}{n:05}.png" for n in range(count)], 0.1)[1]) == apart


@settings(max_examples=60)
@given(NAMES, SHARES, st.data())
def test_each_side_has_objects_if_that_can_be(names, share, data):
    objects = set(data.draw(st.lists(st.sampled_from(names), unique=True)))
    train, validation = sides(names, share, objects)
    assert bool(train & objects) == (len(objects) > 0)
    assert bool(validation & objects) == (len(objects) > 1)


def test_images_of_one_name_stay_together_and_one_alone_cannot_be_split():
    train, validation = split_dataset(table_of(["a.png", "b.png", "a.png", "b.png"]), 0.5)
    assert {side["name"].to_pylist()[0] for side in (train, validation)} == {"a.png", "b.png"}
    assert train.num_rows == validation.num_rows == 2
    with pytest.raises(UsageError, match=r"^1 image cannot be split .*: give --val$"):
        split_dataset(table_of(["a.png"]), 0.5)
    with pytest.raises(UsageError, match=r"^2 images cannot be split .*: give --val$"):
        split_dataset(table_of(["a.png", "a.png"]), 0.5)


def test_the_ground_truth_of_a_table_is_the_dataset(folder):
    content = good()
    dataset = read(folder, content)
    ground_truth = coco_ground_truth(dataset.images, dataset.categories)
    for ours, theirs in zip(ground_truth["annotations"], content["annotations"], strict=True):
        assert {key: ours[key] for key in ("image_id", "category_id", "area", "bbox")} == {
            key: theirs[key] for key in ("image_id", "category_id", "area", "bbox")
        }


def test_reading_changes_nothing_of_the_content(folder):
    content = good()
    before = copy.deepcopy(content)
    read(folder, content)
    assert content == before


# --- for a network without masks ------------------------------------------------------------------------------


def boxed(**other):
    content = good()
    for entry in content["annotations"]:
        del entry["segmentation"]
        entry.update(other)
    return content


@pytest.mark.parametrize("segmentation", [{}, {"segmentation": []}, {"segmentation": None}], ids=str)
def test_a_network_without_masks_needs_boxes_alone(folder, segmentation):
    dataset = read(folder, boxed(**segmentation), masks=False)
    assert dataset.errors == ()
    assert dataset.images.schema.equals(SCHEMA)
    assert dataset.images["labels"].to_pylist() == [[1, 2], [], [1]]
    assert dataset.images["boxes"].to_pylist() == [[[2, 3, 12, 13], [5, 5, 9, 9]], [], [[2, 3, 12, 13]]]
    assert dataset.images["masks"].to_pylist() == [[], [], []]
    assert dataset.n_objects == 3
    ground_truth = coco_ground_truth(dataset.images, dataset.categories)
    assert [(a["bbox"], a["area"]) for a in ground_truth["annotations"]][1] == ([5, 5, 4, 4], 16)
    assert not any("segmentation" in entry for entry in ground_truth["annotations"])


def test_a_mask_r_cnn_needs_masks(folder):
    assert {(error.kind, error.count) for error in read(folder, boxed()).errors} == {
        ("annotation without a mask", 3)
    }


def test_boxes_are_those_stated_and_of_the_others_those_of_their_masks(folder):
    content = good()
    content["annotations"][0]["bbox"] = [2.25, 3.5, 9.25, 9]
    content["annotations"][2]["bbox"] = [3, 3, 8, 9]
    dataset = read(folder, content, masks=False)
    assert dataset.images["boxes"].to_pylist()[0][0] == [2.25, 3.5, 11.5, 12.5]
    assert dataset.images["masks"].to_pylist()[0] == []
    for entry, boxes in zip(
        reversed(content["annotations"]),
        ([[[2.25, 3.5, 11.5, 12.5], [5, 5, 9, 9]], [[2, 3, 12, 13]]],
         [[[2.25, 3.5, 11.5, 12.5], [5, 5, 9, 9]], [[2, 3, 12, 13]]],
         [[[2, 3, 12, 13], [5, 5, 9, 9]], [[2, 3, 12, 13]]]),
        strict=True,
    ):  # fmt: skip
        del entry["bbox"]
        dataset = read(folder, content, masks=False)
        assert dataset.errors == ()
        assert dataset.images["boxes"].to_pylist() == [boxes[0], [], boxes[1]]
        assert dataset.n_left_out == (0, 0)


def test_what_is_left_out_is_counted_beside_what_is_used(folder):
    content = good()
    content["images"].append({"id": 9, "file_name": "cut.png", "height": 20, "width": 30})
    content["annotations"] += [
        annotation(3, 9),
        annotation(4, 2, category_id=99),
        annotation(5, 2, iscrowd=1),
    ]
    content["annotations"].append(annotation(6, 1, segmentation={"size": [20, 30], "counts": [600]}))
    dataset = read(folder, content)
    assert dataset.n_listed == (4, 7)
    assert (dataset.images.num_rows, dataset.n_objects) == (3, 3)
    assert dataset.n_left_out == (1, 3)  # the annotations 3, 4 and 6; 5 is a region to ignore


def test_boxes_are_cut_to_their_images_and_empty_ones_left_out(folder):
    content = boxed()
    content["annotations"][0]["bbox"] = [-4, 15, 10, 10]
    content["annotations"][1]["bbox"] = [31, 2, 5, 5]
    content["annotations"][2]["iscrowd"] = 1
    dataset = read(folder, content, masks=False)
    assert dataset.errors == ()
    assert dataset.images["boxes"].to_pylist() == [[[0, 15, 6, 20]], [], []]
    assert ("empty box within its image, left out", 1) in {(f.kind, f.count) for f in dataset.findings}


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:8])
@pytest.mark.parametrize("key", ["bbox", "segmentation", "iscrowd", "area"])
def test_without_masks_too_no_value_is_more_than_a_finding(folder, key, odd):
    content = good()
    for value in (odd, [odd] * 4, [1, 1, odd, odd]):
        content["annotations"][1][key] = value
        dataset = read(folder, content, masks=False)
        assert dataset.n_objects in (2, 3)
        boxes = np.array([box for image in dataset.images["boxes"].to_pylist() for box in image])
        assert np.isfinite(boxes).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
