"""COCO JSON against the reader that everybody uses, pycocotools, and against the tables it was made from."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.errors import RunError, UsageError
from maskrcnn.formats import coco_writer
from maskrcnn.io.parquet import Part, write_table
from maskrcnn.io.storage import Storage
from maskrcnn.masks.rle import rle_areas, rle_boxes_xyxy
from maskrcnn.schema import INSTANCES, MANIFEST, ImageResult, images_table, instances_table
from maskrcnn.types import Category, Detections, detection_order

CATEGORIES = (Category(1, "plank"), Category(3, "naïve “coin”"))
NAMES = (
    "plain.jpg",
    'site 1/"quoted".png',
    "back\\slash.tif",
    "нуклеус/核.png",
    "tab\tand\nline.jpg",
    "a\u2028b",
    "😀",
)
INFO = {"description": 'a "run"', "version": "1"}


def random_detections(rng, n):
    """N random masks, boxes that are not the masks' own, and always an empty mask among several."""
    height, width = int(rng.integers(1, 40)), int(rng.integers(1, 40))
    pixels = rng.random((height, width, n)) < rng.random(n)
    if n > 2:
        pixels[:, :, 1] = False
    rles = coco_mask.encode(np.asfortranarray(pixels, np.uint8)) if n else []
    corners = np.sort(rng.random((n, 2, 2)).astype(np.float32) * 33, axis=1).reshape(n, 4)
    labels = rng.choice([1, 3], n).astype(np.int32)
    scores = rng.random(n).astype(np.float32)
    order = detection_order(corners, labels, scores)
    rles = [rles[i] for i in order]
    return Detections(
        height, width, corners[order], labels[order], scores[order], tuple(rle["counts"] for rle in rles),
        rle_areas(rles), rle_boxes_xyxy(rles), capped=False,
    )  # fmt: skip


def random_run(folder, images_a_part, seed=0):
    """Write the tables of a run whose every fourth image failed; return its storage, parts and results."""
    rng = np.random.default_rng(seed)
    storage, parts, everything = Storage(str(folder)), [], []
    for number, n_images in enumerate(images_a_part):
        results = []
        for row in range(len(everything), len(everything) + n_images):
            found = None if row % 4 == 3 else random_detections(rng, int(rng.integers(0, 5)))
            name = f"{NAMES[row % len(NAMES)]}{row}"
            size = {} if found is None else {"width": found.width, "height": found.height}
            error = {"error": "corrupt", "message": "broken"} if found is None else {}
            results.append(ImageResult(row, 10 * row, name, name, 1, "e", found, **error, **size))
        manifest = pa.table({f.name: pa.nulls(n_images, f.type) for f in MANIFEST})
        images = write_table(storage, f"images/part-{number}.parquet", images_table(results, manifest))
        table = instances_table(results, CATEGORIES)
        instances = write_table(storage, f"instances/part-{number}.parquet", table)
        parts.append(Part(images.path, instances.path, n_images, len(table)))
        everything += results
    return storage, parts, everything


def tables(folder):
    return pq.read_table(folder / "images"), pq.read_table(folder / "instances")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    storage, parts, _ = random_run(folder, [9, 4, 0, 20])
    coco_writer.write_dataset(storage, parts, CATEGORIES, "coco/instances.json", INFO)
    for iou_type in coco_writer.IOU_TYPES:
        coco_writer.write_results(storage, parts, f"coco/results_{iou_type}.json", iou_type)
    return folder


def test_pycocotools_loads_the_dataset_and_finds_the_tables_in_it(run):
    loaded = COCO(str(run / "coco/instances.json"))
    images, instances = tables(run)

    there = [row for row in images.to_pylist() if row["status"] != "failed"]
    assert loaded.dataset["images"] == [
        {"id": row["image_id"], "file_name": row["name"], "width": row["width"], "height": row["height"]}
        for row in there
    ]
    assert {"failed", "ok", "empty"} == set(images["status"].to_pylist())
    assert loaded.dataset["info"] == INFO
    assert loaded.dataset["categories"] == [
        {"id": 1, "name": "plank", "supercategory": ""},
        {"id": 3, "name": "naïve “coin”", "supercategory": ""},
    ]
    assert len(loaded.anns) == len(instances) > 20
    for row in instances.to_pylist():
        annotation = loaded.anns[row["id"]]
        mask = coco_mask.decode(row["segmentation"])
        assert np.array_equal(loaded.annToMask(annotation), mask)
        assert annotation["area"] == row["area"] == mask.sum()
        assert (annotation["image_id"], annotation["category_id"]) == (row["image_id"], row["category_id"])
        assert np.float32(annotation["score"]) == np.float32(row["score"])
        assert annotation["iscrowd"] == 0
        assert annotation["bbox"] == tight_bbox(mask)
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
    assert [0, 0, 0, 0] in [annotation["bbox"] for annotation in loaded.dataset["annotations"]]


def tight_bbox(mask):
    ys, xs = np.nonzero(mask)
    if len(ys) == 0:
        return [0, 0, 0, 0]
    return [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]


def test_areas_agree_by_category(run):
    loaded = COCO(str(run / "coco/instances.json"))
    _, instances = tables(run)
    for category in CATEGORIES:
        of_category = instances.filter(pa.compute.equal(instances["category_id"], category.id))
        annotations = loaded.loadAnns(loaded.getAnnIds(catIds=[category.id]))
        assert sum(a["area"] for a in annotations) == pa.compute.sum(of_category["area"]).as_py() > 0


def test_results_are_the_models_boxes_and_the_masks(run):
    boxes, masks = (json.loads((run / f"coco/results_{kind}.json").read_text()) for kind in ("bbox", "segm"))
    _, instances = tables(run)
    for box, mask, row in zip(boxes, masks, instances.to_pylist(), strict=True):
        assert list(box) == ["image_id", "category_id", "bbox", "score"]
        assert list(mask) == ["image_id", "category_id", "segmentation", "score"]
        for entry in (box, mask):
            assert (entry["image_id"], entry["category_id"]) == (row["image_id"], row["category_id"])
            assert np.float32(entry["score"]) == np.float32(row["score"])
        xmin, ymin, xmax, ymax = (np.float32(row["box"][side]) for side in ("xmin", "ymin", "xmax", "ymax"))
        assert [np.float32(v) for v in box["bbox"]] == [xmin, ymin, xmax - xmin, ymax - ymin]
        assert mask["segmentation"] == row["segmentation"]


def test_loadres_takes_an_area_from_what_is_compared(run):
    ground_truth = COCO(str(run / "coco/instances.json"))
    _, instances = tables(run)
    masks = ground_truth.loadRes(str(run / "coco/results_segm.json")).dataset["annotations"]
    assert [entry["area"] for entry in masks] == instances["area"].to_pylist()
    boxes = ground_truth.loadRes(str(run / "coco/results_bbox.json")).dataset["annotations"]
    assert [entry["area"] for entry in boxes] == [entry["bbox"][2] * entry["bbox"][3] for entry in boxes]


def test_a_run_in_which_nothing_was_found_gives_valid_files(tmp_path):
    storage = Storage(str(tmp_path))
    failed = ImageResult(0, 1, "a", "a", 1, None, None, "corrupt", "broken")
    nothing = random_detections(np.random.default_rng(0), 0)
    empty = ImageResult(1, 2, "b", "b", 1, None, nothing, width=nothing.width, height=nothing.height)
    manifest = pa.table({f.name: pa.nulls(1, f.type) for f in MANIFEST})
    write_table(storage, "images/0.parquet", images_table([failed], manifest))
    write_table(storage, "images/1.parquet", images_table([empty], manifest))
    write_table(storage, "instances/0.parquet", instances_table([], CATEGORIES))
    parts = [Part(f"images/{n}.parquet", "instances/0.parquet", 1, 0) for n in (0, 1)]

    assert coco_writer.write_dataset(storage, parts, CATEGORIES, "d.json", {}) == 0
    for iou_type in coco_writer.IOU_TYPES:
        assert coco_writer.write_results(storage, parts, "r.json", iou_type) == 0
        assert json.loads((tmp_path / "r.json").read_text()) == []
    assert [i["file_name"] for i in COCO(str(tmp_path / "d.json")).dataset["images"]] == ["b"]


def test_no_part_at_all_gives_valid_files(tmp_path):
    storage = Storage(str(tmp_path))
    [file] = coco_writer.plan_files([], "auto")
    coco_writer.write_dataset(storage, file.parts, CATEGORIES, file.dataset_target, {})
    coco_writer.write_results(storage, file.parts, file.results_target("segm"), "segm")
    assert COCO(str(tmp_path / "coco/instances.json")).dataset["annotations"] == []
    assert json.loads((tmp_path / "coco/results_segm.json").read_text()) == []


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_a_float32_is_written_as_strict_json_and_read_back_the_same(values):
    column = pa.array(values, pa.float32())
    texts = coco_writer._joined(column).to_pylist()
    assert np.array_equal(np.array([json.loads(text) for text in texts], np.float32), column.to_numpy())
    shortest = [np.format_float_scientific(v, unique=True, trim="-") for v in np.array(values, np.float32)]
    digits = [sum(c.isdigit() for c in text.split("e")[0].replace(".", "").strip("-0")) for text in texts]
    assert all(
        ours <= sum(c.isdigit() for c in s.split("e")[0]) for ours, s in zip(digits, shortest, strict=True)
    )


@given(st.lists(st.text(), max_size=9))
def test_any_name_is_written_as_ascii_and_read_back_the_same(names):
    columns = {
        "image_id": pa.array(range(len(names)), pa.int64()),
        "name": pa.array(names, pa.string()),
        "width": pa.array([7] * len(names), pa.int32()),
        "height": pa.array([9] * len(names), pa.int32()),
    }
    texts = coco_writer._image_rows(pa.RecordBatch.from_pydict(columns)).to_pylist()
    assert all(text.isascii() for text in texts)
    assert [json.loads(text[2:]) for text in texts] == [
        {"id": number, "file_name": name, "width": 7, "height": 9} for number, name in enumerate(names)
    ]


@given(st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 2 * coco_writer._TABLE_ROWS)))
def test_a_pixel_is_written_alike_from_the_table_and_beyond_it(values):
    texts = coco_writer._small("<", pa.array(values, pa.int32()), ">").to_pylist()
    assert texts == [f"<{value}>" for value in values]


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_the_ends_of_a_slice_are_its_own(run, length):
    [batch] = pq.read_table(run / "instances").combine_chunks().to_batches()
    for rows in (coco_writer._annotation_rows, coco_writer._box_rows, coco_writer._mask_rows):
        whole = rows(batch).to_pylist()
        for start in range(0, len(batch), 5):
            assert rows(batch.slice(start, length)).to_pylist() == whole[start : start + length]


def test_a_float_at_the_ends_of_its_range_stays_the_same(tmp_path):
    extremes = np.finfo(np.float32)
    numbers = np.array(
        [extremes.max, extremes.smallest_normal, extremes.smallest_subnormal, -0.0], np.float32
    )
    storage, parts = with_column(tmp_path, "score", numbers.tolist())
    coco_writer.write_dataset(storage, parts, CATEGORIES, "d.json", {})
    lists = [json.loads(storage.read("d.json"))["annotations"]]
    for iou_type in coco_writer.IOU_TYPES:
        coco_writer.write_results(storage, parts, "r.json", iou_type)
        lists.append(json.loads(storage.read("r.json")))
    for rows in lists:
        written = np.array([row["score"] for row in rows[: len(numbers)]], np.float32)
        assert np.array_equal(written, numbers)


def test_rows_in_many_batches_read_like_rows_in_one(run, tmp_path, monkeypatch):
    storage, (folder, parts) = Storage(str(run)), (tmp_path, all_parts(run))
    monkeypatch.setattr(coco_writer, "BATCH_ROWS", 3)
    destination = Storage(str(folder))
    coco_writer.write_dataset(storage, parts, CATEGORIES, "instances.json", INFO, destination=destination)
    names = [f"results_{iou_type}.json" for iou_type in coco_writer.IOU_TYPES]
    for name, iou_type in zip(names, coco_writer.IOU_TYPES, strict=True):
        coco_writer.write_results(storage, parts, name, iou_type, destination=destination)
    for name in ("instances.json", *names):
        assert (folder / name).read_bytes() == (run / "coco" / name).read_bytes()


def all_parts(folder):
    return [
        Part(f"images/{path.name}", f"instances/{path.name}", 0, pq.read_metadata(path).num_rows)
        for path in sorted((folder / "instances").iterdir())
    ]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_instances(tmp_path):
    storage, parts, _ = random_run(tmp_path, [400])
    parents, peaks = pa.default_memory_pool(), {}
    for repeats in (30, 200):
        arrow = pa.proxy_memory_pool(parents)
        pa.set_memory_pool(arrow)
        tracemalloc.start()
        try:
            coco_writer.write_dataset(storage, parts * repeats, CATEGORIES, "d.json", {})
            peaks[repeats] = np.array([tracemalloc.get_traced_memory()[1], arrow.max_memory()])
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(parents)
    assert (peaks[30] > 100_000).all()
    # What threads read ahead differs from run to run; memory that grows with the instances would be 6.7 times as much.
    assert (peaks[200] < 4 * peaks[30]).all()


def test_masks_in_a_frame_of_their_own_are_refused(tmp_path):
    frame = {"col_off": 0, "row_off": 0, "width": 9, "height": 9}
    storage, parts = with_column(tmp_path, "frame", [frame])
    for write in (
        lambda: coco_writer.write_dataset(storage, parts, CATEGORIES, "d.json", {}),
        lambda: coco_writer.write_results(storage, parts, "r.json", "bbox"),
        lambda: coco_writer.write_results(storage, parts, "r.json", "segm"),
    ):
        with pytest.raises(UsageError, match="2\\^32 pixels"):
            write()
    assert not storage.exists("d.json")


def test_a_number_that_json_cannot_say_stops_the_file(tmp_path):
    storage, parts = with_column(tmp_path, "score", [float("nan")])
    with pytest.raises(RunError, match="not a finite number"):
        coco_writer.write_results(storage, parts, "r.json", "segm")
    assert not storage.exists("r.json")


def with_column(folder, name, values):
    """Write a run whose first instances have other values in one column."""
    storage, [part], _ = random_run(folder, [6])
    table = pq.read_table(folder / part.instances)
    column = values + table[name].to_pylist()[len(values) :]
    position = INSTANCES.get_field_index(name)
    table = table.set_column(position, INSTANCES.field(name), pa.array(column, INSTANCES.field(name).type))
    write_table(storage, part.instances, table)
    return storage, [part]


# Several files


@given(st.lists(st.integers(0, 1_500_000), max_size=12))
def test_each_part_lies_in_one_file_and_no_file_is_too_large(counts):
    parts = [Part(f"i{n}", f"j{n}", 1, count) for n, count in enumerate(counts)]
    files = coco_writer.plan_files(parts, "auto")
    assert [part for file in files for part in file.parts] == parts
    assert all(sum(part.n_instances for part in file.parts) <= coco_writer.MAX_ANNOTATIONS for file in files)
    if len(files) > 1:
        assert sum(counts) > coco_writer.MAX_ANNOTATIONS
    names = ("instances", "results_bbox", "results_segm")
    ends = [f"-{n:05d}" for n in range(len(files))] if len(files) > 1 else [""]
    assert [file.targets for file in files] == [
        tuple(f"coco/{name}{end}.json" for name in names) for end in ends
    ]


def test_modes_of_planning():
    parts = [Part("a", "b", 1, 3_000_000), Part("c", "d", 1, 0)]
    assert coco_writer.plan_files(parts, "never") == []
    assert coco_writer.plan_files(parts, "always") == [coco_writer.CocoFile(tuple(parts))]
    assert len(coco_writer.plan_files(parts, "auto")) == 2
    with pytest.raises(UsageError, match="sometimes"):
        coco_writer.plan_files(parts, "sometimes")


def test_several_files_together_hold_what_one_holds(run, tmp_path, monkeypatch):
    monkeypatch.setattr(coco_writer, "MAX_ANNOTATIONS", 25)
    storage, destination = Storage(str(run)), Storage(str(tmp_path))
    files = coco_writer.plan_files(all_parts(run), "auto")
    assert len(files) > 1
    for file in files:
        coco_writer.write_dataset(
            storage, file.parts, CATEGORIES, file.dataset_target, INFO, destination=destination
        )
        for iou_type in coco_writer.IOU_TYPES:
            target = file.results_target(iou_type)
            coco_writer.write_results(storage, file.parts, target, iou_type, destination=destination)
    loaded = [COCO(str(tmp_path / file.dataset_target)) for file in files]
    for one, file in zip(loaded, files, strict=True):
        assert {a["image_id"] for a in one.dataset["annotations"]} <= set(one.imgs)
        for iou_type in coco_writer.IOU_TYPES:
            one.loadRes(str(tmp_path / file.results_target(iou_type)))
    whole = COCO(str(run / "coco/instances.json")).dataset
    for section in ("images", "annotations"):
        assert [row for one in loaded for row in one.dataset[section]] == whole[section]


def test_a_plan_is_a_value():
    [file] = coco_writer.plan_files([Part("a", "b", 1, 1)], "auto")
    with pytest.raises(dataclasses.FrozenInstanceError):
        file.parts = ()
