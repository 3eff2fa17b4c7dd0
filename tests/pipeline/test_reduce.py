"""The reduce: the same tables however the work was cut, and none before it is complete."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from planted_images import write_planted
from pycocotools.coco import COCO

import maskrcnn
from maskrcnn.errors import RunError, UsageError
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.list_inputs import read_inputs
from maskrcnn.pipeline.manifest_file import write_manifest
from maskrcnn.pipeline.plan import Plan, write_run
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.success import parts_of, read_success
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.results.run import Run
from maskrcnn.schema import SCHEMA_VERSION
from maskrcnn.stats import Stats
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedSegmenter
from maskrcnn.visualization.run_report import write_report

pytestmark = pytest.mark.slow

ROWS = 30


def processed(folder: Path, images: Path, shard_images: int = 7) -> Storage:
    """Return a run over planted images whose shards all have receipts."""
    storage = Storage(str(folder))
    inputs = read_inputs(str(images), images_root=None, limit=None)
    sha256 = write_manifest(storage, inputs.table)
    plan = Plan(1, ROWS, shard_images, sha256, "d" * 64, "2026-11-23T00:00:00+00:00")
    model = {"name": "planted", "sha256": "0" * 64, "architecture": "planted"}
    run = {
        "schema_version": SCHEMA_VERSION,
        "created": plan.created,
        "digest": plan.digest,
        "settings": {"max_pixels": 10**8, "max_bytes": 10**8},
        "model": model | {"categories": [{"id": c.id, "name": c.name} for c in PLANTED_CATEGORIES]},
        "inputs": {"source": str(images), "rows": ROWS, "ids_given": False, "skipped": {}},
        "versions": {},
    }
    write_run(storage, run, plan)
    worker = ShardWorker(storage, PlantedSegmenter(), Limits(10**8, 10**8, 1333.0), {})
    for shard in plan:
        worker.run_shard(shard)
    return storage


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_planted(tmp_path / "images", ROWS, seed=11)
    return tmp_path / "images"


def test_tables_coco_and_statistics_agree(tmp_path: Path, images: Path) -> None:
    storage = processed(tmp_path / "run", images)
    success = reduce_run(storage.url, write_report=write_report)
    run = maskrcnn.open_run(storage.url)
    by_parquet = dict(
        duckdb.sql(
            f"SELECT category, sum(area)::BIGINT FROM '{storage.url}/instances/*.parquet' GROUP BY category"
        ).fetchall()
    )
    by_stats = {c["name"]: c["area_sum"] for c in run.stats["categories"] if c["instances"]}
    dataset = COCO(f"{storage.url}/coco/instances.json")
    by_coco = {
        category["name"]: sum(a["area"] for a in dataset.loadAnns(dataset.getAnnIds(catIds=[category["id"]])))
        for category in dataset.loadCats(dataset.getCatIds())
    }
    assert by_parquet == by_stats == {name: area for name, area in by_coco.items() if area}
    assert success["counts"]["instances"] == run.instances().num_rows == len(dataset.anns)
    joined = run.instances().group_by("image_id").aggregate([("id", "count")])
    counted = dict(zip(joined["image_id"].to_pylist(), joined["id_count"].to_pylist(), strict=True))
    assert all(counted.get(r["image_id"], 0) == r["n_instances"] for r in run.images().to_pylist())
    for kind in ("bbox", "segm"):
        assert dataset.loadRes(f"{storage.url}/coco/results_{kind}.json").anns


def test_recomputing_the_statistics_from_parquet_gives_the_file(tmp_path: Path, images: Path) -> None:
    storage = processed(tmp_path / "run", images)
    reduce_run(storage.url, write_report=write_report)
    run = maskrcnn.open_run(storage.url)
    assert Stats.of_tables(run.images(), run.instances(), run.categories).to_json() == run.stats


def test_reducing_again_gives_the_same_files(tmp_path: Path, images: Path) -> None:
    storage = processed(tmp_path / "run", images)
    first = reduce_run(storage.url, write_report=write_report)
    storage.write("images/part-0-00000.parquet", b"left over from a reduce that died")
    second = reduce_run(storage.url, write_report=write_report)
    assert first["parts"] == second["parts"]
    assert storage.list("images") == [part.images for part in parts_of(second)]


def test_several_attempts_at_a_shard_count_once(tmp_path: Path, images: Path) -> None:
    storage = processed(tmp_path / "run", images)
    once = reduce_run(storage.url, write_report=write_report)
    worker = ShardWorker(storage, PlantedSegmenter(), Limits(10**8, 10**8, 1333.0), {})
    worker.run_shard(Plan(1, ROWS, 7, "", "", "")[2])
    assert reduce_run(storage.url, write_report=write_report)["parts"] == once["parts"]


def test_how_shards_are_cut_changes_no_row(tmp_path: Path, images: Path) -> None:
    runs = []
    for shard_images in (1, 7, 100):
        storage = processed(tmp_path / f"run-{shard_images}", images, shard_images)
        reduce_run(storage.url, write_report=write_report)
        runs.append(maskrcnn.open_run(storage.url))
    assert all(run.instances().equals(runs[0].instances()) for run in runs)
    assert all(run.images().equals(runs[0].images()) for run in runs)
    assert all(run.stats == runs[0].stats for run in runs)


def test_an_unfinished_map_stage_is_not_reduced_and_what_stood_stays(tmp_path: Path, images: Path) -> None:
    storage = processed(tmp_path / "run", images)
    reduce_run(storage.url, write_report=write_report)
    storage.remove(storage.list("receipts")[1])
    with pytest.raises(RunError, match="1 of 5 shards left"):
        reduce_run(storage.url, write_report=write_report)
    assert read_success(storage) is not None


def damaged(storage: Storage, path: str, damage: str) -> None:
    if damage == "missing":
        storage.remove(path)
    elif damage == "truncated":
        storage.write(path, storage.read(path)[:-9])
    else:
        other = next(p for p in storage.list("shards") if p.endswith("instances.parquet") and p != path)
        storage.write(path, storage.read(other))


@pytest.mark.parametrize("damage", ["missing", "truncated", "another shard's"])
def test_a_damaged_shard_stops_the_reduce_and_the_tables_stand(
    tmp_path: Path, images: Path, damage: str
) -> None:
    storage = processed(tmp_path / "run", images)
    reduce_run(storage.url, write_report=write_report)
    before = {path: storage.read(path) for path in storage.list("images") + storage.list("instances")}
    path = next(p for p in storage.list("shards") if "1-00000002" in p and p.endswith("instances.parquet"))
    damaged(storage, path, damage)
    with pytest.raises(RunError, match="not finished" if damage == "missing" else "differs from its receipt"):
        reduce_run(storage.url, write_report=write_report)
    assert read_success(storage) is not None
    assert {path: storage.read(path) for path in before} == before


@pytest.mark.parametrize("damage", ["truncated", "another shard's"])
def test_a_damaged_shard_never_reaches_the_tables(tmp_path: Path, images: Path, damage: str) -> None:
    storage = processed(tmp_path / "run", images)
    path = next(p for p in storage.list("shards") if "1-00000002" in p and p.endswith("instances.parquet"))
    damaged(storage, path, damage)
    with pytest.raises(RunError, match="differs from its receipt"):
        reduce_run(storage.url, write_report=write_report)
    assert read_success(storage) is None


def test_after_gc_the_tables_stand_and_cannot_be_made_again(tmp_path: Path, images: Path) -> None:
    storage = processed(tmp_path / "run", images)
    reduce_run(storage.url, write_report=write_report)
    storage.remove_tree("shards")
    with pytest.raises(UsageError, match="they are unchanged"):
        reduce_run(storage.url, write_report=write_report)
    assert maskrcnn.open_run(storage.url).images().num_rows == ROWS


def test_a_broken_record_is_named(tmp_path: Path, images: Path) -> None:
    storage = processed(tmp_path / "run", images)
    reduce_run(storage.url, write_report=write_report)
    for content, why in (
        ("{", "is not valid JSON"),
        ("[" * 99_999, "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "lacks the generation or the parts"),
        ('{"generation": 1, "parts": {"images": []}}', "lacks the generation or the parts"),
    ):
        storage.write("_SUCCESS", content.encode())
        with pytest.raises(RunError, match=f"_SUCCESS {why}: remove it, and run `maskrcnn segment` again"):
            read_success(storage)
    storage.write("stats.json", b"{")
    reduced = Run(storage.url, {}, {})
    with pytest.raises(RunError, match=r"stats\.json is not valid JSON: `maskrcnn reduce` writes it again"):
        _ = reduced.stats
    storage.remove("stats.json")
    with pytest.raises(UsageError, match=r"stats\.json is missing"):
        _ = reduced.stats
    broken = storage.list("receipts")[0]
    storage.write(broken, b"{")
    with pytest.raises(RunError, match="is not a valid receipt"):
        reduce_run(storage.url, write_report=write_report)


def test_an_unfinished_run_is_not_opened(tmp_path: Path, images: Path) -> None:
    storage = processed(tmp_path / "run", images)
    with pytest.raises(UsageError, match="not finished"):
        maskrcnn.open_run(storage.url)
    with pytest.raises(UsageError, match="holds no run"):
        maskrcnn.open_run(str(tmp_path))


def test_pandas_reads_the_tables(tmp_path: Path, images: Path) -> None:
    import pandas as pd

    storage = processed(tmp_path / "run", images)
    reduce_run(storage.url, write_report=write_report)
    frame = pd.read_parquet(f"{storage.url}/instances").merge(
        pd.read_parquet(f"{storage.url}/images"), on="image_id"
    )
    assert len(frame) == maskrcnn.open_run(storage.url).instances().num_rows
    assert isinstance(pa.Table.from_pandas(frame[["category", "score"]]), pa.Table)
