"""The Hugging Face Hub: what lies there is read at the commit of the plan. The client is the real one."""

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import NAME, Hub
from maskrcnn_jobs.driver.planning import output_storage
from picture_tables import (
    FILES,
    NO_LIMIT,
    PNG,
    arrow_stream,
    contents,
    listed,
    parquet,
    picture,
    refusal,
    table_of,
)

from maskrcnn.errors import MaskrcnnError, StoreSetupError, UsageError
from maskrcnn.io.inputs import read_input, stat_input
from maskrcnn.io.storage import Storage

ROOT = f"hf://datasets/{NAME}"
TRAIN = "data/train-00000-of-00001.parquet"
LAYOUT = {
    TRAIN: parquet(table_of(FILES, label=list(range(11)))),
    "data/test-00000-of-00001.parquet": parquet(table_of({"t": PNG}, label=[0])),
    "README.md": b"---\n---",
    ".gitattributes": b"",
}
"""As the hub lays out a data set that was pushed."""


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.stop()


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    server.revisions.clear()
    server.commit(LAYOUT)
    server.ranges.clear()
    return server


def test_a_data_set_is_listed_and_read_at_the_commit_of_the_plan(hub: Hub) -> None:
    commit = hub.revisions["main"]
    inputs = listed(ROOT)
    table = inputs.table
    assert inputs.source == ROOT
    assert table["uri"][1].as_py() == f"{ROOT}@{commit}/{TRAIN}!/image/0"
    assert table["name"][1].as_py() == f"{TRAIN}!/00"
    assert contents(table) == [PNG, *FILES.values()]
    hub.commit({TRAIN: parquet(table_of({"new": picture(99)}))})
    assert contents(table) == [PNG, *FILES.values()]
    assert contents(listed(ROOT).table) == [picture(99)]
    assert read_input(table["uri"][3].as_py(), NO_LIMIT) == FILES["2.png"]


@pytest.mark.parametrize(
    ("below", "count"),
    [("", 12), ("/data/", 12), ("/data/train-*.parquet", 11), (f"/{TRAIN}", 11), ("/**/test*.parquet", 1)],
)
def test_folders_globs_and_files_are_taken(below: str, count: int, hub: Hub) -> None:
    table = listed(ROOT + below).table
    assert len(table) == count
    assert set(contents(table)) <= {PNG, *FILES.values()}
    assert len(listed(f"{ROOT}@{hub.revisions['main']}{below}").table) == count


def test_another_revision_is_named_behind_the_name(hub: Hub) -> None:
    commit = hub.commit({"default/train/0000.parquet": parquet(table_of({"c": PNG}))}, "refs/convert/parquet")
    for revision in ("refs/convert/parquet", "refs%2Fconvert%2Fparquet"):
        table = listed(f"{ROOT}@{revision}/default").table
        assert table["uri"].to_pylist() == [f"{ROOT}@{commit}/default/train/0000.parquet!/image/0"]
        assert contents(table) == [PNG]


def test_loose_files_and_arrow_are_read_by_ranges(hub: Hub) -> None:
    files = {f"{seed}": picture(seed, 100_000) for seed in range(6)}
    hub.commit({"a.png": PNG, "b/data.arrow": arrow_stream(table_of(files)), "list.txt": b"a.png"})
    table = listed(ROOT).table
    assert contents(table) == [PNG, *files.values()]
    assert set(table["etag"].to_pylist()) == {
        stat_input(uri).etag for uri in (f"{ROOT}/a.png", f"{ROOT}/b/data.arrow")
    }
    hub.ranges.clear()
    assert contents(table.slice(3, 2)) == list(files.values())[2:4]
    assert [path for path, asked in hub.ranges if asked] == ["b/data.arrow"]
    of_list = listed(f"{ROOT}/list.txt").table
    assert of_list["uri"].to_pylist() == [f"{ROOT}@{hub.revisions['main']}/a.png"]
    assert contents(of_list) == [PNG]


def test_uris_of_a_manifest_get_their_commit(hub: Hub, tmp_path: Path) -> None:
    commit = hub.commit({"a.png": PNG})
    other = hub.commit({"a.png": picture(1)}, "refs/convert/parquet")
    lines = [f"{ROOT}/a.png", f"{ROOT}@refs/convert/parquet/a.png", f"{ROOT}@{other}/a.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    table = listed(tmp_path / "list.txt").table
    assert set(table["name"].to_pylist()) == set(lines)
    hub.commit({"a.png": picture(2)})
    found = dict(zip(table["name"].to_pylist(), contents(table), strict=True))
    assert [found[line] for line in lines] == [PNG, picture(1), picture(1)]
    assert f"{ROOT}@{commit}/a.png" in table["uri"].to_pylist()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (f"{ROOT}/none/", "it does not exist"),
        (f"{ROOT}@none", "no such revision; check the name"),
        ("hf://datasets/owner/other", "no such repository, or it is private; check"),
        ("hf://datasets/owner", "hf://datasets/OWNER/NAME@REVISION/PATH"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_one_line(url: str, why: str) -> None:
    assert why in refusal(url)


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(MaskrcnnError, match="cannot reach the Hugging Face Hub; check HF_ENDPOINT"):
        listed(ROOT)


@pytest.mark.usefixtures("hub")
def test_it_is_no_place_for_an_output() -> None:
    with pytest.raises(UsageError, match=r"hf:// is read, not written: name another place"):
        output_storage(f"{ROOT}/out")
    with pytest.raises(StoreSetupError, match="is read, not written"):
        Storage(f"{ROOT}/out").write("a", b"a")


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def without_hub(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "huggingface_hub":
            raise ImportError(name)
        return import_module(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_hub)
    monkeypatch.setenv("HF_ENDPOINT", "http://elsewhere")
    with pytest.raises(UsageError, match=r"hf:// needs a package .* pip install 'maskrcnn-ray\[hf\]'"):
        listed(ROOT)
