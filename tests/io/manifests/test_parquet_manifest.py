"""A Parquet file as a manifest: what is carried, left out with a line, and refused before it is read."""

import io
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn.errors import UsageError
from maskrcnn.io.manifests.parquet_manifest import read_parquet_manifest
from maskrcnn.io.manifests.read_manifest import read_manifest

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8


def read(table: pa.Table, **options: Any) -> pa.Table:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return read_parquet_manifest("m.parquet", sink)


def refusal(table: pa.Table, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read(table, **options)
    message = str(caught.value)
    assert message.startswith("m.parquet: ")
    assert "\n" not in message
    return message


TABLE = pa.table(
    {
        "uri": ["b", "a", "c"],
        "plot": pa.array(["x", None, "x"]).dictionary_encode(),
        "tags": [["p", "q"], [], None],
        "where": [{"lon": 1.5}, None, {"lon": 2.5}],
        "counts": pa.array([[("p", 1)], None, [("q", None)]], pa.map_(pa.string(), pa.int8())),
        "pair": pa.array([["p", "q"], None, ["r", "s"]], pa.list_(pa.string(), 2)),
        "deep": [[{"a": ["p"]}], [], [{"a": None}, None]],
        "n": [1, None, 3],
    }
)


@pytest.mark.parametrize("row_group_size", [1, 2, None])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_dictionary": False}, {"store_schema": False}, {"compression": "zstd"}],
    ids=str,
)
def test_all_values_are_read_however_they_are_stored(
    options: dict[str, Any], row_group_size: int | None
) -> None:
    assert read(TABLE, row_group_size=row_group_size, **options).to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("row_group_size", [1, None])
def test_a_value_that_readers_refuse_decides_on_the_type_of_its_column(
    row_group_size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever row groups the values are stored in."""
    maps = pa.array([[("a", 1)], [("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int8()))
    times = pa.array([[1000], [1]], pa.list_(pa.time64("ns")))
    table = pa.table({"uri": ["a", "b"], "maps": maps, "times": times})
    caplog.set_level(logging.INFO, "maskrcnn")
    assert read(table, row_group_size=row_group_size).drop("uri").to_pylist() == [
        {"maps": [{"key": "a", "value": 1}], "times": ["00:00:00.000001000"]},
        {"maps": [{"key": "a", "value": 1}, {"key": "a", "value": 2}], "times": ["00:00:00.000000001"]},
    ]
    assert caplog.messages == [
        "m.parquet: columns carried as text or as lists, because not all readers take their values: 'maps', 'times'"
    ]


def test_text_that_is_not_utf8_is_refused_with_its_column() -> None:
    latin = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    assert refusal(pa.table({"uri": ["a"], "place": latin})) == (
        "m.parquet: the column 'place' of type string cannot be carried (Invalid UTF8 sequence at string index 0): "
        "remove it, or write it as text"
    )


def test_text_stored_by_prefixes_is_read() -> None:
    table = pa.table({"uri": [f"s3://bucket/{n:09}.jpg" for n in range(1000)]})
    assert read(table, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY").equals(table)


# Columns of bytes


@pytest.mark.parametrize(
    "column",
    [
        pa.array([PICTURE] * 2),
        pa.array([PICTURE] * 2, pa.large_binary()),
        pa.array([PICTURE] * 2, pa.binary_view()),
        pa.array([PICTURE] * 2, pa.binary(len(PICTURE))),
        pa.array([{"bytes": PICTURE, "path": "a.png"}] * 2),
        pa.array([[PICTURE]] * 2),
        pa.array([[1, 2] * 1000] * 2, pa.list_(pa.uint8())),
    ],
    ids=lambda column: str(column.type),
)
def test_large_bytes_are_left_out_and_named(column: pa.Array, caplog: pytest.LogCaptureFixture) -> None:
    table = pa.table({"a": column, "uri": ["b", "a"], "a.b": [1, 2], "label": ["x", "y"]})
    assert read(table, use_dictionary=False).column_names == ["uri", "a.b", "label"]
    assert caplog.record_tuples == [
        (
            "maskrcnn",
            logging.WARNING,
            "m.parquet: left out of the tables: 1 column of pictures or other large bytes, 'a'",
        )
    ]


def test_small_bytes_are_carried(caplog: pytest.LogCaptureFixture) -> None:
    table = pa.table({"uri": ["a"], "digest": [bytes(32)], "id": pa.array([bytes(16)], pa.binary(16))})
    assert read(table).equals(table)
    assert caplog.record_tuples == []


def test_both_that_a_table_could_have_are_named_where_it_has_neither() -> None:
    neither = "m.parquet: no column `uri` and none of pictures (bytes, or struct<bytes, path>); found "
    said = refusal(pa.table({"path": ["a.png"], "label": [1]}))
    assert said == f"{neither}'path', 'label'; rename 'path' if that is meant"
    said = refusal(
        pa.table({"image": [list(PICTURE)], "label": [1]})
    )  # as lists of numbers they are not read
    assert said == f"{neither}'image', 'label'"


# Limits


def repeated(n: int, length: int, kind: str = "uri") -> pa.Table:
    """Return n rows that a dictionary stores in little more than the bytes of one value."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array(["x" * length]))
    uris = values if kind == "uri" else pa.array([str(row) for row in range(n)])
    return pa.table({"uri": uris, "n": values if kind == "n" else pa.nulls(n, pa.int8())})


@pytest.mark.parametrize("kind", ["uri", "n"])
@pytest.mark.parametrize("store_schema", [True, False])
def test_a_few_bytes_that_come_to_gigabytes_are_refused(kind: str, store_schema: bool) -> None:
    said = refusal(repeated(50_000, 100_000, kind), store_schema=store_schema)
    assert f"the column '{kind}' comes to 4.7 GiB, and at most 2 GiB can be carried" in said


def test_gigabytes_within_lists_and_by_prefixes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.io.manifests.parquet_manifest.LARGEST_COLUMN_BYTES", 10_000_000)
    texts = ["x" * 10_000] * 2000
    lists = pa.table({"uri": [str(row) for row in range(2000)], "n": [[text] for text in texts]})
    assert "the column 'n' comes to" in refusal(lists)
    structs = lists.set_column(1, "n", pa.array([{"a": text} for text in texts]))
    assert "the column 'n' comes to" in refusal(structs)
    prefixed = lists.set_column(1, "n", pa.array(texts))
    encoding = {"uri": "PLAIN", "n": "DELTA_BYTE_ARRAY"}
    assert "the column 'n' comes to" in refusal(prefixed, use_dictionary=False, column_encoding=encoding)


def test_more_rows_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.io.manifests.parquet_manifest.LARGEST_TABLE_BYTES", 1_000_000)
    assert "its columns come to 0.0 GiB, and at most 4 GiB" in refusal(repeated(100_000, 1))


@pytest.mark.slow
def test_too_many_columns_and_levels_are_refused() -> None:
    many = pa.table({"uri": ["a"]} | {f"c{number}": [1] for number in range(10_000)})
    assert (
        "10,001 columns, and at most 10,000 can be carried: leave out those that are not needed"
        in refusal(many)
    )
    kind = pa.int8()
    for _ in range(33):
        kind = pa.list_(kind)
    deep = pa.table({"uri": ["a"], "n": pa.nulls(1, kind)})
    assert "the column 'n' is nested 33 levels deep, and at most 32 can be carried" in refusal(deep)


def test_several_columns_of_one_name_are_refused_and_so_is_a_file_without_uris() -> None:
    assert "several columns have the name 'n'" in refusal(
        pa.table([["a"], [1], [2]], names=["uri", "n", "n"])
    )
    assert refusal(pa.table({"x": [1]})).endswith("; found 'x'")


def test_a_type_that_arrow_cannot_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"uri": ["a"], "n": polars.Series([1], dtype=polars.Int128)})
    frame.write_parquet(tmp_path / "m.parquet")
    with pytest.raises(
        UsageError, match=r"a column is of a type that cannot be read .*: remove it, or write it as text"
    ):
        read_manifest(str(tmp_path / "m.parquet"))
