"""The one reader of COCO JSON: pieces of any size give the same; what is wrong is named, counted, and costs itself."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from maskrcnn.errors import UsageError
from maskrcnn.formats import json_stream
from maskrcnn.formats.coco_boxes import AREA as OTHER_AREA
from maskrcnn.formats.coco_boxes import AREA_ALONE, AREA_OF_BOX
from maskrcnn.formats.coco_checks import DOUBLED, TURNED
from maskrcnn.formats.coco_reader import CocoFile, find_images_root, read_coco
from maskrcnn.formats.coco_segmentations import DAMAGED, OTHER_SIZE

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
    path = folder / "labels.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def read(folder: Path, content: Any, *, masks: bool | None = None) -> tuple[CocoFile, list[dict[str, Any]]]:
    file = read_coco(written(folder, content))
    sizes = np.where(file.images.sizes > 0, file.images.sizes, [20, 30])
    rows = file.read_annotations(sizes, masks=file.has_masks if masks is None else masks).to_pylist()
    return file, rows


def findings(file: CocoFile) -> dict[str, int]:
    return {
        finding.kind: finding.count
        for finding in file.findings.listed()
        if "image without" not in finding.kind
    }


def test_columns_say_what_the_file_says(tmp_path: Path) -> None:
    uncompressed = {"size": [20, 30], "counts": [5, 10, 585]}
    compressed = coco_mask.frPyObjects(uncompressed, 20, 30)
    crowd = annotation(id=2, image_id=3, category_id=9, iscrowd=1, segmentation=uncompressed)
    text = annotation(id=3, segmentation={"size": [20, 30], "counts": compressed["counts"].decode()})
    two = annotation(id=4, segmentation=[TRIANGLE, [*TRIANGLE, 3, 3]])
    file, rows = read(tmp_path, dataset(annotation(), crowd, text, two))

    assert file.images.ids == [7, 3]
    assert file.images.names == ["a.png", "b.png"]
    assert file.images.sizes.tolist() == [[20, 30], [0, 0]]
    assert [(category.id, category.name) for category in file.categories] == [(2, "leaf"), (9, "coin")]
    assert [row["number"] for row in rows] == [1, 2, 3, 4]
    assert [(row["image"], row["category"], row["crowd"]) for row in rows[:2]] == [
        (0, 0, False),
        (1, 1, True),
    ]
    assert [rows[0][side] for side in ("x", "y", "width", "height", "area")] == [1, 2, 8, 7.5, 28.125]
    assert rows[1]["counts"] == rows[2]["counts"] == compressed["counts"]
    assert (rows[1]["mask_height"], rows[1]["mask_width"], rows[1]["mask_area"]) == (20, 30, 10)
    polygons = coco_mask.frPyObjects([TRIANGLE, [*TRIANGLE, 3, 3]], 20, 30)
    assert rows[3]["counts"] == coco_mask.merge(polygons)["counts"]


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
    whole = dataset(
        *(
            annotation(id=number, area=area, segmentation=[[0, 0, 3, 0, 3, 3]])
            for number, area in enumerate(areas)
        ),
        images=named,
    ) | {"licenses": [1, None, "[{"]}
    text = json.dumps({key: whole[key] for key in order}, indent=indent, ensure_ascii=ascii_only)
    with monkeypatch.context() as patch:
        patch.setattr(json_stream, "_READ_CHARACTERS", characters)
        patch.setattr(json_stream, "_BATCH", 2)
        file, rows = read(tmp_path, text)
    assert file.images.names == [name or None]
    assert [row["area"] for row in rows] == areas
    assert len(file.categories) == 2


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "it is empty, and not JSON"),
        (" \n\n", "it is empty, and not JSON"),
        ("{", "it ends in line 1, before its JSON does: write or copy it again"),
        ('{"images": [\n{"id": 1}\n', "it ends in line 2, before"),
        ('{"images": [\n{"id": 1, "file_name": "a.j', "it ends in line 2, before"),
        (
            '{"images": [\n{"id": 1 "x": 2}]}' + " " * 100,
            r"line 2 is not JSON \(Expecting ',' delimiter\): correct it",
        ),
        ("\n\nhello", "line 3 is not JSON .expected one of {, found 'h'"),
        ("[]", "not a COCO dataset but a list"),
        ({}, "no list `images`, `annotations`, `categories`"),
        (dataset(images=...), "no list `images`"),
        (dataset(annotations={}), r"expected one of \["),
        (dataset(categories=[]), "has no category"),
        (dataset(images=[3]), "`images` holds 3 instead of objects"),
        (dataset(categories=["leaf"]), '`categories` holds "leaf" instead of objects'),
        (dataset(categories=[{"name": "leaf"}]), "has no category .*without an id that is an integer from 0"),
        (dataset(categories=[{"id": "leaf"}]), "has no category .*without an id that is an integer from 0"),
        (dataset(categories=[CATEGORIES[0]] * 2), "has no category .*category id used twice"),
        (dataset(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "category name used twice"),
    ],
)
def test_what_is_not_a_coco_dataset_is_refused_in_one_line(
    tmp_path: Path, content: Any, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint) as refused:
        read_coco(written(tmp_path, content))
    assert "\n" not in str(refused.value)


BOX_OF_MASK, AREA_OF_MASK = "; the box of its mask is used", "; the area of its mask is used"
IN_QUOTES = " (write numbers without quotes)"
NO_AREA, NO_BOX = f"annotation without an area{AREA_OF_MASK}", f"annotation without a bbox{BOX_OF_MASK}"
AREA, BOX = (
    f"area that is not a number of at least 0{AREA_OF_MASK}",
    f"bbox that is not four finite numbers{BOX_OF_MASK}",
)
CORNERS = "box that fits its mask only as xmin, ymin, xmax, ymax (COCO's are xmin, ymin, width, height)"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"area": ...}, NO_AREA),
        ({"area": None}, NO_AREA),
        ({"area": float("nan")}, AREA),
        ({"area": -1}, AREA),
        ({"bbox": ...}, NO_BOX),
        ({"bbox": None}, NO_BOX),
        ({"bbox": [1, 2, 3]}, BOX),
        ({"bbox": [1, 2, 3, float("inf")]}, BOX),
        ({"bbox": "1 2 3 4"}, BOX),
        ({"area": "28.5"}, AREA.replace(AREA_OF_MASK, IN_QUOTES + AREA_OF_MASK)),
        ({"bbox": ["1", "2", "8", "7.5"]}, BOX.replace(BOX_OF_MASK, IN_QUOTES + BOX_OF_MASK)),
        ({"id": ...}, "annotation without an id"),
        ({"bbox": [20, 10, 26, 16], "segmentation": [[20, 10, 26, 10, 26, 16, 20, 16]]}, CORNERS),
        ({"bbox": [20, 2, 4, 4]}, "box that does not fit its mask"),
        ({"bbox": [1, 2, 80, 7.5]}, "box that leaves its image"),
        ({"bbox": [1, 2, 0, 7.5]}, "box without area"),
        ({"area": 5000}, OTHER_AREA),
        ({"area": 0.1}, OTHER_AREA),
        ({"area": 0}, OTHER_AREA),
        (
            {"bbox": [1, 2, 18, 17], "area": 18 * 17, "segmentation": [[1, 2, 19, 2, 19, 19]]},
            AREA_OF_BOX,
        ),
    ],
    ids=str,
)
def test_what_is_odd_with_an_annotation_is_a_warning(tmp_path: Path, change: Any, kind: str) -> None:
    file, rows = read(tmp_path, dataset(annotation(**change), annotation(id=8)))
    assert findings(file) == {kind: 1}
    assert [finding.error for finding in file.findings.listed()] == [False] * len(file.findings.listed())
    assert [row["number"] for row in rows] == [1, 2]
    if kind in (AREA, NO_AREA):
        assert rows[0]["area"] == rows[0]["mask_area"] > 20
    if kind in (BOX, NO_BOX):
        mask = coco_mask.toBbox({"size": [20, 30], "counts": rows[0]["counts"]}).tolist()
        assert [rows[0][side] for side in ("x", "y", "width", "height")] == mask


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"segmentation": [[1e9] * 6]}, "polygon with a point far outside of its image"),
        ({"segmentation": {"size": [2, 2], "counts": [4]}}, OTHER_SIZE),
        ({"segmentation": {"size": [30, 20], "counts": [600]}}, TURNED),
        ({"segmentation": {"size": [20, 30], "counts": "oops"}}, DAMAGED),
        ({"segmentation": []}, "annotation without a mask"),
        ({"segmentation": None}, "annotation without a mask"),
        ({"image_id": 8}, "annotation of an unknown image"),
        ({"image_id": [7]}, "annotation of an unknown image"),
        (
            {"image_id": "7"},
            "annotation of an unknown image (ids are text in annotations and integers in images)",
        ),
        ({"category_id": 1}, "annotation of an unknown category"),
        (
            {"category_id": "2"},
            "annotation of an unknown category (ids are text in annotations and integers in categories)",
        ),
        ({"category_id": "4000"}, "annotation of an unknown category"),
        ({"iscrowd": "1"}, "iscrowd that is neither 0 nor 1"),
        ({"id": 8}, DOUBLED),
    ],
    ids=str,
)
def test_a_faulty_annotation_costs_itself_alone(tmp_path: Path, change: Any, kind: str) -> None:
    file, rows = read(tmp_path, dataset(annotation(id=8), annotation(**change), annotation(id=9)))
    assert findings(file) == {kind: 1}
    assert [row["number"] for row in rows] == [1, 3]


def test_the_place_of_a_doubled_id_is_that_of_the_later_annotation(tmp_path: Path) -> None:
    file, rows = read(tmp_path, dataset(*(annotation(id=id_) for id_ in (5, 5, "x", "x", 5))))
    [finding] = [one for one in file.findings.listed() if one.error]
    assert (finding.kind, finding.count) == (DOUBLED, 3)
    assert finding.examples == ("annotation no. 2 (id 5)", "annotation no. 4", "annotation no. 5 (id 5)")
    assert [row["number"] for row in rows] == [1, 3]


@pytest.mark.parametrize("entry", [3, None, "text", [1]])
def test_an_annotation_that_is_not_an_object_costs_itself_alone(tmp_path: Path, entry: Any) -> None:
    file, rows = read(tmp_path, dataset(entry, annotation()))
    assert findings(file) == {"annotation that is not an object": 1}
    assert [row["number"] for row in rows] == [2]


def test_annotations_of_an_id_used_twice_are_left_out(tmp_path: Path) -> None:
    images = [*IMAGES, {"id": 3, "file_name": "night.png"}]
    categories = [*CATEGORIES, {"id": 4, "name": "a"}, {"id": 4, "name": "b"}, {"id": 5, "name": "x"}]
    categories.append({"id": 6, "name": "x"})
    entries = [annotation(id=number, image_id=image) for number, image in enumerate((7, 3, 3))]
    entries += [annotation(id=10 + n, category_id=number) for n, number in enumerate((4, 4, 4, 5, 6, 9))]
    file, rows = read(tmp_path, dataset(*entries, images=images, categories=categories))
    assert findings(file) == {
        "image id used twice": 1,
        "annotation of an image id used twice": 2,
        "category id used twice": 1,
        "annotation of a category id used twice": 3,
        "category name used twice": 1,
        "annotation of a category name used twice": 2,
    }
    assert file.images.ids == [7]
    assert [category.id for category in file.categories] == [2, 9]
    assert [row["number"] for row in rows] == [1, 9]


def test_integral_floats_are_integers_and_ids_begin_where_they_like(tmp_path: Path) -> None:
    images = [{"id": -1.0, "file_name": "a.png", "width": 30.0, "height": 20.0}]
    counts = {"size": [20.0, 30.0], "counts": [5.0, 10.0, 585.0]}
    entry = annotation(image_id=-1, category_id=0.0, segmentation=counts, bbox=[0, 5, 1, 10], area=10)
    file, rows = read(tmp_path, dataset(entry, images=images, categories=[{"id": 0, "name": "leaf"}]))
    assert file.findings.listed() == ()
    assert (file.images.ids, file.images.sizes.tolist(), file.categories[0].id) == ([-1], [[20, 30]], 0)
    assert [(row["image"], row["category"], row["mask_area"]) for row in rows] == [(0, 0, 10)]


def test_ids_that_are_text_on_one_side_alone_say_so(tmp_path: Path) -> None:
    images = [{"id": "7", "file_name": "a.png", "width": 30, "height": 20}]
    file, rows = read(tmp_path, dataset(annotation(), images=images))
    kind = "annotation of an unknown image (ids are integers in annotations and text in images)"
    assert (findings(file), rows) == ({kind: 1}, [])
    file, rows = read(tmp_path, dataset(annotation(), categories=[*CATEGORIES, {"id": "4", "name": "x"}]))
    kind = "category whose id is a text, not an integer (write it without quotes)"
    assert (findings(file), len(rows)) == ({kind: 1}, 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (5, "category whose name is a number, not a text (write it in quotes)"),
        (["leaf"], "category whose name is not a text"),
        ("a\0b", "category whose name is not printable text"),
    ],
)
def test_a_category_name_is_a_text(tmp_path: Path, name: Any, kind: str) -> None:
    file, rows = read(tmp_path, dataset(annotation(), categories=[*CATEGORIES, {"id": 4, "name": name}]))
    assert (findings(file), len(rows)) == ({kind: 1}, 1)


def test_sizes_of_images_that_are_texts_are_named(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.png", "width": "30", "height": "20"}]
    file = read_coco(written(tmp_path, dataset(images=images)))
    [finding] = file.findings.listed()
    assert finding.kind == "image whose height and width are texts, not numbers; the file's are used"


def test_image_ids_may_be_texts_but_not_both(tmp_path: Path) -> None:
    texts = [{"id": "a", "file_name": "a.png"}, {"id": "b", "file_name": "b.png"}]
    file, rows = read(tmp_path, dataset(annotation(image_id="b"), images=texts))
    assert (file.images.ids, [row["image"] for row in rows]) == (["a", "b"], [1])
    file, rows = read(
        tmp_path, dataset(annotation(), annotation(id=2, image_id="c"), images=[*IMAGES, {"id": "c"}])
    )
    assert findings(file) == {
        "image whose id is a text, where others are integers": 1,
        "annotation of an image that is left out": 1,
    }
    file, _ = read(tmp_path, dataset(images=[*IMAGES, {"file_name": "a.png"}]))
    assert findings(file) == {}
    assert file.findings.listed()[0].kind == "image without an id"


def test_run_lengths_by_row_are_recognised(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 16:22] = 1
    changes = np.flatnonzero(np.diff(mask.ravel(), prepend=0, append=0))  # by row, not by column
    counts = np.diff(changes, prepend=0, append=600).tolist()
    entry = annotation(segmentation={"size": [20, 30], "counts": counts}, bbox=[16, 2, 6, 3], area=18)
    file, rows = read(tmp_path, dataset(entry))
    assert findings(file) == {
        "box that fits its mask only if the run lengths go by row (COCO's go by column)": 1
    }
    assert len(rows) == 1


def test_findings_name_three_examples_and_count_all(tmp_path: Path) -> None:
    file, _ = read(tmp_path, dataset(*(annotation(id=n, image_id=8) for n in range(1, 2001))))
    [finding] = [one for one in file.findings.listed() if one.error]
    assert (finding.count, len(finding.examples)) == (2000, 3)
    assert str(finding) == (
        "error: annotation of an unknown image (2,000): annotation 1: image 8, annotation 2: image 8, "
        "annotation 3: image 8, …"
    )


def test_boxes_alone_are_checked_by_themselves(tmp_path: Path) -> None:
    def boxed(number: int, **changes: Any) -> dict[str, Any]:
        return annotation(id=number, segmentation=..., **changes)

    entries = [boxed(1), boxed(2, bbox=[1, 2, 29, 90]), boxed(3, bbox=...), boxed(4, area=...)]
    entries += [boxed(5, area=0), boxed(6, area=100), boxed(7, area=1), boxed(8, area=60)]
    file, rows = read(tmp_path, dataset(*entries))
    assert findings(file) == {
        "box that leaves its image": 1,
        "annotation without a bbox, and there is no mask to take it from": 1,
        "annotation without an area; the area of its box is used": 1,
        AREA_ALONE: 2,
    }
    assert {row["counts"] for row in rows} == {None}
    assert [row["number"] for row in rows] == [1, 2, 4, 5, 6, 7, 8]
    assert rows[2]["area"] == 8 * 7.5


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["stated", "missing", "invalid"]), min_size=1, max_size=6))
def test_where_only_boxes_are_used_a_box_that_misses_is_that_of_its_own_mask(states: list[str]) -> None:
    stated = [1.25, 2.0, 8.0, 7.5]
    boxes: dict[str, Any] = {"stated": stated, "missing": ..., "invalid": [1, 2, 3, "x"]}
    entries = [annotation(id=n, bbox=boxes[state]) for n, state in enumerate(states)]
    with tempfile.TemporaryDirectory() as folder:
        file, rows = read(Path(folder), dataset(*entries), masks=False)
        _, masked = read(Path(folder), dataset(*(entry | {"bbox": None} for entry in entries)))
    sides = ("x", "y", "width", "height")
    of_masks = [[row[side] for side in sides] for row in masked]
    expected = [stated if state == "stated" else tight for state, tight in zip(states, of_masks, strict=True)]
    assert [[row[side] for side in sides] for row in rows] == expected
    assert {row["counts"] for row in rows} == {None}
    counts = {NO_BOX: states.count("missing"), BOX: states.count("invalid")}
    assert findings(file) == {kind: count for kind, count in counts.items() if count}
    assert not any(finding.error for finding in file.findings.listed())


def test_a_mask_beside_a_valid_box_is_not_decoded_where_only_boxes_are_used(tmp_path: Path) -> None:
    damaged = {"segmentation": {"size": [20, 30], "counts": "oops"}}
    entries = [annotation(id=1, **damaged), annotation(id=2, bbox=..., **damaged), annotation(id=3)]
    file, rows = read(tmp_path, dataset(*entries), masks=False)
    assert findings(file) == {DAMAGED: 1}
    assert [row["number"] for row in rows] == [1, 3]


def test_the_box_of_an_empty_mask_is_without_area(tmp_path: Path) -> None:
    empty = annotation(bbox=..., segmentation={"size": [20, 30], "counts": [600]})
    file, rows = read(tmp_path, dataset(empty, annotation(id=2)), masks=False)
    assert findings(file) == {NO_BOX: 1, "box without area": 1}
    assert [row["width"] for row in rows] == [0, 8]


def test_corners_in_place_of_a_width_and_a_height_are_recognised_without_masks(tmp_path: Path) -> None:
    def boxed(number: int, *box: float) -> dict[str, Any]:
        return annotation(id=number, segmentation=..., bbox=list(box))

    # The first would end behind the right border, the second fits either way, the third neither.
    file, rows = read(
        tmp_path, dataset(boxed(1, 12, 5, 29, 19), boxed(2, 1, 1, 9, 9), boxed(3, 9, 9, 28, 90))
    )
    assert findings(file) == {
        "box that lies in its image only as xmin, ymin, xmax, ymax (COCO's are xmin, ymin, width, height)": 1,
        "box that leaves its image": 1,
    }
    assert len(rows) == 3


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_coco(str(tmp_path / "none.json"))
    (tmp_path / "image.json").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UsageError, match=r"image\.json"):
        read_coco(str(tmp_path / "image.json"))


def test_a_dataset_of_boxes_alone_has_no_masks(tmp_path: Path) -> None:
    assert not read_coco(written(tmp_path, dataset(annotation(segmentation=...)))).has_masks
    assert not read_coco(written(tmp_path, dataset(annotation(segmentation=[])))).has_masks
    assert read_coco(written(tmp_path, dataset(annotation()))).has_masks
    assert read_coco(written(tmp_path, dataset())).has_masks


# Areas


def outline(points: NDArray[np.float64]) -> float:
    """Return the area that a polygon encloses, by triangles from its first corner."""
    a, b = points[1:-1] - points[0], points[2:] - points[0]
    return abs(float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum())) / 2


@settings(max_examples=60)
@given(
    radii=st.lists(st.floats(2, 90), min_size=3, max_size=12),
    center=st.tuples(st.floats(95, 105), st.floats(95, 105)),
    whole=st.booleans(),
)
def test_an_area_as_tools_measure_it_is_no_contradiction_and_four_times_it_is(
    tmp_path: Path, radii: list[float], center: tuple[float, float], whole: bool
) -> None:
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    points = np.array(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1) + center
    points = points.round() if whole else points
    polygon = [points.ravel().tolist()]
    images = [{"id": 7, "file_name": "a.png", "width": 200, "height": 200}]
    mask = coco_mask.merge(coco_mask.frPyObjects(polygon, 200, 200))
    pixels, box = int(coco_mask.area(mask)), coco_mask.toBbox(mask).tolist()
    areas = [pixels, outline(points), max(pixels - box[2] - box[3] + 1, 0)]  # the last as `cv2.contourArea`
    as_runs = {"size": [200, 200], "counts": mask["counts"].decode()}
    fitting = [annotation(id=k, area=area, bbox=box, segmentation=polygon) for k, area in enumerate(areas)]
    fitting.append(annotation(id=3, area=pixels, bbox=box, segmentation=as_runs))
    scaled = annotation(id=4, area=4 * pixels + 800, bbox=box, segmentation=polygon)
    file, rows = read(tmp_path, dataset(*fitting, scaled, images=images))
    [finding] = [one for one in file.findings.listed() if "area that" in one.kind]
    assert finding.examples == (f"annotation 4 ({4 * pixels + 800:g} instead of {pixels:,})",)
    assert [row["area"] for row in rows] == [*areas, pixels, 4 * pixels + 800]


# Where the images are


@pytest.mark.parametrize("below", ["", "images/", "instances_train2017/", "train2017/", "../", "../images/", "data/",
                                   "../train2017/", "../images/train2017/", "../data/", "../JPEGImages/"])  # fmt: skip
def test_images_are_found_in_the_places_that_datasets_use(tmp_path: Path, below: str) -> None:
    source = tmp_path / "annotations" / "instances_train2017.json"
    source.parent.mkdir()
    folder = tmp_path / "annotations" / below
    folder.resolve().mkdir(parents=True, exist_ok=True)
    (folder.resolve() / "a.png").write_bytes(b"")
    assert Path(find_images_root(str(source), ["a.png", "b.png"])).resolve() == folder.resolve()


LAYOUTS = {
    "COCO": ("annotations/instances_val2017.json", "val2017/", ""),
    "COCO, keypoints": ("annotations/person_keypoints_train2017.json", "train2017/", ""),
    "Roboflow": ("train/_annotations.coco.json", "train/", ""),
    "CVAT": ("annotations/instances_default.json", "images/", ""),
    "CVAT, a subset": ("annotations/instances_Train.json", "images/Train/", ""),
    "Label Studio": ("result.json", "", "images/"),
    "FiftyOne": ("labels.json", "data/", ""),
    "labelme2coco": ("annotations.json", "", "JPEGImages/"),
    "MMDetection": ("annotations/train.json", "train/", ""),
    "the split first": ("annotations/train_annotations.json", "train/", ""),
    "names from above": ("annotations/instances_train2017.json", "", "train2017/"),
}


@pytest.mark.parametrize(("json_file", "root", "named"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_images_are_found_in_the_layouts_of_tools(
    tmp_path: Path, json_file: str, root: str, named: str
) -> None:
    source = tmp_path / json_file
    source.parent.mkdir(exist_ok=True)
    folder = tmp_path / root
    (folder / named).mkdir(parents=True, exist_ok=True)
    (folder / named / "a.png").write_bytes(b"")
    assert Path(find_images_root(str(source), [f"{named}a.png"])).resolve() == folder.resolve()


def test_the_folder_with_most_of_the_images_is_taken(tmp_path: Path) -> None:
    for folder, names in (("images", "a"), ("data", "abc"), ("img", "ab")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.png").write_bytes(b"")
    names = [f"{name}.png" for name in "abcd"]
    assert find_images_root(str(tmp_path / "labels.json"), names) == str(tmp_path / "data")


def test_images_that_are_not_found_name_the_folders_and_the_option(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--images-root") as refused:
        find_images_root(str(tmp_path / "annotations" / "instances_val2017.json"), ["a.png"])
    for folder in ("annotations/images", "annotations/val2017", "val2017", "images/val2017"):
        assert f"{tmp_path}/{folder}" in str(refused.value)
