"""Read the rows of a manifest of any format, in one file or in several."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .csv_manifest import LARGEST_CSV_BYTES, csv_texts, typed_columns
from .json_lines import read_json_lines
from .manifest_columns import check_columns
from .parquet_manifest import LARGEST_COLUMN_BYTES, parquet_errors, read_parquet_manifest
from .several_files import united, with_partitions
from .sources import manifest_suffix, open_source, usage_errors
from .text_files import GZIP, read_text

T = TypeVar("T")

_AT_ONCE: Final = 16
"""Files that are read side by side."""


def read_manifest(source: str, files: pa.Table | None = None) -> pa.Table:
    """Return the rows of a manifest with the columns that it has: of all formats but `.json`.

    Of a Parquet file, columns of large values of bytes are left out, with a warning.

    Args:
        source: the manifest.
        files: `name` and `uri` of its files, in their order, all of one format; None: it is one.

    Raises:
        UsageError: it cannot be read, has no column `uri`, or is larger than a manifest may be.
    """
    uris = [source] if files is None else files["uri"].to_pylist()
    with usage_errors(source):
        table, counts = _READERS[manifest_suffix(uris[0]).removesuffix(GZIP)](source, uris)
    return table if files is None else with_partitions(table, files["name"].to_pylist(), counts)


def _each(pool: ThreadPoolExecutor, read: Callable[[str], T], uris: Sequence[str]) -> Iterator[tuple[str, T]]:
    """Yield what is read of each file, in order, some of them side by side."""

    def reading(uri: str) -> T:
        with usage_errors(uri):
            return read(uri)

    for start in range(0, len(uris), _AT_ONCE):
        some = uris[start : start + _AT_ONCE]
        yield from zip(some, pool.map(reading, some), strict=True)


def _side_by_side(read: Callable[[str], T], uris: Sequence[str]) -> dict[str, T]:
    """Return what is read of each file, in order."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="manifest") as pool:
        return dict(_each(pool, read, uris))


def _text(uri: str, limit: int = LARGEST_CSV_BYTES) -> bytes:
    with open_source(uri) as file:
        return read_text(uri, file, limit)


def _counted(source: str, tables: Mapping[str, pa.Table]) -> tuple[pa.Table, list[int]]:
    return united(source, tables), [len(table) for table in tables.values()]


def _read_txts(source: str, uris: Sequence[str]) -> tuple[pa.Table, list[int]]:
    return _counted(source, _side_by_side(_read_txt, uris))


def _read_txt(uri: str) -> pa.Table:
    data = _text(uri, LARGEST_COLUMN_BYTES)
    # Lines are the spans up to line ends, which `rtrim` then removes: no loop, one copy.
    codes = np.frombuffer(data, np.uint8)
    is_end = codes == ord("\n")
    is_end |= (codes == ord("\r")) & ~np.append(is_end[1:], False)  # CR alone, as old editors end lines
    ends = np.flatnonzero(is_end) + 1
    rest = [len(data)] if len(data) and not is_end[-1] else []
    offsets = np.concatenate([[0], ends, rest]).astype(np.int64)
    spans = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    lines = pc.ascii_rtrim(spans.cast(pa.large_string()), characters="\r\n").cast(pa.string())
    return pa.table({"uri": _trimmed(lines.filter(pc.not_equal(pc.utf8_trim_whitespace(lines), "")))})


def _trimmed(uris: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.utf8_trim(uris, characters=" \t")


def _read_csvs(separator: str, source: str, uris: Sequence[str]) -> tuple[pa.Table, list[int]]:
    texts, counts = _counted(source, _side_by_side(partial(_read_csv, separator), uris))
    return typed_columns(source, texts), counts


def _read_csv(separator: str, uri: str) -> pa.Table:
    """Return a file's columns as text; what type they have is decided by the values of all files."""
    texts = csv_texts(uri, _text(uri), separator)
    check_columns(uri, texts.schema)
    return texts.set_column(texts.column_names.index("uri"), "uri", _trimmed(texts["uri"]))


def _read_json_lines(source: str, uris: Sequence[str]) -> tuple[pa.Table, list[int]]:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="manifest") as pool:
        return read_json_lines(source, _each(pool, _text, uris))


def _read_parquets(source: str, uris: Sequence[str]) -> tuple[pa.Table, list[int]]:
    return _counted(source, _side_by_side(_read_parquet, uris))


def _read_parquet(uri: str) -> pa.Table:
    with open_source(uri) as file, parquet_errors(uri, file):
        return read_parquet_manifest(uri, file)


_READERS: Final[dict[str, Callable[[str, Sequence[str]], tuple[pa.Table, list[int]]]]] = {
    ".txt": _read_txts,
    ".csv": partial(_read_csvs, ","),
    ".tsv": partial(_read_csvs, "\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquets,
}
