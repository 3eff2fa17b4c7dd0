"""Exports, read back by other libraries: csv, Pillow, pandas, pycocotools."""

import csv
import io
import unicodedata
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.errors import RunError, UsageError
from maskrcnn.formats import coco_writer
from maskrcnn.io.parquet import Part, write_table
from maskrcnn.io.storage import Storage
from maskrcnn.masks.rle import crop_to_rle, rle_areas, rle_boxes_xyxy
from maskrcnn.results import export
from maskrcnn.schema import MANIFEST, ImageResult, images_table, instances_table
from maskrcnn.types import Category, Detections

CATEGORIES = (Category(1, "plank"), Category(2, "=coin()"))
HEIGHT, WIDTH = 30, 50


def rectangles(*boxes):
    """Detections by descending score; each mask is its box, and an empty box has an empty mask."""
    n = len(boxes)
    masks = tuple(
        crop_to_rle(np.ones((bottom - top, right - left), np.bool_), left, top, HEIGHT, WIDTH)
        for left, top, right, bottom in boxes
    )
    rles = [{"size": [HEIGHT, WIDTH], "counts": counts} for counts in masks]
    scores = np.linspace(0.9, 0.1, n, dtype=np.float32)
    labels = np.arange(n, dtype=np.int32) % 2 + 1
    corners = np.array(boxes, np.float32).reshape(n, 4)
    return Detections(
        HEIGHT, WIDTH, corners, labels, scores, masks, rle_areas(rles), rle_boxes_xyxy(rles), capped=False
    )


FOUND = {
    "a.jpg": rectangles((0, 0, 20, 20), (10, 10, 40, 30), (5, 5, 8, 8)),
    "broken.jpg": None,
    "folder/empty.png": rectangles(),
    '=HYPERLINK("http://x"),y': rectangles((1, 2, 3, 4), (9, 9, 9, 9)),
    "many.jpg": rectangles(*[(n % 50, n // 50, n % 50 + 1, n // 50 + 1) for n in range(300)]),
}


def write_run(folder, found, images_a_part=3):
    storage, parts = Storage(str(folder)), []
    results = [
        ImageResult(row, row + 1, name, name, 1, None, detections, width=WIDTH, height=HEIGHT)
        if detections is not None
        else ImageResult(row, row + 1, name, name, 1, None, None, "corrupt", "broken")
        for row, (name, detections) in enumerate(found.items())
    ]
    for number, start in enumerate(range(0, len(results), images_a_part)):
        of_part = results[start : start + images_a_part]
        manifest = pa.table({f.name: pa.nulls(len(of_part), f.type) for f in MANIFEST})
        images = write_table(storage, f"images/{number}.parquet", images_table(of_part, manifest))
        instances = write_table(storage, f"instances/{number}.parquet", instances_table(of_part, CATEGORIES))
        parts.append(Part(images.path, instances.path, images.rows, instances.rows))
    return storage, parts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), FOUND)


@pytest.fixture(params=[3, 10_000], ids=["batches of 3", "one batch"])
def batches(request, monkeypatch):
    """Batches and images do not end at the same rows."""
    monkeypatch.setattr(coco_writer, "BATCH_ROWS", request.param)


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def test_csv_has_one_row_per_instance(run, tmp_path, batches):
    assert export.export_csv(*run, str(tmp_path / "out")) == 305
    rows = rows_of(tmp_path / "out" / "instances.csv")
    assert rows[0] == {
        "name": "a.jpg", "image_id": "1", "instance": "0", "category_id": "1", "category": "plank", "score": "0.9",
        "xmin": "0", "ymin": "0", "xmax": "20", "ymax": "20", "area": "400",
    }  # fmt: skip
    assert [row["name"] for row in rows[:3]] == ["a.jpg"] * 3
    assert {row["image_id"] for row in rows} == {"1", "4", "5"}
    frame = pd.read_csv(tmp_path / "out" / "instances.csv")
    scores = np.concatenate([d.scores for d in FOUND.values() if d is not None])
    assert np.array_equal(frame["score"].astype(np.float32), scores)
    assert frame["area"].tolist() == [int(a) for d in FOUND.values() if d is not None for a in d.areas]


def test_formulas_in_a_csv_are_escaped(run, tmp_path):
    export.export_csv(*run, str(tmp_path / "csv"))
    export.export_png_masks(*run, str(tmp_path / "png"))
    for path in (tmp_path / "csv" / "instances.csv", tmp_path / "png" / "masks.csv"):
        rows = rows_of(path)
        assert """'=HYPERLINK("http://x"),y""" in {row["name"] for row in rows}
        assert {row["category"] for row in rows} == {"plank", "'=coin()"}


@given(st.text(alphabet="=+-@\t\r\n\uff1d a'\"", max_size=4))
def test_escaping_adds_an_apostrophe_or_nothing(text):
    [guarded] = export._guarded(pa.array([text])).to_pylist()
    assert guarded == (f"'{text}" if text.startswith(tuple("=+-@\t\r\n\uff1d")) else text)


def test_label_maps_say_which_instance_a_pixel_belongs_to(run, tmp_path, batches):
    assert export.export_png_masks(*run, str(tmp_path / "out")) == 4
    folder = tmp_path / "out" / "masks"
    maps = {str(path.relative_to(folder)): path for path in folder.rglob("*.png")}
    assert sorted(maps) == [
        "=HYPERLINK(_http_/x_),y~4.png",
        "a.jpg.png",
        "folder/empty.png.png",
        "many.jpg.png",
    ]

    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value, (left, top, right, bottom) in ((3, (5, 5, 8, 8)), (2, (10, 10, 40, 30)), (1, (0, 0, 20, 20))):
        expected[top:bottom, left:right] = value
    with Image.open(maps["a.jpg.png"]) as image:
        assert image.mode == "L"
        assert np.array_equal(np.array(image), expected)
    with Image.open(maps["folder/empty.png.png"]) as image:
        assert image.size == (WIDTH, HEIGHT)
        assert not np.array(image).any()
    with Image.open(maps["many.jpg.png"]) as image:
        values = np.array(image)
        assert image.mode.startswith("I")
    assert np.array_equal(values.ravel(), np.pad(np.arange(1, 301), (0, HEIGHT * WIDTH - 300)))


def test_the_index_of_label_maps_maps_a_pixel_to_its_instance(run, tmp_path):
    export.export_png_masks(*run, str(tmp_path), naming="id")
    rows = rows_of(tmp_path / "masks.csv")
    assert len(rows) == 305
    assert tuple(rows[0]) == export.MASKS_COLUMNS
    assert rows[1] == {
        "file": "masks/1.png", "value": "2", "name": "a.jpg", "image_id": "1", "instance": "1", "category_id": "2",
        "category": "'=coin()", "score": "0.5",
    }  # fmt: skip
    for row in rows:
        with Image.open(tmp_path / row["file"]) as image:
            # Covered and empty masks leave no pixel; the others must be there.
            hidden = row["image_id"] in ("1", "4") and int(row["instance"]) > 0
            assert hidden or int(row["value"]) in np.array(image)


def test_label_maps_contain_the_masks_that_pycocotools_decodes():
    rng = np.random.default_rng(3)
    masks = rng.random((23, 31, 6)) < 0.3
    rles = coco_mask.encode(np.asfortranarray(masks, np.uint8))
    first = np.where(masks.any(axis=2), masks.argmax(axis=2) + 1, 0)
    labels = export.label_map(23, 31, rles)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, first)


def test_more_instances_than_a_label_map_has_values_are_refused_before_anything_is_written(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "MAX_LABELS", 299)
    with pytest.raises(UsageError, match="image 5 has 300 instances"):
        export.export_png_masks(*run, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_exported_coco_files_equal_those_of_the_run(run, tmp_path):
    storage, parts = run
    count = export.export_coco(storage, parts, CATEGORIES, str(tmp_path / "out"), {"version": "1"})
    loaded = COCO(str(tmp_path / "out" / "coco" / "instances.json"))
    assert len(loaded.anns) == count == 305
    for kind in ("bbox", "segm"):
        assert len(loaded.loadRes(str(tmp_path / "out" / "coco" / f"results_{kind}.json")).anns) == 305
    assert not storage.exists("coco/instances.json")


@pytest.mark.parametrize("name", ["coco", "csv", "png"])
def test_a_destination_that_is_not_empty_is_refused(run, tmp_path, name):
    storage, parts = run
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        {
            "coco": lambda: export.export_coco(storage, parts, CATEGORIES, str(tmp_path), {}),
            "csv": lambda: export.export_csv(storage, parts, str(tmp_path)),
            "png": lambda: export.export_png_masks(storage, parts, str(tmp_path)),
        }[name]()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_any_store_can_be_the_destination(run, store_url):
    assert export.export_csv(*run, store_url) == 305
    text = Storage(store_url).read("instances.csv").decode()
    assert len(list(csv.reader(io.StringIO(text)))) == 306


def test_parts_that_do_not_belong_together_are_detected(run, tmp_path):
    storage, (first, second) = run
    crossed = [Part(second.images, first.instances, second.n_images, first.n_instances)]
    with pytest.raises(RunError, match="does not follow"):
        export.export_png_masks(storage, crossed, str(tmp_path / "png"))
    with pytest.raises(RunError, match="no image of its part"):
        export.export_csv(storage, crossed, str(tmp_path / "csv"))


# Names

names = st.text(alphabet='ab./\\~:17 "\0\n\u00fc\u6838', max_size=12) | st.text(max_size=300)


@given(names, st.integers(0, 2**40))
@example("..", 1)
@example("C:\\x\\..\\..\\y", 2)
@example("核" * 200, 3)
@example("", 4)
def test_a_safe_name_stays_below_its_folder(name, image_id):
    safe = export.safe_name(name, image_id)
    parts = PurePosixPath(safe).parts
    assert not PurePosixPath(safe).is_absolute()
    assert parts
    assert str(PurePosixPath(safe)) == safe
    assert ".." not in parts
    assert not set(safe) & set('\0\n\\:*?"<>|')
    assert all(len(f"{part}.png".encode()) <= 255 for part in parts)


@given(st.lists(names, unique=True, max_size=8))
@example(["a:b", "a_b~1", "a_b"])
@example(["a", "a.png/b", "a.png"])
@example(["a/b", "a//b", "/a/b", "a\\b", "./a/b"])
def test_different_images_have_different_files_and_no_file_is_a_folder(found):
    files = [PurePosixPath(f"{export.safe_name(name, number)}.png") for number, name in enumerate(found)]
    assert len(set(files)) == len(files)
    folders = {folder for file in files for folder in file.parents}
    assert folders.isdisjoint(files)


@given(
    st.lists(st.sampled_from(["x", "X", "x~1", "ü", "u\u0308", "Ü", "ß", "SS", "a/b", "A/B"]), max_size=12)
)
def test_distinct_names_differ_where_case_and_accents_do_not_count(stems):
    names = export.DistinctNames()
    given_ = [names.name(stem, ".png", number) for number, stem in enumerate(stems)]
    folded = [unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()) for name in given_]
    assert len(set(folded)) == len(given_)
    assert all(name.startswith(stem) for stem, name in zip(stems, given_, strict=True))
    assert given_[:1] == [f"{stem}.png" for stem in stems[:1]]


def test_an_ordinary_name_is_kept():
    for name in ("a.jpg", "site 1/übung 2.tif", "核/a.b.c.png"):
        assert export.safe_name(name, 1) == name
