"""One manifest in several files: no value is lost or changed, and a contradiction is one line that names both files."""

from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import UsageError
from maskrcnn.io.manifests.several_files import united, with_partitions

KINDS = [pa.int8(), pa.int64(), pa.uint16(), pa.float32(), pa.float64(), pa.string(), pa.bool_(), pa.date32()]
KINDS += [pa.decimal128(9, 2), pa.timestamp("ms"), pa.list_(pa.int32()), pa.struct([("a", pa.int8())])]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int8": st.integers(-128, 127),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint16": st.integers(0, 2**16 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "string": st.text(st.characters(codec="utf-8"), max_size=3),
    "bool": st.booleans(),
    "date32[day]": st.dates(),
    "decimal128(9, 2)": st.decimals(-1000, 1000, places=2),
    "timestamp[ms]": st.datetimes().map(lambda moment: moment.replace(microsecond=0)),
    "list<item: int32>": st.lists(st.integers(-9, 9), max_size=2),
    "struct<a: int8>": st.fixed_dictionaries({"a": st.integers(-9, 9)}),
}


@st.composite
def tables(draw: st.DrawFn) -> dict[str, pa.Table]:
    found = {}
    for number in range(draw(st.integers(1, 4))):
        count = draw(st.integers(0, 3))
        columns = {"uri": pa.array([f"{number}-{row}" for row in range(count)], pa.string())}
        for name in draw(st.sets(st.sampled_from("xy"))):
            kind = draw(st.sampled_from(KINDS))
            values = draw(st.lists(VALUES[str(kind)] | st.none(), min_size=count, max_size=count))
            columns[name] = pa.array(values, kind)
        found[f"{number}.parquet"] = pa.table(columns)
    return found


@given(tables())
@settings(max_examples=100)
def test_every_value_comes_out_as_it_went_in_or_two_files_are_named(parts: dict[str, pa.Table]) -> None:
    said = ""
    try:
        table = united("lists/", parts)
    except UsageError as error:
        said = str(error)
    if said:
        assert sum(name in said for name in parts) == 2
        assert "\n" not in said
        return
    rows = [row for part in parts.values() for row in part.to_pylist()]
    assert len(table) == len(rows)
    for row, given_row in zip(table.to_pylist(), rows, strict=True):
        for name, value in row.items():
            assert value == given_row.get(name)  # 7 equals 7.0, and True is no 1 here: booleans stay booleans
            assert isinstance(value, bool) == isinstance(given_row.get(name), bool)


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (pa.array([1], pa.int8()), pa.array([2**40]), pa.int64()),
        (pa.array([7]), pa.array([1.5]), pa.float64()),
        (pa.array([None], pa.string()), pa.array([1]), pa.int64()),
        (pa.array([1]), pa.array([None], pa.string()), pa.int64()),
        (pa.array([1], pa.timestamp("ms")), pa.array([1], pa.timestamp("us")), pa.timestamp("us")),
    ],
    ids=str,
)
def test_numbers_of_several_widths_and_columns_without_values_agree(
    first: pa.Array, second: pa.Array, kind: pa.DataType
) -> None:
    table = united("lists/", {"a": pa.table({"n": first}), "b": pa.table({"n": second})})
    assert table.schema.field("n").type == kind


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array([1]), pa.array(["1"])),
        (pa.array([True]), pa.array([1])),
        (pa.array([2**53 + 1]), pa.array([0.5])),
        (pa.array([1], pa.decimal128(5, 2)), pa.array([0.5])),
        (pa.array(["a"]), pa.array([b"a"])),
        (pa.array([1], pa.timestamp("ms")), pa.array([1], pa.timestamp("ms", "UTC"))),
        (pa.array([2**63], pa.uint64()), pa.array([-1])),
    ],
    ids=str,
)
def test_types_that_would_change_a_value_contradict_each_other(first: pa.Array, second: pa.Array) -> None:
    with pytest.raises(UsageError, match=r"^[ab]: the column 'n' has values of type .*, and in [ab] of type"):
        united("lists/", {"a": pa.table({"n": first}), "b": pa.table({"n": second})})


SITES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=4).filter(
    lambda text: text.lower() not in ("true", "false")  # which Python prints otherwise
)


@given(
    st.lists(st.tuples(st.integers(1, 9999), SITES | st.none(), st.integers(0, 3)), min_size=1, max_size=4)
)
def test_hives_folders_are_columns(parts: list[tuple[int, str | None, int]]) -> None:
    names = [
        f"year={year}/site={'__HIVE_DEFAULT_PARTITION__' if site is None else quote(site, safe='')}/0.parquet"
        for year, site, _ in parts
    ]
    table = pa.table({"row": range(sum(count for *_, count in parts))})
    found = with_partitions(table, names, [count for *_, count in parts]).to_pylist()
    expected = [(year, site) for year, site, count in parts for _ in range(count)]
    as_text = [(row["year"], None if row["site"] is None else str(row["site"])) for row in found]
    assert as_text == [(year, site) for year, site in expected]


def test_a_column_that_its_folder_repeats_must_agree_with_it() -> None:
    table = pa.table({"uri": ["a", "b"], "year": [2024, 2025]})
    names = ["year=2024/0.parquet", "year=2025/0.parquet"]
    assert with_partitions(table, names, [1, 1]) == table
    with pytest.raises(UsageError, match=r"^year=2026/0.parquet: the column 'year' has values other than"):
        with_partitions(table, ["year=2024/0.parquet", "year=2026/0.parquet"], [1, 1])
