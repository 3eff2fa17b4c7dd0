"""The inputs, listed once: a table in order of name, frozen for the run as `manifest.parquet`.

Whatever a user points at (a folder, a glob, a prefix, a list, a table, a COCO JSON) becomes the columns of
`schema.MANIFEST` and the user's further columns. All of it is columnar: a million inputs take seconds.
"""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UsageError
from ..formats.coco_reader import find_images_root, read_coco_images
from ..io.sources import as_json, is_manifest, read_listing, read_manifest, source_of
from ..io.stores import REMOTE_SCHEMES
from ..io.url import LOCAL_SCHEMES, USER_PATTERN, Url
from ..schema import IMAGES, MANIFEST, METADATA
from .manifest import FILE_NAME, ManifestReader, ShardReader, write_manifest

__all__ = [
    "FILE_NAME",
    "Inputs",
    "ManifestReader",
    "ShardReader",
    "read_inputs",
    "source_of",
    "write_manifest",
]

log = logging.getLogger("maskrcnn")

_SCHEME: Final = r"^[A-Za-z][A-Za-z0-9+.-]*://"
_KNOWN_SCHEME: Final = rf"^(?i:{'|'.join((*REMOTE_SCHEMES, *LOCAL_SCHEMES))})://"
_WEB: Final = r"^(?i:https?)://"
_RELATIVE_FILE: Final = rf"^(?i:{'|'.join(LOCAL_SCHEMES)})://([^/]|$)"
_QUERY: Final = r"(?s)[?#].*"
"""Of a uri on the web: it may be a signature, and is in no name and no message."""
_URI_SYNONYMS: Final = (
    "url",
    "path",
    "image",
    "image_path",
    "file",
    "file_name",
    "filename",
    "key",
    "s3_uri",
)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a user pointed at."""

    table: pa.Table
    """`schema.MANIFEST`, then further columns; in order of `name`, as UTF-8 bytes."""
    ids_given: bool
    """Whether `image_id` is the user's; else it counts from 1."""
    skipped: dict[str, int]
    """Files that are no images by their suffix, counted by suffix; "" where there is none."""
    source: str
    """The whole path or url."""
    source_sha256: str | None
    """Of the manifest's file; None for listings."""
    kind: Literal["listing", "manifest", "coco"]


def read_inputs(
    source: str, *, images_root: str | None, limit: int | None, allow_http: bool = False
) -> Inputs:
    """List what a user points at.

    Args:
        source: a folder, a glob or a prefix, whose files with the suffix of an image count; a `.txt` of one uri
            a line; a `.csv` or `.parquet` with a column `uri`; a COCO `.json`; or a single image. Blanks around
            the uris of a `.txt` or `.csv` are taken off.
        images_root: what the relative uris of a manifest are relative to; None: the manifest's folder.
        limit: keep only the first so many, in order of name.
        allow_http: whether a manifest may name inputs on the web.

    Raises:
        UsageError: there is nothing there, it cannot be read, a row cannot stand as it is, a uri is of a scheme that
            is not read or has a password, or there is an `images_root` without a manifest.
    """
    whole, sha256 = source_of(source)
    skipped: dict[str, int] = {}
    kind: Literal["listing", "manifest", "coco"] = "listing"
    named_by = "name"
    if is_manifest(source):
        kind = "coco" if whole.lower().endswith(".json") else "manifest"
        rows = read_coco_images(whole) if kind == "coco" else read_manifest(whole)
        if not rows.num_rows:
            raise UsageError(f"{source}: no rows")
        if kind == "coco":
            named_by = "file_name"
        elif "name" not in rows.column_names:
            named_by = "uri (of a web address, without its query)" if allow_http else "uri"
        root = images_root or (_coco_root(whole, rows) if kind == "coco" else Url.parse(whole).folder.text)
        rows = _resolved(rows, root, source, allow_http=allow_http)
    elif images_root:
        raise UsageError(f"{source}: --images-root is for manifests and COCO JSON; this is neither")
    else:
        rows, skipped = read_listing(whole)
    table, ids_given = _ordered(rows, source, named_by)
    return Inputs(table if limit is None else table.slice(0, limit), ids_given, skipped, whole, sha256, kind)


def _coco_root(source: str, rows: pa.Table) -> str:
    """Return the folder of a COCO dataset's images; the JSON's, with a warning, where none of them is found."""
    try:
        return find_images_root(source, rows["name"].to_pylist())
    except UsageError as error:
        log.warning("%s", error)
        return Url.parse(source).folder.text


def _resolved(rows: pa.Table, root: str, source: str, *, allow_http: bool) -> pa.Table:
    """Return a manifest's rows with whole uris and with names."""
    if doubled := sorted({name for name in rows.column_names if rows.column_names.count(name) > 1}):
        raise UsageError(f"{source}: several columns have the name {', '.join(map(repr, doubled))}")
    if "uri" not in rows.column_names:
        raise UsageError(f"{source}: no column `uri`; {_near(rows.column_names)}")
    uris = _text(rows, "uri", source)
    missing = pc.sum(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(uris), ""), fill_value=True)).as_py()
    if missing:
        raise UsageError(f"{source}: {missing} rows without a uri")
    named = pc.if_else(
        pc.match_substring_regex(uris, _WEB), pc.replace_substring_regex(uris, _QUERY, ""), uris
    )
    if "name" in rows.column_names:
        names = _text(rows, "name", source)
        named = pc.coalesce(pc.if_else(pc.equal(names, ""), None, names), named)

    _refuse_foreign(pa.chunked_array([[root]]), "--images-root", allow_http=allow_http)
    place = Url.parse(root)
    root = str(place.local_path.absolute()) if place.is_local else root
    absolute = pc.or_(pc.match_substring_regex(uris, _SCHEME), pc.starts_with(uris, "/"))
    below = pc.replace_substring_regex(uris, r"^(\./+)+", "")
    uris = pc.if_else(absolute, uris, pc.binary_join_element_wise(root.rstrip("/"), below, "/"))
    _refuse_foreign(uris, source, allow_http=allow_http)
    others = [name for name in rows.column_names if name not in ("uri", "name")]
    return pa.table({"name": named, "uri": uris} | {name: rows[name] for name in others})


def _refuse_foreign(uris: pa.ChunkedArray, source: str, *, allow_http: bool) -> None:
    """Refuse uris that are not read here, and those with a password, which is not repeated."""

    def matching(pattern: str, among: pa.ChunkedArray) -> pa.ChunkedArray:
        return among.filter(pc.match_substring_regex(among, pattern))

    schemed = matching(_SCHEME, uris)
    on_the_web = matching(_WEB, schemed)
    unknown = schemed.filter(pc.invert(pc.match_substring_regex(schemed, f"{_KNOWN_SCHEME}|{_WEB}")))
    for refused, why in (
        (matching(USER_PATTERN, schemed), "with a user or a password; credentials come from the environment"),
        (unknown, "that are neither paths nor s3:// or gs://"),
        (matching(_RELATIVE_FILE, schemed), "of files without a whole path, file:///…"),
        (uris.slice(0, 0) if allow_http else on_the_web, "on the web, which are read with --allow-http only"),
    ):
        if len(refused):
            hidden = pc.replace_substring_regex(refused, f"{USER_PATTERN}|{_QUERY}", "…")
            raise UsageError(f"{source}: {len(refused)} uris {why}: {_some(hidden)}")


def _near(columns: Sequence[str]) -> str:
    lowered = {name.strip().lower(): name for name in columns}
    near = [lowered[name] for name in ("uri", *_URI_SYNONYMS) if name in lowered]
    near += [lowered[name] for name in difflib.get_close_matches("uri", lowered)]
    found = f"found {', '.join(map(repr, columns[:12]))}{', …' if len(columns) > 12 else ''}"
    return f"{found}. Is it {near[0]!r}? Then rename that" if near else found


def _text(rows: pa.Table, name: str, source: str) -> pa.ChunkedArray:
    if not _is_text(rows[name].type):
        raise UsageError(f"{source}: the column `{name}` holds {rows[name].type}, not text")
    return rows[name].cast(pa.string())


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in text)


# The table


def _ordered(rows: pa.Table, source: str, named_by: str) -> tuple[pa.Table, bool]:
    """Return the rows in order of name, under the columns of the contract; and whether the ids are the user's."""
    rows = rows.take(pc.sort_indices(rows["name"])).combine_chunks()
    ids = _ids(rows["image_id"]) if "image_id" in rows.column_names else None
    own = {
        "image_id": pa.array(np.arange(1, len(rows) + 1)) if ids is None else ids,
        "name": rows["name"],
        "uri": rows["uri"],
        "bytes": _integers(rows, "bytes"),
        "etag": _strings(rows, "etag"),
    }
    taken = {name for name, column in own.items() if column is not None} - (
        {"image_id"} if ids is None else set()
    )
    own = {
        name: pa.nulls(len(rows), MANIFEST.field(name).type) if column is None else column
        for name, column in own.items()
    }
    _refuse_doubles(own["name"], source, named_by)
    if ids is not None:
        _refuse_doubles(pc.take(ids, pc.sort_indices(ids)), source, "image_id")

    further: dict[str, pa.ChunkedArray] = {}
    reserved = {*IMAGES.names, *MANIFEST.names}
    for name in rows.column_names:
        if name not in taken:
            carried = name
            while (
                carried in reserved
                or carried in further
                or (carried != name and carried in rows.column_names)
            ):
                carried = f"input_{carried}"
            further[carried] = _plain(rows[name])
            if name == "image_id":
                log.warning(
                    "the ids are not all integers >= 0; images are numbered by name, "
                    "the given ids are in the column %s",
                    carried,
                )
    fields = [*MANIFEST, *(pa.field(name, column.type) for name, column in further.items())]
    schema = pa.schema(fields, metadata=METADATA)
    return pa.table([*own.values(), *further.values()], schema=schema), ids is not None


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column as int64, if all of it is integers of at least 0."""
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    try:
        ids = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return ids if pc.min(ids).as_py() >= 0 else None


def _integers(rows: pa.Table, name: str) -> pa.ChunkedArray | None:
    if name not in rows.column_names or not pa.types.is_integer(rows[name].type):
        return None
    return rows[name].cast(pa.int64())


def _strings(rows: pa.Table, name: str) -> pa.ChunkedArray | None:
    if name not in rows.column_names or not _is_text(rows[name].type):
        return None
    return rows[name].cast(pa.string())


def _refuse_doubles(values: pa.ChunkedArray, source: str, what: str) -> None:
    """Refuse values that are doubled; they are sorted."""
    again = values.slice(1).filter(pc.equal(values.slice(1), values.slice(0, len(values) - 1)))
    if len(again):
        raise UsageError(
            f"{source}: {len(again)} rows repeat the {what} of another: {_some(pc.unique(again))}"
        )


def _some(values: pa.ChunkedArray | pa.Array) -> str:
    return ", ".join(repr(value) for value in values.slice(0, 3).to_pylist()) + (
        ", …" if len(values) > 3 else ""
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a further column without its dictionary, as text where Parquet has no such type.

    Never of the type null, which readers stumble on.
    """
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if pa.types.is_null(column.type):
        return column.cast(pa.string())
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.schema([("_", column.type)]).empty_table(), sink)
        pq.ParquetFile(pa.BufferReader(sink.getvalue()))
    except (pa.ArrowNotImplementedError, OSError):  # OSError: nested too deeply to be read back
        return pa.chunked_array([as_json(column.to_pylist())])
    return column
