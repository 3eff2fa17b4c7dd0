"""A CSV's values stay as they were written: a column is of another type than text only if it prints the same text."""

import csv
import datetime
import io
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskrcnn.errors import UsageError
from maskrcnn.io.manifests.csv_manifest import check_utf8, csv_texts, typed, typed_columns


def parse_csv(source: str, data: bytes) -> pa.Table:
    return typed_columns(source, csv_texts(source, data))


def column_of(*texts: str) -> pa.ChunkedArray:
    return typed(pa.chunked_array([list(texts)], pa.string()))


def printed(value: Any) -> str:
    """Return a value as Python prints it: numbers and days so do JSON, pandas and SQL too."""
    return "" if value is None else str(value)


# Texts that some reader of CSV takes for a number, a date, a boolean or nothing, and others that are one.
ODD = st.sampled_from(
    "007 00501 0x1a2b 12345678901234567890 1.10 2.0 10.00 NA N/A null NULL None nan NaN inf -inf -0 -0.0 +1 1e5 "
    "1E5 1e+16 1e-05 1_000 .5 5. 1. 0 -1 7 9223372036854775807 9223372036854775808 -9223372036854775808 1234.5 "
    "true false True False TRUE yes t 1 2024-01-02 2024-02-30 2024-1-2 0001-01-01 12:30:00 12:30 24:00:00 23:59:60 "
    "2024-01-02T03:04:05 2024-01-02T03:04:05Z ٣ ½ 1,5 é 0.30000000000000004 0.300000000000000044 5e-324 1e400".split()
) | st.sampled_from(
    ["", " 7", "7 ", " ", "\t1.5", "2024-01-02 03:04:05", "2024-01-02 03:04:05.123", "two\nlines", '"']
)
NUMBERS = st.integers(-(2**70), 2**70).map(str) | st.floats().map(repr)
DAYS = st.dates().map(str) | st.datetimes().map(str) | st.times().map(str)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=4)


@pytest.mark.slow
@given(st.lists(ODD | NUMBERS | DAYS | TEXT, min_size=1, max_size=4))
@settings(max_examples=300)
@example(["7", "NA"])
@example(["true", "False"])
@example(["1", "2.5"])
@example(["", ""])
def test_every_value_prints_as_it_was_written(texts: list[str]) -> None:
    column = column_of(*texts)
    again = [printed(value) for value in column.to_pylist()]
    if column.type == pa.bool_() and "True" not in texts and "False" not in texts:
        again = [text.lower() for text in again]  # as SQL and JSON print them
    assert again == texts


@given(st.data())
@settings(max_examples=60)
def test_values_of_one_kind_get_its_type(data: st.DataObject) -> None:
    """The law above would hold if all stayed text: what prints back does become a number, a day, or a boolean."""
    kind, values = data.draw(
        st.sampled_from(
            [
                (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
                (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
                (pa.bool_(), st.booleans()),
                (pa.date32(), st.dates(datetime.date(1000, 1, 1))),
                (pa.timestamp("ms"), st.datetimes(datetime.datetime(1000, 1, 1)).map(without_fraction)),
                (pa.time32("ms"), st.times().map(without_fraction)),
            ]
        )
    )
    given_values = data.draw(st.lists(values | st.none(), min_size=1).filter(any_value))
    column = column_of(*map(printed, given_values))
    assert column.type == kind
    assert column.to_pylist() == given_values


def without_fraction(moment: Any) -> Any:
    return moment.replace(microsecond=0)


def any_value(values: list[Any]) -> bool:
    return any(value is not None for value in values)


@pytest.mark.parametrize(
    "texts",
    [
        *(["007", "012"], ["0x1a2b"], ["12345678901234567890"], ["1.10", "2.0"], ["+1"], ["1e5"]),
        *([" 1"], ["-0"], ["nan", "1.5"], ["NA", "7"], ["1", "2.5"], ["true", "False"]),
    ],
    ids=" ".join,
)
def test_what_a_number_would_change_is_text(texts: list[str]) -> None:
    assert column_of(*texts).to_pylist() == texts


def test_an_empty_field_is_null_except_in_text() -> None:
    assert column_of("1", "").to_pylist() == [1, None]
    assert column_of("a", "").to_pylist() == ["a", ""]
    assert column_of("", "").to_pylist() == [None, None]


# Whole files


@pytest.mark.parametrize(
    "text",
    ['uri,a\ni0.png,"unclosed\ni1.png,b\n', 'uri,a\ni0.png,"a\ni1.png,"b"\ni2.png,c\n', 'uri,a\ni0.png,"x'],
)
def test_a_quote_that_does_not_end_swallows_no_lines(text: str) -> None:
    with pytest.raises(UsageError, match="begins in line 2 or after it does not end: close its quotes"):
        parse_csv("m.csv", text.encode())


def test_quotes_within_a_value_are_doubled_or_stand_alone() -> None:
    table = parse_csv("m.csv", b'uri,a\n1,"say ""hi"""\n2,5" pipe\n3,"two\nlines"\n')
    assert table["a"].to_pylist() == ['say "hi"', '5" pipe', "two\nlines"]


@given(
    st.lists(st.lists(ODD | TEXT, min_size=2, max_size=2), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
@settings(max_examples=60)
def test_a_file_has_the_values_that_a_csv_writer_wrote(rows: list[list[str]], end: str) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["uri", "note"], *rows])
    table = parse_csv("m.csv", file.getvalue().encode())
    assert table.column_names == ["uri", "note"]
    assert table["uri"].to_pylist() == [row[0] for row in rows]
    assert table["note"].equals(column_of(*(row[1] for row in rows)))


def test_uris_names_and_etags_are_text_whatever_they_look_like() -> None:
    [row] = parse_csv("m.csv", b"uri,name,etag,n\n1,2,3,4\n").to_pylist()
    assert row == {"uri": "1", "name": "2", "etag": "3", "n": 4}


def test_what_keeps_a_column_from_being_numbers_is_said(caplog: pytest.LogCaptureFixture) -> None:
    lines = ["uri,site,depth,code,note,n", "1,1,2.5,1.10,x,1", "2,007,2,2,7,2", "3,8,,3.0,1,3"]
    with caplog.at_level("INFO"):
        parse_csv("m.csv", "\n".join(lines).encode())
    assert caplog.messages == [
        "m.csv: columns kept as text, because as numbers they would not print as they were written: "
        "'site' (for '007'), 'depth' (for '2'), 'code' (for '1.10')"
    ]


def test_line_ends_may_be_mixed() -> None:
    rows = parse_csv("m.csv", b"uri,n\ra,1\r\nb,2\nc,3\r").to_pylist()
    assert rows == [{"uri": "a", "n": 1}, {"uri": "b", "n": 2}, {"uri": "c", "n": 3}]


def test_a_file_of_names_alone_has_no_rows() -> None:
    assert parse_csv("m.csv", b"uri,n\n").num_rows == 0


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_another_encoding_is_refused_by_its_line(end: str) -> None:
    lines = end.join(["uri", "a", "größe", "b"])
    assert check_utf8("m.csv", b"\xef\xbb\xbf" + lines.encode()) == lines.encode()
    with pytest.raises(UsageError, match=r"m\.csv: line 3 is not UTF-8: save it as UTF-8"):
        check_utf8("m.csv", lines.encode("latin-1"))
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        with pytest.raises(UsageError, match="UTF-16 or not text: save it as UTF-8"):
            check_utf8("m.csv", lines.encode(encoding))
    with pytest.raises(UsageError, match="ends within a character"):
        check_utf8("m.csv", "é".encode()[:1])


def test_characters_at_a_boundary_of_pieces_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.io.manifests.csv_manifest._DECODED_BYTES", 3)
    assert check_utf8("m.csv", "aé核\U0001f600".encode()) == "aé核\U0001f600".encode()
