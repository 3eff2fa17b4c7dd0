"""List the inputs once: a table in order of name, stored for the run as `manifest.parquet`.

Each kind of source (a folder, a glob, a prefix, an inventory, a list, a table, a COCO JSON) becomes the columns of
`schema.MANIFEST` and the user's additional columns. Everything is columnar: a million inputs take seconds.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from ..errors import UsageError, plural
from ..formats.coco_reader import find_images_root
from ..formats.json_images import read_json_images
from ..io.archives.list_members import find_members
from ..io.manifests.listings import read_listing
from ..io.manifests.manifest_columns import MAX_URI_BYTES
from ..io.manifests.read_manifest import read_manifest
from ..io.manifests.sources import is_inventory, is_manifest, pinned, refuse_query, source_of
from ..io.schemes import REMOTE_SCHEMES, STORES_IN_WORDS, UNSUPPORTED, unsupported
from ..io.stores.local_names import as_found
from ..io.url import AZURE_ACCOUNT_PATTERN, FILE_URI, LOCAL_SCHEMES, USER_PATTERN, Url
from ..schema import MANIFEST, METADATA, PLACE, SKIPPED
from .carried_columns import carried_columns, has_pictures, named

__all__ = [
    "Inputs",
    "read_inputs",
]

log = logging.getLogger("maskrcnn")

_SCHEME: Final = r"^[A-Za-z][A-Za-z0-9+.-]{0,31}://"
_KNOWN_SCHEME: Final = rf"^(?i:{'|'.join((*REMOTE_SCHEMES, *LOCAL_SCHEMES))})://"
_OF_HUB: Final = (
    r"^(?i:hf)://(?:datasets/|spaces/)?[^/]+/[^/@]+(?:@refs/(?:convert|pr)/[^/]+|@[^/]+)?(?P<rest>(?:/.*)?)$"
)
"""A file in a repository of the Hugging Face Hub."""
_WEB: Final = r"^(?i:https?)://"
_RELATIVE_FILE: Final = rf"^(?i:{'|'.join(LOCAL_SCHEMES)})://([^/]|$)"
_QUERY: Final = r"(?s)[?#].*"
"""The query of a web address: it may contain a signature, and is kept out of names and messages."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a run, as listed."""

    table: pa.Table
    """`schema.MANIFEST`, then additional columns; in order of `name`, as UTF-8 bytes."""
    ids_given: bool
    """Whether `image_id` is the user's; otherwise it counts from 1."""
    skipped: pa.Table
    """The files that a listing found and that are no inputs, of `schema.SKIPPED`."""
    source: str
    """The absolute path or URL."""
    source_sha256: str | None
    """Digest of the manifest's file; None for listings."""
    kind: Literal["listing", "manifest", "coco"]


def read_inputs(
    source: str,
    *,
    images_root: str | None,
    limit: int | None,
    allow_http: bool = False,
    image_column: str | None = None,
    sidecars: Sequence[str] = (),
) -> Inputs:
    """List the inputs of a source.

    Args:
        source: a folder, a glob or a prefix, whose files with the suffix of an image are taken, and what is in archives
            and tables of pictures; the `manifest.json` of an S3 Inventory, likewise; a `.txt` with one uri per line; a
            `.csv`, `.tsv`, `.jsonl` or `.parquet` with a column `uri`, or several of them, see
            `listings.manifests_among`; a `.json` of COCO, LVIS or MegaDetector; or a single image, archive or table of
            pictures. White space around the uris of a `.txt`, `.csv` or `.tsv` is removed.
        images_root: base of the relative uris of a manifest; None: the manifest's folder.
        limit: keep only this many inputs, in order of name.
        allow_http: whether a manifest may name inputs on the web.
        image_column: the column with the pictures of Parquet files; None: each has one, unless it is a manifest.
        sidecars: suffixes of files in archives that become columns of the pictures beside them.

    Raises:
        UsageError: the source does not exist or cannot be read, a row is invalid, a uri has an unsupported scheme or a
            password, or `images_root` is given without a manifest.
    """
    identity, sha256 = source_of(source, image_column)
    whole = pinned(identity)
    listing = None
    if not is_manifest(source, image_column) or is_inventory(whole):
        listing = read_listing(
            whole, images_root, has_pictures=has_pictures, image_column=image_column, sidecars=sidecars
        )
    elif image_column is not None:
        raise UsageError(f"{source}: --image-column is for Parquet files of pictures; this is a manifest")
    if sidecars and (listing is None or listing.is_manifest):
        raise UsageError(
            f"{source}: --sidecars is for archives; the columns of a manifest are carried without it"
        )
    kind: Literal["listing", "manifest", "coco"] = "manifest"
    root, named_by = images_root, "name"
    if listing is not None and not listing.is_manifest:
        if images_root and sha256 is None:
            raise UsageError(f"{source}: --images-root is for manifests and COCO JSON; this is neither")
        if images_root:
            _check_root(images_root, allow_http=allow_http)
        kind, rows = "listing", named(listing.files, source)
    elif listing is None and whole.lower().endswith(".json"):
        kind = "coco"
        rows = read_json_images(whole, from_web=allow_http and images_root is None)
        named_by = "file_name"
        root = root or _coco_root(whole, rows)
    else:
        files = None if listing is None else listing.files
        rows = read_manifest(whole, files)
        if "name" not in rows.column_names:
            named_by = "uri (of a web address, without its query)" if allow_http else "uri"
        root = root or (Url.parse(whole).folder.text if files is None else _common_folder(files))
    if not rows.num_rows:
        raise UsageError(f"{source} has no rows: list at least one input")
    if kind != "listing":
        rows = _resolved(rows, root or "", source, allow_http=allow_http)
    table, ids_given = _ordered(rows, source, named_by, unique_ids=kind != "listing")
    table = table if limit is None else table.slice(0, limit)
    skipped = SKIPPED.empty_table() if listing is None else listing.skipped
    return Inputs(table, ids_given, skipped, identity, sha256, kind)


def _common_folder(files: pa.Table) -> str:
    """Return the folder below which a listing names its files."""
    first = files.slice(0, 1).to_pylist()[0]
    return str(first["uri"]).removesuffix(first["name"])


def _coco_root(source: str, rows: pa.Table) -> str:
    """Return the folder of a COCO dataset's images; the JSON's, with a warning, where none of them is found."""
    try:
        return find_images_root(source, rows["uri"].to_pylist())
    except UsageError as error:
        log.warning("%s", error)
        return Url.parse(source).folder.text


def _resolved(rows: pa.Table, root: str, source: str, *, allow_http: bool) -> pa.Table:
    """Return a manifest's rows with absolute uris and with names."""
    rows = named(rows, source)
    uris = _text(rows, "uri", source)
    blank = pc.or_(pc.equal(uris, ""), pc.utf8_is_space(uris))
    missing = pc.sum(pc.fill_null(blank, fill_value=True)).as_py()
    if missing:
        raise UsageError(
            f"{source}: {plural(missing, 'row')} without a uri; add one to each, or remove the rows"
        )
    on_the_web = pc.match_substring_regex(uris, _WEB)
    names = _replaced(uris, on_the_web, lambda some: pc.replace_substring_regex(some, _QUERY, ""))
    if "name" in rows.column_names:
        given = _text(rows, "name", source)
        names = pc.coalesce(pc.if_else(pc.equal(given, ""), None, given), names)

    _check_root(root, allow_http=allow_http)
    place = Url.parse(root)
    root = str(place.local_path.absolute()) if place.is_local else root
    absolute = pc.match_substring_regex(uris, rf"{_SCHEME}|{FILE_URI}|^/")
    dotted = pc.starts_with(uris, "./")
    uris = _replaced(uris, dotted, lambda some: pc.replace_substring_regex(some, r"^(\./+)+", ""))
    below = pc.invert(absolute)
    uris = _replaced(uris, below, lambda some: pc.binary_join_element_wise(root.rstrip("/"), some, "/"))
    _refuse_foreign(uris, source, allow_http=allow_http)
    others = [name for name in rows.column_names if name not in ("uri", "name")]
    uris = _replaced(uris, pc.match_substring_regex(uris, _OF_HUB), _pinned)
    table = pa.table({"name": names, "uri": _found(uris, source)} | {name: rows[name] for name in others})
    return _with_places(table)


def _pinned(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return uris of the Hugging Face Hub with the commits that their revisions stand for now."""
    rests = pc.struct_field(pc.extract_regex(uris, _OF_HUB), "rest")
    sizes = pc.subtract(pc.binary_length(uris), pc.binary_length(rests))
    roots = [
        uri.encode()[:size].decode() for uri, size in zip(uris.to_pylist(), sizes.to_pylist(), strict=True)
    ]
    commits = {root: pinned(root) for root in dict.fromkeys(roots)}
    return pc.binary_join_element_wise(pa.array([commits[root] for root in roots]), rests, "")


def _check_root(root: str, *, allow_http: bool) -> None:
    """Raise UsageError if `--images-root` is of an unsupported scheme, or has a password or a query."""
    _refuse_foreign(pa.chunked_array([[root]]), "--images-root", allow_http=allow_http)
    refuse_query(root, "--images-root")


def _with_places(rows: pa.Table) -> pa.Table:
    """Return a manifest's rows; where some are members of archives, with their places, sizes and etags."""
    in_archives = pc.match_substring(rows["uri"], "!/")
    if not pc.any(in_archives).as_py():
        return rows
    found = find_members(rows["uri"].to_pylist())
    for name in ("bytes", "etag"):
        if name not in rows.column_names:
            rows = rows.append_column(name, found[name])
    return rows.append_column(PLACE, found[PLACE.name])


def _found(uris: pa.ChunkedArray, source: str) -> pa.ChunkedArray:
    """Return uris, of which local ones written as in Windows or in a file URI lead to the files they mean."""

    def found(some: pa.ChunkedArray) -> pa.ChunkedArray:
        return pa.chunked_array([[as_found(uri) for uri in some.to_pylist()]], pa.string())

    uris = _replaced(uris, pc.match_substring_regex(uris, rf"{FILE_URI}.*%"), found)
    if not any(_contains(chunk, "\\") for chunk in uris.chunks):
        return uris
    uris = _replaced(uris, pc.match_substring(uris, "\\"), found)
    unread = uris.filter(pc.match_substring(uris, "\\"))
    if len(unread):
        log.warning(
            "%s has %s with backslashes, which name no folders here, and no files with `/` instead: %s",
            source,
            plural(len(unread), "uri"),
            _some(unread),
        )
    return uris


def _contains(texts: pa.Array, character: str) -> bool:
    """Return whether a character of ASCII may be in one of many texts, in a tenth of the time of a search in each."""
    data = texts.buffers()[2]
    return data is not None and ord(character) in np.frombuffer(data, np.uint8)


def _replaced(
    values: pa.ChunkedArray, places: pa.ChunkedArray, change: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> pa.ChunkedArray:
    """Return values of which some are changed; the others cost nothing, however long they are."""
    if not pc.any(places).as_py():
        return values
    if pc.all(places).as_py():
        return change(values)
    changed = change(values.filter(places))
    numbers = np.maximum(np.cumsum(places.to_numpy()) - 1, 0)
    return pc.if_else(places, changed.take(pa.array(numbers)), values)


def _refuse_foreign(uris: pa.ChunkedArray, source: str, *, allow_http: bool) -> None:
    """Refuse uris of unsupported schemes, and those with a password, which is not shown."""

    def matching(pattern: str, among: pa.ChunkedArray) -> pa.ChunkedArray:
        return among.filter(pc.match_substring_regex(among, pattern))

    def others(pattern: str, among: pa.ChunkedArray) -> pa.ChunkedArray:
        return among.filter(pc.invert(pc.match_substring_regex(among, pattern)))

    schemed = matching(_SCHEME, uris)
    on_the_web = matching(_WEB, schemed)
    of_files = matching(_RELATIVE_FILE, schemed)
    relative = others(FILE_URI, of_files)
    unknown = others(f"{_KNOWN_SCHEME}|{_WEB}", schemed)
    with_user = others(AZURE_ACCOUNT_PATTERN, matching(USER_PATTERN, schemed))
    scheme = Url.parse(unknown[0].as_py()).scheme if len(unknown) else ""
    mounted = f" ({unsupported(scheme)})" if scheme in UNSUPPORTED else ""
    for refused, why in (
        (unknown, f"of an unsupported scheme, not {STORES_IN_WORDS}{mounted}"),
        (with_user, "with a user or a password; credentials come from the environment"),
        (relative, "of files without an absolute path, as in file:///…"),
        (uris.slice(0, 0) if allow_http else on_the_web, "on the web, without --allow-http"),
    ):
        if len(refused):
            hidden = pc.replace_substring_regex(refused, f"{USER_PATTERN}|{_QUERY}", "…")
            raise UsageError(f"{source} has {plural(len(refused), 'uri')} {why}: {_some(hidden)}")


def _text(rows: pa.Table, name: str, source: str) -> pa.ChunkedArray:
    column = rows[name]
    if not _is_text(column.type):
        raise UsageError(f"{source}: the column `{name}` contains {column.type}; it must be text")
    if (pc.max(pc.binary_length(column.cast(pa.string()))).as_py() or 0) > MAX_URI_BYTES:
        raise UsageError(
            f"{source}: the column `{name}` has a text of more than {MAX_URI_BYTES:,} bytes, longer than stores and "
            "file systems accept: shorten it, or remove the row"
        )
    return column.cast(pa.string())


def _is_text(kind: pa.DataType) -> bool:
    return any(is_text(kind) for is_text in (types.is_string, types.is_large_string, types.is_null))


# The table


def _ordered(rows: pa.Table, source: str, named_by: str, *, unique_ids: bool) -> tuple[pa.Table, bool]:
    """Return the rows in order of name, with the columns of `MANIFEST`; and whether the ids are the user's.

    Ids that repeat are refused where `unique_ids`; else the images are numbered, as several tables may number theirs.
    """
    order = pc.sort_indices(rows["name"])
    if not np.array_equal(order, np.arange(len(rows))):  # else spare a copy
        rows = rows.take(order)
    ids = _ids(rows["image_id"]) if "image_id" in rows.column_names else None
    why = "are not all integers >= 0"
    if ids is not None and not unique_ids and pc.count_distinct(ids).as_py() < len(ids):
        ids, why = None, "repeat"
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
    _refuse_duplicates(own["name"], source, named_by)
    if ids is not None:
        _refuse_duplicates(pc.take(ids, pc.sort_indices(ids)), source, "image_id")

    place = [PLACE] if PLACE in rows.schema else []
    carried = carried_columns(rows, taken.union(field.name for field in place), source)
    if "image_id" in carried:
        log.warning(
            "the ids %s; images are numbered in order of name, and the given ids are in the column %s",
            why,
            carried["image_id"],
        )
    additional = {new: rows[name] for name, new in carried.items()}
    fields = [*MANIFEST, *place, *(pa.field(name, column.type) for name, column in additional.items())]
    schema = pa.schema(fields, metadata=METADATA)
    columns = [*own.values(), *(rows[field.name] for field in place), *additional.values()]
    return pa.table(columns, schema=schema), ids is not None


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column as int64, if all its values are integers >= 0."""
    ids = None if column.null_count else _as_integers(column)
    return ids if ids is not None and pc.min(ids).as_py() >= 0 else None


def _integers(rows: pa.Table, name: str) -> pa.ChunkedArray | None:
    return _as_integers(rows[name]) if name in rows.column_names else None


def _as_integers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column of numbers as int64, if all of them are integers, as 7, 7.0 and the decimal 7 are."""
    if not any(is_number(column.type) for is_number in _NUMBERS):
        return None
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None


_NUMBERS: Final = (types.is_integer, types.is_floating, types.is_decimal)


def _strings(rows: pa.Table, name: str) -> pa.ChunkedArray | None:
    if name not in rows.column_names or not _is_text(rows[name].type):
        return None
    return rows[name].cast(pa.string())


def _refuse_duplicates(values: pa.ChunkedArray, source: str, what: str) -> None:
    """Refuse sorted values that contain duplicates."""
    again = values.slice(1).filter(pc.equal(values.slice(1), values.slice(0, len(values) - 1)))
    if len(again):
        raise UsageError(
            f"{source}: {plural(len(again), 'row')} with the same {what} as another row: {_some(pc.unique(again))}; "
            "make them unique"
        )


def _some(values: pa.ChunkedArray | pa.Array) -> str:
    return ", ".join(repr(value) for value in values.slice(0, 3).to_pylist()) + (
        ", …" if len(values) > 3 else ""
    )
