"""`maskrcnn show` draws the requested images, reads no more than it needs, and evaluates conditions safely."""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from made_runs import picture, rectangles, result, write_run
from maskrcnn_jobs.cli import main
from PIL import Image
from planted_images import random_instances
from windowed import compute_of, mosaic, run_windows, write_geotiff

import maskrcnn
from maskrcnn.errors import UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.results.reader import RunReader, find_images, where
from maskrcnn.results.run import open_run
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, plant, png
from maskrcnn.types import Category, Detections
from maskrcnn.visualization.display import (
    Cell,
    as_categories,
    as_detections,
    as_pixels,
    display_instances,
    display_masks,
    draw_legibly,
    sheet,
)

HEIGHT, WIDTH = 120, 160
ONE = rectangles(
    HEIGHT,
    WIDTH,
    ((10, 10, 50, 40), 0.95, 1),
    ((60, 50, 100, 110), 0.8, 2),
    ((120, 20, 150, 60), 0.3, 5),
)


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["-q", "show", *arguments], catch_exceptions=False)


def shown(*arguments: str) -> list[dict[str, Any]]:
    ran = cli(*arguments, "--json")
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)["images"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Nine images in three parts: those with even numbers have detections, others none; the last failed."""
    folder = tmp_path_factory.mktemp("show")
    results = []
    for k in range(9):
        uri = picture(folder / "in" / f"site-{k % 2}" / f"{k}.png", HEIGHT, WIDTH, 40 + 20 * k)
        found = ONE if k % 2 == 0 else rectangles(HEIGHT, WIDTH)
        results.append(
            result(k, f"site-{k % 2}/{k}.png", None if k == 8 else found, uri=uri, image_id=100 + k)
        )
    return write_run(folder / "run", results)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_scores_that_are_left_out_or_low_are_said_unless_a_limit_is_given(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each image with instances has one with a score of 0.3."""

    def said(*options: str) -> str:
        caplog.clear()
        with caplog.at_level("INFO", "maskrcnn"):
            assert CliRunner().invoke(main, ["show", run, "--image", "site-0/0.png", *options]).exit_code == 0
        return caplog.text

    assert "1 instance with a score below 0.5 is not drawn: --min-score 0 draws all" in said()
    assert "--min-score" not in said("--min-score", "0.5")
    assert "--min-score" not in said("--min-score", "0")


def test_low_scores_that_a_condition_selects_are_said(run: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("duckdb")
    with caplog.at_level("INFO", "maskrcnn"):
        CliRunner().invoke(main, ["show", run, "--where", "score > 0", "--count", "2"])
    assert "2 instances with scores below 0.5 are drawn: --min-score 0.5 leaves them out" in caplog.text


# --- for notebooks -------------------------------------------------------------------------------------------


def grey(value: int = 128) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def test_detections_become_a_picture_that_a_notebook_shows() -> None:
    drawn = display_instances(grey(), ONE, PLANTED_CATEGORIES)
    assert isinstance(drawn, Image.Image)
    assert drawn._repr_png_()
    assert drawn.size == (800, 600)
    picture_ = np.asarray(drawn)
    assert (picture_[125, 150] != 128).any()
    assert (picture_[300, 10] == 128).all()
    assert maskrcnn.display_instances is display_instances


def test_results_of_torchvision_give_the_same_picture() -> None:
    """Tensors are recognized by their methods, so torch is not imported here."""

    class Tensor:
        def __init__(self, values: Any) -> None:
            self.values = np.asarray(values)

        def detach(self) -> "Tensor":
            return self

        cpu = detach

        def numpy(self) -> np.ndarray:
            return self.values

    probabilities = np.zeros((3, 1, HEIGHT, WIDTH), np.float32)
    for k, (left, top, right, bottom) in enumerate(ONE.boxes.astype(int)):
        probabilities[k, 0, top:bottom, left:right] = 0.51
        probabilities[k, 0, :top] = 0.49
    output = {
        "boxes": Tensor(ONE.boxes),
        "labels": Tensor(ONE.labels.astype(np.int64)),
        "scores": Tensor(ONE.scores),
        "masks": Tensor(probabilities),
    }
    found = as_detections(output, (HEIGHT, WIDTH))
    assert found.masks == ONE.masks
    assert np.array_equal(found.areas, ONE.areas)
    assert np.array_equal(found.mask_boxes, ONE.mask_boxes)
    image = Tensor(np.moveaxis(grey(), 2, 0) / np.float32(255))
    names = ["background", "plank", "coin", "?", "?", "leaf"]
    assert display_instances(image, output, names) == display_instances(grey(), ONE, PLANTED_CATEGORIES)
    flat = output | {"masks": probabilities[:, 0] > 0.5}
    assert display_instances(Image.fromarray(grey()), flat, names) == display_instances(grey(), ONE, names)


def test_results_without_masks_or_scores_and_empty_ones_are_drawn_too() -> None:
    boxes = {"boxes": ONE.boxes, "labels": ONE.labels}
    assert as_detections(boxes, (HEIGHT, WIDTH)).scores.tolist() == [1, 1, 1]
    assert display_instances(grey(), boxes) != display_instances(grey(), ONE)
    empty = {
        "boxes": np.zeros((0, 4)),
        "labels": np.zeros(0),
        "scores": np.zeros(0),
        "masks": np.zeros((0, 1, 9, 9)),
    }
    assert len(as_detections(empty | {"masks": np.zeros((0, 1, HEIGHT, WIDTH))}, (HEIGHT, WIDTH))) == 0
    with pytest.raises(ValueError, match="masks of shape"):
        as_detections(empty, (HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="the result is neither"):
        display_instances(grey(), {"boxes": ONE.boxes})
    with pytest.raises(ValueError, match="detections of 120 x 160"):
        display_instances(grey()[:50], ONE)


def test_images_are_accepted_in_all_shapes_with_three_channels() -> None:
    assert as_pixels(grey()[:, :, 0]).shape == (HEIGHT, WIDTH, 3)
    assert as_pixels(grey().astype(np.float64) / 255)[0, 0].tolist() == [128] * 3
    for wrong in (
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.int32),
        np.zeros((0, 5, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="the image has"):
            as_pixels(wrong)


def test_names_are_categories_a_mapping_or_a_list_after_the_background() -> None:
    expected = [Category(1, "plank"), Category(2, "coin")]
    assert as_categories(expected) == expected
    assert as_categories({0: "ground", 1: "plank", 2: "coin"}) == expected
    assert as_categories(["ground", "plank", "coin"]) == expected
    assert as_categories(None) == []


def test_each_mask_has_its_own_cell_on_a_sheet() -> None:
    two = display_masks(grey(), ONE, PLANTED_CATEGORIES, cell_px=200, columns=5)
    three = display_masks(grey(), ONE, PLANTED_CATEGORIES, cell_px=200, columns=5, min_score=0.1)
    assert three.width - two.width > 200
    whole = display_masks(grey(), ONE, PLANTED_CATEGORIES, cell_px=200, columns=1, crop=False)
    assert whole.width < two.width


def test_many_labels_leave_most_of_the_image_visible() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 280, (300, 2))
    things = [((x, y, x + 12, y + 12), 0.9, 1) for x, y in corners.tolist()]
    found = rectangles(300, 300, *things)
    names = [Category(1, "a name that needs much room")]
    none = draw_legibly(grey_of(300), found, [], 600, colors=None)
    some = draw_legibly(grey_of(300), found, names, 600, colors=None)
    assert (none != some).any(axis=2).mean() < 0.3
    alone = rectangles(300, 300, things[0])
    assert (draw_legibly(grey_of(300), alone, [], 600) != draw_legibly(grey_of(300), alone, names, 600)).any()


def grey_of(side: int) -> np.ndarray:
    return np.full((side, side, 3), 128, np.uint8)


def test_a_sheet_has_its_cells_in_rows_with_room_for_their_lines() -> None:
    cells = [
        Cell(np.full((h, w, 3), 10, np.uint8), ("x" * 300, "ü")) for h, w in ((50, 90), (90, 40), (400, 400))
    ]
    pictures = sheet(cells, 2, cell_px=100)
    assert pictures.shape[1] == 2 * 114 + 14
    dark = (pictures == 10).all(axis=2)
    # Each as large as it is, but the third, which is reduced.
    assert dark.sum() == 50 * 90 + 90 * 40 + 100 * 100
    assert (sheet(cells[:1], 5, cell_px=100) != 255).any()
    with pytest.raises(ValueError, match="0 cells"):
        sheet([], 2)


# --- which images --------------------------------------------------------------------------------------------


def test_images_are_found_by_name_id_or_the_last_part_of_their_name(run: str) -> None:
    for asked in ("site-0/4.png", "104", "4.png", "4"):
        assert [image["name"] for image in shown(run, "--image", asked)] == ["site-0/4.png"], asked
    assert [image["name"] for image in shown(run, "--image", "6.png", "--image", "100")] == [
        *("site-0/6.png", "site-0/0.png")
    ]


def test_a_name_precedes_an_id_and_ambiguous_names_are_refused(tmp_path: Path) -> None:
    names = ("7", "a/x.png", "b/x.png")
    url = write_run(tmp_path / "r", [result(k, name, ONE, image_id=7 + k) for k, name in enumerate(names)])
    with RunReader(open_run(url)) as reader:
        assert [image.name for image in find_images(reader, ["7", "8"])] == ["7", "a/x.png"]
        with pytest.raises(UsageError, match=r"several images are called 'x': 'a/x.png', 'b/x.png'"):
            find_images(reader, ["x"])
        with pytest.raises(UsageError, match="no image 'y'"):
            find_images(reader, ["y"])


def test_by_default_the_first_images_with_detections_are_shown(run: str) -> None:
    assert [image["name"] for image in shown(run, "--count", "3")] == [f"site-0/{k}.png" for k in (0, 2, 4)]


def test_the_reader_returns_what_was_written(run: str) -> None:
    with RunReader(open_run(run)) as reader:
        images = list(reader.images())
        assert [image.image_id for image in images] == [100, 102, 104, 106, 108, 101, 103, 105, 107]
        for row in (8, 0, 3, 1):
            assert reader.image(row) == images[row]
        ok = [image for image in images if image.status == "ok"]
        for image in reversed(ok):
            found = reader.detections(image)
            assert found.masks == ONE.masks
            assert np.array_equal(found.boxes, ONE.boxes)
            assert reader.boxes(image)["score"].to_numpy().tolist() == ONE.scores.tolist()


def test_looking_up_one_image_reads_only_its_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write_run(tmp_path / "r", [result(k, f"{k:04}.png", ONE) for k in range(300)], per_part=30)
    opened: list[str] = []
    real = Storage.open
    monkeypatch.setattr(Storage, "open", lambda self, path: (opened.append(path), real(self, path))[1])
    read: list[int] = []
    group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda *a, **k: (read.append(a[1]), group(*a, **k))[1]
    )
    with RunReader(open_run(url)) as reader:
        (image,) = find_images(reader, ["0123.png"])
        assert len(reader.detections(image)) == 3
    assert [path for path in opened if path.startswith("instances")] == ["instances/part-1-00004.parquet"]
    assert len(read) == 3  # to find it, its image, its instances


def test_the_worst_images_come_by_panoptic_quality_then_id(run: str, tmp_path: Path) -> None:
    run = str(shutil.copytree(run, tmp_path / "evaluated"))
    ran = cli(run, "--worst", "2")
    assert ran.exit_code == 2
    assert "run `maskrcnn evaluate" in ran.stderr
    table = {
        "image_id": pa.array([102, 104, 100, 106], pa.int64()),
        "pq": pa.array([0.5, 0.25, 0.25, 1], pa.float32()),
    }
    folder = Path(run) / "evaluation"
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "images.parquet")
    found = shown(run, "--worst", "3")
    assert [image["image_id"] for image in found] == [100, 104, 102]
    assert found[0]["note"] == "PQ 0.25"
    pq.write_table(
        pa.table(table | {"image_id": pa.array([1, 2, 3, 4], pa.int64())}), folder / "images.parquet"
    )
    assert cli(run, "--worst", "3").exit_code == 3


# --- conditions in SQL ---------------------------------------------------------------------------------------


def matches(run: str, condition: str, count: int = 100) -> dict[int, tuple[int, ...]]:
    with RunReader(open_run(run)) as reader:
        return {reader.image(m.row).image_id: m.instances for m in where(reader, condition, count)}


def test_a_condition_selects_images_and_the_matching_instances(run: str) -> None:
    assert matches(run, "category = 'coin' AND image_id > 102") == {104: (1,), 106: (1,)}
    assert matches(run, "score < 0.9 OR images.status = 'failed'") == {
        **{100 + k: (1, 2) for k in (0, 2, 4, 6)},
        108: (),
    }
    assert matches(run, "n_instances = 0 AND error IS NULL -- those in which nothing was found", 2) == {
        101: (),
        103: (),
    }
    assert matches(run, "box.xmin > 1000") == {}
    weak = shown(run, "--where", "score < 0.5", "--count", "1")
    assert [entry["category"] for entry in weak[0]["instances"]] == ["leaf"]
    assert cli(run, "--where", "score > 1").exit_code == 2


@pytest.mark.parametrize(
    "condition",
    [
        "score >",
        "no_such_column = 1",
        "1=1) ; COPY images TO 'FILE'; SELECT (1=1",
        "1=1) UNION ALL SELECT 10000000, 0 FROM images WHERE (1=1",
        "1=1); SET enable_external_access = true; SELECT (1=1",
        "EXISTS (FROM read_text('SECRET'))",
        "EXISTS (FROM 'SECRET')",
        "EXISTS (FROM read_csv('SECRET'))",
        "EXISTS (FROM glob('/*'))",
        "EXISTS (FROM read_parquet('https://example.com/x.parquet'))",
        "EXISTS (FROM reader)",
        "1=1); ATTACH 'FILE' AS other; SELECT (1=1",
        "1=1); INSTALL httpfs; SELECT (1=1",
        "1=1); EXPORT DATABASE 'FILE'; SELECT (1=1",
    ],
)
def test_a_condition_reads_and_writes_nothing_but_the_tables(
    run: str, condition: str, tmp_path: Path
) -> None:
    secret, target = tmp_path / "secret.csv", tmp_path / "written"
    secret.write_text("a,b\n1,2\n")
    ran = cli(run, "--where", condition.replace("SECRET", str(secret)).replace("FILE", str(target)))
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.startswith("error: --where")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.csv"]


def test_without_duckdb_a_condition_says_what_to_install(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "duckdb":
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    ran = cli(run, "--where", "score > 0.5")
    assert ran.exit_code == 2
    assert "pip install 'maskrcnn-ray[notebooks]'" in ran.stderr


# --- pictures of a run ---------------------------------------------------------------------------------------


def test_one_image_is_a_picture_and_several_are_a_sheet(run: str, tmp_path: Path) -> None:
    ran = cli(run, "--image", "100")
    assert ran.stdout.splitlines() == ["site-0/0.png: 1 plank, 1 coin", "run-instances.png"]
    assert Image.open(tmp_path / "run-instances.png").size == (800, 600)
    assert cli(run, "--image", "100", "--max-side", "320", "--output", "small.jpg").exit_code == 0
    assert Image.open(tmp_path / "small.jpg").size == (320, 240)
    assert cli(run, "--columns", "2", "--max-side", "200", "--output", "deep/sheet.webp").exit_code == 0
    width, height = Image.open(tmp_path / "deep" / "sheet.webp").size
    assert width == 2 * 214 + 14
    assert height > 2 * 150


def test_each_image_gets_its_own_picture(run: str, tmp_path: Path) -> None:
    ran = cli(run, "--each", "all", "--count", "2")
    assert ran.stdout.splitlines()[2:] == ["all/site-0/0.png", "all/site-0/2.png"]
    assert all((tmp_path / line).exists() for line in ran.stdout.splitlines()[2:])


@pytest.mark.parametrize("order", [("x", "x.png", "X"), ("x.png", "X", "x"), ("X", "x", "x.png")])
@pytest.mark.parametrize("folder", ["all", ".", "s3://bucket/all"])
def test_no_two_images_get_one_file_on_any_store(
    order: tuple[str, ...], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a suffix that one of them lacks, and not where `x` and `X` are one name."""
    uri = picture(tmp_path / "image.png", 40, 40)
    found = rectangles(40, 40, ((10, 10, 30, 30), 0.9, 1))
    results = [replace(result(0, name, found, image_id=number), uri=uri) for number, name in enumerate("xX")]
    results.append(replace(result(0, "x.png", found, image_id=7), uri=uri))
    url = write_run(tmp_path / "twins", results)
    written: list[str] = []
    monkeypatch.setattr(Storage, "write", lambda _, path, data: written.append(path))
    ran = cli(url, *(word for name in order for word in ("--image", name)), "--each", folder)
    assert ran.exit_code == 0, ran.output
    assert len(written) == len({name.casefold() for name in written}) == 3
    assert written[0] == f"{order[0].removesuffix('.png')}.png"


def test_scores_and_categories_decide_what_is_drawn(run: str) -> None:
    def drawn(*arguments: str) -> list[tuple[int, str]]:
        (image,) = shown(run, "--image", "102", *arguments)
        return [(entry["instance"], entry["category"]) for entry in image["instances"]]

    assert drawn() == [(0, "plank"), (1, "coin")]
    assert drawn("--min-score", "0.1") == [(0, "plank"), (1, "coin"), (2, "leaf")]
    assert drawn("--min-score", "0.1", "--categories", "leaf, coin") == [(1, "coin"), (2, "leaf")]
    ran = cli(run, "--image", "102", "--categories", "leafs")
    assert ran.exit_code == 2
    assert "'leafs'" in ran.stderr


def test_the_color_of_an_instance_does_not_depend_on_the_others(run: str, tmp_path: Path) -> None:
    cli(run, "--image", "100", "--output", "all.png")
    cli(run, "--image", "100", "--output", "coin.png", "--categories", "coin")
    inside = (50 + 0.5) * 5, (60 + 20) * 5
    pixels = [np.asarray(Image.open(tmp_path / name)) for name in ("all.png", "coin.png")]
    assert np.array_equal(*(picture_[int(inside[0]), int(inside[1])] for picture_ in pixels))
    assert not np.array_equal(*(picture_[100, 100] for picture_ in pixels))


def test_each_mask_of_an_image_of_a_run_has_its_own_cell(run: str, tmp_path: Path) -> None:
    assert cli(run, "--image", "100", "--masks", "--columns", "9").exit_code == 0
    assert Image.open(tmp_path / "run-masks.png").width == 3 * (360 + 14) + 14


def test_a_missing_or_changed_image_is_reported_in_one_line(tmp_path: Path) -> None:
    uris = [picture(tmp_path / "in" / f"{k}.png", HEIGHT, WIDTH) for k in range(4)]
    made = [replace(result(k, f"{k}.png", ONE, uri=uri), bytes=(tmp_path / "in" / f"{k}.png").stat().st_size)
            for k, uri in enumerate(uris)]  # fmt: skip
    url = write_run(tmp_path / "run", made)
    (tmp_path / "in" / "0.png").unlink()
    picture(tmp_path / "in" / "1.png", HEIGHT, WIDTH + 1)
    (tmp_path / "in" / "2.png").write_text("no image any more")
    for number, why in (
        (0, "does not exist"),
        (1, "changed since planning"),
        (2, "changed since planning"),
    ):
        ran = cli(url, "--image", f"{number}.png")
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert why in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
    # On a sheet the others are shown.
    assert [image["shown"] for image in shown(url)] == [False, False, False, True]
    assert [path.name for path in tmp_path.glob("*.png")] == ["run-instances.png"]


def test_a_failed_image_gets_a_note(run: str) -> None:
    ran = cli(run, "--image", "108")
    assert ran.exit_code == 2
    assert "It failed in the run: the file cannot be decoded" in ran.stderr


def test_runs_in_any_store_are_shown(store_url: str, tmp_path: Path) -> None:
    uri = picture(tmp_path / "in.png", HEIGHT, WIDTH)
    url = write_run(f"{store_url}/r", [result(0, "in.png", ONE, uri=uri)])
    assert cli(url, "--output", f"{store_url}/pictures/a.png").exit_code == 0
    assert Storage(f"{store_url}/pictures").read("a.png").startswith(b"\x89PNG")
    assert [len(image["instances"]) for image in shown(url, "--where", "category = 'coin'")] == [1]


# --- large images --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_large_raster_is_shown_as_regions_around_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio")
    monkeypatch.setattr("maskrcnn.visualization.run_images.WHOLE_PIXELS", 300 * 400)
    write_geotiff(tmp_path / "in" / "large.tif", mosaic(700, 800, 30, 1))
    small = mosaic(300, 400, 8, 2)
    (tmp_path / "in" / "small.png").write_bytes(png(small))
    run_windows(tmp_path / "in", tmp_path / "out", compute_of(256, 64))
    found = shown(str(tmp_path / "out"), "--image", "large.tif", "--count", "4")
    assert len(found) == 4
    assert all(image["note"].startswith("from column ") for image in found)
    assert len({image["note"] for image in found}) == 4
    assert all(image["instances"] for image in found)
    assert [image["note"] for image in shown(str(tmp_path / "out"), "--image", "small.png")] == [""]
    each = cli(str(tmp_path / "out"), "--image", "large.tif", "--each", "each", "--count", "2", "--masks")
    files = each.stdout.splitlines()[2:]
    assert len(files) == len(set(files)) == 2
    assert all((tmp_path / name).exists() for name in files)
    chosen = shown(
        str(tmp_path / "out"), "--where", "name = 'large.tif' AND category = 'coin'", "--count", "3"
    )
    assert {entry["category"] for image in chosen for entry in image["instances"]} == {"coin"}


# --- one image, segmented here -------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_image_is_segmented_without_ray(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    ground_truth = random_instances(rng, 200, 300, 5)
    (tmp_path / "photo.png").write_bytes(png(plant((200, 300), ground_truth)))
    (image,) = shown("photo.png", "--model", "planted", "--min-score", "0")
    assert len(image["instances"]) == len([thing for thing in ground_truth if thing.crop(200, 300)[0].any()])
    assert (tmp_path / "photo-instances.png").exists()
    assert cli("photo.png", "--model", "planted", "--masks").exit_code == 0
    assert (tmp_path / "photo-masks.png").exists()


def test_wrong_usage_is_reported_in_one_line(run: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(grey()))
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder").mkdir()
    for arguments in (
        ("missing.png",),
        ("text.png", "--model", "planted"),
        ("folder",),
        ("a.png", "--model", "planted", "--image", "7"),
        ("a.png", "--model", "planted", "--output", "a.png"),
        ("a.png", "--model", "planted", "--output", "b.tga"),
        ("a.png", "--model", "planted", "--categories", " , "),
        (run, "--image", "1", "--worst", "2"),
        (run, "--each", "d", "--output", "x.png"),
        (run, "--min-score", "2"),
        (run, "--model", "scenes"),
    ):
        ran = cli(*arguments)
        assert (ran.exit_code, ran.stdout) == (2, ""), arguments
        assert len(ran.stderr.splitlines()) == 1, ran.stderr


def test_an_image_without_detections_is_drawn_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(grey()))
    ran = cli("a.png", "--model", "planted")
    assert ran.stdout.splitlines() == ["a.png: no instance", "a-instances.png"]
    none = write_run(tmp_path / "none", [result(0, "a.png", rectangles(HEIGHT, WIDTH))])
    ran = cli(none)
    assert ran.exit_code == 2
    assert "has detections: nothing to show" in ran.stderr


def test_detections_are_passed_through() -> None:
    assert isinstance(as_detections(ONE, (HEIGHT, WIDTH)), Detections)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--image", "caf\udce9.png", r"--image 'caf\udce9.png' is not UTF-8"),
        ("--where", "name = 'caf\udce9'", "--where \"name = 'caf\\udce9'\" is not UTF-8"),
        ("--each", "caf\udce9", r"--each 'caf\udce9' is not UTF-8"),
        ("--worst", "9" * 30, "is not in the range 1<=x<=1000000"),
    ],
)
def test_a_text_or_number_that_no_run_can_hold_is_one_line(
    run: str, option: str, value: str, said: str
) -> None:
    ran = cli(run, option, value)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
