"""Inputs of a run: read, opened, looked up, listed.

They belong to the user: one that cannot be read is an `ItemError` and becomes a row. No listing is cached, for
another process may have written since.
"""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, Final

import pyarrow as pa
from fsspec.utils import glob_translate

from ..errors import UsageError, plural
from .archives.member import split_member
from .picture_tables.picture_uri import is_lance, split_picture
from .refusals import Refusal
from .reporting import reported
from .schemes import ARCHIVES, TABLES, input_store_of, store_of
from .stores.store import ObjectStat, Page
from .url import Url, is_folder, redact

log = logging.getLogger("maskrcnn")

INPUTS: Final = pa.schema(
    [("name", pa.string()), ("uri", pa.string()), ("bytes", pa.int64()), ("etag", pa.string())]
)
"""What `list_inputs` returns."""
"""How often a listing that takes long gives the number of files it has seen."""


def read_input(uri: str, max_bytes: int, etag: str | None = None) -> bytes:
    """Read an object whole, by one request.

    Args:
        uri: a local path, the URL of an object, or an address on the web, which planning refuses without `allow_http`.
        max_bytes: larger objects are refused before, or as soon as, they are known to be larger.
        etag: as planned; an object in S3 must still have it, if it has the form of S3's etags.

    Raises:
        ItemError: `not_found`, `access_denied`, `storage_error`, `changed`, `too_many_bytes`, `empty_file`.
        RunError: no object could be read: missing or expired credentials, an endpoint out of reach.
    """
    url = _input_url(uri)
    store = input_store_of(url)
    with store.input_faults(url):
        data = store.read_input(url, max_bytes, etag)
    if len(data) > max_bytes:
        raise Refusal.TOO_MANY_BYTES_READ.error(limit=max_bytes)
    if not data:
        raise Refusal.EMPTY.error()
    return data


def open_input(uri: str, etag: str | None = None) -> BinaryIO:
    """Open an object for random access; its methods raise the errors of this function.

    Args:
        uri: a local path or the URL of an object.
        etag: as planned; an object in S3 must have it each time it is read, a local file when it is opened.

    Raises:
        ItemError, RunError: as in `read_input`; `unsupported_format` for an address on the web.
    """
    url = _input_url(uri)
    store = input_store_of(url)
    with store.input_faults(url):
        return store.open_input(url, etag)


def _input_url(uri: str) -> Url:
    """Return an input's URL. Raises ItemError for a name that only GDAL understands."""
    if uri.startswith("/vsi"):
        raise Refusal.GDAL_NAME.error()
    return Url.parse(uri)


def stat_input(uri: str) -> ObjectStat:
    """Return an object's size and etag; of a picture in a table, those of the table.

    Raises:
        ItemError: `not_found`, `access_denied`, `storage_error`.
        RunError: as in `read_input`; the uri is on the web.
    """
    in_table = None if split_member(uri) else split_picture(uri)
    url = Url.parse(in_table[0] if in_table else uri)
    if is_lance(url.key):
        return TABLES.stat_table(url)
    store = ARCHIVES if split_member(uri) else store_of(url)
    with store.input_faults(url):
        return store.stat(url)


def pin(url: str) -> str:
    """Return a folder's, a glob's or a file's URL as one whose content never changes; as it is in stores without those.

    Raises:
        FileNotFoundError: there is nothing.
        RunError: as `list_inputs`.
    """
    root = Url.parse(url)
    store = store_of(root)
    with store.output_faults("read", root, missing=True):
        pinned = store.pinned(root)
    return url if pinned == root else pinned.text


def list_inputs(url: str) -> pa.Table:
    r"""List a folder, a prefix, a glob or a single file.

    A URL with `*`, `?` or `[` is a glob unless it exists as it is; `**` spans folders. Folders that are links
    are followed; file systems of the kernel are left out. Markers of folders (keys that end in `/`) are no
    inputs. A local name that is not UTF-8 is escaped, as `caf\xe9.jpg`, and then names no file: it is an input
    that will fail as `not_found`.

    Returns:
        Of schema `INPUTS`, in no particular order; `name` is the path below the folder, the prefix, or the
        last folder of a glob before its first wildcard. Local uris are absolute.

    Raises:
        FileNotFoundError: there is nothing.
        UsageError: a glob matches folders only.
        RunError: the store failed, or a folder cannot be read; the message contains it.
    """
    root = Url.parse(url)
    if root.is_local:
        root = Url.parse(str(root.local_path.absolute()))
    store = store_of(root)
    with store.output_faults("list", root, missing=True):
        found = _table(root, store.scan(root))
        wildcard = re.search(r"[*?\[]", root.key)
        if wildcard and not found.num_rows:
            stem = root.key[: wildcard.start()]
            start = stem.rfind("/") + 1
            folder = Url(root.scheme, root.bucket, stem[:start])
            matches = re.compile(glob_translate(root.key[start:])).match
            matched: set[str] = set()

            def keep(name: str) -> bool:
                matched.update(parent for parent in map(str, PurePosixPath(name).parents) if matches(parent))
                return matches(name) is not None

            found = _table(folder, store.scan(folder, stem[start:]), keep)
            if not found.num_rows and matched:
                folders = plural(len(matched), "folder")
                raise UsageError(
                    f"{url} matches {folders} and no file: for what is in them, use {url.rstrip('/')}/*"
                )
        if not found.num_rows and not (root.is_local and is_folder(root.local_path)):
            found = _table(root.folder, iter([([root.name], [store.stat(root)])]))
    return found


def check_exists(url: str) -> None:
    """Look whether a folder, a prefix, a glob's folder or a file exists, by its first page.

    Raises:
        FileNotFoundError: it does not.
        RunError: as `list_inputs`.
    """
    root = Url.parse(url)
    store = store_of(root)
    wildcard = re.search(r"[*?\[]", root.key)
    folder = Url(root.scheme, root.bucket, root.key[: wildcard.start()]).folder if wildcard else root
    with store.output_faults("list", root, missing=True):
        if not any(names for names, _ in store.scan(folder)) and not wildcard:
            store.stat(root)


def _table(root: Url, pages: Iterator[Page], keep: Callable[[str], bool] = lambda _: True) -> pa.Table:
    """Return pages of names below `root` as a table of the schema `INPUTS`."""
    store = store_of(root)
    tables = [INPUTS.empty_table()]
    place = redact(root.text)
    for page in reported(
        pages, lambda _, seen: f"listing {place}: {plural(seen, 'file')} so far", lambda page: len(page[0])
    ):
        rows = [
            (
                text := store.display_name(root, name),
                root.join(text).text,
                stat.bytes if stat else None,
                stat.etag if stat else None,
            )
            for name, stat in zip(*page, strict=True)
            if keep(name)
        ]
        if rows:
            tables.append(pa.table([pa.array(column) for column in zip(*rows, strict=True)], schema=INPUTS))
    return pa.concat_tables(tables)
