"""The baselines give what the engine gives, and a disagreement is seen."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import baselines, suites
from benchmarks.inputs import jpeg, photo, smooth_instances, write_manifest, write_photos
from benchmarks.measure import Settings
from maskrcnn.errors import RunError, UsageError
from maskrcnn.masks.encode import detections_from_network
from maskrcnn.models.model import Model, load_model
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.schema import INSTANCES
from maskrcnn.types import Detections

pytestmark = pytest.mark.slow

SMALL = {"architecture": "maskrcnn_efficientnet_lite0_fpn", "min_size": 128, "max_size": 192}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    baselines.write_random_model(path, [photo(120, 160, seed=0)], **SMALL)  # type: ignore[arg-type]
    return load_model(str(path))


def made_up(count: int = 6) -> Detections:
    boxes, squares = smooth_instances(120, 160, count)
    return suites._detections(boxes, squares, 120, 160)


# --- samples ---


def test_photos_are_the_same_by_seed_and_compress_like_photos(tmp_path: Path) -> None:
    pixels = photo(120, 160, seed=3)
    assert pixels.shape == (120, 160, 3)
    assert np.array_equal(pixels, photo(120, 160, seed=3))
    assert not np.array_equal(pixels, photo(120, 160, seed=4))
    assert 0.1 < len(jpeg(pixels)) / (120 * 160) < 1.5  # bytes a pixel
    first, second = write_photos(tmp_path / "photos", 2, (120, 160))
    assert first.read_bytes() != second.read_bytes()


def test_a_manifest_names_the_files_in_turn(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", [tmp_path / "a.jpg", tmp_path / "b.jpg"], 3)
    assert path.read_text().splitlines() == [
        "uri,name", f"{tmp_path}/a.jpg,00000000.jpg", f"{tmp_path}/b.jpg,00000001.jpg",
        f"{tmp_path}/a.jpg,00000002.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("mean_area", [0.01, 0.038, 0.16])
def test_boxes_have_the_mean_area_that_was_asked_for(mean_area: float) -> None:
    boxes, squares = smooth_instances(300, 400, 100, mean_area=mean_area)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert np.isclose(sides.prod(1).mean() / (300 * 400), mean_area, rtol=0.01)
    assert boxes.min() >= 0
    assert (boxes[:, 2:].max(0) <= [400.001, 300.001]).all()
    assert squares.shape == (100, 28, 28)
    assert ((squares > 0) & (squares < 1)).all()
    assert np.abs(np.diff(squares, axis=2)).mean() < 0.1  # smooth


# --- masks ---


def test_both_pastes_give_the_engines_bytes() -> None:
    boxes, squares = smooth_instances(120, 160, 12)
    ours = made_up(12).masks
    assert baselines.paste_and_encode(boxes, squares, 120, 160) == ours
    assert baselines.paste_all_and_encode(boxes, squares, 120, 160) == ours


# --- the whole ---


def test_the_random_network_finds_many_and_stock_agrees(model: Model, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 2, (120, 160))
    stock = baselines.stock_job(model, paths, tmp_path / "stock.parquet")
    assert all(len(found) > 30 for found in stock)
    assert pq.read_table(tmp_path / "stock.parquet").schema.names == INSTANCES.names
    assert pq.read_metadata(tmp_path / "stock.parquet").num_rows == sum(len(found) for found in stock)
    segmenter = MaskRCNNSegmenter(model)
    total = baselines.Agreement(0, 0, 0, ())
    for path, theirs in zip(paths, stock, strict=True):
        pixels = baselines.decode_image(path.read_bytes(), baselines.Limits(10**9, 10**9, 1e9)).pixels
        [ours] = segmenter.segment([pixels])
        total += baselines.agreement(ours, theirs, 0.05)
    assert total.problems == ()
    assert total.instances > 60


def test_the_random_network_is_the_same_by_seed(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "again.safetensors"
    baselines.write_random_model(path, [photo(120, 160, seed=0)], **SMALL)  # type: ignore[arg-type]
    again = load_model(str(path)).module.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.module.state_dict().items())


# --- agreement ---


def changed(found: Detections, **columns: object) -> Detections:
    return dataclasses.replace(found, **columns)  # type: ignore[arg-type]


def without_last(found: Detections) -> Detections:
    columns = {
        name: getattr(found, name)[:-1]
        for name in ("boxes", "labels", "scores", "masks", "areas", "mask_boxes")
    }
    return changed(found, **columns)


def test_equal_findings_agree() -> None:
    assert baselines.agreement(made_up(), made_up(), 0.05) == baselines.Agreement(6, 0, 0, ())
    empty = detections_from_network(
        np.empty((0, 4), np.float32), np.empty(0, np.int32), np.empty(0, np.float32),
        np.empty((0, 28, 28), np.float32), height=4, width=4, capped=False,
    )  # fmt: skip
    assert baselines.agreement(empty, empty, 0.05) == baselines.Agreement(0, 0, 0, ())


def test_boxes_further_than_the_tolerance_and_other_labels_disagree() -> None:
    found = made_up()
    assert (
        baselines.agreement(changed(found, boxes=found.boxes + np.float32(0.01)), found, 0.05).problems == ()
    )
    moved = baselines.agreement(changed(found, boxes=found.boxes + np.float32(0.1)), found, 0.05)
    assert (moved.instances, moved.swaps, moved.problems) == (0, 6, ())
    far = baselines.agreement(changed(found, boxes=found.boxes + np.float32(1000)), found, 0.05)
    assert len(far.problems) == 12  # six of each side alone
    assert baselines.agreement(changed(found, labels=found.labels + np.int32(1)), found, 0.05).instances == 0


def test_one_more_at_the_threshold_is_a_tie_and_elsewhere_a_problem() -> None:
    found = made_up()
    more = baselines.agreement(found, without_last(found), 0.05)
    assert (more.ties, len(more.problems)) == (0, 1)
    at_threshold = baselines.agreement(found, without_last(found), 0.5)  # the score of the last
    assert (at_threshold.ties, at_threshold.problems) == (1, ())


def test_a_mask_of_another_shape_is_counted() -> None:
    found = made_up()
    masks = (found.masks[1], *found.masks[1:])
    assert baselines.agreement(changed(found, masks=masks), found, 0.05).thin == 1


# --- benchmarks ---


def test_coco_of_ready_dictionaries_says_what_ours_does(tmp_path: Path) -> None:
    storage, parts = suites.coco_run(tmp_path / "run", 64)
    content = baselines.coco_content(storage, parts, suites.COCO_CATEGORIES, {"a": 1})
    assert suites.write_dataset(storage, parts, suites.COCO_CATEGORIES, "ours.json", {"a": 1}) == 64
    assert json.loads(storage.read("ours.json")) == content
    baselines.json_dump(content, tmp_path / "json.json")
    assert json.loads((tmp_path / "json.json").read_bytes()) == content


def settings_in(folder: Path, **options: object) -> Settings:
    return Settings(folder, repeats=1, quick=True, **options)  # type: ignore[arg-type]


def test_coco_rows_and_a_missing_baseline_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_content: object, _path: Path) -> None:
        raise ImportError(name="orjson")

    monkeypatch.setattr(baselines, "orjson_dump", missing)
    monkeypatch.setattr(suites, "AT_LEAST_S", 0.0)
    monkeypatch.setattr(suites, "peak_of_writing", lambda _url, _parts: 1.0)
    json_row, orjson_row, memory = suites.coco(settings_in(tmp_path))
    assert json_row.ratio is not None
    assert (orjson_row.ratio, orjson_row.note) == (None, "orjson is not installed")
    assert memory.ours == 1.0


def test_the_peak_of_writing_is_measured(tmp_path: Path) -> None:
    storage, parts = suites.coco_run(tmp_path / "run", 16)
    peak = suites._peak(storage.url, parts)
    assert peak is None or peak >= 0


def test_results_that_differ_end_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "paste_and_encode", lambda *_arguments: ())
    with pytest.raises(RunError, match="differ, so no ratio"):
        list(suites.masks(settings_in(tmp_path)))


def test_nothing_is_fetched_unless_a_prefix_is_named(tmp_path: Path) -> None:
    [row] = suites.fetch(settings_in(tmp_path))
    assert "--s3" in row.note
    with pytest.raises(UsageError, match="no s3://"):
        list(suites.fetch(settings_in(tmp_path, s3=str(tmp_path))))


@pytest.mark.s3
def test_objects_fetched_ahead_are_those_fetched_one_by_one(weed_server: object, tmp_path: Path) -> None:
    from maskrcnn.io.storage import Storage

    prefix = weed_server.prefix()  # type: ignore[attr-defined]
    store = Storage(prefix)
    for index in range(5):
        store.write(f"{index}.jpg", jpeg(photo(16, 16, seed=index)))
    [row] = suites.fetch(settings_in(tmp_path, s3=prefix))
    assert row.equal == "bytes"
    assert row.ratio is not None
    assert row.note == "5 objects"
