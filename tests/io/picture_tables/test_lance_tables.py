"""Lance data sets: each row is an input, read at the version that the plan found."""

import builtins
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from picture_tables import (
    FILES,
    NO_LIMIT,
    PNG,
    STRUCT,
    content_or_code,
    contents,
    listed,
    picture,
    refusal,
    table_of,
)

from maskrcnn.errors import StoreSetupError
from maskrcnn.io.inputs import read_input, stat_input
from maskrcnn.io.manifests.skipped import counts_of
from maskrcnn.io.picture_tables.table_store import TableStore
from maskrcnn.io.schemes import store_of
from maskrcnn.io.storage import Storage


def write(folder: Path | str, table: pa.Table, **options: Any) -> str:
    place = f"{folder}/photos.lance"
    lance.write_dataset(table, place, max_rows_per_file=4, **options)
    return place


def as_blobs(files: dict[str, bytes | None]) -> pa.Table:
    table = table_of(files, pa.large_binary())
    field = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    return table.set_column(0, field, table["image"])


@pytest.mark.parametrize("kind", ["bytes", "structs", "blobs"])
def test_each_row_is_an_input_with_the_bytes_of_its_picture(kind: str, tmp_path: Path) -> None:
    files = {**FILES, "null": None, "empty": b""}
    makers = {
        "bytes": lambda f: table_of(f, pa.binary()),
        "structs": lambda f: table_of(f, STRUCT),
        "blobs": as_blobs,
    }
    source = write(tmp_path, makers[kind](files).append_column("label", [list(range(13))]))
    table = listed(source).table
    expected = [*FILES.values(), "not_found", "empty_file"]
    assert table["name"].to_pylist() == [f"{row:02}" for row in range(13)]
    assert table["uri"].to_pylist() == [f"{source}@1!/image/{row}" for row in range(13)]
    assert contents(table) == expected
    uris = table["uri"].to_pylist()
    assert [content_or_code(lambda u=uri: read_input(u, NO_LIMIT)) for uri in uris] == expected
    assert {stat_input(uri).etag for uri in uris} == set(table["etag"].to_pylist())
    assert table["label"].to_pylist() == list(range(13))
    assert ("path" in table.column_names) == (kind == "structs")
    assert "image" not in table.column_names


def test_rows_stay_those_of_the_planned_version(tmp_path: Path) -> None:
    source = write(tmp_path, table_of(FILES, label=list(range(11))))
    dataset = lance.dataset(source)
    dataset.delete("label = 3")
    table = listed(source).table
    kept = [data for row, data in enumerate(FILES.values()) if row != 3]
    assert contents(table) == kept
    dataset.delete("label < 7")
    write(tmp_path, table_of({"new": picture(50)}, label=[9]), mode="append")
    assert contents(table) == kept
    assert contents(listed(source).table) == [*kept[6:], picture(50)]
    assert listed(f"{source}@1").table["name"].to_pylist() == [f"{row:02}" for row in range(11)]
    assert contents(listed(f"{source}@1").table) == list(FILES.values())
    assert contents(listed(f"{source}@2!/image/4").table) == [FILES["5.png"]]
    assert contents(listed(f"{source}!/image/4").table) == [picture(50)]


def test_a_folder_holds_data_sets_among_other_files(tmp_path: Path) -> None:
    source = write(tmp_path / "a", table_of(FILES, split_of=["train"] * 11))
    Storage(tmp_path).write("loose.png", PNG)
    inputs = listed(tmp_path)
    assert inputs.table["name"].to_pylist()[::11] == ["a/photos.lance!/00", "loose.png"]
    assert contents(inputs.table) == [*FILES.values(), PNG]
    assert counts_of(inputs.skipped) == {}
    (tmp_path / "list.txt").write_text(f"{source}!/image/3\n{source}@1!/image/5")
    assert set(contents(listed(tmp_path / "list.txt").table)) == {FILES["3.png"], FILES["5.png"]}


def test_what_is_damaged_or_gone_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, table_of(FILES, pa.binary()))
    table = listed(source).table
    for file in Path(source, "data").iterdir():
        file.write_bytes(b"\xff" * file.stat().st_size)
    assert set(contents(table)) == {"corrupt"}
    shutil.rmtree(source)
    monkeypatch.setattr("maskrcnn.pipeline.shard_inputs.TABLES", TableStore(store_of))  # as another process
    assert set(contents(table)) == {"changed"}
    assert content_or_code(lambda: read_input(f"{source}!/image/0", NO_LIMIT)) == "not_found"


def test_a_data_set_that_cannot_be_opened_is_a_row(tmp_path: Path) -> None:
    source = write(tmp_path, table_of(FILES))
    Storage(tmp_path).write("loose.png", PNG)
    for file in Path(source, "_versions").glob("*.manifest"):
        file.write_bytes(b"\xff" * 1000)
    assert contents(listed(tmp_path).table) == [PNG, "corrupt"]
    assert refusal(source).startswith(f"{source}: corrupt: no sound table")


def test_a_data_set_is_read_from_s3(weed_server) -> None:
    url = weed_server.prefix()
    storage_options = {
        "aws_endpoint": weed_server.endpoint,
        "allow_http": "true",
        "aws_region": "us-east-1",
    }
    source = write(url, table_of(FILES), storage_options=storage_options)
    table = listed(source).table
    assert contents(table) == list(FILES.values())


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, table_of(FILES))
    import_module, find = builtins.__import__, importlib.util.find_spec

    def without_lance(name: str, *args: Any, **options: Any) -> Any:
        if name == "lance":
            raise ImportError(name)
        return import_module(name, *args, **options)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lance" else find(name))
    monkeypatch.setattr(builtins, "__import__", without_lance)
    assert "pip install 'maskrcnn-ray[lance]'" in refusal(source)
    with pytest.raises(StoreSetupError, match=r"pip install 'maskrcnn-ray\[lance\]'"):
        read_input(f"{source}@1!/image/0", NO_LIMIT)
