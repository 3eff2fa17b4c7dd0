"""`maskrcnn diff` finds exactly the planted changes, and nothing in equal runs."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import picture, rectangles, result, write_run
from maskrcnn_jobs.cli import main
from pycocotools import mask as coco_mask

from maskrcnn.errors import UsageError
from maskrcnn.masks.rle import crop_to_rle
from maskrcnn.results.diff_matching import KINDS, Rules, box_iou, compare_instances, match_instances
from maskrcnn.results.run import open_run
from maskrcnn.schema import ImageResult
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, best_of
from maskrcnn.types import Category, Detections

CELL, CELLS = 24, 4
SIDE = CELL * CELLS
NAMES = {category.id: category.name for category in PLANTED_CATEGORIES}
Thing = tuple[tuple[int, int, int, int], float, int]


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["-q", *arguments], catch_exceptions=False)


def facts_of(*arguments: str) -> dict[str, Any]:
    ran = cli("diff", *arguments, "--json")
    assert ran.exit_code in (0, 1), ran.output
    return json.loads(ran.stdout)  # type: ignore[no-any-return]


def changes(output: Path) -> Counter[tuple[Any, ...]]:
    rows = pq.read_table(output / "diff.parquet").to_pylist()
    return Counter(
        (row["name"], row["kind"], row["category_a"], row["category_b"], row["area_a"], row["area_b"])
        for row in rows
    )


# --- edits that are planted ----------------------------------------------------------------------------------


@st.composite
def edited(draw: st.DrawFn) -> tuple[list[Thing], list[Thing], list[tuple[Any, ...]]]:
    """An image of separate objects; the same with edits; and the edits, as rows of `diff.parquet`."""
    before: list[Thing] = []
    after: list[Thing] = []
    edits: list[tuple[Any, ...]] = []
    for cell in draw(st.lists(st.integers(0, CELLS**2 - 1), unique=True, max_size=9)):
        left, top = cell % CELLS * CELL + 4, cell // CELLS * CELL + 4
        width, height = draw(st.integers(8, 14)), draw(st.integers(8, 14))
        box = (left, top, left + width, top + height)
        score, label = draw(st.integers(10, 90)) / 100, draw(st.sampled_from(sorted(NAMES)))
        name, area = NAMES[label], width * height
        edit = draw(st.sampled_from(["none", *KINDS[1:], "moved and rescored", "relabelled and moved"]))
        if edit != "appeared":
            before.append((box, score, label))
        if edit == "appeared":
            edits.append((edit, None, name, None, area))
        elif edit == "vanished":
            edits.append((edit, name, None, area, None))
            continue
        if "moved" in edit:
            dx, dy = draw(st.sampled_from([(1, 0), (0, -1), (-1, 1), (2, 0)]))
            box = (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy)
        if "relabelled" in edit:
            label = draw(st.sampled_from([other for other in sorted(NAMES) if other != label]))
        if "rescored" in edit:
            score += 0.05
        after.append((box, score, label))
        if edit not in ("none", "appeared"):
            kind = "relabelled" if "relabelled" in edit else "moved" if "moved" in edit else "rescored"
            edits.append((kind, name, NAMES[label], area, area))
    # In another order, as scores put them.
    return before, draw(st.permutations(after)), edits


@pytest.mark.slow
@settings(max_examples=25)
@given(images=st.lists(edited(), min_size=1, max_size=7), per_part=st.sampled_from([1, 3, 50]))
def test_a_run_and_a_copy_with_edits_differ_in_exactly_the_edits(
    images: list[tuple[list[Thing], list[Thing], list[tuple[Any, ...]]]],
    per_part: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("edits")
    runs: dict[str, list[ImageResult]] = {"a": [], "b": []}
    expected: Counter[tuple[Any, ...]] = Counter()
    for number, (before, after, edits) in enumerate(images):
        name = f"{number}.png"
        runs["a"].append(result(number, name, rectangles(SIDE, SIDE, *before)))
        runs["b"].append(result(number, name, rectangles(SIDE, SIDE, *after)))
        expected += Counter((name, *edit) for edit in edits)
    # Cut in other places, which must not matter.
    write_run(folder / "a", runs["a"], per_part=per_part)
    write_run(folder / "b", runs["b"], per_part=2)
    facts = facts_of(str(folder / "a"), str(folder / "b"), "--output", str(folder / "out"), "--pictures", "1")
    assert changes(folder / "out") == expected

    kinds = Counter(kind for _, kind, *_ in expected.elements())
    found = facts["instances"]
    assert {kind: found[kind] for kind in KINDS[1:]} == {kind: kinds[kind] for kind in KINDS[1:]}
    n_before = sum(len(before) for before, _, _ in images)
    assert n_before == sum(found[kind] for kind in KINDS if kind != "appeared")
    assert sum(len(after) for _, after, _ in images) == sum(
        found[kind] for kind in KINDS if kind != "vanished"
    )
    for table in ("by_category", "by_size"):
        assert {kind: sum(row[kind] for row in facts[table].values()) for kind in KINDS} == found
    assert sum(row["count"] for row in facts["relabelled"]) == kinds["relabelled"]
    # An image that has lost all it had, or gained its first, is `empty` on one side.
    status = sum(bool(before) != bool(after) for before, after, _ in images)
    assert facts["images"]["status_changed"] == status
    assert facts["equal"] == (not expected)
    shutil.rmtree(folder)


@settings(max_examples=10)
@given(image=edited())
def test_in_reverse_vanished_instances_have_appeared(
    image: tuple[list[Thing], list[Thing], list[tuple[Any, ...]]],
) -> None:
    one, other = (rectangles(SIDE, SIDE, *things) for things in image[:2])
    there, kinds = compare_instances(one, other, Rules())
    back, kinds_back = compare_instances(other, one, Rules())
    forth = sorted(zip(there.a.tolist(), there.b.tolist(), there.iou.tolist(), kinds.tolist(), strict=True))
    assert forth == sorted(
        zip(back.b.tolist(), back.a.tolist(), back.iou.tolist(), kinds_back.tolist(), strict=True)
    )


@pytest.mark.slow
@settings(max_examples=8)
@given(
    images=st.lists(
        st.tuples(edited(), st.sampled_from(["both", "a", "b", "failed"])), min_size=2, max_size=7
    ),
    ids_given=st.booleans(),
    range_images=st.sampled_from([1, 2, 3]),
)
def test_ranges_of_any_size_give_the_same_bytes(
    images: list[tuple[tuple[list[Thing], list[Thing], Any], str]],
    ids_given: bool,
    range_images: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("ranges")
    runs: dict[str, list[ImageResult]] = {"a": [], "b": []}
    for number, ((before, after, _), where) in enumerate(images):
        # By id, images of B are in another order than in A.
        names = (f"{number}.png", f"{9 - number if ids_given else number}.png")
        for run, name, things in zip("ab", names, (before, after), strict=True):
            found = None if (where, run) == ("failed", "b") else rectangles(SIDE, SIDE, *things)
            if where in ("both", "failed", run):
                runs[run].append(result(number, name, found, image_id=number))
    if not any(where == "both" for _, where in images):
        return
    for run, results in runs.items():
        write_run(folder / run, results, per_part=2, ids_given=ids_given)
    files: dict[str, list[bytes]] = {}
    for name, size in (("whole", 50), ("ranges", range_images)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("maskrcnn.results.diff_tables.RANGE_IMAGES", size)
            facts_of(*(str(folder / run) for run in "ab"), "--output", str(folder / name), "--pictures", "2")
        files[name] = [path.read_bytes() for path in sorted((folder / name).rglob("*")) if path.is_file()]
    assert len(files["whole"]) == 4
    assert files["ranges"] == files["whole"]


# --- matching ------------------------------------------------------------------------------------------------


@st.composite
def crowds(draw: st.DrawFn) -> Detections:
    """Random masks that overlap in all ways."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(0, 12))
    masks = []
    for _ in range(n):
        height, width = rng.integers(1, 9, 2)
        crop = rng.random((height, width)) < 0.8
        masks.append(
            crop_to_rle(
                crop, int(rng.integers(0, 16 - width + 1)), int(rng.integers(0, 16 - height + 1)), 16, 16
            )
        )
    labels = rng.integers(1, 3, n).astype(np.int32)
    return best_of(masks, labels, rng.integers(1, 9, n).astype(np.float32) / 10, 16, 16, 100)


@settings(max_examples=60)
@given(a=crowds(), b=crowds(), least=st.sampled_from([0.1, 0.5, 0.75]))
def test_pairs_are_those_of_greedy_matching_on_pycocotools_iou(
    a: Detections, b: Detections, least: float
) -> None:
    pairs = match_instances(a, b, least)
    assert len(set(pairs.a.tolist())) == len(pairs.a)
    assert len(set(pairs.b.tolist())) == len(pairs.b)
    iou = np.array(coco_mask.iou(a.rles(), b.rles(), [0] * len(b))).reshape(len(a), len(b))
    iou[np.ix_(a.areas == 0, b.areas == 0)] = 1.0  # two empty masks are equal; pycocotools gives them 0
    assert np.allclose(iou[pairs.a, pairs.b], pairs.iou, atol=1e-12)
    assert (pairs.iou >= least).all()

    # Whatever is left over would not rather have been matched otherwise.
    def rank(i: int, j: int) -> tuple[bool, float]:
        return bool(a.labels[i] == b.labels[j]), round(float(iou[i, j]), 9)

    of_a = dict(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True))
    of_b = {j: i for i, j in of_a.items()}
    for i in range(len(a)):
        for j in range(len(b)):
            if iou[i, j] >= least and a.areas[i] and b.areas[j]:
                held = [rank(i, of_a[i])] if i in of_a else []
                held += [rank(of_b[j], j)] if j in of_b else []
                assert held
                assert max(held) >= rank(i, j)


def test_equal_instances_are_matched_first() -> None:
    """Optimal matching would pair the first of A with the second of B."""
    a = rectangles(100, 100, ((0, 0, 50, 50), 0.9, 1), ((0, 0, 50, 40), 0.8, 1))
    b = rectangles(100, 100, ((0, 0, 50, 50), 0.9, 1), ((0, 0, 50, 60), 0.8, 1))
    pairs = match_instances(a, b)
    assert list(zip(pairs.a, pairs.b, strict=True)) == [(0, 0), (1, 1)]
    assert pairs.iou.tolist() == [1.0, pytest.approx(2 / 3)]


def test_instances_with_equal_masks_are_matched_by_score_and_category() -> None:
    box = (10, 10, 40, 40)
    a = rectangles(64, 64, (box, 0.9, 1), (box, 0.8, 1), (box, 0.7, 2))
    b = rectangles(64, 64, (box, 0.8, 1), (box, 0.7, 2))
    pairs, kinds = compare_instances(a, b, Rules())
    assert list(zip(pairs.a, pairs.b, strict=True)) == [(1, 0), (2, 1)]
    assert [KINDS[kind] for kind in kinds] == ["same", "same"]


def test_masks_in_their_own_frames_are_matched_by_position() -> None:
    """In images with more than 2^32 pixels."""
    small = rectangles(64, 64, ((10, 10, 40, 40), 0.9, 1), ((5, 5, 20, 20), 0.8, 2))

    def placed(left: int, top: int) -> Detections:
        at = np.array([left, top] * 2)
        frames = np.tile(np.array([left, top, 64, 64], np.int32), (2, 1))
        return replace(
            small, height=100_000, width=100_000, frames=frames, boxes=(small.boxes + at).astype(np.float32),
            mask_boxes=(small.mask_boxes + at).astype(np.int32),
        )  # fmt: skip

    here = placed(70_000, 80_000)
    assert match_instances(here, placed(70_003, 80_000)).iou.tolist() == [
        pytest.approx(27 / 33),
        pytest.approx(12 / 18),
    ]
    assert len(match_instances(here, placed(0, 0)).a) == 0
    pairs, kinds = compare_instances(here, here, Rules())
    assert [KINDS[kind] for kind in kinds] == ["same", "same"]
    assert pairs.iou.tolist() == [1.0, 1.0]


@pytest.mark.slow
def test_many_instances_are_matched_without_a_matrix_of_all_pairs() -> None:
    """Forty thousand in one image would make 1.6 billion pairs."""
    side = 2000
    things: list[Thing] = [
        ((x, y, x + 6, y + 6), 0.9, 1) for y in range(0, side, 10) for x in range(0, side, 10)
    ]
    a = rectangles(side, side, *things)
    moved = [((x0 + 1, y0, x1 + 1, y1), score, label) for (x0, y0, x1, y1), score, label in things]
    pairs, kinds = compare_instances(a, rectangles(side, side, *moved), Rules())
    assert np.array_equal(pairs.a, np.arange(len(things)))
    assert np.array_equal(pairs.a, pairs.b)
    assert {KINDS[kind] for kind in kinds} == {"moved"}


def test_iou_of_boxes_is_1_for_equal_boxes_only() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 0, 0], [0, 0, 1e6, 1e6]], np.float32)
    others = np.array([[0, 0, 4, 2], [0, 0, 0, 0], [0, 0, 1e6, np.nextafter(np.float32(1e6), 0)]], np.float32)
    assert box_iou(boxes, boxes).tolist() == [1, 1, 1]
    assert box_iou(boxes, others)[:2].tolist() == [0.5, 1]
    assert box_iou(boxes, others)[2] < 1


# --- runs ----------------------------------------------------------------------------------------------------

ONE = rectangles(SIDE, SIDE, ((10, 10, 30, 30), 0.9, 1), ((50, 50, 80, 80), 0.6, 2))


def test_a_run_equals_itself_and_the_exit_code_says_so(tmp_path: Path) -> None:
    url = write_run(tmp_path / "a", [result(0, "a.png", ONE), result(1, "b.png", None)])
    ran = cli("diff", url, url)
    assert ran.exit_code == 0
    assert ran.stdout.splitlines()[-1] == "equal"
    assert facts_of(url, url)["images"]["failed"] == 1


def test_images_in_one_run_only_and_changed_statuses_are_reported(tmp_path: Path) -> None:
    resized = rectangles(SIDE, SIDE + 1, ((10, 10, 30, 30), 0.9, 1))
    none = rectangles(SIDE, SIDE)
    a = {"a": ONE, "b": ONE, "c": ONE, "d": None, "e": ONE, "ü": ONE}
    b = {"b": ONE, "c": None, "d": None, "e": resized, "f": none, "ü": ONE}
    urls = [
        write_run(
            tmp_path / side, [result(k, f"{name}.png", found) for k, (name, found) in enumerate(run.items())]
        )
        for side, run in (("a", a), ("b", b))
    ]
    facts = facts_of(*urls, "--output", str(tmp_path / "out"))
    assert facts["matched_by"] == "name"
    assert facts["images"] == {
        "compared": 2, "only_a": 1, "only_b": 1, "failed": 2, "resized": 1, "changed": 0, "status_changed": 1,
        "renamed": 0,
    }  # fmt: skip
    assert facts["instances"]["same"] == 4
    rows = pq.read_table(tmp_path / "out" / "images.parquet").to_pylist()
    assert {row["name"]: (row["outcome"], row["status_a"], row["status_b"]) for row in rows} == {
        "a.png": ("only_a", "ok", None),
        "c.png": ("failed", "ok", "failed"),
        "e.png": ("resized", "ok", "ok"),
        "f.png": ("only_b", None, "empty"),
    }


def test_images_match_by_id_if_both_runs_were_given_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names differ, and so does their order; that is said, because ids that count from 1 match in any two datasets."""
    empty = rectangles(SIDE, SIDE)
    a = [
        result(0, "a.png", ONE, image_id=70),
        result(1, "b.png", empty, image_id=5),
        result(2, "c.png", ONE, image_id=9),
    ]
    b = [
        result(0, "x.png", empty, image_id=5),
        result(1, "y.png", ONE, image_id=70),
        result(2, "z.png", ONE, image_id=8),
    ]
    urls = [write_run(tmp_path / side, run, ids_given=True) for side, run in (("a", a), ("b", b))]
    facts = facts_of(*urls)
    assert facts["matched_by"] == "image_id"
    assert (facts["images"]["compared"], facts["images"]["only_a"], facts["images"]["only_b"]) == (2, 1, 1)
    assert facts["images"]["renamed"] == 2
    assert facts["instances"]["same"] == 2
    assert caplog.messages == [
        "2 images with the same id but another name: are both runs over the same images?"
    ]
    assert "2 have another name in B" in cli("diff", *urls).stdout


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1), (1, 2, 0)])
def test_a_run_whose_names_are_in_another_order_after_an_update_is_matched_by_name(
    order: tuple[int, ...], tmp_path: Path
) -> None:
    here = [result(row, f"{row}.png", ONE) for row in range(3)]
    there = [*here[:2], result(3, "3.png", ONE)]
    a, fresh = (write_run(tmp_path / name, run) for name, run in (("a", here), ("fresh", there)))
    updated = write_run(tmp_path / "updated", [there[row] for row in order], in_order=False, per_part=2)
    for one, other in ((a, updated), (updated, a), (updated, fresh)):
        facts = facts_of(one, other)
        assert facts["images"]["compared"] == (3 if other == fresh else 2)
        assert (facts["images"]["only_a"], facts["images"]["only_b"]) == (
            (0, 0) if other == fresh else (1, 1)
        )
        assert facts["equal"] == (other == fresh)


def test_another_folder_is_no_other_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b = (
        write_run(tmp_path / side, [result(0, f"{folder}a.png", ONE, image_id=7)], ids_given=True)
        for side, folder in (("a", ""), ("b", "train\\2017/"))
    )
    facts = facts_of(a, b)
    assert (facts["equal"], facts["images"]["renamed"], caplog.messages) == (True, 0, [])


@pytest.mark.parametrize("ids_given", [False, True])
def test_runs_in_which_every_image_failed_are_not_equal(ids_given: bool, tmp_path: Path) -> None:
    failed = [result(0, "a.png", None), result(1, "b.png", None)]
    a, b = (write_run(tmp_path / side, failed, ids_given=ids_given) for side in "ab")
    line = refused("diff", a, b, "--output", str(tmp_path / "out"))
    assert f"{a} and {b} cannot be compared: of 2 images in common none was segmented in either run" in line
    assert not (tmp_path / "out").exists()
    one = write_run(tmp_path / "c", [result(0, "a.png", None), result(1, "b.png", ONE)], ids_given=ids_given)
    assert facts_of(a, one)["images"]["status_changed"] == 1
    assert not facts_of(a, one)["equal"]


def refused(*arguments: str) -> str:
    """Return the one line with which a command refuses."""
    ran = cli(*arguments)
    assert ran.exit_code == 2, ran.output
    [line] = ran.output.splitlines()
    return line


@pytest.mark.parametrize("ids_given", [False, True])
def test_runs_without_an_image_in_common_are_not_compared(ids_given: bool, tmp_path: Path) -> None:
    """Tables of zeros would look like a result."""
    a = write_run(tmp_path / "a", [result(0, "site 1/a.png", ONE, image_id=1)], ids_given=ids_given)
    b = write_run(tmp_path / "b", [result(0, "a.png", ONE, image_id=2)], ids_given=ids_given)
    line = refused("diff", a, b, "--output", str(tmp_path / "out"))
    assert f"{a} and {b} have no image in common" in line
    assert (
        "matched by image_id; the first are 1 and 2" if ids_given else "'site 1/a.png' and 'a.png'"
    ) in line
    assert not (tmp_path / "out").exists()
    empty = write_run(tmp_path / "c", [])
    assert "no image in common" in refused("diff", a, empty)


def without_an_instance(table: pa.Table) -> pa.Table:
    return table.slice(1)


def of_another_image(table: pa.Table) -> pa.Table:
    at = table.column_names.index("image_id")
    return table.set_column(at, table.field(at), pa.array(table["image_id"].to_numpy() + 1))


def of_another_category(table: pa.Table) -> pa.Table:
    at = table.column_names.index("category_id")
    return table.set_column(at, table.field(at), pa.array([4711] * len(table), table.field(at).type))


def with_another_count(table: pa.Table) -> pa.Table:
    at = table.column_names.index("n_instances")
    counts = [count + 1 for count in table["n_instances"].to_pylist()]
    return table.set_column(at, table.field(at), pa.array(counts, table.field(at).type))


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("instances", without_an_instance),
        ("instances", of_another_image),
        ("instances", of_another_category),
        ("images", with_another_count),
        ("images", without_an_instance),
        ("images", None),
        ("instances", None),
    ],
)
def test_a_run_whose_tables_disagree_is_not_compared(table: str, change: Any, tmp_path: Path) -> None:
    """Its numbers would be wrong without a word."""
    results = [result(0, "a.png", ONE), result(1, "b.png", ONE), result(2, "c.png", rectangles(SIDE, SIDE))]
    a, b = (write_run(tmp_path / side, results) for side in "ab")
    assert facts_of(a, b)["equal"]
    [part] = (tmp_path / "b" / table).iterdir()
    if change is None:
        part.write_bytes(b"not Parquet")
    else:
        pq.write_table(change(pq.read_table(part)), part)
    for run in (tmp_path / "a", tmp_path / "b"):  # matched by id, the columns are read on their own
        info = json.loads((run / "run.json").read_text())
        info["inputs"]["ids_given"] = change is None
        (run / "run.json").write_text(json.dumps(info))
    line = refused("diff", a, b)
    assert line.startswith(f"error: the tables of {b} disagree: ")
    assert "`maskrcnn verify` lists all" in line
    part.unlink()
    assert "is missing" in refused("diff", b, a)
    assert "is missing" in refused("show", b)


def test_categories_are_the_same_by_their_names_not_their_ids(tmp_path: Path) -> None:
    swapped = (Category(7, "coin"), Category(9, "plank"))
    again = replace(ONE, labels=np.array([9, 7], np.int32))
    a = write_run(tmp_path / "a", [result(0, "a.png", ONE)])
    b = write_run(tmp_path / "b", [result(0, "a.png", again)], categories=swapped)
    assert facts_of(a, b)["equal"]


def test_differences_within_the_limits_are_ignored(tmp_path: Path) -> None:
    near = rectangles(SIDE, SIDE, ((10, 10, 30, 31), 0.9, 1), ((50, 50, 80, 80), 0.58, 2))
    a = write_run(tmp_path / "a", [result(0, "a.png", ONE)])
    b = write_run(tmp_path / "b", [result(0, "a.png", near)])
    found = facts_of(a, b)["instances"]
    assert (found["moved"], found["rescored"]) == (1, 1)
    assert facts_of(a, b, "--iou", "0.95", "--score", "0.03")["equal"]
    assert facts_of(a, b, "--iou", "0.95", "--min-score", "0.7")["instances"]["same"] == 1
    assert facts_of(a, b, "--match-iou", "0.96")["instances"]["vanished"] == 1


def test_the_page_shows_the_differences_and_escapes_names(tmp_path: Path) -> None:
    uri = picture(tmp_path / "in" / "one.png", SIDE, SIDE)
    name, changed = "<script>alert(1)</script>.png", replace(ONE, labels=np.array([2, 2], np.int32))
    a = [result(0, name, ONE, uri=uri), result(1, "gone.png", ONE)]
    b = [result(0, name, changed, uri=uri), result(1, "gone.png", changed)]
    urls = [write_run(tmp_path / side, run) for side, run in (("a", a), ("b", b))]
    ran = cli("diff", *urls, "--output", str(tmp_path / "out"))
    assert ran.exit_code == 1
    page = (tmp_path / "out" / "diff.html").read_text()
    assert "<script>" not in page
    assert page.count("data:image/jpeg") == 4
    assert "image not read: the object does not exist" in page
    assert json.loads((tmp_path / "out" / "diff.json").read_text())["relabelled"] == [
        {"from": "plank", "to": "coin", "count": 2}
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("diff.html", "diff.json", "diff.parquet", "images.parquet")
    }


def test_the_pictures_show_the_images_with_the_most_differences(tmp_path: Path) -> None:
    things: list[Thing] = [((10 * k, 10, 10 * k + 8, 18), 0.9, 1) for k in range(8)]
    runs = {
        side: [
            result(k, f"{k}.png", rectangles(SIDE, SIDE, *(things if side == "a" else things[lost:])))
            for k, lost in enumerate((1, 5, 0, 3))
        ]
        for side in "ab"
    }
    urls = [write_run(tmp_path / side, run) for side, run in runs.items()]
    cli("diff", *urls, "--output", str(tmp_path / "out"), "--pictures", "2")
    page = (tmp_path / "out" / "diff.html").read_text()
    assert page.count("<figure") == 2
    assert page.index("<figcaption>1.png") < page.index("<figcaption>3.png")


def test_errors_and_differences_have_different_exit_codes(tmp_path: Path) -> None:
    url = write_run(tmp_path / "a", [result(0, "a.png", ONE)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments in (
        (url, str(tmp_path / "none")),
        (url, url, "--output", str(tmp_path / "full")),
        (url, url, "--iou", "1.5"),
        (url, url, "--score", "-1"),
    ):
        ran = cli("diff", *arguments)
        assert (ran.exit_code, ran.stdout) == (2, ""), arguments
        assert len(ran.stderr.splitlines()) == 1
    with pytest.raises(UsageError):
        Rules(match_iou=0)


def test_runs_in_any_store_are_compared(store_url: str, tmp_path: Path) -> None:
    write_run(f"{store_url}/a", [result(0, "a.png", ONE)])
    local = write_run(tmp_path / "a", [result(0, "a.png", ONE)])
    assert open_run(f"{store_url}/a").categories == open_run(local).categories
    facts = facts_of(f"{store_url}/a", local, "--output", f"{store_url}/out")
    assert facts["equal"]
