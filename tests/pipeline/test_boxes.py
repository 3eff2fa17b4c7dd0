"""Runs of models that detect boxes only: every table, file and picture holds boxes, and none pretends to hold masks."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from maskrcnn_jobs.cli import main
from planted_images import write_planted
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from windowed import compute_of, mosaic, run_windows, write_geotiff

import maskrcnn
from maskrcnn.io.parquet import read_table, write_table
from maskrcnn.io.storage import Storage
from maskrcnn.results.verify import verify_run
from maskrcnn.synthetic.planted_mosaic import MosaicSegmenter

pytestmark = pytest.mark.slow


def command(*arguments: str | Path) -> str:
    """Run a command that succeeds, and return what it prints."""
    done = CliRunner().invoke(main, [str(each) for each in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs over the same planted images, `boxes` and `masks`."""
    folder = tmp_path_factory.mktemp("boxes")
    write_planted(folder / "images", 9, seed=3)
    for name, model in (("boxes", "planted-boxes"), ("masks", "planted")):
        command("segment", folder / "images", folder / name, "--model", model, "--no-ray")
    return folder


def test_instances_have_the_boxes_of_the_masks_and_no_mask(runs: Path) -> None:
    boxes, masks = (maskrcnn.open_run(runs / name).instances() for name in ("boxes", "masks"))
    assert len(boxes) == len(masks) > 0
    for name in ("id", "image_id", "instance", "category_id", "category", "score", "box"):
        assert boxes[name].combine_chunks().equals(masks[name].combine_chunks()), name
    assert boxes.schema.names == masks.schema.names
    for name in ("segmentation", "mask_box", "frame"):
        assert boxes[name].null_count == len(boxes)
    sides = [side.to_numpy().astype(float) for side in boxes["box"].combine_chunks().flatten()]
    expected = np.rint((sides[2] - sides[0]) * (sides[3] - sides[1]))
    assert boxes["area"].to_numpy().tolist() == expected.tolist()
    # A planted box is the tight box of its mask.
    assert boxes["touches_border"].equals(masks["touches_border"])


def test_the_run_is_proven(runs: Path) -> None:
    report = verify_run(str(runs / "boxes"))
    assert report.findings == ()
    assert report.proven


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("area", 7, "area is 7, by the box"), ("touches_border", None, "touches_border is")],
)
def test_a_changed_column_is_found(
    runs: Path, tmp_path: Path, column: str, value: int | None, said: str
) -> None:
    import shutil

    shutil.copytree(runs / "boxes", tmp_path / "run")
    storage = Storage(str(tmp_path / "run"))
    success = json.loads(storage.read("_SUCCESS"))
    (part,) = success["parts"]["instances"]
    table = read_table(storage, part["path"])
    values = table[column].to_pylist()
    values[0] = not values[0] if value is None else value
    at = table.schema.get_field_index(column)
    changed = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    file = write_table(storage, part["path"], changed)
    part |= {"sha256": file.sha256, "bytes": file.bytes}
    storage.write("_SUCCESS", json.dumps(success).encode())
    assert any(said in str(finding) for finding in verify_run(storage.url).findings)


def test_coco_holds_boxes_that_pycocotools_evaluates(runs: Path) -> None:
    folder = runs / "boxes" / "coco"
    assert sorted(path.name for path in folder.iterdir()) == ["instances.json", "results_bbox.json"]
    ground_truth = COCO(str(folder / "instances.json"))
    assert all("segmentation" not in annotation for annotation in ground_truth.anns.values())
    evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(folder / "results_bbox.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_boxes_are_evaluated_against_masks(runs: Path) -> None:
    ground_truth = runs / "masks" / "coco" / "instances.json"
    summary = json.loads(command("evaluate", runs / "boxes", "--truth", ground_truth, "--json"))
    assert summary["bbox"][0] == pytest.approx(1.0)
    assert summary["segm"] is None


@pytest.mark.parametrize("step", [1, 2], ids=["all", "every second"])
def test_a_box_that_the_ground_truth_lacks_is_that_of_its_mask(runs: Path, tmp_path: Path, step: int) -> None:
    content = json.loads((runs / "masks" / "coco" / "instances.json").read_text())
    for annotation in content["annotations"][::step]:
        del annotation["bbox"]
    (tmp_path / "ground-truth.json").write_text(json.dumps(content))
    summary = json.loads(
        command("evaluate", runs / "boxes", "--truth", tmp_path / "ground-truth.json", "--json")
    )
    assert summary["bbox"][0] == pytest.approx(1.0)


def test_the_same_boxes_with_and_without_masks_do_not_differ(runs: Path) -> None:
    assert "equal" in command("diff", runs / "boxes", runs / "masks")


def test_exports_and_pictures(runs: Path, tmp_path: Path) -> None:
    command("export", runs / "boxes", tmp_path / "csv", "--format", "csv")
    command("export", runs / "boxes", tmp_path / "coco", "--format", "coco")
    copies = [path / "coco" / "instances.json" for path in (tmp_path / "coco", runs / "boxes")]
    assert copies[0].read_bytes() == copies[1].read_bytes()
    command("show", runs / "boxes", "--output", tmp_path / "boxes.png")
    command("show", runs / "boxes", "--masks", "--output", tmp_path / "each.png")
    done = CliRunner().invoke(
        main, ["export", str(runs / "boxes"), str(tmp_path / "m"), "--format", "png-masks"]
    )
    assert done.exit_code == 2
    assert "has boxes without masks" in done.output


def test_boxes_of_windows_are_stitched_and_become_polygons(tmp_path: Path) -> None:
    """In a mosaic whose objects lie apart, stitched boxes are the boxes of the stitched masks."""
    import shapely

    write_geotiff(tmp_path / "images" / "a.tif", mosaic(500, 700, 60, 1))
    runs = {}
    for name, has_masks in (("masks", True), ("boxes", False)):
        compute = compute_of()
        model = compute.model + ("" if has_masks else "-boxes")
        compute = maskrcnn.config.InferenceConfig(**{**vars_of(compute), "model": model})
        finder = MosaicSegmenter(max_detections=10_000, has_masks=has_masks)
        run_windows(tmp_path / "images", tmp_path / name, compute, segmenter=finder)
        report = verify_run(str(tmp_path / name))
        assert report.findings == ()
        assert report.proven
        runs[name] = maskrcnn.open_run(tmp_path / name)
    boxes, masks = (run.instances() for run in runs.values())
    for name in ("score", "category_id", "box"):
        assert boxes[name].combine_chunks().equals(masks[name].combine_chunks()), name
    storage = Storage(str(tmp_path / "boxes"))
    (part,) = runs["boxes"].success["parts"]["geo"]
    geo = read_table(storage, part["path"]).sort_by("instance")
    shapes = shapely.from_wkb(geo["geometry"].to_pylist())
    sides = [side.to_numpy() for side in runs["boxes"].instances()["box"].combine_chunks().flatten()]
    expected = shapely.box(
        450_000 + 0.5 * sides[0], 36_000 - 0.5 * sides[3], 450_000 + 0.5 * sides[2], 36_000 - 0.5 * sides[1]
    )
    assert all(shapely.equals_exact(shapes, expected, tolerance=1e-6, normalize=True))


def vars_of(config: object) -> dict[str, object]:
    """Return the fields of a configuration."""
    import dataclasses

    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
