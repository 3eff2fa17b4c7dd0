"""A run of windows gives what seeing each image whole would have given, whatever is cut where and done when."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from chaos.chance import chance
from maskrcnn_jobs.driver.planning import Request, prepare
from PIL import Image
from pycocotools import mask as coco_mask
from windowed import compute_of, mosaic, process_shards, run_windows, write_geotiff

import maskrcnn
from maskrcnn.errors import ItemError, UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import read_plans
from maskrcnn.pipeline.plan_retry import plan_retry
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.results.run import Run
from maskrcnn.results.verify import verify_run
from maskrcnn.synthetic.planted import png
from maskrcnn.synthetic.planted_mosaic import objects_in, score_of
from maskrcnn.types import Pixels
from maskrcnn.visualization.run_report import write_report

pytestmark = pytest.mark.slow

pytest.importorskip("rasterio")


def ground_truth(pixels: Pixels) -> dict[float, tuple[int, bytes]]:
    """Return area and mask of all that an image shows, by the score, which is an object's own."""
    found = {}
    for number, _, crop, left, top in objects_in(pixels):
        mask = np.zeros(pixels.shape[:2], np.uint8, order="F")
        mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        found[float(np.float32(score_of(number)))] = (int(crop.sum()), coco_mask.encode(mask)["counts"])
    return found


def found_in(run: Run, name: str) -> dict[float, tuple[int, bytes]]:
    [image_id] = [row["image_id"] for row in run.images().to_pylist() if row["name"] == name]
    return {
        row["score"]: (row["area"], row["segmentation"]["counts"].encode())
        for row in run.instances().to_pylist()
        if row["image_id"] == image_id
    }


def assert_proven(output: Path | str) -> None:
    report = verify_run(str(output))
    assert report.findings == ()
    assert report.proven


def tables_of(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for folder in ("images", "instances", "windows", "pieces", "geo", "coco")
        for path in sorted((output / folder).rglob("*.*"))
    }


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Pixels]]:
    """Rasters in two coordinate reference systems, one smaller than a window, a picture, and two that are broken."""
    folder = tmp_path_factory.mktemp("collection")
    images = {
        "a.tif": mosaic(500, 700, 60, 1),
        "b.tif": mosaic(90, 100, 5, 2),
        "c.png": mosaic(300, 260, 20, 3),
        "d.tif": mosaic(200, 300, 20, 4),
    }
    write_geotiff(folder / "a.tif", images["a.tif"])
    write_geotiff(folder / "b.tif", images["b.tif"])
    write_geotiff(
        folder / "d.tif", images["d.tif"], crs="EPSG:4326", transform=(1e-5, 0, 32.5, 0, -1e-5, 0.3)
    )
    (folder / "c.png").write_bytes(png(images["c.png"]))
    write_geotiff(folder / "nowhere.tif", images["b.tif"], crs=None, transform=None)
    (folder / "page.tif").write_text("<html>not found</html>")
    return folder, images


def test_whole_objects_are_those_that_the_whole_image_shows(
    collection: tuple[Path, dict[str, Pixels]], tmp_path: Path
) -> None:
    folder, images = collection
    success = run_windows(folder, tmp_path / "out")
    run = maskrcnn.open_run(str(tmp_path / "out"))
    for name, pixels in images.items():
        assert found_in(run, name) == ground_truth(pixels)
    assert success["counts"]["ok"] == len(images)
    errors = {row["name"]: row["error"] for row in run.images().to_pylist() if row["status"] == "failed"}
    assert errors == {"nowhere.tif": "no_crs", "page.tif": "not_an_image"}
    assert success["windows"]["failed"] == 2
    assert_proven(tmp_path / "out")


def test_the_order_of_shards_and_their_size_change_nothing(
    collection: tuple[Path, dict[str, Pixels]], tmp_path: Path
) -> None:
    folder, _ = collection
    run_windows(folder, tmp_path / "a")
    dealt = chance("order of shards")
    run_windows(folder, tmp_path / "b", order=dealt.randrange(1, 9), shard_images=dealt.choice((None, 1)))
    # COCO JSON has the date of the run.
    tables = [
        {path: data for path, data in tables_of(tmp_path / name).items() if path != "coco/instances.json"}
        for name in "ab"
    ]
    assert tables[0] == tables[1]


def test_the_jitter_of_windows_doubles_splits_and_loses_nothing(tmp_path: Path) -> None:
    from maskrcnn.synthetic.planted_mosaic import MosaicSegmenter

    pixels = mosaic(700, 900, 60, 7)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(pixels))
    seen = {score for score, (area, _) in ground_truth(pixels).items() if area >= 400}
    run_windows(tmp_path / "in", tmp_path / "out", segmenter=MosaicSegmenter(2, max_detections=1000))
    rows = maskrcnn.open_run(str(tmp_path / "out")).instances().to_pylist()
    scores = [row["score"] for row in rows if row["score"] in seen]
    assert sorted(scores) == sorted(seen)


def test_coco_json_holds_whole_image_masks(
    collection: tuple[Path, dict[str, Pixels]], tmp_path: Path
) -> None:
    folder, images = collection
    run_windows(folder, tmp_path / "out")
    coco = json.loads((tmp_path / "out" / "coco" / "instances.json").read_text())
    sizes = {image["id"]: [image["height"], image["width"]] for image in coco["images"]}
    assert sorted(sizes.values()) == sorted(list(pixels.shape[:2]) for pixels in images.values())
    assert all(each["segmentation"]["size"] == sizes[each["image_id"]] for each in coco["annotations"])
    assert len({each["id"] for each in coco["annotations"]}) == sum(
        map(len, map(ground_truth, images.values()))
    )


def test_a_raster_with_a_broken_block_keeps_its_other_windows_and_a_retry_repairs_it(tmp_path: Path) -> None:
    pixels = mosaic(400, 400, 30, 5)
    sound, broken = tmp_path / "sound.tif", tmp_path / "in" / "a.tif"
    write_geotiff(sound, pixels)
    write_geotiff(broken, pixels)
    data = bytearray(sound.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    broken.write_bytes(data)
    success = run_windows(broken.parent, tmp_path / "out")
    assert 0 < success["windows"]["failed"] < success["windows"]["ok"]
    run = maskrcnn.open_run(str(tmp_path / "out"))
    [image] = run.images().to_pylist()
    assert (image["status"], image["error"]) == ("ok", "partial")
    assert f"{success['windows']['failed']} of" in image["message"]
    assert_proven(tmp_path / "out")

    broken.write_bytes(sound.read_bytes())
    storage = Storage(str(tmp_path / "out"))
    plan = plan_retry(storage, read_plans(storage))
    assert plan is not None
    assert plan.rows == success["windows"]["failed"]
    process_shards(storage.url, compute_of())
    assert "failed" not in reduce_run(storage.url, write_report=write_report)["windows"]
    assert found_in(maskrcnn.open_run(storage.url), "a.tif") == ground_truth(pixels)
    assert_proven(storage.url)
    assert plan_retry(storage, read_plans(storage)) is None


def test_windows_of_nodata_are_skipped_and_counted(tmp_path: Path) -> None:
    pixels = mosaic(300, 600, 20, 6)
    pixels[:, 300:] = 0
    write_geotiff(tmp_path / "in" / "a.tif", pixels, nodata=0)
    success = run_windows(tmp_path / "in", tmp_path / "out")
    assert success["windows"]["skipped"] > 0
    run = maskrcnn.open_run(str(tmp_path / "out"))
    assert found_in(run, "a.tif") == ground_truth(pixels)
    assert_proven(tmp_path / "out")


def test_an_image_that_was_replaced_since_the_plan_fails_as_changed(tmp_path: Path) -> None:
    raster, picture = tmp_path / "in" / "a.tif", tmp_path / "in" / "b.png"
    write_geotiff(raster, mosaic(200, 200, 5, 1))
    picture.write_bytes(png(mosaic(200, 200, 5, 1)))
    prepare(Request(str(tmp_path / "in"), str(tmp_path / "out"), compute_of()))
    write_geotiff(raster, mosaic(200, 210, 5, 2))
    picture.write_bytes(png(mosaic(210, 200, 5, 2)))
    process_shards(str(tmp_path / "out"), compute_of())
    reduce_run(str(tmp_path / "out"), write_report=write_report)
    images = maskrcnn.open_run(str(tmp_path / "out")).images().to_pylist()
    assert [row["error"] for row in images] == ["changed", "changed"]
    assert_proven(tmp_path / "out")


def test_a_picture_is_cut_upright(tmp_path: Path) -> None:
    pixels = mosaic(200, 300, 15, 8)
    exif = Image.Exif()
    exif[274] = 6
    file = BytesIO()
    turned = np.ascontiguousarray(np.rot90(pixels))
    Image.fromarray(turned).save(file, "WEBP", lossless=True, exact=True)
    (tmp_path / "in").mkdir()
    Image.fromarray(turned).save(tmp_path / "in" / "a.tif", tiffinfo={274: 6})
    Image.fromarray(turned).save(tmp_path / "in" / "b.png", exif=exif)
    run_windows(tmp_path / "in", tmp_path / "out")
    images = {row["name"]: row for row in maskrcnn.open_run(str(tmp_path / "out")).images().to_pylist()}
    assert images["a.tif"]["error"] == "no_crs"
    assert (images["b.png"]["width"], images["b.png"]["height"]) == (300, 200)
    assert images["b.png"]["exif_orientation"] == 6
    assert found_in(maskrcnn.open_run(str(tmp_path / "out")), "b.png") == ground_truth(pixels)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 16},
        {"overlap": 20},
        {"window": 100, "overlap": 51},
        {"bands": "1,2,3"},
        {"scale": "0,255"},
        {"alpha": "none"},
        {"max_windows": 5},
        {"window": 64, "max_windows": 0},
    ],
)
def test_what_makes_no_windows_is_refused_in_one_line(options: dict[str, object]) -> None:
    from maskrcnn.config import InferenceConfig

    with pytest.raises(UsageError, match="--"):
        InferenceConfig("planted", **options)  # type: ignore[arg-type]


def test_a_tiff_without_coordinates_is_a_picture_where_that_is_asked_for(tmp_path: Path) -> None:
    pixels = mosaic(200, 300, 12, 9)
    write_geotiff(tmp_path / "in" / "a.tif", pixels, crs=None, transform=None)
    turned = np.rot90(pixels)  # what a camera stores that was held upright
    Image.fromarray(turned).save(tmp_path / "in" / "b.tif", tiffinfo={274: 6})
    (tmp_path / "list.csv").write_text("uri\nin/a.tif\nin/b.tif\n/vsicurl/https://example.com/a.tif\n")
    run_windows(tmp_path / "list.csv", tmp_path / "out", compute_of(assume_crs="none"))
    run = maskrcnn.open_run(str(tmp_path / "out"))
    assert found_in(run, "in/a.tif") == ground_truth(pixels) == found_in(run, "in/b.tif")
    images = {row["name"]: row for row in run.images().to_pylist()}
    oriented = images["in/b.tif"]
    assert (oriented["width"], oriented["height"], oriented["exif_orientation"]) == (300, 200, 6)
    virtual = images["/vsicurl/https://example.com/a.tif"]
    assert (virtual["error"], "name the object itself" in virtual["message"]) == ("not_found", True)
    assert run.success["parts"]["geo"] == []
    assert_proven(tmp_path / "out")


def test_a_crs_that_nobody_knows_is_refused_before_anything_is_planned(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "in" / "a.tif", mosaic(100, 100, 2, 9))
    with pytest.raises(
        UsageError, match="--assume-crs takes a CRS such as EPSG:32636, or none, not 'nonsense'"
    ):
        run_windows(tmp_path / "in", tmp_path / "out", compute_of(assume_crs="nonsense"))


def test_a_quarantined_window_fails_alone(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "in" / "a.tif", mosaic(300, 300, 20, 4))
    prepare(Request(str(tmp_path / "in"), str(tmp_path / "out"), compute_of()))
    failure = ItemError("worker_crash", "alone in its process")
    process_shards(str(tmp_path / "out"), compute_of(), quarantined={4: failure})
    success = reduce_run(str(tmp_path / "out"), write_report=write_report)
    assert success["windows"]["failed"] == 1
    [image] = maskrcnn.open_run(str(tmp_path / "out")).images().to_pylist()
    assert (image["status"], image["error"]) == ("ok", "partial")
    assert_proven(tmp_path / "out")
