"""Read an S3 Inventory: a list of a bucket's objects that S3 writes each day, as a listing without requests for it.

Reference: Amazon S3 User Guide, "Locating your inventory list" (`manifest.json`) and "Inventory list" (the columns).
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Final
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from ...errors import RunError, UsageError, plural
from ...schema import SKIPPED
from ..inputs import INPUTS
from ..reporting import reported
from ..url import Url
from .csv_manifest import LARGEST_CSV_BYTES
from .parquet_manifest import parquet_errors
from .skipped import skipped_files
from .text_files import read_bytes

log = logging.getLogger("maskrcnn")

HEAD_BYTES: Final = 2**16
OLD_VERSION: Final = "an old version"
DELETED: Final = "deleted: the latest version is a delete marker"
_AT_ONCE: Final = 8
_S3_SCHEMES: Final = ("s3", "s3a")
_BUCKET_ARN: Final = re.compile(r"arn:[^:]+:s3:::")
_COLUMNS: Final = {
    "key": "Key",
    "size": "Size",
    "e_tag": "ETag",
    "is_latest": "IsLatest",
    "is_delete_marker": "IsDeleteMarker",
}
"""Names of columns in Parquet, and in the schema of a CSV."""

Open = Callable[[str], BinaryIO]
"""Opens a file by its path or URL; raises FileNotFoundError and RunError."""


@dataclass(frozen=True, slots=True)
class _Inventory:
    source: str
    columns: tuple[str, ...]
    """Of a CSV, in their order; those of Parquet stand in its files."""
    is_csv: bool
    bucket: str
    """Whose objects are listed."""
    destination: str
    """The bucket where the inventory was written."""
    files: tuple[dict[str, Any], ...]


def begins_as_inventory(head: bytes) -> bool:
    """Return whether a JSON is the `manifest.json` of an inventory, by its first `HEAD_BYTES`."""
    return re.search(rb'"fileSchema"\s*:', head) is not None


def read_inventory(source: str, opened: Open, images_root: str | None = None) -> tuple[pa.Table, pa.Table]:
    """Return the objects of an inventory as a listing.

    Its data files are where the manifest says, or else beside it, as copied with it.

    Args:
        source: path or URL of its `manifest.json`.
        opened: opens its files.
        images_root: base of the keys; None: the bucket that was listed.

    Returns:
        The objects, of `inputs.INPUTS`; and those left out, of `schema.SKIPPED`: old versions, and deleted objects.
        Keys that end in `/` mark folders, and are in neither.

    Raises:
        UsageError: it is of the format ORC, is damaged, or a file of it is missing.
        RunError: the store failed.
    """
    inventory = _manifest(source, opened)
    root = images_root or f"s3://{inventory.bucket}"
    place = _place_of_files(inventory, opened)
    tables, skipped = [INPUTS.empty_table()], [SKIPPED.empty_table()]

    def line(_: int, read: int) -> str:
        files = plural(len(inventory.files), "file")
        objects = plural(sum(len(table) for table in tables), "object")
        return f"read {read:,} of {files} of the inventory: {objects} so far"

    starts = range(0, len(inventory.files), _AT_ONCE)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="inventory") as pool:
        for start in reported(starts, line, lambda start: len(inventory.files[start : start + _AT_ONCE])):
            some = inventory.files[start : start + _AT_ONCE]
            for rows in pool.map(lambda entry: _read(inventory, place(entry["key"]), entry, opened), some):
                uris = pc.binary_join_element_wise(root.rstrip("/"), rows["key"], "/")
                columns = [rows["key"], uris, rows["size"], rows["e_tag"]]
                for kind, left_out in _left_out(rows):
                    of_kind = pa.table([column.filter(left_out) for column in columns], schema=INPUTS)
                    skipped.append(skipped_files(of_kind, [kind] * len(of_kind)))
                kept = pc.and_(rows["is_latest"], pc.invert(rows["is_delete_marker"]))
                tables.append(pa.table([column.filter(kept) for column in columns], schema=INPUTS))
    return pa.concat_tables(tables), pa.concat_tables(skipped)


def _left_out(rows: pa.Table) -> Iterator[tuple[str, pa.ChunkedArray]]:
    yield OLD_VERSION, pc.invert(rows["is_latest"])
    yield DELETED, pc.and_(rows["is_latest"], rows["is_delete_marker"])


def _manifest(source: str, opened: Open) -> _Inventory:
    with opened(source) as file:
        content = json.loads(file.read())
    try:
        kind, schema = str(content["fileFormat"]), str(content["fileSchema"])
        bucket, destination = str(content["sourceBucket"]), str(content["destinationBucket"])
        files = tuple(dict(entry) for entry in content["files"])
        keys = [str(entry["key"]) for entry in files]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{source}: it is not a complete manifest of an S3 Inventory (at {error}): copy it again"
        ) from error
    if kind.upper() not in ("CSV", "PARQUET"):
        raise UsageError(
            f"{source}: an inventory of the format {kind} is not read: let S3 write it as Apache Parquet or CSV"
        )
    columns = tuple(name.strip() for name in schema.split(","))
    if kind.upper() == "CSV" and "Key" not in columns:
        raise UsageError(f"{source}: its `fileSchema` has no column `Key`: copy it again")
    if not keys:
        raise UsageError(f"{source}: it names no files: the bucket was empty, or the inventory is incomplete")
    bucket, destination = (_BUCKET_ARN.sub("", name) for name in (bucket, destination))
    return _Inventory(source, columns, kind.upper() == "CSV", bucket, destination, files)


def _place_of_files(inventory: _Inventory, opened: Open) -> Callable[[str], str]:
    """Return what makes a path or a URL of the key of a data file: where S3 wrote it, or where it was copied."""
    manifest = Url.parse(inventory.source)
    folder = manifest.folder
    scheme = manifest.scheme if manifest.scheme in _S3_SCHEMES else "s3"
    above = Url(folder.scheme, folder.bucket, folder.key.rstrip("/").rpartition("/")[0])

    def beside(place: Url) -> Callable[[str], str]:
        return lambda key: place.join(key.rpartition("/")[2]).text

    # S3 writes <time>/manifest.json and, beside that folder, data/.
    copied = [beside(above.join("data")), beside(folder.join("data")), beside(folder)]
    written = Url(scheme, inventory.destination, "").join
    in_s3 = [lambda key: written(key).text]
    places = in_s3 + copied if manifest.scheme in _S3_SCHEMES else copied + in_s3
    first = inventory.files[0]["key"]
    why = ""
    for place in places:
        try:
            opened(place(first)).close()
        except FileNotFoundError:
            continue
        except RunError as error:  # no access, say, to the bucket of somebody who shared a copy
            why = f" ({error})"
            continue
        return place
    looked = ", ".join(place(first) for place in places)
    raise UsageError(
        f"{inventory.source}: its file {first.rpartition('/')[2]} is at none of {looked}{why}: copy it there"
    )


def _read(inventory: _Inventory, uri: str, entry: dict[str, Any], opened: Open) -> pa.Table:
    """Return the rows of one file: `key`, `size`, `e_tag`, `is_latest`, `is_delete_marker`."""
    try:
        with opened(uri) as file:
            data = file.read()
    except FileNotFoundError as error:
        raise UsageError(f"{inventory.source}: its file {uri} is missing: copy it there") from error
    digest = entry.get("MD5checksum")
    if digest and hashlib.md5(data, usedforsecurity=False).hexdigest() != str(digest).lower():
        raise UsageError(
            f"{uri}: it is not the file that {inventory.source} names, its MD5 differs: copy it again"
        )
    rows = _read_csv(inventory, uri, data) if inventory.is_csv else _read_parquet(uri, data)
    keys = pc.sum(pc.is_null(rows["key"])).as_py() or 0
    if keys:
        raise UsageError(f"{uri}: {keys:,} of its rows have no key: copy it again")
    return rows.filter(pc.invert(pc.ends_with(rows["key"], "/")))


def _read_csv(inventory: _Inventory, uri: str, data: bytes) -> pa.Table:
    text = read_bytes(uri, io.BytesIO(data), LARGEST_CSV_BYTES * 4)
    wanted = {parquet: name for parquet, name in _COLUMNS.items() if name in inventory.columns}
    try:
        rows = (
            csv.read_csv(
                pa.BufferReader(text),
                read_options=csv.ReadOptions(column_names=inventory.columns, block_size=2**26),
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(inventory.columns, pa.string()),
                    include_columns=list(wanted.values()),
                    strings_can_be_null=True,
                    null_values=[""],
                    quoted_strings_can_be_null=True,
                ),
            )
            if text
            else None
        )
    except pa.ArrowInvalid as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{uri}: it has other columns than {inventory.source} says ({why}): copy it again"
        ) from error
    columns = {} if rows is None else {parquet: rows[name] for parquet, name in wanted.items()}
    if "key" in columns:
        encoded = pc.match_substring_regex(columns["key"], "[%+]")
        keys = columns["key"].to_pylist() if pc.any(encoded).as_py() else None
        if keys is not None:
            columns["key"] = pa.chunked_array([[key and unquote_plus(key) for key in keys]], pa.string())
    return _completed(uri, columns)


def _read_parquet(uri: str, data: bytes) -> pa.Table:
    file = io.BytesIO(data)
    with parquet_errors(uri, file):
        names = [name for name in _COLUMNS if name in pq.read_schema(file).names]
        if "key" not in names:
            raise UsageError(f"{uri}: it has no column `key`, as an inventory has: copy it again")
        rows = pq.ParquetFile(file).read(columns=names, use_threads=False)
    return _completed(uri, {name: rows[name] for name in names})


def _completed(uri: str, columns: dict[str, pa.ChunkedArray]) -> pa.Table:
    """Return all columns with their types; those that the inventory was not asked for are null, or the latest."""
    n_rows = len(next(iter(columns.values()), ()))
    types = {"key": pa.string(), "size": pa.int64(), "e_tag": pa.string()}
    flags = {"is_latest": True, "is_delete_marker": False}
    try:
        found = {
            name: columns[name].cast(kind) if name in columns else pa.chunked_array([pa.nulls(n_rows, kind)])
            for name, kind in types.items()
        }
        for name, default in flags.items():
            given = columns[name].cast(pa.bool_()) if name in columns else None
            found[name] = (
                pa.chunked_array([pa.array([default] * n_rows, pa.bool_())])
                if given is None
                else pc.fill_null(given, default)
            )
    except pa.ArrowInvalid as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{uri}: it is not the file of an inventory ({why}): copy it again") from error
    return pa.table(found)
