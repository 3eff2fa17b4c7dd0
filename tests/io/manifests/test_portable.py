"""Any column of Arrow becomes one that every reader of Parquet knows, with the values that it had."""

import datetime
import decimal
import io
import json
import math
import uuid
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maskrcnn.io.manifests.portable import depth_of, portable

D = decimal.Decimal
DAY, MOMENT = datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2, 3, 4, 5)
UUID = uuid.UUID(int=2**100)


def extension(kind: pa.DataType, values: list[Any]) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))


UNION = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
COLUMNS: dict[str, tuple[pa.Array, list[Any]]] = {
    # name: (column, the values that readers find)
    "null": (pa.nulls(2), [None, None]),
    "string view": (pa.array(["a", None], pa.string_view()), ["a", None]),
    "binary view": (pa.array([b"a", None], pa.binary_view()), [b"a", None]),
    "list view": (pa.array([[1, 2], None, [3]], pa.list_view(pa.int32())), [[1, 2], None, [3]]),
    "large list view": (pa.array([[1], None, []], pa.large_list_view(pa.int64())), [[1], None, []]),
    "list of views": (pa.array([["a"], None], pa.list_(pa.string_view())), [["a"], None]),
    "run ends": (pa.RunEndEncodedArray.from_arrays([2, 3], ["a", None]), ["a", "a", None]),
    "run ends of views": (
        pa.RunEndEncodedArray.from_arrays(pa.array([1, 3], pa.int32()), pa.array(["a", "b"], pa.string_view())),
        ["a", "b", "b"],
    ),
    "dictionary": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    "list of dictionaries": (
        pa.array([["a", "b"], None], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        [["a", "b"], None],
    ),
    "struct of a dictionary": (
        pa.array([{"x": "a"}, None], pa.struct([("x", pa.dictionary(pa.int8(), pa.string()))])),
        [{"x": "a"}, None],
    ),
    "struct of null": (pa.array([{"x": None}], pa.struct([("x", pa.null())])), [{"x": None}]),
    "fixed lists of views": (pa.array([["a", "b"], None], pa.list_(pa.string_view(), 2)), [["a", "b"], None]),
    "map": (pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())), [{"a": 1}, None]),
    "half float": (pa.array([1.5, None], pa.float16()), [1.5, None]),
    "unsigned": (pa.array([2**64 - 1, 0], pa.uint64()), [2**64 - 1, 0]),
    "decimal of 9 digits": (pa.array([D("1.50"), None], pa.decimal32(5, 2)), [D("1.50"), None]),
    "decimal of 38 digits": (pa.array([D(10**37)], pa.decimal128(38, 0)), [D(10**37)]),
    "decimal of 60 digits that has fewer": (pa.array([D("1.50")], pa.decimal256(60, 2)), [D("1.50")]),
    "decimal of 60 digits": (pa.array([D(10**50), None], pa.decimal256(60, 2)), [f"1{'0' * 50}.00", None]),
    "decimal of thousands": (pa.array([D(1500)], pa.decimal128(5, -2)), [D(1500)]),
    "day in milliseconds": (pa.array([DAY, None], pa.date64()), [DAY, None]),
    "seconds of a day": (pa.array([MOMENT.time(), None], pa.time32("s")), [MOMENT.time(), None]),
    "timestamp in seconds": (pa.array([MOMENT, None], pa.timestamp("s")), [MOMENT, None]),
    "UUID": (extension(pa.uuid(), [UUID.bytes, None]), [str(UUID), None]),
    "JSON": (extension(pa.json_(), ['{"a":1}', None]), ['{"a":1}', None]),
    "boolean of 8 bits": (extension(pa.bool8(), [1, 0, None]), [True, False, None]),
    "tensor": (extension(pa.fixed_shape_tensor(pa.int32(), [2, 2]), [[1, 2, 3, 4]]), [[1, 2, 3, 4]]),
    "opaque": (extension(pa.opaque(pa.string(), "x", "y"), ["q"]), ["q"]),
    # Values that their type allows, and that some reader refuses or changes:
    "map with a key twice": (
        pa.array([[("a", 1), ("a", 2)], None], pa.map_(pa.string(), pa.int32())),
        [[{"key": "a", "value": 1}, {"key": "a", "value": 2}], None],
    ),
    "list of maps with a key twice": (
        pa.array([[[("a", 1), ("a", 2)]], None], pa.list_(pa.map_(pa.string(), pa.int32()))),
        [[[{"key": "a", "value": 1}, {"key": "a", "value": 2}]], None],
    ),
    "map with two zeros": (
        pa.array([[(0.0, 1), (-0.0, 2)]], pa.map_(pa.float64(), pa.int32())),
        [[{"key": 0.0, "value": 1}, {"key": -0.0, "value": 2}]],
    ),
    "map whose keys are lists": (
        pa.array([[([1], 1)], []], pa.map_(pa.list_(pa.int32()), pa.int32())),
        [[{"key": [1], "value": 1}], []],
    ),
    "times with nanoseconds": (
        pa.array([1, 1000, None], pa.time64("ns")),
        ["00:00:00.000000001", "00:00:00.000001000", None],
    ),
    "struct of times with nanoseconds": (
        pa.array([{"t": 1}], pa.struct([("t", pa.time64("ns"))])),
        [{"t": "00:00:00.000000001"}],
    ),
    "times of whole microseconds": (pa.array([1000, None], pa.time64("ns")), [datetime.time(microsecond=1), None]),
    "days out of calendars": (pa.array([-719_163, None, 2_932_897], pa.date32()), ["0000-12-31", None, "10000-01-01"]),
    "first and last day": (pa.array([-719_162, 2_932_896], pa.date32()), [datetime.date.min, datetime.date.max]),
    "moments out of calendars": (
        pa.array([253_402_300_800_000, None, -62_135_596_801_000], pa.timestamp("ms")),
        ["10000-01-01T00:00:00.000", None, "0000-12-31T23:59:59.000"],
    ),
    "last moment": (pa.array([253_402_300_799], pa.timestamp("s")), [datetime.datetime(9999, 12, 31, 23, 59, 59)]),
    "moment whose local year is 10000": (
        pa.array([253_402_300_799_000_000], pa.timestamp("us", "Asia/Tokyo")),
        ["9999-12-31T23:59:59.000000Z"],
    ),
}  # fmt: skip


def stored(column: pa.ChunkedArray) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"c": column}), sink)
    return sink.getvalue()


@pytest.mark.parametrize("name", COLUMNS)
def test_every_reader_finds_the_values(name: str, tmp_path: Path) -> None:
    array, expected = COLUMNS[name]
    column = portable(pa.chunked_array([array, array.slice(1)]))
    expected = [*expected, *expected[1:]]
    path = tmp_path / "t.parquet"
    path.write_bytes(stored(column))

    again = pq.read_table(path)["c"]
    assert again.type == column.type, "what is written is read as it was planned"
    assert as_plain(again.to_pylist()) == expected
    found = [row[0] for row in duckdb.sql(f"SELECT c FROM '{path}'").fetchall()]
    assert as_plain(found) == expected
    assert [as_plain(value) for value in pd.read_parquet(path)["c"]] == expected
    polars = pytest.importorskip("polars")
    assert as_plain(polars.read_parquet(path)["c"].to_list()) == expected


def as_plain(value: Any) -> Any:
    """Return what a reader found without the types of its own: arrays, timestamps, maps as pairs, NaN for null."""
    if value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    for method in ("tolist", "to_pydatetime", "to_list"):
        if hasattr(value, method):
            value = getattr(value, method)()
    if isinstance(value, dict):
        return {key: as_plain(each) for key, each in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return dict(value)
    if (
        isinstance(value, list)
        and value
        and isinstance(value[0], dict)
        and value[0].keys() == {"key", "value"}
        and len({str(pair["key"]) for pair in value if isinstance(pair["key"], str)}) == len(value)
    ):
        return {pair["key"]: pair["value"] for pair in value}
    return [as_plain(each) for each in value] if isinstance(value, list) else value


def test_an_offset_from_utc_becomes_utc_the_instant_stays() -> None:
    shifted = pa.chunked_array([pa.array([MOMENT], pa.timestamp("us", "+02:00"))])
    assert portable(shifted).type == pa.timestamp("us", "UTC")
    assert portable(shifted).cast(pa.int64()).equals(shifted.cast(pa.int64()))
    unknown = shifted.cast(pa.timestamp("us", "Mars/Base"))
    assert portable(unknown).equals(shifted.cast(pa.timestamp("us", "UTC")))
    named = shifted.cast(pa.timestamp("us", "Europe/Berlin"))
    assert portable(named) is named


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        (pa.array([{}, None], pa.struct([])), ["{}", "null"]),
        (pa.array([[{}]], pa.list_(pa.struct([]))), ["[{}]"]),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), ["[1, 2, 3]"]),
        (UNION, ["1", '"b"']),
        (pa.array([{"a": 1, "A": 2}]), ['{"a": 1, "A": 2}']),
        (pa.array([[{"": 1}]]), ['[{"": 1}]']),
    ],
    ids=["empty struct", "list of empty structs", "interval", "union", "fields that differ in case", "no name"],
)  # fmt: skip
def test_what_parquet_cannot_hold_is_json(array: pa.Array, texts: list[str]) -> None:
    assert portable(pa.chunked_array([array])).to_pylist() == texts


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.int8(), pa.float64(), pa.list_(pa.int32(), 2), pa.binary(16), pa.duration("s")],
    ids=str,
)  # fmt: skip
def test_what_all_readers_know_is_left_as_it_is(kind: pa.DataType) -> None:
    column = pa.chunked_array([pa.nulls(2, kind)])
    assert portable(column) is column


def nested(of: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    return st.one_of(
        of.map(pa.list_),
        of.map(pa.list_view),
        of.map(pa.large_list),
        of.map(lambda kind: pa.list_(kind, 2)),
        of.map(lambda kind: pa.struct([("a", kind), ("b", pa.int8())])),
        of.map(lambda kind: pa.map_(pa.string(), kind)),
    )


KINDS = st.recursive(
    st.sampled_from(
        [
            pa.int32(),
            pa.string(),
            pa.string_view(),
            pa.float16(),
            pa.null(),
            pa.dictionary(pa.int8(), pa.string()),
        ]
    ),
    nested,
    max_leaves=3,
)


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Return values that a type may have."""
    if pa.types.is_null(kind):
        return st.none()
    if pa.types.is_map(kind):
        some: st.SearchStrategy[Any] = st.dictionaries(st.sampled_from("xyz"), values_of(kind.item_type)).map(
            lambda of: list(of.items())
        )
    elif pa.types.is_struct(kind):
        some = st.fixed_dictionaries({field.name: values_of(field.type) for field in kind})
    elif pa.types.is_fixed_size_list(kind):
        some = st.lists(values_of(kind.value_type), min_size=2, max_size=2)
    elif kind.num_fields:
        some = st.lists(values_of(kind.value_type), max_size=3)
    elif pa.types.is_integer(kind):
        some = st.integers(-128, 127)
    elif pa.types.is_floating(kind):
        some = st.sampled_from([1.5, -2.0])
    else:
        some = st.sampled_from(["a", "b", ""])
    return st.none() | some


@pytest.mark.slow
@given(st.data())
@settings(max_examples=150)
def test_values_survive_in_any_nesting_and_in_slices(data: st.DataObject) -> None:
    kind = data.draw(KINDS)
    values = data.draw(st.lists(values_of(kind), max_size=5))
    start = data.draw(st.integers(0, len(values)))
    whole = pa.array(values, kind)
    assume(is_sound(whole))
    column = pa.chunked_array([whole.slice(start), whole], kind)
    converted = portable(column)
    converted.validate(full=True)
    as_lists = json.loads(json.dumps(column.to_pylist()))
    assert pairs_as_lists(converted.to_pylist()) == pairs_as_lists(as_lists)
    again = pq.read_table(pa.BufferReader(stored(converted)))["c"]
    assert pairs_as_lists(again.to_pylist()) == pairs_as_lists(as_lists)


def is_sound(array: pa.Array) -> bool:
    """Return whether Arrow built what it was asked for; null in a fixed list of dictionary values is not."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def pairs_as_lists(value: Any) -> Any:
    """Return values with the pairs of maps as lists, also where a map became a list of structs."""
    if isinstance(value, dict) and value.keys() == {"key", "value"}:
        value = list(value.values())
    if isinstance(value, dict):
        return {key: pairs_as_lists(each) for key, each in value.items()}
    return [pairs_as_lists(each) for each in value] if isinstance(value, list | tuple) else value


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2))), min_size=1), st.integers(0, 3)
)
def test_a_map_stays_one_unless_a_row_has_a_key_twice(rows: list[list[tuple[str, int]]], start: int) -> None:
    column = pa.chunked_array(
        [
            pa.array([*rows[:1], *rows], pa.map_(pa.string(), pa.int8())).slice(1),
            pa.array([], pa.map_(pa.string(), pa.int8())),
        ]
    ).slice(start)
    rows = rows[start:]
    converted = portable(column)
    if all(len(dict(row)) == len(row) for row in rows):
        assert converted.equals(column)
    else:
        assert converted.to_pylist() == [[{"key": key, "value": value} for key, value in row] for row in rows]


@pytest.mark.parametrize("nested", [False, True])
def test_text_that_is_not_utf8_is_no_value(nested: bool) -> None:
    text = pa.array([b"ok", b"caf\xe9"], pa.binary()).view(pa.string())
    array = pa.ListArray.from_arrays([0, 2], text) if nested else text
    with pytest.raises(pa.ArrowInvalid, match="Invalid UTF8 sequence"):
        portable(pa.chunked_array([array]))


def test_depth_counts_lists_and_structs() -> None:
    kinds = [
        pa.int8(),
        pa.list_(pa.int8()),
        pa.struct([("a", pa.int8()), ("b", pa.list_(pa.int8()))]),
        pa.uuid(),
    ]
    assert [depth_of(kind) for kind in kinds] == [0, 1, 2, 0]


def test_maps_of_lists_of_nulls_keep_all_of_them() -> None:
    rows = [[("a", [None])], [("b", [None])], [("a", [None]), ("a", [None, None])]]
    column = pa.chunked_array([pa.array(rows, pa.map_(pa.string(), pa.list_(pa.null())))])
    assert pairs_as_lists(portable(column).to_pylist()) == pairs_as_lists(rows)
