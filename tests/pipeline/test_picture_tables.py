"""Runs over tables of pictures: a collection is the same as loose files, and what holds of files holds of rows."""

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hub_server import NAME, Hub
from packed_runs import Instances, finish, instances_by_file, loose_instances, plan, planted_files
from picture_tables import STRUCT, arrow_file, arrow_stream, damaged_in, parquet, table_of
from planned_run import process_shards

from maskrcnn.errors import UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import read_plans, read_run
from maskrcnn.pipeline.plan_retry import plan_retry
from maskrcnn.results.verify import verify_run


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """Those of the report take half of a run's time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskrcnn.visualization.run_report.GALLERY_IMAGES", 0)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """The files of a collection, by name."""
    return planted_files(tmp_path_factory.mktemp("loose"))


@pytest.fixture(scope="module")
def loose(files, tmp_path_factory) -> Instances:
    """The instances of the collection, found in loose files."""
    return loose_instances(files, tmp_path_factory.mktemp("run"))


def as_one(kind: pa.DataType, row_group_size: int):
    def write(store: Storage, files: dict[str, bytes]) -> str:
        store.write("photos.parquet", parquet(table_of(files, kind), row_group_size))
        return "photos.parquet"

    return write


def as_several_tables(store: Storage, files: dict[str, bytes]) -> str:
    for number in range(3):
        some = dict(list(files.items())[number::3])
        kind = pa.large_binary() if number else STRUCT
        store.write(f"data/train-{number}.parquet", parquet(table_of(some, kind), number + 1))
    return "data"


def as_arrow(write, *options):
    def written(store: Storage, files: dict[str, bytes]) -> str:
        store.write("photos.arrow", write(table_of(files), *options))
        return "photos.arrow"

    return written


def as_lance(store: Storage, files: dict[str, bytes]) -> str:
    lance.write_dataset(table_of(files), f"{store.url}/photos.lance", max_rows_per_file=5)
    return "photos.lance"


def as_all_at_once(store: Storage, files: dict[str, bytes]) -> str:
    names = list(files)
    as_several_tables(store, {name: files[name] for name in names[:8]})
    for name in names[8:]:
        store.write(f"data/d/{name}", files[name])
    return "data"


LAYOUTS = [
    as_one(STRUCT, 3),
    as_one(pa.binary(), 100),
    as_one(STRUCT, 1),
    as_several_tables,
    as_all_at_once,
    as_arrow(arrow_stream, 7),
    as_arrow(arrow_file, 7, "lz4"),
    as_lance,
]
IDS = [
    "structs",
    "bytes in one row group",
    "row groups of one",
    "folder of tables",
    "folder with loose files",
    "Arrow stream",
    "Feather",
    "Lance",
]


@pytest.mark.parametrize("write", LAYOUTS, ids=IDS)
def test_a_table_has_the_same_instances_as_loose_files(write, files, loose, tmp_path) -> None:
    source = write(Storage(tmp_path), files)
    run = finish(plan(tmp_path / source, tmp_path / "out"))
    assert instances_by_file(run) == loose
    assert verify_run(str(tmp_path / "out")).proven
    columns = run.images().column_names
    assert not {"image", "place_in_archive"} & set(columns)
    assert "file" in columns


def test_rows_that_failed_are_tried_again_in_the_table_that_replaced_theirs(files, loose, tmp_path) -> None:
    whole = parquet(table_of(files), 4)
    store = Storage(tmp_path)
    store.write("photos.parquet", damaged_in(whole, 1))
    output = plan(tmp_path / "photos.parquet", tmp_path / "out")
    errors = finish(output).images()["error"].to_pylist()
    assert errors == [None] * 4 + ["corrupt"] * 4 + [None] * 4
    store.write("photos.parquet", whole)
    assert plan_retry(Storage(output), read_plans(Storage(output)))
    assert instances_by_file(finish(output)) == loose
    assert verify_run(output).proven


def test_rows_of_arrow_that_failed_are_tried_again_in_the_same_file_and_in_another(
    files, loose, tmp_path
) -> None:
    whole = arrow_stream(table_of(files), 100)
    name, data = next(iter(files.items()))
    at = whole.index(data)
    store = Storage(tmp_path)
    store.write("photos.arrow", whole[:at] + b"damaged!" + whole[at + 8 :])
    output = plan(tmp_path / "photos.arrow", tmp_path / "out")
    assert finish(output).images().filter(pc.field("status") == "failed")["file"].to_pylist() == [name]
    assert plan_retry(Storage(output), read_plans(Storage(output)))
    assert finish(output).images()["n_instances"][0].as_py() == 0
    store.write("photos.arrow", arrow_stream(table_of(files), 5))
    assert plan_retry(Storage(output), read_plans(Storage(output)))
    assert instances_by_file(finish(output)) == loose
    assert verify_run(output).proven


def test_a_table_that_changed_after_planning_fails_its_rows(files, tmp_path) -> None:
    store = Storage(tmp_path)
    store.write("photos.parquet", parquet(table_of(files)))
    output = plan(tmp_path / "photos.parquet", tmp_path / "out")
    store.write("photos.parquet", parquet(table_of(dict(reversed(files.items())))))
    assert set(finish(output).images()["error"].to_pylist()) == {"changed"}


def test_the_rows_of_a_table_that_was_damaged_when_planned_need_a_new_plan(files, tmp_path) -> None:
    whole = parquet(table_of(files))
    store = Storage(tmp_path)
    store.write("data/a.png", next(iter(files.values())))
    store.write("data/photos.parquet", whole[:-50])
    output = plan(tmp_path / "data", tmp_path / "out")
    assert finish(output).images()["error"].to_pylist() == [None, "corrupt"]
    store.write("data/photos.parquet", whole)
    plan_retry(Storage(output), read_plans(Storage(output)))
    images = finish(output).images()
    assert images["error"].to_pylist() == [None, "changed"]
    assert "plan a new run" in images["message"][1].as_py()


def test_a_run_reads_a_data_set_of_the_hub_at_the_commit_of_its_plan(
    files, loose, tmp_path, monkeypatch
) -> None:
    hub = Hub()
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.commit({"data/train.parquet": parquet(table_of(files))})
        output = plan(f"hf://datasets/{NAME}", tmp_path / "out")
        process_shards(Storage(output), at_most=1)
        hub.commit({"data/train.parquet": parquet(table_of(dict(reversed(files.items()))))})
        assert plan(f"hf://datasets/{NAME}", tmp_path / "out") == output
        assert instances_by_file(finish(output)) == loose
    finally:
        hub.stop()


def test_the_column_is_part_of_the_run(files, tmp_path) -> None:
    masks = pa.array([{"bytes": data, "path": None} for data in files.values()], STRUCT)
    Storage(tmp_path).write("photos.parquet", parquet(table_of(files, mask=masks)))
    output = plan(tmp_path / "photos.parquet", tmp_path / "out", "image")
    assert read_run(Storage(output))["settings"]["image_column"] == "image"
    assert plan(tmp_path / "photos.parquet", tmp_path / "out", "image") == output
    process_shards(Storage(output), at_most=1)
    with pytest.raises(UsageError, match="image-column: planned image, now mask"):
        plan(tmp_path / "photos.parquet", tmp_path / "out", "mask")


def test_a_table_of_nothing_but_pictures_is_read(files, loose, tmp_path):
    table = table_of(files, pa.binary()).select(["image"])
    (tmp_path / "photos.parquet").write_bytes(parquet(table))
    run = finish(plan(tmp_path / "photos.parquet", tmp_path / "out"))
    assert [len(found) for found in instances_by_file(run).values()] == [
        len(found) for found in loose.values()
    ]
