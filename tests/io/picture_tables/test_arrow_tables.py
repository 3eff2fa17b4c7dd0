"""Laws of Arrow files: each row is an input, and pictures are read by their places, none twice."""

import datetime
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_tables import (
    FILES,
    NO_LIMIT,
    PNG,
    STRUCT,
    arrow_file,
    arrow_stream,
    content_or_code,
    contents,
    listed,
    parquet,
    picture,
    refusal,
    table_of,
    write,
)

from maskrcnn.errors import UsageError
from maskrcnn.io.inputs import open_input, read_input, stat_input
from maskrcnn.io.manifests.skipped import counts_of
from maskrcnn.io.picture_tables import arrow_table
from maskrcnn.io.picture_tables.picture_uri import picture_uri
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.shard_inputs import ShardInputs
from maskrcnn.schema import PLACE

WRITERS = {"stream": arrow_stream, "file": arrow_file}
KINDS = [pa.binary(), pa.large_binary(), pa.binary_view(), STRUCT]
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
ODD_COLUMNS = {
    "word": pa.array(["a", "b", None] * 3 + ["c", "a"]).dictionary_encode(),
    "list": pa.array([[1, 2], None, []] * 3 + [[3], [4, 5, 6]]),
    "pair": pa.array([{"x": row, "y": str(row)} for row in range(11)]),
    "map": pa.array([[("k", row)] for row in range(11)], pa.map_(pa.string(), pa.int64())),
    "fixed": pa.array([[row, row] for row in range(11)], pa.list_(pa.int32(), 2)),
    "nothing": pa.nulls(11),
    "flag": pa.array([True, False, None] * 3 + [True, True]),
    "at": pa.array([MOMENT] * 11),
    "view": pa.array([f"long enough for no view {row}" for row in range(11)], pa.string_view()),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([4, 11], pa.int32()), pa.array([1.5, 2.5])),
}
"""A column of each layout of buffers."""


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_each_row_is_an_input_with_the_bytes_of_its_picture(kind, form, compression, tmp_path: Path) -> None:
    files = {**FILES, "null": None, "empty": b""}
    table = table_of(files, kind, label=list(range(13)))
    source = write(tmp_path, WRITERS[form](table, compression=compression), "t.arrow")
    found = listed(source).table
    expected = [*FILES.values(), "not_found", "empty_file"]
    assert found["name"].to_pylist() == [f"{row:02}" for row in range(13)]
    assert found["uri"].to_pylist() == [f"{source}!/image/{row}" for row in range(13)]
    assert contents(found) == expected
    assert [
        content_or_code(lambda u=uri: read_input(u, NO_LIMIT)) for uri in found["uri"].to_pylist()
    ] == expected
    assert set(found["etag"].to_pylist()) == {stat_input(source).etag}
    assert found["label"].to_pylist() == list(range(13))
    assert ("path" in found.column_names) == (kind == STRUCT)
    assert "image" not in found.column_names
    if compression is None:
        assert found["bytes"].to_pylist() == [len(data or b"") for data in files.values()]


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_other_columns_are_those_of_the_same_table_in_parquet(form, compression, tmp_path: Path) -> None:
    table = table_of(FILES, **ODD_COLUMNS, last=list(range(11)))
    written = WRITERS[form](table, compression=compression)
    of_arrow = listed(write(tmp_path, written, "t.arrow")).table
    plain = table.drop_columns(["view", "runs", "nothing"])
    of_parquet = listed(write(tmp_path, parquet(plain))).table
    names = [name for name in of_parquet.column_names if name not in ("uri", "etag", "bytes", PLACE.name)]
    assert of_arrow.select(names).to_pylist() == of_parquet.select(names).to_pylist()
    for name in ("view", "runs", "nothing"):
        assert of_arrow[name].to_pylist() == table[name].to_pylist()


def test_a_dictionary_that_changes_from_batch_to_batch_is_followed(tmp_path: Path) -> None:
    sink = io.BytesIO()
    tables = [
        table_of({f"{name}": PNG for name in words}, word=pa.array(words).dictionary_encode())
        for words in (["a", "b"], ["c", "a", "d"])
    ]
    with pa.ipc.new_stream(sink, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    found = listed(write(tmp_path, sink.getvalue(), "t.arrow")).table
    assert found["word"].to_pylist() == ["a", "b", "c", "a", "d"]


def test_feather_as_pandas_and_pyarrow_write_it_is_read(tmp_path: Path) -> None:
    source = tmp_path / "t.feather"
    pyarrow.feather.write_feather(table_of(FILES), str(source))
    assert contents(listed(source).table) == list(FILES.values())


def test_arrow_files_are_listed_and_read_in_every_store(store_url: str) -> None:
    store = Storage(store_url)
    store.write("d/t.arrow", arrow_stream(table_of(FILES)))
    store.write("loose.png", PNG)
    assert contents(listed(store.url).table) == [*FILES.values(), PNG]
    alone = listed(f"{store.url}/d/t.arrow").table
    assert alone["name"][0].as_py() == "00"
    if not store_url.startswith("memory"):  # it has no etag, and no times
        store.write("d/t.arrow", arrow_stream(table_of(dict(reversed(FILES.items())))))
        assert set(contents(alone)) == {"changed"}


@given(
    pictures=st.lists(st.one_of(st.none(), st.binary(max_size=300)), min_size=1, max_size=25),
    batch_rows=st.integers(1, 30),
    kind=st.sampled_from(KINDS),
    write_arrow=st.sampled_from([arrow_stream, arrow_file]),
    compression=st.sampled_from([None, None, "lz4"]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_rows_are_read_in_any_order(
    pictures, batch_rows, kind, write_arrow, compression, data, tmp_path_factory
) -> None:
    """Whatever the record batches, planned or by their uris, from a shard or alone."""
    table = table_of({f"{row}": value for row, value in enumerate(pictures)}, kind)
    source = write(tmp_path_factory.mktemp("t"), write_arrow(table, batch_rows, compression), "t.arrow")
    rows = data.draw(st.lists(st.integers(0, len(pictures) - 1), min_size=1, max_size=30, unique=True))
    expected = [{None: "not_found", b"": "empty_file"}.get(pictures[row], pictures[row]) for row in rows]
    uris = [picture_uri(source, "image", row) for row in rows]
    planned = listed(source, "image").table.take(rows)
    for entries in (planned.to_pylist(), [{"uri": uri, "bytes": None, "etag": None} for uri in uris]):
        inputs = ShardInputs(entries, NO_LIMIT)
        order = data.draw(st.permutations(range(len(rows))))
        assert {at: content_or_code(lambda at=at, inputs=inputs: inputs.read(at)) for at in order} == dict(
            enumerate(expected)
        )
    assert [content_or_code(lambda u=uri: read_input(u, NO_LIMIT)) for uri in uris] == expected


@pytest.mark.parametrize(("name", "data"), [("t.parquet", parquet), ("t.arrow", arrow_stream)])
def test_one_picture_is_an_input(name, data, tmp_path: Path) -> None:
    source = write(tmp_path, data(table_of(FILES, label=list(range(11)))), name)
    table = listed(f"{source}!/image/7").table
    assert table.select(["name", "label"]).to_pylist() == [{"name": "07", "label": 7}]
    assert contents(table) == [FILES["7.png"]]
    assert "no row of this number" in refusal(f"{source}!/image/11")
    assert "there is no such column of bytes" in refusal(f"{source}!/photo/1")


# What is read


def test_planning_reads_no_pictures_but_the_first(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    files = {f"{seed}": picture(seed, 200_000) for seed in range(12)}
    table = table_of(files, label=list(range(12)), photo=[picture(seed, 100_000) for seed in range(12)])
    source = write(tmp_path, arrow_stream(table), "t.arrow")
    found = listed(source, "image").table
    assert found["label"].to_pylist() == list(range(12))
    assert "photo" not in found.column_names
    assert sum(min(stop, NO_LIMIT) - start for start, stop in reads) <= 200_000 + 20 * 2**14


def test_a_shard_reads_only_its_pictures_and_none_twice(tmp_path: Path, reads) -> None:
    files = {f"{seed}": picture(seed, 20_000) for seed in range(60)}
    source = write(tmp_path, arrow_stream(table_of(files), 60), "t.arrow")
    shard = listed(source).table.slice(13, 20)
    reads.clear()
    assert contents(shard) == list(files.values())[13:33]
    assert len(reads) == 1
    assert sum(stop - start for start, stop in reads) <= 1.05 * sum(map(len, list(files.values())[13:33]))


def test_pictures_are_read_by_their_uris_without_those_between(tmp_path: Path, reads) -> None:
    files = {f"{seed}": picture(seed, 100_000) for seed in range(20)}
    source = write(tmp_path, arrow_stream(table_of(files), 10), "t.arrow")
    assert read_input(picture_uri(source, "image", 13), NO_LIMIT) == files["13"]
    assert sum(stop - start for start, stop in reads) <= 100_200 + 8 * 2**14
    reads.clear()
    entries = [{"uri": picture_uri(source, "image", row), "bytes": None, "etag": None} for row in (11, 18)]
    inputs = ShardInputs(entries, NO_LIMIT)
    assert [inputs.read(0), inputs.read(1)] == [files["11"], files["18"]]
    assert sum(stop - start for start, stop in reads) <= 200_400 + 8 * 2**14


def test_a_compressed_batch_beyond_the_limit_is_refused_row_by_row(tmp_path: Path, monkeypatch) -> None:
    source = write(tmp_path, arrow_stream(table_of(FILES), compression="zstd"), "t.arrow")
    monkeypatch.setattr(arrow_table, "LARGEST_COMPRESSED_BYTES", 100)
    assert set(contents(listed(source, "image").table)) == {"unsupported_format"}


def test_a_picture_is_opened_for_random_access(tmp_path: Path) -> None:
    source = write(tmp_path, arrow_stream(table_of(FILES)), "t.arrow")
    with open_input(picture_uri(source, "image", 7)) as file:
        file.seek(10)
        assert file.read(20) == FILES["7.png"][10:30]


# Failures


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_file_that_ends_early_is_a_row(form: str, kept: float, tmp_path: Path) -> None:
    data = WRITERS[form](table_of(FILES))
    write(tmp_path, arrow_stream(table_of(FILES)), "good.arrow")
    bad = write(tmp_path, data[: int(kept * len(data))], "bad.arrow")
    assert contents(listed(tmp_path).table) == ["corrupt" if kept else "empty_file", *FILES.values()]
    assert refusal(bad).startswith(f"{bad}: ")


def test_what_is_no_arrow_file_is_a_row(tmp_path: Path) -> None:
    for number, data in enumerate(
        [b"FEA1 of old", b"\xff" * 100, parquet(table_of(FILES)), b"\0" * 64, b"x"]
    ):
        write(tmp_path, data, f"{number}.arrow")
    assert contents(listed(tmp_path).table) == ["corrupt"] * 5


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damage_is_a_row_or_one_line_and_no_other_bytes(data, tmp_path_factory) -> None:
    """Whatever bytes change, no reader crashes, and no row gets bytes from elsewhere than the pictures."""
    folder = tmp_path_factory.mktemp("t")
    compression = data.draw(st.sampled_from([None, "lz4"]))
    damaged = bytearray(arrow_stream(table_of(FILES, word=ODD_COLUMNS["word"]), compression=compression))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    write(folder, bytes(damaged), "t.arrow")
    write(folder, PNG, "loose.png")
    try:
        table = listed(folder).table
    except UsageError:  # the names or types of the columns are damaged
        return
    for content in contents(table):
        assert isinstance(content, bytes) or content in (
            "corrupt",
            "not_found",
            "empty_file",
            "unsupported_format",
        )


def test_offsets_that_leave_their_batch_fail_their_rows(tmp_path: Path) -> None:
    table = table_of(FILES, pa.binary())
    data = bytearray(arrow_stream(table, 20))
    offsets = table["image"].chunk(0).buffers()[1].to_pybytes()[: 4 * 12]
    at = data.index(offsets)
    data[at + 4 * 5 : at + 4 * 6] = (2**30).to_bytes(4, "little")
    found = contents(listed(write(tmp_path, bytes(data), "t.arrow"), "image").table)
    values = list(FILES.values())
    assert found == [*values[:4], "corrupt", "corrupt", *values[6:]]


# Data sets that were saved


def saved(folder: Path, table: pa.Table, n_files: int = 2, **state: object) -> None:
    """Write a table as `datasets.Dataset.save_to_disk` does."""
    names = [f"data-{at:05}-of-{n_files:05}.arrow" for at in range(n_files)]
    rows = -(-len(table) // n_files)
    for at, name in enumerate(names):
        write(folder, arrow_stream(table.slice(at * rows, rows)), name)
    write(folder, b'{"features": {}}', "dataset_info.json")
    described = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", **state}
    write(folder, json.dumps(described).encode(), "state.json")


def test_a_saved_data_set_is_its_data_files_and_nothing_else(tmp_path: Path) -> None:
    saved(tmp_path, table_of(FILES, label=list(range(11))))
    write(tmp_path, arrow_stream(table_of({"other": PNG})), "cache-0123.arrow")
    inputs = listed(tmp_path)
    assert contents(inputs.table) == list(FILES.values())
    assert inputs.table["label"].to_pylist() == list(range(11))
    assert inputs.table["name"][0].as_py() == "data-00000-of-00002.arrow!/0"
    assert counts_of(inputs.skipped) == {}


def test_the_splits_of_a_saved_dictionary_are_read(tmp_path: Path) -> None:
    write(tmp_path, b'{"splits": ["train", "test"]}', "dataset_dict.json")
    saved(tmp_path / "train", table_of(FILES), 1)
    saved(tmp_path / "test", table_of({"t": PNG}), 1)
    inputs = listed(tmp_path)
    assert inputs.table["name"][0].as_py() == "test/data-00000-of-00001.arrow!/0"
    assert contents(inputs.table) == [PNG, *FILES.values()]
    assert counts_of(inputs.skipped) == {}


def test_a_data_file_that_is_missing_is_a_row(tmp_path: Path) -> None:
    saved(tmp_path, table_of(FILES))
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    assert contents(listed(tmp_path).table) == [*list(FILES.values())[:6], "not_found"]


def test_a_selection_that_was_not_written_out_is_one_line(tmp_path: Path) -> None:
    saved(tmp_path, table_of(FILES), _indices_files=[{"filename": "indices.arrow"}])
    assert refusal(tmp_path) == (
        f"{tmp_path}: the data set is a selection of rows that was not written out (its state.json names a file of "
        "indices): write it with `ds.flatten_indices().save_to_disk(…)`"
    )


# Folders named as partitions


def test_folders_with_keys_and_values_are_columns(tmp_path: Path) -> None:
    for split, label, name in (("train", "3", "a"), ("train", "4", "b"), ("a%20b", "3", "c")):
        write(tmp_path, parquet(table_of({name: PNG})), f"split={split}/label={label}/part-0.parquet")
    write(tmp_path, arrow_stream(table_of({"d": PNG})), "split=train/name=x/part-0.arrow")
    write(tmp_path, PNG, "loose.png")
    table = listed(tmp_path).table.select(["file", "split", "label", "input_name"])
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (None, None, None, None),
        ("c", "a b", 3, None),
        ("a", "train", 3, None),
        ("b", "train", 4, None),
        ("d", "train", None, "x"),
    ]


def test_a_column_that_contradicts_its_folder_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, parquet(table_of({"a": PNG}, label=[4])), "label=3/part-0.parquet")
    assert "the column 'label' has values other than its folder's name says" in refusal(tmp_path)
