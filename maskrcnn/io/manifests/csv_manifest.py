"""Read a CSV or a TSV whose values stay as they were written.

A column becomes one of integers, numbers, booleans, dates or times only if each of its values, printed again, is the
text that stands in the file: `7` does, `007`, `+7`, `1.10`, `1e5`, `0x7`, ` 7` and 20 digits do not. All other columns
stay text, character for character; `NA`, `null` and `nan` are text. An empty field is the empty text in a column of
text, and null in any other; a column without any value is null.
"""

import codecs
import contextlib
import csv as python_csv
import io
import logging
import math
import re
from collections.abc import Iterator
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, types

from ...errors import UsageError, plural

log = logging.getLogger("maskrcnn")

LARGEST_CSV_BYTES: Final = 2**30
_TEXT: Final = ("uri", "name", "etag")
"""Columns that are text whatever they contain."""
_INTEGER: Final = r"^(?:0|-?[1-9][0-9]{0,18})$"
_NUMBER: Final = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:e[+-][0-9]+)?$"
_DIGITS: Final = r"^[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*$"
"""What a reader that guesses takes for a decimal number."""
_DAY: Final = r"[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}"
_CLOCK: Final = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"


def csv_texts(source: str, data: bytes, separator: str = ",") -> pa.Table:
    """Return the columns of a CSV or TSV as text: UTF-8 without a byte order mark; lines end in LF, CR LF or CR.

    Args:
        source: its name, for messages.
        data: its content.
        separator: of the columns, a comma or a tab.

    Raises:
        UsageError: it is empty, its columns are separated by something else, a quoted value does not end, or a line has
            more or fewer values than the header.
    """
    if not data.strip():
        raise UsageError(f"{source}: it is empty: write a header with a column `uri`, and a line per input")
    _check_quotes(source, data, separator)
    parsing = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    try:
        names = _column_names(data, parsing)
    except pa.ArrowInvalid as error:
        raise _ragged(source, data, separator) or error from error
    for other, word in _SEPARATORS.items():
        if other != separator and len(names) == 1 and other in names[0]:
            raise UsageError(
                f"{source}: no column `uri`, its columns are separated by {word}: separate them by "
                f"{_SEPARATORS[separator]}"
            )
    try:
        return csv.read_csv(
            pa.BufferReader(data),
            read_options=csv.ReadOptions(block_size=max(len(data), 1)),
            parse_options=parsing,
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _ragged(source, data, separator) or error from error


def typed_columns(source: str, texts: pa.Table) -> pa.Table:
    """Return columns of texts as types whose values print as the texts do, and say which look like numbers and are not.

    Args:
        source: the manifest, for the log.
        texts: its columns; null where one of several files has no such column.
    """
    columns, numbers = [], []
    for name, column in zip(texts.column_names, texts.itercolumns(), strict=True):
        columns.append(column if name in _TEXT else typed(column))
        if name not in _TEXT and types.is_string(columns[-1].type) and (odd := _unlike_a_number(columns[-1])):
            numbers.append(f"{name!r} (for {odd!r})")
    if numbers:
        log.info(
            "%s: columns kept as text, because as numbers they would not print as they were written: %s",
            source,
            ", ".join(numbers[:12]) + (", …" if len(numbers) > 12 else ""),
        )
    return pa.table(columns, names=texts.column_names)


_SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs"}


def _ragged(source: str, data: bytes, separator: str) -> UsageError | None:
    """Return the error for the first line that has more or fewer values than the header; None if there is none."""
    header, last = 0, 0
    with _long_fields(data):
        rows = python_csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator)
        for row in rows:
            first, last = last + 1, rows.line_num
            if row and not header:
                header = len(row)
            elif row and len(row) != header:
                return UsageError(
                    f"{source}: line {first:,} has {plural(len(row), 'value')}, and the header {header:,}: give each "
                    f"line one value per column, and put a value that contains {_SEPARATORS[separator]} in quotes"
                )
    return None


@contextlib.contextmanager
def _long_fields(data: bytes) -> Iterator[None]:
    """Let Python's reader take values as long as the file."""
    limit = python_csv.field_size_limit(len(data) + 1)
    try:
        yield
    finally:
        python_csv.field_size_limit(limit)


def _check_quotes(source: str, data: bytes, separator: str) -> None:
    """Refuse a value whose quotes do not end where the value does: it would swallow the lines that follow."""
    if b'"' not in data:
        return
    rows = python_csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator, strict=True)
    last = 0
    with _long_fields(data):
        try:
            for _ in rows:
                last = rows.line_num
        except python_csv.Error as error:
            raise UsageError(
                f"{source}: the value in quotes that begins in line {last + 1} or after it does not end: close its "
                "quotes, and write "
                'a quote inside it as ""'
            ) from error


def _unlike_a_number(texts: pa.ChunkedArray) -> str | None:
    """Return one of a column's texts that stands in the way of a column of numbers; None where others do, too."""
    values = texts.filter(pc.not_equal(texts, ""))
    if not len(values) or not (_all_match(values.slice(0, 1000), _DIGITS) and _all_match(values, _DIGITS)):
        return None
    some: list[str] = values.to_pylist()
    odd = (text for text in some if not re.fullmatch(_INTEGER, text) and repr(float(text)) != text)
    return next(odd, None) or next(text for text in some if re.fullmatch(_INTEGER, text))


def _column_names(data: bytes, parsing: csv.ParseOptions) -> list[str]:
    block = max(len(data), 1)
    try:
        skipping = csv.ReadOptions(block_size=block, skip_rows_after_names=2**31 - 1)
        table = csv.read_csv(pa.BufferReader(data), read_options=skipping, parse_options=parsing)
    except pa.ArrowInvalid:  # there are no rows to skip, or it is no CSV
        table = csv.read_csv(
            pa.BufferReader(data), read_options=csv.ReadOptions(block_size=block), parse_options=parsing
        )
    names: list[str] = table.column_names
    return names


def typed(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of texts as a type whose values print as the texts do; as it is if there is none.

    >>> [typed(pa.chunked_array([values])).type for values in (["7", ""], ["7", "007"], ["1.5"], ["1.50"])]
    [DataType(int64), DataType(string), DataType(double), DataType(string)]
    """
    values = pc.if_else(pc.equal(texts, ""), None, texts)
    if values.null_count == len(values):
        return values
    for shape, convert in _TYPES:
        if _all_match(values.slice(0, 1000), shape) and _all_match(values, shape):
            converted = convert(values)
            if converted is not None:
                return converted
    return texts


def _all_match(values: pa.ChunkedArray, shape: str) -> bool:
    return pc.all(pc.match_substring_regex(values, shape)).as_py() is not False


def _as_integers(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    return _cast(values, pa.int64())


def _as_numbers(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    # Python's shortest text of a double is that of JSON, pandas and DuckDB too.
    texts = (text for text in values.drop_null().to_pylist())
    numbers = ((text, float(text)) for text in texts)
    if not all(repr(number) == text and math.isfinite(number) for text, number in numbers):
        return None
    return values.cast(pa.float64())


def _as_booleans(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    return pc.equal(pc.ascii_lower(values), "true")


def _as_days(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    return _cast(values, pa.date32())


def _as_moments(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    moments = _cast(values, pa.timestamp("s"))
    return None if moments is None else moments.cast(pa.timestamp("ms"))  # Parquet has no seconds


def _as_clock_times(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    dated = _cast(pc.binary_join_element_wise("2000-01-01", values, " "), pa.timestamp("s"))
    return None if dated is None else dated.cast(pa.time32("s")).cast(pa.time32("ms"))


def _cast(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Return texts as another type; None if one cannot be parsed, or does not print back."""
    try:
        converted = values.cast(kind)
    except pa.ArrowInvalid:  # not a day of the calendar, or more than 64 bits
        return None
    return converted if converted.cast(pa.string()).equals(values) else None


_TYPES: Final = (
    (_INTEGER, _as_integers),
    (_NUMBER, _as_numbers),
    (r"^(?:true|false)$", _as_booleans),
    (r"^(?:True|False)$", _as_booleans),  # as Python and pandas write them
    (rf"^{_DAY}$", _as_days),
    (rf"^{_DAY} {_CLOCK}$", _as_moments),
    (rf"^{_CLOCK}$", _as_clock_times),
)


def check_utf8(source: str, data: bytes) -> bytes:
    """Return a text file's bytes without a byte order mark.

    Raises:
        UsageError: it is not UTF-8.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:64]:
        raise UsageError(f"{source}: it is UTF-16 or not text: save it as UTF-8")
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    for start in range(0, len(data), _DECODED_BYTES):
        try:
            decoder.decode(view[start : start + _DECODED_BYTES])
        except UnicodeDecodeError as error:
            ends = (data.count(end, 0, start + error.start) for end in (b"\n", b"\r"))
            line = max(ends) + 1
            raise UsageError(f"{source}: line {line:,} is not UTF-8: save it as UTF-8") from error
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: it ends within a character of UTF-8: save it as UTF-8") from error
    return data.removeprefix(b"\xef\xbb\xbf")


_DECODED_BYTES: Final = 2**24
