"""JSON Lines: a column holds what `json` reads, null where a key is missing."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import UsageError
from maskrcnn.io.manifests.json_lines import read_json_lines

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2)
)
OBJECTS = st.dictionaries(TEXT.filter(lambda key: key not in ("uri", "name")), VALUES, max_size=3)
ROWS = st.lists(st.tuples(TEXT, OBJECTS).map(lambda both: {"uri": both[0]} | both[1]), min_size=1, max_size=5)


def lines_of(rows: list[dict[str, Any]], ends: str = "\n", *, ascii_only: bool = False) -> bytes:
    return ends.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode()


def without_nulls(value: Any) -> Any:
    """Return a value without keys that are null, which structs of several keys add."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


@pytest.mark.slow
@given(ROWS, ROWS, st.sampled_from(["\n", "\r\n", "\n\n \n"]), st.booleans())
@settings(max_examples=150)
def test_what_json_reads_is_carried_as_it_is_or_as_its_json(
    first: list[dict[str, Any]], second: list[dict[str, Any]], ends: str, ascii_only: bool
) -> None:
    files = [
        ("a", lines_of(first, ends, ascii_only=ascii_only)),
        ("b", b"\n"),
        ("c", lines_of(second, ends, ascii_only=ascii_only)),
    ]
    table, counts = read_json_lines("m", files)
    assert counts == [len(first), 0, len(second)]
    rows = first + second
    assert set(table.column_names) == {key for row in rows for key in row}
    for name in table.column_names:
        expected = [row.get(name) for row in rows]
        found = table[name].to_pylist()
        if found != expected and table[name].type == pa.string():
            found = [json.loads(text) for text in found]
        assert without_nulls(found) == without_nulls(expected)


def test_lines_are_numbered_in_their_own_file() -> None:
    with pytest.raises(UsageError, match=r"^b: line 3 holds 7 instead of an object"):
        read_json_lines("m", [("a", b'{"uri": "x"}\n' * 5), ("b", b'{"uri": "x"}\n\n7\n')])
    with pytest.raises(UsageError, match=r"^b: no column `uri`; found 'url'; rename 'url' if that is meant"):
        read_json_lines("m", [("a", b'{"uri": "x"}'), ("b", b'{"url": "x"}')])
