"""Runs over archives: a collection is the same however it is packed, and what holds of files holds of members."""

import tarfile
from pathlib import Path

import pytest
from archives import add, packed
from packed_runs import Instances, finish, instances_by_file, loose_instances, plan, planted_files

from maskrcnn.errors import UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import read_plans
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


def as_three_tars_and_a_list(folder: Path, files: dict[str, bytes]) -> str:
    names = list(files)
    for number in range(3):
        some = {f"d/{name}": files[name] for name in names[number::3]}
        Storage(folder / "images").write(f"{number}.tar", packed("x.tar", some))
    uris = [f"images/{at % 3}.tar!/d/{name}" for at, name in enumerate(names)]
    (folder / "list.txt").write_text("\n".join(uris))
    return "list.txt"


def as_all_at_once(folder: Path, files: dict[str, bytes]) -> str:
    names = list(files)
    store = Storage(folder / "images")
    store.write("a/photos.tar", packed("x.tar", {name: files[name] for name in names[:3]}))
    store.write("b/photos.ZIP", packed("x.zip", {f"d/{name}": files[name] for name in names[3:6]}))
    store.write("c/photos.tgz", packed("x.tgz", {name: files[name] for name in names[6:9]}))
    for name in names[9:]:
        store.write(f"d/{name}", files[name])
    return "images"


def as_one(kind: str):
    def write(folder: Path, files: dict[str, bytes]) -> str:
        Storage(folder).write(kind, packed(kind, {"instances.json": b"{}", **files}))
        return kind

    return write


PACKED = [
    as_one("photos.tar"),
    as_one("photos.zip"),
    as_one("photos.tar.gz"),
    as_three_tars_and_a_list,
    as_all_at_once,
]
IDS = ["tar", "zip", "tar.gz", "list of members of three tars", "folder of everything"]


@pytest.mark.parametrize("write", PACKED, ids=IDS)
def test_a_collection_has_the_same_instances_however_it_is_packed(write, files, loose, tmp_path):
    source = write(tmp_path, files)
    run = finish(plan(tmp_path / source, tmp_path / "out"))
    assert instances_by_file(run) == loose
    assert verify_run(str(tmp_path / "out")).proven
    assert "place_in_archive" not in run.images().column_names


def test_a_glob_of_tars_is_taken_member_by_member(files, loose, tmp_path):
    as_three_tars_and_a_list(tmp_path, files)
    run = finish(plan(tmp_path / "images" / "*.tar", tmp_path / "out"))
    assert instances_by_file(run) == loose
    assert run.images()["name"][0].as_py().startswith("0.tar!/d/")


def test_a_folder_in_an_archive_and_a_single_member_are_inputs(files, loose, tmp_path):
    as_all_at_once(tmp_path, files)
    names = list(files)
    whole = finish(plan(tmp_path / "images/b/photos.ZIP!/d", tmp_path / "folder"))
    assert instances_by_file(whole) == {name: loose[name] for name in names[3:6]}
    one = finish(plan(tmp_path / f"images/b/photos.ZIP!/d/{names[4]}", tmp_path / "one"))
    assert instances_by_file(one) == {names[4]: loose[names[4]]}
    with pytest.raises(UsageError, match="no member of this name"):
        plan(tmp_path / "images/b/photos.ZIP!/e", tmp_path / "none")


def test_what_a_torn_archive_loses_is_found_after_it_was_copied_again(files, loose, tmp_path):
    whole = packed("x.tar", files)
    store = Storage(tmp_path)
    store.write("photos.tar", whole[: len(whole) // 2])
    output = plan(tmp_path / "photos.tar", tmp_path / "out")
    images = finish(output).images()
    errors = dict(zip(images["name"].to_pylist(), images["error"].to_pylist(), strict=True))
    assert errors["photos.tar"] == "truncated"  # members behind the end are not known
    [(torn, _)] = [(name, error) for name, error in errors.items() if error and name != "photos.tar"]
    store.write("photos.tar", whole)
    assert plan_retry(Storage(output), read_plans(Storage(output)))
    found = instances_by_file(finish(output))
    assert found[torn] == loose[torn]


def test_an_archive_that_changed_after_planning_fails_its_members(files, tmp_path):
    store = Storage(tmp_path)
    store.write("photos.tar", packed("x.tar", files))
    output = plan(tmp_path / "photos.tar", tmp_path / "out")
    store.write("photos.tar", packed("x.tar", dict(reversed(files.items())) | {"more.png": b"x"}))
    images = finish(output).images()
    assert set(images["error"].to_pylist()) == {"changed"}


def test_pictures_of_one_name_in_an_archive_are_all_inputs(files, loose, tmp_path):
    names = list(files)[:3]
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name in names:
            add(tar, "a.png", files[name])
    run = finish(plan(tmp_path / "photos.tar", tmp_path / "out"))
    assert run.images()["name"].to_pylist() == ["a.png", "a.png#2", "a.png#3"]
    assert [len(found) for found in instances_by_file(run).values()] == [len(loose[name]) for name in names]
    assert not (tmp_path / "out" / "skipped.parquet").exists()
