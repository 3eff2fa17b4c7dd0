"""An update: what comes out is what a new run over the collection as it is now would find, but for ids and order."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maskrcnn_jobs.commands.gc import collect_garbage
from maskrcnn_jobs.commands.retry import run_retry
from maskrcnn_jobs.driver import planning
from planted_images import write_planted
from windowed import mosaic, write_geotiff

import maskrcnn
from maskrcnn.config import ResourceConfig
from maskrcnn.errors import RunError, UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline import reduce
from maskrcnn.pipeline.merge_generations import group_shards
from maskrcnn.pipeline.plan import read_plans
from maskrcnn.pipeline.plan_update import compare
from maskrcnn.schema import MANIFEST

pytestmark = pytest.mark.slow

COUNTS = ("added", "changed", "vanished")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Distinct planted images, as PNG."""
    folder = tmp_path_factory.mktemp("pictures")
    write_planted(folder, 20, seed=5)
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


def put(folder: Path, name: str, data: bytes) -> None:
    """Write a file with a time of modification of its own, as a later file has."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    put.clock += 1  # type: ignore[attr-defined]
    os.utime(folder / name, (1_000_000_000 + put.clock,) * 2)  # type: ignore[attr-defined]


put.clock = 0  # type: ignore[attr-defined]


def segment(source: Path, output: Path, **options: Any) -> maskrcnn.Run:
    return maskrcnn.segment_collection(source, output, **{"model": "planted", "shard_images": 3} | options)


def outdated(folder: Path, pictures: list[bytes]) -> tuple[Path, Path]:
    """Return a folder of two pictures, and the finished run of the first of them."""
    source, output = folder / "in", folder / "out"
    put(source, "0.png", pictures[0])
    segment(source, output)
    put(source, "1.png", pictures[1])
    return source, output


def update(source: Path, output: Path, **options: Any) -> dict[str, int]:
    """Update a run, verify it, and return what the update found; nothing at all if there was nothing new."""
    before = len(read_plans(Storage(str(output))))
    run = segment(source, output, update=True, **options)
    assert maskrcnn.verify(output).proven
    is_new = len(read_plans(Storage(str(output)))) > before
    return dict(run.success["update"]) if is_new else dict.fromkeys(COUNTS, 0)


def facts(run: maskrcnn.Run) -> dict[str, Any]:
    """Return all that a run says of its images, by name and without their ids."""
    images, instances = run.images(), run.instances()
    names = dict(zip(images["image_id"].to_pylist(), images["name"].to_pylist(), strict=True))
    found: dict[str, list[Any]] = {name: [] for name in names.values()}
    for row in instances.drop_columns(["id"]).to_pylist():
        found[names[row.pop("image_id")]].append(row)
    rows = {row["name"]: row for row in images.drop_columns(["image_id"]).to_pylist()}
    stats = json.loads(json.dumps(run.stats))
    dataset = json.loads((Path(run.url) / "coco" / "instances.json").read_text())
    files = {image["id"]: image["file_name"] for image in dataset["images"]}
    annotations = [
        {**{k: v for k, v in each.items() if k not in ("id", "image_id")}, "file": files[each["image_id"]]}
        for each in dataset["annotations"]
    ]
    coco = sorted(json.dumps(each, sort_keys=True) for each in annotations)
    return {"images": rows, "instances": found, "stats": stats, "coco": coco, "files": sorted(files.values())}


def same_as_new(source: Path, run: maskrcnn.Run, fresh: Path, **options: Any) -> None:
    """The law: an updated run says what a new run over the same inputs says."""
    ours, theirs = facts(run), facts(segment(source, fresh, **options))
    for name, fact in theirs.items():
        assert ours[name] == fact, name


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "remove", "spoil", "update", "retry"]), st.integers(0, 7), st.integers(0, 19)
    ),
    max_size=8,
)


@settings(max_examples=6, deadline=None)
@given(steps=STEPS, part_bytes=st.sampled_from([1, 10**9]))
def test_an_updated_run_says_what_a_new_run_would(
    tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes], steps: Any, part_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("updates")
    source, output = folder / "in", folder / "out"
    for number in range(4):
        put(source, f"{number}.png", pictures[number])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduce, "group_shards", lambda *a, **k: group_shards(*a, part_bytes=part_bytes, **k))
        run = segment(source, output)
        ids = dict(zip(*(run.images()[name].to_pylist() for name in ("name", "image_id")), strict=True))
        for what, number, picture in [*steps, ("update", 0, 0)]:
            file = source / f"{number}.png"
            if what == "put":
                put(source, file.name, pictures[picture])
            elif what == "spoil":
                put(source, file.name, pictures[picture][:60])
            elif what == "remove" and len(list(source.iterdir())) > 1:
                file.unlink(missing_ok=True)
            elif what == "retry":
                run_retry(str(output), None, "auto", ResourceConfig("cpu", ray=False), None)
            elif what == "update":
                update(source, output)
                images = maskrcnn.open_run(output).images()
                now = dict(zip(*(images[name].to_pylist() for name in ("name", "image_id")), strict=True))
                assert all(now[name] == ids[name] for name in now.keys() & ids.keys())
                ids = now
    same_as_new(source, maskrcnn.open_run(output), folder / "fresh")


def test_what_is_as_before_is_not_processed_and_its_parts_are_not_written(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for number in range(9):
        put(source, f"{number}.png", pictures[number])
    monkeypatch.setattr(reduce, "group_shards", lambda *a, **k: group_shards(*a, part_bytes=1, **k))
    segment(source, output)
    written = {path: path.stat().st_mtime_ns for path in sorted((output / "images").iterdir())}
    shards = set((output / "receipts").iterdir())
    put(source, "4.png", pictures[15])
    put(source, "a.png", pictures[16])
    (source / "7.png").unlink()
    assert update(source, output) == {"added": 1, "changed": 1, "vanished": 1}

    [receipt] = set((output / "receipts").iterdir()) - shards
    assert json.loads(receipt.read_text())["counts"]["instances"] >= 0
    assert receipt.name.startswith("2-00000000.")
    now = {path: path.stat().st_mtime_ns for path in sorted((output / "images").iterdir())}
    first, second, third = written
    assert now[first] == written[first]
    assert not {second, third} & now.keys()  # their rows 4 and 7 do not count any more
    assert [path.name for path in now] == [
        "part-0000000000-1.parquet",
        "part-0000000003-2.parquet",
        "part-0000000006-2.parquet",
        "part-0000000009-2.parquet",
    ]
    retired = pq.read_table(next(output.glob("retired-2-*.parquet")))
    assert retired.select(["row", "name", "reason", "generation"]).to_pylist() == [
        {"row": 4, "name": "4.png", "reason": "changed", "generation": 2},
        {"row": 7, "name": "7.png", "reason": "vanished", "generation": 2},
    ]
    assert update(source, output) == dict.fromkeys(COUNTS, 0)


def test_a_reader_of_the_record_before_finds_its_files_until_the_new_record_is_there(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for number in range(4):
        put(source, f"{number}.png", pictures[number])
    before = facts(segment(source, output))
    put(source, "0.png", pictures[9])
    write, seen = Storage.write, []

    def watched(self: Storage, path: str, data: bytes) -> None:
        if self.url == str(output):
            run = maskrcnn.open_run(output)
            now = {"images": run.images(), "instances": run.instances()}
            assert [len(table) for table in now.values()] == [4, before["stats"]["instances"]]
            seen.append(path)
        write(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", watched)
        segment(source, output, update=True)
    assert seen[-1] == "_SUCCESS"
    assert len(seen) > 4


def test_a_reader_whose_files_were_replaced_learns_it(tmp_path: Path, pictures: list[bytes]) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    put(source, "0.png", pictures[0])
    before = segment(source, output)
    put(source, "0.png", pictures[1])
    segment(source, output, update=True)
    with pytest.raises(
        UsageError, match=r"was retried or updated while it was read: .* was replaced; read it again"
    ):
        before.images()


def test_an_update_that_was_interrupted_is_continued_and_another_follows(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = outdated(tmp_path, pictures)
    with monkeypatch.context() as patch:
        patch.setattr(reduce, "_commit", lambda *_: (_ for _ in ()).throw(RunError("stopped")))
        with pytest.raises(RunError, match="stopped"):
            segment(source, output, update=True)
    assert len(maskrcnn.open_run(output).images()) == 1  # the tables before
    put(source, "2.png", pictures[2])
    assert update(source, output) == {"added": 1, "changed": 0, "vanished": 0}
    assert [plan.kind for plan in read_plans(Storage(str(output)))] == ["plan", "update", "update"]
    same_as_new(source, maskrcnn.open_run(output), tmp_path / "fresh")


def test_what_was_listed_before_another_update_ended_is_put_right_by_the_next(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = outdated(tmp_path, pictures)
    listing = planning._list_inputs
    other: list[Any] = []

    def meanwhile(request: Any) -> Any:
        listed = listing(request)
        if not other:
            other.append(None)
            put(source, "2.png", pictures[2])
            segment(source, output, update=True)
        return listed

    monkeypatch.setattr(planning, "_list_inputs", meanwhile)
    segment(source, output, update=True)
    monkeypatch.undo()
    update(source, output)
    same_as_new(source, maskrcnn.open_run(output), tmp_path / "fresh")


def test_a_manifest_keeps_its_columns_and_ids(tmp_path: Path, pictures: list[bytes]) -> None:
    folder, manifest, output = tmp_path / "in", tmp_path / "m.csv", tmp_path / "out"
    for number in range(4):
        put(folder, f"{number}.png", pictures[number])
    manifest.write_text("uri,image_id,city\nin/0.png,70,Bonn\nin/1.png,60,Ulm\nin/2.png,50,\n")
    segment(manifest, output)
    manifest.write_text(
        "uri,image_id,city\nin/0.png,70,Bonn\nin/1.png,60,Köln\nin/3.png,40,Jena\nin/2.png,50,\n"
    )
    put(folder, "2.png", pictures[2])
    os.utime(folder / "2.png", (2_000_000_000,) * 2)  # after the run; its etag was not known before
    assert update(manifest, output) == {"added": 1, "changed": 2, "vanished": 0}
    images = maskrcnn.open_run(output).images().sort_by("name")
    assert images.select(["image_id", "city"]).to_pylist() == [
        {"image_id": 70, "city": "Bonn"},
        {"image_id": 60, "city": "Köln"},
        {"image_id": 50, "city": ""},
        {"image_id": 40, "city": "Jena"},
    ]
    segment(manifest, output)  # the manifest is the one of the update: finished already
    manifest.write_text("uri,image_id\nin/0.png,70\n")
    with pytest.raises(
        UsageError, match=r"has other columns than when the run was planned \(city\): restore"
    ):
        segment(manifest, output, update=True)
    with pytest.raises(UsageError, match="holds another run"):
        segment(manifest, output)


def test_an_input_of_a_manifest_that_is_gone_fails_and_comes_back(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    folder, manifest, output = tmp_path / "in", tmp_path / "m.csv", tmp_path / "out"
    manifest.write_text("uri\nin/0.png\nin/1.png\n")
    for number in range(2):
        put(folder, f"{number}.png", pictures[number])
    segment(manifest, output)
    (folder / "1.png").unlink()
    assert update(manifest, output) == {"added": 0, "changed": 1, "vanished": 0}
    assert maskrcnn.open_run(output).images()["error"].to_pylist() == [None, "not_found"]
    assert update(manifest, output) == dict.fromkeys(COUNTS, 0)
    put(folder, "1.png", pictures[1])
    assert update(manifest, output) == {"added": 0, "changed": 1, "vanished": 0}
    ours, theirs = facts(maskrcnn.open_run(output)), facts(segment(manifest, tmp_path / "fresh"))
    assert [ours[name] for name in ("instances", "stats")] == [
        theirs[name] for name in ("instances", "stats")
    ]


def test_members_of_a_zip_are_compared_by_their_checksums(tmp_path: Path, pictures: list[bytes]) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()

    def pack(names: dict[str, bytes]) -> None:
        with zipfile.ZipFile(source / "a.zip", "w") as file:
            for name, data in names.items():
                file.writestr(name, data)

    pack({"x.png": pictures[0], "y.png": pictures[1]})
    segment(source, output)
    pack({"x.png": pictures[0], "w.png": pictures[3], "y.png": pictures[2]})
    assert update(source, output) == {"added": 1, "changed": 1, "vanished": 0}
    ours = facts(maskrcnn.open_run(output))["instances"]
    assert ours == facts(segment(source, tmp_path / "fresh"))["instances"]


def test_what_an_update_needs_is_said_where_it_is_missing(tmp_path: Path, pictures: list[bytes]) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    put(source, "0.png", pictures[0])
    segment(source, output, update=True)  # nothing there: a first run
    with pytest.raises(UsageError, match="holds another run"):
        segment(source, output, update=True, min_score=0.9)
    put(source, "1.png", pictures[1])
    collect_garbage(str(output))
    with pytest.raises(UsageError, match=r"are gone .* nothing can be retried or updated"):
        segment(source, output, update=True)
    assert len(maskrcnn.open_run(output).images()) == 1


def test_inputs_that_are_all_gone_are_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    put(source, "0.png", pictures[0])
    segment(source, output)
    (source / "0.png").unlink()
    with pytest.raises(UsageError, match=r"no images|no files"):
        segment(source, output, update=True)
    assert len(maskrcnn.open_run(output).images()) == 1


LISTED = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.tuples(st.integers(0, 2) | st.none(), st.sampled_from(["1", "2"]) | st.none()),
    max_size=8,
)


@given(before=LISTED, now=LISTED)
def test_each_input_is_added_changed_vanished_or_as_before(before: Any, now: Any) -> None:
    def table(listed: dict[str, Any]) -> pa.Table:
        names = sorted(listed)
        columns = [range(1, len(names) + 1), names, names]
        columns += [[listed[name][place] for name in names] for place in (0, 1)]
        return pa.table(
            [pa.array(list(c), f.type) for c, f in zip(columns, MANIFEST, strict=True)], schema=MANIFEST
        )

    ours, theirs = table(now), table(before)
    found = compare(theirs, ours, ids_given=False, created="2026-01-01T00:00:00+00:00")

    def same(name: str) -> bool:
        (size, etag), (old_size, old_etag) = now[name], before[name]
        if None in (etag, old_etag):
            return size is None or size == old_size  # without a size it was not read before
        return (None in (size, old_size) or size == old_size) and etag == old_etag

    def names(listed: pa.Table, rows: Any) -> list[str]:
        return [str(name) for name in listed["name"].take(pa.array(np.asarray(rows, np.int64))).to_pylist()]

    both = sorted(now.keys() & before.keys())
    assert names(ours, found.added) == sorted(now.keys() - before.keys())
    assert names(theirs, found.vanished) == sorted(before.keys() - now.keys())
    assert names(ours, found.changed) == [name for name in both if not same(name)]
    assert names(theirs, found.former) == names(ours, found.changed)


def test_rasters_that_are_updated_have_the_polygons_of_a_new_run(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas", reason="needs the extra geo")
    testing = pytest.importorskip("geopandas.testing")
    source, output = tmp_path / "in", tmp_path / "out"
    options = {"model": "planted-mosaic", "window": 64, "overlap": 32, "shard_images": 1}

    def rasters(run: maskrcnn.Run) -> dict[str, Any]:
        return {
            str(path.parent.relative_to(run.url)): geopandas.read_parquet(path.parent)
            .drop(columns=["image_id"])
            .assign(text=lambda polygons: polygons.geometry.to_wkt())
            .sort_values(["score", "text"], ignore_index=True)
            for path in (Path(run.url) / "geo").rglob("*.parquet")
        }

    def put_raster(name: str, seed: int, crs: str, size: int = 100) -> None:
        write_geotiff(source / name, mosaic(size, 130, 4, seed), crs=crs)

    put_raster("a.tif", 1, "EPSG:32636")
    put_raster("b.tif", 2, "EPSG:32636")
    maskrcnn.segment_collection(source, output, **options)
    put_raster("b.tif", 3, "EPSG:32637", size=190)  # another size, and another system than before
    put_raster("c.tif", 4, "EPSG:32636")
    for expected in (
        {"added": 1, "changed": 1, "vanished": 0},
        {"added": 0, "changed": 0, "vanished": 1},
        {"added": 0, "changed": 1, "vanished": 0},
    ):
        assert update(source, output, **options) == expected
        fresh = tmp_path / f"fresh-{sum(path.name.startswith('fresh') for path in tmp_path.iterdir())}"
        ours, theirs = (
            maskrcnn.open_run(output),
            maskrcnn.segment_collection(source, fresh, **options),
        )
        assert rasters(ours).keys() == rasters(theirs).keys()
        for folder, polygons in rasters(theirs).items():
            testing.assert_geodataframe_equal(rasters(ours)[folder], polygons)
        mine, others = facts(ours), facts(theirs)
        assert (mine["stats"], mine["coco"]) == (others["stats"], others["coco"])
        assert ours.success["windows"] == theirs.success["windows"]
        if expected["added"]:
            (source / "b.tif").unlink()  # with it goes its system
        else:
            (source / "c.tif").write_bytes(b"no raster any more")
