"""Values of JSON in a table: every number and text as it was, or the JSON itself."""

import json
import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskrcnn.io.manifests.json_columns import MAX_PATHS, column_of, exact_number

DIGITS = st.text("0123456789", min_size=1, max_size=25)


@given(DIGITS, DIGITS, st.none() | st.integers(-400, 400))
def test_a_number_keeps_its_value(whole: str, fraction: str, exponent: int | None) -> None:
    text = f"{int(whole)}.{fraction}" + ("" if exponent is None else f"e{exponent}")
    number = exact_number(text)
    assert Decimal(repr(number) if isinstance(number, float) else number) == Decimal(text)
    if isinstance(number, float):
        assert math.isfinite(number)


@pytest.mark.parametrize(
    "text", ["1.5", "0.1", "1.50", "1e5", "-0.0", "0.30000000000000004", "1E-7", "640.0"]
)
def test_ordinary_numbers_are_doubles(text: str) -> None:
    assert exact_number(text) == float(text)
    assert isinstance(exact_number(text), float)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.sampled_from([1.5, 2.0, 1e300, "a", "b"]),
    lambda of: st.lists(of, max_size=3) | st.dictionaries(st.sampled_from("xy"), of, max_size=2),
    max_leaves=5,
)  # fmt: skip


@pytest.mark.slow
@given(st.lists(VALUES, max_size=4))
@settings(max_examples=200)
@example([{}, {"x": {}}])
def test_values_come_back_or_their_json_does(values: list[Any]) -> None:
    column = column_of(values)
    found = column.to_pylist()
    if column.type == pa.string() and any(not isinstance(value, str | None) for value in values):
        assert [json.loads(text) for text in found] == values
    else:
        assert list(map(without_nulls, found)) == list(map(without_nulls, values))


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that it does not have: a struct has all keys of its column."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return list(map(without_nulls, value)) if isinstance(value, list) else value


@pytest.mark.parametrize(
    "values",
    [
        [1, "a"],
        [True, 1],
        [2**63, 1],
        [2**53 + 1, 0.5],
        [[1], {"x": 1}],
        [exact_number("12345678901234567890.5"), 1.5],
    ],
    ids=str,
)
def test_unlike_values_are_json(values: list[Any]) -> None:
    assert column_of(values).to_pylist() == [json.dumps(value, default=str) for value in values]


def test_depth_and_keys_are_bounded() -> None:
    """Each level, and each key of an object, would be a level or a column of Parquet."""
    value: Any = 1
    for _ in range(900):
        value = [value]
    assert column_of([value]).to_pylist() == [json.dumps(value)]
    by_key = [{f"image {row}": 1} for row in range(MAX_PATHS + 1)]
    assert column_of(by_key).to_pylist() == [json.dumps(value) for value in by_key]
    assert pa.types.is_struct(column_of(by_key[:MAX_PATHS]).type)
